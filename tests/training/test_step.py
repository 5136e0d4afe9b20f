"""The step: what the loss weighs, what the average averages, and that chunks change nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import egno_jax
from egno_jax import datasets, metrics
from egno_jax.training import (
    averaged,
    batch_indices,
    evaluate,
    init_state,
    make_optimizer,
    mse_loss,
    train_chunk,
)
from tests import helpers


def as_bits(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(as_bits(a), as_bits(b))


def run(state, samples, config, chunks):
    history = []
    for num_steps in chunks:
        state, steps = train_chunk(state, samples, config, num_steps)
        history.append(steps)
    return state, jax.tree.map(lambda *xs: np.concatenate(xs), *history)


def test_the_length_of_a_chunk_changes_no_bit(task, config):
    params, train, _ = task
    whole = run(init_state(params, config), train, config, [3, 3])
    for chunks in ([1] * 6, [1, 3, 1, 1]):
        cut = run(init_state(params, config), train, config, chunks)
        assert_same_bits(cut, whole)
    assert int(whole[0].step) == 6


def test_a_chunk_is_the_optimizer_applied_to_the_sampled_batches(task, config):
    """Against the loop that a reader would write by hand."""
    params, train, _ = task
    state, history = run(init_state(params, config), train, config, [3])
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    expected, ema, opt_state = params, params, optimizer.init(params)
    key = init_state(params, config).sampler_key
    loss_of = functools.partial(mse_loss, egno_jax.apply, velocity_weight=0.1)

    @jax.jit
    def by_hand(params, ema, opt_state, batch, step):
        loss, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(config.ema_decay, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda e, w: decay * e + (1 - decay) * w, ema, params)
        return params, ema, opt_state, loss, optax.tree.norm(grads)

    for step in range(3):
        batch = datasets.take(train, batch_indices(key, step, 16, config.batch_size))
        expected, ema, opt_state, loss, norm = by_hand(expected, ema, opt_state, batch, step)
        np.testing.assert_allclose(history.loss[step], loss, rtol=1e-5)
        np.testing.assert_allclose(history.grad_norm[step], norm, rtol=1e-4)
    for found, wanted in ((state.params, expected), (state.ema, ema)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_training_lowers_the_error(task, config):
    params, train, _ = task
    state, _ = run(init_state(params, config), train, config, [3] * 4)
    before, after = (evaluate(p, train, batch_size=4) for p in (params, state.params))
    assert after.a_mse < 0.75 * before.a_mse


def test_the_loss_weighs_velocities_and_ignores_padding(task):
    params, train, _ = task
    batch = datasets.take(train, jnp.arange(3))
    trajectory = helpers.apply(params, batch.graph, batch.times)

    def loss(batch, velocity_weight):
        return mse_loss(helpers.apply, params, batch, velocity_weight)

    positions, velocities = (
        np.mean((getattr(trajectory, name) - getattr(batch, name)) ** 2)
        for name in ("positions", "velocities")
    )
    np.testing.assert_allclose(loss(batch, 0.1), positions + 0.1 * velocities, rtol=1e-5)
    np.testing.assert_allclose(loss(batch, 0.0), positions, rtol=1e-5)

    masked = batch._replace(
        node_mask=batch.node_mask.at[0].set(False),
        positions=batch.positions.at[:, 0].set(1e6),
    )
    errors = np.square(trajectory.positions - batch.positions)[:, 1:]
    np.testing.assert_allclose(loss(masked, 0.0), errors.mean(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"batch.velocities: got None .*velocity_weight=0.1"):
        loss(batch._replace(velocities=None), 0.1)


def test_evaluation_counts_every_sample_once(task):
    """7 samples in batches of 4: the last batch is filled up, and that must not show."""
    params, _, valid = task
    found = evaluate(params, valid, batch_size=4)
    batch = datasets.take(valid, jnp.arange(7))
    trajectory = helpers.apply(params, batch.graph, batch.times)
    np.testing.assert_allclose(
        found.f_mse, metrics.f_mse(trajectory.positions, batch.positions), rtol=1e-5
    )
    np.testing.assert_allclose(
        found.a_mse, metrics.a_mse(trajectory.positions, batch.positions), rtol=1e-5
    )


def test_the_average_of_narrow_weights_is_kept_in_float32(task, config):
    """In bfloat16 0.999 is 1: an average kept in it would stay at the initial weights for ever."""
    params, _, _ = task
    narrow = jax.tree.map(lambda leaf: jnp.ones_like(leaf, jnp.bfloat16), params)
    state = init_state(narrow, config)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.ema))
    model = averaged(state, config)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize("damage", ["empty", "nan", "batch_size"])
def test_evaluation_checks_its_data(task, damage):
    params, _, valid = task
    batch_size = 0 if damage == "batch_size" else 4
    if damage == "empty":
        valid = jax.tree.map(lambda leaf: leaf[:0], valid)._replace(times=valid.times)
    if damage == "nan":
        valid = valid._replace(positions=np.full_like(valid.positions, np.nan))
    message = {"empty": "samples: got none", "nan": "positions: got NaN", "batch_size": "got 0"}
    with pytest.raises(ValueError, match=message[damage]):
        evaluate(params, valid, batch_size=batch_size)


def test_buckets_are_refused_where_one_size_is_needed(task, config):
    params, train, _ = task
    buckets = datasets.bucketed([train], num_buckets=1)
    with pytest.raises(
        ValueError, match=r"samples: got Buckets, expected egno_jax.datasets.Samples"
    ):
        train_chunk(init_state(params, config), buckets, config, 1)
