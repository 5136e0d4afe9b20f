from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import egno_jax
from egno_jax import datasets
from egno_jax.datasets import md17 as md17_data

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
pytest.importorskip("vesin")

from experiments import md17, run_directory, run_page, runner, settings
from experiments.md17 import EXPERIMENT, PUBLISHED, DataConfig, MD17Config

NUMBERS = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
STRUCTURE = np.array(
    [
        [0.00, 0.00, 0.00],
        [1.51, 0.00, 0.00],
        [2.03, 1.33, 0.00],
        [-0.37, 1.02, 0.00],
        [-0.38, -0.52, 0.88],
        [-0.38, -0.52, -0.88],
        [1.88, -0.54, 0.88],
        [1.88, -0.54, -0.88],
        [2.99, 1.27, 0.00],
    ]
)
SMALL = {
    "molecule": "swing",
    "split": "blocks",
    "num_train": 20,
    "num_valid": 7,
    "num_test": 9,
    "window": 40,
    "num_targets": 2,
    "margin": 30,
}
TINY = (
    "--model.num-layers 1 --model.hidden-dim 8 --model.time-embed-dim 4 --model.time-scale 20 "
    "--training.num-steps 4 --training.batch-size 10 --training.eval-every 2 "
    "--training.eval-batch-size 5 --training.optimizer.warmup-steps 1 "
).split()
TINY += [
    word
    for name, value in SMALL.items()
    for word in (f"--data.{name.replace('_', '-')}", str(value))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A molecule that swings about a structure, under its own name and that of aspirin."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    amplitudes, phases = rng.normal(scale=0.05, size=(2, 9, 3))
    times = np.arange(900)[:, None, None]
    positions = STRUCTURE + amplitudes * (np.sin(0.1 * times + 50 * phases) - np.sin(50 * phases))
    md17_data.write(folder / "md" / "swing.npz", md17_data.Trajectory(positions, NUMBERS))
    return folder


def preset(name):
    return EXPERIMENT.config(name)[0]


def read_json(path):
    return json.loads(path.read_text())


def check_results(directory, test):
    """The straight line is drawn through the real atoms alone."""
    results = read_json(directory / "results.json")
    assert results["times"] == [20, 40] and results["num_test"] == 9
    x, v = (test.graph.nodes[name][:, None, :3] for name in ("positions", "velocities"))
    errors = (x + test.times[:, None, None] * v - test.positions[:, :, :3]) ** 2
    np.testing.assert_allclose(results["linear_baseline"]["a_mse"], errors.mean(), rtol=1e-4)


@pytest.mark.slow
def test_a_run_ends_in_results(folder, tmp_path, untrained):
    directory = tmp_path / "run"
    words = [*TINY, "--data.data-dir", str(folder)]
    assert runner.main(EXPERIMENT, [*words, "--out", str(directory)]) == 0
    data = run_directory.read_config(directory, MD17Config).data
    assert data == DataConfig(data_dir=folder, **SMALL)
    check_results(directory, md17.load_splits(data).test)
    ((_, _, config, results, systems, drawing),) = untrained
    assert systems.predicted.shape == (4, 2, 3, 3) and len(drawing.bonds) == 2
    table = run_page._comparison(EXPERIMENT, config, results)
    assert "no published errors for this task" in table and "swing, blocks of time" in table


def test_padding_of_radius_graphs_counts_nowhere(folder, tmp_path, untrained):
    config = with_data(graph="radius", data_dir=folder, **SMALL)
    training = dataclasses.replace(config.training, batch_size=10, eval_batch_size=5)
    model = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, time_embed_dim=4, time_scale=20.0)
    config = dataclasses.replace(config, model=model, training=training)
    splits = md17.load_splits(config.data)
    runner.train(tmp_path, config, splits, "command", resume=False)
    runner.finish(EXPERIMENT, tmp_path, config, splits)
    check_results(tmp_path, splits.test)
    assert splits.test.positions.shape[2] == 4
    systems = untrained[0][4]
    assert systems.true.shape[2] == systems.predicted.shape[2] == 3


