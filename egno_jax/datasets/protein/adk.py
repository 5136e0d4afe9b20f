"""Trajectories of adenylate kinase, the protein of the original's experiment."""

from __future__ import annotations

import os

from egno_jax.datasets.npz import data_directory
from egno_jax.datasets.protein.protein_trajectory import SELECTION, Trajectory, read
from egno_jax.datasets.protein.simulation_files import load_universe
from egno_jax.extras import require


def load_transition(selection: str = SELECTION) -> Trajectory:
    """Loads a transition of adenylate kinase from closed to open, 98 frames, 855 backbone atoms.

    A biased simulation (Beckstein et al., Journal of Molecular Biology 394, 2009) from
    MDAnalysisTests in the extra `protein`: nothing is downloaded. `selection` are the atoms that
    are nodes. The task differs from that of the equilibrium trajectory and has no published
    figures.
    """
    files = require("MDAnalysisTests.datafiles", "protein")
    return read(load_universe(files.PSF, files.DCD), selection)


def load_equilibrium(
    selection: str = SELECTION, *, data_dir: str | os.PathLike[str] | None = None
) -> Trajectory:
    """Loads adenylate kinase in equilibrium, the original's data: 4187 frames, 240 ps apart.

    MDAnalysisData, of the extra `protein`, downloads it once, 170 MB from figshare.com, and checks
    its SHA-256 (Seyler and Beckstein, doi:10.6084/m9.figshare.5108170.v1, 2017).

    Args:
      selection: the atoms that are nodes.
      data_dir: the folder of `adk_equilibrium/`; else `$EGNO_DATA_DIR`, else MDAnalysisData's own.

    Raises:
      ValueError: it cannot be downloaded, or is damaged.
    """
    fetch = require("MDAnalysisData.adk_equilibrium", "protein").fetch_adk_equilibrium
    folder = data_directory(data_dir)
    try:
        files = fetch(data_home=None if folder is None else str(folder))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"adk_equilibrium: could not be downloaded ({error}); put its two files into this "
            "folder of data_dir or EGNO_DATA_DIR"
        ) from error
    return read(load_universe(files.topology, files.trajectory), selection)
