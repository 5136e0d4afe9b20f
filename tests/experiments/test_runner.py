"""What every experiment does, shown by that of 5 bodies: command lines, resuming, damaged runs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import signal
import sys

import jax
import numpy as np
import pytest

import egno_jax
import experiments
from egno_jax import families, locks, training
from egno_jax.nn import block

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from experiments import command_line, run_directory, run_page, runner, settings
from experiments.nbody import EXPERIMENT, NBodyConfig

UNREPEATABLE = ("command", "date", "resumed", "train_seconds", "git_commit")


def read_json(path):
    return json.loads(path.read_text())


def results_of(directory):
    results = read_json(directory / "results.json")
    return {name: value for name, value in results.items() if name not in UNREPEATABLE}


@pytest.fixture
def no_page(monkeypatch):
    """Leaves out pictures and report, which are tested elsewhere and take their time."""
    monkeypatch.setattr(run_page, "write", lambda *_: None)


def test_evaluate_reproduces_the_results(copy, capsys):
    before = read_json(copy / "results.json")
    for name in ("results.json", "report.html", "pictures/trajectories.png"):
        (copy / name).unlink()
    assert runner.main(EXPERIMENT, ["--evaluate", str(copy)]) == 0
    assert read_json(copy / "results.json") == before
    assert (copy / "report.html").exists() and (copy / "pictures/trajectories.png").exists()
    assert f"{before['f_mse']:.5f}" in capsys.readouterr().out


def test_an_interrupted_run_resumes_to_the_same_results(
    run, tiny, tmp_path, monkeypatch, capsys, no_page
):
    directory = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(
            runner._Lines, "on_evaluation", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        )
        assert runner.main(EXPERIMENT, [*tiny, "--out", str(directory)]) == 75
    assert "interrupted at step 4 of 12; resume with: python -m experiments.nbody --resume " in (
        output := capsys.readouterr().out
    )
    assert str(directory) in output and not (directory / "results.json").exists()
    assert runner.main(EXPERIMENT, ["--resume", str(directory)]) == 0
    assert results_of(directory) == results_of(run)
    best, expected = (jax.tree.leaves(egno_jax.load(path / "best")) for path in (directory, run))
    assert all((a == b).all() for a, b in zip(best, expected, strict=True))
    (resumed,) = read_json(directory / "results.json")["resumed"]
    assert "--resume" in resumed["command"]


def test_a_second_run_in_a_directory_is_refused_and_evaluation_is_not(
    copy, tiny, tmp_path, capsys, no_page
):
    pytest.importorskip("fcntl")
    for directory, words in (
        (tmp_path / "new", [*tiny, "--out", str(tmp_path / "new")]),
        (copy, ["--resume", str(copy)]),
    ):
        directory.mkdir(exist_ok=True)
        with locks.lock(directory / "run.lock"):
            before = sorted(os.listdir(directory))
            assert runner.main(EXPERIMENT, words) == 2
            assert f"another run is going on (process {os.getpid()}" in capsys.readouterr().err
            assert sorted(os.listdir(directory)) == before
    with locks.lock(copy / "run.lock"):
        assert runner.main(EXPERIMENT, ["--evaluate", str(copy)]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_outside_of_training_end_with_75_and_a_line(
    copy, tiny, tmp_path, capsys, monkeypatch, number
):
    def interrupt(*_):
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "parse", interrupt)
        assert runner.main(EXPERIMENT, tiny) == 75
    assert capsys.readouterr().err == "interrupted; start the same command again\n"
    with monkeypatch.context() as patch:
        patch.setattr(runner, "_for_model", interrupt)
        assert runner.main(EXPERIMENT, [*tiny, "--out", str(tmp_path / "new")]) == 75
    assert capsys.readouterr().err.startswith("interrupted; start it again with: python -m")
    monkeypatch.setattr(runner, "finish", interrupt)
    assert runner.main(EXPERIMENT, ["--resume", str(copy)]) == 75
    expected = f"interrupted; resume with: python -m experiments.nbody --resume {copy}\n"
    assert capsys.readouterr().err == expected


def test_a_signal_during_imports_ends_with_75_and_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["-m"])
    previous = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        importlib.reload(experiments)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 75
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
    assert capsys.readouterr().err == "interrupted; start the same command again\n"


def test_a_model_of_one_state_is_trained_and_tested_on_the_last_time(
    tiny, tmp_path, capsys, no_page
):
    words = [*tiny, "--preset", "paper-egnn", "--training.num-steps", "4"]
    assert runner.main(EXPERIMENT, [*words, "--out", str(tmp_path / "run")]) == 0
    results = read_json(tmp_path / "run" / "results.json")
    assert results["model"] == "EGNN" and "EGNN" in capsys.readouterr().out
    assert results["times"] == [10.0] and len(results["mse_per_time"]) == 1
    config = run_directory.read_config(tmp_path / "run", NBodyConfig)
    size = {"num_layers": 1, "hidden_dim": 8, "time_embed_dim": 4}
    expected = EXPERIMENT.config("paper-egnn")[0].model
    assert config.model == dataclasses.replace(expected, **size)


def test_help_explains_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as ended:
        runner.main(EXPERIMENT, ["--preset", "paper", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    fields = dict(settings.flatten(dataclasses.asdict(EXPERIMENT.default)))
    flags = [f"--{name.replace('_', '-')}" for name in fields]
    for flag in [*flags, "--out", "--resume", "--evaluate", "--config"]:
        # The flag and its values, and on the next line words about it.
        assert re.search(rf" {flag}[ ,][^\n]*\n[│ ] +[^ -].{{10}}", text), flag
    for name in EXPERIMENT.presets:
        assert f"{name}: {EXPERIMENT.config(name)[1]}" in text
    assert all(name in text for name in settings.names("nbody"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset slow", "preset: got 'slow', expected one of quick, paper"),
        ("--preset quick --config x.yaml", "got --preset and --config, expected one"),
        ("--config nowhere.yaml", "nowhere.yaml: got no file"),
        ("--preset", "--preset"),
        ("--no-such-field 3", "no-such-field"),
        ("--model.hidden-dim wide", "--model.hidden-dim"),
        ("--model.hidden-dim -1", "EGNOConfig.hidden_dim: got -1"),
        ("--training.num-steps 0", "TrainingConfig.num_steps: got 0"),
        ("--training.optimizer.schedule zigzag", "zigzag"),
        ("--training.optimizer.learning-rate 0", "OptimizerConfig.learning_rate"),
        ("--data.num-train 10001", "DataConfig.num_train: got 10001"),
        ("--data.target-frames 34 32", "increase from start"),
        ("--data.target-frames 50", "frames from 0 to 48"),
        ("--training.batch-size 41", "batch_size: got 41, expected from 1 to 40"),
        ("--resume nowhere", "nowhere holds no run"),
        ("--evaluate nowhere", "nowhere holds no run"),
        ("--resume a --evaluate b", "a holds no run"),
        ("--out a --out b --resume c", "c holds no run"),
        ("--mesh 8", "mesh: got '8', expected such as data=4,time=2"),
        ("--mesh data=99", "mesh: got data=99,time=1, 99 devices"),
        ("--process-id 1", "coordinator: got none, expected coordinator"),
        ("--imports no_such_module", "--imports: got 'no_such_module', which cannot be imported"),
        ("--imports json .x", "--imports: got '.x', which cannot be imported (TypeError"),
    ],
)
def test_wrong_input_is_refused_in_plain_words(
    arguments, message, tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = arguments.split()
    base = [] if {"--resume", "--evaluate"} & set(words) else tiny
    try:
        code = runner.main(EXPERIMENT, [*base, *words])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


MODULE = """
import dataclasses, egno_jax

