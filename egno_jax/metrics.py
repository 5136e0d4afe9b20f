"""Errors of predicted trajectories, in which every real node counts equally.

P times, N nodes of all graphs of a batch together. With e_pn the difference of prediction and
target, an error at time p is the mean over real nodes n and the three coordinates of |e_pn|^2, so
it has the unit of positions squared. Padding never enters, whatever it holds, neither into a value
nor into a gradient; where no node is real, errors are 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


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
    """Sums of squared errors, which add up exactly over batches of uneven size.

    Unlike a mean of the batches' means, every real node of every batch weighs the same:

        sums = ErrorSums.zero(num_times)
        for batch in batches:
            sums = sums.add(predict(batch), batch.positions, batch.node_mask)
        errors = sums.finalize()

    Attributes:
      squares: `[P]`, sum over real nodes and coordinates of squared errors.
      num_nodes: `[]` int32, the number of real nodes summed over.
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
        """Returns the sums with one more batch in them; arguments as `squared_errors`."""
        return self.merge(squared_errors(predicted, target, node_mask))

    def merge(self, other: ErrorSums) -> ErrorSums:
        """Returns the sums over the nodes of both.

        Raises:
          ValueError: if the two have different numbers of times.
        """
        if self.squares.shape != other.squares.shape:
            raise ValueError(
                f"error sums of P = {self.squares.shape[0]} and P = {other.squares.shape[0]} times "
                "cannot be added; use one ErrorSums for each time grid"
            )
        return ErrorSums(self.squares + other.squares, self.num_nodes + other.num_nodes)

    def finalize(self) -> Errors:
        """Returns the means; 0 where no node was real."""
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

    Returns:
      The sums at each time, and the number of real nodes.

    Raises:
      ValueError: if shapes do not match or the mask is not boolean.
    """
    predicted, target = jnp.asarray(predicted), jnp.asarray(target)
    dtype = jnp.result_type(predicted.dtype, target.dtype, jnp.float32)
    _check_trajectories(predicted, target)
    differences = predicted.astype(dtype) - target.astype(dtype)
    num_nodes = jnp.asarray(predicted.shape[1], jnp.int32)
    if node_mask is not None:
        node_mask = _checked_mask(node_mask, predicted.shape[1])
        # Before squaring: the gradient of what `where` drops is then 0, also where it is infinite.
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
    """Returns the mean squared error at the last time, sum_n |e_Pn|^2 / (3 N).

    The F-MSE of arXiv:2401.11037. Arguments and errors as `squared_errors`.
    """
    return mse_per_time(predicted, target, node_mask)[-1]


def a_mse(
    predicted: Float[Array, "P N 3"],
    target: Float[Array, "P N 3"],
    node_mask: Bool[Array, "N"] | None = None,
) -> Float[Array, ""]:
    """Returns the mean squared error over all times, sum_pn |e_pn|^2 / (3 N P).

    The A-MSE of arXiv:2401.11037. Arguments and errors as `squared_errors`.
    """
    return jnp.mean(mse_per_time(predicted, target, node_mask))


def _check_trajectories(predicted: Array, target: Array) -> None:
    """Checks that both are `[P, N, 3]` with P > 0, of one shape."""
    if predicted.ndim != 3 or predicted.shape[-1] != 3 or predicted.shape[0] == 0:
        raise ValueError(
            f"predicted must be [P, N, 3] with P >= 1, came {list(predicted.shape)}; "
            "pass traj.positions or traj.velocities"
        )
    if target.shape != predicted.shape:
        raise ValueError(
            f"target must have the shape of predicted, {list(predicted.shape)}, came "
            f"{list(target.shape)}; pad targets with egno_jax.graph.pad_nodes"
        )


def _checked_mask(node_mask: Array, num_nodes: int) -> Array:
    """Checks that a mask is boolean `[N]`."""
    node_mask = jnp.asarray(node_mask)
    if node_mask.dtype != bool or node_mask.shape != (num_nodes,):
        raise ValueError(
            f"node_mask must be boolean [N] with N = {num_nodes}, came {node_mask.dtype} "
            f"{list(node_mask.shape)}; egno_jax.graph.pad returns one"
        )
    return node_mask
