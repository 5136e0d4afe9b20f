"""Data sets: each makes `Samples`, and `take` makes batches of them.

A new data set is a function that returns `Samples`. `samples_from_frames` makes them of arrays:

    edges = egno_jax.graph.fully_connected_edges(num_nodes)
    speeds = np.linalg.norm(velocities[:, 0], axis=-1)[..., None]
    samples = datasets.samples_from_frames(positions, velocities, speeds, edges, times)

with positions and velocities `[S, 1 + P, N, 3]`, the initial state first. `stack` makes them of
graphs. `collisions` is the smallest complete data set here.
"""

from egno_jax.datasets import collisions, md17, mocap, nbody, protein
from egno_jax.datasets.base import (
    Batch,
    Samples,
    at_times,
    concatenate,
    num_samples,
    take,
    validate,
    with_vectors,
)
from egno_jax.datasets.buckets import Buckets, bucketed, choose_buckets, padding_share
from egno_jax.datasets.cutting import samples_from_frames, samples_with_own_edges
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
    "samples_from_frames",
    "samples_with_own_edges",
    "stack",
    "take",
    "validate",
    "with_vectors",
]
