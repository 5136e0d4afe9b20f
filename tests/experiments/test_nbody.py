"""The 5-body experiment: its data, its presets, and what a run leaves."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re

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

from experiments import nbody, run_page, run_pictures, runner
from experiments.decoding import decode
from experiments.nbody import EXPERIMENT, DataConfig


def preset(name):
    return EXPERIMENT.config(name)[0]


def read_json(path):
    return json.loads(path.read_text())


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
    in_batches, _ = decode(params, test, batch_size=7)
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


def test_settings_given_reach_the_run(run):
    settings = read_json(run / "config.json")["settings"]
    assert settings["model"]["hidden_dim"] == 8 and settings["data"]["num_valid"] == 10
    assert settings["training"]["optimizer"]["warmup_steps"] == 2
    expected = dataclasses.asdict(preset("quick").training.optimizer) | {"warmup_steps": 2}
    assert settings["training"]["optimizer"] == expected
    assert egno_jax.load(run / "best").config.hidden_dim == 8


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
    alike = run_page._comparison(EXPERIMENT, preset("paper"), results)
    assert all(row.method in alike and row.source in alike for row in EXPERIMENT.published)
    for change in ({"num_train": 20}, {"target_frames": (40,)}, {"num_test": 1999}):
        config = dataclasses.replace(preset("paper"), data=DataConfig(**change))
        other = run_page._comparison(EXPERIMENT, config, results)
        assert not any(row.source in other for row in EXPERIMENT.published)
        assert "no published errors for this task" in other and next(iter(change)) in other


def test_showcase_spans_easy_and_hard_systems():
    targets = np.random.default_rng(0).normal(size=(101, 5, 5, 3))
    sizes = np.random.default_rng(1).permutation(101) / 10
    shown = run_pictures.showcase(targets[:, :1], targets, targets + sizes[:, None, None, None])
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


def test_parts_and_lengths_of_windows(cache):
    config = DataConfig(num_train=20, num_valid=10, num_test=12, cache_dir=cache, parts=True)
    train = nbody.load_splits(config).train
    whole = nbody.load_splits(dataclasses.replace(config, parts=False)).train
    assert datasets.num_samples(train) == 20 * 2 * (6 + 6)
    np.testing.assert_array_equal(np.unique(train.times, axis=0), [np.arange(1, 6), whole.times])
    first, last = (jax.tree.map(lambda leaf, at=at: leaf[at], train) for at in (slice(40), 40 * 6))
    jax.tree.map(np.testing.assert_array_equal, first.graph, whole.graph)
    np.testing.assert_array_equal(last.graph.nodes["positions"], whole.graph.nodes["positions"][0])
    np.testing.assert_array_equal(last.positions[[1, 3]], whole.positions[0, :2])
    scaled = nbody.load_splits(dataclasses.replace(config, scale_spread=0.2)).train
    factors = (scaled.times / train.times) ** (2 / 3)
    np.testing.assert_allclose(factors, factors[:, :1] * np.ones(5), rtol=1e-6)
    assert 0.15 < np.log(factors[:, 0]).std() < 0.25
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"DataConfig\.scale_spread"):
            DataConfig(scale_spread=value)


def test_original_preset_is_the_table_of_the_original_settings():
    config = preset("original")
    model, loop, optimizer = config.model, config.training, config.training.optimizer
    assert (model.num_layers, model.hidden_dim) == (4, 64)
    assert (model.num_modes, model.time_embed_dim) == (2, 32)
    assert loop.velocity_weight == 0
    assert (loop.batch_size, optimizer.learning_rate) == (100, 1e-4)
    assert (optimizer.decay, optimizer.weight_decay) == ("l2", 1e-8)
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.clip_norm) == ("constant", 0, 0)
    assert loop.ema_decay == 0 and not config.data.time_reversal
    assert loop.num_steps == 5000 * 3000 // 100
    data = config.data
    assert (data.num_train, data.num_valid, data.num_test) == (3000, 2000, 2000)
    assert (data.start, data.target_frames) == (30, (32, 34, 36, 38, 40))


def test_paper_preset_differs_from_the_original_in_optimisation_alone():
    paper, original = preset("paper"), preset("original")
    assert paper.model == original.model
    assert dataclasses.replace(paper.data, time_reversal=False) == original.data
    assert paper.model == preset("quick").model and paper.data == preset("quick").data


def test_orbits_and_noise_are_refused_together():
    noisy = training.TrainingConfig(noise=training.NoiseConfig(positions=0.1))
    with pytest.raises(ValueError, match=r"NBodyConfig: got data.orbits=True and training.noise"):
        nbody.NBodyConfig(data=nbody.DataConfig(orbits=True), training=noisy)
