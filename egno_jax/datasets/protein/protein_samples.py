"""Samples of a trajectory: initial frames, contacts, and the frames to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import as_count
from egno_jax.datasets.base import Samples
from egno_jax.datasets.cutting import (
    FRACTIONS,
    Starts,
    cut_windows,
    samples_with_own_edges,
    target_offsets,
    time_blocks,
    window_frames,
)
from egno_jax.datasets.protein.protein_trajectory import Trajectory

if TYPE_CHECKING:
    from jaxtyping import Float, Int

WINDOW = 15
NUM_TARGETS = 4
CUTOFF = 10.0


def block_starts(
    num_frames: int,
    *,
    window: int = WINDOW,
    stride: int = 1,
    fractions: Sequence[float] = FRACTIONS,
) -> Starts:
    """Splits the time into training, validation and test blocks, separated by one window.

    The original splits at the same fractions without a gap.

    Args:
      num_frames: T.
      window: frames from the initial state to the last target.
      stride: frames from one sample to the next; 1 uses all windows.
      fractions: the shares of the blocks, without the two gaps.

    Raises:
      ValueError: a block is too short for one window; says how long it is and what is needed. Or an
        argument is out of range.
    """
    num_frames = as_count("num_frames", num_frames, 0)
    as_count("stride", stride)
    starts = []
    for name, block in time_blocks(num_frames, window, fractions).items():
        if len(block) < window + 2:
            raise ValueError(
                f"{name}: its block of {len(block)} of {num_frames} frames is too short for a "
                f"window of {window}, expected at least {window + 2}; use a longer trajectory or a "
                "smaller window"
            )
        starts.append(np.arange(block.start, block.stop - window - 1, stride))
    return Starts(*starts)


def contacts(trajectory: Trajectory, frame: int, *, cutoff: float = CUTOFF) -> graph_lib.Edges:
    """Connects atoms that are closer than a cutoff in one frame, in both directions.

    `cutoff` is in Angstrom; 10 in the paper, 8 in its public code. Needs the extra `data`.

    Returns:
      Edges sorted by receiver, then sender, with features `[E, 2]`: |x_i - x_j| and |x_i - x_j|^2.

    Raises:
      ValueError: no two atoms are that close, or the cutoff is not above 0.
    """
    positions = trajectory.positions[frame].astype(np.float64)
    edges = graph_lib.radius_edges(positions, cutoff)
    if not len(edges.senders):
        raise ValueError(
            f"cutoff: got {cutoff}, but no two of {len(positions)} atoms are within {cutoff} "
            f"Angstrom in frame {frame}; raise it"
        )
    squared = graph_lib.squared_distances(positions, edges)
    return graph_lib.with_features(edges, np.sqrt(squared), squared)


def most_contacts(
    trajectory: Trajectory, *starts: Int[np.ndarray, "S"], cutoff: float = CUTOFF
) -> int:
    """Returns the largest number of edges of any sample, to pad those of all partitions to.

    `starts` are the initial frames of each partition; raises the errors of `contacts`.
    """
    return max(
        len(contacts(trajectory, frame, cutoff=cutoff).senders) for frame in np.concatenate(starts)
    )


def samples(
    trajectory: Trajectory,
    starts: Int[np.ndarray, "S"],
    *,
    cutoff: float = CUTOFF,
    num_edges: int | None = None,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts samples out of a trajectory, each with the contacts of its initial state.

    Velocities are v[t] = x[t + 1] - x[t], in Angstrom per frame. Node features are |v_i| and
    q_i / max_j |q_j|, edge features |x_i - x_j| and |x_i - x_j|^2 in the initial state. Edges are
    padded to one number, and each sample has one more node, of zeros, that `node_mask` leaves out.
    Times are in frames: set the model's `time_scale` to `window / num_targets`. A sample of 855
    atoms takes about 0.6 MB with a cutoff of 8 Angstrom, 1 MB with 10. Needs the extra `data`.

    Args:
      trajectory: T frames of the atoms that are nodes.
      starts: `[S]`, the initial frames, see `block_starts`.
      cutoff: atoms closer than this are connected, in Angstrom.
      num_edges: E after padding; the largest number of edges if None (see `most_contacts`).
      window: frames from the initial state to the last target.
      num_targets: P targets, at the frames `window * p // P` for p = 1..P.
      dtype: the dtype of all real numbers.

    Raises:
      ValueError: a window is not in the trajectory, a graph has no or too many edges.
    """
    times = target_offsets(window, num_targets)
    positions, velocities = cut_windows(trajectory.positions, starts, times)
    edges = [contacts(trajectory, frame, cutoff=cutoff) for frame in starts]
    speeds = np.linalg.norm(velocities[:, 0], axis=-1)
    charges = trajectory.charges / (np.abs(trajectory.charges).max() or 1.0)
    features = np.stack([speeds, np.broadcast_to(charges, speeds.shape)], axis=-1)
    return samples_with_own_edges(
        positions, velocities, features, edges, times, num_edges=num_edges, dtype=dtype
    )


def paths(
    trajectory: Trajectory, starts: Int[np.ndarray, "S"], *, window: int = WINDOW
) -> Float[np.ndarray, "S T N 3"]:
    """Returns all frames from initial states to the last target, for pictures.

    The shape is `[S, window + 1, N, 3]`; raises `ValueError` if a window is not in the trajectory.
    """
    offsets = np.arange(1, window + 1)
    return trajectory.positions[window_frames(len(trajectory.positions), starts, offsets)]
