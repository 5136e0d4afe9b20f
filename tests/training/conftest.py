"""A small task that the training tests share, so that its step compiles once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import egno_jax
from egno_jax import EGNOConfig, datasets
from egno_jax.datasets import nbody
from egno_jax.training import OptimizerConfig, TrainingConfig

CONFIG = TrainingConfig(
    num_steps=12,
    batch_size=4,
    velocity_weight=0.1,
    steps_per_chunk=3,
    eval_every=6,
    eval_batch_size=4,
    ema_decay=0.9,
    optimizer=OptimizerConfig(warmup_steps=2),
)
MODEL = EGNOConfig(num_layers=1, hidden_dim=8)


@pytest.fixture(scope="session")
def task():
    """Returns initial params, a training set of 16 and a validation set of 7 simulations."""
    train, valid = (
        nbody.samples(nbody.canonical(split, num_simulations=number), start=1, target_frames=(2, 3))
        for split, number in (("train", 16), ("valid", 7))
    )
    batch = datasets.take(train, jnp.arange(1))
    return egno_jax.init(jax.random.key(0), MODEL, batch.graph, batch.times), train, valid


@pytest.fixture
def config():
    return CONFIG
