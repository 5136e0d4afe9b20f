"""Opens simulation files with MDAnalysis, after checking that they are complete."""

from __future__ import annotations

import pathlib
import re
import struct
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from egno_jax.checks import error_text, shorten
from egno_jax.datasets.npz import PathLike, xyz_frames
from egno_jax.datasets.protein.gromacs_files import BROKEN, check_trr, check_xtc
from egno_jax.extras import require

if TYPE_CHECKING:
    import MDAnalysis

_PICKLES = (".npz", ".npy", ".pkl", ".pickle", ".joblib")
_MAGIC = {b"\x80": "a pickle", b"PK\x03\x04": "a zip or NumPy archive", b"\x93NUMPY": "NumPy's"}


def load_universe(
    topology: PathLike, *coordinates: PathLike, to_guess: Sequence[str] | None = None
) -> MDAnalysis.Universe:
    """Opens a simulation in any of MDAnalysis' formats, strictly; needs the extra `data`.

    MDAnalysis drops an incomplete last frame of a trajectory, and the bonds of a PSF file that was
    cut short. Here both are errors, for DCD, XTC, TRR, XYZ, PDB and PSF; a trajectory cut between
    two frames cannot be recognised. The packed coordinates of XTC are followed first, because
    MDAnalysis trusts them. Other formats are only checked by MDAnalysis. Nothing is unpickled:
    pickles and NumPy files are refused, and XTC and TRR files are indexed again.

    Args:
      topology: atoms, and preferably bonds and charges: PSF, PRMTOP, TPR, PDB, GRO and others.
      *coordinates: trajectories of these atoms, in order; none if the topology holds coordinates.
      to_guess: attributes that MDAnalysis guesses from names and distances, such as `("bonds",)`;
        None: MDAnalysis' own choice, types and masses.

    Raises:
      ValueError: a file is missing, empty, a pickle, damaged, cut short or of the wrong kind, or
        atoms do not match; names the file.
    """
    mda = require("MDAnalysis", "data")
    paths = [pathlib.Path(path) for path in (topology, *coordinates)]
    for path in paths:
        _check(path)
    guessed = {} if to_guess is None else {"to_guess": tuple(to_guess)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a format lacks is an error where it is needed
        universe = _attempt(paths[0], "a topology", lambda: mda.Universe(str(paths[0]), **guessed))
        for path in paths[1:]:
            kind = f"coordinates of {len(universe.atoms)} atoms"
            _attempt(path, kind, lambda p=path: universe.load_new(str(p), refresh_offsets=True))
        if len(paths) > 2:
            names = [str(path) for path in paths[1:]]
            universe.load_new(names, refresh_offsets=True)
    if not hasattr(universe, "trajectory"):
        raise ValueError(f"{paths[0]}: got no coordinates; add a file that has them")
    return universe


def select_atoms(universe: MDAnalysis.Universe, selection: str) -> MDAnalysis.AtomGroup:
    """Returns the atoms of a selection in MDAnalysis' language.

    Raises:
      ValueError: it is not valid, or selects no atom; says which names there are.
    """
    try:
        group = universe.select_atoms(selection)
    except Exception as error:  # Its parser raises anything.
        raise ValueError(
            f"selection: got {selection!r}, which is not valid ({error}), expected MDAnalysis' "
            "language; such as 'name CA' or 'protein and not element H'"
        ) from error
    if not len(group):
        names = ", ".join(sorted({*map(str, getattr(universe.atoms, "names", ()))})[:12])
        raise ValueError(
            f"selection: got {selection!r}, which selects none of the {len(universe.atoms)} atoms, "
            f"expected at least one; names of atoms in the file are: {names or 'not given'}"
        )
    return group


def _attempt(path: pathlib.Path, kind: str, load):
    try:
        return load()
    except Exception as error:  # Damaged bytes make the readers raise anything.
        raise ValueError(f"{path}: cannot be read as {kind} ({error_text(error)})") from error


def _check(path: pathlib.Path) -> None:
    """Checks a file before MDAnalysis opens it."""
    if not path.exists():
        raise ValueError(f"{path} is not there")
    if not path.is_file():
        raise ValueError(f"{path}: got a folder, expected a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: got an empty file, expected one of a simulation")
    with path.open("rb") as file:
        start = file.read(8)
    suffix = path.suffix.lower()
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is not None or suffix in _PICKLES:
        raise ValueError(
            f"{path}: got {kind or 'the name of a pickle or an array'}, which is never loaded, "
            "expected a file of a simulation program such as PSF, PDB, DCD or XTC"
        )
    check = _CHECKS.get(suffix)
    if check is not None:
        check(path)


def _check_dcd(path: pathlib.Path) -> None:
    """Walks over the records, each of which is between two copies of its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(88)
        order = next((o for o in "<>" if start[:8] == struct.pack(f"{o}i4s", 84, b"CORD")), None)
        if order is None or len(start) < 88:
            raise ValueError(f"{path}: got {start[:8]!r} at its start, expected a DCD file")
        file.seek(0)
        records = 0
        while (place := file.tell()) < size:
            length = _marker(file, order)
            file.seek(place + 4 + max(length, 0))
            if length < 0 or _marker(file, order) != length:
                raise ValueError(f"{path}: got no end of the record at byte {place}; {BROKEN}")
            records += 1
    header = struct.unpack(f"{order}20i", start[8:])
    fixed, box, fourth = header[8] > 0, header[10] > 0, header[11] > 0
    per_frame = 3 + (header[19] > 0) * (box + fourth)
    if records < 3 + fixed + per_frame or (records - 3 - fixed) % per_frame:
        raise ValueError(f"{path}: got part of a last frame; {BROKEN}")


def _marker(file: BinaryIO, order: str) -> int:
    data = file.read(4)
    return struct.unpack(f"{order}i", data)[0] if len(data) == 4 else -1


def _check_xyz(path: pathlib.Path) -> None:
    """Walks over the frames."""
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            for _ in xyz_frames(file):
                pass
        except ValueError as error:
            raise ValueError(f"{path}, {error}; {BROKEN}") from error


def _check_pdb(path: pathlib.Path) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    last = lines[-1] if lines else ""
    if last.split()[:1] not in (["END"], ["ENDMDL"]):
        got = f"{path}: got {shorten(repr(last))} as its last line, expected END"
        raise ValueError(f"{got}; {BROKEN}, or not a PDB file")


def _check_psf(path: pathlib.Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("PSF"):
        raise ValueError(f"{path}: got {text[:20]!r} at its start, expected a PSF file")
    bonds = re.search(r"(\d+)\s*!NBOND[^\n]*\n([\d\s]*)\n\s*\d+\s*!NTHETA", text)
    if bonds is None or len(bonds[2].split()) != 2 * int(bonds[1]):
        raise ValueError(f"{path}: got part of the section !NBOND; {BROKEN}")


_CHECKS = {
    ".dcd": _check_dcd,
    ".xtc": check_xtc,
    ".trr": check_trr,
    ".xyz": _check_xyz,
    ".pdb": _check_pdb,
    ".psf": _check_psf,
}
