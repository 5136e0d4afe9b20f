"""Samples cut out of motion: which frames, and their graphs; shared by all data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jraph
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from egno_jax.checks import as_count
from egno_jax.datasets.base import Samples
from egno_jax.graph import Edges, edge_vectors, pad_nodes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

FRACTIONS = (0.6, 0.2, 0.2)


class Starts(NamedTuple):
    """The initial frames `[S]` of the samples of each partition, distinct."""

    train: Int[np.ndarray, "S"]
    valid: Int[np.ndarray, "S"]
    test: Int[np.ndarray, "S"]


PARTITIONS = Starts._fields


def time_blocks(
    num_frames: int, window: int, fractions: Sequence[float] = FRACTIONS
) -> dict[str, range]:
    """Returns the frames of each partition, of `num_frames`: train, then valid, then test.

    A gap of one window separates two blocks, so no test sample lies within a window's time of a
    training sample. A sample that starts at frame t needs the frames t to t + window + 1: its last
    velocity is x[t + window + 1] - x[t + window]. `fractions` are the shares without the two gaps.
    Raises `ValueError` if an argument is out of range.
    """
    as_count("window", window)
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-9:
        raise ValueError(f"fractions: got {[*fractions]}, expected three that add up to 1")
    free = max(num_frames - 2 * window, 0)
    ends = np.rint(np.concatenate([[0], np.cumsum(shares)]) * free).astype(int).tolist()
    return {
        name: range(ends[i] + i * window, ends[i + 1] + i * window)
        for i, name in enumerate(PARTITIONS)
    }


def target_offsets(window: int, num_targets: int) -> Int[np.ndarray, "P"]:
    """Returns the frames from the initial state to the targets: `window * p // P` for p = 1..P.

    Raises:
      ValueError: P, `num_targets`, is not from 1 to `window`.
    """
    as_count("num_targets", num_targets, most=window)
    return window * np.arange(1, num_targets + 1) // num_targets


def window_frames(
    num_frames: int, starts: Int[ArrayLike, "S"], offsets: Int[np.ndarray, "P"]
) -> Int[np.ndarray, "S 1+P"]:
    """Returns the frames of initial states `[S]` and of targets `offsets` `[P]` later.

    Raises:
      ValueError: starts are not integers, or a window and a frame for its last velocity do not fit.
    """
    starts = np.asarray(starts)
    if starts.ndim != 1 or not starts.size or not np.issubdtype(starts.dtype, np.integer):
        raise ValueError(
            f"starts: got {starts.dtype} {list(starts.shape)}, expected integers [S] with S >= 1"
        )
    last = num_frames - 2 - offsets[-1]
    if last < 0:
        raise ValueError(
            f"positions: got {num_frames} frames, expected at least {offsets[-1] + 2}: a window "
            f"needs the initial frame, {offsets[-1]} up to the last target, and one for its "
            "velocity; use a smaller window or a longer trajectory"
        )
    outside = np.flatnonzero((starts < 0) | (starts > last))
    if outside.size:
        raise ValueError(
            f"starts[{outside[0]}]: got {starts[outside[0]]}, expected 0 to {last}: the trajectory "
            f"has {num_frames} frames, and a window needs {offsets[-1] + 2} (the initial frame, "
            f"{offsets[-1]} up to the last target, one for its velocity)"
        )
    return starts.astype(np.int64)[:, None] + np.concatenate([[0], offsets])


def cut_windows(
    positions: Float[np.ndarray, "T N 3"],
    starts: Int[np.ndarray, "S"],
    offsets: Int[np.ndarray, "P"],
) -> tuple[Float[np.ndarray, "S 1+P N 3"], Float[np.ndarray, "S 1+P N 3"]]:
    """Returns float64 positions, and velocities x[t + 1] - x[t], of windows of a trajectory.

    Arguments and errors are those of `window_frames`, with the positions `[T, N, 3]`.
    """
    frames = window_frames(len(positions), starts, offsets)
    cut = positions[frames].astype(np.float64)
    return cut, positions[frames + 1] - cut


def samples_from_frames(
    positions: Float[np.ndarray, "S 1+P N 3"],
    velocities: Float[np.ndarray, "S 1+P N 3"],
    features: Float[np.ndarray, "S N F"],
    edges: Edges,
    times: Int[np.ndarray, "P"],
    *,
    node_mask: Bool[np.ndarray, "N"] | None = None,
    dtype: DTypeLike = np.float32,
) -> Samples:
    """Makes samples of motion in which all edges are the same.

    Args:
      positions: `[S, 1 + P, N, 3]`, the initial state first, then the targets.
      velocities: likewise.
      features: `[S, N, F]`, invariant node features of the initial state.
      edges: their features `[E, D]`, or `[S, E, D]` where samples differ, come first; the squared
        distance |r_ij|^2 in the initial state is appended. Their shifts, if they have any, are
        `[E, 3]`, or `[S, E, 3]` where samples differ.
      times: `[P]`, from the initial state to the targets.
      node_mask: `[N]`, False on nodes that do not count in losses and metrics; None: all count.
      dtype: the dtype of all real numbers.

    Raises:
      ValueError: the dtype is not a floating one, or edges name nodes that do not exist.
    """
    num_samples, _, num_nodes, _ = positions.shape
    ends = np.concatenate([edges.senders, edges.receivers])
    if ends.size and not 0 <= ends.min() <= ends.max() < num_nodes:
        raise ValueError(
            f"edges: got nodes {ends.min()} to {ends.max()}, expected 0 to {num_nodes - 1}; build "
            "them of the same nodes as the samples"
        )
    vectors = edge_vectors(positions[:, 0], edges)
    columns = [np.sum(vectors**2, axis=-1, keepdims=True)]
    if edges.features is not None:
        shape = (num_samples, *edges.features.shape[-2:])
        columns.insert(0, np.broadcast_to(edges.features, shape))
    of_edges = {"features": np.concatenate(columns, axis=-1)}
    if edges.shifts is not None:
        of_edges["shifts"] = np.broadcast_to(edges.shifts, (num_samples, *edges.shifts.shape[-2:]))
    mask = np.ones(num_nodes, bool) if node_mask is None else node_mask
    indices = (edges.senders, edges.receivers, [num_nodes], [len(edges.senders)], mask)
    return _samples(
        (positions, velocities, features),
        of_edges,
        *(np.tile(index, (num_samples, 1)) for index in indices),
        times.astype(dtype),
    )


def samples_with_own_edges(
    positions: Float[np.ndarray, "S 1+P N 3"],
    velocities: Float[np.ndarray, "S 1+P N 3"],
    features: Float[np.ndarray, "S N F"],
    edges: Sequence[Edges],
    times: Int[np.ndarray, "P"],
    *,
    num_edges: int | None = None,
    dtype: DTypeLike = np.float32,
) -> Samples:
    """Makes samples with edges of their own, padded to one number of edges.

    Every sample gets one more node, of zeros, that the padding edges connect to itself; `node_mask`
    leaves it out, so there are N + 1 nodes. `edges` are those of each sample, with features `[E_s,
    D]`; `num_edges` is E after padding, the largest E_s if None. Other arguments are those of
    `samples_from_frames`.

    Raises:
      ValueError: the dtype is not a floating one, or a sample has more than `num_edges` edges.
    """
    counts = np.array([len(own.senders) for own in edges], np.int32)
    num_edges = counts.max() if num_edges is None else num_edges
    if counts.max() > num_edges:
        raise ValueError(
            f"num_edges: got {num_edges}, expected at least {counts.max()}, the edges of sample "
            f"{counts.argmax()}; raise it, or lower the cutoff"
        )
    num_samples, _, num_nodes, _ = positions.shape
    senders, receivers = np.full((2, num_samples, num_edges), num_nodes)
    names = ("features",) if edges[0].shifts is None else ("features", "shifts")
    of_edges = {
        name: np.zeros((num_samples, num_edges, getattr(edges[0], name).shape[-1]), dtype)
        for name in names
    }
    for sample, own in enumerate(edges):
        senders[sample, : counts[sample]] = own.senders
        receivers[sample, : counts[sample]] = own.receivers
        for name, array in of_edges.items():
            array[sample, : counts[sample]] = getattr(own, name)
    arrays = [pad_nodes(array, num_nodes + 1) for array in (positions, velocities, features)]
    return _samples(
        arrays,
        of_edges,
        senders,
        receivers,
        np.tile([num_nodes, 1], (num_samples, 1)),
        np.stack([counts, num_edges - counts], axis=1),
        np.tile(np.arange(num_nodes + 1) < num_nodes, (num_samples, 1)),
        times.astype(dtype),
    )


def _samples(
    reals: Sequence[np.ndarray],
    of_edges: dict[str, np.ndarray],
    senders: np.ndarray,
    receivers: np.ndarray,
    n_node: np.ndarray,
    n_edge: np.ndarray,
    node_mask: np.ndarray,
    times: np.ndarray,
) -> Samples:
    """Assembles samples; `reals` are positions, velocities and node features."""
    if not np.issubdtype(times.dtype, np.floating):
        raise ValueError(f"dtype: got {times.dtype}, expected a floating dtype such as float32")
    positions, velocities, features = (array.astype(times.dtype) for array in reals)
    of_edges = {name: array.astype(times.dtype) for name, array in of_edges.items()}
    nodes = {"positions": positions[:, 0], "velocities": velocities[:, 0], "features": features}
    indices = (index.astype(np.int32) for index in (receivers, senders, n_node, n_edge))
    receivers, senders, n_node, n_edge = indices
    graph = jraph.GraphsTuple(nodes, of_edges, receivers, senders, None, n_node, n_edge)
    return Samples(graph, times, positions[:, 1:], velocities[:, 1:], node_mask)
