"""Losses, metrics and selection of one's own: their values, and refusals before the first step.

That meshes and buckets change nothing is tested in `test_mesh.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import datasets, metrics, training
from egno_jax.metrics import Mean
from egno_jax.training import JSONLines, batch_indices, evaluate, fit, init_state, read_json_lines
from egno_jax.training.flat import unflatten
from egno_jax.training.objective import velocity_weight
from egno_jax.training.step import Trainer
from tests import helpers
from tests.helpers import SignalAfter
from tests.training.mesh_runs import absolute_loss, speed_error


def negative_error(predicted, batch):
    errors = ((predicted.positions[-1] - batch.positions[-1]) ** 2).mean(axis=1)
    return Mean(-jnp.sum(errors * batch.node_mask), jnp.sum(batch.node_mask))


def velocity_errors(predicted, batch):
    return metrics.squared_errors(predicted.velocities, batch.velocities, batch.node_mask)


@dataclasses.dataclass
class Unhashable:
    """A function that `jit` cannot tell from others."""

    weight: float = 1.0

    def __call__(self, *_):
        return jnp.zeros(())


METRICS = {"speed": speed_error, "negative": negative_error, "velocity": velocity_errors}


def predictions(params, samples):
    batch = datasets.take(samples, jnp.arange(len(samples.positions)))
    return helpers.apply(params, batch.graph, batch.times), batch


def test_a_loss_is_what_is_minimised(task, config):
    params, train, valid = task
    trainer = Trainer(train, valid, config, loss_fn=absolute_loss)
    state = trainer.place(init_state(params, config))
    found = []
    for step in (0, 3, 6):
        state, steps = trainer.advance(state, step, 3)
        found.extend(steps.loss)
    indices = batch_indices(init_state(params, config).sampler_key, 0, 16, config.batch_size)
    batch = datasets.take(train, indices)
    np.testing.assert_allclose(found[0], absolute_loss(helpers.apply, params, batch), rtol=1e-5)
    before, after = (
        absolute_loss(helpers.apply, *model_and_batch)
        for model_and_batch in ((params, batch), (jax.device_get(unflatten(state.params)), batch))
    )
    assert after < 0.9 * before


@pytest.mark.parametrize("batch_size", [4, 7])
def test_metrics_count_every_node_once(task, batch_size):
    """7 samples in batches of 4: the last is filled up, and that must not show."""
    params, _, valid = task
    errors, found = evaluate(params, valid, batch_size=batch_size, metrics=METRICS)
    predicted, batch = predictions(params, valid)
    expected = np.mean((predicted.velocities - batch.velocities) ** 2)
    np.testing.assert_allclose(found["speed"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["velocity"].a_mse, expected, rtol=1e-5)
    np.testing.assert_allclose(
        errors.f_mse, metrics.f_mse(predicted.positions, batch.positions), rtol=1e-5
    )


def test_a_metric_that_is_not_finite_and_selects_is_named(task, config, tmp_path):
    options = {"metrics": {"odd": lambda *_: Mean(jnp.nan, 1.0)}, "select_by": "odd"}
    with pytest.raises(training.NonFiniteLossError) as error:
        fit(tmp_path, *task, config, **options)
    message = str(error.value)
    assert message.startswith("step 6: the metric 'odd' is not finite on the validation set")
    assert "None" not in message and "learning_rate" not in message


def test_a_run_is_selected_by_a_metric_and_resumed(task, config, tmp_path):
    """The negative error selects the worst model, which the F-MSE does not."""
    options = {"metrics": METRICS, "select_by": "negative"}

    def run(*others, **arguments):
        callbacks = [JSONLines(tmp_path / "metrics.jsonl", arguments.pop("start", 0)), *others]
        return fit(
            tmp_path, *task, config, make_callbacks=lambda _: callbacks, **options, **arguments
        )

    assert run(SignalAfter(9, 15)).interrupted
    result = run(resume=True, start=9)
    records = [r for r in read_json_lines(tmp_path / "metrics.jsonl") if r["kind"] == "valid"]
    assert [record["step"] for record in records] == [6, 12]
    best = min(records, key=lambda record: record["negative"])
    assert best["step"] == 6
    assert -best["negative"] == pytest.approx(best["f_mse"], rel=1e-5)
    assert best["velocity.a_mse"] == pytest.approx(best["speed"], rel=1e-5)
    assert len(best["velocity.per_time"]) == 2
    assert (result.best_step, result.best_score) == (6, best["negative"])
    assert result.best_f_mse == best["f_mse"] > records[1]["f_mse"]
    with pytest.raises(egno_jax.CheckpointError, match=r"select_by: got 'f_mse', but .*'negative'"):
        fit(tmp_path, *task, config, resume=True)


def test_the_velocity_weight_of_the_model_counts_where_training_has_none(task, config):
    old = egno_jax.Params({}, egno_jax.EGNOConfig(velocity_weight=0.5))
    assert velocity_weight(old, config) == 0.1
    assert velocity_weight(old, type(config)()) == 0.5
    assert velocity_weight(task[0], type(config)()) == 0


FAULTS = {
    "a loss of nodes": (
        {"loss_fn": lambda model, params, batch: batch.positions[0, :, 0]},
        r"loss_fn: got float32 of shape \[5\], expected a floating scalar",
    ),
    "a loss of integers": (
        {"loss_fn": lambda model, params, batch: jnp.sum(batch.node_mask)},
        r"loss_fn: got int32 of shape \[\], expected a floating scalar",
    ),
    "a loss that is none": ({"loss_fn": 0.1}, r"loss_fn: got 0.1, expected a function of"),
    "the loss of a batch": (
        {"loss_fn": training.loss_fn},
        r"loss_fn: got .*expected a function of \(model, params, batch\)",
    ),
    "an error of positions": (
        {"metrics": {"a": metrics.f_mse}},
        "every evaluation has already",
    ),
    "a number of devices": ({"mesh": 2}, "mesh: got int, expected a mesh; use .*make_mesh"),
    "a loss without a hash": (
        {"loss_fn": Unhashable()},
        r"loss_fn: got Unhashable, which has no hash, expected a function; make .*frozen=True",
    ),
    "a metric without a hash": (
        {"metrics": {"a": Unhashable()}},
        r"metrics\['a'\]: got Unhashable, which has no hash",
    ),
    "a metric that is a mean": (
        {"metrics": {"mean": lambda predicted, batch: jnp.mean(predicted.positions)}},
        r"metrics\['mean'\]: got .*, expected sums .* such as egno_jax.metrics.Mean",
    ),
    "a metric of booleans": (
        {"metrics": {"odd": lambda predicted, batch: Mean(batch.node_mask, batch.node_mask)}},
        r"metrics\['odd'\]: got Mean, expected sums",
    ),
    "a metric that is none": ({"metrics": {"a": 1}}, r"metrics\['a'\]: got 1, expected a function"),
    "a name that is taken": ({"metrics": {"f_mse": speed_error}}, "metrics: got the name 'f_mse'"),
    "an unknown entry": ({"select_by": "speed"}, r"select_by: got 'speed', expected one of \['f_m"),
    "a list": ({"select_by": "mse_per_time"}, "select_by: got 'mse_per_time', expected one of"),
    "a list of a metric": (
        {"select_by": "velocity.per_time", "metrics": METRICS},
        "select_by: got 'velocity.per_time', expected one of .*'velocity.a_mse'",
    ),
}


@pytest.mark.parametrize(("options", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_objective_is_refused(task, config, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", *task, config, **options)
    assert not (tmp_path / "run").exists()
