"""Baselines keep the model's contract, and each is what its name says."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import baselines, testing, training
from egno_jax.baselines import METHODS, BaselineConfig
from egno_jax.baselines.models import _MODULES
from egno_jax.datasets.base import Samples
from tests import helpers

TIMES = np.array([0.5, 1.0, 2.5], np.float32)
EQUIVARIANT = [method for method in METHODS if method != "mpnn"]
DECODERS = ["linear", "egnn-r", "egnn-s", "egno-no-conv"]


def config_of(method: str, **changes) -> BaselineConfig:
    sizes = {"num_layers": 3, "hidden_dim": 16, "time_embed_dim": 8}
    return BaselineConfig(method=method, **{**sizes, **changes})


def times_of(method: str) -> np.ndarray:
    return TIMES[-1:] if baselines.num_times(config_of(method)) == 1 else TIMES


@functools.cache
def model_of(method: str):
    graph = helpers.random_graph(np.random.default_rng(0))
    params = helpers.random_params(np.random.default_rng(1), config_of(method))
    # The default weights make small changes only; these make a difference.
    return graph, helpers.perturbed(params, np.random.default_rng(2))


def turned(graph, matrix, shift=0.0):
    nodes = dict(graph.nodes)
    nodes["positions"] = (nodes["positions"] @ matrix + shift).astype(np.float32)
    nodes["velocities"] = (nodes["velocities"] @ matrix).astype(np.float32)
    return graph._replace(nodes=nodes)


ROTATION, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_shapes_are_those_of_the_contract(method):
    graph, params = model_of(method)
    times = times_of(method)
    trajectory = helpers.apply(params, graph, times)
    num_nodes = len(graph.nodes["positions"])
    assert trajectory.positions.shape == (len(times), num_nodes, 3)
    assert trajectory.velocities.shape == (len(times), num_nodes, 3)
    width = graph.nodes["features"].shape[1] if method == "linear" else 16
    assert trajectory.features.shape == (len(times), num_nodes, width)
    egno_jax.model.check_params(params)


@pytest.mark.parametrize("method", EQUIVARIANT)
def test_rotates_and_moves_with_its_input(method):
    graph, params = model_of(method)
    options = {"graph": graph, "times": times_of(method), "tolerance": 2e-5}
    testing.check_equivariance(params, **options)
    testing.check_translation(params, **options)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "linear"])
def test_the_velocity_scale_is_the_unit_that_the_model_computes_in(method):
    graph, params = model_of(method)
    scaled = dataclasses.replace(
        params, config=dataclasses.replace(params.config, velocity_scale=4.0)
    )
    faster = {**graph.nodes, "velocities": 4 * graph.nodes["velocities"]}
    expected = helpers.apply(params, graph._replace(nodes=faster), times_of(method))
    found = helpers.apply(scaled, graph, times_of(method))
    helpers.assert_close(found.positions, expected.positions, 1e-5)
    helpers.assert_close(found.velocities, expected.velocities / 4, 1e-5)


def test_mpnn_moves_with_its_input_but_does_not_turn_with_it():
    graph, params = model_of("mpnn")
    before = helpers.apply(params, graph, TIMES[-1:])
    moved = helpers.apply(params, turned(graph, np.eye(3), 3.0), TIMES[-1:])
    helpers.assert_close(moved.positions, before.positions + 3.0, 2e-5)
    rotated = helpers.apply(params, turned(graph, ROTATION), TIMES[-1:])
    assert helpers.relative_error(rotated.positions, before.positions @ ROTATION) > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_no_real_node(method):
    graph, params = model_of(method)
    num_nodes = len(graph.nodes["positions"])
    padded, mask = egno_jax.graph.pad(graph, num_nodes=12, num_edges=24, num_graphs=4)
    assert mask.sum() == num_nodes
    times = times_of(method)
    alone, beside = (helpers.apply(params, g, times) for g in (graph, padded))
    helpers.assert_close(beside.positions[:, :num_nodes], alone.positions, 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_weight_that_moves_positions(method):
    graph, params = model_of(method)
    times = times_of(method)
    target = np.random.default_rng(3).normal(size=(len(times), *graph.nodes["positions"].shape))

    @jax.jit
    def gradient(params):
        return jax.grad(
            lambda p: jnp.mean((egno_jax.apply(p, graph, times).positions - target) ** 2)
        )(params)

    # Features behind the last layer, and MPNN's second head, are not seen by the loss.
    unseen = ("velocity_head", "layer_2/feature_mlp")
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params).weights):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), name
        if not any(part in name for part in unseen):
            assert np.abs(leaf).max() > 0, name


@pytest.mark.parametrize("method", DECODERS)
def test_graphs_may_ask_for_different_times(method):
    graph, params = model_of(method)
    same = np.repeat(TIMES[:, None], 2, axis=1)
    expected = helpers.apply(params, graph, TIMES)
    found = helpers.apply(params, graph, same)
    helpers.assert_close(found.positions, expected.positions, 1e-6)
    other = same * np.array([1.0, 2.0], np.float32)
    changed = helpers.apply(params, graph, other)
    first = graph.n_node[0]
    helpers.assert_close(changed.positions[:, :first], expected.positions[:, :first], 1e-6)
    if method != "egnn-s":  # whose times are its layers, whatever they are
        assert helpers.relative_error(changed.positions, expected.positions) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_bit_for_bit(method, tmp_path):
    _, params = model_of(method)
    egno_jax.save(tmp_path / "model", params)
    loaded = egno_jax.load(tmp_path / "model")
    assert loaded.config == params.config
    assert type(loaded.config) is BaselineConfig
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_the_linen_module_takes_and_refuses_what_apply_does(method):
    graph, params = model_of(method)
    module, times = _MODULES[method](params.config), times_of(method).tolist()
    made = jax.eval_shape(module.init, jax.random.key(0), graph, times)["params"]
    assert jax.tree.structure(made) == jax.tree.structure(params.weights)
    found = jax.jit(lambda weights: module.apply({"params": weights}, graph, times))(params.weights)
    expected = helpers.apply(params, graph, times_of(method))
    helpers.assert_close(found.positions, expected.positions, 1e-6)
    with pytest.raises(ValueError, match="times: got None"):
        module.init(jax.random.key(0), graph, None)
    with pytest.raises(ValueError, match="velocities"):
        module.init(
            jax.random.key(0), graph._replace(nodes={**graph.nodes, "velocities": 1}), times
        )


def test_linear_goes_straight_on_in_the_unit_of_time_scale():
    graph, _ = model_of("linear")
    config = config_of("linear", time_scale=2.0)
    params = egno_jax.init(jax.random.key(0), config, graph, TIMES)
    found = egno_jax.apply(params, graph, TIMES).positions
    steps = TIMES[:, None, None] / 2.0 * graph.nodes["velocities"]
    helpers.assert_close(found, graph.nodes["positions"] + steps, 1e-6)


def test_egnn_is_the_last_layer_of_egnn_s():
    graph, params = model_of("egnn-s")
    alone = dataclasses.replace(params, config=config_of("egnn"))
    sequence = helpers.apply(params, graph, TIMES)
    last = helpers.apply(alone, graph, TIMES[-1:])
    helpers.assert_close(last.positions, sequence.positions[-1:], 1e-6)


def test_egnn_r_is_one_step_again_and_again():
    graph, params = model_of("egnn-r")
    both = egno_jax.apply(params, graph, np.array([1.5, 3.0], np.float32))
    first = egno_jax.apply(params, graph, np.array([1.5], np.float32))
    helpers.assert_close(both.positions[:1], first.positions, 1e-6)
    nodes = {
        **graph.nodes,
        "positions": np.asarray(first.positions[0]),
        "velocities": np.asarray(first.velocities[0]),
    }
    second = egno_jax.apply(params, graph._replace(nodes=nodes), np.array([1.5], np.float32))
    helpers.assert_close(both.positions[1:], second.positions, 1e-5)


def test_egno_without_convolutions_is_egno_with_convolutions_that_do_nothing():
    graph, params = model_of("egno-no-conv")
    config = egno_jax.EGNOConfig(num_layers=3, hidden_dim=16, time_embed_dim=8)
    full = helpers.random_params(np.random.default_rng(1), config)
    weights = {"embedding": params.weights["embedding"]}
    for index in range(3):
        block = jax.tree.map(jnp.zeros_like, full.weights[f"block_{index}"])
        weights[f"block_{index}"] = {**block, "egnn_layer": params.weights[f"layer_{index}"]}
    same = helpers.apply(egno_jax.Params(weights, config), graph, TIMES)
    found = helpers.apply(params, graph, TIMES)
    helpers.assert_close(found.positions, same.positions, 1e-5)


@pytest.mark.parametrize("method", ["mpnn", "egnn"])
def test_state_to_state_models_refuse_several_times(method):
    graph, params = model_of(method)
    with pytest.raises(ValueError, match="times: got 3, expected 1"):
        egno_jax.apply(params, graph, TIMES)


def test_errors_name_the_field():
    graph, params = model_of("egnn-s")
    with pytest.raises(ValueError, match="times: got 4, expected at most 3"):
        egno_jax.apply(params, graph, np.arange(1.0, 5.0))
    with pytest.raises(ValueError, match=r"BaselineConfig\.method: got 'gru'"):
        BaselineConfig(method="gru")
    with pytest.raises(ValueError, match=r"BaselineConfig\.temporal_grid: got 'context'"):
        BaselineConfig(temporal_grid="context", context_times=(0.0, 1.0))
    with pytest.raises(ValueError, match="hidden_dim"):
        BaselineConfig(hidden_dim=0)
    wrong = helpers.random_graph(np.random.default_rng(0), num_node_features=5)
    with pytest.raises(ValueError, match=r"graph\.nodes\['features'\]: got 5 features, expected"):
        egno_jax.apply(params, wrong, TIMES)
    broken = dataclasses.replace(params, weights={"embedding": params.weights["embedding"]})
    with pytest.raises(ValueError, match=r"params.weights: got .* expected"):
        egno_jax.apply(broken, graph, TIMES)
    with pytest.raises(ValueError, match=r"params\.config: got a BaselineConfig"):
        egno_jax.to_torch_state_dict(params)


@pytest.mark.parametrize("method", ["egnn", "egnn-r", "egnn-s", "egno-no-conv"])
def test_a_mean_field_acts_and_is_equivariant(method):
    graph, _ = model_of(method)
    times = times_of(method)
    config = config_of(method, mean_field=True, mean_field_channels=2)
    rng = np.random.default_rng(2)
    params = helpers.random_params(rng, config)
    params = dataclasses.replace(
        params,
        weights=jax.tree.map(
            lambda x: np.float32(x + 0.1 * rng.normal(size=x.shape)), params.weights
        ),
    )

    def without_mean_field(path, leaf):
        return 0 * leaf if "mean_field" in jax.tree_util.keystr(path) else leaf

    bare = jax.tree_util.tree_map_with_path(without_mean_field, params)
    before = helpers.apply(params, graph, times)
    after = helpers.apply(params, turned(graph, ROTATION, 3.0), times)
    nothing = helpers.apply(bare, graph, times)
    assert helpers.relative_error(before.positions, nothing.positions) > 1e-3
    helpers.assert_close(after.positions, before.positions @ ROTATION + 3.0, 2e-5)
    num_nodes = len(graph.nodes["positions"])
    padded, _ = egno_jax.graph.pad(graph, num_nodes=12, num_edges=24, num_graphs=4)
    beside = helpers.apply(params, padded, times)
    helpers.assert_close(beside.positions[:, :num_nodes], before.positions, 1e-6)


def test_models_are_called_after_their_method_and_mean_field():
    titles = {
        (method, mean_field): baselines.title(config_of(method, mean_field=mean_field))
        for method in ("egnn", "egno-no-conv")
        for mean_field in (False, True)
    }
    assert titles["egnn", False] == "EGNN"
    assert titles["egnn", True] == "EGNN with mean field"
    assert titles["egno-no-conv", True] == titles["egno-no-conv", False]


@pytest.mark.parametrize("method", ["linear", "mpnn"])
def test_a_mean_field_has_no_place_without_equivariant_layers(method):
    with pytest.raises(ValueError, match=r"^BaselineConfig\.mean_field: got True, expected False"):
        config_of(method, mean_field=True)


def test_config_goes_through_json():
    config = config_of("egnn-r", time_scale=2.0)
    assert BaselineConfig.from_json(config.to_json()) == config
    assert baselines.title(config) == "EGNN-R"
    assert baselines.title(egno_jax.EGNOConfig()) == "EGNO"
    assert baselines.num_times(egno_jax.EGNOConfig()) is None


def test_trains_as_the_model_does(tmp_path):
    graph, _ = model_of("egnn")
    single = egno_jax.graph.unbatch(graph)[0]
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 4), single)
    targets = np.stack([single.nodes["positions"][None]] * 4) + 1.0
    mask = np.ones((4, targets.shape[2]), bool)
    samples = Samples(stacked, TIMES[-1:], targets, targets, mask)
    config = training.TrainingConfig(num_steps=4, batch_size=2, eval_every=2, ema_decay=0.0)
    params = helpers.random_params(np.random.default_rng(1), config_of("egnn"))
    result = training.fit(tmp_path, params, samples, samples, config)
    assert result.step == 4
    assert isinstance(egno_jax.load(tmp_path / "best").config, BaselineConfig)
