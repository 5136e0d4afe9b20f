"""Batches of graphs, and padding to sizes that share compilations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax.checks import as_count, shape_text
from egno_jax.graph.prepare import without_layout
from egno_jax.graph.validation import check_alike, check_indices, check_structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Bool, Int
    from numpy.typing import ArrayLike


def batch(graphs: Sequence[jraph.GraphsTuple]) -> jraph.GraphsTuple:
    """Joins graphs or batches, at least one, in their order into one `GraphsTuple` of NumPy arrays.

    A layout is left out, here and below: call `prepare` last.

    Raises:
      ValueError: as `check_alike`.
    """
    graphs = [without_layout(graph) for graph in graphs]
    check_alike(graphs)
    return with_int32_indices(jraph.batch_np([jax.tree.map(np.array, graph) for graph in graphs]))


def unbatch(graph: jraph.GraphsTuple) -> list[jraph.GraphsTuple]:
    """Splits a batch into its G graphs, padding graphs included; the inverse of `batch`.

    Edges must be in the order of the graphs, as `batch` returns them. The results have NumPy
    arrays, and indices that count from 0.

    Raises:
      ValueError: if the batch is malformed, or its counts and indices disagree.
    """
    graph = without_layout(graph)
    check_structure(graph)
    check_indices(graph)
    # jraph.unbatch_np shifts the indices of its argument in place, so it gets a copy.
    return [with_int32_indices(part) for part in jraph.unbatch_np(jax.tree.map(np.array, graph))]


def with_int32_indices(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Converts indices and counts to int32."""
    fields = ("senders", "receivers", "n_node", "n_edge")
    return graph._replace(**{name: np.asarray(getattr(graph, name), np.int32) for name in fields})


def graph_ids(n_node: Int[Array, "G"], num_nodes: int) -> Int[Array, "N"]:
    """Returns the index of the graph that each node belongs to, int32; works inside `jit`.

    `num_nodes` is N, the sum of `n_node`, as a Python integer.
    """
    n_node = jnp.asarray(n_node, jnp.int32)
    ids = jnp.arange(n_node.shape[0], dtype=jnp.int32)
    return jnp.repeat(ids, n_node, total_repeat_length=num_nodes)


def ladder_size(size: int) -> int:
    """Returns the least of 0, 1, 2, 3, 4, 6, 8, 12, 16, ... (2^k and 3 * 2^k) that holds `size`."""
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

    Padding nodes and edges belong to one extra graph, after which empty graphs may follow. Padding
    edges connect padding nodes only. Default sizes come from `ladder_size`: sizes within a factor r
    become at most 2 log2(r) + 2 sizes, and at most a third of the rows is padding (N > 1, E > 0).
    Pad once: the mask of a graph padded twice counts the first padding as real.

    Args:
      graph: one graph or a batch, not yet padded.
      num_nodes: N after padding; by default `ladder_size(N + 1)`.
      num_edges: E after padding; by default `ladder_size(E)`.
      num_graphs: G after padding; by default `ladder_size(G + 1)`.

    Returns:
      The padded graph of NumPy arrays, and `node_mask` `[N]`, False on padding nodes.

    Raises:
      ValueError: if the graph is malformed, or a size is too small for it.
    """
    graph = without_layout(graph)
    check_structure(graph)
    nodes, edges, graphs = len(graph.nodes["positions"]), len(graph.senders), len(graph.n_node)
    num_edges = ladder_size(edges) if num_edges is None else num_edges
    num_nodes = ladder_size(nodes + 1) if num_nodes is None else num_nodes
    num_graphs = ladder_size(graphs + 1) if num_graphs is None else num_graphs
    num_edges = _pad_size("num_edges", num_edges, edges, "the edges")
    needed = nodes + (num_edges > edges)
    num_nodes = _pad_size("num_nodes", num_nodes, needed, "the nodes and one for padding")
    num_graphs = _pad_size("num_graphs", num_graphs, graphs + 1, "the graphs and one of padding")

    def grown(tree: Any, size: int) -> Any:
        return jax.tree.map(lambda leaf: pad_nodes(leaf, size, axis=0), tree)

    # Self-loops, sorted and spread: sorted receivers stay sorted, and no node collects all edges.
    added = num_edges - edges
    loops = nodes + np.arange(added) * (num_nodes - nodes) // max(added, 1)
    n_node, n_edge = grown((graph.n_node, graph.n_edge), num_graphs)
    n_node[graphs], n_edge[graphs] = num_nodes - nodes, added
    padded = jraph.GraphsTuple(
        nodes=grown(graph.nodes, num_nodes),
        edges=grown(graph.edges, num_edges),
        senders=np.concatenate([graph.senders, loops]),
        receivers=np.concatenate([graph.receivers, loops]),
        n_node=n_node,
        n_edge=n_edge,
        globals=grown(graph.globals, num_graphs),
    )
    return with_int32_indices(padded), np.arange(num_nodes) < nodes


def pad_nodes(array: ArrayLike, num_nodes: int, *, axis: int = -2) -> np.ndarray:
    """Appends zeros along the node axis, for targets `[P, N, 3]` of a padded graph.

    Args:
      array: any array with a node axis.
      num_nodes: N after padding.
      axis: the node axis; by default the last but one, as in `[N, 3]` and `[P, N, 3]`.
    """
    array = np.asarray(array)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(
            f"array: got {shape_text(array)}, expected an axis {axis}; pass the node axis as axis="
        )
    what = f"axis {axis} of the array"
    num_nodes = _pad_size("num_nodes", num_nodes, array.shape[axis], what)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, num_nodes - array.shape[axis])
    return np.pad(array, widths)


def pad_times(times: ArrayLike, num_graphs: int) -> np.ndarray:
    """Repeats the last column of times `[P, G]`, so that the times of padding graphs are valid.

    Times `[P]` fit any number of graphs and need no padding. `num_graphs` is G after padding.
    """
    times = np.asarray(times)
    if times.ndim != 2 or not times.shape[1]:
        raise ValueError(f"times: got {shape_text(times)}, expected [P, G] with G >= 1")
    num_graphs = _pad_size("num_graphs", num_graphs, times.shape[1], "the columns of times")
    return np.pad(times, [(0, 0), (0, num_graphs - times.shape[1])], mode="edge")


def _pad_size(name: str, size: Any, needed: int, what: str) -> int:
    """Returns a size after padding as a Python integer; raises ValueError if it is too small."""
    size = as_count(name, size, 0)
    if size < needed:
        raise ValueError(
            f"{name}: got {size}, expected at least {needed}, for {what}; add {needed - size}"
        )
    return size
