"""Graphs on the host: edges, building, batching, padding, and the checks that every graph passes.

A graph is a `jraph.GraphsTuple`, one graph or several side by side, with

    nodes = {"positions": [N, 3], "velocities": [N, 3], "features": [N, F]},
    edges = {"features": [E, D]} or None,  senders, receivers: [E],  n_node, n_edge: [G].

A message goes from sender j to receiver i and uses r_ij = x_i - x_j as the positions stand: the
model knows no periodic cell. Everything here is NumPy and runs on the host, except `graph_ids` and
`check_structure`, which also run inside `jit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax.checks import check_array, shape_text, type_name
from egno_jax.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import ase
    from jaxtyping import Array, Bool, Float, Int
    from numpy.typing import ArrayLike

_NODE_KEYS = ("positions", "velocities", "features")


# Edges


class Edges(NamedTuple):
    """The directed edges of one graph.

    Attributes:
      senders: `[E]` int32, the node j that a message leaves.
      receivers: `[E]` int32, the node i that it reaches.
      features: `[E, D]`, or None where edges carry nothing.
    """

    senders: Int[np.ndarray, "E"]
    receivers: Int[np.ndarray, "E"]
    features: Float[np.ndarray, "E D"] | None = None


def fully_connected_edges(num_nodes: int) -> Edges:
    """Connects every node with every other, N (N - 1) edges without self-loops.

    Args:
      num_nodes: N, at least 1.

    Returns:
      Edges sorted by receiver, then sender, without features.

    Raises:
      ValueError: if `num_nodes` is smaller than 1.
    """
    if num_nodes < 1:
        raise ValueError(f"num_nodes must be at least 1, came {num_nodes}")
    receivers, senders = np.nonzero(~np.eye(num_nodes, dtype=bool))
    return Edges(senders.astype(np.int32), receivers.astype(np.int32))


def bond_edges(bonds: ArrayLike, num_nodes: int) -> Edges:
    """Connects bonded nodes, and nodes two bonds apart, in both directions.

    Nodes i and k are two bonds apart if they share a neighbour and are not bonded themselves. With
    A the adjacency matrix: the pairs (A^2)_ik > 0, A_ik = 0, i != k.

    Args:
      bonds: `[B, 2]` node indices, each bond in one direction or both.
      num_nodes: N.

    Returns:
      Edges sorted by receiver, then sender, with features `[E, 1]`: 1.0 for a bond, 2.0 for two.

    Raises:
      ValueError: if bonds are not integer `[B, 2]`, out of range, or bind a node to itself.
    """
    bonds = _checked_bonds(bonds, num_nodes)
    both_ways = np.concatenate([bonds, bonds[:, ::-1]]).T
    near = np.unique(both_ways[0] * num_nodes + both_ways[1])  # a pair (i, k) as i N + k
    far = np.setdiff1d(_pairs_two_bonds_apart(near, num_nodes), near)
    pairs = np.concatenate([near, far])
    hops = np.repeat(np.asarray([1.0, 2.0], np.float32), [near.size, far.size])
    order = np.argsort(pairs)
    receivers, senders = np.divmod(pairs[order], num_nodes)
    return Edges(senders.astype(np.int32), receivers.astype(np.int32), hops[order, None])


def _checked_bonds(bonds: ArrayLike, num_nodes: int) -> np.ndarray:
    """Checks bonds `[B, 2]` and widens them to int64."""
    bonds = np.asarray(bonds)
    if bonds.ndim != 2 or bonds.shape[1] != 2 or not np.issubdtype(bonds.dtype, np.integer):
        raise ValueError(f"bonds must be integer [B, 2], came {bonds.dtype} {shape_text(bonds)}")
    outside = np.flatnonzero(((bonds < 0) | (bonds >= num_nodes)).any(axis=1))
    if outside.size:
        raise ValueError(
            f"bonds[{outside[0]}] is {bonds[outside[0]].tolist()}, out of range for {num_nodes} "
            "nodes; count nodes from 0"
        )
    loops = np.flatnonzero(bonds[:, 0] == bonds[:, 1])
    if loops.size:
        raise ValueError(f"bonds[{loops[0]}] binds node {bonds[loops[0], 0]} to itself; remove it")
    return bonds.astype(np.int64)


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

    Boundaries are open. The model takes r_ij = x_i - x_j as it stands, so an edge to a periodic
    image would have the wrong length in every layer: unwrap positions first (in MDAnalysis
    `transformations.unwrap`), and no edge needs to cross a boundary.

    Args:
      positions: `[N, 3]`, unwrapped.
      cutoff: in the unit of positions, above 0.

    Returns:
      Edges sorted by receiver, then sender, without features.

    Raises:
      ValueError: if positions are not finite `[N, 3]` or the cutoff is not finite and above 0.
      ImportError: if vesin, of the extra `data`, is not installed.
    """
    positions = _as_floating(positions).astype(np.float64)
    check_array("positions", positions, "floating", ("N", 3), {})
    _check_finite("positions", positions)
    if not 0 < cutoff < np.inf:
        raise ValueError(f"cutoff must be finite and above 0, came {cutoff}")
    neighbours = require("vesin", "data").NeighborList(cutoff=cutoff, full_list=True)
    receivers, senders = neighbours.compute(
        points=positions, box=np.zeros((3, 3)), periodic=False, quantities="ij"
    )
    order = np.lexsort((senders, receivers))
    return Edges(senders[order].astype(np.int32), receivers[order].astype(np.int32))


