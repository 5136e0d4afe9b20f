"""The model against the original's numbers, and as a pure function of its inputs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

import egno_jax
from egno_jax import EGNOConfig
from egno_jax.model import feature_sizes, weight_shapes
from tests import helpers

DTYPES = ("float32", "float64")


OUTPUTS = {"float32": 1e-5, "float64": 1e-12}
GRADIENTS = {"float32": 1e-4, "float64": 1e-10}


def mean_squared_error(params, graph, times, target):
    trajectory = egno_jax.apply(params, graph, times)
    return jnp.mean((trajectory.positions - target) ** 2), trajectory


differentiate = jax.jit(jax.value_and_grad(mean_squared_error, has_aux=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", helpers.fixture_names())
def test_parity_of_outputs_loss_and_every_gradient(name, dtype):
    fixture = helpers.Fixture.load(name, dtype)
    stored = fixture.arrays
    with helpers.using(dtype):
        (loss, trajectory), gradient = differentiate(
            fixture.params(), fixture.graph(), fixture.times(), stored["target"].astype(dtype)
        )
    for field in helpers.TRAJECTORY_FIELDS:
        found = getattr(trajectory, field)
        assert found.dtype == dtype
        helpers.assert_close(found, stored[f"out_{field}"], OUTPUTS[dtype], field)
    helpers.assert_close(loss, stored["loss"], GRADIENTS[dtype], "loss")
    found, expected = egno_jax.to_torch_state_dict(gradient), fixture.state("grad/")
    assert found.keys() == expected.keys()
    for key, array in found.items():
        assert array.dtype == dtype
        helpers.assert_close(array, expected[key], GRADIENTS[dtype], key)


def test_the_fixtures_are_there_and_differ():
    configs = {helpers.Fixture.load(name).config for name in helpers.fixture_names()}
    assert len(configs) >= 4


def test_parity_would_see_a_change_of_any_weight():
    fixture = helpers.Fixture.load("nbody_p5")
    state = fixture.state()
    for name in state:
        changed = state | {name: state[name] * np.float32(1.01)}
        params = egno_jax.from_torch_state_dict(changed, fixture.config)
        found = helpers.apply(params, fixture.graph(), fixture.times())
        errors = [
            helpers.relative_error(getattr(found, field), fixture.arrays[f"out_{field}"])
            for field in helpers.TRAJECTORY_FIELDS
        ]
        assert max(errors) > 2 * OUTPUTS["float32"], name


# The unit of velocity


def test_the_velocity_scale_is_the_unit_that_the_model_computes_in():
    fixture = helpers.Fixture.load("nbody_p5")
    params, graph = fixture.params(), fixture.graph()
    scaled = dataclasses.replace(
        params, config=dataclasses.replace(params.config, velocity_scale=4.0)
    )
    faster = {**graph.nodes, "velocities": 4 * graph.nodes["velocities"]}
    expected = helpers.apply(params, graph._replace(nodes=faster), fixture.times())
    found = helpers.apply(scaled, graph, fixture.times())
    helpers.assert_close(found.positions, expected.positions, 1e-5)
    helpers.assert_close(found.velocities, expected.velocities / 4, 1e-5)
    helpers.assert_close(found.features, expected.features, 1e-5)


# The model as a pure function

CONFIG = EGNOConfig(num_layers=1, hidden_dim=8, num_modes=2, time_embed_dim=8)
TIMES = np.array([1.0, 2.5, 3.0], np.float32)


def random_params(seed=0, num_edge_features=2, **fields):
    config = dataclasses.replace(CONFIG, **fields)
    rng = np.random.default_rng(seed)
    params = helpers.random_params(rng, config, num_edge_features=num_edge_features)
    return helpers.perturbed(params, rng)


def random_graph(seed=0, **options):
    return helpers.random_graph(np.random.default_rng(seed), **options)


@pytest.fixture(scope="module")
def params():
    return random_params()


@pytest.fixture(scope="module")
def plain(params):
    """What the uncompiled call returns."""
    return egno_jax.apply(params, random_graph(), TIMES)


def test_jit_agrees_with_the_plain_call(params, plain):
    helpers.assert_trees_close(helpers.apply(params, random_graph(), TIMES), plain, 1e-5)


def test_apply_is_the_linen_module_and_init_gives_its_weights(plain, params):
    module = egno_jax.EGNO(CONFIG)
    found = module.apply({"params": params.weights}, random_graph(), TIMES)
    helpers.assert_trees_close(found, plain, 0.0)
    key = jax.random.key(3, impl="unsafe_rbg")
    made = egno_jax.init(key, CONFIG, random_graph(), TIMES)
    variables = jax.jit(module.init)(key, random_graph(), TIMES)
    assert set(variables) == {"params"}
    again = egno_jax.Params(weights=variables["params"], config=CONFIG)
    helpers.assert_trees_close(again, made, 0.0)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    assert set(made.weights) == {"embedding", "block_0"}


def test_init_reads_sizes_and_not_values():
    made = [
        jax.eval_shape(
            functools.partial(egno_jax.init, config=CONFIG),
            jax.random.key(0),
            graph=random_graph(num_node_features=3, num_edge_features=d),
            times=TIMES,
        )
        for d in (0, 4)
    ]
    for params, d in zip(made, (0, 4), strict=True):
        assert feature_sizes(params) == (3, d)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_vmap_over_states_agrees_with_one_at_a_time(params):
    graphs = [random_graph(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *graphs)
    found = jax.jit(jax.vmap(egno_jax.apply, (None, 0, None)))(params, stacked, TIMES)
    for index, graph in enumerate(graphs):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], found)
        helpers.assert_trees_close(one, helpers.apply(params, graph, TIMES), 1e-5)


def test_vmap_over_weights_agrees_with_one_at_a_time(params, plain):
    other = random_params(1)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), params, other)
    found = jax.jit(jax.vmap(egno_jax.apply, (0, None, None)))(stacked, random_graph(), TIMES)
    helpers.assert_trees_close(jax.tree.map(lambda leaf: leaf[0], found), plain, 1e-5)
    expected = helpers.apply(other, random_graph(), TIMES)
    helpers.assert_trees_close(jax.tree.map(lambda leaf: leaf[1], found), expected, 1e-5)


def loss_of_all_outputs(params, graph, times):
    trajectory = egno_jax.apply(params, graph, times)
    return sum(jnp.mean(jnp.sin(leaf)) for leaf in jax.tree.leaves(trajectory))


@pytest.fixture(scope="module")
def in_float64():
    """Params, graph and times of float64, and the gradient of a loss over all outputs."""
    arguments = random_params(param_dtype="float64"), random_graph(dtype="float64"), TIMES
    with helpers.using("float64"):
        return arguments, jax.jit(jax.grad(loss_of_all_outputs))(*arguments)


def test_gradient_agrees_with_finite_differences(in_float64):
    (params, graph, times), gradient = in_float64
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

    def loss_at(step):
        moved = jax.tree.map(lambda leaf, d: leaf + step * d, params, direction)
        return sum(
            np.sin(np.asarray(leaf)).mean()
            for leaf in jax.tree.leaves(helpers.apply(moved, graph, times))
        )

    with helpers.using("float64"):
        expected = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    terms = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), gradient, direction)
    assert abs(sum(jax.tree.leaves(terms)) - expected) < 1e-6 * abs(expected)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_remat_gives_the_same_gradient(in_float64):
    arguments, expected = in_float64

    def loss(params, graph, times):
        trajectory = jax.checkpoint(egno_jax.apply)(params, graph, times)
        return sum(jnp.mean(jnp.sin(leaf)) for leaf in jax.tree.leaves(trajectory))

    with helpers.using("float64"):
        found = jax.jit(jax.grad(loss))(*arguments)
    helpers.assert_trees_close(found, expected, 1e-12)


def test_forward_mode_agrees_with_reverse_mode():
    """The Jacobian of positions by initial positions, both ways."""
    params = random_params(num_layers=1, param_dtype="float64")
    graph, times = random_graph(n_node=(3,), num_edges=4, dtype="float64"), TIMES[:2]

    def move(positions):
        nodes = {**graph.nodes, "positions": positions}
        return egno_jax.apply(params, graph._replace(nodes=nodes), times).positions

    with helpers.using("float64"):
        forward, reverse = (
            jax.jit(jac(move))(graph.nodes["positions"]) for jac in (jax.jacfwd, jax.jacrev)
        )
    assert forward.shape == (2, 3, 3, 3, 3)
    helpers.assert_close(forward, reverse, 1e-12)


def test_nnx_bridge_agrees_with_the_plain_call(params, plain):
    graph, key = random_graph(), jax.random.key(0, impl="unsafe_rbg")
    model = bridge.ToNNX(egno_jax.EGNO(CONFIG), rngs=nnx.Rngs(key))
    model = nnx.jit(lambda model, graph: bridge.lazy_init(model, graph, TIMES))(model, graph)
    state = nnx.state(model, nnx.Param)
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(state)) == jax.tree.map(
        jnp.shape, params.weights
    )
    nnx.replace_by_pure_dict(state, params.weights)
    nnx.update(model, state)
    helpers.assert_trees_close(nnx.jit(lambda m, g: m(g, TIMES))(model, graph), plain, 1e-5)


# Batches, padding and times


def with_mean_field(channels):
    """Random weights with a mean field of so many channels; None: without one."""
    if channels is None:
        return random_params()
    return random_params(mean_field=True, mean_field_channels=channels)


@pytest.mark.parametrize("channels", [None, 3])
def test_a_padded_batch_agrees_with_one_graph_at_a_time(channels):
    params = with_mean_field(channels)
    graphs = [
        random_graph(0, n_node=(5,), num_edges=12),
        random_graph(1, n_node=(1,), num_edges=0),
        random_graph(2, n_node=(7,), num_edges=9),
    ]
    batch = egno_jax.graph.batch(graphs)
    padded, mask = egno_jax.graph.pad(batch, num_nodes=32, num_edges=64, num_graphs=6)
    assert mask.sum() == 13
    together = helpers.apply(params, padded, TIMES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(together))
    starts = np.cumsum([0, 5, 1, 7])
    for graph, start, stop in zip(graphs, starts[:-1], starts[1:], strict=True):
        alone = helpers.apply(params, graph, TIMES)
        rows = jax.tree.map(lambda leaf, a=start, b=stop: leaf[:, a:b], together)
        helpers.assert_trees_close(rows, alone, 1e-5)


@pytest.mark.parametrize("channels", [None, 3])
def test_gradients_of_a_padded_batch_are_those_of_the_batch(channels):
    params = with_mean_field(channels)
    graph = random_graph()
    padded, mask = egno_jax.graph.pad(graph, num_nodes=200, num_edges=500, num_graphs=9)

    def loss(params, graph, mask):
        positions = egno_jax.apply(params, graph, TIMES).positions
        return jnp.sum(jnp.where(mask[:, None], positions**2, 0.0))

    gradient = jax.jit(jax.grad(loss))
    expected = gradient(params, graph, np.ones(8, bool))
    helpers.assert_trees_close(gradient(params, padded, mask), expected, 1e-4)
    of_graph = jax.jit(jax.grad(lambda nodes: loss(params, padded._replace(nodes=nodes), mask)))
    rows = of_graph(padded.nodes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
    np.testing.assert_array_equal(rows["positions"][~mask], 0.0)


def test_no_node_of_one_graph_sees_another(params):
    graph = random_graph()
    changed = {
        key: np.where(np.arange(8)[:, None] < 5, x, 7 * x + 1) for key, x in graph.nodes.items()
    }
    found = helpers.apply(params, graph._replace(nodes=changed), TIMES)
    expected = helpers.apply(params, graph, TIMES)
    for field in helpers.TRAJECTORY_FIELDS:
        a, b = (np.asarray(getattr(x, field)) for x in (found, expected))
        np.testing.assert_allclose(a[:, :5], b[:, :5], atol=1e-5)
        assert np.abs(a[:, 5:] - b[:, 5:]).max() > 0.1


def test_times_of_each_graph_agree_with_each_graph_asked_alone(params):
    graphs = [random_graph(seed, n_node=(4,), num_edges=6) for seed in range(3)]
    grids = np.array([TIMES, 2 * TIMES, TIMES + 1]).T
    batch = egno_jax.graph.batch(graphs)
    together = helpers.apply(params, batch, grids)
    for index, graph in enumerate(graphs):
        alone = helpers.apply(params, graph, grids[:, index])
        rows = jax.tree.map(lambda leaf, i=index: leaf[:, 4 * i : 4 * i + 4], together)
        helpers.assert_trees_close(rows, alone, 1e-5)
    same = np.repeat(TIMES[:, None], 3, axis=1)
    shared = helpers.apply(params, batch, TIMES)
    helpers.assert_trees_close(helpers.apply(params, batch, same), shared, 1e-6)
    assert np.abs(together.features - shared.features).max() > 1e-3


def test_only_the_ratio_of_times_and_their_scale_matters(params, plain):
    scaled = dataclasses.replace(CONFIG, time_scale=4.0)
    rescaled = dataclasses.replace(params, config=scaled)
    found = helpers.apply(rescaled, random_graph(), 4 * TIMES)
    helpers.assert_trees_close(found, plain, 1e-5)
    other = helpers.apply(rescaled, random_graph(), TIMES)
    assert helpers.relative_error(other.features, plain.features) > 1e-3


def test_integer_times_are_floating_ones(params):
    graph, times = random_graph(), np.array([1, 2, 4])
    found = helpers.apply(params, graph, times.astype(np.int32))
    helpers.assert_trees_close(found, helpers.apply(params, graph, times.astype(np.float32)), 0.0)


def test_one_compilation_serves_graphs_of_other_sizes_that_are_padded_alike(params):
    traced = []

    @jax.jit
    def count_traces(params, graph, times):
        traced.append(1)
        return egno_jax.apply(params, graph, times)

    for n_node in ((5, 3), (8,), (2, 0, 4)):
        graph = random_graph(n_node=n_node)
        count_traces(
            params, egno_jax.graph.pad(graph, num_nodes=16, num_edges=32, num_graphs=4)[0], TIMES
        )
    assert len(traced) == 1


def test_graphs_without_edges_and_empty_graphs_stay_finite(params):
    graph = random_graph(n_node=(3, 0, 2, 0), num_edges=0)
    loss, gradient = jax.jit(jax.value_and_grad(loss_of_all_outputs))(params, graph, TIMES)
    for leaf in jax.tree.leaves((loss, gradient)):
        assert np.isfinite(leaf).all()


# Params and Trajectory as pytrees


@pytest.mark.parametrize("num_nodes", [0, 1, 3])
@pytest.mark.parametrize("layer", ["egnn", "vector", "steerable"])
def test_every_layer_moves_nodes_without_edges_and_no_nodes(layer, num_nodes):
    positions = np.random.default_rng(0).normal(size=(num_nodes, 3))
    edges = egno_jax.graph.Edges(*np.zeros((2, 0), int))
    graph = egno_jax.graph.build(positions, positions, np.ones((num_nodes, 1)), edges)
    config = EGNOConfig(layer=layer, num_layers=1, hidden_dim=16, num_vectors=2, mean_field=True)
    params = egno_jax.init(jax.random.key(0), config, graph, [1.0, 2.0])

    def loss(params):
        return jnp.sum(egno_jax.apply(params, graph, [1.0, 2.0]).positions ** 2)

    assert egno_jax.apply(params, graph, [1.0, 2.0]).positions.shape == (2, num_nodes, 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(loss)(params)))


def test_params_are_a_pytree_with_key_paths_and_a_static_config(params):
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}
    assert "weights/block_0/temporal_conv/kernel" in names
    assert "weights/block_0/egnn_layer/message_mlp/linear_0/bias" in names
    assert all(hasattr(leaf, "shape") for _, leaf in leaves)
    again = jax.tree_util.tree_unflatten(structure, [leaf for _, leaf in leaves])
    assert again.config is params.config
    other = dataclasses.replace(params, config=EGNOConfig())
    assert jax.tree.structure(other) != structure
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.config = EGNOConfig()


def test_params_print_as_one_line_unless_they_hold_other_things_than_arrays(params):
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert repr(params) == f"Params(<{number} weights>, {params.config}, recipe=None)"
    assert "'kernel': 'float32'" in repr(jax.tree.map(lambda leaf: str(leaf.dtype), params))


def test_trajectory_is_a_pytree_with_key_paths(plain):
    leaves, _ = jax.tree_util.tree_flatten_with_path(plain)
    names = [jax.tree_util.keystr(path, simple=True) for path, _ in leaves]
    assert names == list(helpers.TRAJECTORY_FIELDS)


def test_adamw_with_a_mask_works_on_params_as_they_are(params):
    """Decay acts on matrices alone, and a step lowers the loss."""
    graph = random_graph()
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    optimizer = optax.adamw(1e-2, weight_decay=0.5, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    decayed = optax.apply_updates(params, updates)
    for before, after, is_decayed in zip(
        *map(jax.tree.leaves, (params, decayed, mask)), strict=True
    ):
        helpers.assert_close(after, before * (0.995 if is_decayed else 1.0), 1e-6)

    optimizer = optax.adamw(1e-3, mask=mask)
    loss_and_gradient = jax.jit(jax.value_and_grad(loss_of_all_outputs))
    before, gradient = loss_and_gradient(params, graph, TIMES)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    assert moved.config == params.config
    assert loss_and_gradient(moved, graph, TIMES)[0] < before


# Precision


def test_bfloat16_is_near_float32_and_keeps_geometry_in_float32(params, plain):
    """A shift of 1000 would be lost in bfloat16, whose numbers are 4 apart there."""
    half = dataclasses.replace(params, config=dataclasses.replace(CONFIG, dtype="bfloat16"))
    graph = random_graph()
    found = helpers.apply(half, graph, TIMES)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == ["float32", "float32", "bfloat16"]
    error = [
        helpers.relative_error(a, b)
        for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True)
    ]
    assert 1e-4 < max(error) < 0.05
    nodes = {**graph.nodes, "positions": graph.nodes["positions"] + 1000}
    moved = helpers.apply(half, graph._replace(nodes=nodes), TIMES)
    np.testing.assert_allclose(moved.positions - 1000, found.positions, atol=5e-3)


def test_bfloat16_weights_give_float32_geometry():
    params = random_params(param_dtype="bfloat16", dtype="bfloat16")
    found = helpers.apply(params, random_graph(), TIMES)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == ["float32", "float32", "bfloat16"]
    assert all(np.isfinite(leaf.astype(jnp.float32)).all() for leaf in jax.tree.leaves(found))


def test_dtype_follows_the_inputs_and_the_config():
    with helpers.using("float64"):
        wide = helpers.apply(random_params(), random_graph(dtype="float64"), TIMES)
        narrow = helpers.apply(
            random_params(dtype="float32", param_dtype="float64"), random_graph(), TIMES
        )
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float64")}
    assert narrow.features.dtype == jnp.float32


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_matmul_precision_reaches_the_products_over_channels_alone(params, precision):
    config = dataclasses.replace(CONFIG, matmul_precision=precision)
    model = dataclasses.replace(params, config=config)
    text = jax.jit(egno_jax.apply).lower(model, random_graph(), TIMES).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    exact = [line for line in products if "HIGHEST" in line]
    assert exact
    assert (len(exact) == len(products)) == (precision == "highest")


# What is refused


def without(mapping, key):
    return {name: mapping[name] for name in sorted(mapping) if name != key}  # as jit orders them


def with_node(graph, key, change):
    return graph._replace(nodes={**graph.nodes, key: change(graph.nodes[key])})


def with_edge_features(graph, change):
    return graph._replace(edges={"features": change(graph.edges["features"])})


BAD_GRAPHS = {
    "no GraphsTuple": (lambda g: g._asdict(), "jraph.GraphsTuple"),
    "nodes are an array": (lambda g: g._replace(nodes=g.nodes["positions"]), "graph.nodes"),
    "no positions": (lambda g: g._replace(nodes=without(g.nodes, "positions")), "'positions'"),
    "no velocities": (lambda g: g._replace(nodes=without(g.nodes, "velocities")), "'velocities'"),
    "no features": (lambda g: g._replace(nodes=without(g.nodes, "features")), "'features'"),
    "positions in 2D": (lambda g: with_node(g, "positions", lambda x: x[:, :2]), "positions"),
    "positions with times": (lambda g: with_node(g, "positions", lambda x: x[None]), "positions"),
    "integer positions": (
        lambda g: with_node(g, "positions", lambda x: x.astype(np.int32)),
        "positions",
    ),
    "too few velocities": (lambda g: with_node(g, "velocities", lambda x: x[:-1]), "velocities"),
    "features of rank 1": (lambda g: with_node(g, "features", lambda x: x[:, 0]), "features"),
    "integer features": (
        lambda g: with_node(g, "features", lambda x: x.astype(np.int32)),
        "features",
    ),
    "more node features": (
        lambda g: with_node(g, "features", lambda x: np.repeat(x, 2, 1)),
        r"graph.nodes\['features'\]: got 4 features, expected 2",
    ),
    "edges are an array": (lambda g: g._replace(edges=g.edges["features"]), "graph.edges"),
    "edges without features": (lambda g: g._replace(edges={}), "graph.edges"),
    "edges are None": (
        lambda g: g._replace(edges=None),
        r"graph.edges\['features'\]: got 0 features, expected 2",
    ),
    "fewer edge features": (
        lambda g: with_edge_features(g, lambda x: x[:, :1]),
        "got 1 features, expected 2",
    ),
    "too few edge features": (lambda g: with_edge_features(g, lambda x: x[1:]), "graph.edges"),
    "integer edge features": (
        lambda g: with_edge_features(g, lambda x: x.astype(np.int32)),
        "graph.edges",
    ),
    "floating senders": (
        lambda g: g._replace(senders=g.senders.astype(np.float32)),
        "graph.senders",
    ),
    "too few receivers": (lambda g: g._replace(receivers=g.receivers[1:]), "graph.receivers"),
    "senders of rank 2": (lambda g: g._replace(senders=g.senders[None]), "graph.senders"),
    "no graph": (lambda g: g._replace(n_node=g.n_node[:0], n_edge=g.n_edge[:0]), "graph.n_node"),
    "counts of other lengths": (lambda g: g._replace(n_edge=g.n_edge[:1]), "graph.n_edge"),
    "floating counts": (lambda g: g._replace(n_node=g.n_node.astype(np.float32)), "graph.n_node"),
}
BAD_TIMES = {
    "a number": (np.float32(1.0), "times"),
    "none at all": (np.zeros(0, np.float32), "P = 0"),
    "none for two graphs": (np.zeros((0, 2), np.float32), "P = 0"),
    "times of other graphs": (np.zeros((3, 5), np.float32), "times"),
    "rank 3": (np.zeros((3, 2, 1), np.float32), "times"),
    "booleans": (np.ones(3, bool), "times"),
    "complex": (np.ones(3, np.complex64), "times"),
}
BAD_INPUTS = {
    **{name: (change, TIMES, message) for name, (change, message) in BAD_GRAPHS.items()},
    **{name: (lambda g: g, times, message) for name, (times, message) in BAD_TIMES.items()},
}


def message_of(function, *arguments):
    with pytest.raises(ValueError) as error:
        function(*arguments)
    return str(error.value)


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused_with_one_message_by_all_ways_in(params, name):
    change, times, expected = BAD_INPUTS[name]
    graph = change(random_graph())
    message = message_of(egno_jax.apply, params, graph, times)
    assert re.search(expected, message)
    assert message_of(jax.jit(egno_jax.apply), params, graph, times) == message
    if "by the weights" not in message:
        key = jax.random.key(0)
        assert message_of(egno_jax.init, key, CONFIG, graph, times) == message
        variables = {"params": params.weights}
        assert message_of(egno_jax.EGNO(CONFIG).apply, variables, graph, times) == message


@pytest.mark.parametrize(
    ("field", "value"), [("times", 1.0), ("times", None), ("graph", None), ("nodes", None)]
)
def test_what_is_no_array_is_refused(params, field, value):
    graph, times = random_graph(), TIMES
    if field == "nodes":
        graph = graph._replace(nodes=value)
    else:
        graph, times = (value, times) if field == "graph" else (graph, value)
    assert field in message_of(egno_jax.apply, params, graph, times)


@pytest.mark.filterwarnings("error")
def test_numpy_in_float64_and_lists_are_taken_as_jax_takes_them(params):
    """Without a word, and to the bit what the same numbers in float32 give; traced or not."""
    graph = random_graph()
    wide = jax.tree.map(
        lambda leaf: leaf.astype({"f": np.float64, "i": np.int64}[leaf.dtype.kind]), graph
    )
    expected = egno_jax.apply(params, graph, TIMES)
    for times in (TIMES.astype(np.float64), TIMES.tolist(), tuple(TIMES)):
        for apply in (egno_jax.apply, egno_jax.EGNO(CONFIG).apply):
            model = params if apply is egno_jax.apply else {"params": params.weights}
            found = apply(model, wide, times)
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            assert found.positions.dtype == np.float32
        traced = jax.jit(egno_jax.apply)(params, wide, times)
        helpers.assert_close(traced.positions, expected.positions, 1e-5)
        key = jax.random.key(0)
        made = (egno_jax.init(key, CONFIG, *inputs) for inputs in ((wide, times), (graph, TIMES)))
        jax.tree.map(np.testing.assert_array_equal, *made)


def test_a_wrong_time_embedding_shows_in_the_feature_sizes():
    """All that a converted checkpoint says of the two is their sum."""
    config = EGNOConfig(num_layers=1, hidden_dim=4, time_embed_dim=6)
    params = helpers.random_params(np.random.default_rng(0), config)
    state = egno_jax.to_torch_state_dict(params)
    wrong = egno_jax.from_torch_state_dict(state, dataclasses.replace(config, time_embed_dim=5))
    expected = r"got 2 features, expected 3 .*check config.time_embed_dim=5 too.* the sum, 8"
    with pytest.raises(ValueError, match=expected):
        egno_jax.apply(wrong, random_graph(), TIMES)


def test_values_are_not_looked_at(params):
    """NaN is what `graph.validate` finds; here it stays within its graph."""
    graph = random_graph()
    graph.nodes["velocities"][6] = np.nan
    found = helpers.apply(params, graph, TIMES)
    assert np.isnan(found.positions[:, 5:]).any()
    assert np.isfinite(found.positions[:, :5]).all()


def test_the_shapes_of_all_weights_are_as_documented():
    config = EGNOConfig(num_layers=2, hidden_dim=5, num_modes=3, time_embed_dim=7)
    graph = helpers.random_graph(np.random.default_rng(0), num_node_features=4, num_edge_features=6)
    weights = egno_jax.init(jax.random.key(0), config, graph, np.arange(3.0)).weights
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
    }
    assert found == weight_shapes(config, 4, 6)


@pytest.mark.parametrize("field", ["dtype", "param_dtype"])
def test_float64_without_x64_is_refused(field):
    config = EGNOConfig(**{field: "float64"})
    graph = helpers.random_graph(np.random.default_rng(0))
    with pytest.raises(ValueError, match=rf"config.{field}: got 'float64'.*jax_enable_x64"):
        egno_jax.init(jax.random.key(0), config, graph, np.arange(3.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.weights, "params: got dict, expected egno_jax.Params"),
        (
            lambda p: dataclasses.replace(p, config={}),
            "config: got dict, expected one of EGNOConfig",
        ),
        (
            lambda p: dataclasses.replace(p, weights={"params": p.weights}),
            r"params.weights: got embedding/linear/kernel of shape None",
        ),
        (
            lambda p: dataclasses.replace(p, config=dataclasses.replace(p.config, num_layers=3)),
            r"params.weights: got block_2/.* of shape None, expected",
        ),
        (
            lambda p: dataclasses.replace(p, config=dataclasses.replace(p.config, hidden_dim=99)),
            r"expected at least .*199.* with config.*hidden_dim=99",
        ),
    ],
)
def test_params_that_are_none_are_named(change, message):
    config = EGNOConfig(num_layers=2, hidden_dim=4)
    graph = helpers.random_graph(np.random.default_rng(0))
    params = helpers.random_params(np.random.default_rng(0), config)
    with pytest.raises(ValueError, match=message):
        egno_jax.apply(change(params), graph, np.arange(3.0))
