"""Layouts of graphs for accelerators, made once on the host; see `egno_jax.ops.layouts`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import jax
import jraph
import numpy as np

from egno_jax.checks import type_name
from egno_jax.graph.edges import shifts_of
from egno_jax.ops.kernels import library, rows
from egno_jax.ops.layouts import NOWHERE, Adjacency, Blocks, EdgeList, Incidence, Layout, Segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Int

KEY = "layout"
VARIABLE = "EGNO_JAX_LAYOUT"
PLATFORMS = ("gpu", "tpu")
KINDS = ("auto", "none", *PLATFORMS, "blocks", "incidence", "list", "segments")
# Blocks compute all pairs: they pay where at least this share of the pairs are edges.
MIN_DENSITY = 0.5
# Nodes of a graph for blocks and incidence matrices.
MAX_SIZE = 64
# What arranges any graph, if a kind cannot.
_OTHERWISE = {"blocks": "segments", "incidence": "segments"}
# Edges of a row: a tile of a TPU has 8 sublanes.
ROW = 8


def prepare(graph: jraph.GraphsTuple, kind: str | None = None) -> jraph.GraphsTuple:
    """Adds the layout of edges with which accelerators compute fast; results stay the same.

    `apply` does this by itself for a graph that it can read, and so do training, evaluation and
    rollouts. Inside `jit` a graph cannot be read: call `prepare` before. A layout belongs to the
    senders, receivers and counts of the graph: call `prepare` again when they change.

    Args:
      graph: one graph or a batch, padded or not, on the host.
      kind: `blocks`: all pairs of nodes of each graph, for small graphs with many edges;
        `incidence`: products with incidence matrices, for small graphs with as many nodes and edges
        each; `list`: the edges as they are, with those of each node, and whether all graphs have as
        many nodes and edges, for the kernels in Pallas; `segments`: edges sorted by receiver,
        without scatters, which nobody has timed yet; `none`; `gpu`: the list if `EGNO_JAX_KERNELS`
        is `pallas`, else blocks if at least half of the pairs are edges, else none; `tpu`: the
        first that is possible of blocks for such graphs, incidence matrices for small graphs, the
        list likewise, and none; `auto`: `none` on a CPU, which has kernels for the edges as they
        are, otherwise the platform's. None: the environment variable `EGNO_JAX_LAYOUT`, or else
        `auto`.

    Returns:
      The graph, with the layout as `graph.globals["layout"]`.

    Raises:
      ValueError: the kind is unknown, an edge is not one between nodes of the graph, or the graph
        cannot be arranged so, as with `blocks` if two edges connect the same nodes; or its globals
        are not a dictionary.
    """
    if wrong := _wrong_edges(graph):
        raise ValueError(wrong)
    return _arranged(graph, kind)


def _arranged(graph: jraph.GraphsTuple, kind: str | None = None) -> jraph.GraphsTuple:
    """Returns a graph whose edges are right with its layout."""
    kind = chosen_kind(graph, kind)
    graph = without_layout(graph)
    if kind == "none":
        return graph
    if kind == "blocks":
        return with_layout(graph, _blocks(graph))
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    if kind == "incidence":
        return with_layout(graph, _incidence(senders, receivers, graph.n_node))
    if kind == "list":
        num_graphs = np.size(graph.n_node) if _is_uniform(graph) else 1
        edges = _edge_list(senders, receivers, int(np.sum(graph.n_node)), num_graphs)
        return with_layout(graph, edges)
    return with_layout(graph, segments_of(senders, receivers, int(np.sum(graph.n_node))))


def prepared(graph: Any) -> Any:
    """Returns a graph as `prepare` does, unless it already has a layout or cannot be read here.

    A graph with wrong edges stays as it is: it is refused, or not, as under `jit`.
    """
    if not isinstance(graph, jraph.GraphsTuple) or not is_readable(graph):
        return graph
    # The edges are read last, and once: bare calls of `apply` come here.
    is_left = KEY in _globals(graph) or _requested_kind() == "none" or _wrong_edges(graph)
    return graph if is_left else _arranged(graph)


def _wrong_edges(graph: jraph.GraphsTuple) -> str | None:
    """Returns why senders and receivers are no edges of the graph, if they are not."""
    total, count = int(np.sum(graph.n_node)), np.size(graph.senders)
    for name in ("senders", "receivers"):
        nodes = np.asarray(getattr(graph, name))
        if nodes.shape != (count,) or not np.issubdtype(nodes.dtype, np.integer):
            return (
                f"graph.{name}: got {nodes.dtype} of shape {list(nodes.shape)}, expected an "
                f"integer for each of {count} edges; see egno_jax.graph.validate"
            )
        if count and not 0 <= nodes.min() <= nodes.max() < total:
            return (
                f"graph.{name}: got indices from {nodes.min()} to {nodes.max()}, expected 0 to "
                f"{total - 1}, the nodes of the graph; see egno_jax.graph.validate"
            )
    return None


def layout_of(graph: jraph.GraphsTuple) -> Layout | None:
    """Returns the layout of a graph.

    Raises:
      ValueError: the layout is of a graph with another number of edges.
    """
    layout = _globals(graph).get(KEY)
    if layout is not None and layout.num_edges != graph.senders.shape[-1]:
        raise ValueError(
            f"graph.globals[{KEY!r}]: got the layout of {layout.num_edges} edges, expected that of "
            f"{graph.senders.shape[-1]}; call egno_jax.graph.prepare again"
        )
    return layout


def with_layout(graph: jraph.GraphsTuple, layout: Layout) -> jraph.GraphsTuple:
    """Returns the graph with a layout; raises as `named_globals`."""
    return graph._replace(globals={**named_globals(graph), KEY: layout})


def without_layout(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the graph without its layout."""
    if KEY not in _globals(graph):
        return graph
    rest = {name: value for name, value in graph.globals.items() if name != KEY}
    return graph._replace(globals=rest or None)


