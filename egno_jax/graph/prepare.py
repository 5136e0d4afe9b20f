"""Layouts of graphs for accelerators, made once on the host; see `egno_jax.ops.layouts`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import jax
import jraph
import numpy as np

from egno_jax.ops.layouts import NOWHERE, Blocks, Segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

KEY = "layout"
KINDS = ("auto", "none", "accelerator", "blocks", "segments")
# Blocks compute all pairs: they pay where at least this share of the pairs are edges.
MIN_DENSITY = 0.5
MAX_BLOCK = 64
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
        `segments`: edges sorted by receiver, without scatters, which nobody has timed yet;
        `accelerator`: blocks if at least half of the pairs are edges, else none; `none`;
        `auto`: `none` on a CPU, which has kernels for the edges as they are, otherwise
        `accelerator`. None: the environment variable `EGNO_JAX_LAYOUT`, or else `auto`.

    Returns:
      The graph, with the layout as `graph.globals["layout"]`.

    Raises:
      ValueError: the kind is unknown, or `blocks` and two edges connect the same nodes.
    """
    kind = chosen_kind(graph, kind)
    graph = without_layout(graph)
    if kind == "none":
        return graph
    layout = (_blocks if kind == "blocks" else _segments)(graph)
    return with_layout(graph, layout)


def prepared(graph: Any) -> Any:
    """Returns a graph with a layout, if `prepare` can make one here and there is none yet."""
    if not isinstance(graph, jraph.GraphsTuple) or not is_readable(graph):
        return graph
    has_layout = isinstance(graph.globals, dict) and KEY in graph.globals
    return graph if has_layout else prepare(graph)


def layout_of(graph: jraph.GraphsTuple) -> Blocks | Segments | None:
    """Returns the layout of a graph.

    Raises:
      ValueError: the layout is of a graph with another number of edges.
    """
    layout = graph.globals.get(KEY) if isinstance(graph.globals, dict) else None
    if layout is not None and layout.num_edges != graph.senders.shape[-1]:
        raise ValueError(
            f"graph.globals[{KEY!r}]: got the layout of {layout.num_edges} edges, expected that of "
            f"{graph.senders.shape[-1]}; call egno_jax.graph.prepare again"
        )
    return layout


def with_layout(graph: jraph.GraphsTuple, layout: Blocks | Segments) -> jraph.GraphsTuple:
    """Returns the graph with a layout."""
    known = graph.globals if isinstance(graph.globals, dict) else {}
    return graph._replace(globals={**known, KEY: layout})


def without_layout(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the graph without its layout."""
    if KEY not in (getattr(graph, "globals", None) or {}):  # whatever is no graph is checked later
        return graph
    rest = {name: value for name, value in graph.globals.items() if name != KEY}
    return graph._replace(globals=rest or None)


def is_readable(graph: jraph.GraphsTuple) -> bool:
    """Returns whether the values of a graph's indices can be read: on this host, outside `jit`."""
    arrays = (graph.senders, graph.receivers, graph.n_node)
    return not any(
        isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True)
        for x in arrays
    )


def chosen_kind(graph: jraph.GraphsTuple, kind: str | None = None) -> str:
    """Returns the kind of layout of a graph, see `prepare`; the graph may be stacked."""
    name = "kind" if kind else "EGNO_JAX_LAYOUT"
    kind = kind or os.environ.get("EGNO_JAX_LAYOUT") or "auto"
    if kind not in KINDS:
        raise ValueError(f"{name}: got {kind!r}, expected one of {KINDS}")
    if kind == "auto":
        kind = "none" if jax.default_backend() == "cpu" else "accelerator"
    if kind == "accelerator":
        kind = _best_kind(graph)
    return kind if np.size(graph.senders) else "none"


def _best_kind(graph: jraph.GraphsTuple) -> str:
    n_node = np.asarray(graph.n_node)
    size, graphs = int(n_node.max()), int((n_node > 0).sum())
    density = np.size(graph.senders) / (graphs * size**2)
    is_dense = size <= MAX_BLOCK and density >= MIN_DENSITY
    return "blocks" if is_dense and _blocks_fit(graph) else "none"