def bonds_within(positions: ArrayLike, cutoff: float) -> Int[np.ndarray, "B 2"]:
    """Guesses bonds as the pairs closer than a cutoff, each once; for `bond_edges`.

    Args:
      positions: `[N, 3]`, unwrapped.
      cutoff: in the unit of positions; 1.6 Angstrom binds C, N and O.

    Returns:
      `[B, 2]` int32, the smaller index first.

    Raises:
      ValueError, ImportError: as `radius_edges`.
    """
    edges = radius_edges(positions, cutoff)
    bonds = np.stack([edges.receivers, edges.senders], axis=1)
    return bonds[bonds[:, 0] < bonds[:, 1]]


def squared_distances(positions: ArrayLike, edges: Edges) -> Float[np.ndarray, "E 1"]:
    """Returns |x_i - x_j|^2 of every edge, `[E, 1]`, the usual edge feature of the initial state.

    Args:
      positions: `[N, 3]`.
      edges: of the same nodes.

    Returns:
      `[E, 1]`, in the unit of positions squared.
    """
    positions = _as_floating(positions)
    vectors = positions[edges.receivers] - positions[edges.senders]
    return np.sum(vectors**2, axis=-1, keepdims=True)


def with_features(edges: Edges, *columns: ArrayLike) -> Edges:
    """Appends columns to the features of edges.

    For instance the product of charges and the squared distance of each pair:

        charge_products = charges[edges.senders] * charges[edges.receivers]
        edges = with_features(edges, charge_products, squared_distances(positions, edges))

    Args:
      edges: with or without features.
      *columns: each `[E]` or `[E, k]`, the same for every rotation of the graph.

    Returns:
      The edges with features `[E, D]`, the old columns first.

    Raises:
      ValueError: if a column has not E rows.
    """
    num_edges = len(edges.senders)
    parts = [] if edges.features is None else [_as_floating(edges.features)]
    for index, column in enumerate(columns):
        column = _as_floating(column)
        if column.ndim not in (1, 2) or column.shape[0] != num_edges:
            raise ValueError(
                f"columns[{index}] must be [E] or [E, k] with E = {num_edges}, "
                f"came {shape_text(column)}"
            )
        parts.append(column[:, None] if column.ndim == 1 else column)
    return edges._replace(features=np.concatenate(parts, axis=1) if parts else None)


# Graphs


