"""Data sets: each gives `Samples`, and `take` makes batches of them."""

from egno_jax.datasets import collisions, md17, mocap, nbody, protein
from egno_jax.datasets.base import (
    Batch,
    Samples,
    at_times,
    concatenate,
    num_samples,
    take,
    validate,
)

__all__ = [
    "Batch",
    "Samples",
    "at_times",
    "collisions",
    "concatenate",
    "md17",
    "mocap",
    "nbody",
    "num_samples",
    "protein",
    "take",
    "validate",
]
