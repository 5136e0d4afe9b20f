"""Rollouts: long trajectories of many windows, each starting from the end of the previous one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import (
    as_count,
    as_window_times,
    check_bound,
    check_positive,
    shape_text,
    type_name,
)
from egno_jax.graph.columns import (
    accepts_length_column,
    check_columns,
    moved,
    quantities,
    with_columns,
    with_state,
)
from egno_jax.model import Params, apply, check_params

if TYPE_CHECKING:
    from jaxtyping import Array, ArrayLike, Bool, Float, Int

    from egno_jax.graph.columns import Columns

__all__ = [
    "OVERFLOW",
    "NextGraph",
    "Rollout",
    "State",
    "check_columns",
    "radius_graph",
    "refresh",
    "rollout",
    "with_state",
]

OVERFLOW = "overflow"


class State(NamedTuple):
    """The end of a window.

    Attributes:
      positions: `[N, 3]`, at the window's last time.
      velocities: `[N, 3]`, as the model predicts them; None if they were not supervised.
      path: `[1 + P, N, 3]`, the window's initial positions, then the predicted ones.
      times: `[1 + P]` or `[1 + P, G]`, the times of the path; the first is 0.
    """

    positions: Float[Array, "N 3"]
    velocities: Float[Array, "N 3"] | None
    path: Float[Array, "T N 3"]
    times: Float[Array, "T *G"]


NextGraph = Callable[[jraph.GraphsTuple, State], jraph.GraphsTuple]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """A long trajectory: W windows of P times.

    Attributes:
      positions: `[W P, N, 3]`.
      velocities: `[W P, N, 3]`, the model's; see `Trajectory.velocities`.
      times: `[W P]` or `[W P, G]`, since the initial state.
      overflow: `[]`, whether a window needed more edges than the graph has room for; from that
        window on the trajectory is wrong.
      first_invalid: `[]`, the first window with a position that is not finite, or a coordinate
        larger than `bound`; W if all are valid.
    """

    positions: Float[Array, "WP N 3"]
    velocities: Float[Array, "WP N 3"]
    times: Float[Array, "WP *G"]
    overflow: Bool[Array, ""]
    first_invalid: Int[Array, ""] | None = None


def rollout(
    params: Params,
    graph: jraph.GraphsTuple,
    times: Float[Array, "P *G"],
    num_windows: int,
    *,
    next_graph: NextGraph | None = None,
    supervised_velocities: bool | None = None,
    bound: float = np.inf,
) -> Rollout:
    """Decodes `num_windows` windows in a row, each from the last state of the previous one.

    Pure; compiles one window for any number of them (`lax.scan`). Memory is that of one window plus
    the trajectory; the gradient stores one graph per window and decodes each window once more.

    Args:
      params: the model.
      graph: the initial state; its globals, if any, are a dictionary, which every window keeps.
      times: the times of a window, increasing and above 0. Window w = 0, 1, ... predicts
        `times + w times[-1]`.
      num_windows: W, at least 1.
      next_graph: called with the graph of a window and the `State` at its end; returns the next
        window's graph, of the same shapes. `refresh` recomputes features, `radius_graph` edges too.
        None replaces only positions and velocities: right if no feature depends on the state.
      supervised_velocities: whether the model was trained on velocities, so that a window can start
        from those it predicts; by default, whether `params.config.velocity_weight` is above 0.
      bound: largest valid size of a coordinate, above 0, for `Rollout.first_invalid`.

    Raises:
      ValueError: an input is invalid; or there is neither a supervised velocity nor a `next_graph`.
    """
    check_params(params)
    num_windows, times = as_count("num_windows", num_windows, 1), _checked_times(times)
    check_bound(bound)
    if supervised_velocities is None:
        supervised_velocities = params.predicts_velocities
    keeps_edges = next_graph is None or getattr(next_graph, "func", None) is _refreshed
    next_graph = _checked_next_graph(next_graph, graph, supervised_velocities)
    graph_lib.check_structure(graph, times)
    layout = graph_lib.layout_of(graph_lib.prepared(graph)) if keeps_edges else None
    graph = _with_flag(jax.tree.map(jnp.asarray, graph))
    times = jnp.asarray(times, jnp.result_type(times, graph.nodes["positions"].dtype))
    from_start = jnp.concatenate([jnp.zeros_like(times[:1]), times])

    def window(graph: jraph.GraphsTuple, _: None) -> tuple[jraph.GraphsTuple, tuple[Array, ...]]:
        state_graph = graph if layout is None else graph_lib.with_layout(graph, layout)
        found = apply(params, state_graph, times)
        start = graph.nodes["positions"][None].astype(found.positions.dtype)
        state = State(
            positions=found.positions[-1],
            velocities=found.velocities[-1] if supervised_velocities else None,
            path=jnp.concatenate([start, found.positions]),
            times=from_start,
        )
        following = _as(graph, _with_flag(next_graph(graph, state)))
        return following, (found.positions, found.velocities, graph.globals[OVERFLOW])

    # No window starts from the last graph, so its overflow does not count.
    _, found = jax.lax.scan(jax.checkpoint(window), graph, length=num_windows)
    return _joined(found, times, bound)


def _joined(found: tuple[Array, ...], times: Float[Array, "P *G"], bound: float) -> Rollout:
    """Joins the positions, velocities and overflow flags of all windows."""
    num_windows = found[0].shape[0]
    starts = jnp.arange(num_windows).reshape(-1, *[1] * times.ndim) * times[-1]
    positions, velocities, all_times = (
        leaf.reshape(-1, *leaf.shape[2:]) for leaf in (*found[:2], starts + times)
    )
    is_valid = jnp.isfinite(found[0]) & (jnp.abs(found[0]) <= bound)
    is_valid = jnp.append(jnp.all(is_valid, axis=(1, 2, 3)), False)
    return Rollout(
        positions,
        velocities,
        all_times,
        overflow=jnp.any(found[2]),
        first_invalid=jnp.argmin(is_valid),
    )


@accepts_length_column
def refresh(
    *,
    velocity_unit: float | None = None,
    speed_column: int | None = 0,
    squared_distance_column: int | None = -1,
    distance_column: int | None = None,
) -> NextGraph:
    """Returns a `next_graph` for graphs whose edges stay and whose features depend on the state.

    The defaults fit the graphs of `egno_jax.datasets`: speeds among the node features, squared
    distances among the edge features. Those of proteins also need `distance_column=0`. Heights
    among the node features (motion capture) are not updated.

    Args:
      velocity_unit: u, the unit of `times` in the velocities' unit of time, for example 0.1 if
        times count frames of 0.1 s and velocities are per second; velocities are then taken from
        the path, (x(t_P) - x(t_{P-1})) / (u (t_P - t_{P-1})). None: those that the model predicts,
        which must have been supervised.
      speed_column: as in `with_state`.
      squared_distance_column: as in `with_state`.
      distance_column: as in `with_state`.
    """
    if velocity_unit is not None:
        check_positive("velocity_unit", velocity_unit)
    columns = (speed_column, squared_distance_column, distance_column)
    return functools.partial(_refreshed, velocity_unit=velocity_unit, columns=columns)


@accepts_length_column
def radius_graph(
    radius: float,
    node_mask: Bool[ArrayLike, "N"],
    *,
    cell: ArrayLike | None = None,
    pbc: ArrayLike = True,
    velocity_unit: float | None = None,
    speed_column: int | None = 0,
    squared_distance_column: int | None = -1,
    distance_column: int | None = None,
    edge_features: Callable[[jraph.GraphsTuple, Array, Array, Array], Array] | None = None,
) -> NextGraph:
    """Returns a `next_graph` that connects the real nodes closer than a radius in each window.

        graph, node_mask = egno_jax.graph.pad(graph, num_edges=capacity)
        next_graph = egno_jax.rolling.radius_graph(radius, node_mask)

    E is the same in all windows, so pad the graph to the capacity that you need; unused edges
    connect the last padding node with itself. If more pairs are close than fit, the last in the
    order of receivers are dropped and `Rollout.overflow` is True. Edges stay within their graph and
    have |r_ij| < radius, as in `egno_jax.graph.radius_edges`: with a cell, every periodic image
    within the radius is an edge. Computes the distances of all N^2 pairs, times the number of
    images that can be within the radius: 1 if every width of the cell is at least two radii.

    Args:
      radius: the cutoff, in the unit of the positions.
      node_mask: `[N]`, False on padding nodes, as `egno_jax.graph.pad` returns it; on the host.
      cell: the periodic cell of all graphs, constant; as in `egno_jax.graph.radius_edges`. The
        graph then has shifts, which are recomputed; positions stay unwrapped.
      pbc: which lattice vectors are periodic; as there.
      velocity_unit: as in `refresh`.
      speed_column: as in `with_state`.
      squared_distance_column: as in `with_state`; not used if there are `edge_features`.
      distance_column: as in `with_state`; not used if there are `edge_features`.
      edge_features: called with the graph, senders, receivers and |r_ij|^2 `[E, 1]`; returns
        `[E, D]`. None if the edge features are only distances, squared or not.

    Raises:
      ValueError: the radius is not a finite number above 0, or `node_mask` has no padding node.
    """
    check_positive("radius", radius)
    if velocity_unit is not None:
        check_positive("velocity_unit", velocity_unit)
    if edge_features is not None:
        squared_distance_column = distance_column = None
    return functools.partial(
        _reconnected,
        velocity_unit=velocity_unit,
        columns=(speed_column, squared_distance_column, distance_column),
        radius=radius,
        images=None if cell is None or not np.any(pbc) else _Images.within(radius, cell, pbc),
        is_real=_checked_mask(node_mask),
        edge_features=edge_features,
    )


def _checked_mask(node_mask: Bool[ArrayLike, "N"]) -> Bool[np.ndarray, "N"]:
    mask = np.asarray(node_mask)
    if mask.ndim != 1 or mask.dtype != bool or mask.all():
        raise ValueError(
            f"node_mask: got {mask.dtype} {shape_text(mask)} with {np.sum(mask == 0)} padding "
            "nodes, expected bool [N] with at least one, for unused edges; use egno_jax.graph.pad"
        )
    return mask


class _Images(NamedTuple):
    """The periodic images that can be within a radius.

    Attributes:
      cell: `[3, 3]`, the lattice vectors.
      to_fractions: `[3, 3]`, `x @ to_fractions` are coordinates in lattice vectors, 0 along those
        that are not periodic.
      shifts: `[M, 3]`, Cartesian, of the images around the one that rounding finds.
    """

    cell: Float[np.ndarray, "3 3"]
    to_fractions: Float[np.ndarray, "3 3"]
    shifts: Float[np.ndarray, "M 3"]

    @classmethod
    def within(cls, radius: float, cell: ArrayLike, pbc: ArrayLike) -> _Images:
        """Returns the images of a cell.

        After rounding, a coordinate f is within 1/2, and |f + m| times the width of the cell is at
        most the distance: |m| < radius / width + 1/2.
        """
        cell, periodic = graph_lib.periodic_cell(cell, pbc)
        inverse = np.linalg.inv(cell) * periodic
        widths = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        most = np.where(periodic, np.ceil(radius / widths + 0.5) - 1, 0).astype(int)
        numbers = itertools.product(*(range(-k, k + 1) for k in most))
        return cls(cell, inverse, np.array(list(numbers)) @ cell)

    def between(self, positions: Float[Array, "N 3"]) -> Float[Array, "N N M 3"]:
        """Returns the shift of each image of each pair, receiver first."""
        dtype = positions.dtype
        cell, to_fractions, shifts = (jnp.asarray(x, dtype) for x in self)
        exact = jax.lax.Precision.HIGHEST
        vectors = positions[:, None] - positions
        numbers = jnp.rint(jnp.matmul(vectors, to_fractions, precision=exact))
        return shifts - jnp.matmul(numbers, cell, precision=exact)[:, :, None]


def _refreshed(
    graph: jraph.GraphsTuple, state: State, *, velocity_unit: float | None, columns: Columns
) -> jraph.GraphsTuple:
    """The `next_graph` of `refresh`."""
    velocities = state.velocities
    if velocity_unit is not None:
        spacing = (state.times[-1] - state.times[-2]) * velocity_unit
        if spacing.ndim:
            graph_ids = graph_lib.graph_ids(graph.n_node, state.positions.shape[0])
            spacing = jnp.take(spacing, graph_ids, mode="clip")[:, None]
        velocities = (state.path[-1] - state.path[-2]) / spacing
    elif velocities is None:
        raise ValueError(
            "velocity_unit: got None, expected a number, as the model's velocities were not "
            "supervised; pass one to take velocities from the predicted positions"
        )
    return with_columns(moved(graph, state.positions, velocities), columns)


def _reconnected(
    graph: jraph.GraphsTuple,
    state: State,
    *,
    velocity_unit: float | None,
    columns: Columns,
    radius: float,
    images: _Images | None,
    is_real: Bool[np.ndarray, "N"],
    edge_features: Callable | None,
) -> jraph.GraphsTuple:
    """The `next_graph` of `radius_graph`."""
    positions, capacity = state.positions, graph.senders.shape[0]
    num_nodes = positions.shape[0]
    if num_nodes != is_real.size:
        raise ValueError(
            f"node_mask: got {is_real.size} nodes, expected {num_nodes}, as the graph has"
        )
    if (graph_lib.shifts_of(graph) is None) != (images is None):
        has, needs = ("no shifts", "None") if images else ("shifts", "the periodic cell")
        raise ValueError(
            f"cell: got {'a cell' if images else None}, expected {needs}, as the graph has {has}; "
            "use the cell of egno_jax.graph.radius_edges"
        )
    graph_ids = graph_lib.graph_ids(graph.n_node, num_nodes)
    vectors = (positions[:, None] - positions)[:, :, None]
    shifts = jnp.zeros((1, 1, 1, 3), positions.dtype)
    if images is not None:
        shifts = images.between(positions)
    # A node is no neighbour of itself, but its periodic images are.
    is_itself = np.eye(num_nodes, dtype=bool)[..., None] & ~jnp.any(shifts, axis=-1)
    is_near = (jnp.sum((vectors + shifts) ** 2, axis=-1) < radius**2) & ~is_itself
    is_near &= (is_real[:, None] & is_real & (graph_ids[:, None] == graph_ids))[..., None]
    spare_node = int(np.flatnonzero(~is_real)[-1])
    fill = (spare_node, spare_node, 0)
    receivers, senders, image = jnp.nonzero(is_near, size=capacity, fill_value=fill)
    flags = {OVERFLOW: jnp.broadcast_to(jnp.sum(is_near) > capacity, graph.n_node.shape)}
    if images is not None:
        of_edges = shifts[receivers, senders, image] * (receivers != spare_node)[:, None]
        graph = graph._replace(edges={**graph.edges, "shifts": of_edges})
    graph = graph._replace(
        senders=senders,
        receivers=receivers,
        n_edge=jnp.zeros_like(graph.n_edge).at[graph_ids[receivers]].add(1),
        globals={**graph_lib.named_globals(graph), **flags},
    )
    graph = _refreshed(graph, state, velocity_unit=velocity_unit, columns=columns)
    if edge_features is not None:
        squares = quantities(graph)["squared_distance_column"][:, None]
        features = edge_features(graph, senders, receivers, squares)
        return graph._replace(edges={**(graph.edges or {}), "features": features})
    size = 0 if graph.edges is None else graph.edges["features"].shape[-1]
    if size > 2 - columns[1:].count(None):
        raise ValueError(
            f"edge_features: got None, expected a function that returns all D = {size} edge "
            "features; squared_distance_column and distance_column do not name all of them"
        )
    return graph


def _checked_times(times: Any) -> Any:
    times = graph_lib.as_times(times)
    if times is None or jnp.ndim(times) not in (1, 2):
        raise ValueError(f"times: got {type_name(times)}, expected an array [P] or [P, G]")
    if not isinstance(times, jax.core.Tracer):
        as_window_times(times, num_axes=jnp.ndim(times))
    return times


def _checked_next_graph(
    next_graph: NextGraph | None, graph: jraph.GraphsTuple, supervised_velocities: bool
) -> NextGraph:
    if next_graph is None and not supervised_velocities:
        raise ValueError(
            "next_graph: got None, expected one that supplies velocities, as those of the model "
            "were not supervised; use refresh(velocity_unit=...), or train with a velocity_weight"
        )
    if getattr(next_graph, "func", None) in (_refreshed, _reconnected):
        check_columns(graph, *next_graph.keywords["columns"])
        _check_mask(next_graph.keywords.get("is_real"), graph)
    elif next_graph in (refresh, radius_graph):
        name = next_graph.__name__
        raise ValueError(f"next_graph: got {name} itself, expected its result; call {name}(...)")
    return next_graph or (lambda graph, state: moved(graph, state.positions, state.velocities))


def _check_mask(is_real: np.ndarray | None, graph: jraph.GraphsTuple) -> None:
    """Raises a ValueError if a mask of `radius_graph` leaves out nodes that have edges."""
    if is_real is None or not graph_lib.is_readable(graph):
        return
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    ends = np.stack([senders, receivers])[:, senders != receivers]
    if ends.size and ends.max() < is_real.size and not is_real[ends].all():
        raise ValueError(
            f"node_mask: got padding at node {ends[~is_real[ends]][0]}, which has edges, expected "
            "False on padding nodes; pass the mask of egno_jax.graph.pad as it is"
        )


def _with_flag(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the graph with an overflow flag for each graph among its globals, and no layout."""
    graph = graph_lib.without_layout(graph)
    found = graph_lib.named_globals(graph)
    flag = found.get(OVERFLOW, jnp.zeros(graph.n_node.shape, bool))
    return graph._replace(globals={**found, OVERFLOW: jnp.asarray(flag)})


def _as(before: jraph.GraphsTuple, after: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the next graph in the dtypes of the previous one, after checking its shapes."""
    found, expected = (
        {jax.tree_util.keystr(path): list(leaf.shape) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (after, before))
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"next_graph: got graph{name} of shape {found.get(name)}, expected "
                f"{expected.get(name)}, that of the previous window"
            )
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, before)
