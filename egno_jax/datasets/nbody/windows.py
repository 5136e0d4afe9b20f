"""Samples cut out of trajectories: a state at one frame, and the frames to predict after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jraph
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
from egno_jax.graph import fully_connected_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

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
    frames = _check_frames(start, target_frames, positions.shape[1])
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
    frames = _check_frames(start, target_frames, positions.shape[1])
    window = Trajectories(positions[:, frames], velocities[:, frames], couplings)
    backwards = reverse_time(window, interaction=interaction, dt=dt, max_force=max_force)
    cut = samples(backwards, start=0, target_frames=range(1, len(frames)), dtype=dtype)
    return cut._replace(times=(frames[-1] - frames[-2::-1]).astype(dtype))


def _graph(
    positions: np.ndarray, velocities: np.ndarray, couplings: np.ndarray, dtype: np.typing.DTypeLike
) -> jraph.GraphsTuple:
    """Returns S stacked graphs of all pairs from states `[S, N, 3]` and couplings `[S, N, N]`."""
    num_simulations, num_particles, _ = positions.shape
    senders, receivers, _ = fully_connected_edges(num_particles)
    offsets = positions[:, receivers] - positions[:, senders]
    squared_distances = (offsets**2).sum(-1)
    features = np.stack([couplings[:, receivers, senders], squared_distances], axis=-1)
    speeds = np.sqrt((velocities**2).sum(-1, keepdims=True))

    def repeat(values: Int[np.ndarray, "K"] | list[int]) -> np.ndarray:
        return np.tile(np.asarray(values, np.int32), (num_simulations, 1))

    return jraph.GraphsTuple(
        nodes={
            "positions": positions.astype(dtype),
            "velocities": velocities.astype(dtype),
            "features": speeds.astype(dtype),
        },
        edges={"features": features.astype(dtype)},
        senders=repeat(senders),
        receivers=repeat(receivers),
        n_node=repeat([num_particles]),
        n_edge=repeat([len(senders)]),
        globals=None,
    )


def _check_frames(start: int, target_frames: Sequence[int], num_frames: int) -> np.ndarray:
    """Returns the start and the targets as one array `[1 + P]` of existing, increasing frames."""
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
