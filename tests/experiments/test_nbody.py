from __future__ import annotations

import dataclasses
import html.parser
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import datasets, training
from egno_jax.datasets import nbody as nbody_data

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from experiments import nbody, run_directory, run_page, runner
from experiments.nbody import EXPERIMENT, PRESETS, DataConfig, NBodyConfig

TINY = (
    "--model.num-layers 1 --model.hidden-dim 8 --model.time-embed-dim 4 "
    "--training.num-steps 12 --training.batch-size 10 --training.eval-every 4 --training.seed 3 "
    "--training.eval-batch-size 7 --training.optimizer.warmup-steps 2 "
    "--data.num-train 20 --data.num-valid 10 --data.num-test 12"
).split()
UNREPEATABLE = ("command", "date", "resumed", "train_seconds", "git_commit")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def tiny(cache):
    return [*TINY, "--data.cache-dir", str(cache)]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert runner.main(EXPERIMENT, [*tiny, "--out", str(directory)]) == 0
    return directory


def read_json(path):
    return json.loads(path.read_text())


def results_of(directory):
    results = read_json(directory / "results.json")
    return {name: value for name, value in results.items() if name not in UNREPEATABLE}


def test_a_run_leaves_every_file(run):
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    expected = {
        "config.json",
        "metrics.jsonl",
        "results.json",
        "report.html",
        "best/egno_jax.json",
        "pictures/trajectories.png",
        "pictures/error_over_time.png",
        "pictures/learning_curves.png",
    }
    assert expected <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert any(name.startswith("checkpoints/12/") for name in names)
    assert not [name for name in names if "partial" in name]
    for name in expected:
        if name.endswith(".png"):
            assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_results_are_those_of_the_best_model_on_the_test_set(run, cache):
    results = read_json(run / "results.json")
    test = nbody_data.load("test", num_samples=12, cache_dir=cache)
    batch = datasets.take(test, jnp.arange(12))
    params = egno_jax.load(run / "best")
    predicted = np.asarray(jax.jit(egno_jax.apply)(params, batch.graph, batch.times).positions)
    per_time = np.mean((predicted - batch.positions) ** 2, axis=(1, 2))
    np.testing.assert_allclose(results["mse_per_time"], per_time, rtol=1e-5)
    np.testing.assert_allclose(results["f_mse"], per_time[-1], rtol=1e-5)
    np.testing.assert_allclose(results["a_mse"], per_time.mean(), rtol=1e-5)
    in_batches = runner.predict(params, test, batch_size=7)
    np.testing.assert_allclose(in_batches, predicted.reshape(5, 12, 5, 3).swapaxes(0, 1), atol=1e-5)


def test_results_say_how_training_went(run):
    results = read_json(run / "results.json")
    valid = [
        record
        for record in training.read_json_lines(run / "metrics.jsonl")
        if record["kind"] == "valid"
    ]
    assert [record["step"] for record in valid] == [4, 8, 12]
    best = min(valid, key=lambda record: record["f_mse"])
    assert (results["best_step"], results["valid_f_mse"]) == (best["step"], best["f_mse"])
    weights = jax.tree.leaves(egno_jax.load(run / "best"))
    assert results["num_parameters"] == sum(leaf.size for leaf in weights)
    assert results["steps"] == 12 and results["finished"] and results["seed"] == 3
    assert results["command"].startswith("python -m experiments.nbody --model.num-layers 1")
    assert results["versions"]["jax"] == jax.__version__


def test_linear_baseline_is_the_true_motion_of_free_particles():
    free = nbody_data.simulate(
        *np.random.default_rng(0).normal(size=(2, 4, 5, 3)), np.zeros((4, 5, 5)), num_frames=41
    )
    samples = nbody_data.samples(free)
    predicted, true = runner.linear_baseline(samples, EXPERIMENT.time_unit)
    np.testing.assert_allclose(predicted, true, atol=1e-4)


def test_evaluate_reproduces_the_results(run, capsys):
    before = read_json(run / "results.json")
    for name in ("results.json", "report.html", "pictures/trajectories.png"):
        (run / name).unlink()
    assert runner.main(EXPERIMENT, ["--evaluate", str(run)]) == 0
    assert read_json(run / "results.json") == before
    assert (run / "report.html").exists() and (run / "pictures/trajectories.png").exists()
    assert f"{before['f_mse']:.5f}" in capsys.readouterr().out


