"""Rollouts: windows chained by hand, gradients, memory, rebuilt graphs, refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import graph as graph_lib
from egno_jax import rolling
from tests import helpers

TIMES = np.array([1.0, 2.0, 3.0], np.float32)
CONFIG = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, num_modes=2, time_embed_dim=4)


def with_true_features(graph, velocities=None):
    """Returns the graph with |v| as its only node feature and |r|^2 as its only edge feature."""
    velocities = graph.nodes["velocities"] if velocities is None else velocities
    positions = graph.nodes["positions"]
    squares = ((positions[graph.receivers] - positions[graph.senders]) ** 2).sum(-1)[:, None]
    speeds = np.linalg.norm(velocities, axis=-1, keepdims=True)
    nodes = {**graph.nodes, "velocities": velocities, "features": speeds}
    return graph._replace(nodes=nodes, edges={"features": squares})


@functools.cache
def system():
    rng = np.random.default_rng(0)
    graph = with_true_features(helpers.random_graph(rng, num_edges=12))
    return graph, helpers.random_params(rng, CONFIG, 1, 1)


@functools.cache
def rolled(num_windows=2, velocity_unit=None):
    """Returns the compiled rollout of a model whose features follow the state."""
    next_graph = rolling.refresh(velocity_unit=velocity_unit)
    supervised = velocity_unit is None

    @jax.jit
    def roll(params, graph, times):
        return rolling.rollout(
            params,
            graph,
            times,
            num_windows,
            next_graph=next_graph,
            supervised_velocities=supervised,
        )

    return roll


def moved(graph, positions, velocities):
    nodes = {**graph.nodes, "positions": np.asarray(positions)}
    return with_true_features(graph._replace(nodes=nodes), np.asarray(velocities))


def test_windows_are_those_chained_by_hand():
    graph, params = system()
    found = rolled(3)(params, graph, TIMES)
    np.testing.assert_array_equal(found.times, np.arange(1.0, 10.0))
    assert not found.overflow
    for window in range(3):
        expected = helpers.apply(params, graph, TIMES)
        part = slice(3 * window, 3 * window + 3)
        helpers.assert_close(found.positions[part], expected.positions, 1e-5)
        helpers.assert_close(found.velocities[part], expected.velocities, 1e-5)
        graph = moved(graph, expected.positions[-1], expected.velocities[-1])


def with_distances(graph):
    """Returns the graph with |r|^2 and |r| as edge features."""
    squares = graph.edges["features"][:, :1]
    return graph._replace(edges={"features": np.concatenate([squares, np.sqrt(squares)], axis=1)})


def test_named_distances_are_recomputed():
    graph = with_distances(system()[0])
    positions = np.flip(graph.nodes["positions"], axis=0)
    state = (graph, positions, graph.nodes["velocities"])
    found = rolling.with_state(*state, squared_distance_column=0, distance_column=1)
    lengths = np.linalg.norm(positions[graph.receivers] - positions[graph.senders], axis=-1)
    expected = np.stack([lengths**2, lengths], axis=-1)
    np.testing.assert_allclose(found.edges["features"], expected, rtol=1e-5)
    with pytest.warns(DeprecationWarning, match="length_column is deprecated"):
        old = rolling.with_state(*state, distance_column=0, length_column=1)
    helpers.assert_trees_close(old, found, 0.0)
    swapped = graph._replace(edges={"features": graph.edges["features"][:, ::-1]})
    with pytest.warns(DeprecationWarning, match="length_column is deprecated"):
        old = rolling.with_state(swapped, *state[1:], length_column=0)
    np.testing.assert_array_equal(old.edges["features"], found.edges["features"][:, ::-1])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"squared_distance_column": None, "distance_column": 0},
            r"distance_column: got 0, which holds \|x_i - x_j\|\^2.* use "
            "squared_distance_column=0",
        ),
        ({}, r"squared_distance_column: got -1, which holds \|x_i - x_j\|, .*distance_column=-1"),
        ({"squared_distance_column": 1}, "squared_distance_column: got 1, .*use distance_column=1"),
        (
            {"squared_distance_column": 0, "speed_column": 1},
            "speed_column: got 1, which holds some",
        ),
        ({"squared_distance_column": None, "distance_column": -2}, "distance_column: got -2, w"),
    ],
)
def test_a_column_of_another_quantity_is_named(columns, message):
    graph, params = system()
    graph = with_distances(graph)
    features = np.concatenate([graph.nodes["features"], np.ones((8, 1), np.float32)], axis=1)
    graph = graph._replace(nodes={**graph.nodes, "features": features})
    state = (graph, graph.nodes["positions"], graph.nodes["velocities"])
    with pytest.raises(ValueError, match=message):
        rolling.with_state(*state, **columns)
    with pytest.raises(ValueError, match=message):
        rolling.rollout(params, graph, TIMES, 2, next_graph=rolling.refresh(**columns))
    mask = np.arange(8) < 7
    with pytest.raises(ValueError, match=message):
        next_graph = rolling.radius_graph(1.0, mask, **columns)
        rolling.rollout(params, graph, TIMES, 2, next_graph=next_graph)


def test_one_column_cannot_hold_two_quantities():
    graph, _ = system()
    state = (graph.nodes["positions"], graph.nodes["velocities"])
    step = jax.jit(functools.partial(rolling.with_state, distance_column=0))
    with pytest.raises(ValueError, match="distance_column: got 0, as squared_distance_column"):
        step(graph, *state)


def test_velocities_can_be_those_of_the_path():
    graph, params = system()
    found = rolled(2, 0.5)(params, graph, TIMES)
    first = helpers.apply(params, graph, TIMES).positions
    velocities = (first[-1] - first[-2]) / 0.5
    second = helpers.apply(params, moved(graph, first[-1], velocities), TIMES).positions
    helpers.assert_close(found.positions[3:], second, 1e-5)
    single = rolled(2, 0.5)(params, graph, TIMES[-1:])
    first = helpers.apply(params, graph, TIMES[-1:]).positions
    velocities = (first[-1] - graph.nodes["positions"]) / (3 * 0.5)
    second = helpers.apply(params, moved(graph, first[-1], velocities), TIMES[-1:]).positions
    helpers.assert_close(single.positions[1:], second, 1e-5)


def test_graphs_may_have_their_own_times():
    graph, params = system()
    together = rolled(2, 0.5)(params, graph, TIMES)
    apart = rolled(2, 0.5)(params, graph, np.stack([TIMES, TIMES], axis=1))
    assert apart.times.shape == (6, 2)
    helpers.assert_close(apart.positions, together.positions, 1e-6)


def test_the_number_of_windows_may_be_numpys():
    graph, params = system()
    roll = functools.partial(rolling.rollout, supervised_velocities=True)
    found = jax.eval_shape(lambda params: roll(params, graph, TIMES, np.int64(2)), params)
    assert found.positions.shape == (2 * TIMES.size, 8, 3)


def test_is_equivariant_under_rotation_and_translation():
    graph, params = system()
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    nodes = dict(graph.nodes)
    nodes["positions"] = (nodes["positions"] @ rotation + 2.0).astype(np.float32)
    nodes["velocities"] = (nodes["velocities"] @ rotation).astype(np.float32)
    before, after = (rolled(3)(params, g, TIMES) for g in (graph, graph._replace(nodes=nodes)))
    helpers.assert_close(after.positions, before.positions @ rotation + 2.0, 1e-4)


def test_the_gradient_is_that_of_windows_chained_by_hand():
    graph, params = system()

    def by_hand(params):
        first = egno_jax.apply(params, graph, TIMES)
        state = {"positions": first.positions[-1], "velocities": first.velocities[-1]}
        second = egno_jax.apply(params, graph._replace(nodes={**graph.nodes, **state}), TIMES)
        return jnp.sum(first.positions**2) + jnp.sum(second.positions**2)

    def in_a_rollout(params):
        found = rolling.rollout(params, graph, TIMES, 2, supervised_velocities=True)
        return jnp.sum(found.positions**2)

    gradients = (jax.jit(jax.grad(f))(params) for f in (in_a_rollout, by_hand))
    helpers.assert_trees_close(*gradients, 1e-4)


def test_memory_does_not_grow_with_the_number_of_windows():
    graph, params = system()

    def working_memory(num_windows, function):
        compiled = jax.jit(functools.partial(function, num_windows)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def roll(num_windows, params):
        return rolled(num_windows)(params, graph, TIMES)

    def gradient(num_windows, params):
        return jax.grad(lambda p: jnp.sum(roll(num_windows, p).positions ** 2))(params)

    assert working_memory(64, roll) <= working_memory(4, roll) + 4096
    a_window = 4 * sum(np.size(leaf) for leaf in jax.tree.leaves(graph))
    a_window += 4 * 2 * TIMES.size * graph.nodes["positions"].size
    growth = working_memory(64, gradient) - working_memory(4, gradient)
    assert growth <= 60 * 3 * a_window


def padded_chain(capacity):
    rng = np.random.default_rng(4)
    positions = np.array([[0, 0, 0], [1, 0, 0], [2.5, 0, 0]], np.float32)
    edges = egno_jax.graph.radius_edges(positions, 1.2)
    squares = egno_jax.graph.squared_distances(positions, edges)
    velocities = rng.normal(size=(3, 3)).astype(np.float32)
    speeds = np.linalg.norm(velocities, axis=-1, keepdims=True)
    graph = egno_jax.graph.build(
        positions, velocities, speeds, egno_jax.graph.with_features(edges, squares)
    )
    return egno_jax.graph.pad(graph, num_nodes=4, num_edges=capacity, num_graphs=2)


def test_radius_graphs_follow_the_nodes():
    pytest.importorskip("vesin")
    graph, mask = padded_chain(capacity=8)
    positions = np.array([[0, 0, 0], [1, 0, 0], [1.5, 0, 0], [0, 0, 0]], np.float32)
    zeros = np.zeros_like(positions)
    state = rolling.State(positions, zeros, np.stack([zeros, positions]), np.array([0.0, 1.0]))
    with_flag = rolling._with_flag(graph)
    found = rolling.radius_graph(1.2, mask)(with_flag, state)
    joined = sorted(zip(*map(np.asarray, (found.receivers, found.senders)), strict=True))
    expected = [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert joined == [*expected, *[(3, 3)] * 4]
    np.testing.assert_array_equal(found.n_edge, [4, 4])
    lengths = np.abs(positions[found.receivers, 0] - positions[found.senders, 0])
    np.testing.assert_allclose(found.edges["features"][:, 0], lengths**2, rtol=1e-6)
    assert not found.globals["overflow"].any()
    egno_jax.graph.validate(found._replace(globals=None))
    assert rolling.radius_graph(2.0, mask)(with_flag, state).globals["overflow"].sum() == 0
    small = rolling._with_flag(padded_chain(capacity=4)[0])
    assert rolling.radius_graph(2.0, mask)(small, state).globals["overflow"].all()


@pytest.mark.parametrize("sizes", [{}, {"num_nodes": 20, "num_graphs": 5}, {"num_graphs": 9}])
@pytest.mark.parametrize("is_padded_alone", [False, True])
def test_radius_graphs_join_real_nodes_wherever_padding_stands(sizes, is_padded_alone):
    pytest.importorskip("vesin")
    rng = np.random.default_rng(5)
    single = [with_true_features(helpers.random_graph(rng, [4], num_edges=8)) for _ in range(4)]
    if is_padded_alone:
        padded = [egno_jax.graph.pad(graph, num_nodes=6, num_edges=12) for graph in single]
        graph = egno_jax.graph.batch([each for each, _ in padded])
        mask = np.concatenate([each for _, each in padded])
    else:
        graph, mask = egno_jax.graph.pad(egno_jax.graph.batch(single), num_edges=50, **sizes)
    positions = graph.nodes["positions"]
    state = rolling.State(positions, positions, np.stack([positions] * 2), np.array([0.0, 1.0]))
    found = rolling.radius_graph(1.5, mask)(rolling._with_flag(graph), state)
    egno_jax.graph.validate(found._replace(globals=None))
    is_edge = mask[found.receivers]
    np.testing.assert_array_equal(mask[found.senders], is_edge)
    expected, real = [], np.flatnonzero(mask).reshape(4, 4)
    for nodes in real:
        edges = egno_jax.graph.radius_edges(positions[nodes], 1.5)
        expected += zip(nodes[edges.receivers], nodes[edges.senders], strict=True)
    joined = np.stack([found.receivers, found.senders], axis=1)
    np.testing.assert_array_equal(joined[is_edge], expected)
    assert not is_edge.all() and is_edge.any()


def test_a_pair_at_the_radius_is_no_edge():
    pytest.importorskip("vesin")
    graph, mask = padded_chain(capacity=8)
    positions = graph.nodes["positions"]
    state = rolling.State(positions, positions, np.stack([positions] * 2), np.array([0.0, 1.0]))
    found = rolling.radius_graph(1.0, mask)(rolling._with_flag(graph), state)
    assert not mask[found.receivers].any()
    assert not egno_jax.graph.radius_edges(positions[:3], 1.0).senders.size


@pytest.mark.parametrize(
    ("columns", "powers"),
    [
        ({"squared_distance_column": None, "distance_column": 0}, [1]),
        ({"squared_distance_column": 1, "distance_column": 0}, [1, 2]),
    ],
)
def test_radius_graphs_recompute_the_distances_that_are_named(columns, powers):
    pytest.importorskip("vesin")
    graph, mask = padded_chain(capacity=8)
    positions = graph.nodes["positions"] * np.float32(0.9)
    state = rolling.State(positions, positions, np.stack([positions] * 2), np.array([0.0, 1.0]))
    features = np.zeros((8, len(powers)), np.float32)
    graph = rolling._with_flag(graph._replace(edges={"features": features}))
    found = rolling.radius_graph(1.0, mask, **columns)(graph, state)
    lengths = np.linalg.norm(positions[found.receivers] - positions[found.senders], axis=-1)
    assert lengths.any()
    np.testing.assert_allclose(found.edges["features"], lengths[:, None] ** powers, rtol=1e-6)
    wide = graph._replace(edges={"features": np.zeros((8, 3), np.float32)})
    with pytest.raises(ValueError, match=r"edge_features: got None, expected .* all D = 3"):
        rolling.radius_graph(1.0, mask, **columns)(wide, state)


def test_edge_features_may_be_any_function_of_the_edges():
    pytest.importorskip("vesin")
    graph, mask = padded_chain(capacity=8)
    positions = graph.nodes["positions"]
    state = rolling.State(positions, positions, np.stack([positions] * 2), np.array([0.0, 1.0]))
    next_graph = rolling.radius_graph(
        1.2,
        mask,
        edge_features=lambda graph, senders, receivers, squares: jnp.concatenate(
            [squares, graph.nodes["features"][senders] * receivers[:, None]], axis=1
        ),
    )
    found = next_graph(rolling._with_flag(graph), state)
    speeds = np.linalg.norm(positions, axis=-1)
    lengths = np.linalg.norm(positions[found.receivers] - positions[found.senders], axis=-1)
    expected = np.stack([lengths**2, speeds[found.senders] * found.receivers], axis=1)
    np.testing.assert_allclose(found.edges["features"], expected, rtol=1e-6)


def test_a_rollout_says_when_edges_did_not_fit():
    pytest.importorskip("vesin")
    graph, mask = padded_chain(capacity=4)
    params = helpers.random_params(np.random.default_rng(1), CONFIG, 1, 1)
    few, many = (rolling.radius_graph(radius, mask) for radius in (1e-3, 1e3))

    def joined(graph, state):
        """Connects all in the windows of an even number, and none in the others."""
        has_edges = jnp.any(graph.senders != graph.receivers)
        return jax.lax.cond(has_edges, many, few, graph, state)

    @functools.partial(jax.jit, static_argnums=1)
    def overflow(graph, num_windows):
        return rolling.rollout(
            params,
            graph,
            TIMES[:1],
            num_windows,
            next_graph=joined,
            supervised_velocities=True,
        ).overflow

    alone = graph._replace(senders=graph.receivers)
    assert not overflow(alone, 2)
    assert overflow(graph, 2)
    # The graph after the last window is never used.
    assert not overflow(graph, 1)

    def many_at_first(graph, state):
        is_first = jnp.all(graph.senders == padded_chain(4)[0].senders)
        return jax.lax.cond(is_first, many, few, graph, state)

    assert rolling.rollout(
        params, graph, TIMES[:1], 3, next_graph=many_at_first, supervised_velocities=True
    ).overflow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_windows": 0}, "num_windows: got 0"),
        ({"num_windows": 1.5}, "num_windows: got 1.5"),
        ({"num_windows": True}, "num_windows: got True, expected an integer >= 1"),
        ({"times": np.array([0.0, 1.0])}, r"times: got .*expected \[P\], increasing and above 0"),
        ({"times": None}, "times: got NoneType, expected an array"),
        ({}, "next_graph: got None, expected one that supplies velocities"),
        (
            {"next_graph": rolling.refresh()},
            "velocity_unit: got None, .* velocities were not supervised",
        ),
        (
            {"next_graph": lambda graph, state: graph._replace(senders=graph.senders[:3])},
            r"next_graph: got graph\.senders of shape \[3\], expected \[12\]",
        ),
    ],
    ids=["zero", "float", "bool", "start", "none", "unsupervised", "refresh", "shape"],
)
def test_refusals(arguments, message):
    graph, params = system()
    arguments = {"times": TIMES, "num_windows": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        rolling.rollout(params, graph, **arguments)


@pytest.mark.parametrize("column", [1, -2, 3])
@pytest.mark.parametrize("name", ["speed_column", "squared_distance_column", "distance_column"])
def test_a_column_that_is_not_there_is_named(name, column):
    graph, params = system()
    nodes = graph.nodes
    message = f"{name}: got {column}, expected -F <= column < F with F = 1"
    with pytest.raises(ValueError, match=message):
        rolling.with_state(graph, nodes["positions"], nodes["velocities"], **{name: column})
    with pytest.raises(ValueError, match=message):
        rolling.rollout(params, graph, TIMES, 2, next_graph=rolling.refresh(**{name: column}))


def test_a_radius_graph_names_a_column_that_is_not_there():
    graph, params = system()
    graph, mask = egno_jax.graph.pad(graph)
    next_graph = rolling.radius_graph(1.0, mask, speed_column=3)
    with pytest.raises(ValueError, match=r"speed_column: got 3, expected .* F = 1"):
        rolling.rollout(params, graph, TIMES, 2, next_graph=next_graph)


@pytest.mark.parametrize("radius", [0, np.inf, np.nan])
def test_radius_must_be_finite_and_above_zero(radius):
    with pytest.raises(ValueError, match=f"radius: got {radius}"):
        rolling.radius_graph(radius, np.array([True, False]), cell=np.eye(3))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.ones(8, bool),
            r"got bool \[8\] with 0 padding nodes, expected bool \[N\] with at least one",
        ),
        (np.arange(8), r"got int64 \[8\] with .*, expected bool \[N\]"),
        (np.zeros((2, 4), bool), r"got bool \[2, 4\] with .*, expected bool \[N\]"),
        (np.arange(7) < 6, "got 7 nodes, expected 8, as the graph has"),
    ],
)
def test_radius_graphs_ask_for_the_mask_of_padding(mask, message):
    graph, params = system()
    with pytest.raises(ValueError, match=f"node_mask: {message}"):
        next_graph = rolling.radius_graph(1.0, mask)
        rolling.rollout(params, graph, TIMES, 2, next_graph=next_graph, supervised_velocities=True)


def test_the_first_window_that_is_not_valid_is_named():
    graph, params = system()
    roll = jax.jit(
        lambda graph, bound: rolling.rollout(
            params,
            graph,
            TIMES,
            3,
            next_graph=rolling.refresh(),
            supervised_velocities=True,
            bound=bound,
        )
    )
    found = roll(graph, np.inf)
    assert found.first_invalid == 3
    sizes = np.abs(found.positions).reshape(3, -1).max(axis=1)
    assert roll(graph, 0.99 * sizes[0]).first_invalid == 0
    bound = 1.01 * sizes[0]
    larger = np.flatnonzero(sizes > bound)
    assert roll(graph, bound).first_invalid == (larger[0] if larger.size else 3)
    nodes = {**graph.nodes, "velocities": graph.nodes["velocities"] * np.nan}
    assert roll(graph._replace(nodes=nodes), np.inf).first_invalid == 0


@pytest.mark.parametrize("unit", [0.0, -1.0, np.nan])
def test_units_of_velocities_are_above_0(unit):
    for make in (rolling.refresh, lambda **unit: rolling.radius_graph(1.0, [True, False], **unit)):
        with pytest.raises(ValueError, match="velocity_unit: got"):
            make(velocity_unit=unit)


def test_a_rule_itself_and_an_inverted_mask_are_refused():
    graph, params = system()
    graph, mask = graph_lib.pad(graph)
    for rule, message in (
        (rolling.refresh, r"next_graph: got refresh itself, .*call refresh\(...\)"),
        (rolling.radius_graph(1.0, ~mask), "node_mask: got padding at node .*, which has edges"),
    ):
        with pytest.raises(ValueError, match=message):
            rolling.rollout(params, graph, TIMES, 2, next_graph=rule, supervised_velocities=True)


def test_a_state_of_another_shape_is_refused():
    graph, _ = system()
    x, v = graph.nodes["positions"], graph.nodes["velocities"]
    for state in ((x.T, v), (x[1:], v), (x, v[1:]), (x, None)):
        with pytest.raises(ValueError, match=r"(positions|velocities): got"):
            rolling.with_state(graph, *state)


def adding_drifts(next_graph):
    """Returns a `next_graph` that also moves each graph by its drift, one of the globals."""

    def following(graph, state):
        ids = graph_lib.graph_ids(graph.n_node, state.positions.shape[0])
        drift = graph.globals["drift"][ids]
        return next_graph(graph, state._replace(positions=state.positions + drift))

    return following


@pytest.mark.parametrize("rebuilds_edges", [False, True])
def test_every_window_keeps_the_globals_of_the_graph(rebuilds_edges):
    pytest.importorskip("vesin")
    graph, mask = padded_chain(capacity=8)
    params = helpers.random_params(np.random.default_rng(0), CONFIG, 1, 1)
    drift = np.array([[100.0, 0, 0], [0, 0, 0]], np.float32)
    graph = graph._replace(globals={"drift": drift, "kept": np.array([1, 2])})
    following = rolling.radius_graph(1.2, mask) if rebuilds_edges else rolling.refresh()
    found = rolling.rollout(
        params, graph, TIMES, 3, next_graph=adding_drifts(following), supervised_velocities=True
    )
    moves = found.positions[:, :3].mean(axis=1)
    assert [round(float(x) / 100) for x in moves[:: len(TIMES), 0]] == [0, 1, 2]
    losing = lambda graph, state: following(graph, state)._replace(globals=None)  # noqa: E731
    with pytest.raises(ValueError, match=r"got graph.globals\['drift'\] of shape None, expected"):
        rolling.rollout(params, graph, TIMES, 2, next_graph=losing, supervised_velocities=True)
    unnamed = graph._replace(globals=drift)
    with pytest.raises(ValueError, match=r"graph.globals: got array, expected None or a dict"):
        rolling.rollout(params, unnamed, TIMES, 2, next_graph=following, supervised_velocities=True)