def build(
    positions: ArrayLike, velocities: ArrayLike, features: ArrayLike, edges: Edges
) -> jraph.GraphsTuple:
    """Builds one graph from arrays and validates it.

    Integer and boolean input becomes floating, and float64 becomes float32 unless JAX's x64 mode
    is on.

    The model learns how far a velocity carries it, so velocities may have any unit, if only it is
    the same for all graphs that a model sees. Where velocities meet times their units matter:
    `velocity_unit` of `egno_jax.rolling.refresh` is the ratio of the two; the baseline `linear`
    begins as if velocities were in positions per `time_scale`; and target velocities must have the
    unit of those given if a rollout is to go on from what the model predicts.

    Args:
      positions: `[N, 3]`; in a periodic system, unwrapped.
      velocities: `[N, 3]`, in any unit that never changes.
      features: `[N, F]`, invariant under rotation, for instance the speed.
      edges: of this graph, from any builder of this module or `Edges` of your own arrays.

    Returns:
      A `GraphsTuple` of NumPy arrays with G = 1.

    Raises:
      ValueError: if an argument is not of this kind, or `validate` rejects the graph.
    """
    if not isinstance(edges, Edges):
        raise ValueError(
            f"edges must be egno_jax.graph.Edges, came {type_name(edges)}; a builder of this "
            "module makes them, or Edges(senders, receivers, features) from arrays"
        )
    nodes = {"positions": positions, "velocities": velocities, "features": features}
    edge_features = None
    if edges.features is not None:
        edge_features = {"features": _as_floating(edges.features, "edges.features")}
    graph = jraph.GraphsTuple(
        nodes={name: _as_floating(array, name) for name, array in nodes.items()},
        edges=edge_features,
        senders=np.asarray(edges.senders),
        receivers=np.asarray(edges.receivers),
        n_node=np.asarray([np.shape(positions)[0] if np.ndim(positions) else 0], np.int32),
        n_edge=np.asarray([np.size(edges.senders)], np.int32),
        globals=None,
    )
    validate(graph)
    return _with_int32_indices(graph)


def from_atoms(
    atoms: ase.Atoms, edges: Edges, *, features: ArrayLike | None = None
) -> jraph.GraphsTuple:
    """Builds one graph from ASE Atoms, for instance with `radius_edges(atoms.positions, 5.0)`.

    Args:
      atoms: with momenta, and without periodic boundaries: once positions are unwrapped, say so
        with `atoms.pbc = False`.
      edges: of these atoms, from any builder of this module.
      features: `[N, F]`; by default [|v_i|, Z_i / max_j Z_j], with v in Angstrom per femtosecond.
        The second depends on the heaviest element: give your own where molecules differ.

    Returns:
      A `GraphsTuple` with positions in Angstrom and velocities in Angstrom per femtosecond (ASE's
      own unit of time is 10.18 fs).

    Raises:
      ValueError: if atoms are not ASE Atoms, are periodic or lack momenta, or if `validate` rejects
        the graph.
      ImportError: if ASE, of the extra `data`, is not installed.
    """
    if not isinstance(atoms, require("ase", "data").Atoms):
        raise ValueError(f"atoms must be ase.Atoms, came {type(atoms).__name__}; arrays: use build")
    if atoms.pbc.any():
        raise ValueError(
            f"atoms.pbc is {atoms.pbc.tolist()}, and the model knows no periodic cell; unwrap the "
            "positions, then set atoms.pbc = False"
        )
    if not atoms.has("momenta"):
        raise ValueError(
            "atoms hold no momenta, so their velocities are unknown; use atoms.set_velocities, "
            "with zeros if they are at rest"
        )
    velocities = atoms.get_velocities() * require("ase.units", "data").fs
    if features is None:
        speeds = np.linalg.norm(velocities, axis=1)
        features = np.stack([speeds, atoms.numbers / max(atoms.numbers.max(), 1)], axis=1)
    return build(atoms.positions, velocities, features, edges)


