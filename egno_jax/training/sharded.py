"""The step and the evaluation on a mesh: a batch in shares, one to each part of the data axis.

A share is a batch of its own, of some of the samples; shares are stacked along a leading axis that
the mesh splits, and `vmap` maps the model over it. A flat batch split by nodes would make XLA
gather the features of all nodes on every device. Functions here are called while `jax.set_mesh`
sets the mesh; the samples of a step, and the sum that is its loss, are the same on every mesh.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from egno_jax import metrics, model, ops
from egno_jax.datasets.base import Batch, Samples, at_times, num_samples, take
from egno_jax.model import Params
from egno_jax.training.config import TrainingConfig
from egno_jax.training.evaluation import error_sums
from egno_jax.training.mesh import global_array, replicate, time_axis
from egno_jax.training.noise import add_noise, step_key
from egno_jax.training.sampler import chunk_indices
from egno_jax.training.step import StepMetrics, TrainState, loss_and_gradient, update

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jaxtyping import Array, Bool, Float, Int

# What `vmap` does to samples whose times are the same in all shares.
_SHARED_TIMES = Samples(graph=0, times=None, positions=0, velocities=0, node_mask=0)


def share_places(batch_size: int, num_shares: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where in a batch the samples of each share stand.

    Args:
      batch_size: B.
      num_shares: D.

    Returns:
      `[D, ceil(B / D)]` places in `[0, B)`, and whether each is that of a sample rather than a
      repetition of the last one, which makes the shares equally large.
    """
    share_size = -(-batch_size // num_shares)
    places = np.arange(num_shares * share_size).reshape(num_shares, share_size)
    return np.minimum(places, batch_size - 1), places < batch_size


def take_shares(samples: Samples, indices: Int[Array, "B"], num_shares: int) -> Batch:
    """Gathers the samples of a step in shares; works inside `jit`.

    Args:
      samples: the stacked samples.
      indices: `[B]`, which samples.
      num_shares: D.

    Returns:
      A batch whose every leaf has a leading axis D.
    """
    places, is_sample = share_places(indices.shape[0], num_shares)
    shares = jax.vmap(take, in_axes=(None, 0))(samples, indices[places])
    return split_shares(shares._replace(node_mask=_only_samples(shares.node_mask, is_sample)))


def split_shares(shares: Batch) -> Batch:
    """Keeps on each device its share of the graphs, and its share of their times."""

    def split(leaf: Array, *axes: str | None) -> Array:
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(ops.DATA_AXIS, *axes))

    is_even = ops.num_missing_times(shares.positions.shape[1]) == 0
    over_time = (ops.TIME_AXIS,) if is_even else ()
    positions, velocities = jax.tree.map(
        lambda leaf: split(leaf, *over_time), (shares.positions, shares.velocities)
    )
    return Batch(
        graph=jax.tree.map(split, shares.graph),
        times=split(shares.times),
        positions=positions,
        velocities=velocities,
        node_mask=split(shares.node_mask),
    )


def shares_at_times(shares: Batch, indices: Int[Array, "Q B"]) -> Batch:
    """Keeps some of the times of every sample; see `at_times`."""
    num_shares = shares.positions.shape[0]
    places, _ = share_places(indices.shape[1], num_shares)
    return jax.vmap(at_times)(shares, jnp.moveaxis(indices[:, places], 1, 0))


def sharded_loss_fn(params: Params, shares: Batch) -> Float[Array, ""]:
    """Returns what `loss_fn` returns of the whole batch, every real node of it equal."""

    def sums(params: Params, batch: Batch) -> list[metrics.ErrorSums]:
        predicted = model.apply(params, batch.graph, batch.times)
        pairs = [(predicted.positions, batch.positions)]
        if params.config.velocity_weight:
            pairs.append((predicted.velocities, batch.velocities))
        return [metrics.squared_errors(*pair, batch.node_mask) for pair in pairs]

    weights = (1.0, params.config.velocity_weight)
    return sum(
        weight * _together(part).finalize().a_mse
        for weight, part in zip(weights, _over_shares(sums)(params, shares), strict=False)
    )


