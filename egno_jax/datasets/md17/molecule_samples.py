"""Samples of a trajectory: the state at one frame, and the frames to predict after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.datasets.base import Samples
from egno_jax.datasets.cutting import (
    cut_windows,
    samples_from_frames,
    samples_with_own_edges,
    target_offsets,
    window_frames,
)
from egno_jax.datasets.md17.molecule_starts import WINDOW
from egno_jax.datasets.md17.molecule_trajectory import Trajectory

if TYPE_CHECKING:
    from jaxtyping import Float, Int

NUM_TARGETS = 8
RADIUS = 5.0


def samples(
    trajectory: Trajectory,
    starts: Int[np.ndarray, "S"],
    edges: graph_lib.Edges,
    *,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts samples out of a trajectory, all with the same edges.

    Velocities are v[t] = x[t + 1] - x[t], in Angstrom per frame. Node features are |v_i| and
    Z_i / max_j Z_j, edge features those of `edges`, then |x_i - x_j|^2 in the initial state. Times
    are in frames: set the model's `time_scale` to `window / num_targets`.

    Args:
      trajectory: T frames of the atoms that are nodes.
      starts: `[S]`, the initial frames, see `block_starts` and `random_starts`.
      edges: see `bond_graph`.
      window: frames from the initial state to the last target.
      num_targets: P targets, uniform over the window.
      dtype: the dtype of all real numbers.

    Raises:
      ValueError: a window is not in the trajectory, or the edges do not belong to its atoms.
    """
    times = target_offsets(window, num_targets)
    positions, velocities = cut_windows(trajectory.positions, starts, times)
    features = _node_features(velocities[:, 0], trajectory.numbers)
    return samples_from_frames(positions, velocities, features, edges, times, dtype=dtype)


def radius_samples(
    trajectory: Trajectory,
    starts: Int[np.ndarray, "S"],
    *,
    radius: float = RADIUS,
    num_edges: int | None = None,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts samples out of a trajectory, each with the radius graph of its initial state.

    Edge features are [Z_i, Z_j, |x_i - x_j|^2]; everything else is as in `samples`. Atoms closer
    than `radius`, in Angstrom, are connected. Edges are padded to one number, `num_edges`, by
    default N (N - 1), so that all partitions have one size, and each sample has one more node, of
    zeros, that `node_mask` leaves out. Needs vesin, of the extra `data`.

    Raises:
      ValueError: a window is not in the trajectory, a wrong radius, or more than `num_edges` edges.
    """
    times, numbers = target_offsets(window, num_targets), trajectory.numbers
    positions, velocities = cut_windows(trajectory.positions, starts, times)
    if num_edges is None:
        num_edges = max(len(numbers) * (len(numbers) - 1), 1)
    edges = []
    for x in positions[:, 0]:
        found = graph_lib.radius_edges(x, radius)
        squared = graph_lib.squared_distances(x, found)
        columns = (numbers[found.receivers], numbers[found.senders], squared)
        edges.append(graph_lib.with_features(found, *columns))
    features = _node_features(velocities[:, 0], numbers)
    return samples_with_own_edges(
        positions, velocities, features, edges, times, num_edges=num_edges, dtype=dtype
    )


def reverse_time(
    trajectory: Trajectory, starts: Int[np.ndarray, "S"], *, window: int = WINDOW
) -> tuple[Trajectory, Int[np.ndarray, "S"]]:
    """Reverses a trajectory; returns it, and the initial frames in it of the windows of `starts`.

    Newton's equations and a Nose-Hoover chain are reversible, so these are new samples of the same
    task. They use the frames of their windows and the one before it, for the velocity at the last
    target; `block_starts` leaves room for it, and a window that starts at frame 0 is a
    `ValueError`.
    """
    starts = np.asarray(starts)
    if starts.size and starts.min() < 1:
        raise ValueError("starts: got frame 0, expected at least 1 to reverse a window")
    backwards = trajectory._replace(positions=trajectory.positions[::-1])
    return backwards, len(trajectory.positions) - 1 - window - starts


def paths(
    trajectory: Trajectory,
    starts: Int[np.ndarray, "S"],
    *,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    frames_per_target: int = 6,
) -> Float[np.ndarray, "S T N 3"]:
    """Returns the positions from initial states to the last target, for pictures.

    The shape is `[S, P K + 1, N, 3]`, the initial state first, target p (from 1) at `p K`, with K =
    `frames_per_target`. Raises `ValueError` if a window is not in the trajectory.
    """
    offsets = target_offsets(window, num_targets)
    frames = window_frames(len(trajectory.positions), starts, offsets)
    steps = num_targets * frames_per_target
    return trajectory.positions[frames[:, :1] + window * np.arange(steps + 1) // steps]


def _node_features(velocities: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns [|v_i|, Z_i / max_j Z_j] of states `[..., N, 3]`."""
    speeds = np.linalg.norm(velocities, axis=-1)
    charges = np.broadcast_to(numbers / numbers.max(), speeds.shape)
    return np.stack([speeds, charges], axis=-1)
