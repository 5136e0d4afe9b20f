"""From your own graphs and targets to `Samples`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jraph
import numpy as np
from numpy.typing import ArrayLike

from egno_jax import graph as graph_lib
from egno_jax.checks import as_jax_sees, check_array
from egno_jax.datasets.base import Samples
from egno_jax.datasets.buckets import size_of_all


def stack(
    graphs: Sequence[jraph.GraphsTuple],
    times: ArrayLike,
    positions: ArrayLike | Sequence[ArrayLike],
    velocities: ArrayLike | Sequence[ArrayLike] | None = None,
    node_mask: ArrayLike | Sequence[ArrayLike] | None = None,
) -> Samples:
    """Makes samples of graphs and their targets, for `egno_jax.training.fit`.

    Graphs of different sizes are padded to one size (`egno_jax.graph.pad`). If that is much
    padding, pass parts of one graph each to `bucketed`: `[stack([graph], times, [target]), ...]`.

    Args:
      graphs: the initial states, S graphs with the same arrays, see `egno_jax.graph.build`.
      times: `[P]`, increasing, from the initial state to the targets; the same for all graphs.
      positions: targets `[S, P, N, 3]`, or S arrays `[P, N_s, 3]`.
      velocities: likewise; None if unknown, and then a model can be trained on positions alone.
      node_mask: which nodes count in losses and metrics: `[S, N]`, or S arrays `[N_s]`; None: all.

    Returns:
      Samples of NumPy arrays; real numbers in the dtype that JAX gives them.

    Raises:
      ValueError: there are no graphs, or arrays do not match; names the field and the sample.
    """
    graphs = [graph_lib.without_layout(graph) for graph in graphs]
    graph_lib.check_alike(graphs)
    times = _canonical("times", times)
    check_array("times", times, "integer or floating", ("P",), {})
    counts = [len(graph.nodes["positions"]) for graph in graphs]
    graphs = _of_one_size(
        [jax.tree.map(lambda leaf: _canonical("graphs", leaf), graph) for graph in graphs]
    )
    num_nodes = len(graphs[0].nodes["positions"])

    def stacked(name: str, arrays: Any, kind: str, *shape: str | int) -> np.ndarray:
        arrays = _of_each(name, arrays, len(graphs))
        for index, (array, count) in enumerate(zip(arrays, counts, strict=True)):
            check_array(f"{name}[{index}]", array, kind, shape, {"P": len(times), "N": count})
        axis = shape.index("N")
        return np.stack([graph_lib.pad_nodes(array, num_nodes, axis=axis) for array in arrays])

    if node_mask is None:
        node_mask = [np.ones(count, bool) for count in counts]
    return Samples(
        graph=jax.tree.map(lambda *leaves: np.stack(leaves), *graphs),
        times=times,
        positions=stacked("positions", positions, "floating", "P", "N", 3),
        velocities=None
        if velocities is None
        else stacked("velocities", velocities, "floating", "P", "N", 3),
        node_mask=stacked("node_mask", node_mask, "boolean", "N"),
    )


def _of_one_size(graphs: list[jraph.GraphsTuple]) -> list[jraph.GraphsTuple]:
    """Pads graphs to one size, unless they have one already."""
    sizes = {
        (len(graph.nodes["positions"]), len(graph.senders), len(graph.n_node)) for graph in graphs
    }
    if len(sizes) == 1:
        return graphs
    num_nodes, num_edges = size_of_all([size[:2] for size in sizes])
    num_graphs = max(size[2] for size in sizes) + 1
    return [
        graph_lib.pad(graph, num_nodes=num_nodes, num_edges=num_edges, num_graphs=num_graphs)[0]
        for graph in graphs
    ]


def _of_each(name: str, arrays: Any, num_graphs: int) -> list[np.ndarray]:
    """Returns the array of each graph."""
    if not hasattr(arrays, "__len__") or len(arrays) != num_graphs:
        got = len(arrays) if hasattr(arrays, "__len__") else type(arrays).__name__
        raise ValueError(f"{name}: got {got}, expected {num_graphs} arrays, one for each graph")
    return [_canonical(f"{name}[{index}]", array) for index, array in enumerate(arrays)]


def _canonical(name: str, array: Any) -> np.ndarray:
    """Returns an array on the host, in the dtype that JAX would give it."""
    try:
        return as_jax_sees(array)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}, expected an array of numbers") from error
