"""Warnings about data that a model cannot be trained on well, and why a loss is not finite."""

from __future__ import annotations

import warnings

import numpy as np

from egno_jax.config import EGNOConfig
from egno_jax.datasets.base import Samples
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.ops.fourier import num_live_modes

# Squared distances enter every layer: with larger ones losses and gradients overflow float32.
LARGEST_SPREAD = 1000.0


def warn_of_data(config: EGNOConfig, train: Samples | Buckets) -> None:
    """Warns of modes that get no training, and of positions far larger than 1."""
    num_times = len(config.context_times) or min(part.positions.shape[1] for part in by_size(train))
    num_modes = num_live_modes(num_times, config.num_modes)
    if num_modes < config.num_modes and type(config) is EGNOConfig:
        warnings.warn(
            f"config.num_modes: got {config.num_modes}, but {num_times} times have only "
            f"{num_modes} Fourier modes, the others get no training; set num_modes={num_modes}, or "
            "train on more times",
            stacklevel=4,
        )
    if spread(train) > LARGEST_SPREAD:
        warnings.warn(
            f"train.graph.nodes['positions']: got nodes {scale_text(train)}; the loss or its "
            "gradient will probably overflow",
            stacklevel=4,
        )


def spread(samples: Samples | Buckets) -> float:
    """Returns the largest distance of a real node from the mean of its sample."""
    largest = 0.0
    for part in by_size(samples):
        mask = np.asarray(part.node_mask)[..., None]
        positions = np.asarray(part.graph.nodes["positions"], np.float64)
        count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
        mean = np.where(mask, positions, 0).sum(axis=1, keepdims=True) / count
        distances = np.linalg.norm(np.where(mask, positions - mean, 0), axis=-1)
        largest = max(largest, float(distances.max(initial=0)))
    return largest


def scale_text(samples: Samples | Buckets) -> str:
    """Describes the size of positions and what to do, for a message."""
    return (
        f"up to {spread(samples):.3g} from the mean of their sample, expected distances near 1; "
        "rescale positions and velocities by one factor"
    )
