"""Time to an error: training on the 5-body problem until the validation F-MSE is low enough.

All peers use the same samples in the same batches, and the same optimizer: AdamW with clipping, a
warm-up and a cosine schedule, without averaged weights. The library trains with
`egno_jax.training.fit`; PINA has its own loop, and reads data, batches and learning rates from a
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from egno_jax.datasets import nbody
from egno_jax.training import OptimizerConfig, TrainingConfig, batch_indices, make_schedule

if TYPE_CHECKING:
    from egno_jax.datasets import Samples

NUM_VALID = 500
EVAL_EVERY = 30


def training_config(num_steps: int) -> TrainingConfig:
    """Returns the settings of all peers."""
    return TrainingConfig(
        num_steps=num_steps,
        ema_decay=0.0,
        steps_per_chunk=EVAL_EVERY,
        eval_every=EVAL_EVERY,
        checkpoint_every=num_steps,
        optimizer=OptimizerConfig(warmup_steps=min(100, num_steps // 4)),
    )


def data() -> tuple[Samples, Samples]:
    """Returns the published training set, and a part of the validation set."""
    return nbody.load("train"), nbody.load("valid", num_samples=NUM_VALID)


def save_task(path: Path, num_steps: int) -> None:
    """Writes data, batches and settings for a peer without JAX to an `.npz` file."""
    config = training_config(num_steps)
    train, valid = data()
    # The sampler's key, as in `egno_jax.training.init_state`.
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    indices = jax.vmap(
        lambda step: batch_indices(key, step, len(train.positions), config.batch_size)
    )(np.arange(num_steps))
    schedule = make_schedule(config.optimizer, num_steps)
    np.savez(
        path,
        **{f"train_{name}": array for name, array in _arrays(train).items()},
        **{f"valid_{name}": array for name, array in _arrays(valid).items()},
        indices=np.asarray(indices),
        learning_rates=np.asarray([schedule(step) for step in range(num_steps)], np.float64),
        eval_every=config.eval_every,
        weight_decay=config.optimizer.weight_decay,
        betas=(config.optimizer.b1, config.optimizer.b2),
    )


def _arrays(samples: Samples) -> dict[str, Any]:
    graph = samples.graph
    return {
        **graph.nodes,
        "edge_features": graph.edges["features"],
        "senders": graph.senders,
        "receivers": graph.receivers,
        "targets": samples.positions,
    }
