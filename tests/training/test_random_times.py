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
from egno_jax.training import TrainingConfig, time_indices
from egno_jax.training.step import init_state, train_chunk

FRAMES = (31, 32, 33, 34, 36, 38, 40)
MODEL = egno_jax.EGNOConfig(
    num_layers=1,
    hidden_dim=4,
    num_modes=2,
    time_embed_dim=4,
    temporal_grid="context",
    context_times=(2.0, 4.0, 6.0),
)
CONFIG = TrainingConfig(
    num_steps=6, batch_size=3, eval_every=3, random_times="subsets", num_times=(2, 4)
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    found = nbody.load_trajectories("train", num_simulations=8, cache_dir=cache)
    return nbody.samples(found, start=30, target_frames=FRAMES)


@pytest.fixture(scope="module")
def params(samples):
    batch = take(samples, jnp.arange(1))
    return egno_jax.init(jax.random.key(0), MODEL, batch.graph, batch.times)


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


def test_the_loss_is_that_at_the_drawn_times(samples, params):
    config = dataclasses.replace(CONFIG, num_times=(3,))
    state = init_state(params, config)
    _, metrics = train_chunk(init_state(params, config), samples, config, 2)
    key = jax.random.fold_in(jax.random.fold_in(state.sampler_key, 0x7FFFFFFF), 0)
    drawn = time_indices(jax.random.split(key)[1], len(FRAMES), 3, 3, kind="subsets")
    chosen = training.batch_indices(state.sampler_key, 0, 8, 3)
    expected = training.loss_fn(params, at_times(take(samples, chosen), drawn))
    np.testing.assert_allclose(metrics.loss[0], expected, rtol=1e-5)


def test_a_resumed_run_draws_the_same_times(samples, params, tmp_path):
    whole = training.fit(tmp_path / "whole", params, samples, samples, CONFIG)

    class Interrupt(training.Callback):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def on_chunk(self, record):
            if record["step"] == 2:
                signal.raise_signal(signal.SIGTERM)

        def on_evaluation(self, record):
            pass

    first = training.fit(
        tmp_path / "cut", params, samples, samples, CONFIG, make_callbacks=lambda _: [Interrupt()]
    )
    assert first.interrupted and first.step == 2
    second = training.fit(tmp_path / "cut", params, samples, samples, CONFIG, resume=True)
    assert second.step == 6
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


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
        dataclasses.replace(CONFIG, **changes)


def test_more_times_than_there_are_targets(samples, params, tmp_path):
    config = dataclasses.replace(CONFIG, num_times=(3, 8))
    with pytest.raises(ValueError, match=r"num_times: got \(3, 8\), expected at most 7"):
        training.fit(tmp_path / "run", params, samples, samples, config)
    assert not (tmp_path / "run").exists()
