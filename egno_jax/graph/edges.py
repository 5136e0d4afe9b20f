"""Edges of one graph: all pairs, bonds, neighbours within a cutoff, and their features."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jraph
import numpy as np

from egno_jax.checks import as_floating, check_array, check_finite, shape_text
from egno_jax.extras import require

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int
    from numpy.typing import ArrayLike


class Edges(NamedTuple):
    """The directed edges of one graph.

    Attributes:
      senders: `[E]` int32, the node j that sends each message.
      receivers: `[E]` int32, the node i that receives it.
      features: `[E, D]`, or None if edges have no features.
    """

    senders: Int[np.ndarray, "E"]
    receivers: Int[np.ndarray, "E"]
    features: Float[np.ndarray, "E D"] | None = None


def shifts_of(graph: jraph.GraphsTuple) -> Float[Array, "E 3"] | None:
    """Returns the shifts of a graph's edges, `edges["shifts"]`; None if the graph has none.

    `egno_jax.ops.displacements` defines their sign. Works inside `jit`.
    """
    return None if graph.edges is None else graph.edges.get("shifts")


def fully_connected_edges(num_nodes: int) -> Edges:
    """Connects every node with every other: N (N - 1) edges, no self-loops.

    Edges are sorted by receiver, then sender, and have no features.
    """
    if num_nodes < 1:
        raise ValueError(f"num_nodes: got {num_nodes}, expected at least 1")
    receivers, senders = np.nonzero(~np.eye(num_nodes, dtype=bool))
    return Edges(senders.astype(np.int32), receivers.astype(np.int32))


def bond_edges(bonds: ArrayLike, num_nodes: int) -> Edges:
    """Connects bonded nodes, and nodes two bonds apart, in both directions.

    Nodes i and k are two bonds apart if they share a neighbour and are not bonded themselves. With
    A the adjacency matrix: the pairs (A^2)_ik > 0, A_ik = 0, i != k. `bonds` has each bond in one
    direction or both.

    Returns:
      Edges sorted by receiver, then sender, with features `[E, 1]`: the number of bonds, 1.0 or
      2.0.
    """
    bonds = np.asarray(bonds)
    check_array("bonds", bonds, "integer", ("B", 2), {})
    is_bad = ((bonds < 0) | (bonds >= num_nodes)).any(axis=1) | (bonds[:, 0] == bonds[:, 1])
    for index in np.flatnonzero(is_bad):
        raise ValueError(
            f"bonds[{index}]: got {bonds[index].tolist()}, expected two different nodes from 0 to "
            f"{num_nodes - 1}; count nodes from 0"
        )
    ends, other_ends = np.concatenate([bonds, bonds[:, ::-1]]).T.astype(np.int64)
    near = np.unique(ends * num_nodes + other_ends)  # a pair (i, k) as i N + k
    far = np.setdiff1d(_pairs_two_bonds_apart(near, num_nodes), near)
    pairs = np.concatenate([near, far])
    hops = np.repeat(np.asarray([1.0, 2.0], np.float32), [near.size, far.size])
    order = np.argsort(pairs)
    receivers, senders = np.divmod(pairs[order], num_nodes)
    return Edges(senders.astype(np.int32), receivers.astype(np.int32), hops[order, None])


def _pairs_two_bonds_apart(pairs: np.ndarray, num_nodes: int) -> np.ndarray:
    """Joins sorted pairs i N + j with those j N + k into i N + k, i != k."""
    ends, middles = np.divmod(pairs, num_nodes)
    starts = np.searchsorted(ends, np.arange(num_nodes + 1))
    degrees = np.diff(starts)[middles]
    place = np.arange(degrees.sum()) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    other_ends = middles[np.repeat(starts[middles], degrees) + place]
    ends = np.repeat(ends, degrees)
    return (ends * num_nodes + other_ends)[ends != other_ends]


def radius_edges(positions: ArrayLike, cutoff: float) -> Edges:
    """Connects nodes closer than a cutoff, |x_i - x_j| < cutoff, in both directions.

    Boundaries are open. The model uses r_ij = x_i - x_j, so an edge to a periodic image would have
    the wrong length in every layer. Unwrap positions first (in MDAnalysis with
    `transformations.unwrap`); then no edge needs to cross a boundary.

    Args:
      positions: `[N, 3]`, unwrapped.
      cutoff: in the unit of positions, above 0.

    Returns:
      Edges sorted by receiver, then sender, without features.

    Raises:
      ImportError: if vesin, of the extra `data`, is not installed.
    """
    positions = as_floating(positions, "positions").astype(np.float64)
    check_array("positions", positions, "floating", ("N", 3), {})
    check_finite("positions", positions)
    if not 0 < cutoff < np.inf:
        raise ValueError(f"cutoff: got {cutoff}, expected a finite number above 0")
    neighbours = require("vesin", "data").NeighborList(cutoff=cutoff, full_list=True)
    receivers, senders = neighbours.compute(
        points=positions, box=np.zeros((3, 3)), periodic=False, quantities="ij"
    )
    order = np.lexsort((senders, receivers))
    return Edges(senders[order].astype(np.int32), receivers[order].astype(np.int32))


def bonds_within(positions: ArrayLike, cutoff: float) -> Int[np.ndarray, "B 2"]:
    """Guesses bonds: all pairs closer than a cutoff, each once; use with `bond_edges`.

    The smaller index is first. A cutoff of 1.6 Angstrom bonds C, N and O. Errors as `radius_edges`.
    """
    edges = radius_edges(positions, cutoff)
    bonds = np.stack([edges.receivers, edges.senders], axis=1)
    return bonds[bonds[:, 0] < bonds[:, 1]]


def squared_distances(positions: ArrayLike, edges: Edges) -> Float[np.ndarray, "E 1"]:
    """Returns |x_i - x_j|^2 of every edge, `[E, 1]`: the usual edge feature of an initial state."""
    positions = as_floating(positions, "positions")
    vectors = positions[edges.receivers] - positions[edges.senders]
    return np.sum(vectors**2, axis=-1, keepdims=True)


def with_features(edges: Edges, *columns: ArrayLike) -> Edges:
    """Appends columns to the features of edges.

    For example, the product of the charges and the squared distance of each pair:

        charge_products = charges[edges.senders] * charges[edges.receivers]
        edges = with_features(edges, charge_products, squared_distances(positions, edges))

    Each column is `[E]` or `[E, k]`, invariant under rotation; existing features remain first.
    """
    num_edges = len(edges.senders)
    parts = [] if edges.features is None else [as_floating(edges.features, "edges.features")]
    for index, column in enumerate(columns):
        column = as_floating(column, f"columns[{index}]")
        if column.ndim not in (1, 2) or column.shape[0] != num_edges:
            raise ValueError(
                f"columns[{index}]: got {shape_text(column)}, expected [E] or [E, k] with "
                f"E = {num_edges}"
            )
        parts.append(column[:, None] if column.ndim == 1 else column)
    return edges._replace(features=np.concatenate(parts, axis=1) if parts else None)
