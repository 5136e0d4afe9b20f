"""Errors of predicted trajectories, averaged over real nodes.

P times, N nodes of all graphs of a batch. With e_pn the difference of prediction and target, the
error at time p is the mean of |e_pn|^2 / 3 over real nodes n, in the unit of positions squared.
Padding affects neither values nor gradients, whatever it holds; without real nodes, errors are 0.

A *summable* is a pytree of sums that add leaf by leaf over batches, with `finalize()` for the
result: `ErrorSums` here, and `Mean` for custom metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Mean(NamedTuple):
    """A weighted mean over batches, which custom metrics of `egno_jax.training.fit` return.

    For example, the mean length of predicted velocities at the last time:

        def speed(predicted, batch):
            lengths = jnp.linalg.norm(predicted.velocities[-1], axis=-1)
            return Mean(jnp.sum(lengths * batch.node_mask), jnp.sum(batch.node_mask))

    Attributes:
      total: `[...]`, a sum of weighted values.
      weight: `[]`, or of the shape of `total`, the sum of the weights.
    """

    total: Float[Array, "..."]
    weight: Float[Array, "..."]

    def merge(self, other: Mean) -> Mean:
        """Returns the mean over the values of both."""
        return jax.tree.map(jnp.add, self, other)

    def finalize(self) -> Float[Array, "..."]:
        """Returns `total / weight`; 0 if the weight is 0."""
        is_empty = self.weight == 0
        return jnp.where(is_empty, 0.0, self.total / jnp.where(is_empty, 1, self.weight))


class Errors(NamedTuple):
    """Mean squared errors of a trajectory.

    Attributes:
      f_mse: `[]`, at the last time.
      a_mse: `[]`, over all times.
      per_time: `[P]`, at each time.
    """

    f_mse: Float[Array, ""]
    a_mse: Float[Array, ""]
    per_time: Float[Array, "P"]


class ErrorSums(NamedTuple):
    """Sums of squared errors, in which every real node of every batch has the same weight.

    Add batches of any sizes:

        sums = ErrorSums.zero(num_times)
        for batch in batches:
            sums = sums.add(predict(batch), batch.positions, batch.node_mask)
        errors = sums.finalize()

    Attributes:
      squares: `[P]`, the sum of squared errors over real nodes and coordinates.
      num_nodes: `[]` int32, the number of real nodes.
    """

    squares: Float[Array, "P"]
    num_nodes: Int[Array, ""]

    @classmethod
    def zero(cls, num_times: int) -> ErrorSums:
        """Returns sums over nothing, for P = `num_times`."""
        return cls(jnp.zeros(num_times), jnp.zeros((), jnp.int32))

    def add(
        self,
        predicted: Float[Array, "P N 3"],
        target: Float[Array, "P N 3"],
        node_mask: Bool[Array, "N"] | None = None,
    ) -> ErrorSums:
        """Returns the sums with one more batch; arguments as `squared_errors`."""
        return self.merge(squared_errors(predicted, target, node_mask))

    def merge(self, other: ErrorSums) -> ErrorSums:
        """Returns the sums over the nodes of both, which must have the same number of times."""
        if self.squares.shape != other.squares.shape:
            raise ValueError(
                f"other: got P = {other.squares.shape[0]} times, expected P = "
                f"{self.squares.shape[0]}; use one ErrorSums for each number of times"
            )
        return ErrorSums(self.squares + other.squares, self.num_nodes + other.num_nodes)

    def finalize(self) -> Errors:
        """Returns the means; 0 if no node was real."""
        per_time = self.squares / (3.0 * jnp.maximum(self.num_nodes, 1))
        return Errors(f_mse=per_time[-1], a_mse=jnp.mean(per_time), per_time=per_time)


def squared_errors(
    predicted: Float[Array, "P N 3"],
    target: Float[Array, "P N 3"],
    node_mask: Bool[Array, "N"] | None = None,
) -> ErrorSums:
    """Sums the squared errors of one batch over its real nodes, in float32 or wider.

    Args:
      predicted: `[P, N, 3]`, positions or velocities.
      target: `[P, N, 3]`, in the same unit.
      node_mask: `[N]`, False on padding nodes; None if all nodes are real.
    """
    predicted, target = jnp.asarray(predicted), jnp.asarray(target)
    dtype = jnp.result_type(predicted.dtype, target.dtype, jnp.float32)
    if predicted.ndim != 3 or predicted.shape[-1] != 3 or predicted.shape[0] == 0:
        raise ValueError(
            f"predicted: got {list(predicted.shape)}, expected [P, N, 3] with P >= 1; pass "
            "trajectory.positions or trajectory.velocities"
        )
    if target.shape != predicted.shape:
        raise ValueError(
            f"target: got {list(target.shape)}, expected the shape of predicted, "
            f"{list(predicted.shape)}; pad targets with egno_jax.graph.pad_nodes"
        )
    differences = predicted.astype(dtype) - target.astype(dtype)
    num_nodes = jnp.asarray(predicted.shape[1], jnp.int32)
    if node_mask is not None:
        node_mask = jnp.asarray(node_mask)
        if node_mask.dtype != bool or node_mask.shape != predicted.shape[1:2]:
            raise ValueError(
                f"node_mask: got {node_mask.dtype} {list(node_mask.shape)}, expected boolean [N] "
                f"with N = {predicted.shape[1]}; use the mask that egno_jax.graph.pad returns"
            )
        # Before squaring, so that infinite padding has gradient 0.
        differences = jnp.where(node_mask[:, None], differences, 0.0)
        num_nodes = jnp.sum(node_mask, dtype=jnp.int32)
    return ErrorSums(jnp.sum(differences**2, axis=(1, 2)), num_nodes)


def mse_per_time(
    predicted: Float[Array, "P N 3"],
    target: Float[Array, "P N 3"],
    node_mask: Bool[Array, "N"] | None = None,
) -> Float[Array, "P"]:
    """Returns the mean squared error at each time, sum_n |e_pn|^2 / (3 N); see `squared_errors`."""
    return squared_errors(predicted, target, node_mask).finalize().per_time


def f_mse(
    predicted: Float[Array, "P N 3"],
    target: Float[Array, "P N 3"],
    node_mask: Bool[Array, "N"] | None = None,
) -> Float[Array, ""]:
    """Returns the error at the last time, sum_n |e_Pn|^2 / (3 N): F-MSE of arXiv:2401.11037."""
    return mse_per_time(predicted, target, node_mask)[-1]


def a_mse(
    predicted: Float[Array, "P N 3"],
    target: Float[Array, "P N 3"],
    node_mask: Bool[Array, "N"] | None = None,
) -> Float[Array, ""]:
    """Returns the error over all times, sum_pn |e_pn|^2 / (3 N P): A-MSE of arXiv:2401.11037."""
    return jnp.mean(mse_per_time(predicted, target, node_mask))