def test_an_interrupted_run_resumes_to_the_same_results(run, tiny, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(
            runner._Lines, "on_evaluation", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        )
        assert runner.main(EXPERIMENT, [*tiny, "--out", str(directory)]) == 75
    assert "interrupted at step 4 of 12; go on with: python -m experiments.nbody --resume " in (
        output := capsys.readouterr().out
    )
    # What follows training is tested elsewhere, and takes its time.
    monkeypatch.setattr(run_page, "write", lambda *_: None)
    assert str(directory) in output and not (directory / "results.json").exists()
    assert runner.main(EXPERIMENT, ["--resume", str(directory)]) == 0
    assert results_of(directory) == results_of(run)
    best, expected = (jax.tree.leaves(egno_jax.load(path / "best")) for path in (directory, run))
    assert all((a == b).all() for a, b in zip(best, expected, strict=True))
    (resumed,) = read_json(directory / "results.json")["resumed"]
    assert "--resume" in resumed["command"]


def test_settings_given_reach_the_run(run):
    settings = read_json(run / "config.json")["settings"]
    assert settings["model"]["hidden_dim"] == 8 and settings["data"]["num_valid"] == 10
    assert settings["training"]["optimizer"]["warmup_steps"] == 2
    expected = dataclasses.asdict(PRESETS["quick"].training.optimizer) | {"warmup_steps": 2}
    assert settings["training"]["optimizer"] == expected
    assert egno_jax.load(run / "best").config.hidden_dim == 8


def parsed(arguments):
    """Returns the settings that a command line asks for."""
    from experiments.command_line import parse

    return parse(
        arguments.split(),
        program="test",
        summary="",
        config_class=NBodyConfig,
        presets=PRESETS,
        descriptions=EXPERIMENT.descriptions,
        read_config=None,
    )


def test_any_field_is_set_on_top_of_a_preset():
    options, config = parsed(
        "--preset original --model.hidden-dim 32 --training.optimizer.learning-rate 1e-3 "
        "--data.target-frames 31 35 --data.time-reversal --model.dtype bfloat16 --out here"
    )
    original = PRESETS["original"]
    expected = dataclasses.replace(
        original,
        model=dataclasses.replace(original.model, hidden_dim=32, dtype="bfloat16"),
        data=DataConfig(target_frames=(31, 35), time_reversal=True),
        training=dataclasses.replace(
            original.training,
            optimizer=dataclasses.replace(original.training.optimizer, learning_rate=1e-3),
        ),
    )
    assert config == expected and str(options.out) == "here"
    for name, preset in PRESETS.items():
        assert parsed(f"--preset {name}")[1] == preset
    assert parsed("")[1] == PRESETS["quick"]


def test_help_explains_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    with pytest.raises(SystemExit) as ended:
        runner.main(EXPERIMENT, ["--preset", "paper", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    settings = dict(run_directory.flatten(dataclasses.asdict(PRESETS["paper"])))
    flags = [f"--{name.replace('_', '-')}" for name in settings]
    for flag in [*flags, "--out", "--resume", "--evaluate"]:
        # The flag and its values, and on the next line words about it.
        assert re.search(rf" {flag}[ ,][^\n]*\n[│ ] +[^ -].{{10}}", text), flag
    for name, description in EXPERIMENT.descriptions.items():
        assert f"{name}: {description}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset slow", "invalid choice 'slow'"),
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


def test_one_command_begins_a_run_and_goes_on_with_it(run, tiny, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
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


class _Links(html.parser.HTMLParser):
    """Collects what a page would load, and its style sheets."""

    def __init__(self):
        super().__init__()
        self.links, self.styles, self._tag = [], "", ""

    def handle_starttag(self, tag, attributes):
        self._tag = tag
        attributes = dict(attributes)
        self.links += [attributes[k] for k in ("src", "href", "srcset", "data") if k in attributes]
        self.styles += attributes.get("style") or ""

    def handle_endtag(self, tag):
        self._tag = ""

    def handle_data(self, data):
        self.styles += data if self._tag == "style" else ""


def test_the_report_needs_no_network(run):
    page = _Links()
    page.feed((run / "report.html").read_text())
    assert len(page.links) == 4 and all(link.startswith("data:") for link in page.links)
    assert "@import" not in page.styles and "url(" not in page.styles


def test_the_report_shows_results_settings_and_command(run):
    page = re.sub(r"<script.*?</script>", "", (run / "report.html").read_text(), flags=re.S)
    results = read_json(run / "results.json")
    for text in (f"{results['f_mse']:.5f}", f"{results['a_mse']:.5f}", results["command"]):
        assert text in page
    assert '<td>hidden_dim</td><td class="number changed">8</td>' in page
    assert '<td>num_modes</td><td class="number">2</td>' in page
    assert "$" not in page


def test_published_figures_stand_only_beside_comparable_ones(run):
    results = read_json(run / "results.json")
    alike = run_page._comparison(EXPERIMENT, PRESETS["paper"], results)
    assert all(row.method in alike and row.source in alike for row in EXPERIMENT.published)
    for change in ({"num_train": 20}, {"target_frames": (40,)}, {"num_test": 1999}):
        config = dataclasses.replace(PRESETS["paper"], data=DataConfig(**change))
        other = run_page._comparison(EXPERIMENT, config, results)
        assert not any(row.method in other for row in EXPERIMENT.published if row.method != "EGNO")
        assert next(iter(change)) in run_page._comparison_note(EXPERIMENT, config)


def test_showcase_spans_easy_and_hard_systems():
    targets = np.random.default_rng(0).normal(size=(101, 5, 5, 3))
    sizes = np.random.default_rng(1).permutation(101) / 10
    shown = run_page.showcase(targets[:, :1], targets, targets + sizes[:, None, None, None])
    errors = np.mean(
        (shown.predicted - targets[[np.argsort(sizes)[k] for k in (10, 50, 90, 99)]]) ** 2,
        axis=(1, 2, 3),
    )
    np.testing.assert_allclose(errors, [1.0, 25.0, 81.0, 98.01])
    assert shown.titles[1] == "median: A-MSE 25"


def test_data_are_the_windows_asked_for(cache):
    config = DataConfig(num_train=20, num_valid=10, num_test=12, cache_dir=cache)
    splits = nbody.load_splits(config)
    assert [datasets.num_samples(split) for split in splits[:3]] == [40, 10, 12]
    np.testing.assert_array_equal(splits.train.times, [2, 4, 6, 8, 10])
    paths = splits.test_paths.astype(np.float32)
    np.testing.assert_array_equal(paths[:, 0], splits.test.graph.nodes["positions"])
    np.testing.assert_array_equal(paths[:, 2::2], splits.test.positions)
    plain = nbody.load_splits(dataclasses.replace(config, time_reversal=False))
    assert datasets.num_samples(plain.train) == 20


def test_original_preset_is_the_table_of_the_original_settings():
    config = PRESETS["original"]
    model, loop, optimizer = config.model, config.training, config.training.optimizer
    assert (model.num_layers, model.hidden_dim) == (4, 64)
    assert (model.num_modes, model.time_embed_dim) == (2, 32)
    assert model.velocity_weight == 0
    assert (loop.batch_size, optimizer.learning_rate) == (100, 1e-4)
    assert (optimizer.decay, optimizer.weight_decay) == ("l2", 1e-8)
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.clip_norm) == ("constant", 0, 0)
    assert loop.ema_decay == 0 and not config.data.time_reversal
    assert loop.num_steps == 5000 * 3000 // 100
    data = config.data
    assert (data.num_train, data.num_valid, data.num_test) == (3000, 2000, 2000)
    assert (data.start, data.target_frames) == (30, (32, 34, 36, 38, 40))


def test_paper_preset_differs_from_the_original_in_optimisation_alone():
    paper, original = PRESETS["paper"], PRESETS["original"]
    assert dataclasses.replace(paper.model, velocity_weight=0.0) == original.model
    assert dataclasses.replace(paper.data, time_reversal=False) == original.data
    assert paper.model == PRESETS["quick"].model and paper.data == PRESETS["quick"].data


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_their_file(name, tmp_path):
    config = dataclasses.replace(
        PRESETS[name], data=DataConfig(cache_dir=tmp_path, target_frames=(33, 36))
    )
    run_directory.start(tmp_path / "run", config, "command")
    assert run_directory.read_config(tmp_path / "run", NBodyConfig) == config
    assert config.preset == name


def test_the_class_of_a_model_of_ones_own_survives_its_file(tmp_path, monkeypatch):
    """It has no field of its own that would tell it from EGNO's."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(egno_jax.EGNOConfig):
        pass

    kinds = egno_jax.model._KINDS
    config = dataclasses.replace(PRESETS["quick"], model=OwnConfig())
    run_directory.start(tmp_path, config, "command")
    with pytest.raises(ValueError, match=r"OwnConfig', which is not registered; import it first"):
        run_directory.read_config(tmp_path, NBodyConfig)
    monkeypatch.setitem(kinds, OwnConfig, kinds[egno_jax.EGNOConfig])
    assert type(run_directory.read_config(tmp_path, NBodyConfig).model) is OwnConfig
    record = json.loads((tmp_path / run_directory.CONFIG).read_text())
    del record["model_class"]
    run_directory.write_json(tmp_path / run_directory.CONFIG, record)
    assert type(run_directory.read_config(tmp_path, NBodyConfig).model) is egno_jax.EGNOConfig


def test_default_directories_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for expected in ("runs/name", "runs/name-2", "runs/name-3"):
        assert run_directory.fresh("name").as_posix() == expected
        run_directory.fresh("name").mkdir(parents=True)
