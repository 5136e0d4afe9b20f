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
from egno_jax.datasets.buckets import Buckets, bucketed, choose_buckets, padding_share
from egno_jax.datasets.stacking import stack

__all__ = [
    "Batch",
    "Buckets",
    "Samples",
    "at_times",
    "bucketed",
    "choose_buckets",
    "collisions",
    "concatenate",
    "md17",
    "mocap",
    "nbody",
    "num_samples",
    "padding_share",
    "protein",
    "stack",
    "take",
    "validate",
]
