"""Rolling out: windows chained, each starting from the state that the one before it ended in."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax import ops
from egno_jax.model import Params, apply, check_params

if TYPE_CHECKING:
    from jaxtyping import Array, ArrayLike, Bool, Float, Int

OVERFLOW = "overflow"


class State(NamedTuple):
    """What a window ended in.

    Attributes:
      positions: `[N, 3]`, at the window's last time.
      velocities: `[N, 3]`, as the model predicts them; None if they were not supervised.
      path: `[1 + P, N, 3]`, the window's first state and what was predicted from it.
      times: `[1 + P]` or `[1 + P, G]`, the times of the path, the first is 0.
    """

    positions: Float[Array, "N 3"]
    velocities: Float[Array, "N 3"] | None
    path: Float[Array, "T N 3"]
    times: Float[Array, "T"] | Float[Array, "T G"]


NextGraph = Callable[[jraph.GraphsTuple, State], jraph.GraphsTuple]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """A long trajectory, W windows of P times.

    Attributes:
      positions: `[W P, N, 3]`.
      velocities: `[W P, N, 3]`, the model's; see `Trajectory.velocities`.
      times: `[W P]` or `[W P, G]`, after the given state.
      overflow: `[]`, whether the graph of some window was to have more edges than its capacity;
        the trajectory from that window on is then wrong.
    """

    positions: Float[Array, "WP N 3"]
    velocities: Float[Array, "WP N 3"]
    times: Float[Array, "WP"] | Float[Array, "WP G"]
    overflow: Bool[Array, ""]


def rollout(
    params: Params,
    graph: jraph.GraphsTuple,
    times: Float[Array, "P"] | Float[Array, "P G"],
    num_windows: int,
    *,
    next_graph: NextGraph | None = None,
) -> Rollout:
    """Decodes `num_windows` windows in a row, each from the last state of the one before.

    Pure, compiled once whatever the number of windows (`lax.scan`). Beside the trajectory that it
    returns it needs the memory of one window; its gradient stores one graph a window and decodes
    each window once more.

    Args:
      params: the model.
      graph: the state to start from.
      times: the times of a window after its state, above 0. Window w = 0, 1, ... answers for
        `times + w times[-1]`.
      num_windows: W, at least 1.
      next_graph: takes the graph of a window and the `State` that it ended in, and returns the next
        window's graph, of the same shapes: `refresh` renews features, `radius_graph` edges too.
        None moves positions and velocities alone, which is right where features and edges do not
        depend on the state.

    Returns:
      The trajectory.

    Raises:
      ValueError: an input is wrong; or the velocities of the model were not supervised
        (`config.velocity_weight` is 0), and no `next_graph` supplies others.
    """
    check_params(params)
    num_windows = _count(num_windows)
    times = graph_lib.as_times(times)
    if times is None or jnp.ndim(times) not in (1, 2):
        raise ValueError("times: expected an array [P] or [P, G]")
    if not isinstance(times, jax.core.Tracer) and np.min(np.asarray(times)) <= 0:
        raise ValueError(
            f"times: got {np.min(np.asarray(times))}, expected times above 0: the windows of a "
            "rollout begin with their state"
        )
    is_supervised = params.config.velocity_weight > 0
    if next_graph is None:
        if not is_supervised:
            raise ValueError(
                "next_graph: got None, but the model's velocities were not supervised "
                "(config.velocity_weight is 0), so that no window has velocities to start from; "
                "train with a velocity_weight, or pass a next_graph that supplies them, such as "
                "refresh(velocity_unit=...)"
            )
        next_graph = _move
    graph_lib.check_structure(graph, times)
    graph = _with_flag(jax.tree.map(jnp.asarray, graph))
    times = jnp.asarray(times, jnp.result_type(times, graph.nodes["positions"].dtype))
    from_start = jnp.concatenate([jnp.zeros_like(times[:1]), times])

    def window(
        graph: jraph.GraphsTuple, _: None
    ) -> tuple[
        jraph.GraphsTuple, tuple[Float[Array, "P N 3"], Float[Array, "P N 3"], Bool[Array, "G"]]
    ]:
        found = apply(params, graph, times)
        start = graph.nodes["positions"][None].astype(found.positions.dtype)
        state = State(
            positions=found.positions[-1],
            velocities=found.velocities[-1] if is_supervised else None,
            path=jnp.concatenate([start, found.positions]),
            times=from_start,
        )
        following = _as(graph, _with_flag(next_graph(graph, state)))
        return following, (found.positions, found.velocities, graph.globals[OVERFLOW])

    # The last of the graphs starts no window, so what it is does not count.
    _, found = jax.lax.scan(jax.checkpoint(window), graph, length=num_windows)
    positions, velocities, overflow = found
    starts = jnp.arange(num_windows).reshape(-1, *[1] * times.ndim) * times[-1]
    return Rollout(
        positions=_join(positions),
        velocities=_join(velocities),
        times=_join(starts + times),
        overflow=jnp.any(overflow),
    )


def refresh(
    *,
    velocity_unit: float | None = None,
    speed_column: int | None = 0,
    distance_column: int | None = -1,
    length_column: int | None = None,
) -> NextGraph:
    """Makes a `next_graph` for graphs whose edges stay and whose features follow the state.

    That is those of `egno_jax.datasets`, 5-body, motion capture without heights, molecules on
    bonds: |v_i| among the node features and |x_i - x_j|^2 among the edge features. Those of
    proteins hold |x_i - x_j| too, `length_column=0`. A height among the node features is not
    renewed.

    Args:
      velocity_unit: u, the unit of `times` in the velocities' unit of time, such as 0.1 where times
        count frames of 0.1 s and velocities are per second; velocities are then taken from the
        path, (x(t_P) - x(t_{P-1})) / (u (t_P - t_{P-1})). None: the model's, which must have been
        supervised.
      speed_column: the node feature that holds |v_i|; None if there is none.
      distance_column: the edge feature that holds |x_i - x_j|^2; None if there is none.
      length_column: the edge feature that holds |x_i - x_j|; None if there is none.

    Returns:
      The function. It raises a ValueError if the graph has no such column.
    """

    def next_graph(graph: jraph.GraphsTuple, state: State) -> jraph.GraphsTuple:
        velocities = _velocities(graph, state, velocity_unit)
        return with_state(
            graph,
            state.positions,
            velocities,
            speed_column=speed_column,
            distance_column=distance_column,
            length_column=length_column,
        )

    return next_graph


def with_state(
    graph: jraph.GraphsTuple,
    positions: Float[Array, "N 3"],
    velocities: Float[Array, "N 3"],
    *,
    speed_column: int | None = 0,
    distance_column: int | None = -1,
    length_column: int | None = None,
) -> jraph.GraphsTuple:
    """Returns a graph in another state, with the features renewed that follow the state.

    Args:
      graph: the graph; its edges stay.
      positions: `[N, 3]`.
      velocities: `[N, 3]`.
      speed_column: the node feature that holds |v_i|; None if there is none.
      distance_column: the edge feature that holds |x_i - x_j|^2; None if there is none.
      length_column: the edge feature that holds |x_i - x_j|; None if there is none.

    Raises:
      ValueError: the graph has no such column; names it.
    """
    nodes = {**graph.nodes, "positions": positions, "velocities": velocities}
    if speed_column is not None:
        speeds = ops.safe_norm(velocities)
        nodes["features"] = _with_column(nodes["features"], "speed_column", speed_column, speeds)
    edges = graph.edges
    if edges is not None:
        features = edges["features"]
        offsets = _offsets(positions, graph.senders, graph.receivers)
        for name, column, norm in (
            ("distance_column", distance_column, ops.squared_norm),
            ("length_column", length_column, ops.safe_norm),
        ):
            if column is not None:
                features = _with_column(features, name, column, norm(offsets))
        edges = {**edges, "features": features}
    return graph._replace(nodes=nodes, edges=edges)


def radius_graph(
    radius: float,
    node_mask: Bool[ArrayLike, "N"],
    *,
    velocity_unit: float | None = None,
    speed_column: int | None = 0,
    edge_features: Callable[[jraph.GraphsTuple, Array, Array, Array], Array] | None = None,
) -> NextGraph:
    """Makes a `next_graph` that joins real nodes closer than a radius, anew in each window.

        graph, node_mask = egno_jax.graph.pad(graph, num_edges=capacity)
        next_graph = egno_jax.rolling.radius_graph(radius, node_mask)

    The number of edges that the graph has room for is its capacity: E must be the same in all
    windows, so the given graph is padded to it, and the last padding node takes the edges that are
    left over. Where more nodes are near than that, the last in the order of receivers fall out and
    `Rollout.overflow` is True. Nodes are joined within their graph, |x_i - x_j| < radius as in
    `egno_jax.graph.radius_edges`. Every pair of nodes is looked at: N^2 distances.

    Args:
      radius: the cutoff, in the unit of the positions.
      node_mask: `[N]`, False on padding nodes, as `egno_jax.graph.pad` returns it; on the host.
      velocity_unit: as in `refresh`.
      speed_column: as in `refresh`.
      edge_features: takes the graph, senders, receivers and |x_i - x_j|^2 `[E, 1]` and returns
        `[E, D]`; None: the squared distances alone, D = 1.

    Returns:
      The function.

    Raises:
      ValueError: the radius is not above 0, or the mask is none or has no padding node. The
        function raises one if the mask is not of as many nodes as the graph has.
    """
    if not radius > 0:
        raise ValueError(f"radius: got {radius}, expected a number above 0")
    is_real = _real_nodes(node_mask)
    spare_node = int(np.flatnonzero(~is_real)[-1])
    refreshed = refresh(
        velocity_unit=velocity_unit, speed_column=speed_column, distance_column=None
    )

    def next_graph(graph: jraph.GraphsTuple, state: State) -> jraph.GraphsTuple:
        graph = refreshed(graph, state)
        positions, capacity = state.positions, graph.senders.shape[0]
        num_nodes = positions.shape[0]
        if num_nodes != is_real.size:
            raise ValueError(
                f"node_mask: got {is_real.size} nodes, expected {num_nodes}, those of the graph"
            )
        graph_ids = graph_lib.graph_ids(graph.n_node, num_nodes)
        difference = positions[:, None] - positions[None]
        is_near = jnp.sum(difference**2, axis=-1) < radius**2
        is_pair = is_real[:, None] & is_real & ~np.eye(num_nodes, dtype=bool)
        is_near &= is_pair & (graph_ids[:, None] == graph_ids)
        receivers, senders = jnp.nonzero(is_near, size=capacity, fill_value=spare_node)
        squares = ops.squared_norm(_offsets(positions, senders, receivers))
        features = squares
        if edge_features is not None:
            features = edge_features(graph, senders, receivers, squares)
        num_edges = jnp.zeros_like(graph.n_edge).at[graph_ids[receivers]].add(1)
        return graph._replace(
            edges={"features": features},
            senders=senders,
            receivers=receivers,
            n_edge=num_edges,
            globals={OVERFLOW: jnp.broadcast_to(jnp.sum(is_near) > capacity, graph.n_node.shape)},
        )

    return next_graph


def _real_nodes(node_mask: Bool[ArrayLike, "N"]) -> Bool[np.ndarray, "N"]:
    """Returns the mask on the host, after checking that it has a padding node."""
    mask = np.asarray(node_mask)
    if mask.ndim != 1 or mask.dtype != bool:
        raise ValueError(
            f"node_mask: got {mask.dtype} of shape {list(mask.shape)}, expected bool [N], the mask "
            "that egno_jax.graph.pad returns"
        )
    if mask.all():
        raise ValueError(
            f"node_mask: got {mask.size} nodes, all of them real, expected a padding node, which "
            "takes the edges that are left over; egno_jax.graph.pad adds one and returns the mask"
        )
    return mask


def _count(num_windows: Any) -> int:
    """Returns a Python integer for an integer of any library."""
    try:
        count = operator.index(num_windows)
    except TypeError:
        count = 0
    if count < 1 or isinstance(num_windows, bool):
        raise ValueError(f"num_windows: got {num_windows!r}, expected an integer >= 1")
    return count


def _move(graph: jraph.GraphsTuple, state: State) -> jraph.GraphsTuple:
    nodes = {**graph.nodes, "positions": state.positions, "velocities": state.velocities}
    return graph._replace(nodes=nodes)


def _velocities(
    graph: jraph.GraphsTuple, state: State, velocity_unit: float | None
) -> Float[Array, "N 3"]:
    if velocity_unit is None:
        if state.velocities is None:
            raise ValueError(
                "next_graph: the model's velocities were not supervised (config.velocity_weight "
                "is 0); pass velocity_unit to take them from the predicted positions"
            )
        return state.velocities
    spacing = (state.times[-1] - state.times[-2]) * velocity_unit
    if spacing.ndim:
        graph_ids = graph_lib.graph_ids(graph.n_node, state.positions.shape[0])
        spacing = jnp.take(spacing, graph_ids, mode="clip")[:, None]
    return (state.path[-1] - state.path[-2]) / spacing


def _with_flag(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the graph with a flag for each of its graphs as its only globals, at first False."""
    found = graph.globals if isinstance(graph.globals, dict) else {}
    flag = found.get(OVERFLOW, jnp.zeros(graph.n_node.shape, bool))
    return graph._replace(globals={OVERFLOW: jnp.asarray(flag)})


