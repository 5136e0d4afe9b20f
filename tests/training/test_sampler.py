"""The sampler: every sample once an epoch, and nothing but key and step decide."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax.training import batch_indices, steps_per_epoch

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


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size: got {batch_size}, expected from 1 to 10"):
        steps_per_epoch(10, batch_size)