@pytest.mark.parametrize("cutoff", [1.4, 1.0])
def test_radius_graphs_need_no_bonds(folder, cutoff):
    """Pictures show those bonds that are there: carbon 1 to oxygen is the shortest, 1.43."""
    config = DataConfig(graph="radius", data_dir=folder, bond_cutoff=cutoff + 0.1, **SMALL)
    drawing = md17.load_splits(config).drawing
    if cutoff == 1.0:
        assert drawing is None
    else:
        np.testing.assert_array_equal(drawing.bonds, [[1, 2]])
    with pytest.raises(ValueError, match="has no other within"):
        md17.load_splits(dataclasses.replace(config, graph="bonds"))


@pytest.mark.parametrize("split", ["random", "blocks"])
def test_data_are_the_windows_asked_for(folder, split):
    config = DataConfig(data_dir=folder, **(SMALL | {"split": split}))
    splits = md17.load_splits(config)
    assert [datasets.num_samples(part) for part in splits[:3]] == [20, 7, 9]
    np.testing.assert_array_equal(splits.train.times, [20, 40])
    frames = list(splits.drawing.target_frames)
    np.testing.assert_allclose(splits.test_paths[:, 0], splits.test.graph.nodes["positions"])
    np.testing.assert_allclose(splits.test_paths[:, frames], splits.test.positions, atol=1e-6)
    np.testing.assert_array_equal(splits.drawing.bonds, [[0, 1], [1, 2]])
    whole = md17.load_splits(dataclasses.replace(config, atoms="all"))
    assert whole.train.node_mask.shape == (20, 9) and len(whole.drawing.bonds) == 8


def test_windows_run_backwards_double_the_training_set_alone(folder):
    config = DataConfig(data_dir=folder, **SMALL)
    plain = md17.load_splits(config)
    double = md17.load_splits(dataclasses.replace(config, time_reversal=True))
    assert datasets.num_samples(double.train) == 40 and datasets.num_samples(double.test) == 9
    np.testing.assert_array_equal(double.train.positions[:20], plain.train.positions)
    last = double.train.positions[20:, -1]  # where a window that runs backwards ends
    np.testing.assert_allclose(last, plain.train.graph.nodes["positions"], atol=1e-6)


def test_windows_run_backwards_have_the_bonds_of_the_first_frame(folder, tmp_path):
    """The bond to the last atom grows until it is not a bond."""
    trajectory = md17_data.load_trajectory("swing", archive="md", data_dir=folder)
    positions = np.array(trajectory.positions)
    positions[:, 2, 0] += np.linspace(0, 2, len(positions))
    torn = md17_data.Trajectory(positions, NUMBERS)
    backwards = torn._replace(positions=positions[::-1])
    assert len(md17_data.bonds(torn)) != len(md17_data.bonds(backwards))
    md17_data.write(tmp_path / "md" / "swing.npz", torn)
    config = DataConfig(data_dir=tmp_path, **SMALL, time_reversal=True)
    senders = md17.load_splits(config).train.graph.senders
    assert (senders == senders[0]).all() and len(senders) == 40


def results_of(f_mse=0.1):
    straight = {"f_mse": 1.0, "a_mse": 1.0}
    return {"model": "EGNO", "f_mse": f_mse, "a_mse": 0.1, "seed": 0, "linear_baseline": straight}


def with_data(**changes):
    return dataclasses.replace(preset("paper"), data=DataConfig(**changes))


