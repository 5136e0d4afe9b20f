"""The loop: resuming to the bit, the best model, signals, and refusals that leave things whole."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import signal
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax import training
from egno_jax.training import (
    JSONLines,
    TrainingConfig,
    evaluate,
    fit,
    inputs,
    loop,
    read_json_lines,
)
from tests import helpers
from tests.helpers import SignalAfter
from tests.training.conftest import CONFIG


def lines_in(directory, *others):
    return lambda start_step: [JSONLines(directory / "metrics.jsonl", start_step), *others]


def assert_same_weights(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found.weights, expected.weights)


def without_times(records):
    is_cost = re.compile("seconds|steps_per_second|.*_seconds|num_compiles|memory_bytes")
    return [
        {name: value for name, value in record.items() if not is_cost.fullmatch(name)}
        for record in records
    ]


@pytest.fixture(scope="module")
def whole_run(task, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    result = fit(directory, *task, CONFIG, make_callbacks=lines_in(directory))
    return directory, result


def test_the_best_model_is_the_one_of_the_least_validation_error(task, whole_run):
    directory, result = whole_run
    records = [r for r in read_json_lines(directory / "metrics.jsonl") if r["kind"] == "valid"]
    assert [record["step"] for record in records] == [6, 12]
    best = min(records, key=lambda record: record["f_mse"])
    assert (result.best_step, result.best_f_mse) == (best["step"], best["f_mse"])
    assert_same_weights(egno_jax.load(directory / "best"), result.params)
    errors = evaluate(result.params, task[2], batch_size=4)
    assert float(errors.f_mse) == result.best_f_mse
    assert (result.step, result.interrupted) == (12, False)


@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGTERM), (9, signal.SIGINT)])
def test_an_interrupted_run_resumes_to_the_same_bits(
    task, config, whole_run, tmp_path, step, number
):
    """Interrupted between two evaluations, when there is no checkpoint, or one already."""
    whole_directory, whole = whole_run
    callbacks = lines_in(tmp_path, SignalAfter(step, number))
    stopped = fit(tmp_path, *task, config, make_callbacks=callbacks)
    assert (stopped.step, stopped.interrupted) == (step, True)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    resumed = fit(tmp_path, *task, config, resume=True, make_callbacks=lines_in(tmp_path))
    assert (resumed.step, resumed.interrupted) == (12, False)
    assert resumed.best_f_mse == whole.best_f_mse
    assert_same_weights(resumed.params, whole.params)
    found, expected = (
        [r for r in without_times(read_json_lines(path / "metrics.jsonl")) if r["kind"] == "valid"]
        for path in (tmp_path, whole_directory)
    )
    assert found == expected


def test_a_killed_run_computes_its_lost_steps_again(task, config, whole_run, tmp_path):
    """An error between two checkpoints loses steps 7 to 9; their lines are not doubled."""

    class Kill(SignalAfter):
        def on_chunk(self, record):
            if record["step"] == 9:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, *task, config, make_callbacks=lines_in(tmp_path, Kill(0, 0)))
    resumed = fit(tmp_path, *task, config, resume=True, make_callbacks=lines_in(tmp_path))
    assert_same_weights(resumed.params, whole_run[1].params)
    records = without_times(read_json_lines(tmp_path / "metrics.jsonl"))
    assert records == without_times(read_json_lines(whole_run[0] / "metrics.jsonl"))


def test_resuming_a_finished_run_does_nothing_more(task, config, whole_run):
    directory, whole = whole_run
    again = fit(directory, *task, config, resume=True)
    assert again.step == 12
    assert_same_weights(again.params, whole.params)


def test_a_directory_with_a_run_is_refused(task, config, whole_run):
    with pytest.raises(ValueError, match="holds a run of 12 steps already; pass resume=True"):
        fit(whole_run[0], *task, config)


def test_a_checkpoint_of_another_model_is_refused(task, config, whole_run):
    params, train, valid = task
    wider = dataclasses.replace(params.config, hidden_dim=16)
    other = helpers.random_params(np.random.default_rng(0), wider, 1, 2)
    with pytest.raises(egno_jax.CheckpointError, match="model setting hidden_dim: got 16"):
        fit(whole_run[0], other, train, valid, config, resume=True)


def test_bad_data_is_refused_before_anything_is_written(task, config, tmp_path):
    params, train, valid = task
    graph = train.graph
    nodes = {**graph.nodes, "positions": np.array(graph.nodes["positions"])}
    nodes["positions"][3, 2, 1] = np.nan
    bad_graph = train._replace(graph=graph._replace(nodes=nodes))
    bad_target = valid._replace(positions=np.full_like(valid.positions, np.inf))
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"train: .*positions"):
        fit(run, params, bad_graph, valid, config)
    with pytest.raises(ValueError, match=r"valid: positions: got NaN or infinite"):
        fit(run, params, train, bad_target, config)
    with pytest.raises(ValueError, match="batch_size: got 17, expected from 1 to 16"):
        fit(run, *task, dataclasses.replace(config, batch_size=17))
    assert not run.exists()


def half(params):
    """Returns a model in float16."""
    config = dataclasses.replace(params.config, param_dtype="float16")
    return egno_jax.Params(jax.tree.map(np.float16, params.weights), config)


FAULTS = {
    "a config": (
        lambda p, t, v: (p.config, t, v),
        "params: got EGNOConfig, expected egno_jax.Params; make them with",
    ),
    "weights in float16": (
        lambda p, t, v: (half(p), t, v),
        "params.config.param_dtype: got 'float16', .*expected 'bfloat16'",
    ),
    "no validation set": (lambda p, t, v: (p, t, None), "valid: samples: got NoneType"),
    "no training set": (lambda p, t, v: (p, None, v), "train: samples: got NoneType"),
    "positions of other samples": (
        lambda p, t, v: (p, t._replace(positions=t.positions[:8]), v),
        "train: positions: got .*axis 0 must have length 16",
    ),
    "valid at other times": (
        lambda p, t, v: (p, t, v._replace(times=v.times + 1)),
        r"valid: times: got \[2. 3.\], expected those of the training set, \[1. 2.\]",
    ),
    "valid at fewer times": (
        lambda p, t, v: (
            p,
            t,
            v._replace(
                times=v.times[1:], positions=v.positions[:, 1:], velocities=v.velocities[:, 1:]
            ),
        ),
        r"valid: times: got \[2.\], expected those",
    ),
    "valid without edge features": (
        lambda p, t, v: (p, t, v._replace(graph=v.graph._replace(edges=None))),
        r"valid: graph.edges\['features'\]: got 0 features, expected 2",
    ),
    "no velocities": (
        lambda p, t, v: (p, t._replace(velocities=None), v),
        r"train.velocities: got None, .*velocity_weight is 0.1",
    ),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_does_not_go_together_is_refused(task, config, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", *change(*task), config)
    assert not (tmp_path / "run").exists()


def test_arguments_of_another_kind_are_named(task, config, tmp_path):
    with pytest.raises(ValueError, match="config: got EGNOConfig, expected a TrainingConfig"):
        fit(tmp_path / "run", *task, task[0].config)
    with pytest.raises(ValueError, match="make_callbacks: got list, expected a function"):
        fit(tmp_path / "run", *task, config, make_callbacks=[])
    with pytest.raises(ValueError, match="params: got EGNOConfig"):
        evaluate(task[0].config, task[2])
    assert not (tmp_path / "run").exists()


def test_without_a_velocity_weight_no_velocities_are_needed(task, config):
    params, train, _ = task
    config = dataclasses.replace(config, velocity_weight=0.0)
    bare = train._replace(velocities=None)
    inputs._check_objective(params, bare, config, None)
    state, step = training.init_state(params, config), training.train_step
    jax.eval_shape(functools.partial(step, config=config), state, bare)
    with pytest.raises(ValueError, match=r"batch.velocities: got None .*velocity_weight=0.1"):
        jax.eval_shape(functools.partial(step, config=CONFIG), state, bare)


def test_a_diverging_run_stops_and_names_the_step(task, config, tmp_path):
    params, train, valid = task
    huge = dataclasses.replace(
        params, weights=jax.tree.map(lambda leaf: leaf + 1e30, params.weights)
    )
    config = dataclasses.replace(config, max_skipped_steps=2)
    expected = r"step 1: the loss is .* on the training samples \d+, \d+, \d+, \d+; 3 steps of"
    with pytest.raises(training.NonFiniteLossError, match=expected):
        fit(tmp_path, huge, train, valid, config)


def test_steps_that_are_not_finite_are_skipped_and_counted(task, config, tmp_path):
    """One target is so far away that the squared distance overflows: its steps leave no trace."""
    params, train, valid = task
    positions = np.array(train.positions)
    positions[5] = 1e30
    far = train._replace(positions=positions)
    key = training.init_state(params, config).sampler_key
    batches = [training.batch_indices(key, step, 16, config.batch_size) for step in range(12)]
    is_hit = [bool((batch == 5).any()) for batch in batches]
    assert sum(is_hit) == 3
    result = fit(tmp_path, params, far, valid, config, make_callbacks=lines_in(tmp_path))
    assert result.step == 12 and np.isfinite(result.best_f_mse)
    records = read_json_lines(tmp_path / "metrics.jsonl")
    found = [record["skipped_steps"] for record in records if record["kind"] == "train"]
    assert found == [sum(is_hit[:step]) for step in (3, 6, 9, 12)]

    state = training.init_state(params, config)
    for batch_is_hit in is_hit:
        before = jax.device_get((state.params, state.ema, state.opt_state))
        state, metrics = training.train_chunk(state, far, config, 1)
        after = jax.device_get((state.params, state.ema, state.opt_state))
        assert bool(metrics.is_skipped[0]) == batch_is_hit
        same = jax.tree.all(jax.tree.map(np.array_equal, before, after))
        assert same == batch_is_hit

    first = is_hit.index(True) + 1
    strict = dataclasses.replace(config, max_skipped_steps=0)
    with pytest.raises(training.NonFiniteLossError, match=f"step {first}: the loss is "):
        fit(tmp_path / "strict", params, far, valid, strict)


def test_a_step_whose_update_alone_is_not_finite_is_skipped(task, config):
    params, train, _ = task
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e30, warmup_steps=0)
    config = dataclasses.replace(config, optimizer=optimizer)
    state = training.init_state(params, config)
    before = jax.device_get(state)
    state, metrics = training.train_chunk(state, train, config, 1)
    assert np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm) and metrics.is_skipped
    for name in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("batch_size", 0),
        ("seed", -1),
        ("ema_decay", 1.0),
        ("velocity_weight", -0.1),
        ("steps_per_chunk", -1),
        ("eval_every", -1),
        ("eval_batch_size", 0),
        ("checkpoint_every", -2),
        ("keep_checkpoints", 0),
        ("max_skipped_steps", -1),
        ("num_steps", 10**400),
        ("ema_decay", 10**400),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"TrainingConfig.{field}: got {value!r}"):
        TrainingConfig(**{field: value})


@pytest.mark.parametrize("field", ["batch_size", "seed"])
def test_a_run_keeps_its_settings(task, config, whole_run, field):
    changed = dataclasses.replace(config, **{field: 5})
    with pytest.raises(egno_jax.CheckpointError, match=f"training setting {field}: got 5, but"):
        fit(whole_run[0], *task, changed, resume=True)


def test_a_longer_run_is_begun_from_the_best_model(task, config, whole_run):
    longer = dataclasses.replace(config, num_steps=24)
    best = whole_run[0] / "best"
    expected = (
        rf"num_steps: got 24.*another directory.*params=egno_jax.load\('{re.escape(str(best))}'\)"
    )
    with pytest.raises(egno_jax.CheckpointError, match=expected):
        fit(whole_run[0], *task, longer, resume=True)


def test_other_data_or_another_loss_is_said_when_a_run_is_resumed(task, config, tmp_path):
    params, train, valid = task
    fit(tmp_path, *task, config)
    moved = train._replace(positions=train.positions + 1)

    def loss(model, params, batch):
        return training.mse_loss(model, params, batch)

    with pytest.warns(UserWarning, match=r"^train, loss_fn: got others than the run in"):
        fit(tmp_path, params, moved, valid, config, resume=True, loss_fn=loss)
    fit(tmp_path, *task, config, resume=True)  # warnings are errors


def test_the_directory_of_a_run_loads_as_its_best_model(whole_run):
    found, best = (egno_jax.load(place) for place in (whole_run[0], whole_run[0] / "best"))
    assert jax.tree.all(jax.tree.map(np.array_equal, found.weights, best.weights))


def test_the_best_model_belongs_to_the_best_step_after_a_crash(task, config, tmp_path, monkeypatch):
    """Dies between a checkpoint and the best model that it tells of, and stops before the next."""
    config = dataclasses.replace(config, checkpoint_every=12)

    def crash(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "save", crash)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path, *task, config)
    assert not (tmp_path / "best").exists()
    callbacks = lines_in(tmp_path, SignalAfter(9, signal.SIGTERM))
    stopped = fit(tmp_path, *task, config, resume=True, make_callbacks=callbacks)
    assert (stopped.best_step, stopped.step) == (6, 9)
    errors = evaluate(stopped.params, task[2], batch_size=4)
    assert float(errors.f_mse) == stopped.best_f_mse


def test_a_best_model_without_checkpoints_is_a_run_too(task, config, tmp_path):
    egno_jax.save(tmp_path / "best", task[0])
    with pytest.raises(egno_jax.CheckpointError, match="holds a run of 0 steps already"):
        fit(tmp_path, *task, config)


def test_a_validation_error_that_is_not_finite_stops_the_run(task, config, tmp_path):
    """Targets so far away that their squared distance overflows, on the validation set alone."""
    params, train, valid = task
    far = valid._replace(positions=np.full_like(valid.positions, 1e30))
    with pytest.raises(training.NonFiniteLossError, match="step 6: the error on the validation"):
        fit(tmp_path, params, train, far, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_steps", 100.0), ("batch_size", True), ("ema_decay", None), ("optimizer", {"b1": 0.9})],
)
def test_a_field_of_another_type_is_named(field, value):
    with pytest.raises(ValueError, match=f"TrainingConfig.{field}: got"):
        TrainingConfig(**{field: value})


def test_settings_that_are_newer_than_a_run_had_their_defaults_in_it(task, config):
    params = task[0]
    run = types.SimpleNamespace(directory=Path("run"), settings=loop._settings(params, config))
    before = loop._settings(params, config)
    del before["training"]["noise"], before["model"]["velocity_scale"], before["selection"]
    del before["training"]["optimizer"]["b2"]
    loop._check_settings(run, params, before)
    noisy = dataclasses.replace(config, noise=training.NoiseConfig(positions=0.1))
    run.settings = loop._settings(params, noisy)
    with pytest.raises(ValueError, match=r"training setting noise: got {'positions': 0.1"):
        loop._check_settings(run, params, before)


def test_a_model_config_may_have_fields_without_a_default(task, config):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(egno_jax.EGNOConfig):
        size: int

    params = egno_jax.Params({}, OwnConfig(size=3))
    run = types.SimpleNamespace(directory=Path("run"), settings=loop._settings(params, config))
    before = loop._settings(params, config)
    loop._check_settings(run, params, before)
    before["model"]["size"] = 4
    with pytest.raises(egno_jax.CheckpointError, match="model setting size: got 3"):
        loop._check_settings(run, params, before)


def test_settings_of_earlier_versions_are_recognised(task, config):
    """As 0.1 wrote them: other names of columns, and the velocity weight in the model."""
    params = task[0]
    config = dataclasses.replace(
        config, noise=training.NoiseConfig(positions=0.1, distance_column=0)
    )
    settings = loop._settings(params, config)
    before = json.loads(json.dumps(settings))
    noise = before["training"]["noise"]
    noise["length_column"] = noise.pop("distance_column")
    noise["distance_column"] = noise.pop("squared_distance_column")
    before["model"]["velocity_weight"] = before["training"].pop("velocity_weight")
    before["training"]["steps_per_call"] = 7
    del before["selection"]
    upgraded = training.upgrade_settings(before)
    assert upgraded["training"] == settings["training"] | {"steps_per_chunk": 7}
    assert upgraded["model"] == settings["model"]
    assert training.upgrade_settings(upgraded) == upgraded
    assert noise["length_column"] == 0  # the argument is not changed
    run = types.SimpleNamespace(directory=Path("run"), settings=settings)
    loop._check_settings(run, params, before)
    before["training"]["noise"]["length_column"] = 1
    with pytest.raises(egno_jax.CheckpointError, match="training setting noise"):
        loop._check_settings(run, params, before)


def test_old_names_of_settings_warn(config):
    with pytest.warns(DeprecationWarning, match="steps_per_call is deprecated"):
        assert TrainingConfig(steps_per_call=7) == TrainingConfig(steps_per_chunk=7)
    with pytest.warns(DeprecationWarning, match="length_column is deprecated"):
        assert training.NoiseConfig(length_column=0).distance_column == 0
    with pytest.warns(DeprecationWarning, match="use TrainingConfig.steps_per_chunk"):
        assert config.steps_per_call == 3
