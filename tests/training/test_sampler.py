"""The sampler: every sample once an epoch, and nothing but key and step decide."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax.training import batch_indices, init_state, steps_per_epoch, train_chunk
from egno_jax.training.sampler import chunk_indices

KEY = jax.random.key(3)


def epoch_of(key, epoch, num_samples, batch_size):
    steps = steps_per_epoch(num_samples, batch_size)
    return np.concatenate(
        [batch_indices(key, epoch * steps + i, num_samples, batch_size) for i in range(steps)]
    )


@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_sees_no_sample_twice(num_samples, batch_size, epoch):
    batch_size = min(batch_size, num_samples)
    seen = epoch_of(KEY, epoch, num_samples, batch_size)
    assert len(set(seen.tolist())) == len(seen) == num_samples - num_samples % batch_size
    assert seen.min() >= 0
    assert seen.max() < num_samples


def test_epochs_and_keys_are_shuffled_differently():
    first = epoch_of(KEY, 0, 32, 8)
    assert (epoch_of(KEY, 1, 32, 8) != first).any()
    assert (epoch_of(jax.random.key(4), 0, 32, 8) != first).any()
    np.testing.assert_array_equal(epoch_of(KEY, 0, 32, 8), first)


def test_a_traced_step_gives_the_same_batch():
    jitted = jax.jit(lambda step: batch_indices(KEY, step, 32, 8))
    np.testing.assert_array_equal(jitted(13), batch_indices(KEY, 13, 32, 8))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 30), st.integers(1, 12), st.booleans())
def test_the_batches_of_a_chunk_are_those_of_its_steps(total, batch_size, step, num_steps, is_rbg):
    key = jax.random.key(3, impl="rbg" if is_rbg else "threefry2x32")
    batch_size = min(batch_size, total)
    found = jax.jit(chunk_indices, static_argnums=(2, 3, 4))(
        key, step, num_steps, total, batch_size
    )
    expected = [batch_indices(key, step + i, total, batch_size) for i in range(num_steps)]
    np.testing.assert_array_equal(found, expected)


def test_a_step_of_a_chunk_draws_no_permutation(task, config):
    """A permutation sorts; of the loops of a chunk only that over its epochs may."""
    params, train, _ = task
    state = init_state(params, config)

    def loops(jaxpr):
        for equation in jaxpr.eqns:
            values = equation.params.values()
            for inner in [value.jaxpr for value in values if hasattr(value, "jaxpr")]:
                if equation.primitive.name == "scan":
                    yield equation.params["length"], "sort[" in str(inner)
                else:
                    yield from loops(inner)

    jaxpr = jax.make_jaxpr(train_chunk, static_argnums=(2, 3))(state, train, config, 7)
    assert dict(loops(jaxpr.jaxpr)) == {7: False, 3: True}


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size: got {batch_size}, expected from 1 to 10"):
        steps_per_epoch(10, batch_size)
