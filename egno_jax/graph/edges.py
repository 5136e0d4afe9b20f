"""Edges of one graph: all pairs, bonds, neighbours within a cutoff, and their features."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import jraph
import numpy as np

from egno_jax.checks import (
    as_count,
    as_floating,
    check_array,
    check_finite,
    check_positive,
    shape_text,
)
from egno_jax.extras import require

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int
    from numpy.typing import ArrayLike

# Added to distances whose logarithm or inverse is a feature.
_SOFTENING = 0.01


class Edges(NamedTuple):
    """The directed edges of one graph.

    Attributes:
      senders: `[E]` int32, the node j that sends each message.
      receivers: `[E]` int32, the node i that receives it.
      features: `[E, D]`, or None if edges have no features.
      shifts: `[E, 3]`, those of periodic images, `egno_jax.ops.displacements`; None if the system
        is not periodic.
    """

    senders: Int[np.ndarray, "E"]
    receivers: Int[np.ndarray, "E"]
    features: Float[np.ndarray, "E D"] | None = None
    shifts: Float[np.ndarray, "E 3"] | None = None


def shifts_of(graph: jraph.GraphsTuple) -> Float[Array, "E 3"] | None:
    """Returns the shifts of a graph's edges, `edges["shifts"]`; None if the graph has none.

    `egno_jax.ops.displacements` defines their sign. Works inside `jit`.
    """
    return graph.edges.get("shifts") if isinstance(graph.edges, Mapping) else None


def fully_connected_edges(num_nodes: int) -> Edges:
    """Connects every node with every other: N (N - 1) edges, no self-loops.

    Edges are sorted by receiver, then sender, and have no features.
    """
    num_nodes = as_count("num_nodes", num_nodes)
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
    ends, other_ends = _ends_of_bonds(bonds, num_nodes)
    near = np.unique(ends * num_nodes + other_ends)  # a pair (i, k) as i N + k
    far = np.setdiff1d(_pairs_two_bonds_apart(near, num_nodes), near)
    pairs = np.concatenate([near, far])
    hops = np.repeat(np.asarray([1.0, 2.0], np.float32), [near.size, far.size])
    order = np.argsort(pairs)
    receivers, senders = np.divmod(pairs[order], num_nodes)
    return Edges(senders.astype(np.int32), receivers.astype(np.int32), hops[order, None])


def bond_kinds(bonds: ArrayLike, num_nodes: int) -> Int[np.ndarray, "N"]:
    """Numbers the kinds of nodes that bonds tell apart, by color refinement.

    At first all nodes are of kind 0. Then nodes of one kind with different numbers of neighbours of
    some kind become of different kinds, until nothing changes. In a tree, such as a skeleton, two
    nodes are of one kind exactly if some renumbering of all nodes that keeps the bonds brings one
    to the other's place: the left and the right hand, and the three hydrogens of a methyl group.

    Errors as `bond_edges`.

    Returns:
      `[N]`, the kind of each node, from 0 to K - 1.
    """
    ends = _ends_of_bonds(bonds, num_nodes)
    neighbours = np.zeros((num_nodes, num_nodes), np.int64)
    neighbours[ends] = 1
    kinds, number = np.zeros(num_nodes, np.int64), 0
    while kinds.max(initial=0) >= number:
        number = kinds.max(initial=0) + 1
        counts = neighbours @ np.eye(number, dtype=np.int64)[kinds]
        found = np.unique(np.column_stack([kinds, counts]), axis=0, return_inverse=True)
        kinds = found[1].reshape(-1)
    return kinds


def _ends_of_bonds(bonds: ArrayLike, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns both nodes of each bond, in both directions."""
    num_nodes, bonds = as_count("num_nodes", num_nodes, 0), np.asarray(bonds)
    bonds = bonds if bonds.size else np.zeros((0, 2), int)
    check_array("bonds", bonds, "integer", ("B", 2), {})
    is_bad = ((bonds < 0) | (bonds >= num_nodes)).any(axis=1) | (bonds[:, 0] == bonds[:, 1])
    for index in np.flatnonzero(is_bad):
        raise ValueError(
            f"bonds[{index}]: got {bonds[index].tolist()}, expected two different nodes from 0 to "
            f"{num_nodes - 1}; count nodes from 0"
        )
    return tuple(np.concatenate([bonds, bonds[:, ::-1]]).T.astype(np.int64))


