"""Training on times that are drawn anew: what is drawn, that it is what is trained on, resuming."""

from __future__ import annotations

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import training
from egno_jax.datasets import at_times, nbody, take
from egno_jax.training import init_state, time_indices, train_chunk
from tests.helpers import SignalAfter
from tests.training.conftest import CONFIG
from tests.training.test_loop import assert_same_weights

FRAMES = (2, 3, 4, 6, 8, 10, 11)


@pytest.fixture(scope="module")
def samples():
    found = nbody.canonical("train", num_simulations=8)
    return nbody.samples(found, start=1, target_frames=FRAMES)


@pytest.mark.parametrize("kind", ["subsets", "grids"])
@pytest.mark.parametrize(("num_times", "num_kept"), [(7, 3), (10, 5), (6, 6), (5, 1), (1, 1)])
def test_times_increase_and_are_among_the_targets(kind, num_times, num_kept):
    found = time_indices(jax.random.key(1), num_times, num_kept, 400, kind=kind)
    assert found.shape == (num_kept, 400)
    assert found.min() == 0 and found.max() == num_times - 1
    assert np.all(np.diff(found, axis=0) > 0)
    steps = np.diff(found, axis=0)
    if kind == "grids" and num_kept > 2:
        assert np.all(steps == steps[:1])
    if kind == "subsets" and num_kept < num_times:
        share = np.bincount(np.asarray(found).ravel(), minlength=num_times) / 400
        np.testing.assert_allclose(share, num_kept / num_times, atol=0.12)
    assert num_kept == num_times or len(np.unique(found, axis=1).T) > 1


def test_the_batch_keeps_the_targets_of_the_times(samples):
    batch = take(samples, jnp.array([4, 2]))
    indices = jnp.array([[0, 1], [3, 5]])
    found = at_times(batch, indices)
    np.testing.assert_array_equal(found.times, np.asarray(batch.times)[indices])
    for place, sample in enumerate((4, 2)):
        nodes = slice(5 * place, 5 * place + 5)
        for field in ("positions", "velocities"):
            expected = getattr(samples, field)[sample][indices[:, place]]
            np.testing.assert_array_equal(getattr(found, field)[:, nodes], expected)
    trajectory = egno_jax.graph.check_structure(found.graph, found.times)
    assert trajectory is None


def test_padding_graphs_have_the_times_of_their_sample(samples):
    batch = take(samples, jnp.array([0, 1]))
    n_node = jnp.array([4, 1, 4, 1])
    padded = batch._replace(graph=batch.graph._replace(n_node=n_node))
    found = at_times(padded, jnp.array([[0, 2]]))
    times = np.asarray(batch.times)
    np.testing.assert_array_equal(found.times, [[times[0], times[0], times[2], times[2]]])


RANDOM = dataclasses.replace(
    CONFIG, batch_size=4, num_steps=6, random_times="subsets", num_times=(1, 2), steps_per_chunk=3
)


def test_the_loss_is_that_at_the_drawn_times(task):
    params, train, _ = task
    key = init_state(params, RANDOM).sampler_key
    _, metrics = train_chunk(init_state(params, RANDOM), train, RANDOM, 3)
    choice_key, times_key = jax.random.split(
        jax.random.fold_in(jax.random.fold_in(key, 0x7FFFFFFF), 0)
    )
    number = RANDOM.num_times[jax.random.randint(choice_key, (), 0, 2)]
    drawn = time_indices(times_key, 2, number, 4, kind="subsets")
    batch = take(train, training.batch_indices(key, 0, 16, 4))
    expected = training.mse_loss(egno_jax.apply, params, at_times(batch, drawn), 0.1)
    np.testing.assert_allclose(metrics.loss[0], expected, rtol=1e-5)


def test_a_resumed_run_draws_the_same_times(task, tmp_path):
    whole = training.fit(tmp_path / "whole", *task, RANDOM)
    callbacks = {"make_callbacks": lambda _: [SignalAfter(3, signal.SIGTERM)]}
    first = training.fit(tmp_path / "cut", *task, RANDOM, **callbacks)
    assert first.interrupted and first.step == 3
    second = training.fit(tmp_path / "cut", *task, RANDOM, resume=True)
    assert second.step == 6
    assert_same_weights(second.params, whole.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_times": ()}, "num_times: got .*, expected one or more"),
        ({"num_times": (0,)}, "num_times: got .*, expected one or more"),
        ({"random_times": "all"}, "num_times: got .*, expected none"),
        ({"random_times": "some"}, "random_times: got 'some'"),
    ],
    ids=["none", "zero", "all", "kind"],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RANDOM, **changes)


def test_more_times_than_there_are_targets(task, tmp_path):
    config = dataclasses.replace(RANDOM, num_times=(2, 8))
    with pytest.raises(ValueError, match=r"num_times: got \(2, 8\), expected at most 2"):
        training.fit(tmp_path / "run", *task, config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["subsets", "grids"])
def test_more_times_than_there_are_are_refused(kind):
    with pytest.raises(ValueError, match=r"num_kept: got 6, expected an integer"):
        time_indices(jax.random.key(0), 4, 6, 2, kind=kind)
