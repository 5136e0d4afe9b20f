"""Features of a graph that depend on its state, |v_i| and |x_i - x_j|, by their columns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax import deprecation, ops
from egno_jax.checks import check_array
from egno_jax.graph.edges import shifts_of

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Columns = tuple[int | None, ...]  # in the order of `QUANTITIES`

QUANTITIES = {
    "speed_column": "|v_i|",
    "squared_distance_column": "|x_i - x_j|^2",
    "distance_column": "|x_i - x_j|",
}
"""The features that depend on the state, by the keyword that names their column."""


def accepts_length_column(function: Callable) -> Callable:
    """Accepts 0.1's keywords: `distance_column` was |x_i - x_j|^2, `length_column` |x_i - x_j|."""

    @functools.wraps(function)
    def with_old_names(*args: Any, **columns: Any) -> Any:
        if "length_column" in columns:
            new = "distance_column (|x_i - x_j|) and squared_distance_column (|x_i - x_j|^2)"
            deprecation.warn("length_column", new)
            columns["squared_distance_column"] = columns.pop("distance_column", -1)
            columns["distance_column"] = columns.pop("length_column")
        return function(*args, **columns)

    return with_old_names


@accepts_length_column
def with_state(
    graph: jraph.GraphsTuple,
    positions: Float[Array, "N 3"],
    velocities: Float[Array, "N 3"],
    *,
    speed_column: int | None = 0,
    squared_distance_column: int | None = -1,
    distance_column: int | None = None,
) -> jraph.GraphsTuple:
    """Returns a graph in another state, with the features that depend on it recomputed.

    Args:
      graph: the graph; its edges stay.
      positions: `[N, 3]`.
      velocities: `[N, 3]`.
      speed_column: the node feature that holds |v_i|; None if there is none.
      squared_distance_column: likewise, the edge feature that holds |x_i - x_j|^2; here and below,
        |x_i - x_j + s_ij|^2 in a graph with shifts, which stay.
      distance_column: likewise, the edge feature that holds |x_i - x_j|.

    Raises:
      ValueError: the graph has no such column, or (outside `jit`) it holds something else; or
        positions and velocities are not `[N, 3]`.
    """
    columns = (speed_column, squared_distance_column, distance_column)
    check_columns(graph, *columns)
    sizes = {"N": graph.nodes["positions"].shape[0]}
    for name, array in (("positions", positions), ("velocities", velocities)):
        check_array(name, array, "floating", ("N", 3), sizes)
    return with_columns(moved(graph, positions, velocities), columns)


def check_columns(
    graph: jraph.GraphsTuple,
    speed_column: int | None = 0,
    squared_distance_column: int | None = -1,
    distance_column: int | None = None,
) -> None:
    """Checks that each named feature exists and, outside `jit`, that it has the right values.

    Raises:
      ValueError: a column does not exist, is named twice, or holds something else.
    """
    columns = _checked_columns(graph, (speed_column, squared_distance_column, distance_column))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(graph)):
        return
    with jax.ensure_compile_time_eval():  # a graph that can be read, perhaps inside `jit`
        values = {name: np.asarray(array) for name, array in quantities(graph).items()}
    for name, field, column in columns:
        found = np.asarray(getattr(graph, field)["features"])[:, column].astype(float)
        held = [key for key, array in values.items() if _is_close(found, array)]
        if name not in held:
            remedy = f"{held[0]}={column}" if held else "None if no feature is that"
            raise ValueError(
                f"{name}: got {column}, which holds "
                f"{QUANTITIES[held[0]] if held else 'something else'}, expected "
                f"{QUANTITIES[name]}; use {remedy}"
            )


def _is_close(found: np.ndarray, expected: np.ndarray) -> bool:
    if found.shape != expected.shape:
        return False
    scale = np.nanmax(np.abs(expected), initial=0)
    return np.allclose(found, expected, rtol=1e-2, atol=1e-3 * scale, equal_nan=True)


def quantities(graph: jraph.GraphsTuple) -> dict[str, Array]:
    """Returns the values of `QUANTITIES`: speeds `[N]`, squared distances and distances `[E]`."""
    positions, shifts = jnp.asarray(graph.nodes["positions"]), shifts_of(graph)
    edges = ops.EdgeList(graph.senders, graph.receivers, positions.shape[0])
    shifts = None if shifts is None else jnp.asarray(shifts)
    vectors = ops.displacements(edges, positions[None], shifts)[0]
    speeds = ops.safe_norm(jnp.asarray(graph.nodes["velocities"]))
    values = (speeds, ops.squared_norm(vectors), ops.safe_norm(vectors))
    return {name: value[:, 0] for name, value in zip(QUANTITIES, values, strict=True)}


def _checked_columns(graph: jraph.GraphsTuple, columns: Columns) -> list[tuple[str, str, int]]:
    """Returns the name, the field of the graph and the column of each named feature."""
    found: list[tuple[str, str, int]] = []
    for name, column in zip(QUANTITIES, columns, strict=True):
        field = "nodes" if name == "speed_column" else "edges"
        if column is None or getattr(graph, field) is None:
            continue
        size = getattr(graph, field)["features"].shape[-1]
        if not -size <= column < size:
            raise ValueError(
                f"{name}: got {column}, expected -F <= column < F with F = {size}, the number of "
                "features, or None"
            )
        if (field, column % size) in [(other, taken % size) for _, other, taken in found]:
            raise ValueError(
                f"{name}: got {column}, as {found[-1][0]}, expected another column; the latter is "
                "for |x_i - x_j|^2, the former for |x_i - x_j|"
            )
        found.append((name, field, column))
    return found


def with_columns(graph: jraph.GraphsTuple, columns: Columns) -> jraph.GraphsTuple:
    """Returns a graph with the named features computed from its state."""
    values = quantities(graph)
    for name, field, column in _checked_columns(graph, columns):
        old = getattr(graph, field)
        features = jnp.asarray(old["features"])
        features = features.at[:, column].set(values[name].astype(features.dtype))
        graph = graph._replace(**{field: {**old, "features": features}})
    return graph


def moved(graph: jraph.GraphsTuple, positions: Array, velocities: Array) -> jraph.GraphsTuple:
    """Returns a graph in another state, with its features as they were."""
    nodes = {**graph.nodes, "positions": positions, "velocities": velocities}
    return graph._replace(nodes=nodes)
