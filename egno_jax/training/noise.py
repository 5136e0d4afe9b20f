"""Noise on the given states of a batch, so that a small training set is not learned by heart.

Each step perturbs the states that it trains on, and leaves their targets:

    x_i <- x_i + s_x e_i,    v_i <- v_i + s_v e'_i,    e, e' ~ N(0, 1),

and renews the features that follow the state, as far as `NoiseConfig` names them: one that it does
not name would tell the state without noise. Evaluations see the states as they are.

Source: Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", Neural Computation
1995; Sanchez-Gonzalez et al., "Learning to Simulate Complex Physics with Graph Networks", ICML
2020, section 4.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from egno_jax.datasets.base import Batch
from egno_jax.rolling import with_state
from egno_jax.training.optimizer import check, check_numbers

if TYPE_CHECKING:
    from jaxtyping import Array, Int

# Far from the numbers of epochs, which the sampler folds into the same key.
_STREAM = 0x7FFFFFFE
# The fields that name features.
_COLUMNS = ("speed_column", "distance_column", "length_column")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """How much noise a step puts on the states that it trains on; none by default.

    Attributes:
      positions: the standard deviation s_x, in the unit of the positions.
      velocities: the standard deviation s_v, in the unit of the velocities.
      speed_column: the node feature that holds |v_i| and is renewed, as in
        `egno_jax.rolling.refresh`; None if there is none.
      distance_column: the edge feature that holds |x_i - x_j|^2 and is renewed; None if there is
        none.
      length_column: the edge feature that holds |x_i - x_j| and is renewed, 0 in
        `egno_jax.datasets.protein`; None if there is none.

    Raises:
      ValueError: a field is out of range; names it.
    """

    positions: float = 0.0
    velocities: float = 0.0
    speed_column: int | None = 0
    distance_column: int | None = -1
    length_column: int | None = None

    def __post_init__(self) -> None:
        check_numbers(self, but=_COLUMNS)
        for name in ("positions", "velocities"):
            check(self, name, 0 <= getattr(self, name) < math.inf, "0 (none) or more")
        for name in _COLUMNS:
            column = getattr(self, name)
            is_column = isinstance(column, int) and not isinstance(column, bool)
            check(self, name, column is None or is_column, "a column's number, or None")

    @property
    def is_off(self) -> bool:
        """Whether there is none."""
        return self.positions == 0 and self.velocities == 0


def step_key(sampler_key: Array, step: Int[Array, ""]) -> Array:
    """Returns the key of a step's noise, so that a resumed run draws the same."""
    return jax.random.fold_in(jax.random.fold_in(sampler_key, _STREAM), step)


def add_noise(batch: Batch, key: Array, places: Int[Array, "B"], config: NoiseConfig) -> Batch:
    """Returns a batch with noise on its states; works inside `jit`.

    The noise of a sample depends on the key and on its place in the batch of the step alone, and so
    is the same however a mesh splits the batch.

    Args:
      batch: B samples of one size, as `egno_jax.datasets.take` gives them.
      key: the key of the step.
      places: `[B]`, where in the batch of the step each sample stands.
      config: how much.

    Raises:
      ValueError: the graph has no such column as the config names.
    """
    if config.is_off:
        return batch
    nodes = batch.graph.nodes
    shape = (2, nodes["positions"].shape[0] // places.shape[0], 3)
    dtype = jnp.result_type(nodes["positions"].dtype, nodes["velocities"].dtype)
    drawn = jax.vmap(lambda place: jax.random.normal(jax.random.fold_in(key, place), shape, dtype))(
        places
    )
    moved = {
        name: nodes[name] + scale * drawn[:, index].reshape(-1, 3).astype(nodes[name].dtype)
        for index, (name, scale) in enumerate(
            (("positions", config.positions), ("velocities", config.velocities))
        )
    }
    graph = with_state(
        batch.graph,
        **moved,
        **{name: getattr(config, name) for name in _COLUMNS},
    )
    return batch._replace(graph=graph)