def named_globals(graph: jraph.GraphsTuple) -> dict[str, Any]:
    """Returns the globals of a graph by name; empty if it has none.

    Raises:
      ValueError: they are not a dictionary, so that no other can be added by name.
    """
    if not _has_named_globals(graph):
        raise ValueError(
            f"graph.globals: got {type_name(graph.globals)}, expected None or a dictionary, to "
            'which others are added here; pass {"name": array}'
        )
    return _globals(graph)


def _has_named_globals(graph: jraph.GraphsTuple) -> bool:
    return graph.globals is None or isinstance(graph.globals, dict)


def _globals(graph: Any) -> dict[str, Any]:
    """Returns the globals of a graph by name; nothing for what is not a graph, checked later."""
    found = getattr(graph, "globals", None)
    return found if isinstance(found, dict) else {}


def is_readable(graph: jraph.GraphsTuple) -> bool:
    """Returns whether the values of a graph's indices can be read: on this host, outside `jit`."""
    arrays = (graph.senders, graph.receivers, graph.n_node, graph.n_edge, shifts_of(graph))
    return not any(
        isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True)
        for x in arrays
    )


def is_for_accelerator() -> bool:
    """Returns whether programs are arranged for an accelerator: there is one, or it is requested.

    `EGNO_JAX_LAYOUT=tpu` or `gpu` requests it, to compile for a device that is not there.
    """
    return jax.default_backend() != "cpu" or os.environ.get(VARIABLE) in PLATFORMS


def chosen_kind(graph: jraph.GraphsTuple, kind: str | None = None, node_mask: Any = None) -> str:
    """Returns the kind of layout of a graph, see `prepare`; it may be stacked, with a node mask.

    Raises:
      ValueError: the kind is unknown, or `blocks` and the graph cannot be arranged so.
    """
    name = _named_by(kind)
    kind = _requested_kind(kind)
    if kind == "none" or not np.size(graph.senders):
        return "none"
    for candidate in _candidates(graph, kind, node_mask):
        reason = _why_not(candidate, graph, node_mask)
        if reason is None:
            return candidate
        if kind == candidate:
            raise ValueError(f"{name}: got {kind!r}, but {reason}; use {_OTHERWISE[kind]}")
    return "none"


def _named_by(kind: str | None) -> str:
    return "kind" if kind else VARIABLE


