"""The test kit sees what it is made to see."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import EGNOConfig, published, testing
from egno_jax.baselines import BaselineConfig
from experiments.studies.local import LocalConfig
from tests import helpers

SMALL = {"num_layers": 1, "hidden_dim": 8, "time_embed_dim": 8}
CHECKS = (
    testing.check_equivariance,
    testing.check_translation,
    testing.check_permutation,
    testing.check_batch_independence,
    testing.check_padding,
)


@pytest.mark.parametrize(
    "config",
    [
        EGNOConfig(**SMALL, mean_field=True, mean_field_channels=2),
        BaselineConfig(**SMALL, method="egnn"),
        LocalConfig(**SMALL, mean_field=True),
        pytest.param(
            EGNOConfig(**SMALL, temporal_grid="context", context_times=(1.0, 2.0)),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            EGNOConfig(**SMALL, layer="vector", num_vectors=4, num_external_vectors=2),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda config: type(config).__name__ + config.temporal_grid,
)
def test_models_pass(config):
    found = testing.check_all(config)
    assert found.keys() == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize("name", published.names())
def test_published_models_pass_on_random_graphs_of_their_sizes(name):
    assert 0 < testing.check_equivariance(egno_jax.load(name)) < 1e-5


def test_params_without_edge_features_are_checked():
    config = EGNOConfig(**SMALL)
    params = helpers.random_params(np.random.default_rng(0), config, 3, 0)
    assert testing.check_permutation(params) < 1e-5


def test_graphs_with_a_layout_are_checked():
    config = EGNOConfig(**SMALL)
    params = helpers.random_params(np.random.default_rng(0), config, 2, 2)
    graph = testing.random_graph(np.random.default_rng(1))
    assert testing.check_permutation(params, graph=egno_jax.graph.prepare(graph, "list")) < 1e-5


def test_float64_is_checked_to_its_own_precision():
    with helpers.using("float64"):
        config = EGNOConfig(**SMALL, param_dtype="float64")
        assert testing.check_equivariance(config) < 1e-13


def test_mpnn_is_found_not_to_be_equivariant_and_moves_with_its_input():
    config = BaselineConfig(**SMALL, method="mpnn")
    with pytest.raises(AssertionError, match=r"positions, rotated .*: got a relative error of"):
        testing.check_equivariance(config)
    assert testing.check_translation(config) < 1e-4


def _layer(update):
    """Makes a spatial layer of a function of the state and the graph."""

    class Layer(nn.Module):
        config: EGNOConfig

        @nn.compact
        def __call__(self, state, graph):
            weight = self.param("weight", nn.initializers.ones, ())
            return update(weight, state, graph)

    return Layer


def _chiral(weight, state, graph):
    x = state.positions - state.positions.mean(axis=1, keepdims=True)
    turned = jnp.cross(x, state.velocities)
    return state._replace(positions=state.positions + weight * turned)


def _absolute(weight, state, graph):
    return state._replace(velocities=weight * state.positions)


def _ordered(weight, state, graph):
    rank = jnp.arange(state.features.shape[1])[:, None]
    return state._replace(features=state.features + weight * rank)


def _mixing(weight, state, graph):
    mean = state.features.mean(axis=1, keepdims=True)
    return state._replace(features=state.features + weight * mean)


def _of_lengths(weight, state, graph):
    """Adds lengths of edges, whose gradient is NaN on the loops of padding."""
    r = state.positions[:, graph.senders] - state.positions[:, graph.receivers]
    lengths = jnp.linalg.norm(r, axis=-1, keepdims=True)
    features = state.features.at[:, graph.receivers].add(weight * lengths)
    return state._replace(features=features)


@pytest.mark.parametrize(
    ("check", "update", "message"),
    [
        (testing.check_equivariance, _chiral, "positions, rotated .* determinant -1"),
        (testing.check_translation, _absolute, "velocities, translated"),
        (testing.check_permutation, _ordered, "features, permuted"),
        (testing.check_batch_independence, _mixing, "features, graph 0 alone"),
        (testing.check_padding, _mixing, "features, padded"),
        (testing.check_padding, _of_lengths, "padded: got a gradient that is not finite"),
    ],
)
def test_what_breaks_a_property_is_found_and_named(check, update, message):
    config = EGNOConfig(**SMALL)
    with pytest.raises(AssertionError, match=message):
        check(_layer(update), config)


def test_rotations_alone_may_be_asked_for():
    found = testing.check_equivariance(_layer(_chiral), EGNOConfig(**SMALL), reflections=False)
    assert found < 1e-5


def test_a_nan_fails():
    config = EGNOConfig(**SMALL)
    params = helpers.random_params(np.random.default_rng(0), config)
    params.weights["embedding"]["linear"]["bias"][0] = np.nan
    with pytest.raises(AssertionError, match="relative error of nan"):
        testing.check_permutation(dataclasses.replace(params))


def test_other_things_are_refused():
    with pytest.raises(ValueError, match="subject: got int, expected Params, an EGNOConfig"):
        testing.check_all(3)
