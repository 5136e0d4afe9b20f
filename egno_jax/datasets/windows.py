"""What data sets share that cut samples out of motion: their frames, and their graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jraph
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

    from egno_jax.graph import Edges


def target_offsets(window: int, num_targets: int) -> Int[np.ndarray, "P"]:
    """Returns the frames after the given state to predict: `window * p // P` for p = 1..P.

    Args:
      window: frames to the last target.
      num_targets: P, at most `window`.

    Raises:
      ValueError: P is not from 1 to `window`.
    """
    if not 1 <= num_targets <= window:
        raise ValueError(
            f"num_targets: got {num_targets}, expected from 1 to {window}, the frames of the window"
        )
    return window * np.arange(1, num_targets + 1) // num_targets


def window_frames(
    num_frames: int, starts: Int[np.ndarray, "S"], offsets: Int[np.ndarray, "P"]
) -> Int[np.ndarray, "S 1+P"]:
    """Returns the frames of given states and targets in a trajectory.

    Args:
      num_frames: how many frames the trajectory has.
      starts: `[S]`, the frames of the given states.
      offsets: `[P]`, the frames after them to predict, see `target_offsets`.

    Raises:
      ValueError: the starts are no integers, or a frame that is needed is not there: those of the
        targets, and the one behind the last, for its velocity.
    """
    starts = np.asarray(starts)
    if starts.ndim != 1 or not starts.size or not np.issubdtype(starts.dtype, np.integer):
        raise ValueError(
            f"starts is {starts.dtype} {list(starts.shape)}, expected integer [S] with S >= 1"
        )
    last = num_frames - 2 - offsets[-1]
    outside = np.flatnonzero((starts < 0) | (starts > last))
    if outside.size:
        raise ValueError(
            f"starts[{outside[0]}] is {starts[outside[0]]}, expected from 0 to {last}: the "
            f"trajectory has {num_frames} frames, the last target is {offsets[-1]} frames after "
            "the given state, and its velocity needs the frame behind it"
        )
    return starts[:, None] + np.concatenate([[0], offsets])


def check_frames(
    start: int, target_frames: Sequence[int], num_frames: int
) -> Int[np.ndarray, "1+P"]:
    """Returns the start and the targets as one array of frames that exist and increase.

    Args:
      start: the frame of the given state.
      target_frames: `[P]`, the frames to predict.
      num_frames: how many frames the trajectories have.

    Raises:
      ValueError: they do not exist or are out of order.
    """
    frames = np.asarray([start, *target_frames])
    if len(frames) < 2 or not np.issubdtype(frames.dtype, np.integer):
        raise ValueError(
            f"start is {start!r} and target_frames is {target_frames!r}, expected an integer and "
            "at least one integer"
        )
    if frames[0] < 0 or frames[-1] >= num_frames or (np.diff(frames) <= 0).any():
        raise ValueError(
            f"start is {start} and target_frames is {tuple(target_frames)}, expected frames that "
            f"increase from start and lie in 0..{num_frames - 1}, the frames of the trajectories"
        )
    return frames


def check_integer(name: str, value: int) -> None:
    """Raises `ValueError` unless `value` is an integer of at least 1."""
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")


def stacked_graph(
    positions: Float[np.ndarray, "S N 3"],
    velocities: Float[np.ndarray, "S N 3"],
    features: Float[np.ndarray, "S N F"],
    edges: Edges,
    dtype: np.typing.DTypeLike,
) -> jraph.GraphsTuple:
    """Stacks the graphs of S states that are joined alike, as `Samples.graph` holds them.

    Args:
      positions: `[S, N, 3]`.
      velocities: `[S, N, 3]`.
      features: `[S, N, F]`, node features.
      edges: the same in all states; their features `[E, D]`, or `[S, E, D]` where states differ,
        come first, |x_i - x_j|^2 behind them.
      dtype: the dtype of all real numbers in the graph.
    """
    num_samples, num_nodes, _ = positions.shape
    vectors = positions[:, edges.receivers] - positions[:, edges.senders]
    columns = [np.sum(vectors**2, axis=-1, keepdims=True)]
    if edges.features is not None:
        shape = (num_samples, *edges.features.shape[-2:])
        columns.insert(0, np.broadcast_to(edges.features, shape))

    def repeat(values: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.tile(np.asarray(values, np.int32), (num_samples, 1))

    return jraph.GraphsTuple(
        nodes={
            "positions": positions.astype(dtype),
            "velocities": velocities.astype(dtype),
            "features": features.astype(dtype),
        },
        edges={"features": np.concatenate(columns, axis=-1).astype(dtype)},
        senders=repeat(edges.senders),
        receivers=repeat(edges.receivers),
        n_node=repeat([num_nodes]),
        n_edge=repeat([len(edges.senders)]),
        globals=None,
    )
