"""Trajectory files of any program: reading, checking, cutting into samples, and writing.

    recording = trajectories.read("protein.pdb", "protein.xtc")
    trajectories.check(recording)
    recipe = trajectories.make_recipe(recording, window=20, num_targets=4)
    starts = trajectories.partition(recording, recipe)
    train = trajectories.samples_at(recording, recipe, starts.train)

The command line (`egno-jax`) is made of these functions. Files of arrays need no extra; others are
read by ASE and MDAnalysis, of the extra `data`.
"""

from egno_jax.datasets.trajectories.array_files import read_arrays
from egno_jax.datasets.trajectories.own_windows import (
    Partitions,
    make_recipe,
    partition,
    samples_at,
    starts_of,
    usual_window,
)
from egno_jax.datasets.trajectories.reading import read
from egno_jax.datasets.trajectories.recording import (
    Recording,
    state_at,
    unwrapped,
    velocities_by,
)
from egno_jax.datasets.trajectories.suspicions import KINDS, Suspicion, check, suspicions
from egno_jax.datasets.trajectories.writing import SUFFIXES, write

__all__ = [
    "KINDS",
    "SUFFIXES",
    "Partitions",
    "Recording",
    "Suspicion",
    "check",
    "make_recipe",
    "partition",
    "read",
    "read_arrays",
    "samples_at",
    "starts_of",
    "state_at",
    "suspicions",
    "unwrapped",
    "usual_window",
    "velocities_by",
    "write",
]
