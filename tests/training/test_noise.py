"""Noise on initial states: how much, on what, recomputed features, and the same after a resume.

That a mesh changes nothing is tested in `test_mesh.py`, whose runs have noise.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import datasets, training
from egno_jax.training import NoiseConfig
from egno_jax.training.batches import step_key
from egno_jax.training.noise import add_noise, check_noise

NOISE = NoiseConfig(positions=0.1, velocities=0.02)
KEY = jax.random.key(3)


def batch_of(task, indices):
    return datasets.take(task[1], jnp.asarray(indices))


def states(batch):
    return np.stack([batch.graph.nodes["positions"], batch.graph.nodes["velocities"]])


def test_without_noise_a_batch_is_itself(task):
    batch = batch_of(task, [0, 1])
    assert add_noise(batch, KEY, jnp.arange(2), NoiseConfig()) is batch


def test_noise_is_normal_of_the_width_asked_for_and_leaves_the_targets(task):
    batch = batch_of(task, np.arange(400) % 16)
    noisy = add_noise(batch, KEY, jnp.arange(400), NOISE)
    for name, width in (("positions", 0.1), ("velocities", 0.02)):
        drawn = np.asarray(noisy.graph.nodes[name] - batch.graph.nodes[name]) / width
        np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.05)
        assert np.mean(np.abs(drawn) > 1.96) == pytest.approx(0.05, abs=0.01)
    positions, velocities = (states(noisy) - states(batch)).reshape(2, -1)
    assert abs(np.corrcoef(positions, velocities)[0, 1]) < 0.05
    np.testing.assert_array_equal(noisy.positions, batch.positions)
    np.testing.assert_array_equal(noisy.velocities, batch.velocities)


def test_noise_on_targets_leaves_the_state_and_is_its_own(task):
    batch = batch_of(task, np.arange(400) % 16)
    noisy = add_noise(batch, KEY, jnp.arange(400), dataclasses.replace(NOISE, targets=0.5))
    drawn = np.asarray(noisy.positions - batch.positions) / 0.5
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [0, 1], atol=0.05)
    np.testing.assert_array_equal(noisy.velocities, batch.velocities)
    np.testing.assert_array_equal(
        states(noisy), states(add_noise(batch, KEY, jnp.arange(400), NOISE))
    )
    of_state = (states(noisy) - states(batch))[0].ravel()
    assert abs(np.corrcoef(of_state, drawn[0].ravel())[0, 1]) < 0.05
    only = add_noise(batch, KEY, jnp.arange(400), NoiseConfig(targets=0.5))
    np.testing.assert_array_equal(only.positions, noisy.positions)
    np.testing.assert_array_equal(states(only), states(batch))
    # A sample's noise belongs to its place in the batch, on whatever device it is.
    part = add_noise(batch_of(task, [3]), KEY, jnp.array([3]), NoiseConfig(targets=0.5))
    nodes = batch.positions.shape[1] // 400
    whole = noisy.positions[:, 3 * nodes : 4 * nodes]
    np.testing.assert_allclose(part.positions, whole, rtol=1e-6)


def test_features_follow_the_noisy_state(task):
    batch = batch_of(task, [0, 1, 2])
    graph = add_noise(batch, KEY, jnp.arange(3), NOISE).graph
    speeds = np.linalg.norm(graph.nodes["velocities"], axis=-1)
    np.testing.assert_allclose(graph.nodes["features"][:, 0], speeds, rtol=1e-5)
    offsets = graph.nodes["positions"][graph.receivers] - graph.nodes["positions"][graph.senders]
    np.testing.assert_allclose(graph.edges["features"][:, -1], (offsets**2).sum(-1), rtol=1e-5)
    # The other edge feature, the product of the charges, is no function of the state.
    before = batch.graph.edges["features"][:, 0]
    np.testing.assert_array_equal(graph.edges["features"][:, 0], before)


def with_distances(data):
    """Returns samples whose two edge features are |r| and |r|^2."""
    squares = np.asarray(data.graph.edges["features"])[..., -1:]
    edges = {"features": np.concatenate([np.sqrt(squares), squares], axis=-1)}
    return data._replace(graph=data.graph._replace(edges=edges))


def test_distances_follow_the_noisy_state(task):
    batch = datasets.take(with_distances(task[1]), jnp.arange(3))
    config = dataclasses.replace(NOISE, distance_column=0)
    graph = add_noise(batch, KEY, jnp.arange(3), config).graph
    offsets = graph.nodes["positions"][graph.receivers] - graph.nodes["positions"][graph.senders]
    squares = (offsets**2).sum(-1)
    expected = np.stack([np.sqrt(squares), squares], axis=-1)
    np.testing.assert_allclose(graph.edges["features"], expected, rtol=1e-5)


def test_columns_that_are_not_named_stay(task):
    batch = batch_of(task, [0, 1])
    config = dataclasses.replace(NOISE, speed_column=None, squared_distance_column=None)
    graph = add_noise(batch, KEY, jnp.arange(2), config).graph
    np.testing.assert_array_equal(graph.nodes["features"], batch.graph.nodes["features"])
    np.testing.assert_array_equal(graph.edges["features"], batch.graph.edges["features"])


def test_a_samples_noise_depends_on_its_place_alone(task):
    whole = batch_of(task, [4, 5, 6])
    part = batch_of(task, [6, 4])
    noise = states(add_noise(whole, KEY, jnp.arange(3), NOISE)) - states(whole)
    noise_of_part = states(add_noise(part, KEY, jnp.array([2, 0]), NOISE)) - states(part)
    by_sample = noise.reshape(2, 3, 5, 3)
    np.testing.assert_allclose(noise_of_part.reshape(2, 2, 5, 3), by_sample[:, [2, 0]], atol=1e-6)
    assert np.abs(by_sample[:, 0] - by_sample[:, 1]).max() > 0.01


def test_steps_draw_anew_and_the_same_step_the_same(task, config):
    params, train, _ = task
    config = dataclasses.replace(config, noise=NOISE)

    def losses(config):
        return training.train_chunk(training.init_state(params, config), train, config, 3)[1].loss

    first, again = losses(config), losses(config)
    np.testing.assert_array_equal(first, again)
    without = losses(dataclasses.replace(config, noise=NoiseConfig()))
    assert (np.asarray(first) != without).all()
    key = training.init_state(params, config).sampler_key
    keys = [jax.random.key_data(step_key(key, n)) for n in range(3)]
    assert len(np.unique(np.stack(keys), axis=0)) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positions", -0.1),
        ("velocities", float("nan")),
        ("positions", float("inf")),
        ("velocities", "much"),
        ("speed_column", 0.5),
        ("squared_distance_column", True),
        ("distance_column", "first"),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"NoiseConfig.{field}: got {value!r}"):
        NoiseConfig(**{field: value})


FAULTS = {
    "no such node feature": ({"speed_column": 1}, "speed_column: got 1, expected"),
    "no such edge feature": ({"distance_column": 2}, "distance_column: got 2, expected"),
    "distances taken for squares": (
        {"squared_distance_column": 0},
        "squared_distance_column: got 0, which holds .*use distance_column=0",
    ),
    "squares taken for distances": (
        {"squared_distance_column": None, "distance_column": 1},
        "distance_column: got 1, which holds .*use squared_distance_column=1",
    ),
}


@pytest.mark.parametrize(("changes", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_column_that_holds_something_else_is_refused(task, config, tmp_path, changes, message):
    params, train, valid = task
    noise = dataclasses.replace(NOISE, **changes)
    with pytest.raises(ValueError, match=f"NoiseConfig.{message}"):
        training.fit(
            tmp_path / "run",
            params,
            with_distances(train),
            valid,
            dataclasses.replace(config, noise=noise),
        )
    assert not (tmp_path / "run").exists()
    check_noise(with_distances(train), dataclasses.replace(NOISE, distance_column=0))


def test_a_speed_that_is_none_is_refused(task):
    nodes = task[1].graph.nodes
    data = task[1]._replace(
        graph=task[1].graph._replace(nodes={**nodes, "features": np.ones_like(nodes["features"])})
    )
    with pytest.raises(ValueError, match=r"NoiseConfig.speed_column: got 0"):
        check_noise(data, NOISE)
    check_noise(data, dataclasses.replace(NOISE, speed_column=None))
    check_noise(data, NoiseConfig())


def test_a_noise_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"TrainingConfig.noise: got 0.1, expected an egno_jax"):
        training.TrainingConfig(noise=0.1)
