"""Recordings of simulation files, a topology and its trajectories, that MDAnalysis reads."""

from __future__ import annotations

import itertools
import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from egno_jax.checks import error_text
from egno_jax.datasets.protein.simulation_files import load_universe, select_atoms
from egno_jax.datasets.trajectories.recording import Recording
from egno_jax.extras import require

if TYPE_CHECKING:
    import MDAnalysis

# Formats that hold no times: MDAnalysis counts their frames as picoseconds.
_TIMELESS = ("PDB", "XYZ", "CRD", "LAMMPSDUMP", "CONFIG", "MEMORY", "ENT", "PDBQT", "PQR")
_FEMTOSECONDS_PER_PS = 1e3


def read_universe(
    paths: Sequence[pathlib.Path], selection: str = "", to_guess: Sequence[str] | None = None
) -> Recording:
    """Reads a topology and its trajectories, as one recording; needs the extra `data`.

    Args:
      paths: the topology, then trajectories; the topology alone if it holds the frames.
      selection: the atoms that are nodes, in MDAnalysis' language; empty: all.
      to_guess: see `egno_jax.datasets.protein.load_universe`.

    Raises:
      ValueError: a file cannot be read, a GRO file has several frames, or the selection selects no
        atom.
    """
    universe = load_universe(*paths, to_guess=to_guess)
    for path in paths[1:] or paths:
        if path.suffix.lower() == ".gro":
            _check_one_frame(path, len(universe.atoms))
    group = select_atoms(universe, selection or "all")
    positions, velocities, boxes, times = _frames(universe, group, paths[-1])
    has_box = all(box is not None and (box[:3] > 0).all() for box in boxes)
    cells = None
    if has_box:
        vectors = require("MDAnalysis.lib.mdamath", "data").triclinic_vectors
        cells = np.stack([vectors(box) for box in boxes]).astype(float)
    notes = () if velocities is None else ("velocities from the trajectory",)
    charges = getattr(group, "charges", None)
    return Recording(
        source=" + ".join(str(path) for path in paths),
        positions=positions,
        velocities=velocities,
        numbers=_numbers(group),
        charges=None if charges is None or not np.any(charges) else np.asarray(charges, float),
        cells=cells,
        periodic=(has_box,) * 3,
        times=times,
        selection=selection,
        template=group,
        notes=notes,
    )


def _frames(
    universe: MDAnalysis.Universe, group: MDAnalysis.AtomGroup, path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray | None, list[np.ndarray | None], np.ndarray | None]:
    """Returns positions, velocities per fs if all frames have them, boxes, and times in fs."""
    positions, velocities, boxes, times = [], [], [], []
    total = len(universe.trajectory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no time step: then the times are not used
            for step in universe.trajectory:
                positions.append(group.positions.astype(float))
                boxes.append(None if step.dimensions is None else step.dimensions.copy())
                times.append(step.time * _FEMTOSECONDS_PER_PS)
                if step.has_velocities:
                    velocities.append(group.velocities.astype(float))
    except Exception as error:  # Damaged bytes make the readers raise anything.
        place = f"{path}: frame {len(positions)} of {total}"
        raise ValueError(f"{place}: cannot be read ({error_text(error)})") from error
    if not positions or len(positions) < total:
        raise ValueError(f"{path}: got {len(positions)} frames, expected {max(total, 1)}")
    if path.suffix.lower() == ".pdb" and all(box is None for box in boxes):
        boxes = [_cell_before_models(path)] * total
    formats = universe.trajectory.format
    known = {formats} if isinstance(formats, str) else {*formats}
    is_timed = not known & {*_TIMELESS} and total > 1
    has_velocities = len(velocities) == total
    return (
        np.stack(positions)[None],
        np.stack(velocities)[None] / _FEMTOSECONDS_PER_PS if has_velocities else None,
        boxes,
        np.asarray(times) if is_timed else None,
    )


def _check_one_frame(path: pathlib.Path, num_atoms: int) -> None:
    """Raises ValueError if a GRO file has more than one frame: MDAnalysis reads the first alone."""
    with path.open(encoding="utf-8", errors="replace") as file:
        later = itertools.islice(file, num_atoms + 3, None)  # after title, number, atoms and box
        if any(line.strip() for line in later):
            raise ValueError(
                f"{path}: got more than one frame, expected one in a GRO file; convert it, to XTC "
                "or TRR, and give the GRO file as its topology"
            )


def _cell_before_models(path: pathlib.Path) -> np.ndarray | None:
    """Returns the lengths and angles of a cell that stands once, before all models of a PDB file.

    MDAnalysis, which writes such files, reads the cells within models alone. A cell of 1 Angstrom
    stands for none.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in itertools.takewhile(lambda line: not line.startswith(("MODEL", "ATOM")), file):
            if line.startswith("CRYST1"):
                places = [(6, 15), (15, 24), (24, 33), (33, 40), (40, 47), (47, 54)]
                try:
                    box = np.array([float(line[first:last]) for first, last in places])
                except ValueError:
                    return None
                return None if (box[:3] == 1).all() else box
    return None


def _numbers(group: MDAnalysis.AtomGroup) -> np.ndarray | None:
    """Returns atomic numbers from the elements, or None if the topology does not say."""
    known = require("ase.data", "data").atomic_numbers
    elements = [str(e).capitalize() for e in getattr(group, "elements", ())]
    if not elements or not {*elements} <= known.keys():
        return None
    return np.array([known[element] for element in elements])