def batch(graphs: Sequence[jraph.GraphsTuple]) -> jraph.GraphsTuple:
    """Puts graphs side by side in one `GraphsTuple`, in their order.

    Args:
      graphs: at least one; each may itself hold several graphs.

    Returns:
      A `GraphsTuple` of NumPy arrays whose N, E and G are the sums of those given.

    Raises:
      ValueError: if there is no graph, if one is malformed, or if its keys or feature sizes differ
        from those of the first.
    """
    graphs = list(graphs)
    check_alike(graphs)
    return _with_int32_indices(jraph.batch_np([_on_host(graph) for graph in graphs]))


def unbatch(graph: jraph.GraphsTuple) -> list[jraph.GraphsTuple]:
    """Splits a batch into its G graphs, padding graphs included; the inverse of `batch`.

    Args:
      graph: a batch whose edges stand in the order of its graphs, as `batch` leaves them.

    Returns:
      G graphs of NumPy arrays, each with indices that count from 0.

    Raises:
      ValueError: if the batch is malformed, or its counts and indices disagree.
    """
    check_structure(graph)
    _check_indices(graph)
    # jraph.unbatch_np shifts the indices of its argument in place, so it gets a copy.
    return [_with_int32_indices(part) for part in jraph.unbatch_np(_on_host(graph))]


# Padding


def ladder_size(size: int) -> int:
    """Returns the least of 1, 2, 3, 4, 6, 8, 12, 16, ... (2^k and 3 * 2^k) that holds `size`."""
    power = 1 << max(size - 1, 0).bit_length()
    return 3 * power // 4 if 3 * power // 4 >= size else power


def pad(
    graph: jraph.GraphsTuple,
    *,
    num_nodes: int | None = None,
    num_edges: int | None = None,
    num_graphs: int | None = None,
) -> tuple[jraph.GraphsTuple, Bool[np.ndarray, "N"]]:
    """Pads a graph with zeros to a larger size, so that graphs of many sizes share compilations.

    Padding nodes and edges belong to one further graph, behind which empty graphs may follow;
    padding edges connect padding nodes, so no real node sees them. Sizes not given are taken from
    `ladder_size`: sizes that spread over a factor r take at most 2 log2(r) + 2 values, and no more
    than a third of the rows is padding (N > 1, E > 0). Pad once: the mask of a graph padded twice
    counts the first padding as real.

    Args:
      graph: one graph or a batch, not yet padded.
      num_nodes: N after padding; by default `ladder_size(N + 1)`.
      num_edges: E after padding; by default `ladder_size(E)`.
      num_graphs: G after padding; by default `ladder_size(G + 1)`.

    Returns:
      The padded graph of NumPy arrays, and `node_mask` `[N]`, False on padding nodes.

    Raises:
      ValueError: if the graph is malformed, or a size is too small for it, with by how much.
    """
    check_structure(graph)
    graph = _on_host(graph)
    sizes = (len(graph.nodes["positions"]), len(graph.senders), len(graph.n_node))
    num_edges = ladder_size(sizes[1]) if num_edges is None else num_edges
    needed = (sizes[0] + (num_edges > sizes[1]), sizes[1], sizes[2] + 1)
    num_nodes = ladder_size(sizes[0] + 1) if num_nodes is None else num_nodes
    num_graphs = ladder_size(sizes[2] + 1) if num_graphs is None else num_graphs
    _check_pad_size("num_nodes", num_nodes, needed[0], "the nodes and one for any padding edge")
    _check_pad_size("num_edges", num_edges, needed[1], "the edges")
    _check_pad_size("num_graphs", num_graphs, needed[2], "the graphs and one of padding")
    padding = _padding_graph(graph, num_nodes - sizes[0], num_edges - sizes[1])
    padded = jraph.batch_np([graph, _append_empty_graphs(padding, num_graphs - sizes[2] - 1)])
    return _with_int32_indices(padded), np.arange(num_nodes) < sizes[0]