@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnConfig(egno_jax.EGNOConfig):
    size: int = 3

egno_jax.model.register(OwnConfig, egno_jax.model.ModelFamily(egno_jax.EGNO))
egno_jax.nn.register_layer("own_of_tests", egno_jax.nn.EGNNSpatialLayer)
"""


def test_modules_are_imported_before_settings_are_read(
    tiny, tmp_path, monkeypatch, capsys, untrained
):
    (tmp_path / "own_of_tests.py").write_text(MODULE)
    own = "{class: 'own_of_tests:OwnConfig', layer: own_of_tests, size: 4}"
    (tmp_path / "own.yaml").write_text(f"description: Own.\nmodel: {own}\n")
    monkeypatch.syspath_prepend(tmp_path)
    run, config = str(tmp_path / "run"), ["--config", str(tmp_path / "own.yaml"), *tiny]
    imports = ["--imports", "json", "own_of_tests"]
    monkeypatch.setattr(runner, "finish", lambda *_: None)
    for words in ([*config, "--out", run], ["--resume", run], ["--evaluate", run]):
        with monkeypatch.context() as patch:
            patch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
            patch.setattr(block, "_LAYERS", dict(block._LAYERS))
            assert runner.main(EXPERIMENT, words) == 2
            error = capsys.readouterr().err
            assert "'own_of_tests:OwnConfig', which is not registered; import it" in error
            if "--out" in words:
                assert runner.main(EXPERIMENT, [*imports, *words]) == 0
            options, made = command_line.parse(EXPERIMENT, [*imports, *words])
            assert (type(made.model).__name__, made.model.size) == ("OwnConfig", 4)
            assert options.imports == ("json", "own_of_tests")
        del sys.modules["own_of_tests"]


def test_a_run_keeps_its_settings(run, tiny, capsys):
    before = (run / "config.json").read_bytes()
    for option, value, name in (
        ("--model.hidden-dim", "16", "model.hidden_dim: got 16"),
        ("--training.optimizer.b1", "0.8", "training.optimizer.b1: got 0.8"),
        ("--preset", "paper", "preset: got 'paper'"),
    ):
        for action in ("--resume", "--evaluate"):
            assert runner.main(EXPERIMENT, [action, str(run), option, value]) == 2
            assert name in capsys.readouterr().err
    assert runner.main(EXPERIMENT, [*tiny, "--out", str(run)]) == 2
    assert "holds a run already; continue it with --resume" in capsys.readouterr().err
    assert runner.main(EXPERIMENT, ["--out", "x", "--resume", str(run)]) == 2
    assert "--out and --resume" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before


def test_one_command_begins_a_run_and_goes_on_with_it(copy, tiny, capsys, no_page):
    before = read_json(copy / "results.json")
    assert runner.main(EXPERIMENT, [*tiny, "--out", str(copy), "--auto-resume"]) == 0
    after = read_json(copy / "results.json")
    assert (after["f_mse"], after["steps"]) == (before["f_mse"], before["steps"])
    assert len(after["resumed"]) == len(before["resumed"]) + 1
    assert runner.main(EXPERIMENT, [*tiny, "--auto-resume"]) == 2
    assert "auto_resume: got no --out" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_named_before_data_are_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert runner.main(EXPERIMENT, ["--out", str(tmp_path / "file" / "run")]) == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_damaged_runs_are_refused_in_plain_words(run, tmp_path, capsys):
    for text in ("{", "[]", '{"settings": {}}', '{"settings": {"depth": 3}, "made_with": []}'):
        (tmp_path / "config.json").write_text(text)
        assert runner.main(EXPERIMENT, ["--evaluate", str(tmp_path)]) == 2
        assert "config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert runner.main(EXPERIMENT, ["--evaluate", str(tmp_path)]) == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_divergence_ends_with_a_message(tiny, tmp_path, monkeypatch, capsys):
    def diverge(*_, **__):
        raise training.NonFiniteLossError("step 7: the loss is nan")

    monkeypatch.setattr(training, "fit", diverge)
    assert runner.main(EXPERIMENT, [*tiny, "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == "error: step 7: the loss is nan\n"


def test_default_directories_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/name", "runs/name-2", "runs/name-3"):
        assert run_directory.fresh("name").as_posix() == expected
        run_directory.fresh("name").mkdir(parents=True)


def evaluate(copy):
    return runner.main(EXPERIMENT, ["--evaluate", str(copy)])


def files_of(copy):
    return {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def refused(copy, capsys):
    """Evaluates a damaged run; returns what is said. No file of it may change."""
    before = files_of(copy)
    capsys.readouterr()
    assert evaluate(copy) == 2
    assert files_of(copy) == before
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    return said


def test_without_a_record_of_its_training_a_run_keeps_its_results(copy, capsys):
    metrics = copy / run_directory.METRICS
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
        assert str(metrics) in refused(copy, capsys)
    metrics.unlink()
    assert str(metrics) in refused(copy, capsys)


def change(copy, path, value):
    """Sets what stands under a dotted name of config.json."""
    record = json.loads((copy / run_directory.CONFIG).read_text())
    *parents, last = path.split(".")
    place = record
    for parent in parents:
        place = place[parent]
    place[last] = value
    (copy / run_directory.CONFIG).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("settings", []),
        ("settings", {}),
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
def test_damaged_settings_are_refused_with_their_file(copy, capsys, path, value):
    change(copy, path, value)
    assert str(copy / run_directory.CONFIG) in refused(copy, capsys)


def test_results_that_are_no_numbers_are_not_written(copy, capsys, monkeypatch):
    true = runner.linear_baseline

    def broken(samples, time_unit):
        predicted, expected = true(samples, time_unit)
        return predicted * np.nan, expected

    monkeypatch.setattr(runner, "linear_baseline", broken)
    said = refused(copy, capsys)
    assert "results.json: linear_baseline.f_mse is nan, expected finite numbers" in said
    with pytest.raises(ValueError, match="JSON"):
        run_directory.write_json(copy / "x.json", {"f_mse": np.inf}, allow_nan=False)
    assert not (copy / "x.json").exists()


def test_results_are_written_when_all_else_is_there(copy, monkeypatch):
    (copy / run_directory.RESULTS).unlink()

    def fail(*_):
        raise RuntimeError("no room to draw")

    with monkeypatch.context() as patch:
        patch.setattr(runner.run_page, "write", fail)
        with pytest.raises(RuntimeError, match="no room to draw"):
            evaluate(copy)
    assert not (copy / run_directory.RESULTS).exists()
    assert evaluate(copy) == 0
    assert json.loads((copy / run_directory.RESULTS).read_text())["finished"] is True


def test_a_missing_package_of_an_extra_is_wrong_input(tmp_path, capsys):
    def load(_):
        raise ImportError('this needs tidy, which is not installed: pip install "egno_jax[data]"')

    experiment = EXPERIMENT._replace(load_splits=load)
    assert runner.main(experiment, ["--out", str(tmp_path / "copy")]) == 2
    said = capsys.readouterr().err
    assert said == 'error: this needs tidy, which is not installed: pip install "egno_jax[data]"\n'
    assert not (tmp_path / "copy").exists()
