"""The layout of its edges that a graph has among its globals; see `egno_jax.graph.prepare`."""

from __future__ import annotations

from typing import Any

import jraph

from egno_jax.ops.layouts import Layout

KEY = "layout"


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
    """Returns the graph with a layout."""
    return graph._replace(globals={**_globals(graph), KEY: layout})


def without_layout(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the graph without its layout."""
    if not has_layout(graph):
        return graph
    rest = {name: value for name, value in graph.globals.items() if name != KEY}
    return graph._replace(globals=rest or None)


def has_layout(graph: Any) -> bool:
    """Returns whether a graph has a layout."""
    return KEY in _globals(graph)


def _globals(graph: Any) -> dict[str, Any]:
    """Returns the globals of a graph by name; nothing for what is not a graph, checked later."""
    found = getattr(graph, "globals", None)
    return found if isinstance(found, dict) else {}