def pad_nodes(array: ArrayLike, num_nodes: int, *, axis: int = -2) -> np.ndarray:
    """Appends zeros along the node axis, for targets `[P, N, 3]` of a padded graph.

    Args:
      array: any array with a node axis.
      num_nodes: N after padding.
      axis: the node axis; by default the last but one, as in `[N, 3]` and `[P, N, 3]`.

    Returns:
      The padded NumPy array, of the same dtype.

    Raises:
      ValueError: if `num_nodes` is smaller than the axis is long, or there is no such axis.
    """
    array = np.asarray(array)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"array {shape_text(array)} has no axis {axis}; name its node axis")
    _check_pad_size("num_nodes", num_nodes, array.shape[axis], f"axis {axis} of the array")
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, num_nodes - array.shape[axis])
    return np.pad(array, widths)


def pad_times(times: ArrayLike, num_graphs: int) -> np.ndarray:
    """Repeats the last column of times `[P, G]`, so that padding graphs have times that increase.

    Args:
      times: `[P, G]`; times `[P]` fit any number of graphs and need no padding.
      num_graphs: G after padding.

    Returns:
      `[P, num_graphs]`.

    Raises:
      ValueError: if times are not `[P, G]`, or `num_graphs` is smaller than G.
    """
    times = np.asarray(times)
    if times.ndim != 2 or not times.shape[1]:
        raise ValueError(f"times must be [P, G] with G >= 1, came {shape_text(times)}")
    _check_pad_size("num_graphs", num_graphs, times.shape[1], "the columns of times")
    return np.pad(times, [(0, 0), (0, num_graphs - times.shape[1])], mode="edge")


# In the model


def graph_ids(n_node: Int[Array, "G"], num_nodes: int) -> Int[Array, "N"]:
    """Returns the index of the graph that each node belongs to; works inside `jit`.

    Args:
      n_node: `[G]`, the number of nodes of each graph.
      num_nodes: N, their sum, a Python integer.

    Returns:
      `[N]` int32, in increasing order.
    """
    n_node = jnp.asarray(n_node, jnp.int32)
    ids = jnp.arange(n_node.shape[0], dtype=jnp.int32)
    return jnp.repeat(ids, n_node, total_repeat_length=num_nodes)


# Checks


def as_times(times: Any) -> Array | None:
    """Returns times as an array: a list or tuple of numbers becomes one, all else is left alone.

    Args:
      times: an array, or numbers in a list or tuple, nested for `[P, G]`.

    Raises:
      ValueError: what is in the list are no numbers, or its rows differ in length.
    """
    if not isinstance(times, list | tuple):
        return times
    try:
        return jnp.asarray(times)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"times must be numbers [P] or [P, G], came a {type(times).__name__} that is no array "
            f"of numbers ({error})"
        ) from error


def check_structure(graph: jraph.GraphsTuple, times: Array | None = None) -> None:
    """Checks types, keys, shapes and dtypes, never values, so it works the same inside `jit`.

    Args:
      graph: what should be a graph of this module's form.
      times: what should be `[P]`, or `[P, G]`, an array or a list; None if there is nothing to
        check.

    Raises:
      ValueError: naming the field, what came and what was expected.
    """
    sizes = _check_graph_structure(graph, ())
    if times is not None:
        _check_times_structure(as_times(times), sizes)


def check_stacked_structure(graph: jraph.GraphsTuple) -> None:
    """Checks S graphs of one size, stacked as `egno_jax.datasets.Samples` holds them.

    Args:
      graph: what `check_structure` takes, every array with a leading axis S.

    Raises:
      ValueError: as `check_structure`.
    """
    _check_graph_structure(graph, ("S",))


