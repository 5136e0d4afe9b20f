"""Published models: they load by name, are verified, and say what they are."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax import published
from egno_jax.datasets import nbody, take
from egno_jax.recipe import GraphRecipe

CARD = {field: "text" for field in published.CARD_FIELDS}


@pytest.fixture
def params(tmp_path):
    sample = nbody.samples(nbody.canonical("test", num_simulations=1))
    batch = take(sample, np.arange(1))
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=16)
    made = egno_jax.init(jax.random.key(0), config, batch.graph, batch.times)
    return dataclasses.replace(made, recipe=GraphRecipe(edges="radius", cutoff=2.0))


@pytest.mark.parametrize("name", published.names())
def test_every_published_model_loads_and_has_a_card(name):
    params = egno_jax.load(name)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params.weights))
    card = published.card(name)
    assert {*published.CARD_FIELDS} <= {*card}
    assert card["errors"]["f_mse"] < card["errors"]["x + v t"]
    assert card["errors"]["f_mse"] < card["errors"]["nothing moves"]


def test_a_published_model_predicts_far_better_than_a_line():
    samples = nbody.samples(nbody.canonical("test", num_simulations=20))
    batch = take(samples, np.arange(20))
    found = jax.jit(egno_jax.apply)(egno_jax.load("nbody"), batch.graph, batch.times)
    error = np.mean((found.positions[-1] - batch.positions[-1]) ** 2)
    assert error < 5 * published.card("nbody")["errors"]["f_mse"]


def test_predict_with_a_published_model_makes_the_graphs_of_its_training():
    trajectories = nbody.canonical("test", num_simulations=1)
    batch = take(nbody.samples(trajectories), np.arange(1))
    expected = jax.jit(egno_jax.apply)(egno_jax.load("nbody"), batch.graph, batch.times)
    nodes = batch.graph.nodes
    charges = np.sign(np.asarray(trajectories.couplings[0])[:, 0])  # up to one sign of all
    charges[0] = 1.0
    state = {
        "positions": nodes["positions"],
        "velocities": nodes["velocities"] / 10,  # per frame
        "charges": charges,
    }
    found = egno_jax.predict("nbody", state)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-5)


def test_what_is_written_is_read_and_versions_count(params, tmp_path):
    for version in (1, 2):
        published.write("small", params, CARD, folder=tmp_path)
        assert published.card("small", tmp_path)["version"] == version
    loaded = published.load("small", tmp_path)
    assert (loaded.config, loaded.recipe) == (params.config, params.recipe)
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, params.weights)
    before = (tmp_path / "small.npz").read_bytes()
    published.write("small", params, CARD, folder=tmp_path)
    assert (tmp_path / "small.npz").read_bytes() == before


def test_changed_files_are_refused(params, tmp_path):
    published.write("small", params, CARD, folder=tmp_path)
    path = tmp_path / "small.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"small.npz: its SHA-256"):
        published.load("small", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="missing"):
        published.load("small", tmp_path)
    record = json.loads((tmp_path / "small.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps({**record, "format_version": 9}))
    with pytest.raises(ValueError, match="format_version is 9"):
        published.load("small", tmp_path)


def test_errors(params, tmp_path, monkeypatch):
    with pytest.raises(egno_jax.CheckpointError, match=r"published models are .*nbody"):
        egno_jax.load("no_such_model")
    with pytest.raises(ValueError, match="identifier"):
        published.write("../small", params, CARD, folder=tmp_path)
    with pytest.raises(ValueError, match=r"card: got no \['limits'\]"):
        published.write("small", params, {**CARD, "limits": ""}, folder=tmp_path)
    monkeypatch.setattr(published, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100"):
        published.write("small", params, CARD, folder=tmp_path)


def test_a_directory_comes_before_a_name(params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    egno_jax.save("nbody", params)
    assert egno_jax.load("nbody").config == params.config
