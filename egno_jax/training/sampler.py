"""The deterministic sampler: which samples make up the batch of a step, as a pure function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Int


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Returns how many whole batches an epoch has; the rest of the samples waits for the next.

    Raises:
      ValueError: a batch is larger than the data set.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(
            f"batch_size: got {batch_size}, expected from 1 to {num_samples}, the number of samples"
        )
    return num_samples // batch_size


def batch_indices(
    key: Array, step: Int[Array, ""] | int, num_samples: int, batch_size: int
) -> Int[Array, "B"]:
    """Returns the samples of a step: a slice of the epoch's permutation.

    It depends on key and step alone, so a run that is resumed, or cut into chunks in another way,
    sees the same batches. In each epoch no sample is seen twice.

    Args:
      key: the sampler's random key.
      step: the number of steps already done; may be traced.
      num_samples: S, size of the data set.
      batch_size: B.

    Returns:
      `[B]`, indices in `[0, S)`.
    """
    epoch_length = steps_per_epoch(num_samples, batch_size)
    permutation = epoch_permutation(key, step // epoch_length, num_samples)
    start = (step % epoch_length) * batch_size
    return jax.lax.dynamic_slice_in_dim(permutation, start, batch_size)


def chunk_indices(
    key: Array, step: Int[Array, ""] | int, num_steps: int, num_samples: int, batch_size: int
) -> Int[Array, "K B"]:
    """Returns `batch_indices` of steps in a row; draws an epoch's permutation once.

    Args:
      key: the sampler's random key.
      step: the number of steps done before the first of them; may be traced.
      num_steps: K.
      num_samples: S, size of the data set.
      batch_size: B.

    Returns:
      `[K, B]`, indices in `[0, S)`.
    """
    epoch_length = steps_per_epoch(num_samples, batch_size)
    steps = step + jnp.arange(num_steps)
    epochs = steps // epoch_length
    # However the steps lie, they touch no more epochs than this.
    touched = epochs[0] + jnp.arange((num_steps + epoch_length - 2) // epoch_length + 1)
    # One after the other and not by `vmap`, which some kinds of keys answer with other numbers.
    orders = jax.lax.map(lambda epoch: epoch_permutation(key, epoch, num_samples), touched)
    places = (steps % epoch_length)[:, None] * batch_size + jnp.arange(batch_size)
    return orders[(epochs - epochs[0])[:, None], places]


def epoch_permutation(key: Array, epoch: Int[Array, ""] | int, num_samples: int) -> Int[Array, "S"]:
    """Returns the order of the samples in an epoch, which its batches are cut from."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_samples)


def time_indices(
    key: Array, num_times: int, num_kept: int, batch_size: int, *, kind: str
) -> Int[Array, "Q B"]:
    """Draws which of its target times each sample of a batch is trained on.

    Args:
      key: a random key.
      num_times: P, the targets that there are.
      num_kept: Q, those that are drawn, at most P.
      batch_size: B.
      kind: `subsets`: any Q times, all alike; `grids`: Q equally spaced indices, of a spacing and
        behind an offset that are drawn, so also a window of the targets.

    Returns:
      `[Q, B]`, increasing along Q.
    """
    if kind == "subsets":
        order = jnp.argsort(jax.random.uniform(key, (num_times, batch_size)), axis=0)
        return jnp.sort(order[:num_kept], axis=0)
    spacing_key, offset_key = jax.random.split(key)
    largest = max((num_times - 1) // max(num_kept - 1, 1), 1)
    spacing = jax.random.randint(spacing_key, (batch_size,), 1, largest + 1)
    room = num_times - (num_kept - 1) * spacing
    offset = jax.random.randint(offset_key, (batch_size,), 0, room)
    return offset + spacing * jnp.arange(num_kept)[:, None]