def _check_graph_structure(graph: Any, leading: tuple[str, ...]) -> dict[str, int]:
    """Checks a graph whose arrays have these axes before their own; returns sizes by letter."""
    if not isinstance(graph, jraph.GraphsTuple):
        raise ValueError(
            f"graph must be a jraph.GraphsTuple, came {type_name(graph)}; "
            "egno_jax.graph.build makes one from arrays"
        )
    sizes: dict[str, int] = {}

    def check(name: str, array: Any, kind: str, *shape: str | int) -> None:
        check_array(name, array, kind, (*leading, *shape), sizes)

    check("graph.n_node", graph.n_node, "integer", "G")
    check("graph.n_edge", graph.n_edge, "integer", "G")
    if sizes["G"] == 0:
        raise ValueError("graph.n_node has length 0; a GraphsTuple must hold at least one graph")
    _check_keys("graph.nodes", graph.nodes, _NODE_KEYS)
    for name, size in zip(_NODE_KEYS, (3, 3, "F"), strict=True):
        check(f"graph.nodes[{name!r}]", graph.nodes[name], "floating", "N", size)
    check("graph.senders", graph.senders, "integer", "E")
    check("graph.receivers", graph.receivers, "integer", "E")
    if graph.edges is not None:
        _check_keys("graph.edges", graph.edges, ("features",), otherwise="None or ")
        check("graph.edges['features']", graph.edges["features"], "floating", "E", "D")
    for field, letter in (("nodes", "N"), ("edges", "E"), ("globals", "G")):
        _check_lengths(f"graph.{field}", getattr(graph, field), (*leading, letter), sizes)
    return sizes


def _check_times_structure(times: Any, sizes: dict[str, int]) -> None:
    """Checks that times are `[P]` or `[P, G]` with P > 0."""
    rank = len(getattr(times, "shape", (0,)))
    check_array("times", times, "integer or floating", ("P", "G") if rank == 2 else ("P",), sizes)
    if sizes["P"] == 0:
        raise ValueError("times has P = 0; the model needs at least one time to predict")


def check_alike(graphs: Sequence[jraph.GraphsTuple]) -> None:
    """Checks graphs that are to be joined: their structure, and that all have the same arrays.

    Args:
      graphs: at least one, of any sizes.

    Raises:
      ValueError: if there is no graph, if one is malformed, or if its keys or feature sizes differ
        from those of the first; names its index.
    """
    if not graphs:
        raise ValueError("graphs is empty, expected at least one graph")
    for index, graph in enumerate(graphs):
        try:
            check_structure(graph)
        except ValueError as error:
            raise ValueError(f"graphs[{index}]: {error}") from None
        _check_same_arrays(graph, graphs[0], index)


def _check_keys(name: str, mapping: Any, keys: Sequence[str], otherwise: str = "") -> None:
    """Checks that a dictionary holds the keys; more of them are welcome."""
    if not isinstance(mapping, Mapping):
        raise ValueError(
            f"{name} must be {otherwise}a dictionary of arrays with the keys {list(keys)}, "
            f"came {type_name(mapping)}"
        )
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{name} lacks the keys {missing}, came {sorted(mapping)}; add them")


def _check_lengths(name: str, tree: Any, letters: tuple[str, ...], sizes: dict[str, int]) -> None:
    """Checks the leading axes of every leaf, those included that the model does not read."""
    expected = tuple(sizes[letter] for letter in letters)
    axes = "a leading axis" if len(letters) == 1 else "leading axes"
    known = ", ".join(f"{letter} = {sizes[letter]}" for letter in letters)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.shape(leaf)[: len(expected)] != expected:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have {axes} {known}, "
                f"came {shape_text(leaf)}"
            )


def validate(graph: jraph.GraphsTuple, times: Array | None = None) -> None:
    """Checks a graph in full, values included; reads them on the host, so not inside `jit`.

    Args:
      graph: what should be a graph of this module's form, padded or not.
      times: what should be `[P]`, or `[P, G]`, strictly increasing along P; None if there is
        nothing to check.

    Raises:
      ValueError: as `check_structure`, and for NaN or infinite values, indices out of range or
        crossing between graphs, counts that do not add up, and times that do not increase; the
        message names the field and the first bad place.
    """
    times = as_times(times)
    check_structure(graph, times)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((graph, times))):
        raise ValueError("graph holds tracers; validate reads values, so call it outside jit")
    for name in _NODE_KEYS:
        _check_finite(f"graph.nodes[{name!r}]", graph.nodes[name])
    if graph.edges is not None:
        _check_finite("graph.edges['features']", graph.edges["features"])
    _check_indices(graph)
    if times is not None:
        _check_finite("times", times)
        _check_increasing(times)


