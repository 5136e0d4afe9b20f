"""The sampler: every sample once an epoch, and nothing but key and step decide."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax.training import BucketSampler, batch_indices, init_state, steps_per_epoch
from egno_jax.training.step import run_chunk

KEY = jax.random.key(3)


def epoch_of(key, epoch, num_samples, batch_size):
    draw = BucketSampler(key, num_samples, batch_size)
    steps = draw.steps_per_epoch
    return np.concatenate([draw(epoch * steps + i)[1] for i in range(steps)])


@settings(max_examples=8)
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


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 30), st.booleans())
def test_the_host_draws_the_same_batches(total, batch_size, step, is_rbg):
    key = jax.random.key(3, impl="rbg" if is_rbg else "threefry2x32")
    batch_size = min(batch_size, total)
    draw = BucketSampler(key, total, batch_size)
    for number in range(step, step + 4):
        bucket, found = draw(number)
        assert bucket == 0
        np.testing.assert_array_equal(found, batch_indices(key, number, total, batch_size))


def test_batches_depend_on_key_and_step_alone():
    draw, again = (BucketSampler(KEY, (6, 9, 4), 2) for _ in range(2))
    assert draw.steps_per_epoch == 3 + 4 + 2
    steps = [draw(step) for step in range(18)]
    for step in (17, 4, 9):
        bucket, indices = again(step)
        assert bucket == steps[step][0]
        np.testing.assert_array_equal(indices, steps[step][1])
    for epoch in (steps[:9], steps[9:]):
        assert sorted(bucket for bucket, _ in epoch) == [0] * 3 + [1] * 4 + [2] * 2
        for bucket in range(3):
            seen = np.concatenate([indices for which, indices in epoch if which == bucket])
            assert len(set(seen.tolist())) == len(seen)
    assert [bucket for bucket, _ in steps[:9]] != [bucket for bucket, _ in steps[9:]]


def test_the_batches_of_earlier_versions():
    """Recorded with 0.1: a run that is resumed must see the same samples."""
    draw = BucketSampler(KEY, (6, 9, 4), 2)
    found = [draw(step)[1].tolist() for step in range(12)]
    assert found == [
        *([3, 1], [1, 3], [4, 2], [4, 8], [6, 2], [3, 0], [5, 1], [7, 0], [0, 2]),
        *([2, 8], [5, 2], [4, 1]),
    ]


def test_a_chunk_draws_no_permutation(task, config):
    """A permutation sorts: the host draws it once an epoch."""
    params, train, _ = task
    state = init_state(params, config)
    indices = np.zeros((7, config.batch_size), np.int32)
    jaxpr = jax.make_jaxpr(run_chunk, static_argnums=(4, 5))(
        state, train, indices, None, config, None
    )
    assert "scan[" in str(jaxpr) and "sort[" not in str(jaxpr)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size: got {batch_size}, expected from 1 to 10"):
        steps_per_epoch(10, batch_size)
