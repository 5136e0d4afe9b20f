"""The motion capture experiment, from its command line, on data that the test makes up."""

from __future__ import annotations

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import EGNOConfig, datasets, ops
from egno_jax.datasets import mocap as mocap_data
from tests import mocap_files

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from experiments import mocap, report, run_directory, run_page, runner
from experiments.mocap import EXPERIMENT, PRESETS, DataConfig, MocapConfig

TINY = (
    "--preset quick --model.num-layers 1 --model.hidden-dim 8 --model.time-embed-dim 4 "
    "--training.num-steps 6 --training.batch-size 5 --training.eval-every 3 "
    "--training.optimizer.warmup-steps 2 "
    "--data.num-train 20 --data.num-valid 9 --data.num-test 9"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    mocap_files.write_walk(path)
    mocap_files.write_run(path)
    return path


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    words = [*TINY, "--data.data-dir", str(folder), "--out", str(directory)]
    assert runner.main(EXPERIMENT, words) == 0
    return directory


def read_json(path):
    return json.loads(path.read_text())


def test_a_run_leaves_every_file(run):
    for name in ("config.json", "metrics.jsonl", "results.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert egno_jax.load(run / "best").config.hidden_dim == 8
    assert (run / "pictures/trajectories.png").read_bytes().startswith(b"\x89PNG")
    with pytest.importorskip("PIL.Image").open(run / "pictures/trajectories.gif") as film:
        assert film.n_frames == 31
    found = read_json(run / "results.json")
    assert found["times"] == [26, 27, 28, 29, 30] and found["num_test"] == 9


def test_the_report_shows_the_skeletons_without_a_network(run):
    page = re.sub(r"<script.*?</script>", "", (run / "report.html").read_text(), flags=re.S)
    links = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(links) == 5 and all(link.startswith("data:") for link in links)
    assert sum(link.startswith("data:image/gif") for link in links) == 1
    assert "at the last time, true and predicted" in page and "$" not in page
    assert "data_dir" not in page


def test_the_straight_line_goes_on_with_the_velocity(run, folder):
    windows = mocap_data.load_windows("run", "test", num_samples=9, data_dir=folder)
    x = windows.positions
    line = x[:, 0] + 30 * (x[:, 1] - x[:, 0])
    expected = np.mean((line - x[:, 30]) ** 2)
    baseline = read_json(run / "results.json")["linear_baseline"]
    np.testing.assert_allclose(baseline["f_mse"], expected, rtol=1e-4)


@pytest.mark.parametrize(("motion", "protocol"), [("run", "uniform"), ("walk", "last")])
def test_data_are_those_asked_for(motion, protocol, folder):
    config = DataConfig(
        motion=motion,
        protocol=protocol,
        num_train=30,
        num_valid=15,
        num_test=15,
        height=True,
        data_dir=folder,
    )
    splits = mocap.load_splits(config)
    assert [datasets.num_samples(split) for split in splits[:3]] == [30, 15, 15]
    frames = mocap_data.PROTOCOLS[protocol]
    np.testing.assert_array_equal(splits.train.times, frames)
    assert splits.train.graph.nodes["features"].shape[-1] == 2
    paths = splits.test_paths.astype(np.float32)
    np.testing.assert_array_equal(paths[:, 0], splits.test.graph.nodes["positions"])
    np.testing.assert_array_equal(
        paths[:, list(splits.drawing.target_frames)], splits.test.positions
    )
    assert paths.shape[1] == 31 and splits.drawing.up == "y"


def test_original_preset_is_the_table_of_the_original_settings():
    config = PRESETS["run-original"]
    model, loop, optimizer = config.model, config.training, config.training.optimizer
    assert (model.num_layers, model.hidden_dim) == (6, 128)
    assert (model.num_modes, model.time_embed_dim) == (2, 32)
    assert (loop.batch_size, optimizer.learning_rate) == (12, 5e-4)
    assert (optimizer.decay, optimizer.weight_decay) == ("l2", 1e-10)
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.clip_norm) == ("constant", 0, 0)
    assert loop.ema_decay == 0 and loop.num_steps == 2000 * (200 // 12)
    data = config.data
    assert (data.num_train, data.num_valid, data.num_test) == (200, 240, 240)
    assert (data.motion, data.protocol, data.height) == ("run", "last", True)


def test_run_preset_keeps_modes_data_and_batch_of_the_original():
    ours, original = PRESETS["run"], PRESETS["run-original"]
    as_published = {"mean_field": False, "mean_field_channels": 0, "vector_init": 0.1}
    units = {"time_scale": 1.0, "velocity_scale": 1.0}
    sizes = {"num_layers": 6, "hidden_dim": 128}
    assert dataclasses.replace(ours.model, **as_published, **units, **sizes) == original.model
    assert dataclasses.replace(ours.data, height=True) == original.data
    assert ours.training.batch_size == original.training.batch_size


def test_baselines_are_compared_as_published_but_for_what_is_egno_without_convolutions():
    assert PRESETS["run"].model.mean_field
    for method in ("egnn", "egnn-s"):
        model = PRESETS[f"run-{method}"].model
        assert (model.mean_field, model.mean_field_channels) == (False, 0)
    assert PRESETS["run-egno-no-conv"].model.mean_field
    channels = PRESETS["run"].model.mean_field_channels
    assert PRESETS["run-egno-no-conv"].model.mean_field_channels == channels
    assert PRESETS["run-egno-no-conv"].model.vector_init == EGNOConfig().vector_init


def test_the_model_tells_target_times_apart():
    for preset in PRESETS.values():
        frames = np.array(mocap_data.PROTOCOLS[preset.data.protocol])
        tau = jnp.asarray(frames / preset.model.time_scale)
        embedded = ops.sinusoidal_embedding(tau, preset.model.time_embed_dim)
        steps = np.linalg.norm(np.diff(embedded, axis=0), axis=1)
        # Three hundred times the rounding of float32 and more.
        assert steps.min() > 0.02
        np.testing.assert_allclose(np.diff(tau), tau[1] - tau[0], rtol=1e-3)


def test_published_figures_stand_only_beside_comparable_ones(run):
    found = read_json(run / "results.json")

    def compared(**changes):
        config = dataclasses.replace(PRESETS["run"], data=DataConfig(**changes))
        table, note = run_page._comparison(EXPERIMENT, config, found), run_page._comparison_note
        return table, note(EXPERIMENT, config)

    table, note = compared()
    assert "0.33900" in table and "0.42938" in table and "0.08100" not in table
    assert "unless a source says otherwise" in note
    table, note = compared(motion="walk", num_test=600, num_valid=600)
    assert "0.08100" in table and "on another split" in table and "0.33900" not in table
    for changes, name in (
        ({"protocol": "uniform"}, "protocol"),
        ({"num_train": 400}, "num_train"),
        ({"num_test": 120}, "num_test"),
        ({"motion": "walk"}, "motion"),
    ):
        table, note = compared(**changes)
        assert "ICML" not in table and f"the data differ from theirs in {name}" in note


def test_each_task_has_a_table_of_its_own(run, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"{report._BEGIN}\n{report._END}\n")
    monkeypatch.setattr(report, "_RECORDS", tmp_path / "results")
    monkeypatch.setattr(report, "_PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "_README", readme)
    for name in ("run", "walk", "walk-uniform"):
        directory = tmp_path / name
        directory.mkdir()
        settings = run_directory.plain(PRESETS[name])
        settings["data"]["data_dir"] = "somewhere"
        record = {**read_json(run / "results.json"), "preset": name}
        run_directory.write_json(directory / "results.json", record)
        run_directory.write_json(directory / "config.json", {"settings": settings})
        assert "somewhere" not in report.collect(directory).read_text()
    report.build()
    first, *tables = (tmp_path / "RESULTS.md").read_text().split("\nWith `data.motion=")
    assert "## Motion capture" in first and len(tables) == 3
    for table, published, name in zip(
        tables, ("| 0.339 |", "| 0.081 |", None), ("run", "walk", "walk-uniform"), strict=True
    ):
        assert f"preset `{name}`" in table.partition("### Runs")[0]
        assert [figure in table for figure in ("| 0.339 |", "| 0.081 |")] == [
            figure == published for figure in ("| 0.339 |", "| 0.081 |")
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.motion jump", "invalid choice 'jump'"),
        ("--data.num-train 0", "DataConfig.num_train: got 0"),
        ("--data.num-test 10", "number of samples is 10, expected a multiple of 3"),
        ("--data.num-train 500", "is 500, expected a multiple of 5"),
        ("--data.motion walk --data.num-valid 15 --data.num-test 9", "a multiple of 5"),
        ("--data.height", "got data.height=True and training.noise.positions=0.15, expected one"),
        ("--data.data-dir nowhere", "nowhere/cmu/subject09_run.npz is missing"),
        ("--preset walk --data.data-dir nowhere", "nowhere/cmu/subject35/35.asf is missing"),
    ],
)
def test_wrong_input_is_refused_in_plain_words(
    arguments, message, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    try:
        code = runner.main(EXPERIMENT, [*TINY, "--data.data-dir", str(folder), *arguments.split()])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_heights_go_with_noise_on_velocities_alone():
    config, data = PRESETS["run"], DataConfig(height=True)
    with pytest.raises(ValueError, match=r"data\.height=True and training\.noise\.positions=0\.15"):
        dataclasses.replace(config, data=data)
    noise = dataclasses.replace(config.training.noise, positions=0.0)
    training = dataclasses.replace(config.training, noise=noise)
    assert dataclasses.replace(config, data=data, training=training).data.height


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_their_file(name, tmp_path):
    data = DataConfig(data_dir=tmp_path, protocol="uniform")
    config = dataclasses.replace(PRESETS[name], data=data)
    run_directory.start(tmp_path / "run", config, "command")
    assert run_directory.read_config(tmp_path / "run", MocapConfig) == config
    assert config.preset == name and name in EXPERIMENT.descriptions
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=None))
    run_directory.check_settings(tmp_path / "run", moved)  # data may lie elsewhere
