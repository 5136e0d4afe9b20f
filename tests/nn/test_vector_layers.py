"""Layers that carry vectors and tensors: symmetries, external directions, handedness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import EGNOConfig, nn, ops, testing
from egno_jax import graph as graph_lib
from tests import helpers

SMALL = {"num_layers": 1, "hidden_dim": 8, "time_embed_dim": 8, "num_vectors": 2, "max_degree": 1}
TIMES = np.array([1.0, 2.0, 3.0], np.float32)
LAYERS = ("vector", "steerable")


def graph_and_params(layer, **fields):
    config = EGNOConfig(**SMALL | fields, layer=layer)
    graph = testing.random_graph(
        np.random.default_rng(0), num_external_vectors=config.num_external_vectors
    )
    return graph, egno_jax.init(jax.random.key(0), config, graph, TIMES)


@pytest.mark.parametrize("layer", ["vector", pytest.param("steerable", marks=pytest.mark.slow)])
def test_models_have_every_property_also_with_external_directions(layer):
    graph, params = graph_and_params(layer, num_external_vectors=2)
    testing.check_all(params, graph=graph, times=TIMES)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_have_every_property_alone_and_in_float64(layer):
    config = EGNOConfig(**SMALL | {"max_degree": 3, "num_layers": 2}, layer=layer)
    testing.check_all(layer, config)
    with helpers.using("float64"):
        testing.check_all(dataclasses.replace(config, param_dtype="float64"))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["vector", "steerable"])
def test_only_so3_tells_an_image_from_its_mirror_image(layer):
    for symmetry in ("O(3)", "SO(3)"):
        graph, params = graph_and_params(layer, symmetry=symmetry, num_layers=2)
        # Cross products are small at the start, and handedness is a product of three vectors.
        params = jax.tree.map(lambda x: 3 * x, params)
        apply = jax.jit(egno_jax.apply)
        mirror = np.diag([1.0, 1.0, -1.0]).astype(np.float32)
        nodes = {name: graph.nodes[name] @ mirror for name in ("positions", "velocities")}
        mirrored = graph._replace(nodes=graph.nodes | nodes)
        found = apply(params, mirrored, TIMES).positions
        error = helpers.relative_error(found, apply(params, graph, TIMES).positions @ mirror)
        assert (error < 1e-5) == (symmetry == "O(3)"), error
    testing.check_equivariance(params, graph=graph, times=TIMES, reflections=False, tolerance=1e-4)


def test_blocks_give_what_the_edges_give():
    rng = np.random.default_rng(1)
    graph = graph_lib.batch(
        [
            graph_lib.build(
                positions=rng.normal(size=(n, 3)),
                velocities=rng.normal(size=(n, 3)),
                features=rng.normal(size=(n, 1)),
                edges=graph_lib.fully_connected_edges(n),
            )
            for n in (4, 3)
        ]
    )
    graph.nodes["vectors"] = rng.normal(size=(7, 1, 3)).astype(np.float32)
    config = EGNOConfig(**SMALL, layer="vector")
    params = egno_jax.init(jax.random.key(0), config, graph, TIMES)

    def loss(params, graph):
        return jnp.sum(jnp.square(egno_jax.apply(params, graph, TIMES).positions))

    found, expected = (
        jax.jit(jax.value_and_grad(loss))(params, graph_lib.prepare(graph, kind))
        for kind in ("blocks", "none")
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_external_directions_matter_and_must_be_those_of_the_model(tmp_path):
    graph, params = graph_and_params("vector", num_external_vectors=1)
    assert params.config.num_external_vectors == 1
    apply = jax.jit(egno_jax.apply)
    plain = apply(params, graph, TIMES).positions
    nodes = graph.nodes | {"vectors": -graph.nodes["vectors"]}
    turned = apply(params, graph._replace(nodes=nodes), TIMES).positions
    assert helpers.relative_error(turned, plain) > 1e-4
    egno_jax.save(tmp_path / "model", params)
    loaded = egno_jax.load(tmp_path / "model")
    assert np.array_equal(apply(loaded, graph, TIMES).positions, plain)
    without = {name: x for name, x in graph.nodes.items() if name != "vectors"}
    with pytest.raises(ValueError, match=r"vectors'\]: got 0 external vectors, expected 1"):
        egno_jax.apply(params, graph._replace(nodes=without), TIMES)
    with pytest.raises(ValueError, match=r"vectors'\]: got .*, expected floating \[N, V, 3\]"):
        bad = graph.nodes | {"vectors": np.zeros((8, 3), np.float32)}
        egno_jax.apply(params, graph._replace(nodes=bad), TIMES)


@pytest.mark.parametrize("config", [EGNOConfig(), EGNOConfig(layer="vector", num_vectors=1)])
def test_layers_refuse_more_directions_than_they_carry(config):
    graph = testing.random_graph(np.random.default_rng(0), num_external_vectors=2)
    with pytest.raises(ValueError, match="got 2 external vectors, expected no more than the layer"):
        egno_jax.init(jax.random.key(0), config, graph, TIMES)


def test_options_are_changed_in_a_subclass():
    class Plain(nn.VectorLayer):
        pseudovectors: bool = False
        residual: bool = False
        aggregation: str = "mean"

    config = EGNOConfig(**SMALL)
    assert Plain.carries(config) == {"vectors": "2x1o"}
    testing.check_equivariance(Plain, config)


def test_standardized_rows_have_mean_0_and_variance_1():
    x = 3 + 5 * np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    found = np.asarray(ops.standardized(x))
    np.testing.assert_allclose(found.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(found.var(-1), 1, atol=1e-4)
