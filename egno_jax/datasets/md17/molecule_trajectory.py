"""Trajectories of one molecule: reading, checking and writing their files."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from egno_jax.checks import check_array
from egno_jax.datasets import npz
from egno_jax.datasets.argument_checks import check_lengths, check_numbers
from egno_jax.datasets.md17.molecules import MOLECULES
from egno_jax.datasets.npz import PathLike
from egno_jax.datasets.trajectories.ase_files import read_ase, suffix_of
from egno_jax.datasets.trajectories.reading import check_file

if TYPE_CHECKING:
    from jaxtyping import Float, Int

FORMAT_VERSION = 1
ORIGINAL = "MD17"
UNKNOWN = "unknown"
ORIGINAL_FIELDS = frozenset({"R", "z", "E", "F"})

_SUFFIXES = (".npz", ".xyz", ".extxyz", ".traj")


class Trajectory(NamedTuple):
    """Equally spaced frames of one molecule, unwrapped.

    Attributes:
      positions: `[T, N, 3]` in Angstrom.
      numbers: `[N]`, atomic numbers.
      source: "MD17" for an original archive, else the method that the file records, or "unknown".
      provenance: what else the file records of its origin.
    """

    positions: Float[np.ndarray, "T N 3"]
    numbers: Int[np.ndarray, "N"]
    source: str = UNKNOWN
    provenance: Mapping[str, Any] | None = None


def read(path: PathLike) -> Trajectory:
    """Reads a trajectory, by its suffix, and checks it (see `check`).

    - `.npz`: the original MD17 archives, and files with the same fields `R` and `z`;
    - `.xyz`, `.extxyz`: (extended) XYZ; the last line must end with a line break, or a number may
      have been cut short;
    - `.traj`: trajectories of ASE.

    The last two need the extra `data`. Velocities, forces and energies are not used. No pickle is
    ever loaded.

    Raises:
      OSError: the file cannot be opened; `FileNotFoundError` if there is none.
      ValueError: the file is damaged or holds no trajectory of one molecule; names the place.
    """
    path = pathlib.Path(path)
    suffix = suffix_of(path)
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"path: got {path}, expected a suffix of {_SUFFIXES}; "
            "egno_jax.datasets.trajectories.read reads other files"
        )
    check_file(path)
    return _read_npz(path) if suffix == ".npz" else _read_frames(path)


def write(path: PathLike, trajectory: Trajectory) -> None:
    """Writes an `.npz` file for `read` and other readers of MD17, completely or not at all.

    Fields: `R` `[T, N, 3]` in its dtype, `z` `[N]`, and `provenance`, JSON with the format version,
    the source and the provenance. A file of this name is replaced; its folder is made if missing.

    Raises:
      ValueError: the suffix is not `.npz`, or `read` would refuse the trajectory or its provenance.
      OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: got {path}, expected the suffix '.npz'")
    trajectory = check(trajectory)
    provenance = {
        "format_version": FORMAT_VERSION,
        "source": trajectory.source,
        **(trajectory.provenance or {}),
    }
    members = {
        "R": trajectory.positions,
        "z": trajectory.numbers,
        "provenance": np.array(json.dumps(provenance)),
    }
    _parse_provenance(str(members["provenance"]))
    npz.save_npz(path, members)


def check(trajectory: Trajectory, names: tuple[str, str] = ("positions", "numbers")) -> Trajectory:
    """Returns a valid trajectory as arrays; `names` are those of its fields in error messages.

    Raises:
      ValueError: wrong shapes or dtypes, fewer than two frames, numbers that are not atomic
        numbers, a position that is not finite, or two atoms in one place.
    """
    positions, numbers = np.asarray(trajectory.positions), np.asarray(trajectory.numbers)
    shape, sizes = positions.shape, {}
    check_array(names[0], positions, "floating", ("T", "N", 3), sizes)
    check_array(names[1], numbers, "integer", ("N",), sizes)
    if shape[0] < 2 or shape[1] < 1:
        raise ValueError(
            f"{names[0]}: got {shape[0]} frames of {shape[1]} atoms, expected at least two frames "
            "of at least one atom"
        )
    check_numbers(names[1], numbers, least=1)
    check_lengths(names[0], positions)
    if (place := _coincidence(positions)) is not None:
        frame, first, second = place
        raise ValueError(
            f"{names[0]}[{frame}]: got atoms {first} and {second} both at "
            f"{positions[frame, first].tolist()}, expected distinct positions"
        )
    return trajectory._replace(positions=positions, numbers=numbers.astype(np.int32))


