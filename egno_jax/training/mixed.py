"""Training on samples of different sizes, in buckets: a program for each bucket.

A batch comes from one bucket. Its loss is weighted by its real nodes,

    loss = (nodes of the batch / mean nodes of a batch) (mean squared error of the batch),

so that over an epoch every real node weighs the same, whichever bucket it is in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from egno_jax import ops
from egno_jax.datasets.base import Samples, at_times, num_samples
from egno_jax.datasets.buckets import Buckets
from egno_jax.model import Params
from egno_jax.training import sharded
from egno_jax.training.config import TrainingConfig
from egno_jax.training.sampler import epoch_permutation, steps_per_epoch
from egno_jax.training.step import (
    StepMetrics,
    TrainState,
    loss_and_gradient,
    loss_fn,
    noisy_batch,
    update,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jaxtyping import Array, Float, Int


class BucketSampler:
    """The batch of each step as a function of the key and the step alone.

    In an epoch each bucket gives as many batches as it has whole, in one shuffled order of the
    batches of all buckets.

    Args:
      key: the sampler's random key.
      counts: how many samples each bucket has.
      batch_size: B.

    Raises:
      ValueError: a bucket has fewer samples than a batch; names it.
    """

    def __init__(self, key: Array, counts: Sequence[int], batch_size: int) -> None:
        self._batch_size = batch_size
        num_batches = epoch_batches(counts, batch_size)
        owner = np.repeat(np.arange(len(counts)), num_batches)
        self.steps_per_epoch = len(owner)

        @functools.lru_cache(maxsize=2)
        def epoch_plan(epoch: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
            buckets = owner[np.asarray(epoch_permutation(key, epoch, len(owner)))]
            ranks = np.zeros_like(buckets)
            for bucket in range(len(counts)):
                is_its = buckets == bucket
                ranks[is_its] = np.arange(is_its.sum())
            orders = [
                np.asarray(epoch_permutation(jax.random.fold_in(key, 1 + bucket), epoch, count))
                for bucket, count in enumerate(counts)
            ]
            return buckets, ranks, orders

        self._epoch_plan = epoch_plan

    def __call__(self, step: int) -> tuple[int, Int[np.ndarray, "B"]]:
        """Returns the bucket of a step and which of its samples make up the batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        buckets, ranks, orders = self._epoch_plan(epoch)
        bucket, start = int(buckets[place]), int(ranks[place]) * self._batch_size
        return bucket, orders[bucket][start : start + self._batch_size]


def epoch_batches(counts: Sequence[int], batch_size: int) -> list[int]:
    """Returns how many batches of an epoch come from each bucket.

    Raises:
      ValueError: a bucket has fewer samples than a batch; names it.
    """
    found = []
    for bucket, count in enumerate(counts):
        try:
            found.append(steps_per_epoch(count, batch_size))
        except ValueError as error:
            raise ValueError(f"bucket {bucket}: {error}; take fewer buckets") from error
    return found


def mean_nodes(buckets: Buckets, batch_size: int) -> float:
    """Returns how many real nodes a batch has, in the mean over an epoch."""
    num_batches = epoch_batches([num_samples(part) for part in buckets.samples], batch_size)
    nodes = [float(np.asarray(part.node_mask).sum(axis=1).mean()) for part in buckets.samples]
    return batch_size * float(np.average(nodes, weights=num_batches))


def mixed_steps(
    buckets: Buckets, config: TrainingConfig, mesh: Mesh | None
) -> tuple[Callable, Callable]:
    """Makes the steps of a run on buckets, whose samples lie on the device or the mesh already.

    Returns:
      A function of state, steps done and steps to take, as `Placement.advance`; and one of state
      and step that names the samples of a batch, as `Placement.batch_of`.
    """
    nodes = np.float32(mean_nodes(buckets, config.batch_size))
    take_step = bucket_step if mesh is None else sharded_bucket_step

    sampler_of = _sampler_of(buckets, config)

    def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        draw, found = sampler_of(state), []
        for number in range(step, step + length):
            bucket, indices = draw(number)
            state, step_metrics = take_step(state, buckets.samples[bucket], indices, nodes, config)
            found.append(step_metrics)
        return state, jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(found))

    return advance, origins_of(buckets, config)


def origins_of(
    buckets: Buckets, config: TrainingConfig
) -> Callable[[TrainState, int], Int[np.ndarray, "B"]]:
    """Makes the function of state and step that names the samples of a batch."""
    sampler_of = _sampler_of(buckets, config)

    def batch_of(state: TrainState, step: int) -> np.ndarray:
        bucket, indices = sampler_of(state)(step)
        return np.asarray(buckets.origins[bucket])[indices]

    return batch_of


def _sampler_of(buckets: Buckets, config: TrainingConfig) -> Callable[[TrainState], BucketSampler]:
    """Makes the function that returns a state's sampler, one for each key."""
    counts = [num_samples(part) for part in buckets.samples]

    @functools.cache
    def sampler(key_data: bytes, implementation: str) -> BucketSampler:
        data = np.frombuffer(key_data, np.uint32)
        key = jax.random.wrap_key_data(data, impl=implementation)
        return BucketSampler(key, counts, config.batch_size)

    def sampler_of(state: TrainState) -> BucketSampler:
        data = np.asarray(jax.random.key_data(state.sampler_key))
        return sampler(data.tobytes(), str(jax.random.key_impl(state.sampler_key)))

    return sampler_of


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def bucket_step(
    state: TrainState,
    samples: Samples,
    indices: Int[Array, "B"],
    mean_nodes: Float[Array, ""],
    config: TrainingConfig,
) -> tuple[TrainState, StepMetrics]:
    """Takes a step on some samples of a bucket.

    Args:
      state: the state before; its buffers are donated.
      samples: the samples of the bucket, on the device.
      indices: `[B]`, which of them.
      mean_nodes: see `mean_nodes`.
      config: the settings.
    """
    batch = noisy_batch(state, samples, indices, config)
    weight = jnp.sum(batch.node_mask) / mean_nodes

    def loss_at(params: Params, kept: Int[Array, "Q B"] | None) -> Float[Array, ""]:
        return weight * loss_fn(params, batch if kept is None else at_times(batch, kept))

    loss, grads = loss_and_gradient(state, config, batch.positions.shape[0], loss_at)
    return update(state, loss, grads, config)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def sharded_bucket_step(
    state: TrainState,
    samples: Samples,
    indices: Int[Array, "B"],
    mean_nodes: Float[Array, ""],
    config: TrainingConfig,
) -> tuple[TrainState, StepMetrics]:
    """Does what `bucket_step` does, on the mesh; called while it is set."""
    shares = sharded.take_shares(samples, indices, ops.axis_size(ops.DATA_AXIS))
    return sharded.whole(sharded.sharded_step(state, shares, config, mean_nodes))
