"""Windows of trials, and samples made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from egno_jax.datasets.argument_checks import check_frames
from egno_jax.datasets.base import Samples
from egno_jax.datasets.cutting import samples_from_frames, window_frames
from egno_jax.graph import bond_edges, bond_kinds

if TYPE_CHECKING:
    from jaxtyping import Float, Int

HORIZON = 30
"""Frames from the initial state to the last target; 0.25 s at 120 frames a second."""

PROTOCOLS = {"last": (26, 27, 28, 29, 30), "uniform": (6, 12, 18, 24, 30)}
"""Frames to predict: `last` as in the original's experiments, `uniform` evenly spaced."""

HEIGHT_SCALE = 30.0
"""Divisor of heights as a feature: about the height of the subjects."""

NUM_FRAMES = HORIZON + 2  # The velocity at the last frame needs one more.


class Windows(NamedTuple):
    """S windows of trials, all of one length.

    Attributes:
      positions: `[S, 32, N, 3]`, frames 0 (the initial state) to 30, one more for the last
        velocity.
      bonds: `[B, 2]`, pairs of joints.
      trials: `[S]`, the number of the trial.
      starts: `[S]`, the first frame in the trial.
    """

    positions: Float[np.ndarray, "S W N 3"]
    bonds: Int[np.ndarray, "B 2"]
    trials: Int[np.ndarray, "S"]
    starts: Int[np.ndarray, "S"]


def cut(
    positions: Float[np.ndarray, "T N 3"], starts: Int[ArrayLike, "S"]
) -> Float[np.ndarray, "S W N 3"]:
    """Cuts windows of 32 frames, from each of the frames `starts` `[S]`, out of one trial.

    Raises:
      ValueError: shapes are wrong, or a window is not in the trial.
    """
    positions = np.asarray(positions)
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise ValueError(f"positions: got shape {positions.shape}, expected [T, N, 3]")
    frames = window_frames(len(positions), starts, np.arange(1, HORIZON + 1))
    return positions[np.concatenate([frames, frames[:, -1:] + 1], axis=1)]


def samples(
    windows: Windows,
    *,
    start: int = 0,
    target_frames: Sequence[int] = PROTOCOLS["last"],
    height: bool = False,
    joints: bool = False,
    joint_kinds: bool = False,
    dtype: DTypeLike = np.float32,
) -> Samples:
    """Makes samples of windows.

    Velocities are v(t) = x(t + 1) - x(t), per frame, as in the original. Node features are |v_i|,
    edge features [1 for a bond or 2 for two, |x_i - x_j|^2] in the initial state; edges connect
    joints one or two bonds apart.

    `height` appends y_i / 30 to the node features, with y up. The model then knows the floor and
    the direction of gravity, and is equivariant only under rotations about y and horizontal
    translations. The original divides by the largest height in the batch, so its predictions depend
    on the other samples of the batch; these do not.

    `joints` appends N numbers to the features of each node, 1 at its own place and 0 elsewhere. The
    model then knows which joint is which, and learns this one skeleton; it is still equivariant.
    `joint_kinds` appends K numbers likewise, for the kind of the joint
    (`egno_jax.graph.bond_kinds`): left and right are alike. A motion and the one with both
    exchanged are then the same.

    Args:
      windows: S windows.
      start: frame of the initial state, from 0 to 29.
      target_frames: `[P]`, the frames to predict, increasing, from `start` + 1 to 30; less `start`
        they become `times`.
      height: whether heights are a feature.
      joints: whether the joint is a feature.
      joint_kinds: whether its kind is a feature.
      dtype: the dtype of all real numbers.

    Raises:
      ValueError: frames do not exist or do not increase, or shapes do not match.
    """
    positions = np.asarray(windows.positions, np.float64)
    if positions.ndim != 4 or positions.shape[1] != NUM_FRAMES or positions.shape[3] != 3:
        raise ValueError(
            f"windows.positions: got shape {positions.shape}, expected [S, {NUM_FRAMES}, N, 3]"
        )
    frames = check_frames(start, target_frames, HORIZON + 1)
    velocities = np.diff(positions, axis=1)[:, frames]
    positions = positions[:, frames]
    edges = bond_edges(windows.bonds, positions.shape[2])
    features = [np.linalg.norm(velocities[:, 0], axis=-1, keepdims=True)]
    if height:
        features.append(positions[:, 0, :, 1:2] / HEIGHT_SCALE)
    if joints:
        features.append(_one_hot(np.arange(positions.shape[2]), len(positions)))
    if joint_kinds:
        features.append(_one_hot(bond_kinds(windows.bonds, positions.shape[2]), len(positions)))
    features = np.concatenate(features, axis=-1)
    return samples_from_frames(
        positions, velocities, features, edges, frames[1:] - start, dtype=dtype
    )


def _one_hot(numbers: Int[np.ndarray, "N"], num_samples: int) -> Float[np.ndarray, "S N K"]:
    each = np.eye(numbers.max() + 1)[numbers]
    return np.broadcast_to(each, (num_samples, *each.shape))
