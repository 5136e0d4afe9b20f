"""The motion capture experiment, from its command line, on data that the test makes up."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import datasets, ops, training
from egno_jax.datasets import mocap as mocap_data
from tests import mocap_files
from tests.experiments.conftest import keep_initial_weights

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from experiments import mocap, run_page, runner, settings
from experiments.mocap import EXPERIMENT, DataConfig

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", keep_initial_weights)
        assert runner.main(EXPERIMENT, words) == 0
    return directory


def preset(name):
    return EXPERIMENT.config(name)[0]


def read_json(path):
    return json.loads(path.read_text())


def test_a_run_leaves_every_file(run):
    for name in ("config.json", "metrics.jsonl", "results.json", "report.html"):
        assert (run / name).stat().st_size > 0
    assert egno_jax.load(run / "best").config.hidden_dim == 8
    assert (run / "pictures/trajectories.png").read_bytes().startswith(b"\x89PNG")
    with pytest.importorskip("PIL.Image").open(run / "pictures/trajectories.gif") as film:
        assert film.n_frames == 32
        first = np.asarray(film.convert("RGB"))
        film.seek(31)
        np.testing.assert_array_equal(first, film.convert("RGB"))  # a preview shows the end
    found = read_json(run / "results.json")
    assert found["times"] == [26, 27, 28, 29, 30] and found["num_test"] == 9


def test_the_report_shows_the_skeletons_without_a_network(run):
    page = re.sub(r"<script.*?</script>", "", (run / "report.html").read_text(), flags=re.S)
    links = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(links) == 5 and all(link.startswith("data:") for link in links)
    assert sum(link.startswith("data:image/gif") for link in links) == 1
    assert "the initial state and the last time" in page and "$" not in page
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


def test_parts_of_windows(folder):
    config = DataConfig(num_train=30, num_valid=15, num_test=15, data_dir=folder, joints=True)
    whole = mocap.load_splits(config).train
    assert whole.graph.nodes["features"].shape[1:] == (6, 1 + 6)
    train = mocap.load_splits(dataclasses.replace(config, parts=True)).train
    assert datasets.num_samples(train) == 30 * 2 * 25
    times = [np.arange(26, 31) - start for start in range(26)]
    np.testing.assert_array_equal(np.unique(train.times, axis=0), times[::-1])
    first, last = (jax.tree.map(lambda leaf, at=at: leaf[at], train) for at in (slice(30), -1))
    jax.tree.map(np.testing.assert_array_equal, first.graph, whole.graph)
    np.testing.assert_array_equal(last.positions, whole.positions[-1])
    with pytest.raises(ValueError, match="got parts and dense, expected only one"):
        dataclasses.replace(config, parts=True, dense=True)


def test_original_preset_is_the_table_of_the_original_settings():
    config = preset("run-original")
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
    ours, original = preset("run"), preset("run-original")
    as_published = {"mean_field": False, "mean_field_channels": 0, "vector_init": 0.1}
    units = {"time_scale": 1.0, "velocity_scale": 1.0}
    sizes = {"num_layers": 6, "hidden_dim": 128}
    assert dataclasses.replace(ours.model, **as_published, **units, **sizes) == original.model
    assert dataclasses.replace(ours.data, height=True) == original.data
    assert ours.training.batch_size == original.training.batch_size


def test_the_model_tells_target_times_apart():
    configs = [preset(name) for name in settings.names("mocap")]
    for protocol, time_scale, size in {
        (c.data.protocol, c.model.time_scale, c.model.time_embed_dim) for c in configs
    }:
        frames = np.array(mocap_data.PROTOCOLS[protocol])
        tau = jnp.asarray(frames / time_scale)
        embedded = ops.sinusoidal_embedding(tau, size)
        steps = np.linalg.norm(np.diff(embedded, axis=0), axis=1)
        # Three hundred times the rounding of float32 and more.
        assert steps.min() > 0.02
        np.testing.assert_allclose(np.diff(tau), tau[1] - tau[0], rtol=1e-3)


def test_published_figures_stand_only_beside_comparable_ones(run):
    found = read_json(run / "results.json")

    def compared(**changes):
        config = dataclasses.replace(preset("walk"), data=DataConfig(**changes))
        return run_page._comparison(EXPERIMENT, config, found)

    table = compared()
    assert "0.33900" in table and "0.42938" in table and "0.08100" not in table
    table = compared(motion="walk", num_test=600, num_valid=600)
    assert "0.08100" in table and "on another split" in table and "0.33900" not in table
    for changes, name in (
        ({"protocol": "uniform"}, "running, evenly spaced frames"),
        ({"num_train": 400}, "running, 400 training windows"),
        ({"num_test": 120}, "running, num_test=120"),
        ({"motion": "walk"}, "walking, num_test=240"),
        ({"height": True}, "running, heights given"),
        ({"joints": True}, "running, joints given"),
        ({"joint_kinds": True}, "running, kinds of joints given"),
    ):
        table = compared(**changes)
        assert "ICML" not in table and f"<td>{name}</td>" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.motion jump", "invalid choice 'jump'"),
        ("--data.num-train 0", "DataConfig.num_train: got 0"),
        ("--data.num-test 10", "number of test samples: got 10, expected a multiple of 3"),
        ("--data.num-train 500", "got 500, expected a multiple of 5"),
        ("--data.motion walk --data.num-valid 15 --data.num-test 9", "a multiple of 5"),
        ("--data.height", "got data.height=True and training.noise.positions=0.15, expected only"),
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
    config, data = preset("run"), DataConfig(height=True)
    with pytest.raises(ValueError, match=r"data\.height=True and training\.noise\.positions=0\.15"):
        dataclasses.replace(config, data=data)
    noise = dataclasses.replace(config.training.noise, positions=0.0)
    training = dataclasses.replace(config.training, noise=noise)
    assert dataclasses.replace(config, data=data, training=training).data.height
