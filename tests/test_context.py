"""The temporal grid "context": a function of time, read at any times."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import egno_jax
from egno_jax import EGNOConfig, ops
from tests import helpers
from tests.helpers import assert_close, assert_trees_close, using

CONTEXT_TIMES = (2.0, 4.0, 6.0, 8.0)
CONFIG = EGNOConfig(
    num_layers=2,
    hidden_dim=8,
    num_modes=3,
    time_scale=2.0,
    temporal_grid="context",
    context_times=CONTEXT_TIMES,
)
SHUFFLED = np.array([0.5, 3.0, 4.0, 7.25, 30.0])


def model_and_graph(dtype="float64", config=CONFIG):
    rng = np.random.default_rng(0)
    graph = helpers.random_graph(rng, dtype=dtype)
    config = dataclasses.replace(config, param_dtype=dtype)
    return helpers.perturbed(helpers.random_params(rng, config), rng), graph


def naive_response(x, kernel, context_times, times):
    """Returns the response at each time by the sums of the definition, for `[R, C]` signals."""
    num_context = len(context_times)
    period = num_context * (context_times[1] - context_times[0])
    x = x[:num_context]
    response = np.zeros((len(times), kernel.shape[-1]))
    for k in range(min(kernel.shape[1], num_context // 2 + 1)):
        phases = np.exp(-2j * np.pi * k * np.arange(num_context) / num_context)
        coefficient = phases @ x / num_context @ (kernel[0, k] + 1j * kernel[1, k])
        amplitude = 1 if k == 0 or 2 * k == num_context else 2
        angle = 2 * np.pi * k * (np.asarray(times) - context_times[0]) / period
        response += amplitude * np.real(np.exp(1j * angle)[:, None] * coefficient)
    return response


@settings(max_examples=20)
@given(st.integers(2, 7), st.integers(1, 4), st.integers(0, 2**31))
def test_the_response_is_that_of_the_definition(num_context, num_modes, seed):
    rng = np.random.default_rng(seed)
    context_times = 1.5 + 0.5 * np.arange(num_context)
    times = np.concatenate([context_times, rng.uniform(-10, 10, 3)])
    x = rng.normal(size=(len(times), 1, 3))
    kernel = rng.normal(size=(2, num_modes, 3, 2))
    turns = (times - context_times[0]) / (0.5 * num_context)

    @jax.jit
    def responses(x, kernel, turns):
        found = ops.spectral_conv_at(x, kernel, ops.Context(num_context, turns))
        per_node = ops.spectral_conv_at(x, kernel, ops.Context(num_context, turns[:, None]))
        return found, per_node, ops.spectral_conv(x[:num_context], kernel)

    with using("float64"):
        found, per_node, on_grid = responses(x, kernel, turns)
    expected = naive_response(x[:, 0], kernel, context_times, times)
    assert_close(found[:, 0], expected, 1e-12)
    assert_close(per_node, found, 1e-12)
    assert_close(found[:num_context], on_grid, 1e-12)


@pytest.mark.parametrize("count", [4, 5])
def test_asked_for_its_context_times_it_is_the_original_model(count):
    config = dataclasses.replace(CONFIG, context_times=tuple(2.0 * (1 + p) for p in range(count)))
    with using("float64"):
        params, graph = model_and_graph(config=config)
        index = dataclasses.replace(params.config, temporal_grid="index", context_times=())
        times = np.array(config.context_times)
        found = helpers.apply(params, graph, times)
        expected = helpers.apply(dataclasses.replace(params, config=index), graph, times)
        assert_trees_close(found, expected, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_a_time_does_not_depend_on_what_else_is_asked(dtype, tolerance):
    """Irregular times together, one at a time, and among others."""
    with using(dtype):
        params, graph = model_and_graph(dtype)
        times = SHUFFLED.astype(dtype)
        together = helpers.apply(params, graph, times)
        for index, time in enumerate(times):
            alone = helpers.apply(params, graph, np.array([time]))
            assert_trees_close(
                jax.tree.map(lambda x, i=index: x[i : i + 1], together), alone, tolerance
            )


def test_the_index_grid_does_depend_on_it():
    """What the context grid is for: the contrast that makes the test above mean something."""
    with using("float64"):
        params, graph = model_and_graph()
        index = dataclasses.replace(params.config, temporal_grid="index", context_times=())
        params = dataclasses.replace(params, config=index)
        together = helpers.apply(params, graph, SHUFFLED).positions
        alone = helpers.apply(params, graph, SHUFFLED[:1]).positions
        assert helpers.relative_error(together[:1], alone) > 1e-3


def test_graphs_may_ask_for_times_of_their_own():
    with using("float64"):
        params, graph = model_and_graph()
        first, second = SHUFFLED, SHUFFLED + 1.0
        together = helpers.apply(params, graph, np.stack([first, second], axis=1))
        size = int(graph.n_node[0])
        for times, nodes in ((first, slice(size)), (second, slice(size, None))):
            alone = helpers.apply(params, graph, times)
            assert_trees_close(
                jax.tree.map(lambda x, n=nodes: x[:, n], together),
                jax.tree.map(lambda x, n=nodes: x[:, n], alone),
                1e-12,
            )


def test_the_trajectory_is_smooth_in_time_and_turns_with_its_input():
    """The derivative by time is finite and that of differences; a rotation commutes with it."""
    with using("float64"):
        params, graph = model_and_graph()

        def at(time):
            return helpers.apply(params, graph, time[None]).positions[0]

        time, step = jnp.asarray(3.3), 1e-5
        derivative = jax.jacfwd(at)(time)
        assert_close(derivative, (at(time + step) - at(time - step)) / (2 * step), 1e-6)

        rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
        nodes = {
            name: array @ rotation.T if name != "features" else array
            for name, array in graph.nodes.items()
        }
        turned = helpers.apply(params, graph._replace(nodes=nodes), SHUFFLED).positions
        assert_close(turned, helpers.apply(params, graph, SHUFFLED).positions @ rotation.T, 1e-11)


def test_the_configuration_travels(tmp_path):
    params, _ = model_and_graph("float32")
    egno_jax.save(tmp_path / "model", params)
    assert egno_jax.load(tmp_path / "model").config == params.config
    assert EGNOConfig.from_json(params.config.to_json()) == params.config
    hash(params.config)


@pytest.mark.parametrize(
    "times", [(), (1.0,), (1.0, 1.0), (2.0, 1.0), (1.0, 2.0, 4.0), (1.0, float("nan")), ("a", "b")]
)
def test_bad_context_times_are_refused(times):
    with pytest.raises(
        ValueError, match=r"EGNOConfig.context_times: got .*, expected at least two"
    ):
        EGNOConfig(temporal_grid="context", context_times=times)


def test_context_times_need_the_context_grid():
    with pytest.raises(ValueError, match=r"context_times: got .* expected none"):
        EGNOConfig(context_times=CONTEXT_TIMES)
