"""Training on systems of different sizes: every real node equal, and resumed to the bit."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import datasets, metrics, training
from egno_jax.datasets import bucketed
from egno_jax.training import JSONLines, evaluate, fit, mse_loss, read_json_lines
from egno_jax.training.step import Trainer
from tests import helpers
from tests.datasets.test_buckets import swarm
from tests.helpers import SignalAfter
from tests.training.conftest import CONFIG, MODEL
from tests.training.test_loop import assert_same_weights, without_times

SIZES = (3, 4, 6)
loss_of = functools.partial(mse_loss, egno_jax.apply, velocity_weight=0.1)
MIXED = dataclasses.replace(CONFIG, batch_size=2, num_steps=12, steps_per_chunk=3)


@pytest.fixture(scope="module")
def parts():
    return [swarm(bodies, 4) for bodies in SIZES]


@pytest.fixture(scope="module")
def params():
    return helpers.random_params(np.random.default_rng(0), MODEL, 1, 0)


@pytest.fixture(scope="module")
def measure():
    """Returns a function that gives the loss of a batch, its gradient and its errors."""

    def loss_and_errors(params, batch):
        predicted = egno_jax.apply(params, batch.graph, batch.times).positions
        errors = metrics.squared_errors(predicted, batch.positions, batch.node_mask).finalize()
        return loss_of(params, batch), errors

    gradient = jax.jit(jax.value_and_grad(loss_and_errors, has_aux=True))

    def measure(params, samples):
        (loss, errors), grads = gradient(params, datasets.take(samples, jnp.arange(4)))
        return float(loss), grads, errors

    return measure


@pytest.fixture(scope="module")
def each(params, parts, measure):
    return [measure(params, part) for part in parts]


@pytest.fixture(scope="module")
def whole_run(params, parts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mixed")
    result = fit(
        directory,
        params,
        bucketed(parts, 2),
        bucketed(parts, 2),
        MIXED,
        make_callbacks=lambda step: [JSONLines(directory / "metrics.jsonl", step)],
    )
    return directory, result


def test_a_padded_batch_has_the_gradient_of_its_graphs(params, parts, each):
    """The mean over the real nodes of a batch is that of its graphs, each weighted by its nodes."""
    (bucket,) = bucketed(parts, 1).samples
    batch = datasets.take(bucket, jnp.arange(12))
    loss, found = jax.jit(jax.value_and_grad(loss_of))(params, batch)
    weights = np.array(SIZES) / sum(SIZES)
    assert float(loss) == pytest.approx(np.dot(weights, [one[0] for one in each]), rel=1e-5)
    expected = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)),
        *(one[1] for one in each),
    )
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale), found, expected
    )


def test_an_epoch_weighs_every_node_the_same(params, parts, each):
    """The mean of the steps' losses, at the same weights, is the mean over all real nodes."""
    buckets = bucketed(parts, 2)
    trainer = Trainer(buckets, buckets, MIXED)
    seen = [trainer.batch_of(step) for step in range(6)]
    assert sorted(np.concatenate(seen)) == list(range(12))
    losses = [
        trainer.advance(trainer.place(training.init_state(params, MIXED)), step, 1)[1].loss.item()
        for step in range(6)
    ]
    assert np.mean(losses) == pytest.approx(
        np.average([one[0] for one in each], weights=SIZES), rel=1e-5
    )


def test_a_mixed_run_learns_and_says_what_it_pads(params, parts, whole_run):
    directory, result = whole_run
    records = read_json_lines(directory / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    assert {record["padding"] for record in train} == {datasets.padding_share(bucketed(parts, 2))}
    assert result.best_f_mse < float(evaluate(params, bucketed(parts, 2)).f_mse)
    assert sum(record["num_compiles"] for record in train[1:]) <= 2


def test_errors_of_buckets_are_those_of_all_nodes(params, parts, each):
    found = evaluate(params, bucketed(parts, 2), batch_size=4)
    for name in ("f_mse", "a_mse"):
        expected = np.average([float(getattr(one[2], name)) for one in each], weights=SIZES)
        assert float(getattr(found, name)) == pytest.approx(expected, rel=1e-5)


def test_a_mixed_run_resumes_to_the_same_bits(params, parts, whole_run, tmp_path):
    directory, whole = whole_run
    buckets = bucketed(parts, 2)

    def callbacks(*others):
        return lambda step: [JSONLines(tmp_path / "metrics.jsonl", step), *others]

    stopped = fit(
        tmp_path, params, buckets, buckets, MIXED, make_callbacks=callbacks(SignalAfter(9, 15))
    )
    assert (stopped.step, stopped.interrupted) == (9, True)
    resumed = fit(
        tmp_path, params, buckets, buckets, MIXED, resume=True, make_callbacks=callbacks()
    )
    assert_same_weights(resumed.params, whole.params)
    found, expected = (
        without_times(read_json_lines(path / "metrics.jsonl")) for path in (tmp_path, directory)
    )
    assert found == expected


def test_a_bucket_smaller_than_a_batch_is_named(params, parts, tmp_path):
    large = dataclasses.replace(MIXED, batch_size=5)
    with pytest.raises(ValueError, match="bucket 0: batch_size: got 5, expected from 1 to 4"):
        fit(tmp_path / "run", params, bucketed(parts, 4), parts[0], large)
    assert not (tmp_path / "run").exists()