def _as_jax_sees(array: Any) -> np.ndarray:
    """Rounds to the dtype that JAX computes in, where values may overflow or coincide."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _check_finite(name: str, array: Any) -> None:
    """Checks that no value is NaN or infinite, as float32 unless JAX's x64 mode is on."""
    array = _as_jax_sees(array)
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        value, place = array[tuple(bad[0])], ", ".join(map(str, bad[0]))
        raise ValueError(
            f"{name} must be finite, came {value} at [{place}] and {len(bad) - 1} more such values "
            f"(as {array.dtype}); clean the data first"
        )


def _check_indices(graph: jraph.GraphsTuple) -> None:
    """Checks that counts add up and that edges stay inside their graphs."""
    num_nodes, num_edges = len(graph.nodes["positions"]), len(graph.senders)
    _check_counts("graph.n_node", graph.n_node, num_nodes, "nodes")
    _check_counts("graph.n_edge", graph.n_edge, num_edges, "edges")
    _check_range("graph.senders", graph.senders, num_nodes)
    _check_range("graph.receivers", graph.receivers, num_nodes)
    _check_edges_stay_inside(graph)


def _check_counts(name: str, counts: Any, total: int, what: str) -> None:
    """Checks that the counts of a batch are not negative and sum to its size."""
    counts = np.asarray(counts)
    negative = np.flatnonzero(counts < 0)
    if negative.size:
        raise ValueError(f"{name}[{negative[0]}] is {counts[negative[0]]}; counts must be >= 0")
    if counts.sum() != total:
        raise ValueError(
            f"{name} sums to {counts.sum()}, but the graph has {total} {what}; "
            f"count the {what} of each graph, padding included"
        )


def _check_range(name: str, indices: Any, num_nodes: int) -> None:
    """Checks that indices are those of nodes."""
    indices = np.asarray(indices)
    bad = np.flatnonzero((indices < 0) | (indices >= num_nodes))
    if bad.size:
        raise ValueError(
            f"{name}[{bad[0]}] is {indices[bad[0]]}, out of range for {num_nodes} nodes; "
            f"{name} must lie in [0, {num_nodes})"
        )


def _check_edges_stay_inside(graph: jraph.GraphsTuple) -> None:
    """Checks that edges connect nodes of the graph that `n_edge` gives them to."""
    ids = np.repeat(np.arange(len(graph.n_node)), np.asarray(graph.n_node))
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    crossing = np.flatnonzero(ids[senders] != ids[receivers])
    if crossing.size:
        edge = crossing[0]
        raise ValueError(
            f"edge {edge} crosses graphs: graph.senders[{edge}] is {senders[edge]} in graph "
            f"{ids[senders[edge]]}, graph.receivers[{edge}] is {receivers[edge]} in graph "
            f"{ids[receivers[edge]]}; join graphs with egno_jax.graph.batch, which shifts indices"
        )
    owners = np.repeat(np.arange(len(graph.n_edge)), np.asarray(graph.n_edge))
    misplaced = np.flatnonzero(ids[receivers] != owners)
    if misplaced.size:
        edge = misplaced[0]
        raise ValueError(
            f"graph.n_edge gives edge {edge} to graph {owners[edge]}, but its nodes lie in graph "
            f"{ids[receivers[edge]]}; put the edges in the order of the graphs and count them"
        )


