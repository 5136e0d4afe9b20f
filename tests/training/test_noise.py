"""Noise on given states: how much, on what, renewed features, and the same after a resume.

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
from egno_jax.training.noise import add_noise, step_key
from egno_jax.training.step import init_state, train_step

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


def test_lengths_follow_the_noisy_state(task):
    batch = batch_of(task, [0, 1, 2])
    edges = {"features": jnp.sqrt(batch.graph.edges["features"][:, [1, 1]])}
    batch = batch._replace(graph=batch.graph._replace(edges=edges))
    config = dataclasses.replace(NOISE, length_column=0)
    graph = add_noise(batch, KEY, jnp.arange(3), config).graph
    offsets = graph.nodes["positions"][graph.receivers] - graph.nodes["positions"][graph.senders]
    squares = (offsets**2).sum(-1)
    expected = np.stack([np.sqrt(squares), squares], axis=-1)
    np.testing.assert_allclose(graph.edges["features"], expected, rtol=1e-5)


def test_columns_that_are_not_named_stay(task):
    batch = batch_of(task, [0, 1])
    config = dataclasses.replace(NOISE, speed_column=None, distance_column=None)
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
    state = init_state(params, config)
    step = jax.jit(train_step, static_argnames="config")
    (_, first), (_, again) = step(state, train, config), step(state, train, config)
    assert first.loss == again.loss
    _, without = step(state, train, dataclasses.replace(config, noise=NoiseConfig()))
    assert first.loss != without.loss
    keys = [jax.random.key_data(step_key(state.sampler_key, n)) for n in range(3)]
    assert len(np.unique(np.stack(keys), axis=0)) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("positions", -0.1),
        ("velocities", float("nan")),
        ("positions", float("inf")),
        ("velocities", "much"),
        ("speed_column", 0.5),
        ("distance_column", True),
        ("length_column", "first"),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"NoiseConfig.{field}: got {value!r}"):
        NoiseConfig(**{field: value})


@pytest.mark.parametrize(
    ("name", "column"), [("speed_column", 1), ("distance_column", -3), ("length_column", 2)]
)
def test_a_column_that_is_not_there_is_named(task, name, column):
    config = dataclasses.replace(NOISE, **{name: column})
    with pytest.raises(ValueError, match=f"{name}: got {column}, expected -F <= column < F"):
        add_noise(batch_of(task, [0, 1]), KEY, jnp.arange(2), config)


def test_a_noise_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"TrainingConfig.noise: got 0.1, expected an egno_jax"):
        training.TrainingConfig(noise=0.1)
