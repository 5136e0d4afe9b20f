"""Flat weights: they are the same weights, and nobody outside of a run's steps sees them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import training
from egno_jax.training import fit
from egno_jax.training.checkpoints import RunCheckpoints
from egno_jax.training.config import is_kernel
from egno_jax.training.flat import FlatParams, flatten, unflatten
from egno_jax.training.step import Trainer
from tests import helpers
from tests.helpers import SignalAfter


@pytest.fixture
def on_accelerator(monkeypatch):
    """Arranges programs for an accelerator, so that weights become flat."""
    monkeypatch.setenv("EGNO_JAX_LAYOUT", "tpu")


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_flat_weights_are_those_of_the_tree(task, config, on_accelerator):
    state = training.init_state(task[0], config)
    flat = flatten(state)
    assert isinstance(flat.ema, FlatParams) and isinstance(flat.opt_state[1].mu, FlatParams)
    assert len(jax.tree.leaves(flat)) < 15
    for convert in (unflatten, jax.jit(unflatten)):
        found = convert(flat)
        assert_same((found.params, found.ema), (state.params, state.ema))
        assert_same(found.opt_state, state.opt_state)
    leaves = jax.tree.leaves(state.params)
    decayed = zip(leaves, jax.tree.leaves(is_kernel(state.params)), strict=True)
    assert flat.params.kernel.size == sum(leaf.size for leaf, is_decayed in decayed if is_decayed)
    assert is_kernel(flat.params).kernel and not is_kernel(flat.params).others


def test_weights_of_several_types_stay_a_tree(task, config, on_accelerator):
    params, samples, _ = task
    weights = {
        **params.weights,
        "embedding": jax.tree.map(jnp.bfloat16, params.weights["embedding"]),
    }
    state = training.init_state(dataclasses.replace(params, weights=weights), config)
    assert flatten(state) is state
    new, metrics = training.train_step(state, samples, config)
    assert jax.tree.structure(new) == jax.tree.structure(state) and not metrics.is_skipped


def test_a_chunk_donates_the_state(task, config, on_accelerator):
    params, samples, _ = task
    state = training.init_state(params, config)
    weights = jax.tree.leaves((state.params, state.ema))
    new, _ = training.train_chunk(state, samples, config, 2)
    assert isinstance(new.params, egno_jax.Params)
    assert all(leaf.is_deleted() for leaf in weights)


def test_a_state_stays_flat_from_chunk_to_chunk(task, config, on_accelerator):
    params, train, valid = task
    trainer = Trainer(train, valid, config)
    state = trainer.place(training.init_state(params, config))
    for step in (0, 3):
        structure, sizes = jax.tree.structure(state), jax.tree.map(jnp.shape, state)
        state, _ = trainer.advance(state, step, 3)
        assert isinstance(state.params, FlatParams)
        assert (structure, sizes) == (jax.tree.structure(state), jax.tree.map(jnp.shape, state))
    assert isinstance(training.averaged(state, config), egno_jax.Params)


def test_a_run_is_stopped_saved_and_resumed_as_if_left_alone(task, config, tmp_path, monkeypatch):
    def run(name, **options):
        monkeypatch.setenv("EGNO_JAX_LAYOUT", "tpu")
        return fit(tmp_path / name, *task, config, **options)

    expected = run("whole")
    stopped = run("stopped", make_callbacks=lambda _: [SignalAfter(6, 15)])
    assert stopped.interrupted
    result = run("stopped", resume=True)
    assert_same(result.params, expected.params)
    # A checkpoint is the same, wherever it was written.
    monkeypatch.delenv("EGNO_JAX_LAYOUT")
    like = training.init_state(task[0], config)
    states = []
    for name in ("whole", "stopped"):
        with RunCheckpoints(tmp_path / name / "checkpoints", 1) as checkpoints:
            states.append(checkpoints.restore(like))
    assert jax.tree.structure(states[0]) == jax.tree.structure(like)
    assert_same(states[0].params, states[1].params)
    on_cpu = fit(tmp_path / "cpu", *task, config).params
    helpers.assert_trees_close(result.params, on_cpu, 1e-4)
