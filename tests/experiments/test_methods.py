"""Baselines as presets: only the model differs from EGNO's, and a run goes through to its end."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from egno_jax.baselines import METHODS, BaselineConfig
from experiments import md17, mocap, nbody, protein, run_directory, runner
from experiments.nbody import EXPERIMENT, NBodyConfig

TINY = (
    "--model.num-layers 1 --model.hidden-dim 8 --model.time-embed-dim 4 "
    "--training.num-steps 4 --training.batch-size 10 --training.eval-every 2 "
    "--training.optimizer.warmup-steps 2 --data.num-train 20 --data.num-valid 10 --data.num-test 12"
).split()


@pytest.mark.parametrize(
    ("presets", "name", "num_times"),
    [
        (nbody.PRESETS, "paper", 5),
        (mocap.PRESETS, "run", 5),
        (mocap.PRESETS, "walk", 5),
        (md17.PRESETS, "paper", 8),
        (protein.PRESETS, "transition", 4),
    ],
    ids=["nbody", "run", "walk", "md17", "protein"],
)
def test_a_baseline_has_the_data_and_the_training_of_its_preset(presets, name, num_times):
    for method in METHODS:
        preset = presets[f"{name}-{method}"]
        assert (preset.data, preset.training) == (presets[name].data, presets[name].training)
        assert isinstance(preset.model, BaselineConfig)
        assert preset.model.method == method
        assert preset.model.hidden_dim == presets[name].model.hidden_dim
    assert presets[f"{name}-egnn-s"].model.num_layers >= num_times


def test_every_preset_has_its_line():
    for experiment in (nbody, mocap, md17, protein):
        assert experiment.DESCRIPTIONS.keys() == experiment.PRESETS.keys()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "egnn"
    cache = tmp_path_factory.mktemp("cache")
    arguments = ["--preset", "paper-egnn", *TINY, "--data.cache-dir", str(cache)]
    assert runner.main(EXPERIMENT, [*arguments, "--out", str(directory)]) == 0
    return directory


def test_a_model_of_one_state_is_trained_and_tested_on_the_last_time(run):
    results = json.loads((run / "results.json").read_text())
    assert results["model"] == "EGNN"
    assert results["times"] == [10.0]
    assert len(results["mse_per_time"]) == 1
    assert "EGNN, this run" in (run / "report.html").read_text()


def test_its_settings_come_back_and_it_is_evaluated_again(run, capsys):
    config = run_directory.read_config(run, NBodyConfig)
    tiny = {"num_layers": 1, "hidden_dim": 8, "time_embed_dim": 4}
    expected = dataclasses.replace(nbody.PRESETS["paper-egnn"].model, **tiny)
    assert config.model == expected
    before = (run / "results.json").read_text()
    assert runner.main(EXPERIMENT, ["--evaluate", str(run)]) == 0
    assert json.loads((run / "results.json").read_text())["f_mse"] == json.loads(before)["f_mse"]
    assert "EGNN" in capsys.readouterr().out
