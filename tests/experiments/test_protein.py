from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import datasets
from egno_jax.training.noise import add_noise
from tests import protein_files

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")
pytest.importorskip("vesin")
pytest.importorskip("MDAnalysis")

from experiments import protein, run_directory, run_page, runner, settings
from experiments.protein import EXPERIMENT, PUBLISHED, DataConfig, ProteinConfig

RESIDUES = 6
TINY = (
    "--preset quick --model.num-layers 1 --model.hidden-dim 8 --model.time-embed-dim 4 "
    "--model.time-scale 2.5 --training.num-steps 4 --training.batch-size 10 "
    "--training.steps-per-chunk 2 --training.eval-every 2 --training.eval-batch-size 5 "
    "--training.optimizer.warmup-steps 1 "
    "--data.source files --data.window 5 --data.num-targets 2 --data.cutoff 6.0"
).split()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    positions = protein_files.motion(60, RESIDUES)
    return {
        "topology": protein_files.write_psf(folder / "chain.psf", RESIDUES),
        "coordinates": protein_files.write_frames(folder / "chain.dcd", positions),
    }


def preset(name):
    return EXPERIMENT.config(name)[0]


def words_of(files):
    return [w for name, path in files.items() for w in (f"--data.{name}", str(path))]


def test_a_run_ends_in_results(files, tmp_path, untrained):
    directory = tmp_path / "run"
    words = [*TINY, *words_of(files), "--out", str(directory)]
    assert runner.main(EXPERIMENT, words) == 0
    data = run_directory.read_config(directory, ProteinConfig).data
    assert data == DataConfig(source="files", window=5, num_targets=2, cutoff=6.0, **files)
    splits = protein.load_splits(data)
    assert [datasets.num_samples(part) for part in splits[:3]] == [24, 4, 4]
    results = json.loads((directory / "results.json").read_text())
    assert results["times"] == [2, 5] and results["num_test"] == 4
    # The straight line is drawn through the real atoms alone.
    x, v = (splits.test.graph.nodes[name][:, None, :24] for name in ("positions", "velocities"))
    errors = (x + splits.test.times[:, None, None] * v - splits.test.positions[:, :, :24]) ** 2
    np.testing.assert_allclose(results["linear_baseline"]["a_mse"], errors.mean(), rtol=1e-4)
    ((_, _, config, found, systems, drawing),) = untrained
    assert found == results
    np.testing.assert_array_equal(drawing.bonds, splits.drawing.bonds)
    assert systems.true.shape == (4, 6, 24, 3) and systems.predicted.shape == (4, 2, 24, 3)
    table = run_page._comparison(EXPERIMENT, config, results)
    assert "your own chain.dcd" in table and not any(row.source in table for row in PUBLISHED)


def test_data_are_the_windows_asked_for(files):
    config = DataConfig(source="files", window=5, num_targets=2, cutoff=6.0, **files)
    splits = protein.load_splits(config)
    assert len({part.graph.senders.shape[1] for part in splits[:3]}) == 1
    frames = list(splits.drawing.target_frames)
    assert frames == [2, 5] and splits.test_paths.shape == (4, 6, 4 * RESIDUES, 3)
    real = np.s_[:, :, : 4 * RESIDUES]
    np.testing.assert_allclose(splits.test_paths[:, frames], splits.test.positions[real])
    assert splits.drawing.bonds.shape == (4 * RESIDUES - 1, 2)
    fewer = protein.load_splits(dataclasses.replace(config, stride=3, selection="name CA"))
    assert datasets.num_samples(fewer.train) == 8 and fewer.drawing is None
    assert fewer.train.node_mask.shape == (8, RESIDUES + 1)


def test_configs_name_the_distances_that_noise_must_update(files):
    every = {preset(name).training.noise for name in settings.names("protein")}
    assert len(every) == 1
    noise = dataclasses.replace(every.pop(), positions=0.5, velocities=0.1)
    config = DataConfig(source="files", window=5, num_targets=2, cutoff=6.0, **files)
    batch = datasets.take(protein.load_splits(config).test, jnp.arange(2))
    graph = add_noise(batch, jax.random.key(0), jnp.arange(2), noise).graph
    x, v = graph.nodes["positions"], graph.nodes["velocities"]
    squares = ((x[graph.receivers] - x[graph.senders]) ** 2).sum(-1)
    expected = np.stack([np.sqrt(squares), squares], axis=-1)
    np.testing.assert_allclose(graph.edges["features"], expected, rtol=1e-4, atol=1e-5)
    speeds = np.linalg.norm(v, axis=-1)
    np.testing.assert_allclose(graph.nodes["features"][:, 0], speeds, rtol=1e-4)
    assert np.abs(graph.edges["features"] - batch.graph.edges["features"]).max() > 0.1


def test_published_figures_are_those_of_the_equilibrium_alone():
    for name in settings.names("protein"):
        data = preset(name).data
        is_original = data.source == "equilibrium"
        assert is_original == (name == "equilibrium")
        assert bool(EXPERIMENT.published_for(protein.task(data))) == is_original
    for change in (
        {"source": "transition"},
        {"selection": "name CA"},
        {"window": 14},
        {"num_targets": 5},
        {"stride": 2},
    ):
        data = dataclasses.replace(preset("equilibrium").data, **change)
        assert not EXPERIMENT.published_for(protein.task(data)), change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.topology chain.pdb", "chain.pdb is not there"),
        ("--data.source adk", "invalid choice 'adk'"),
        ("--data.window 20", "train: its block of 12 of 60 frames is too short"),
        ("--data.num-targets 6", "DataConfig.num_targets: got 6, expected 1 to 5"),
        ("--data.cutoff 0", "DataConfig.cutoff: got 0.0"),
        ("--data.cutoff 0.5", "no two of 24 atoms are within 0.5 Angstrom"),
        ("--data.stride 0", "DataConfig.stride: got 0"),
        ("--data.selection 'resname TRP'", "selects none of the 30 atoms"),
        (
            "--data.source transition",
            "expected None, for the source transition; --data.source file",
        ),
        ("--data.coordinates None", "DataConfig.coordinates: got None, expected a file"),
    ],
)
def test_wrong_input_is_refused_in_plain_words(
    arguments, message, files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    name, value = arguments.split(maxsplit=1)
    try:
        code = runner.main(EXPERIMENT, [*TINY, *words_of(files), name, value.strip("'")])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_the_equilibrium_is_trained_with_the_papers_model():
    model, loop = preset("equilibrium").model, preset("equilibrium").training
    assert (model.num_layers, model.hidden_dim) == (4, 128)
    assert (model.num_modes, model.time_embed_dim) == (2, 32)
    assert loop.batch_size == 8
    data = preset("equilibrium").data
    assert (data.window, data.num_targets, data.cutoff) == (15, 4, 8.0)


def test_configs_see_times_1_to_p():
    for name in settings.names("protein"):
        config = preset(name)
        assert config.model.time_scale == config.data.window / config.data.num_targets
        assert not config.training.eval_every % config.training.steps_per_chunk