def _coincidence(positions: np.ndarray) -> tuple[int, int, int] | None:
    """Returns a frame and two of its atoms that coincide, or None."""
    # Coinciding atoms have the same projection on any direction; on this one, few others do.
    shadows = positions @ np.array([0.8164965809277260, 0.5403023058681398, 0.2028650917264815])
    order = np.argsort(shadows, axis=1)
    shadows = np.take_along_axis(shadows, order, axis=1)
    for frame, place in np.argwhere(shadows[:, 1:] == shadows[:, :-1]):
        first, second = sorted(order[frame, place : place + 2].tolist())
        if (positions[frame, first] == positions[frame, second]).all():
            return int(frame), first, second
    return None


def select(trajectory: Trajectory, atoms: ArrayLike) -> Trajectory:
    """Returns some atoms of a trajectory, by a mask, indices or a slice of `[N]`."""
    numbers = trajectory.numbers[atoms]
    if not numbers.size:
        raise ValueError(f"atoms: got none of {len(trajectory.numbers)}, expected at least one")
    return trajectory._replace(positions=trajectory.positions[:, atoms], numbers=numbers)


def heavy_atoms(trajectory: Trajectory) -> Trajectory:
    """Returns the trajectory without hydrogen, as in the original experiments."""
    return select(trajectory, trajectory.numbers > 1)


def original_molecule(trajectory: Trajectory) -> str | None:
    """Returns the name of the MD17 molecule with these atoms and this number of frames, or None."""
    counts = Counter(trajectory.numbers.tolist())
    for name, molecule in MOLECULES.items():
        if len(trajectory.positions) == molecule.num_frames and counts == molecule.counts:
            return name
    return None


def _read_npz(path: pathlib.Path) -> Trajectory:
    fields: set[str] = set()

    def choose(names: list[str]) -> Iterable[str]:
        fields.update(names)
        if {"coords", "nuclear_charges"} <= fields:
            raise ValueError(
                "got an archive of rMD17, whose frames are not in the order of time, expected the "
                "original MD17"
            )
        if missing := {"R", "z"} - fields:
            raise ValueError(
                f"got fields {sorted(fields)}, expected R and z; {min(missing)} is missing"
            )
        return fields & {"R", "z", "provenance"}

    arrays = npz.read_npz(path, choose)
    try:
        trajectory = check(Trajectory(arrays["R"], arrays["z"]), ("R", "z"))
        if "provenance" in arrays:
            provenance = _parse_provenance(str(arrays["provenance"]))
            source = provenance.pop("source")
            return trajectory._replace(source=source, provenance=provenance)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # The archives do not record what they are; nothing else has energies, forces and these sizes.
    if fields >= ORIGINAL_FIELDS and (molecule := original_molecule(trajectory)):
        return trajectory._replace(source=ORIGINAL, provenance={"molecule": molecule})
    return trajectory


def _parse_provenance(text: str) -> dict[str, Any]:
    """Returns the provenance that `write` wrote, after checking its version."""
    try:
        provenance = json.loads(text)
        version = provenance.pop("format_version")
        is_valid = isinstance(provenance["source"], str)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"provenance: got {error!r}, expected what egno_jax writes") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"provenance: got format version {version}, expected {FORMAT_VERSION}")
    if not is_valid:
        raise ValueError(f"provenance: got source {provenance['source']!r}, expected a text")
    molecule = provenance.get("molecule")
    if provenance["source"] == ORIGINAL and molecule not in list(MOLECULES):
        raise ValueError(
            f"provenance: got source {ORIGINAL!r} and molecule {molecule!r}, expected one of its "
            f"molecules, {[*MOLECULES]}"
        )
    return provenance


def _read_frames(path: pathlib.Path) -> Trajectory:
    recording = read_ase(path)
    if any(recording.periodic):
        raise ValueError(
            f"{path}: got pbc {[*recording.periodic]}, expected open boundaries; read periodic "
            "systems with egno_jax.datasets.trajectories.read or egno-jax train, or unwrap one "
            "molecule, set atoms.pbc = False and write the file again"
        )
    try:
        return check(Trajectory(recording.positions[0], recording.template.numbers))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
