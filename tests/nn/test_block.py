"""The slot for spatial layers: registered layers, what they carry, and errors about them."""

import dataclasses

import e3nn_jax as e3nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import EGNOConfig, testing
from egno_jax.nn import Block, State, register_layer
from egno_jax.nn import block as block_lib
from tests import helpers

CONFIG = EGNOConfig(num_layers=2, hidden_dim=8, num_modes=2, time_embed_dim=8)
TIMES = np.arange(1.0, 4.0, dtype=np.float32)


class VectorLayer(nn.Module):
    """Carries vectors and pseudo-vectors of the messages' directions from block to block."""

    config: EGNOConfig

    @staticmethod
    def carries(config):
        return {"vectors": "3x1o + 2x1e"}

    @nn.compact
    def __call__(self, state, graph):
        i, j, num_nodes = graph.receivers, graph.senders, state.positions.shape[1]
        r = state.positions[:, i] - state.positions[:, j]
        inputs = [state.features[:, i], state.features[:, j], jnp.sum(r**2, -1, keepdims=True)]
        message = nn.silu(nn.Dense(8)(jnp.concatenate(inputs, axis=-1)))
        gates = nn.Dense(4)(message)
        pushed = egno_jax.ops.segment_sum(
            (gates[..., :3, None] * r[..., None, :]).reshape(*r.shape[:2], 9), i, num_nodes
        ).reshape(*r.shape[:1], num_nodes, 3, 3)
        vectors = state.extra["vectors"]
        old = vectors.filter("1o").array.reshape(pushed.shape)
        spin = vectors.filter("1e").array.reshape(*old.shape[:2], 2, 3)
        spin = spin + jnp.cross(old[..., :2, :], pushed[..., 1:, :])
        new = e3nn.concatenate(
            [
                e3nn.IrrepsArray("3x1o", (old + pushed).reshape(*old.shape[:2], 9)),
                e3nn.IrrepsArray("2x1e", spin.reshape(*old.shape[:2], 6)),
            ]
        )
        step = jnp.sum(new.filter("1o").array.reshape(old.shape), axis=-2)
        step = step + jnp.cross(spin[..., 0, :], state.velocities)
        sums = egno_jax.ops.segment_sum(message, i, num_nodes)
        features = nn.Dense(8)(jnp.concatenate([state.features, sums], axis=-1))
        return State(state.positions + 0.1 * step, state.velocities, features, {"vectors": new})


@pytest.fixture(scope="module")
def registered():
    register_layer("vectors_for_tests", VectorLayer)
    yield dataclasses.replace(CONFIG, layer="vectors_for_tests")
    block_lib._LAYERS.pop("vectors_for_tests")


@pytest.mark.slow
def test_the_kit_finds_a_registered_layer_right_alone_and_in_the_model(registered):
    assert max(testing.check_all("vectors_for_tests", registered).values()) < 1e-4
    assert max(testing.check_all(registered).values()) < 1e-4


def test_every_leaf_is_convolved_over_time_by_its_kind(registered):
    weights = helpers.random_params(np.random.default_rng(0), registered).weights
    block = weights["block_1"]
    assert block.keys() == {
        "temporal_conv",
        "vector_temporal_conv",
        "temporal_conv_vectors",
        "vectors_for_tests_layer",
    }
    kernels = block["temporal_conv_vectors"]
    assert {name: leaf.shape for name, leaf in kernels.items()} == {
        "kernel_1o": (2, 2, 3, 3),
        "kernel_1e": (2, 2, 2, 2),
    }


def test_a_registered_layer_is_saved_and_loaded_and_asks_for_its_module(registered, tmp_path):
    graph = helpers.random_graph(np.random.default_rng(0))
    params = egno_jax.init(jax.random.key(0), registered, graph, TIMES)
    egno_jax.save(tmp_path / "model", params)
    loaded = egno_jax.load(tmp_path / "model")
    expected = helpers.apply(params, graph, TIMES)
    helpers.assert_trees_close(helpers.apply(loaded, graph, TIMES), expected, 0.0)
    layer = block_lib._LAYERS.pop("vectors_for_tests")
    try:
        with pytest.raises(egno_jax.CheckpointError, match="import the module that calls"):
            egno_jax.load(tmp_path / "model")
    finally:
        block_lib._LAYERS["vectors_for_tests"] = layer


def test_a_layer_given_to_the_module_needs_no_name():
    graph = helpers.random_graph(np.random.default_rng(0))
    module = egno_jax.EGNO(CONFIG, layer=VectorLayer)
    found, variables = helpers.init_layer(module, graph, TIMES)
    assert "spatial_layer" in variables["params"]["block_0"]
    assert found.positions.shape == (3, 8, 3)


