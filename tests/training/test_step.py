"""The step: what the loss weighs, what the average averages, and that chunks change nothing."""

from __future__ import annotations

import dataclasses

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
    loss_fn,
    make_optimizer,
    train_chunk,
)


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
    for chunks in ([1] * 6, [2, 3, 1]):
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
    gradient = jax.jit(jax.value_and_grad(loss_fn))
    for step in range(3):
        batch = datasets.take(train, batch_indices(key, step, 16, config.batch_size))
        loss, grads = gradient(expected, batch)
        np.testing.assert_allclose(history.loss[step], loss, rtol=1e-5)
        np.testing.assert_allclose(history.grad_norm[step], optax.tree.norm(grads), rtol=1e-4)
        updates, opt_state = optimizer.update(grads, opt_state, expected)
        expected = optax.apply_updates(expected, updates)
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda e, w, d=decay: d * e + (1 - d) * w, ema, expected)
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
    trajectory = egno_jax.apply(params, batch.graph, batch.times)
    positions, velocities = (
        np.mean((getattr(trajectory, name) - getattr(batch, name)) ** 2)
        for name in ("positions", "velocities")
    )
    np.testing.assert_allclose(loss_fn(params, batch), positions + 0.1 * velocities, rtol=1e-5)

    unsupervised = dataclasses.replace(
        params, config=dataclasses.replace(params.config, velocity_weight=0.0)
    )
    np.testing.assert_allclose(loss_fn(unsupervised, batch), positions, rtol=1e-5)

    masked = batch._replace(
        node_mask=batch.node_mask.at[0].set(False),
        positions=batch.positions.at[:, 0].set(1e6),
    )
    errors = np.square(trajectory.positions - batch.positions)[:, 1:]
    np.testing.assert_allclose(loss_fn(unsupervised, masked), errors.mean(), rtol=1e-5)


def test_evaluation_counts_every_sample_once(task):
    """7 samples in batches of 4: the last batch is filled up, and that must not show."""
    params, _, valid = task
    found = evaluate(params, valid, batch_size=4)
    batch = datasets.take(valid, jnp.arange(7))
    trajectory = egno_jax.apply(params, batch.graph, batch.times)
    np.testing.assert_allclose(
        found.f_mse, metrics.f_mse(trajectory.positions, batch.positions), rtol=1e-5
    )
    np.testing.assert_allclose(
        found.a_mse, metrics.a_mse(trajectory.positions, batch.positions), rtol=1e-5
    )


def test_the_average_of_narrow_weights_moves(task, config):
    """In bfloat16 0.999 is 1: an average kept in it would stay at the initial weights for ever."""
    params, _, _ = task
    narrow = jax.tree.map(lambda leaf: jnp.ones_like(leaf, jnp.bfloat16), params)
    state = init_state(narrow, config)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.ema))
    moved = jax.tree.map(lambda mean: 0.999 * mean + 0.002, state.ema)
    for leaf in jax.tree.leaves(moved):
        np.testing.assert_allclose(leaf, 1.001, rtol=1e-6)
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