def _blocks_fit(graph: jraph.GraphsTuple) -> bool:
    return graph.senders.ndim > 1 or _first_repeated(graph) is None


def _first_repeated(graph: jraph.GraphsTuple) -> int | None:
    """Returns an edge between the same nodes as an earlier one, but for padding.

    A graph of self-loops alone is padding (`egno_jax.graph.pad`), whose nodes may have any values.
    """
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    owner = np.repeat(np.arange(len(graph.n_edge)), np.asarray(graph.n_edge))
    is_real = np.bincount(owner, senders != receivers, len(graph.n_edge))[owner] > 0
    places = np.flatnonzero(is_real)
    _, first = np.unique(np.stack([receivers, senders])[:, places], axis=1, return_index=True)
    rest = np.setdiff1d(places, places[first])
    return int(rest[0]) if rest.size else None


def _blocks(graph: jraph.GraphsTuple) -> Blocks:
    repeated = _first_repeated(graph)
    if repeated is not None:
        raise ValueError(
            f"kind: got 'blocks', but edge {repeated} connects the same nodes as one before, "
            "expected at most one edge from node to node; use segments"
        )
    n_node, num_edges = np.asarray(graph.n_node), len(graph.senders)
    graphs, size, total = len(n_node), int(n_node.max()), int(n_node.sum())
    ids = np.repeat(np.arange(graphs), n_node)
    local = np.arange(total) - np.repeat(np.cumsum(n_node) - n_node, n_node)
    nodes = np.full((graphs, size), NOWHERE, np.int32)
    nodes[ids, local] = np.arange(total)
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    edges = np.full((graphs, size, size), NOWHERE, np.int32)
    edges[ids[receivers], local[receivers], local[senders]] = np.arange(num_edges)
    mask = nodes < NOWHERE
    is_uniform = bool(mask.all())
    return Blocks(
        edges=None if is_complete(edges) else edges,
        nodes=None if is_uniform else nodes,
        places=None if is_uniform else (ids * size + local).astype(np.int32),
        node_mask=mask,
        num_edges=num_edges,
    )


def is_complete(edges: Int[np.ndarray, "G n n"]) -> bool:
    """Returns whether graphs are complete, their edges sorted by receiver, then sender."""
    graphs, size, _ = edges.shape
    off_diagonal = edges[:, ~np.eye(size, dtype=bool)]
    ordered = np.arange(graphs * size * (size - 1)).reshape(off_diagonal.shape)
    return size > 1 and np.array_equal(off_diagonal, ordered)


def _segments(graph: jraph.GraphsTuple) -> Segments:
    total = int(np.asarray(graph.n_node).sum())
    return segments_of(np.asarray(graph.senders), np.asarray(graph.receivers), total)


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
    counts = np.bincount(owners, minlength=num_nodes)
    num_rows = -(-counts // ROW)
    first_row = np.cumsum(num_rows) - num_rows
    order = np.argsort(owners, kind="stable")
    rank = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
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
) -> Blocks | Segments | None:
    """Returns the layout of S stacked graphs of one size, whose arrays have a leading axis S.

    Blocks have all N nodes of a sample, padding included. Segments have the sizes of the largest
    sample. `batch_layout` makes the layout of a batch of them.
    """
    kind = chosen_kind(graph, kind)
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    num_nodes = np.shape(node_mask)[1]
    if kind == "none":
        return None
    if kind == "blocks":
        return _stacked_blocks(senders, receivers, np.asarray(node_mask))
    return _stack_segments(
        [segments_of(*pair, num_nodes) for pair in zip(senders, receivers, strict=True)]
    )


def _stacked_blocks(senders: np.ndarray, receivers: np.ndarray, node_mask: np.ndarray) -> Blocks:
    samples, num_edges = senders.shape
    size = node_mask.shape[1]
    edges = np.full((samples, size, size), NOWHERE, np.int32)
    # Edges of padding may repeat: they change no real node.
    edges[np.arange(samples)[:, None], receivers, senders] = np.arange(num_edges)
    first = edges[:1]
    all_complete = is_complete(first) and (edges == first).all()
    return Blocks(None if all_complete else edges, None, None, node_mask, num_edges)


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
