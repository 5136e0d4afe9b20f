"""Proteins in motion: from any trajectory that MDAnalysis reads, to samples.

A sample is one frame, and the task is to predict later ones, four in the next 15 frames:

    universe = protein.load_universe("adk.psf", "adk.dcd")
    trajectory = protein.read(universe, "backbone")
    starts = protein.block_starts(len(trajectory.positions))
    train = protein.samples(trajectory, starts.train)

Sources: Han et al., "Equivariant Graph Hierarchy-Based Neural Networks" (NeurIPS 2022) for the
task; Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics" (ICML 2024).
"""

from egno_jax.datasets.protein.adk import load_equilibrium, load_transition
from egno_jax.datasets.protein.files import load_universe
from egno_jax.datasets.protein.splits import FRACTIONS, WINDOW, Starts, block_starts
from egno_jax.datasets.protein.trajectory import SELECTION, Trajectory, read
from egno_jax.datasets.protein.windows import (
    CUTOFF,
    NUM_TARGETS,
    contacts,
    most_contacts,
    paths,
    samples,
)
from egno_jax.datasets.windows import target_offsets

__all__ = [
    "CUTOFF",
    "FRACTIONS",
    "NUM_TARGETS",
    "SELECTION",
    "WINDOW",
    "Starts",
    "Trajectory",
    "block_starts",
    "contacts",
    "load_equilibrium",
    "load_transition",
    "load_universe",
    "most_contacts",
    "paths",
    "read",
    "samples",
    "target_offsets",
]
