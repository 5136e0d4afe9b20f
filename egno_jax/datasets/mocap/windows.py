"""Samples cut out of trials: the state at one frame, and the frames to predict after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.datasets.base import Samples
from egno_jax.datasets.windows import stacked_graph
from egno_jax.graph import bond_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from numpy.typing import ArrayLike, DTypeLike

HORIZON = 30
"""The last frame to predict, counted from the given state; 0.25 s at 120 frames a second."""

PROTOCOLS = {"last": (26, 27, 28, 29, 30), "uniform": (6, 12, 18, 24, 30)}
"""Frames to predict: `last` those of the original's experiments, `uniform` evenly spaced ones."""

HEIGHT_SCALE = 30.0
"""What heights are divided by where they are a feature: how tall the subjects are, about."""

_NUM_FRAMES = HORIZON + 2  # The velocity at the last frame needs one more.


class Windows(NamedTuple):
    """S pieces of trials, all of one length.

    Attributes:
      positions: `[S, 32, N, 3]`, frames 0 (the given state) to 30, and one more for the velocity
        of the last.
      bonds: `[B, 2]`, pairs of joints.
      trials: `[S]`, the number of the trial that each comes from.
      starts: `[S]`, the frame of the trial that is frame 0 here.
    """

    positions: Float[np.ndarray, "S W N 3"]
    bonds: Int[np.ndarray, "B 2"]
    trials: Int[np.ndarray, "S"]
    starts: Int[np.ndarray, "S"]


def cut(
    positions: Float[np.ndarray, "T N 3"], starts: Int[ArrayLike, "S"]
) -> Float[np.ndarray, "S W N 3"]:
    """Cuts windows of 32 frames out of one trial.

    Args:
      positions: `[T, N, 3]`, the trial.
      starts: `[S]`, the first frame of each window, from 0 to T - 32.

    Returns:
      `[S, 32, N, 3]`.

    Raises:
      ValueError: shapes are wrong, or a window does not lie in the trial.
    """
    positions, starts = np.asarray(positions), np.asarray(starts)
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise ValueError(f"positions has shape {positions.shape}, expected [T, N, 3]")
    last = len(positions) - _NUM_FRAMES
    is_valid = starts.ndim == 1 and np.issubdtype(starts.dtype, np.integer)
    if not is_valid or (starts < 0).any() or (starts > last).any():
        raise ValueError(
            f"starts are {starts.dtype} {list(starts.shape)} up to {starts.max(initial=0)}, "
            f"expected integers [S] from 0 to {last}, so that {_NUM_FRAMES} frames follow in a "
            f"trial of {len(positions)}"
        )
    return positions[starts[:, None] + np.arange(_NUM_FRAMES)]


def samples(
    windows: Windows,
    *,
    target_frames: Sequence[int] = PROTOCOLS["last"],
    height: bool = False,
    dtype: DTypeLike = np.float32,
) -> Samples:
    """Makes samples of windows: the state at frame 0, and the targets after it.

    Velocities are those of the original, v(t) = x(t + 1) - x(t), per frame. Node features are
    |v_i|, edge features [1 for a bond or 2 for two, |x_i - x_j|^2] at frame 0; edges join bonded
    joints and joints two bonds apart, in both directions.

    `height` appends y_i / 30 to the node features, y being up. It tells the model where the floor
    is and which way things fall, and leaves it fewer symmetries: predictions then turn with turns
    about y alone, and move with horizontal translations alone. The original divides by the largest
    height in the batch, so that its predictions depend on what else is in the batch; these do not.

    Args:
      windows: S windows.
      target_frames: `[P]`, the frames to predict, increasing, from 1 to 30.
      height: whether heights are a feature.
      dtype: the dtype of all real numbers.

    Returns:
      Samples of NumPy arrays: node features `[S, N, 1]` or `[S, N, 2]`, edge features `[S, E, 2]`,
      positions and velocities at the targets `[S, P, N, 3]`, and `times = target_frames`.

    Raises:
      ValueError: frames do not exist or are out of order, or shapes do not match.
    """
    positions, frames = _check_windows(windows.positions), _check_frames(target_frames)
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise ValueError(f"dtype is {np.dtype(dtype)}, expected a floating dtype such as float32")
    velocities = np.diff(positions, axis=1)
    state, velocity = positions[:, 0], velocities[:, 0]
    features = [np.linalg.norm(velocity, axis=-1)]
    if height:
        features.append(state[..., 1] / HEIGHT_SCALE)
    edges = bond_edges(windows.bonds, state.shape[1])
    return Samples(
        graph=stacked_graph(state, velocity, np.stack(features, axis=-1), edges, dtype),
        times=frames.astype(dtype),
        positions=positions[:, frames].astype(dtype),
        velocities=velocities[:, frames].astype(dtype),
        node_mask=np.ones(state.shape[:2], bool),
    )


def _check_windows(positions: np.ndarray) -> np.ndarray:
    positions = np.asarray(positions, np.float64)
    if positions.ndim != 4 or positions.shape[1] != _NUM_FRAMES or positions.shape[3] != 3:
        raise ValueError(
            f"windows.positions has shape {positions.shape}, expected [S, {_NUM_FRAMES}, N, 3]"
        )
    return positions


def _check_frames(target_frames: Sequence[int]) -> np.ndarray:
    frames = np.asarray(target_frames)
    is_valid = frames.ndim == 1 and frames.size and np.issubdtype(frames.dtype, np.integer)
    if not is_valid or frames[0] < 1 or frames[-1] > HORIZON or (np.diff(frames) <= 0).any():
        raise ValueError(
            f"target_frames is {target_frames!r}, expected integers that increase from 1 or more "
            f"to {HORIZON} or less"
        )
    return frames