def sharded_step(
    state: TrainState,
    shares: Batch,
    config: TrainingConfig,
    mean_nodes: Float[Array, ""] | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Takes one step on a batch in shares; see `train_step`.

    With `mean_nodes` the loss is multiplied by the batch's real nodes over that number.
    """
    places, _ = share_places(config.batch_size, shares.node_mask.shape[0])
    noisy = functools.partial(add_noise, config=config.noise)
    key = step_key(state.sampler_key, state.step)
    shares = jax.vmap(noisy, in_axes=(0, None, 0))(shares, key, places)
    weight = 1.0 if mean_nodes is None else jnp.sum(shares.node_mask) / mean_nodes

    def loss_at(params: Params, kept: Int[Array, "Q B"] | None) -> Float[Array, ""]:
        part = shares if kept is None else shares_at_times(shares, kept)
        return weight * sharded_loss_fn(params, part)

    num_times = shares.positions.shape[1]
    loss, grads = loss_and_gradient(state, config, num_times, loss_at)
    return update(state, loss, grads, config)


@functools.partial(jax.jit, static_argnames=("config", "num_steps"), donate_argnames="state")
def sharded_chunk(
    state: TrainState, samples: Samples, config: TrainingConfig, num_steps: int
) -> tuple[TrainState, StepMetrics]:
    """Does what `train_chunk` does, on the mesh; the samples are whole on every device."""
    num_shares = ops.axis_size(ops.DATA_AXIS)

    def step(state: TrainState, indices: Int[Array, "B"]) -> tuple[TrainState, StepMetrics]:
        return sharded_step(state, take_shares(samples, indices, num_shares), config)

    batches = chunk_indices(
        state.sampler_key, state.step, num_steps, num_samples(samples), config.batch_size
    )
    return whole(jax.lax.scan(step, state, batches))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def streamed_chunk(
    state: TrainState,
    batches: Batch,
    config: TrainingConfig,
    mean_nodes: Float[Array, ""] | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Takes a step on each of K batches in shares, whose leaves are `[K, D, ...]`."""

    def step(state: TrainState, shares: Batch) -> tuple[TrainState, StepMetrics]:
        return sharded_step(state, split_shares(shares), config, mean_nodes)

    return whole(jax.lax.scan(step, state, batches))


def place_train(samples: Samples, mesh: Mesh) -> Samples:
    """Lays a training set on the mesh: any sample may be wanted anywhere, its times may not."""
    over_time = time_axis(mesh, samples.positions.shape[1])
    others = samples._replace(positions=None, velocities=None)
    positions, velocities = jax.tree.map(
        lambda leaf: global_array(leaf, mesh, None, over_time),
        (samples.positions, samples.velocities),
    )
    return replicate(others, mesh)._replace(positions=positions, velocities=velocities)


def place_valid(samples: Samples, mesh: Mesh) -> Samples:
    """Lays a validation set on the mesh in shares, `[D, S / D, ...]`; the last one is filled up."""
    places, is_sample = share_places(num_samples(samples), mesh.shape[ops.DATA_AXIS])
    over_time = time_axis(mesh, samples.positions.shape[1])

    def place(leaf: Array, *axes: str | None) -> jax.Array:
        return global_array(np.asarray(leaf)[places], mesh, ops.DATA_AXIS, *axes)

    mask = np.asarray(samples.node_mask)[places] & is_sample[..., None]
    positions, velocities = jax.tree.map(
        lambda leaf: place(leaf, None, over_time), (samples.positions, samples.velocities)
    )
    return Samples(
        graph=jax.tree.map(place, samples.graph),
        times=global_array(samples.times, mesh),
        positions=positions,
        velocities=velocities,
        node_mask=global_array(mask, mesh, ops.DATA_AXIS),
    )


@functools.partial(jax.jit, static_argnames="batch_size")
def sharded_sums_of(params: Params, shares: Samples, *, batch_size: int) -> metrics.ErrorSums:
    """Does what `error_sums` does, on the mesh; the samples are placed by `place_valid`."""
    num_shares = shares.positions.shape[0]
    sums = functools.partial(error_sums, batch_size=-(-batch_size // num_shares))
    return whole(_together(_over_shares(sums, _SHARED_TIMES)(params, shares)))


def _over_shares(function: Any, in_axes: Any = 0) -> Any:
    """Maps a function of the model and a share over the shares, each where it is."""
    return jax.vmap(function, in_axes=(None, in_axes), spmd_axis_name=ops.DATA_AXIS)


def _together(sums: metrics.ErrorSums) -> metrics.ErrorSums:
    return metrics.ErrorSums(jnp.sum(sums.squares, axis=0), jnp.sum(sums.num_nodes))


def _only_samples(node_mask: Bool[Array, "D N"], is_sample: Bool[np.ndarray, "D B"]) -> Array:
    return node_mask & jnp.repeat(is_sample, node_mask.shape[1] // is_sample.shape[1], axis=1)


def whole(tree: Any) -> Any:
    """Keeps results whole on every device."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)