def _as(before: jraph.GraphsTuple, after: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the next graph in the dtypes of the one before.

    Raises:
      ValueError: its structure or a shape differs.
    """
    leaves, expected = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(g)}
        for g in (after, before)
    )
    for name in sorted(leaves.keys() | expected.keys()):
        found, wanted = (
            tuple(tree[name].shape) if name in tree else None for tree in (leaves, expected)
        )
        if found != wanted:
            raise ValueError(
                f"next_graph: returned graph{name} of shape {found}, expected {wanted} as before"
            )
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, before)


def _offsets(
    positions: Float[Array, "N 3"], senders: Int[Array, "E"], receivers: Int[Array, "E"]
) -> Float[Array, "E 3"]:
    sent, received = (jnp.take(positions, ids, axis=0, mode="clip") for ids in (senders, receivers))
    return received - sent


def _with_column(features: Array, name: str, column: int, values: Array) -> Array:
    """Returns features with one column replaced, after checking that there is such a column."""
    num_columns = features.shape[-1]
    if not -num_columns <= column < num_columns:
        raise ValueError(
            f"{name}: got {column}, expected -F <= column < F with F = {num_columns}, the number "
            "of features that there are, or None"
        )
    return jnp.asarray(features).at[:, column].set(values[:, 0].astype(features.dtype))


def _join(leaf: Any) -> Any:
    return leaf.reshape(-1, *leaf.shape[2:])
