"""Published models: they load by name, are verified, and say what they are."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax import published
from egno_jax.datasets import md17, mocap, nbody, take
from egno_jax.recipe import GraphRecipe, State, graph_of

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
    samples = nbody.with_orbits(nbody.samples(nbody.canonical("test", num_simulations=20)))
    batch = take(samples, np.arange(20))
    found = jax.jit(egno_jax.apply)(egno_jax.load("nbody"), batch.graph, batch.times)
    error = np.mean((found.positions[-1] - batch.positions[-1]) ** 2)
    assert error < 5 * published.card("nbody")["errors"]["f_mse"]


def test_predict_with_a_published_model_makes_the_graphs_of_its_training():
    trajectories = nbody.canonical("test", num_simulations=1)
    batch = take(nbody.with_orbits(nbody.samples(trajectories)), np.arange(1))
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


def assert_equal_to_the_bit(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    dtypes = [[np.asarray(leaf).dtype for leaf in jax.tree.leaves(x)] for x in (found, expected)]
    assert dtypes[0] == dtypes[1]


def walkers(rng, bonds):
    """Returns two windows of joints `[2, 32, 31, 3]` that move at random, two units apart."""
    body = np.zeros((2, 1, 31, 3))
    for joint, parent in bonds:
        step = rng.normal(size=(2, 1, 3))
        body[:, :, joint] = body[:, :, parent] + 2 * step / np.linalg.norm(step)
    return body + np.cumsum(0.1 * rng.normal(size=(2, 32, 31, 3)), axis=1)


@pytest.mark.parametrize("name", ["running", "walking"])
def test_recipes_of_motion_make_the_graphs_of_its_data_set(name):
    params = egno_jax.load(name)
    positions = walkers(np.random.default_rng(0), params.recipe.bonds)
    windows = mocap.Windows(positions, np.array(params.recipe.bonds), np.zeros(2), np.zeros(2))
    samples = mocap.samples(windows, joint_kinds=True)
    for index, frames in enumerate(positions):
        batch = take(samples, np.array([index]), np)
        state = State(frames[0], frames[1] - frames[0])
        assert_equal_to_the_bit(graph_of(params.recipe, state), batch.graph)
        found = egno_jax.predict(params, {"positions": frames[:2]})
        expected = jax.jit(egno_jax.apply)(params, batch.graph, batch.times)
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_array_equal(found.times, batch.times)
    with pytest.raises(ValueError, match="got 30 nodes, expected 31"):
        egno_jax.predict(params, {"positions": frames[:2, :30]})


# The first frame of the trajectory that `python -m egno_jax.datasets.md17` generates, in Angstrom.
ASPIRIN = np.array(
    "2.56 0.07 2.55 1.23 -0.14 1.90 0.11 -0.15 2.45 1.45 -0.29 0.61 0.39 -0.46 -0.33 0.52 -1.59 "
    "-1.06 -0.33 -1.89 -2.14 -1.25 -0.90 -2.42 -1.41 0.21 -1.70 -0.60 0.58 -0.59 -0.89 1.80 "
    "0.24 -0.12 2.64 0.61 -2.26 1.80 0.41 2.98 0.64 1.73 3.22 -0.76 2.84 2.33 0.66 3.35 1.23 "
    "-2.39 -0.65 -0.21 -2.75 -2.72 -2.00 -1.18 -3.28 -2.22 0.82 -1.94 -2.53 2.53 1.09".split(),
    float,
).reshape(21, 3)


def test_the_recipe_of_aspirin_makes_the_graphs_of_its_data_set():
    pytest.importorskip("vesin")
    params = egno_jax.load("aspirin")
    numbers = np.array(params.recipe.numbers)
    noise = 0.003 * np.random.default_rng(0).normal(size=(90, 21, 3))
    positions = (ASPIRIN + np.cumsum(noise, axis=0) * (np.arange(90) > 0)[:, None, None]).astype(
        np.float32
    )
    trajectory = md17.Trajectory(positions, numbers)
    samples = md17.samples(trajectory, np.array([0, 3]), md17.bond_graph(trajectory), window=80)
    for index, start in enumerate((0, 3)):
        batch = take(samples, np.array([index]), np)
        frames = positions[start : start + 2].astype(float)
        state = State(frames[0], (frames[1] - frames[0]) / 0.5, numbers=numbers)
        assert_equal_to_the_bit(graph_of(params.recipe, state), batch.graph)
        found = egno_jax.predict(params, {"positions": frames})
        expected = jax.jit(egno_jax.apply)(params, batch.graph, batch.times)
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_array_equal(found.times, 0.5 * batch.times)  # in fs
        np.testing.assert_array_equal(found.state.numbers, numbers)
    with pytest.raises(ValueError, match=r"state.numbers\[0\]: got 1, expected 6"):
        graph_of(params.recipe, state._replace(numbers=numbers[::-1]))


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
    with pytest.raises(ValueError, match=r"small.npz: got SHA-256"):
        published.load("small", tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="missing"):
        published.load("small", tmp_path)
    record = json.loads((tmp_path / "small.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps({**record, "format_version": 9}))
    with pytest.raises(ValueError, match="format_version is 9"):
        published.load("small", tmp_path)


def test_a_pair_of_which_one_file_was_written_is_refused_until_both_are(
    params, tmp_path, monkeypatch
):
    published.write("small", params, CARD, folder=tmp_path)
    other = jax.tree.map(lambda x: 2 * x, params)

    replace = pathlib.Path.replace

    def killed(path, target):
        if target.name == "small.json":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pathlib.Path, "replace", killed)
        published.write("small", other, CARD, folder=tmp_path)
    with pytest.raises(ValueError, match=r"small.npz: got SHA-256 .*interrupted.*write the model"):
        published.load("small", tmp_path)
    published.write("small", other, CARD, folder=tmp_path)
    loaded = published.load("small", tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, other.weights)


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