def _requested_kind(kind: str | None = None) -> str:
    """Returns a kind, or that of the environment variable; that of the platform for `auto`."""
    name = _named_by(kind)
    kind = kind or os.environ.get(VARIABLE) or "auto"
    if kind not in KINDS:
        raise ValueError(f"{name}: got {kind!r}, expected one of {KINDS}")
    if kind == "auto":
        return {"cpu": "none", "tpu": "tpu"}.get(jax.default_backend(), "gpu")
    return kind


def _candidates(graph: jraph.GraphsTuple, kind: str, node_mask: Any) -> list[str]:
    """Returns a kind, or those of a platform, the best first."""
    if kind not in PLATFORMS:
        return [kind]
    if not _has_named_globals(graph):  # which have no place for a layout
        return []
    has_kernels = library.setting() == "pallas" and (kind == "tpu" or rows.is_available())
    listed = ["list"] if has_kernels else []
    dense = ["blocks"] if _is_dense(graph) else []
    if kind == "gpu":
        return listed or dense
    return dense + (["incidence"] if _is_small(graph, node_mask) else []) + listed


def _is_small(graph: jraph.GraphsTuple, node_mask: Any = None) -> bool:
    """Returns whether every graph is small; with a node mask, every sample with its padding."""
    size = np.max(graph.n_node) if node_mask is None else np.shape(node_mask)[1]
    return int(size) <= MAX_SIZE


def _is_dense(graph: jraph.GraphsTuple) -> bool:
    n_node = np.asarray(graph.n_node)
    size, graphs = int(n_node.max()), int((n_node > 0).sum())
    return _is_small(graph) and np.size(graph.senders) >= MIN_DENSITY * graphs * size**2


def _why_not(kind: str, graph: jraph.GraphsTuple, node_mask: Any) -> str | None:
    """Returns why a graph, stacked if it has a node mask, cannot be arranged so, if that is."""
    if kind == "incidence" and node_mask is None and not _is_uniform(graph):
        return "its graphs differ in their numbers of nodes or edges"
    if kind != "blocks":
        return None
    if node_mask is not None and np.any(node_mask & ~_of_first_graph(graph, node_mask)):
        return "a sample has several graphs, expected one, and padding"
    ends, is_real = _real_edges(graph, node_mask)
    for loop in np.flatnonzero(is_real & (ends[0] == ends[1])):
        return f"edge {loop} connects a node with itself, expected edges between two nodes"
    places = np.flatnonzero(is_real)
    _, first = np.unique(ends[:, places], axis=1, return_index=True)
    for repeated in np.setdiff1d(places, places[first]):
        return (
            f"edge {repeated} connects the same nodes as one before, expected at most one edge "
            "from node to node"
        )
    return None


def _of_first_graph(graph: jraph.GraphsTuple, node_mask: Any) -> Bool[np.ndarray, "S N"]:
    """Returns which nodes of stacked graphs belong to the first graph of their sample.

    That is not the node mask, which may leave out nodes of the graph in losses and metrics.
    """
    return np.arange(np.shape(node_mask)[1]) < np.asarray(graph.n_node)[:, :1]


def _real_edges(
    graph: jraph.GraphsTuple, node_mask: Any = None
) -> tuple[Int[np.ndarray, "2 E"], Bool[np.ndarray, "E"]]:
    """Returns receivers and senders of all edges, and which edges are none of padding.

    Nodes of padding may have any values. Padding is a graph of self-loops alone
    (`egno_jax.graph.pad`), or in stacked graphs what comes after the first graph of a sample. An
    edge to a periodic image of the same node is no self-loop.
    """
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    if senders.ndim > 1:
        is_real = np.take_along_axis(_of_first_graph(graph, node_mask), receivers, axis=1).ravel()
        offsets = np.arange(len(senders))[:, None] * np.shape(node_mask)[1]
        senders, receivers = (senders + offsets).ravel(), (receivers + offsets).ravel()
    else:
        owner = np.repeat(np.arange(len(graph.n_edge)), np.asarray(graph.n_edge))
        is_loop, shifts = senders == receivers, shifts_of(graph)
        if shifts is not None:
            is_loop &= ~np.any(np.asarray(shifts) != 0, axis=1)
        is_real = np.bincount(owner, ~is_loop, len(graph.n_edge))[owner] > 0
    return np.stack([receivers, senders]), is_real


