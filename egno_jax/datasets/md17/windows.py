"""Samples cut out of a trajectory: the state at one frame, and the frames to predict after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.datasets.base import Samples
from egno_jax.datasets.md17.splits import WINDOW
from egno_jax.datasets.windows import stacked_graph, target_offsets, window_frames

if TYPE_CHECKING:
    import jraph
    from jaxtyping import Float, Int

    from egno_jax.datasets.md17.trajectory import Trajectory

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

    Velocities are v[t] = x[t + 1] - x[t], in Angstrom a frame. Node features are |v_i| and
    Z_i / max_j Z_j, edge features those of `edges` and then |x_i - x_j|^2 of the given state.

    Args:
      trajectory: T frames of the atoms that are nodes.
      starts: `[S]`, the frames of the given states, see `block_starts` and `random_starts`.
      edges: see `bond_graph`.
      window: frames from the given state to the last target.
      num_targets: P targets, uniform over the window.
      dtype: the dtype of all real numbers.

    Returns:
      Samples of NumPy arrays, with times in frames: set the model's `time_scale` to
      `window / num_targets`.

    Raises:
      ValueError: a window does not fit into the trajectory, or the edges are not of its atoms.
    """
    positions, velocities, times = _cut(trajectory, starts, target_offsets(window, num_targets))
    _check_edges(edges, len(trajectory.numbers))
    features = _node_features(velocities[:, 0], trajectory.numbers)
    return Samples(
        graph=stacked_graph(positions[:, 0], velocities[:, 0], features, edges, dtype),
        times=times.astype(dtype),
        positions=positions[:, 1:].astype(dtype),
        velocities=velocities[:, 1:].astype(dtype),
        node_mask=np.ones((len(positions), positions.shape[2]), bool),
    )


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
    """Cuts samples out of a trajectory, each with the radius graph of its given state.

    Edge features are [Z_i, Z_j, |x_i - x_j|^2], all else is as in `samples`. Since graphs differ
    in their number of edges they are padded to one size (`egno_jax.graph.pad`): each sample has one
    node more, of zeros, which `node_mask` leaves out.

    Args:
      trajectory: T frames of the atoms that are nodes.
      starts: `[S]`, the frames of the given states.
      radius: atoms closer than this are joined, in Angstrom.
      num_edges: E after padding; by default that of a complete graph, N (N - 1), so that all
        partitions have one size.
      window: frames from the given state to the last target.
      num_targets: P targets, uniform over the window.
      dtype: the dtype of all real numbers.

    Returns:
      Samples of NumPy arrays, with N + 1 nodes.

    Raises:
      ValueError: a window does not fit into the trajectory, the radius is not above 0, or a graph
        has more edges than `num_edges`.
      ImportError: vesin, of the extra `data`, is not installed.
    """
    positions, velocities, times = _cut(trajectory, starts, target_offsets(window, num_targets))
    num_nodes = positions.shape[2]
    num_edges = max(num_nodes * (num_nodes - 1), 1) if num_edges is None else num_edges
    graphs, masks = zip(
        *(
            _radius_graph(x, v, trajectory.numbers, radius, num_edges)
            for x, v in zip(positions[:, 0], velocities[:, 0], strict=True)
        ),
        strict=True,
    )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *graphs)
    stacked = stacked._replace(
        nodes={name: leaf.astype(dtype) for name, leaf in stacked.nodes.items()},
        edges={"features": stacked.edges["features"].astype(dtype)},
    )
    targets = (graph_lib.pad_nodes(leaf[:, 1:], num_nodes + 1) for leaf in (positions, velocities))
    padded_positions, padded_velocities = (leaf.astype(dtype) for leaf in targets)
    return Samples(
        graph=stacked,
        times=times.astype(dtype),
        positions=padded_positions,
        velocities=padded_velocities,
        node_mask=np.stack(masks),
    )


def reverse_time(
    trajectory: Trajectory, starts: Int[np.ndarray, "S"], *, window: int = WINDOW
) -> tuple[Trajectory, Int[np.ndarray, "S"]]:
    """Runs a trajectory backwards, and finds in it the windows that start at given frames.

    Newton's equations and a Nose-Hoover chain run backwards as well as forwards, so these are new
    samples of the same task. They touch the frames of their windows and the one before it, which
    the velocity at the last target needs; `block_starts` leaves room for it.

    Args:
      trajectory: T frames.
      starts: `[S]`, the frames of the given states, at least 1.
      window: frames from the given state to the last target.

    Returns:
      The trajectory backwards, and the frames at which its windows start.

    Raises:
      ValueError: a window starts at frame 0.
    """
    starts = np.asarray(starts)
    if starts.size and starts.min() < 1:
        raise ValueError("starts: got frame 0, expected at least 1 to run a window backwards")
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
    """Returns the positions from given states to the last target, for pictures.

    Args:
      trajectory: frames of the atoms that are nodes.
      starts: `[S]`, the frames of the given states.
      window: frames from the given state to the last target.
      num_targets: P.
      frames_per_target: K frames from one target to the next.

    Returns:
      `[S, P K + 1, N, 3]`, the given state first, target p (from 1) at `p K`.

    Raises:
      ValueError: a window does not fit into the trajectory.
    """
    offsets = target_offsets(window, num_targets)
    frames = window_frames(len(trajectory.positions), starts, offsets)
    steps = num_targets * frames_per_target
    return trajectory.positions[frames[:, :1] + window * np.arange(steps + 1) // steps]


def _cut(
    trajectory: Trajectory, starts: Int[np.ndarray, "S"], offsets: Int[np.ndarray, "P"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns positions and velocities `[S, 1 + P, N, 3]`, given state first, and times `[P]`."""
    frames = window_frames(len(trajectory.positions), starts, offsets)
    positions = trajectory.positions[frames].astype(np.float64)
    return positions, trajectory.positions[frames + 1] - positions, offsets


def _node_features(velocities: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns [|v_i|, Z_i / max_j Z_j] of states `[..., N, 3]`."""
    speeds = np.linalg.norm(velocities, axis=-1)
    charges = np.broadcast_to(numbers / numbers.max(), speeds.shape)
    return np.stack([speeds, charges], axis=-1)


def _radius_graph(
    positions: np.ndarray,
    velocities: np.ndarray,
    numbers: np.ndarray,
    radius: float,
    num_edges: int,
) -> tuple[jraph.GraphsTuple, np.ndarray]:
    edges = graph_lib.radius_edges(positions, radius)
    edges = graph_lib.with_features(
        edges,
        numbers[edges.receivers],
        numbers[edges.senders],
        graph_lib.squared_distances(positions, edges),
    )
    features = _node_features(velocities, numbers)
    graph = graph_lib.build(positions, velocities, features, edges)
    return graph_lib.pad(graph, num_nodes=len(numbers) + 1, num_edges=num_edges, num_graphs=2)


def _check_edges(edges: graph_lib.Edges, num_nodes: int) -> None:
    ends = np.concatenate([edges.senders, edges.receivers])
    if ends.size and not 0 <= ends.min() <= ends.max() < num_nodes:
        raise ValueError(
            f"edges name atoms {ends.min()} to {ends.max()}, expected 0 to {num_nodes - 1}; build "
            "them of the same atoms as the samples"
        )
