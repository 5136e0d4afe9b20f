"""Protein dynamics: samples of any trajectory that MDAnalysis reads.

A sample is one frame, and the task is to predict later ones, four in the next 15 frames:

    universe = protein.load_universe("adk.psf", "adk.dcd")
    trajectory = protein.read(universe, "backbone")
    starts = protein.block_starts(len(trajectory.positions))
    train = protein.samples(trajectory, starts.train)

Sources: Han et al., "Equivariant Graph Hierarchy-Based Neural Networks" (NeurIPS 2022) for the
task; Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics" (ICML 2024).
"""

from egno_jax.datasets.cutting import FRACTIONS, Starts, target_offsets
from egno_jax.datasets.protein.protein_samples import (
    CUTOFF,
    NUM_TARGETS,
    WINDOW,
    block_starts,
    contacts,
    most_contacts,
    paths,
    samples,
)
from egno_jax.datasets.protein.protein_trajectory import (
    SELECTION,
    Trajectory,
    load_equilibrium,
    load_transition,
    read,
)
from egno_jax.datasets.protein.simulation_files import load_universe

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
