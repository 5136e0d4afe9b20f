"""A small task that the training tests share, so that its step compiles once."""

from __future__ import annotations

import numpy as np
import pytest

from egno_jax import EGNOConfig
from egno_jax.datasets import nbody
from egno_jax.training import OptimizerConfig, TrainingConfig
from tests import helpers

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
    return helpers.random_params(np.random.default_rng(0), MODEL, 1, 2), train, valid


@pytest.fixture
def config():
    return CONFIG
