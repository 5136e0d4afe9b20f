"""Molecules in motion: MD17, trajectories like it, and a generator of more.

A sample is one frame of molecular dynamics at 500 K, and the task is to predict the next 1.5 ps:

    trajectory = md17.heavy_atoms(md17.read("aspirin.npz"))
    starts = md17.block_starts(len(trajectory.positions))
    train = md17.samples(trajectory, starts.train, md17.bond_graph(trajectory))

or `md17.load("aspirin", "train")` for files at `path_of`. The command line,
`python -m egno_jax.datasets.md17`, downloads the original and makes trajectories of any molecule.

Sources: Chmiela et al., Science Advances 3 (2017), for MD17; Huang et al., "Equivariant Graph
Mechanics Networks with Constraints" (ICLR 2022), for the graph; Xu et al., ICML 2024, for the task.
"""

from egno_jax.datasets.cutting import Starts, target_offsets
from egno_jax.datasets.md17.archives import BASE_URL, data_directory, download, path_of
from egno_jax.datasets.md17.generator import Settings, generate, start_atoms, xtb
from egno_jax.datasets.md17.graphs import (
    BOND_CUTOFF,
    bond_graph,
    bonds,
    close_pairs,
    default_sticks,
)
from egno_jax.datasets.md17.molecule_samples import (
    BLOCK_FRACTIONS,
    MARGIN,
    NUM_TARGETS,
    PUBLISHED_SIZES,
    RADIUS,
    SEED,
    SIZES,
    WINDOW,
    block_starts,
    load,
    load_trajectory,
    paths,
    radius_samples,
    random_starts,
    reverse_time,
    samples,
)
from egno_jax.datasets.md17.molecule_trajectory import (
    ORIGINAL,
    UNKNOWN,
    Trajectory,
    check,
    heavy_atoms,
    read,
    select,
    write,
)
from egno_jax.datasets.md17.molecules import MOLECULES, Molecule

__all__ = [
    "BASE_URL",
    "BLOCK_FRACTIONS",
    "BOND_CUTOFF",
    "MARGIN",
    "MOLECULES",
    "NUM_TARGETS",
    "ORIGINAL",
    "PUBLISHED_SIZES",
    "RADIUS",
    "SEED",
    "SIZES",
    "UNKNOWN",
    "WINDOW",
    "Molecule",
    "Settings",
    "Starts",
    "Trajectory",
    "block_starts",
    "bond_graph",
    "bonds",
    "check",
    "close_pairs",
    "data_directory",
    "default_sticks",
    "download",
    "generate",
    "heavy_atoms",
    "load",
    "load_trajectory",
    "path_of",
    "paths",
    "radius_samples",
    "random_starts",
    "read",
    "reverse_time",
    "samples",
    "select",
    "start_atoms",
    "target_offsets",
    "write",
    "xtb",
]