def test_the_block_says_what_a_layer_returned():
    class Narrow(nn.Module):
        config: EGNOConfig

        def __call__(self, state, graph):
            return state._replace(features=state.features[..., :2])

    class Bare(nn.Module):
        config: EGNOConfig

        def __call__(self, state, graph):
            return state.positions

    graph = helpers.random_graph(np.random.default_rng(0))
    for layer, message in (
        (Narrow, r"spatial_layer: got features of shape \(3, 8, 2\), expected \(3, 8, 8\)"),
        (Bare, "spatial_layer: got .*, expected egno_jax.nn.State"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(egno_jax.EGNO(CONFIG, layer).init, jax.random.key(0), graph, TIMES)


def test_names_of_layers_are_checked():
    with pytest.raises(ValueError, match=r"name: got 'a layer', expected an identifier"):
        register_layer("a layer", VectorLayer)
    with pytest.raises(ValueError, match=r"name: got 'egnn', expected one that is not taken"):
        register_layer("egnn", VectorLayer)
    graph = helpers.random_graph(np.random.default_rng(0))
    wrong = dataclasses.replace(CONFIG, layer="vecto")
    with pytest.raises(ValueError, match=r"config.layer: got 'vecto', expected one of \['egnn'"):
        egno_jax.init(jax.random.key(0), wrong, graph, TIMES)


def test_the_former_block_has_the_weights_and_results_of_the_block():
    rng, graph = np.random.default_rng(0), helpers.random_graph(np.random.default_rng(0))
    state = State(*(rng.normal(size=(3, 8, size)).astype(np.float32) for size in (3, 3, 8)))
    config = dataclasses.replace(CONFIG, mean_field=True, mean_field_channels=2)
    expected, variables = helpers.init_layer(Block(config), state, graph)
    former = egno_jax.nn.EGNOBlock(8, num_modes=2, mean_field=True, mean_field_channels=2)
    ids = np.repeat(np.arange(2), graph.n_node)
    edges = (graph.edges["features"], graph.senders, graph.receivers)
    with pytest.warns(DeprecationWarning, match=r"EGNOBlock is deprecated .*nn\.Block"):
        found = jax.jit(lambda *x: former.apply(*x, None, ids, 2))(variables, *state[:3], *edges)
    helpers.assert_trees_close(tuple(found), tuple(expected[:3]), 1e-6)


def test_a_layer_that_is_registered_again_takes_the_place_of_the_old_one(monkeypatch):
    """As when the cell of a notebook that registers it is edited and run again."""
    monkeypatch.setattr(block_lib, "_LAYERS", dict(block_lib._LAYERS))
    graph = helpers.random_graph(np.random.default_rng(0))
    config = dataclasses.replace(CONFIG, num_layers=1, layer="again")

    def define(width):
        class Again(nn.Module):
            config: EGNOConfig

            @nn.compact
            def __call__(self, state, graph):
                return state._replace(features=nn.Dense(8)(nn.Dense(width)(state.features)))

        register_layer("again", Again)

    for width in (4, 6):
        define(width)
        params = egno_jax.init(jax.random.key(0), config, graph, TIMES)
        kernel = params.weights["block_0"]["again_layer"]["Dense_0"]["kernel"]
        assert kernel.shape == (width, 8)
        egno_jax.params.check_weights(params)


def test_a_layer_may_use_edge_features_twice_or_not_get_any(monkeypatch):
    monkeypatch.setattr(block_lib, "_LAYERS", dict(block_lib._LAYERS))

    @register_layer("twice")
    class Twice(nn.Module):
        config: EGNOConfig

        @nn.compact
        def __call__(self, state, graph):
            ones = jnp.ones((graph.senders.shape[0], 1))
            given = [] if graph.edges is None else [graph.edges["features"]]
            edges = jnp.concatenate([ones, *given, *(x**2 for x in given)], axis=-1)
            return state._replace(features=state.features + nn.Dense(8)(edges).mean(axis=0))

    config = dataclasses.replace(CONFIG, num_layers=1, layer="twice")
    for num_edge_features in (0, 1, 3):
        graph = testing.random_graph(np.random.default_rng(0), num_edge_features=num_edge_features)
        params = egno_jax.init(jax.random.key(0), config, graph, TIMES)
        assert egno_jax.model.feature_sizes(params) == (2, num_edge_features)
        egno_jax.params.check_weights(params)