def test_published_figures_stand_only_beside_the_original_md17():
    for molecule in md17_data.MOLECULES:
        config = with_data(molecule=molecule, archive="md17")
        table = run_page._comparison(EXPERIMENT, config, results_of())
        own = [row for row in PUBLISHED if row.task.startswith(molecule)]
        assert [row.method for row in own] == ["EGNN", "EGNN-R", "EGNN-S", "EGNO", "ATOM"]
        assert all(f"{row.f_mse:.5f}" in table for row in own)
        assert table.count("<tr") == 1 + 2 + len(own)
    for change in (
        {"archive": "md"},
        {"split": "blocks"},
        {"atoms": "all"},
        {"graph": "radius"},
        {"bond_cutoff": 1.7},
        {"window": 2000},
        {"num_targets": 4},
        {"num_train": 499},
        {"num_test": 1999},
    ):
        config = with_data(**({"archive": "md17"} | change))
        table = run_page._comparison(EXPERIMENT, config, results_of())
        assert not any(row.source in table for row in PUBLISHED), change
        assert "no published errors for this task" in table


def test_what_is_called_the_original_must_be_it(folder, tmp_path):
    path = tmp_path / "md17" / "md17_ethanol.npz"
    path.parent.mkdir()
    path.write_bytes((folder / "md" / "swing.npz").read_bytes())
    config = DataConfig(archive="md17", molecule="ethanol", data_dir=tmp_path)
    with pytest.raises(ValueError, match="not MD17's ethanol"):
        md17.load_splits(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.molecule phenol", "phenol.npz is not there; make it with"),
        ("--data.molecule phenol --data.archive md17", "DataConfig.molecule: got 'phenol'"),
        ("--data.archive rmd17", "invalid choice 'rmd17'"),
        ("--data.split time", "invalid choice 'time'"),
        ("--data.window 800", "train: got 20 samples, expected at most"),
        ("--data.split random --data.margin 450", "of 900 frames 0 are left by a margin of 450"),
        ("--data.num-targets 41", "DataConfig.num_targets: got 41, expected 1 to 40"),
        ("--data.num-train 0", "DataConfig.num_train: got 0"),
        ("--data.radius -1", "DataConfig.radius: got -1"),
        ("--data.bond-cutoff 1.2", "atom 0 (Z = 6) has no other within 1.2 Angstrom"),
    ],
)
def test_wrong_input_is_refused_in_plain_words(
    arguments, message, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    words = [*TINY, "--data.data-dir", str(folder), *arguments.split()]
    try:
        code = runner.main(EXPERIMENT, words)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_original_preset_is_the_table_of_the_original_settings():
    config = preset("original")
    model, loop, optimizer = config.model, config.training, config.training.optimizer
    assert (model.num_layers, model.hidden_dim) == (5, 64)
    assert (model.num_modes, model.time_embed_dim) == (2, 32)
    assert loop.velocity_weight == 0
    assert (loop.batch_size, optimizer.learning_rate) == (100, 1e-4)
    assert (optimizer.decay, optimizer.weight_decay) == ("l2", 1e-15)
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.clip_norm) == ("halving", 0, 0)
    epoch = 500 // 100
    assert loop.ema_decay == 0 and loop.num_steps == 5000 * epoch
    assert optimizer.halve_every == 2500 * epoch and loop.eval_every == 5 * epoch
    data = config.data
    assert (data.num_train, data.num_valid, data.num_test) == (500, 2000, 2000)
    assert (data.window, data.num_targets, data.margin) == (3000, 8, 10_000)
    assert (data.atoms, data.graph, data.bond_cutoff) == ("heavy", "bonds", 1.6)
    assert data.split == "random" and not data.time_reversal


def test_configs_see_times_1_to_p_of_the_original_data():
    for name in settings.names("md17"):
        config = preset(name)
        spacing = config.data.window / config.data.num_targets
        assert config.model.time_scale == spacing
        assert config.data == preset("original").data
    for name in ("quick-no-global", "paper"):
        assert preset(name).model == preset("original").model


def test_settings_that_change_the_test_set_or_the_graph_change_the_task():
    usual = md17.task(md17.DataConfig(split="random", graph="radius"))
    for changed in ({"margin": 0}, {"radius": 2.0}):
        assert md17.task(md17.DataConfig(split="random", graph="radius", **changed)) != usual
    blocks = md17.DataConfig(split="blocks", graph="bonds")
    assert md17.task(dataclasses.replace(blocks, margin=0, radius=2.0)) == md17.task(blocks)
