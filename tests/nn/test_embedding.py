"""The lift of a state's features to every requested time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import nn, ops
from tests import helpers


def test_embedding_is_a_linear_layer_of_features_and_embedded_times():
    rng = np.random.default_rng(0)
    features, times = rng.normal(size=(4, 2)), rng.uniform(0, 9, 3)
    with helpers.using("float64"):
        layer = nn.TimeEmbedding(5, dim=6, param_dtype="float64")
        found, variables = helpers.init_layer(layer, features, times)
        weights = variables["params"]["linear"]
        assert weights["kernel"].shape == (8, 5)
        embedding = np.asarray(ops.sinusoidal_embedding(jnp.asarray(times), 6))
    rows = np.concatenate(
        [np.tile(features, (3, 1, 1)), np.repeat(embedding[:, None], 4, axis=1)], axis=-1
    )
    expected = rows @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
    assert found.shape == (3, 4, 5)
    helpers.assert_close(found, expected, 1e-14)


def test_times_of_each_graph_reach_its_nodes_alone():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(5, 2)).astype(np.float32)
    times = np.array([[1.0, 4.0], [2.0, 8.0]], np.float32)
    graph_ids = np.array([0, 0, 1, 1, 1])
    layer = nn.TimeEmbedding(6, dim=8)
    found, variables = helpers.init_layer(layer, features, times, graph_ids)
    for graph in (0, 1):
        is_mine = graph_ids == graph
        expected = layer.apply(variables, features[is_mine], times[:, graph])
        np.testing.assert_allclose(found[:, is_mine], expected, atol=1e-6)


def test_times_of_each_graph_need_to_know_the_graphs():
    with pytest.raises(ValueError, match=r"graph_ids: got None with times of shape \[2, 3\]"):
        nn.TimeEmbedding(6).init(jax.random.key(0), jnp.ones((4, 1)), jnp.ones((2, 3)))


def test_sines_are_taken_in_float32_also_for_bfloat16():
    """bfloat16 has no 257: its sine would be that of 256 or 258."""
    times = jnp.asarray([257.0])
    layer = nn.TimeEmbedding(4, dim=2, dtype="bfloat16")
    found, variables = helpers.init_layer(layer, jnp.zeros((1, 1)), times)
    exact = nn.TimeEmbedding(4, dim=2).apply(variables, jnp.zeros((1, 1)), times)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)
    rounded = nn.TimeEmbedding(4, dim=2).apply(variables, jnp.zeros((1, 1)), times - 1)
    assert np.abs(rounded - exact).max() > 0.1
