"""Samples cut out of trajectories: a state at one frame, and the frames to predict after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from egno_jax.datasets.base import Samples
from egno_jax.datasets.nbody.simulation import (
    COULOMB,
    DT,
    MAX_FORCE,
    Interaction,
    Trajectories,
    check_trajectories,
    reverse_time,
)
from egno_jax.datasets.windows import check_frames, stacked_graph
from egno_jax.graph import fully_connected_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jraph

START = 30
TARGET_FRAMES = (32, 34, 36, 38, 40)


def samples(
    trajectories: Trajectories,
    *,
    start: int = START,
    target_frames: Sequence[int] = TARGET_FRAMES,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts one sample out of each trajectory: the state at one frame, and the targets after it.

    Node features are |v_i|, edge features [c_ij, |x_i - x_j|^2] at frame `start`; edges join all
    pairs, sorted by receiver, without self-loops (E = N (N - 1)).

    Args:
      trajectories: S simulations.
      start: the frame of the given state.
      target_frames: `[P]`, the frames to predict, increasing and after `start`.
      dtype: the dtype of all real numbers.

    Returns:
      Samples of NumPy arrays: node features `[S, N, 1]`, edge features `[S, E, 2]`, positions and
      velocities at the targets `[S, P, N, 3]`, and `times = target_frames - start` in frames.
      For the default frames times are 2, 4, 6, 8, 10, to be used with `time_scale=2`.

    Raises:
      ValueError: if frames do not exist or are out of order, or shapes do not match.
    """
    positions, velocities, couplings = check_trajectories(trajectories)
    frames = check_frames(start, target_frames, positions.shape[1])
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise ValueError(f"dtype is {np.dtype(dtype)}, expected a floating dtype such as float32")
    graph = _graph(positions[:, frames[0]], velocities[:, frames[0]], couplings, dtype)
    return Samples(
        graph=graph,
        times=(frames[1:] - frames[0]).astype(dtype),
        positions=positions[:, frames[1:]].astype(dtype),
        velocities=velocities[:, frames[1:]].astype(dtype),
        node_mask=np.ones(graph.nodes["positions"].shape[:2], bool),
    )


def reversed_samples(
    trajectories: Trajectories,
    *,
    start: int = START,
    target_frames: Sequence[int] = TARGET_FRAMES,
    interaction: Interaction = COULOMB,
    dt: float = DT,
    max_force: float = MAX_FORCE,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts the samples of `samples` out of the same frames, run backwards.

    The window from `start` to the last target is left at its end: frame 40 with velocities turned
    around leads to 38, 36, 34, 32, 30. These are new samples of the same task that look at no
    frame outside the window; join them with `datasets.concatenate`. See `reverse_time`.

    Args:
      trajectories: S simulations.
      start: the frame of the given state of `samples`, here the last target.
      target_frames: `[P]`, the targets of `samples`; the last is here the given state.
      interaction: the force law that the trajectories were made with.
      dt: the step that they were made with.
      max_force: the clipping that they were made with.
      dtype: the dtype of all real numbers.

    Returns:
      Samples as from `samples`. Their times are the same if the frames are evenly spaced.

    Raises:
      ValueError: if frames do not exist or are out of order, or shapes do not match.
    """
    positions, velocities, couplings = check_trajectories(trajectories)
    frames = check_frames(start, target_frames, positions.shape[1])
    window = Trajectories(positions[:, frames], velocities[:, frames], couplings)
    backwards = reverse_time(window, interaction=interaction, dt=dt, max_force=max_force)
    cut = samples(backwards, start=0, target_frames=range(1, len(frames)), dtype=dtype)
    return cut._replace(times=(frames[-1] - frames[-2::-1]).astype(dtype))


def _graph(
    positions: np.ndarray, velocities: np.ndarray, couplings: np.ndarray, dtype: np.typing.DTypeLike
) -> jraph.GraphsTuple:
    """Returns S stacked graphs of all pairs from states `[S, N, 3]` and couplings `[S, N, N]`."""
    edges = fully_connected_edges(positions.shape[1])
    edges = edges._replace(features=couplings[:, edges.receivers, edges.senders, None])
    speeds = np.sqrt((velocities**2).sum(-1, keepdims=True))
    return stacked_graph(positions, velocities, speeds, edges, dtype)
