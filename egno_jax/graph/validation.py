"""Checks of graphs: of structure (also inside `jit`), and of values (on the host)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax.checks import as_jax_sees, check_array, check_finite, shape_text, type_name
from egno_jax.graph.edges import shifts_of
from egno_jax.graph.prepare import without_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array

_NODE_KEYS = ("positions", "velocities", "features")


def as_times(times: Any) -> Array | None:
    """Converts times in a list or tuple to an array; returns anything else unchanged.

    Raises:
      ValueError: they are not an array of numbers, or integers that JAX would wrap around.
    """
    _check_integers_fit(times)
    if not isinstance(times, list | tuple):
        return times
    try:
        return jnp.asarray(times)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"times: got a {type(times).__name__} that is not an array ({error}), expected numbers "
            "[P] or [P, G]"
        ) from error


def _check_integers_fit(times: Any) -> None:
    """Raises ValueError if integers on the host are too large for JAX: int32 without x64 mode."""
    for leaf in jax.tree.leaves(times):
        if not isinstance(leaf, int | np.integer | np.ndarray):
            continue
        found = np.asarray(leaf)
        is_integer = np.issubdtype(found.dtype, np.integer)
        for value in found[as_jax_sees(found) != found].tolist() if is_integer else ():
            raise ValueError(
                f"times: got {value}, expected integers that fit int32, without x64 mode; give "
                "floating-point times, or a larger unit of time"
            )


def check_structure(graph: jraph.GraphsTuple, times: Array | None = None) -> None:
    """Checks a graph's types, keys, shapes and dtypes; also inside `jit`, as it reads no values.

    `times` are `[P]` or `[P, G]`, an array or a list; None: only the graph is checked.

    Raises:
      ValueError: if a field is not as the module `egno_jax.graph` describes it.
    """
    sizes = _check_graph_structure(graph, ())
    if times is not None:
        times = as_times(times)
        axes = ("P", "G") if len(getattr(times, "shape", ())) == 2 else ("P",)
        check_array("times", times, "integer or floating", axes, sizes)
        if sizes["P"] == 0:
            raise ValueError("times: got P = 0, expected at least one time to predict")


def check_stacked_structure(graph: jraph.GraphsTuple) -> None:
    """Checks S stacked graphs of one size: as `check_structure`, with a leading axis S."""
    _check_graph_structure(graph, ("S",))


def check_alike(graphs: Sequence[jraph.GraphsTuple]) -> None:
    """Checks graphs of one batch: the structure of each, and that all have the same arrays.

    Raises:
      ValueError: if there is no graph, if one is malformed, or if its keys or feature sizes differ
        from those of the first; names its index.
    """
    if not graphs:
        raise ValueError("graphs: got none, expected at least one graph")
    for index, graph in enumerate(graphs):
        try:
            check_structure(graph)
        except ValueError as error:
            raise ValueError(f"graphs[{index}]: {error}") from None
        _check_same_arrays(graph, graphs[0], index)


def _check_graph_structure(graph: Any, leading: tuple[str, ...]) -> dict[str, int]:
    """Checks a graph whose arrays have these axes first; returns sizes by letter."""
    if not isinstance(graph, jraph.GraphsTuple):
        raise ValueError(
            f"graph: got {type_name(graph)}, expected a jraph.GraphsTuple; make one with "
            "egno_jax.graph.build"
        )
    sizes: dict[str, int] = {}

    def check(name: str, array: Any, kind: str, *shape: str | int) -> None:
        check_array(f"graph.{name}", array, kind, (*leading, *shape), sizes)

    check("n_node", graph.n_node, "integer", "G")
    check("n_edge", graph.n_edge, "integer", "G")
    if sizes["G"] == 0:
        raise ValueError("graph.n_node: got length 0, expected at least one graph")
    _check_keys("graph.nodes", graph.nodes, _NODE_KEYS)
    for name, size in zip(_NODE_KEYS, (3, 3, "F"), strict=True):
        check(f"nodes[{name!r}]", graph.nodes[name], "floating", "N", size)
    if "vectors" in graph.nodes:
        check("nodes['vectors']", graph.nodes["vectors"], "floating", "N", "V", 3)
    check("senders", graph.senders, "integer", "E")
    check("receivers", graph.receivers, "integer", "E")
    if graph.edges is not None:
        _check_keys("graph.edges", graph.edges, ("features",), "None or ")
        check("edges['features']", graph.edges["features"], "floating", "E", "D")
        if (shifts := shifts_of(graph)) is not None:
            check("edges['shifts']", shifts, "floating", "E", 3)
    for field, letter in (("nodes", "N"), ("edges", "E"), ("globals", "G")):
        tree = getattr(without_layout(graph), field)  # a layout has other axes
        _check_lengths(field, tree, (*leading, letter), sizes)
    return sizes


def _check_keys(name: str, mapping: Any, keys: Sequence[str], otherwise: str = "") -> None:
    """Checks that a dictionary has the keys; others are allowed."""
    wanted = f"expected {otherwise}a dictionary of arrays with the keys {list(keys)}"
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{name}: got {type_name(mapping)}, {wanted}")
    if missing := [key for key in keys if key not in mapping]:
        raise ValueError(f"{name}: got the keys {sorted(mapping)}, {wanted}; add {missing}")


def _check_lengths(field: str, tree: Any, letters: tuple[str, ...], sizes: dict[str, int]) -> None:
    """Checks the leading axes of every leaf, including those that the model does not use."""
    expected = tuple(sizes[letter] for letter in letters)
    known = ", ".join(f"{letter} = {sizes[letter]}" for letter in letters)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.shape(leaf)[: len(expected)] != expected:
            raise ValueError(
                f"graph.{field}{jax.tree_util.keystr(path)}: got {shape_text(leaf)}, expected "
                f"[{', '.join(letters)}, ...] with {known}"
            )


def _check_same_arrays(graph: jraph.GraphsTuple, first: jraph.GraphsTuple, index: int) -> None:
    """Checks that a graph of a batch has the arrays of the first, with the same trailing sizes."""
    came, expected = _trailing_shapes(graph), _trailing_shapes(first)
    for name in sorted(came.keys() | expected.keys()):
        if came.get(name) != expected.get(name):
            raise ValueError(
                f"graphs[{index}].{name}: got {came.get(name, 'no array')}, expected "
                f"{expected.get(name, 'no array')}, as in graphs[0] after the leading axis; give "
                "all graphs of a batch the same arrays"
            )


def _trailing_shapes(graph: jraph.GraphsTuple) -> dict[str, list[int]]:
    """Returns the shape after the leading axis of every array of nodes, edges and globals."""
    return {
        f"{field}{jax.tree_util.keystr(path)}": list(np.shape(leaf)[1:])
        for field in ("nodes", "edges", "globals")
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(graph, field))
    }


def validate(graph: jraph.GraphsTuple, times: Array | None = None) -> None:
    """Checks a graph in full, values included; reads them on the host, so not inside `jit`.

    Raises:
      ValueError: as `check_structure`, and for NaN or infinite values, indices out of range or
        crossing between graphs, counts that do not add up, and times that do not increase strictly;
        names the field and the first bad place.
    """
    times = as_times(times)
    check_structure(graph, times)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((graph, times))):
        raise ValueError("graph: got tracers, expected values; call validate outside jit")
    for name in (*_NODE_KEYS, *(["vectors"] if "vectors" in graph.nodes else [])):
        check_finite(f"graph.nodes[{name!r}]", graph.nodes[name])
    if graph.edges is not None:
        for name in ("features", "shifts"):
            if name in graph.edges:
                check_finite(f"graph.edges[{name!r}]", graph.edges[name])
    check_indices(graph)
    if times is not None:
        check_finite("times", times)
        _check_increasing(as_jax_sees(times))


def check_indices(graph: jraph.GraphsTuple) -> None:
    """Checks that counts add up and that edges stay within their graphs."""
    num_nodes = len(graph.nodes["positions"])
    _check_counts("graph.n_node", graph.n_node, num_nodes, "nodes")
    _check_counts("graph.n_edge", graph.n_edge, len(graph.senders), "edges")
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    for name, indices in (("senders", senders), ("receivers", receivers)):
        for edge in _first((indices < 0) | (indices >= num_nodes)):
            raise ValueError(
                f"graph.{name}[{edge}]: got {indices[edge]}, expected a node, 0 to {num_nodes - 1}"
            )
    ids = np.repeat(np.arange(len(graph.n_node)), np.asarray(graph.n_node))
    owners = np.repeat(np.arange(len(graph.n_edge)), np.asarray(graph.n_edge))
    for edge in _first(ids[senders] != ids[receivers]):
        raise ValueError(
            f"graph.senders[{edge}]: got node {senders[edge]} of graph {ids[senders[edge]]}, "
            f"expected one of graph {ids[receivers[edge]]}, as graph.receivers[{edge}] is node "
            f"{receivers[edge]}; join graphs with egno_jax.graph.batch, which shifts indices"
        )
    for edge in _first(ids[receivers] != owners):
        raise ValueError(
            f"graph.n_edge: got edge {edge} in graph {owners[edge]}, expected it in graph "
            f"{ids[receivers[edge]]}, as its nodes are; sort edges by graph and count them again"
        )


def _first(is_bad: np.ndarray) -> list[int]:
    """Returns the first index that is True, or nothing."""
    return np.flatnonzero(is_bad)[:1].tolist()


def _check_counts(name: str, counts: Any, total: int, what: str) -> None:
    """Checks that the counts of a batch are not negative and sum to its size."""
    counts = np.asarray(counts)
    for index in _first(counts < 0):
        raise ValueError(f"{name}[{index}]: got {counts[index]}, expected 0 or more")
    if counts.sum() != total:
        raise ValueError(
            f"{name}: got a sum of {counts.sum()}, expected {total}, the {what} of the graph; "
            f"count the {what} of each graph, padding included"
        )


def _check_increasing(times: np.ndarray) -> None:
    """Checks that times increase strictly along P."""
    bad = np.argwhere(times[1:] <= times[:-1])
    if bad.size:
        later, *column = bad[0].tolist()
        first, second = [later, *column], [later + 1, *column]
        raise ValueError(
            f"times: got times{first} = {times[tuple(first)]} and times{second} = "
            f"{times[tuple(second)]} (as {times.dtype}), expected times that increase strictly "
            "along P; sort them and remove duplicates"
        )