def _pairs_two_bonds_apart(pairs: np.ndarray, num_nodes: int) -> np.ndarray:
    """Joins sorted pairs i N + j with those j N + k into i N + k, i != k."""
    ends, middles = np.divmod(pairs, num_nodes)
    starts = np.searchsorted(ends, np.arange(num_nodes + 1))
    degrees = np.diff(starts)[middles]
    place = np.arange(degrees.sum()) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    other_ends = middles[np.repeat(starts[middles], degrees) + place]
    ends = np.repeat(ends, degrees)
    return (ends * num_nodes + other_ends)[ends != other_ends]


def radius_edges(
    positions: ArrayLike,
    cutoff: float,
    cell: ArrayLike | None = None,
    pbc: ArrayLike = True,
) -> Edges:
    """Connects nodes closer than a cutoff, |r_ij| < cutoff, in both directions.

    Without a cell boundaries are open, and r_ij = x_i - x_j. With a cell every periodic image
    within the cutoff is an edge of its own: a small cell has several edges between the same nodes,
    and edges from a node to its own images. Positions may be wrapped or not: the shifts fit them.

    Args:
      positions: `[N, 3]`.
      cutoff: in the unit of positions, above 0.
      cell: the periodic cell, as `cell_matrix` accepts it: `atoms.cell` of ASE,
        `universe.dimensions` of MDAnalysis; None: no periodic boundaries.
      pbc: which of the three lattice vectors are periodic, one bool or three (`atoms.pbc`).

    Returns:
      Edges sorted by receiver, then sender, without features; with shifts if any direction is
      periodic.

    Raises:
      ValueError: positions, cutoff or cell are not valid.
      ImportError: if vesin, of the extra `data`, is not installed.
    """
    positions = _checked_positions(positions)
    check_positive("cutoff", cutoff)
    neighbours = require("vesin", "data").NeighborList(cutoff=cutoff, full_list=True)
    box, periodic = np.zeros((3, 3)), np.zeros(3, bool)
    if cell is not None and _is_periodic(pbc).any():
        box, periodic = periodic_cell(cell, pbc)
    try:
        receivers, senders, images = neighbours.compute(
            points=_without_gaps(positions, cutoff, box, periodic),
            box=box,
            periodic=periodic,
            quantities="ijS",
        )
    except RuntimeError as error:  # of vesin, for cutoffs up to 1e-6
        raise ValueError(
            f"cutoff: got {cutoff:g}, which vesin refuses ({error}), expected a distance of "
            "neighbours in the unit of positions; give another"
        ) from error
    order = np.lexsort((*images.T, senders, receivers))
    edges = Edges(senders[order].astype(np.int32), receivers[order].astype(np.int32))
    return edges._replace(shifts=-(images[order] @ box)) if periodic.any() else edges


def _without_gaps(
    positions: Float[np.ndarray, "N 3"],
    cutoff: float,
    box: Float[np.ndarray, "3 3"],
    periodic: Bool[np.ndarray, "3"],
) -> Float[np.ndarray, "N 3"]:
    """Shortens empty layers across open directions to two cutoffs, which changes no neighbour.

    vesin sorts nodes into boxes as long as the cutoff, and ends the process if there are too many.
    """
    box = box if periodic.any() else np.eye(3)
    fractions, moved = positions @ np.linalg.inv(box), positions.copy()
    for axis in np.flatnonzero(~periodic):  # along which fractions are lengths
        order = np.argsort(fractions[:, axis])
        gaps = np.diff(fractions[order, axis], prepend=fractions[order[:1], axis])
        excess = np.cumsum(np.maximum(gaps - 2 * cutoff, 0))
        moved[order] -= excess[:, None] * box[axis]
    return moved