def _is_uniform(graph: jraph.GraphsTuple) -> bool:
    """Returns whether all graphs have as many nodes and as many edges, each its own."""
    n_node, n_edge = np.asarray(graph.n_node), np.asarray(graph.n_edge)
    if np.ptp(n_node) or np.ptp(n_edge):
        return False
    owner = np.repeat(np.arange(len(n_edge)), n_edge)
    ends = np.asarray(graph.senders), np.asarray(graph.receivers)
    return all(np.array_equal(nodes // n_node[0], owner) for nodes in ends)


def _edge_list(
    senders: Int[np.ndarray, "E"],
    receivers: Int[np.ndarray, "E"],
    num_nodes: int,
    num_graphs: int = 1,
) -> EdgeList:
    sorted_edges = (
        _adjacency(receivers, senders, num_nodes),
        _adjacency(senders, receivers, num_nodes),
    )
    return EdgeList(senders, receivers, num_nodes, num_graphs, *sorted_edges)


def _adjacency(
    owners: Int[np.ndarray, "E"], others: Int[np.ndarray, "E"], num_nodes: int
) -> Adjacency:
    starts, counts, order = _by_owner(owners, num_nodes)
    tables = starts, counts, order, others[order]
    return Adjacency(*(x.astype(np.int32) for x in tables))


def _by_owner(
    owners: Int[np.ndarray, "E"], num_nodes: int
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"], Int[np.ndarray, "E"]]:
    """Returns where the items of each owner start, their number, and all items in that order."""
    counts = np.bincount(owners, minlength=num_nodes)
    return np.cumsum(counts) - counts, counts, np.argsort(owners, kind="stable")


def _incidence(
    senders: Int[np.ndarray, "E"], receivers: Int[np.ndarray, "E"], n_node: Int[Array, "G"]
) -> Incidence:
    graphs, size = len(n_node), int(n_node[0])
    ends = ((nodes % size).astype(np.int32).reshape(graphs, -1) for nodes in (senders, receivers))
    return Incidence(*ends, num_nodes=size, num_edges=len(senders))


def _blocks(graph: jraph.GraphsTuple) -> Blocks:
    n_node, num_edges = np.asarray(graph.n_node), len(graph.senders)
    graphs, size, total = len(n_node), int(n_node.max()), int(n_node.sum())
    ids = np.repeat(np.arange(graphs), n_node)
    local = np.arange(total) - np.repeat(np.cumsum(n_node) - n_node, n_node)
    nodes = np.full((graphs, size), NOWHERE, np.int32)
    nodes[ids, local] = np.arange(total)
    senders, receivers = (local[np.asarray(x)] for x in (graph.senders, graph.receivers))
    edges = _pairs(ids[np.asarray(graph.receivers)], senders, receivers, (graphs, size))
    is_node = nodes < NOWHERE
    is_uniform = bool(is_node.all())
    is_complete = np.array_equal(edges.ravel(), np.arange(num_edges))
    return Blocks(
        edges=None if is_complete else edges,
        nodes=None if is_uniform else nodes,
        places=None if is_uniform else (ids * size + local).astype(np.int32),
        is_node=is_node,
        num_edges=num_edges,
        is_full=is_uniform,
    )


def _pairs(
    graphs: Int[np.ndarray, "E"],
    senders: Int[np.ndarray, "E"],
    receivers: Int[np.ndarray, "E"],
    shape: tuple[int, int],
) -> Int[np.ndarray, "G n m"]:
    """Returns the edges of `Blocks`; self-loops, of padding, are left out."""
    num_graphs, size = shape
    edges = np.full((num_graphs, size, size - 1), NOWHERE, np.int32)
    kept = np.flatnonzero(senders != receivers)
    senders, receivers = senders[kept], receivers[kept]
    edges[graphs[kept], receivers, senders - (senders > receivers)] = kept
    return edges


def segments_of(
    senders: Int[np.ndarray, "E"], receivers: Int[np.ndarray, "E"], num_nodes: int
) -> Segments:
    """Returns the segments of a graph with these edges."""
    edges, of_rows, rows = _rows(receivers, num_nodes)
    is_edge = edges < NOWHERE
    sent = np.where(is_edge, senders[np.where(is_edge, edges, 0)], NOWHERE).astype(np.int32)
    places = np.flatnonzero(is_edge)
    out_places, _, out_rows = _rows(sent.reshape(-1)[places], num_nodes)
    is_place = out_places < NOWHERE
    out = np.where(is_place, places[np.where(is_place, out_places, 0)], NOWHERE)
    return Segments(
        edges=edges,
        senders=sent,
        receivers=of_rows,
        rows=rows,
        out_edges=out.astype(np.int32),
        out_rows=out_rows,
        num_edges=len(senders),
    )


def _rows(
    owners: Int[np.ndarray, "E"], num_nodes: int
) -> tuple[Int[np.ndarray, "R k"], Int[np.ndarray, "R"], Int[np.ndarray, "N q"]]:
    """Sorts items by their owner into rows of `ROW`, each of one owner.

    Returns:
      `[R, k]`, the items; `[R]`, the owner of each row; `[N, q]`, the rows of each owner.
    """
    starts, counts, order = _by_owner(owners, num_nodes)
    num_rows = -(-counts // ROW)
    first_row = np.cumsum(num_rows) - num_rows
    rank = np.arange(len(owners)) - np.repeat(starts, counts)
    items = np.full((max(int(num_rows.sum()), 1), ROW), NOWHERE, np.int32)
    items[first_row[owners[order]] + rank // ROW, rank % ROW] = order
    of_rows = np.full(len(items), NOWHERE, np.int32)
    of_rows[: num_rows.sum()] = np.repeat(np.arange(num_nodes), num_rows)
    rows = np.full((num_nodes, max(int(num_rows.max(initial=0)), 1)), NOWHERE, np.int32)
    places = np.arange(num_rows.sum()) - np.repeat(first_row, num_rows)
    rows[of_rows[: num_rows.sum()], places] = np.arange(num_rows.sum())
    return items, of_rows, rows


def stacked_layout(
    graph: jraph.GraphsTuple, node_mask: Any, kind: str | None = None
) -> Layout | None:
    """Returns the layout of S stacked graphs of one size, whose arrays have a leading axis S.

    All but segments have all N nodes of a sample, padding included. Segments have the sizes of the
    largest sample. `joined` of the layout makes that of a batch. `node_mask` `[S, N]` are the nodes
    that count in losses; blocks need all of them in one graph.
    """
    kind = chosen_kind(graph, kind, node_mask)
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    num_nodes = np.shape(node_mask)[1]
    if kind == "none":
        return None
    if kind == "blocks":
        return _stacked_blocks(senders, receivers, _of_first_graph(graph, node_mask))
    if kind == "incidence":
        return Incidence(senders, receivers, num_nodes, senders.shape[1])
    pairs = list(zip(senders, receivers, strict=True))
    if kind == "list":
        samples = [_edge_list(*pair, num_nodes) for pair in pairs]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *samples)
    return _stack_segments([segments_of(*pair, num_nodes) for pair in pairs])


def _stacked_blocks(senders: np.ndarray, receivers: np.ndarray, is_node: np.ndarray) -> Blocks:
    samples, num_edges = senders.shape
    size = is_node.shape[1]
    ids = np.repeat(np.arange(samples), num_edges)
    # Edges of padding may repeat: they change no real node.
    edges = _pairs(ids, senders.ravel(), receivers.ravel(), (samples, size))
    all_complete = np.array_equal(edges.ravel(), np.arange(samples * num_edges))
    edges = np.where(edges < NOWHERE, edges % num_edges, NOWHERE)
    edges = None if all_complete else edges
    return Blocks(edges, None, None, is_node, num_edges, is_full=bool(is_node.all()))


def _stack_segments(parts: Sequence[Segments]) -> Segments:
    """Stacks segments, filled up to the sizes of the largest."""

    def stack(*leaves: np.ndarray) -> np.ndarray:
        shape = np.max([leaf.shape for leaf in leaves], axis=0)
        return np.stack(
            [
                np.pad(
                    leaf,
                    [(0, size - old) for size, old in zip(shape, leaf.shape, strict=True)],
                    constant_values=NOWHERE,
                )
                for leaf in leaves
            ]
        )

    return jax.tree.map(stack, *parts)
