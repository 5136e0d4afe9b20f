"""What experiments do about damaged runs and missing packages, shown by that of 5 bodies."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from experiments import run_directory, runner
from experiments.nbody import EXPERIMENT

TINY = (
    "--model.num-layers 1 --model.hidden-dim 8 --model.time-embed-dim 4 "
    "--training.num-steps 2 --training.batch-size 5 --training.eval-every 2 "
    "--training.eval-batch-size 5 --training.optimizer.warmup-steps 1 "
    "--data.num-train 10 --data.num-valid 5 --data.num-test 5"
).split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = [*TINY, "--data.cache-dir", str(folder / "cache"), "--out", str(folder / "run")]
    assert runner.main(EXPERIMENT, words) == 0
    return folder / "run"


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def evaluate(run):
    return runner.main(EXPERIMENT, ["--evaluate", str(run)])


def files_of(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refused(run, capsys):
    """Evaluates a damaged run; returns what is said. No file of it may change."""
    before = files_of(run)
    capsys.readouterr()
    assert evaluate(run) == 2
    assert files_of(run) == before
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    return said


def test_without_a_record_of_its_training_a_run_keeps_its_results(run, capsys):
    metrics = run / run_directory.METRICS
    lines = metrics.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == "valid"
    for damaged in (
        [line for line in lines if '"valid"' not in line],
        [line.replace('"kind"', '"kin"') for line in lines],
        [*lines, "[]\n"],
        [*lines, '{"kind": "valid", "step": 3, "f_mse": null}\n'],
        ["{\n", *lines],
    ):
        metrics.write_text("".join(damaged))
        assert str(metrics) in refused(run, capsys)
    metrics.unlink()
    assert str(metrics) in refused(run, capsys)


def change(run, path, value):
    """Sets what stands under a dotted name of config.json."""
    record = json.loads((run / run_directory.CONFIG).read_text())
    *parents, last = path.split(".")
    place = record
    for parent in parents:
        place = place[parent]
    place[last] = value
    (run / run_directory.CONFIG).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings", []),
        ("settings", {}),
        ("settings.preset", "runny"),
        ("settings.preset", None),
        ("settings.model", 5),
        ("settings.model", None),
        ("settings.model", []),
        ("settings.model.hidden_dim", -3),
        ("settings.model.hidden_dim", "wide"),
        ("settings.model.depth", 3),
        ("settings.training", "long"),
        ("settings.training.optimizer", 1e-3),
        ("settings.training.num_steps", None),
        ("settings.data.num_train", 0),
        ("settings.data", {"words": 3}),
        ("made_with", []),
        ("made_with", ["a command"]),
        ("made_with", {}),
    ],
)
def test_damaged_settings_are_refused_with_their_file(run, capsys, path, value):
    change(run, path, value)
    assert str(run / run_directory.CONFIG) in refused(run, capsys)


def test_results_that_are_no_numbers_are_not_written(run, capsys, monkeypatch):
    true = runner.linear_baseline

    def broken(samples, time_unit):
        predicted, expected = true(samples, time_unit)
        return predicted * np.nan, expected

    monkeypatch.setattr(runner, "linear_baseline", broken)
    said = refused(run, capsys)
    assert "results.json: linear_baseline.f_mse is nan, expected finite numbers" in said
    with pytest.raises(ValueError, match="JSON"):
        run_directory.write_json(run / "x.json", {"f_mse": np.inf}, allow_nan=False)
    assert not (run / "x.json").exists()


def test_results_are_written_when_all_else_is_there(run, monkeypatch):
    (run / run_directory.RESULTS).unlink()

    def fail(*_):
        raise RuntimeError("no room to draw")

    with monkeypatch.context() as patch:
        patch.setattr(runner.run_page, "write", fail)
        with pytest.raises(RuntimeError, match="no room to draw"):
            evaluate(run)
    assert not (run / run_directory.RESULTS).exists()
    assert evaluate(run) == 0
    assert json.loads((run / run_directory.RESULTS).read_text())["finished"] is True


def test_a_missing_package_of_an_extra_is_wrong_input(tmp_path, capsys):
    def load(_):
        raise ImportError('this needs tidy, which is not installed: pip install "egno_jax[data]"')

    experiment = EXPERIMENT._replace(load_splits=load)
    assert runner.main(experiment, ["--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said == 'error: this needs tidy, which is not installed: pip install "egno_jax[data]"\n'
    assert not (tmp_path / "run").exists()
