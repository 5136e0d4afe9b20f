"""Blocks compiled as a loop over their weights: the same results, one block in the program."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import graph as graph_lib
from egno_jax.training import MeshShape, TrainingConfig, make_mesh
from egno_jax.training.flat import unflatten
from egno_jax.training.step import Trainer, init_state
from tests import helpers
from tests.training.mesh_runs import task

TIMES = np.array([1.0, 2.0, 4.0])
CONFIGS = {
    "egnn": {},
    "vector": {"layer": "vector", "num_vectors": 2},
    "steerable": {"layer": "steerable", "num_vectors": 2},
    "mean field": {"mean_field": True, "mean_field_channels": 2},
    "context": {"temporal_grid": "context", "context_times": (1.0, 2.0, 3.0)},
    "bfloat16": {"dtype": "bfloat16"},
}


def graph_of(dtype):
    rng = np.random.default_rng(0)
    edges = graph_lib.fully_connected_edges(5)
    edges = edges._replace(features=rng.normal(size=(20, 2)).astype(dtype))
    return graph_lib.build(*(rng.normal(size=(5, n)).astype(dtype) for n in (3, 3, 2)), edges)


def loss(params, graph):
    trajectory = egno_jax.apply(params, graph, TIMES)
    total = jnp.sum(jnp.sin(trajectory.positions)) + jnp.sum(jnp.sin(trajectory.velocities))
    return total + jnp.mean(trajectory.features.astype(total.dtype) ** 2), trajectory


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("egnn", "float32"),
        *(pytest.param(kind, "float64", marks=pytest.mark.slow) for kind in CONFIGS),
    ],
)
def test_values_and_gradients_are_those_of_separate_blocks(kind, inputs):
    with jax.enable_x64(True):
        options = {"hidden_dim": 8, "time_embed_dim": 4, "num_layers": 2, **CONFIGS[kind]}
        config = egno_jax.EGNOConfig(**options, param_dtype="float64")
        graph = graph_of(inputs)
        params = helpers.random_params(np.random.default_rng(0), config)
        scanned = dataclasses.replace(config, scan_layers=True)
        of = jax.jit(jax.value_and_grad(loss, has_aux=True))
        expected, found = of(params, graph), of(dataclasses.replace(params, config=scanned), graph)
        # In bfloat16 another order of products is another rounding.
        tolerance = 0.02 if kind == "bfloat16" else 1e-11
        helpers.assert_trees_close(jax.tree.leaves(found), jax.tree.leaves(expected), tolerance)
        assert [x.dtype for x in jax.tree.leaves(found)] == [
            x.dtype for x in jax.tree.leaves(expected)
        ]


def test_the_program_has_one_block():
    graph = graph_of("float32")

    def length(num_layers, scan_layers):
        config = egno_jax.EGNOConfig(num_layers=num_layers, hidden_dim=8, scan_layers=scan_layers)
        params = helpers.random_params(np.random.default_rng(0), config)
        return len(jax.jit(egno_jax.apply).lower(params, graph, TIMES).compile().as_text())

    assert length(4, False) > 1.6 * length(2, False)
    assert length(4, True) < 1.2 * length(2, True)


@pytest.mark.slow
def test_training_on_a_mesh_is_that_of_separate_blocks():
    params, train, valid = task()
    config = TrainingConfig(num_steps=20, batch_size=4, eval_batch_size=4)
    scanned = dataclasses.replace(
        params, config=dataclasses.replace(params.config, scan_layers=True)
    )
    mesh = make_mesh(MeshShape(data=1), devices=jax.devices()[:1])

    def run(params, mesh=None):
        trainer = Trainer(train, valid, config, mesh=mesh)
        state, metrics = trainer.advance(trainer.place(init_state(params, config)), 0, 20)
        return metrics.loss, trainer.evaluate(unflatten(state.params))

    expected = run(params)
    helpers.assert_trees_close(run(scanned), expected, 1e-5)
    helpers.assert_trees_close(run(scanned, mesh), expected, 1e-5)


@pytest.mark.slow
def test_a_layer_may_write_its_irreps_otherwise():
    e3nn = pytest.importorskip("e3nn_jax")

    class Apart(nn.Module):
        config: egno_jax.EGNOConfig

        @staticmethod
        def carries(config):
            return {"vectors": "2x1o"}

        @nn.compact
        def __call__(self, state, graph):
            array = state.extra["vectors"].array + jnp.tile(state.velocities, 2)
            return state._replace(extra={"vectors": e3nn.IrrepsArray("1o + 1o", array)})

    graph = graph_of("float32")
    config = egno_jax.EGNOConfig(num_layers=2, hidden_dim=8)
    variables = egno_jax.EGNO(config, layer=Apart).init(jax.random.key(0), graph, TIMES)
    scanned = dataclasses.replace(config, scan_layers=True)
    found, expected = (
        egno_jax.EGNO(each, layer=Apart).apply(variables, graph, TIMES)
        for each in (scanned, config)
    )
    helpers.assert_trees_close(found, expected, 1e-5)


def test_blocks_with_different_weights_are_refused():
    config = egno_jax.EGNOConfig(num_layers=2, hidden_dim=8, scan_layers=True)
    params = helpers.random_params(np.random.default_rng(0), config)
    layer = params.weights["block_1"]["egnn_layer"]
    layer["message_mlp"]["linear_0"]["bias"] = np.zeros(8)
    with jax.enable_x64(True):
        with pytest.raises(ValueError, match="scan_layers: got weights of block_1 that differ"):
            egno_jax.EGNO(config).apply({"params": params.weights}, graph_of("float32"), TIMES)


def test_a_module_of_your_own_may_contain_it():
    class Twice(nn.Module):
        config: egno_jax.EGNOConfig

        @nn.compact
        def __call__(self, graph):
            return 2 * egno_jax.EGNO(self.config, name="operator")(graph, TIMES).positions

    graph = graph_of("float32")
    config = egno_jax.EGNOConfig(num_layers=2, hidden_dim=8, scan_layers=True)
    module = Twice(config)
    variables = module.init(jax.random.key(0), graph)
    params = egno_jax.Params(weights=variables["params"]["operator"], config=config)
    expected = 2 * helpers.apply(params, graph, TIMES).positions
    found = jax.jit(functools.partial(module.apply, variables))(graph)
    helpers.assert_close(found, expected, 1e-5)