def _check_increasing(times: Any) -> None:
    """Checks that times increase strictly along P."""
    times = _as_jax_sees(times)
    bad = np.argwhere(times[1:] <= times[:-1])
    if bad.size:
        later, *column = bad[0].tolist()
        first, second = [later, *column], [later + 1, *column]
        raise ValueError(
            f"times must increase strictly along P, came times{first} = {times[tuple(first)]} and "
            f"times{second} = {times[tuple(second)]} (as {times.dtype}); sort them, each once"
        )


# Helpers


def _as_floating(array: ArrayLike, name: str = "array") -> np.ndarray:
    """Converts numbers to the floating dtype that JAX would give them."""
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
        came = "None" if array.shape == () and array.item() is None else f"{array.dtype}"
        raise ValueError(f"{name} must be an array of numbers, came {came} {shape_text(array)}")
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float64)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _on_host(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Copies every leaf into a NumPy array."""
    return jax.tree.map(np.array, graph)


def _with_int32_indices(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Makes indices and counts int32, which NumPy's cumsum has widened."""
    fields = ("senders", "receivers", "n_node", "n_edge")
    return graph._replace(
        **{field: np.asarray(getattr(graph, field), np.int32) for field in fields}
    )


def _check_pad_size(name: str, size: int, needed: int, what: str) -> None:
    """Checks that a padded size holds what it must."""
    if size < needed:
        raise ValueError(
            f"{name} is {size}, {needed - size} too small: {needed} are needed for {what}"
        )


def _padding_graph(graph: jraph.GraphsTuple, num_nodes: int, num_edges: int) -> jraph.GraphsTuple:
    """Makes one graph of zeros like `graph`, its edges spread evenly over its nodes."""

    def zeros(tree: Any, length: int) -> Any:
        return jax.tree.map(lambda leaf: np.zeros((length, *leaf.shape[1:]), leaf.dtype), tree)

    # Self-loops, sorted: a sorted list of receivers stays sorted, and no node collects them all.
    indices = (np.arange(num_edges) * num_nodes // max(num_edges, 1)).astype(np.int32)
    return jraph.GraphsTuple(
        nodes=zeros(graph.nodes, num_nodes),
        edges=zeros(graph.edges, num_edges),
        senders=indices,
        receivers=indices,
        n_node=np.asarray([num_nodes], np.int32),
        n_edge=np.asarray([num_edges], np.int32),
        globals=zeros(graph.globals, 1),
    )


def _append_empty_graphs(graph: jraph.GraphsTuple, num_graphs: int) -> jraph.GraphsTuple:
    """Appends graphs without nodes and edges."""

    def append(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.zeros((num_graphs, *leaf.shape[1:]), leaf.dtype)])

    counts = {name: append(getattr(graph, name)) for name in ("n_node", "n_edge")}
    return graph._replace(globals=jax.tree.map(append, graph.globals), **counts)


def _check_same_arrays(graph: jraph.GraphsTuple, first: jraph.GraphsTuple, index: int) -> None:
    """Checks that a graph of a batch has the arrays of the first, with the same trailing sizes."""
    came, expected = _trailing_shapes(graph), _trailing_shapes(first)
    for name in sorted(came.keys() ^ expected.keys()):
        has, lacks = (index, 0) if name in came else (0, index)
        raise ValueError(
            f"graphs[{has}] has {name} and graphs[{lacks}] has not; all graphs of a batch need "
            "the same keys, and edge features all or none"
        )
    for name, shape in came.items():
        if shape != expected[name]:
            raise ValueError(
                f"graphs[{index}].{name} has trailing shape {list(shape)} and that of graphs[0] is "
                f"{list(expected[name])}; all graphs of a batch need the same"
            )


def _trailing_shapes(graph: jraph.GraphsTuple) -> dict[str, tuple[int, ...]]:
    """Returns the shape behind the leading axis of every array of nodes, edges and globals."""
    return {
        f"{field}{jax.tree_util.keystr(path)}": np.shape(leaf)[1:]
        for field in ("nodes", "edges", "globals")
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(graph, field))
    }