def cell_matrix(cell: ArrayLike) -> Float[np.ndarray, "3 3"]:
    """Returns the lattice vectors of a cell, as rows, in the unit of positions.

    Args:
      cell: `[3, 3]` lattice vectors (ASE's `Cell` is one); `[3]` lengths of a rectangular cell; or
        `[6]` lengths and angles in degrees, as `universe.dimensions` of MDAnalysis: the first
        vector is then along x, the second in the plane of x and y.
    """
    cell = np.asarray(cell)
    if cell.dtype.kind not in "fiu":
        raise ValueError(f"cell: got {cell.dtype} {shape_text(cell)}, expected numbers")
    cell = cell.astype(np.float64)
    if cell.shape == (3,):
        cell = np.diag(cell)
    if cell.shape == (6,):
        cosines = cos_a, cos_b, cos_c = np.cos(np.radians(cell[3:]))
        volume = 1 - np.sum(np.square(cosines)) + 2 * np.prod(cosines)
        if (cell <= 0).any() or (cell[3:] >= 180).any() or volume <= 0:
            raise ValueError(
                f"cell: got lengths {cell[:3].tolist()} and angles {cell[3:].tolist()}, which no "
                "cell has, expected lengths above 0 and angles in degrees"
            )
        sin_c = np.sqrt(1 - cos_c**2)
        y = (cos_a - cos_b * cos_c) / sin_c
        z = np.sqrt(max(1 - cos_b**2 - y**2, 0))
        cell = cell[:3, None] * np.array([[1, 0, 0], [cos_c, sin_c, 0], [cos_b, y, z]])
    if cell.shape != (3, 3) or not np.isfinite(cell).all():
        raise ValueError(
            f"cell: got {cell.tolist()}, expected finite lattice vectors [3, 3], lengths [3], or "
            "lengths and angles [6]"
        )
    return cell


def periodic_cell(
    cell: ArrayLike, pbc: ArrayLike = True
) -> tuple[Float[np.ndarray, "3 3"], Bool[np.ndarray, "3"]]:
    """Returns lattice vectors and which of them are periodic.

    Vectors that are not periodic are replaced by unit vectors perpendicular to the others, so that
    the matrix can be inverted.

    Raises:
      ValueError: the periodic vectors do not span a cell.
    """
    matrix, periodic = cell_matrix(cell), _is_periodic(pbc)
    vectors = matrix[periodic]
    if np.linalg.matrix_rank(vectors) < len(vectors):
        raise ValueError(
            f"cell: got {matrix.tolist()}, expected linearly independent lattice vectors where "
            f"pbc={periodic.tolist()}; set the cell, or pbc=False along the others"
        )
    # The last right singular vectors are perpendicular to the periodic ones.
    right = np.linalg.svd(np.concatenate([vectors, np.zeros((1, 3))]))[2]
    filled = matrix.copy()
    filled[~periodic] = right[len(vectors) :]
    return filled, periodic


def _is_periodic(pbc: ArrayLike) -> Bool[np.ndarray, "3"]:
    found = np.asarray(pbc)
    if found.dtype.kind not in "biu" or found.shape not in ((), (3,)):
        raise ValueError(f"pbc: got {pbc!r}, expected one bool, or three, one for each vector")
    return np.broadcast_to(found.astype(bool), 3)


def minimum_images(
    edges: Edges, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike = True
) -> Edges:
    """Sets the shifts of edges so that each connects the nearest images of its nodes.

    For edges that are not made by distance: bonds, or all pairs. Arguments as `radius_edges`.
    """
    positions = _checked_positions(positions)
    box, periodic = periodic_cell(cell, pbc)
    inverse = np.linalg.inv(box)
    vectors = positions[edges.receivers] - positions[edges.senders]
    fractions = vectors @ inverse
    shifts = -np.rint(fractions) * periodic @ box
    # In a skewed cell the nearest image can be another one. Along a lattice vector a fraction f is
    # now within 1/2, and the distance to image m is at least |f + m| times the width of the cell.
    longest = np.linalg.norm((fractions - np.rint(fractions)) * periodic @ box, axis=-1)
    most = longest.max(initial=0.0) * np.linalg.norm(inverse, axis=0) + 0.5
    ranges = [range(-k, k + 1) for k in np.where(periodic, most, 0).astype(int)]
    shifts = np.stack([shifts + image @ box for image in itertools.product(*ranges)])
    best = np.argmin(np.sum((vectors + shifts) ** 2, axis=-1), axis=0)
    return edges._replace(shifts=shifts[best, np.arange(len(best))])


