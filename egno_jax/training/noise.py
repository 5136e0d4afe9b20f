"""Noise on the initial states and the targets of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from egno_jax.datasets.base import Batch, Samples, num_samples, take
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.graph.columns import QUANTITIES, check_columns, with_state
from egno_jax.training.config import NoiseConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Int

# Samples of each size whose features are compared with their states.
_NUM_CHECKED = 16


def add_noise(batch: Batch, key: Array, places: Int[Array, "B"], config: NoiseConfig) -> Batch:
    """Returns a batch with noise on its initial states and targets; works inside `jit`.

        x_i <- x_i + s_x e_i,    v_i <- v_i + s_v e'_i,    y_pi <- y_pi + s_y e''_pi

    with e, e', e'' ~ N(0, 1). Features that `config` names are recomputed. The noise of a sample
    depends on the key of the step and on the sample's place in its batch, `places`, and so not on
    how a mesh splits the batch.

    Raises:
      ValueError: the graph has no such column as the config names.

    Source: Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", Neural
    Computation 1995; Sanchez-Gonzalez et al., "Learning to Simulate Complex Physics with Graph
    Networks", ICML 2020, section 4.
    """
    if config.is_off:
        return batch
    batch = _with_noisy_targets(batch, key, places, config)
    if config.positions == config.velocities == 0:
        return batch
    nodes = batch.graph.nodes
    shape = (2, nodes["positions"].shape[0] // places.shape[0], 3)
    dtype = jnp.result_type(nodes["positions"].dtype, nodes["velocities"].dtype)

    def draw(place: Array) -> tuple[Array, ...]:
        return tuple(jax.random.normal(jax.random.fold_in(key, place), shape, dtype))

    noisy = [
        nodes[name] + getattr(config, name) * drawn.reshape(-1, 3).astype(nodes[name].dtype)
        for name, drawn in zip(("positions", "velocities"), jax.vmap(draw)(places), strict=True)
    ]
    return batch._replace(graph=with_state(batch.graph, *noisy, **_columns(config)))


def _with_noisy_targets(
    batch: Batch, key: Array, places: Int[Array, "B"], config: NoiseConfig
) -> Batch:
    if config.targets == 0:
        return batch
    num_times, num_nodes, _ = batch.positions.shape
    shape, dtype = (num_times, num_nodes // places.shape[0], 3), batch.positions.dtype

    def draw(place: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, place), 1)  # the state's is one level up
        return jax.random.normal(own, shape, dtype)

    drawn = jnp.moveaxis(jax.vmap(draw)(places), 0, 1).reshape(batch.positions.shape)
    return batch._replace(positions=batch.positions + config.targets * drawn)


def check_noise(data: Samples | Buckets, config: NoiseConfig) -> None:
    """Raises a ValueError if a column that the noise recomputes holds something else."""
    if config.is_off:
        return
    for part in by_size(data):
        part = jax.tree.map(np.asarray, part)
        graph = take(part, np.arange(min(num_samples(part), _NUM_CHECKED)), np).graph
        try:
            check_columns(graph, **_columns(config))
        except ValueError as error:
            raise ValueError(f"NoiseConfig.{error}") from error


def _columns(config: NoiseConfig) -> dict[str, int | None]:
    return {name: getattr(config, name) for name in QUANTITIES}
