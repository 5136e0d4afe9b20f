"""Samples cut out of a trajectory: the state at one frame, and the frames to predict after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.datasets.base import Samples
from egno_jax.datasets.protein.splits import WINDOW
from egno_jax.datasets.windows import target_offsets, window_frames

if TYPE_CHECKING:
    import jraph
    from jaxtyping import Float, Int

    from egno_jax.datasets.protein.trajectory import Trajectory

NUM_TARGETS = 4
CUTOFF = 10.0


def contacts(trajectory: Trajectory, frame: int, *, cutoff: float = CUTOFF) -> graph_lib.Edges:
    """Connects atoms that are closer than a cutoff in one frame, in both directions.

    Args:
      trajectory: the atoms that are nodes.
      frame: which.
      cutoff: in Angstrom; 10 in the paper, 8 in its public code.

    Returns:
      Edges sorted by receiver, then sender, with features `[E, 2]`: |x_i - x_j| and its square.

    Raises:
      ValueError: no two atoms are that close, or the cutoff is not above 0.
      ImportError: vesin, of the extra `data`, is not installed.
    """
    positions = trajectory.positions[frame].astype(np.float64)
    edges = graph_lib.radius_edges(positions, cutoff)
    if not len(edges.senders):
        raise ValueError(
            f"cutoff: no two of {len(positions)} atoms are within {cutoff} Angstrom in frame "
            f"{frame}; raise it"
        )
    squares = graph_lib.squared_distances(positions, edges)
    return graph_lib.with_features(edges, np.sqrt(squares), squares)


def most_contacts(
    trajectory: Trajectory, *starts: Int[np.ndarray, "S"], cutoff: float = CUTOFF
) -> int:
    """Returns the largest number of edges of any sample, to pad those of all partitions to.

    Args:
      trajectory: T frames.
      *starts: the frames of the given states, of each partition.
      cutoff: see `contacts`.

    Raises:
      ValueError, ImportError: as `contacts`.
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
    """Cuts samples out of a trajectory, each with the contacts of its given state.

    Velocities are v[t] = x[t + 1] - x[t], in Angstrom a frame. Node features are |v_i| and
    q_i / max_j |q_j|, edge features |x_i - x_j| and |x_i - x_j|^2 of the given state. Since graphs
    differ in their number of edges they are padded to one size (`egno_jax.graph.pad`): each sample
    has one node more, of zeros, which `node_mask` leaves out.

    A sample of 855 atoms takes about 0.6 MB with a cutoff of 8 Angstrom, 1 MB with 10.

    Args:
      trajectory: T frames of the atoms that are nodes.
      starts: `[S]`, the frames of the given states, see `block_starts`.
      cutoff: atoms closer than this are joined, in Angstrom.
      num_edges: E after padding, the most that a graph may have; that of the largest if None.
      window: frames from the given state to the last target.
      num_targets: P targets, at the frames `window * p // P` for p = 1..P.
      dtype: the dtype of all real numbers.

    Returns:
      Samples of NumPy arrays, with N + 1 nodes and times in frames: set the model's `time_scale` to
      `window / num_targets`.

    Raises:
      ValueError: a window does not fit into the trajectory, a graph has no edges, or one has more
        than `num_edges`.
      ImportError: vesin, of the extra `data`, is not installed.
    """
    times = target_offsets(window, num_targets)
    frames = window_frames(len(trajectory.positions), starts, times)
    positions = trajectory.positions[frames].astype(np.float64)
    velocities = trajectory.positions[frames + 1] - positions
    edges = [contacts(trajectory, frame, cutoff=cutoff) for frame in frames[:, 0]]
    num_edges = _num_edges(edges, frames[:, 0], cutoff, num_edges)
    num_nodes = positions.shape[2] + 1
    graphs, masks = zip(
        *(
            graph_lib.pad(graph, num_nodes=num_nodes, num_edges=num_edges, num_graphs=2)
            for graph in _graphs(trajectory, positions[:, 0], velocities[:, 0], edges, dtype)
        ),
        strict=True,
    )
    return Samples(
        graph=jax.tree.map(lambda *leaves: np.stack(leaves), *graphs),
        times=times.astype(dtype),
        positions=graph_lib.pad_nodes(positions[:, 1:].astype(dtype), num_nodes),
        velocities=graph_lib.pad_nodes(velocities[:, 1:].astype(dtype), num_nodes),
        node_mask=np.stack(masks),
    )


def paths(
    trajectory: Trajectory, starts: Int[np.ndarray, "S"], *, window: int = WINDOW
) -> Float[np.ndarray, "S T N 3"]:
    """Returns all frames from given states to the last target, for pictures.

    Args:
      trajectory: T frames.
      starts: `[S]`, the frames of the given states.
      window: frames from the given state to the last target.

    Returns:
      `[S, window + 1, N, 3]`, the given state first.

    Raises:
      ValueError: a window does not fit into the trajectory.
    """
    offsets = np.arange(1, window + 1)
    return trajectory.positions[window_frames(len(trajectory.positions), starts, offsets)]


def _num_edges(
    edges: list[graph_lib.Edges], frames: np.ndarray, cutoff: float, most: int | None
) -> int:
    """Returns the number of edges to pad to, after checking that it suffices."""
    counts = [len(found.senders) for found in edges]
    index = int(np.argmax(counts))
    if most is not None and counts[index] > most:
        raise ValueError(
            f"num_edges: got {most}, but frame {frames[index]} has {counts[index]} edges within "
            f"{cutoff} Angstrom; raise it (see most_contacts), or lower the cutoff"
        )
    return counts[index] if most is None else most


def _graphs(
    trajectory: Trajectory,
    positions: np.ndarray,
    velocities: np.ndarray,
    edges: list[graph_lib.Edges],
    dtype: np.typing.DTypeLike,
) -> list[jraph.GraphsTuple]:
    """Returns the graphs of given states `[S, N, 3]`."""
    largest = np.abs(trajectory.charges).max()
    charges = trajectory.charges / (largest or 1.0)
    return [
        graph_lib.build(
            x.astype(dtype),
            v.astype(dtype),
            np.stack([np.linalg.norm(v, axis=-1), charges], axis=-1).astype(dtype),
            found._replace(features=found.features.astype(dtype)),
        )
        for x, v, found in zip(positions, velocities, edges, strict=True)
    ]