def bonds_within(
    positions: ArrayLike, cutoff: float, cell: ArrayLike | None = None, pbc: ArrayLike = True
) -> Int[np.ndarray, "B 2"]:
    """Guesses bonds: all pairs closer than a cutoff, each once; use with `bond_edges`.

    The smaller index is first. A cutoff of 1.6 Angstrom bonds C, N and O. In a periodic cell, pass
    the edges that `bond_edges` returns to `minimum_images`. Errors as `radius_edges`.
    """
    edges = radius_edges(positions, cutoff, cell, pbc)
    bonds = np.stack([edges.receivers, edges.senders], axis=1)
    return np.unique(bonds[bonds[:, 0] < bonds[:, 1]], axis=0)


def edge_vectors(
    positions: Float[np.ndarray, "*S N 3"], edges: Edges
) -> Float[np.ndarray, "*S E 3"]:
    """Returns `r_ij = x_i - x_j + s_ij` of every edge, with the shifts s_ij if it has any."""
    vectors = positions[..., edges.receivers, :] - positions[..., edges.senders, :]
    return vectors if edges.shifts is None else vectors + edges.shifts


def squared_distances(positions: ArrayLike, edges: Edges) -> Float[np.ndarray, "E 1"]:
    """Returns |r_ij|^2 of every edge, `[E, 1]`: the usual edge feature of an initial state.

    r_ij are the `edge_vectors`. Positions may have axes in front, `[..., N, 3]`, and the result
    then has them too.
    """
    vectors = edge_vectors(as_floating("positions", positions), edges)
    return np.sum(vectors**2, axis=-1, keepdims=True)


def orbit_features(
    displacements: Float[np.ndarray, "*S E 3"],
    velocities: Float[np.ndarray, "*S E 3"],
    charge_products: Float[np.ndarray, "*S E 1"],
) -> Float[np.ndarray, "*S E 3"]:
    """Returns features of the orbit that each pair of charges would follow if it were alone.

        [log(d + e), |r x w|, tanh(|w|^2 / 4 + c / (d + e))],    d = |r|, e = 0.01

    for r = x_i - x_j and w = v_i - v_j, unit masses, and the potential c / d. The last two are
    constants of the motion, which determine the orbit's shape: |w|^2 / 4 + c / d is the energy of
    the pair about its centre of mass, bounded here, and |r x w| twice its angular momentum. They
    tell a model where a close encounter leads, for which |r|^2 alone is too coarse. All three are
    invariant under rotation, reflection, translation and uniform motion.

    Args:
      displacements: `[..., E, 3]`, r of each edge, see `edge_vectors`.
      velocities: `[..., E, 3]`, w of each edge, in length per unit of time of the potential.
      charge_products: `[..., E, 1]`, c of each edge, negative if the pair attracts.

    Source: Landau and Lifshitz, "Mechanics", sections 13 to 15.
    """
    softened = np.linalg.norm(displacements, axis=-1, keepdims=True) + _SOFTENING
    energy = np.sum(velocities**2, axis=-1, keepdims=True) / 4 + charge_products / softened
    turning = np.cross(displacements, velocities)
    momentum = np.linalg.norm(turning, axis=-1, keepdims=True)
    return np.concatenate([np.log(softened), momentum, np.tanh(energy)], axis=-1)


def _checked_positions(positions: ArrayLike) -> Float[np.ndarray, "N 3"]:
    positions = as_floating("positions", positions).astype(np.float64)
    check_array("positions", positions, "floating", ("N", 3), {})
    check_finite("positions", positions)
    return positions


def with_features(edges: Edges, *columns: ArrayLike) -> Edges:
    """Appends columns to the features of edges.

    For example, the product of the charges and the squared distance of each pair:

        charge_products = charges[edges.senders] * charges[edges.receivers]
        edges = with_features(edges, charge_products, squared_distances(positions, edges))

    Each column is `[E]` or `[E, k]`, invariant under rotation; existing features remain first.
    """
    num_edges = len(edges.senders)
    parts = [] if edges.features is None else [as_floating("edges.features", edges.features)]
    for index, column in enumerate(columns):
        column = as_floating(f"columns[{index}]", column)
        if column.ndim not in (1, 2) or column.shape[0] != num_edges:
            raise ValueError(
                f"columns[{index}]: got {shape_text(column)}, expected [E] or [E, k] with "
                f"E = {num_edges}"
            )
        parts.append(column[:, None] if column.ndim == 1 else column)
    return edges._replace(features=np.concatenate(parts, axis=1) if parts else None)
