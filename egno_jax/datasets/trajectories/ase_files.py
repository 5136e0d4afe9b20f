"""Frames of files that ASE reads: (extended) XYZ strictly, ASE trajectories, and other formats."""

from __future__ import annotations

import gzip
import io
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.checks import error_text, shorten
from egno_jax.datasets.argument_checks import check_numbers
from egno_jax.datasets.npz import xyz_frames
from egno_jax.datasets.trajectories.recording import Recording
from egno_jax.extras import require

if TYPE_CHECKING:
    import ase

# Columns of velocities that programs write into extended XYZ, in Angstrom/fs, apart from momenta.
_VELOCITIES = ("velocities", "vel", "velo")
_TIMES = ("time", "Time")


def suffix_of(path: pathlib.Path) -> str:
    """Returns the suffix in small letters, without that of gzip: `.xyz` for `a.XYZ.gz`."""
    lower = path.name.lower()
    return pathlib.Path(lower.removesuffix(".gz")).suffix


def _frames_of(path: pathlib.Path) -> Iterator[ase.Atoms]:
    """Yields the frames of a file; ASE's readers raise anything.

    XYZ files are read strictly: the last line must end with a line break, or a number may have been
    cut short. They may be compressed by gzip.
    """
    suffix = suffix_of(path)
    if suffix == ".traj":
        with require("ase.io.trajectory", "data").TrajectoryReader(str(path)) as file:
            yield from file
    elif suffix in (".xyz", ".extxyz"):
        read_xyz = require("ase.io.extxyz", "data").read_xyz
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for lines in xyz_frames(file):
                yield next(read_xyz(io.StringIO("".join(lines)), 0, properties_parser=_header))
    else:
        yield from require("ase.io", "data").iread(str(path), index=":")


def _header(comment: str) -> dict[str, Any]:
    """Returns the fields of a comment, after checking the columns: ASE makes as many as it says."""
    fields = require("ase.io.extxyz", "data").key_val_str_to_dict(comment)
    columns = str(fields.get("Properties", "pos:R:3"))
    if not re.search(r"(^|:)pos:R:3(:|$)", columns):
        raise ValueError(f"Properties: got {shorten(repr(columns))}, expected pos:R:3 in it")
    for count in columns.split(":")[2::3]:
        if not re.fullmatch("[0-9]{1,4}", count):
            got = shorten(repr(count))
            raise ValueError(f"Properties: got {got} columns, expected a number up to 9999")
    return fields


def read_ase(path: pathlib.Path) -> Recording:
    """Reads all frames of a file with ASE, as one recording; needs the extra `data`.

    Velocities are taken from momenta, or from columns `velocities`, `vel` or `velo` in Angstrom per
    femtosecond; times from `info["time"]` in femtoseconds. If all atoms are X, species and the unit
    of lengths are not known.

    Raises:
      ValueError: a frame cannot be read, or has other atoms than the first one; names it.
    """
    all_atoms: list[ase.Atoms] = []
    frames = _frames_of(path)
    while True:
        place = f"{path}: frame {len(all_atoms)}"
        try:
            atoms = next(frames, None)
            if atoms is not None:
                check_numbers("numbers", atoms.numbers)
        except ImportError:
            raise
        except Exception as error:  # Damaged bytes make the readers raise anything.
            raise ValueError(
                f"{place}: cannot be read ({error_text(error)}), expected a format that ASE "
                "knows; check that the suffix is right and that the file is complete"
            ) from error
        if atoms is None:
            break
        all_atoms.append(atoms)
        _check_alike(place, all_atoms[0], atoms)
    if not all_atoms:
        raise ValueError(f"{path}: got no frames, expected at least one; is it a trajectory?")
    return _recording(path, all_atoms)


def _check_alike(place: str, first: ase.Atoms, atoms: ase.Atoms) -> None:
    if len(atoms) != len(first):
        raise ValueError(f"{place}: got {len(atoms)} atoms, expected {len(first)} as in frame 0")
    for atom in np.flatnonzero(atoms.numbers != first.numbers):
        raise ValueError(
            f"{place}: atom {atom} is {atoms[int(atom)].symbol}, expected "
            f"{first[int(atom)].symbol} as in frame 0, in the same order"
        )
    if (atoms.pbc != first.pbc).any():
        raise ValueError(
            f"{place}: got pbc {atoms.pbc.tolist()}, expected {first.pbc.tolist()} as in frame 0"
        )


def _recording(path: pathlib.Path, frames: list[ase.Atoms]) -> Recording:
    first, notes = frames[0], []
    velocities, origin = _velocities(frames)
    if velocities is not None:
        notes.append(f"velocities from {origin}")
    times = [next((a.info[k] for k in _TIMES if k in a.info), None) for a in frames]
    is_time = [isinstance(t, int | float | np.number) for t in times]
    has_times = all(is_time)
    if any(is_time) and not has_times:
        notes.append(f"frame {is_time.index(False)} has no time, so no times of the file are used")
    fixed = np.zeros(len(first), bool)
    for constraint in first.constraints:
        if type(constraint).__name__ == "FixAtoms":
            fixed[constraint.index] = True
    charges = first.arrays.get("initial_charges")
    is_known = bool(first.numbers.any())  # X, of number 0, is an unknown atom or another particle
    return Recording(
        source=str(path),
        positions=np.stack([atoms.positions for atoms in frames])[None],
        velocities=velocities,
        numbers=first.numbers.astype(int) if is_known else None,
        charges=None if charges is None else np.asarray(charges, float),
        cells=np.stack([a.cell.array for a in frames]) if first.pbc.any() else None,
        periodic=tuple(map(bool, first.pbc)),
        times=np.asarray(times, float) if has_times else None,
        fixed=fixed,
        constraints=tuple(type(constraint).__name__ for constraint in first.constraints),
        length_unit="angstrom" if is_known else "unknown",
        template=first.copy(),
        notes=tuple(notes),
    )


def _velocities(frames: list[ase.Atoms]) -> tuple[np.ndarray | None, str]:
    """Returns `[1, T, N, 3]` in Angstrom per femtosecond, and where they were found."""
    if all(atoms.has("momenta") for atoms in frames):
        fs = require("ase.units", "data").fs
        return np.stack([atoms.get_velocities() * fs for atoms in frames])[None], "momenta"
    for name in _VELOCITIES:
        if all(atoms.arrays.get(name, np.empty(0)).shape == (len(atoms), 3) for atoms in frames):
            found = np.stack([atoms.arrays[name] for atoms in frames])[None]
            return found.astype(float), f"the column {name} in Å/fs"
    return None, ""
