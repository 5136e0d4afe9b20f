"""Reading trajectory files of any kind."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from egno_jax.checks import as_path
from egno_jax.datasets.npz import PathLike
from egno_jax.datasets.trajectories.array_files import read_arrays
from egno_jax.datasets.trajectories.ase_files import read_ase, suffix_of
from egno_jax.datasets.trajectories.recording import Recording, unwrapped
from egno_jax.datasets.trajectories.universe_files import read_universe
from egno_jax.durations import FEMTOSECOND, Duration, parse

HEAVY = "heavy"
_ARRAYS = (".npy", ".npz")
# Read by MDAnalysis, also from a single file; all others by ASE.
_SIMULATIONS = (
    *(".pdb", ".ent", ".pqr", ".gro", ".crd", ".psf", ".prmtop", ".parm7", ".top", ".tpr"),
    *(".dcd", ".xtc", ".trr", ".nc", ".ncdf", ".h5", ".h5md", ".lammpstrj", ".data", ".mol2"),
)
# Of these, those of coordinates alone, which are no topology of others.
_COORDINATES = (".dcd", ".xtc", ".trr", ".nc", ".ncdf")


def read(
    *paths: PathLike,
    selection: str = "",
    time_step: str | Duration | None = None,
    to_guess: Sequence[str] | None = None,
) -> Recording:
    """Reads frames of one system, by the suffixes of the files, and unwraps them.

    - `.npy`, `.npz`: arrays, and the archives of MD17 and rMD17 (see `read_arrays`);
    - a topology and trajectories, or one file of a simulation program: through MDAnalysis;
    - `.xyz`, `.extxyz`, `.traj` and everything else: through ASE, also compressed (`.gz`).

    Positions in a periodic cell are unwrapped: each atom goes to the image nearest to its previous
    position. Without times in the files, and with velocities, the time between frames is found by
    comparing velocities with displacements.

    Args:
      *paths: a file; or a topology, then trajectories of its atoms.
      selection: the atoms that are nodes: `heavy` (no hydrogen), or a selection in MDAnalysis'
        language for its files; empty: all.
      time_step: the time between frames, such as `"2fs"`; replaces that of the files.
      to_guess: what MDAnalysis should guess, such as `("bonds",)`.

    Raises:
      OSError: a file cannot be opened.
      ValueError: a file is damaged, or does not hold what is needed; names the place.
    """
    if not paths:
        raise ValueError("paths: got none, expected a file; name a trajectory")
    files = [as_path("paths", path) for path in paths]
    for path in files:
        check_file(path)
    for path in files if len(files) > 1 else ():
        if suffix_of(path) in (*_ARRAYS, ".extxyz", ".traj"):
            raise ValueError(
                f"{path}: got {len(files)} files with this one among them, expected it alone; "
                "several files are a topology and its trajectories, such as .pdb and .xtc"
            )
    is_heavy = selection == HEAVY
    suffix = suffix_of(files[0])
    if len(files) > 1 and suffix in _COORDINATES:
        raise ValueError(
            f"paths: got {files[0]} first, expected a topology; name that one first, such as a "
            ".pdb, then its trajectories"
        )
    if len(files) > 1 or (suffix in _SIMULATIONS and suffix == files[0].suffix.lower()):
        recording = read_universe(files, "" if is_heavy else selection, to_guess)
    elif selection and not is_heavy:
        raise ValueError(
            f"selection: got {selection!r}, expected 'heavy' or nothing for {files[0].name}; "
            "selections in MDAnalysis' language are for a topology and its trajectory"
        )
    else:
        recording = read_arrays(files[0]) if suffix in _ARRAYS else read_ase(files[0])
    if is_heavy:
        recording = _heavy(recording)
    _check_finite(recording)
    return _timed(_unwrapped(recording), time_step)


def check_file(path: pathlib.Path) -> None:
    """Raises FileNotFoundError or ValueError if there is no file, or nothing in it."""
    if path.is_dir():
        raise ValueError(f"{path}: got a folder, expected a file; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path}: got no such file, expected a trajectory; check its name")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: got an empty file, expected a trajectory; write it again")


def _check_finite(recording: Recording) -> None:
    for frame in np.flatnonzero(~np.isfinite(() if recording.times is None else recording.times)):
        raise ValueError(
            f"{recording.source}: time of frame {frame}: got {recording.times[frame]}, expected a "
            "finite number"
        )
    charges = () if recording.charges is None else recording.charges
    for atom in np.flatnonzero(~np.isfinite(charges)):
        raise ValueError(
            f"{recording.source}: charge of atom {atom}: got {charges[atom]}, expected a finite "
            "number"
        )
    for name in ("positions", "velocities"):
        array = getattr(recording, name)
        if array is not None and not np.isfinite(array).all():
            sample, frame, atom, _ = np.argwhere(~np.isfinite(array))[0].tolist()
            raise ValueError(
                f"{recording.source}: {name} of atom {atom} in frame {frame} of recording "
                f"{sample}: got {array[sample, frame, atom].tolist()}, expected finite numbers"
            )


def _heavy(recording: Recording) -> Recording:
    if recording.numbers is None:
        raise ValueError("selection: got 'heavy', but the species of the atoms are not known")
    chosen = recording.numbers > 1
    if not chosen.any():
        raise ValueError("selection: got 'heavy', but all atoms are hydrogen")
    changed = {
        name: getattr(recording, name)[chosen]
        for name in ("numbers", "charges", "fixed")
        if getattr(recording, name) is not None
    }
    for name in ("positions", "velocities"):
        if getattr(recording, name) is not None:
            changed[name] = getattr(recording, name)[:, :, chosen]
    if recording.template is not None:
        changed["template"] = recording.template[chosen]
    return dataclasses.replace(recording, selection=HEAVY, **changed)


def _unwrapped(recording: Recording) -> Recording:
    if recording.cells is None:
        return recording
    vectors = recording.cells[:, np.asarray(recording.periodic)]
    for frame in np.flatnonzero(~np.isfinite(recording.cells).all(axis=(1, 2))):
        raise ValueError(
            f"{recording.source}: the cell of frame {frame}: got "
            f"{recording.cells[frame].tolist()}, expected finite numbers"
        )
    for frame in np.flatnonzero(np.linalg.matrix_rank(vectors) < vectors.shape[1]):
        raise ValueError(
            f"{recording.source}: the cell of frame {frame} has no volume: got "
            f"{vectors[frame].tolist()}, expected {vectors.shape[1]} independent lattice vectors"
        )
    positions, count = unwrapped(recording.positions, recording.cells, recording.periodic)
    steps = f"{count} step{'' if count == 1 else 's'} across a wall of the cell unwrapped"
    notes = (*recording.notes, steps) if count else recording.notes
    is_constant = (recording.cells == recording.cells[:1]).all()
    images = None if is_constant else recording.positions - positions
    return dataclasses.replace(recording, positions=positions, images=images, notes=notes)


def _timed(recording: Recording, time_step: str | Duration | None) -> Recording:
    """Returns the recording with the time between its frames, where something says it."""
    notes, usual = recording.notes, 0.0
    if recording.times is not None and len(recording.times) > 1:
        steps = np.diff(recording.times)
        usual = float(np.median(steps))
        if usual > 0:
            segments = recording.segments + _gaps(steps, usual)
            recording = dataclasses.replace(recording, segments=segments)
    if time_step is not None:
        given = parse(time_step, "time_step")
        if given.unit != FEMTOSECOND:
            raise ValueError(f"time_step: got {time_step!r}, expected a unit of time, such as 2fs")
        velocities = recording.velocities
        if recording.counts_frames and velocities is not None:
            velocities = velocities / given.value  # per frame in the file
        return dataclasses.replace(recording, time_step=given.value, velocities=velocities)
    if recording.counts_frames:
        return recording
    if usual > 0:
        note = f"frames are {usual:g} fs apart, as the file says"
        return dataclasses.replace(recording, time_step=usual, notes=(*notes, note))
    is_physical = recording.length_unit == "angstrom" and recording.velocities is not None
    if is_physical and (found := _step_of_velocities(recording)) is not None:
        note = (
            f"no times in the file; from velocities and displacements frames are {found:g} fs apart"
        )
        return dataclasses.replace(recording, time_step=found, notes=(*notes, note))
    return recording


def _gaps(steps: np.ndarray, usual: float) -> np.ndarray:
    """Returns the number of gaps in time before each frame."""
    return np.concatenate([[0], np.cumsum(np.abs(steps - usual) > 1e-3 * usual)])


def velocity_slope(recording: Recording) -> tuple[float, float]:
    """Compares displacements with velocities: x[t+1] - x[t] ~ a (v[t] + v[t+1]) / 2.

    Returns the slope a, a time in the unit of velocities, and the correlation of the two sides.
    """
    is_next = recording.has_previous[1:]
    steps = np.diff(recording.positions, axis=1)[:, is_next]
    means = (0.5 * (recording.velocities[:, 1:] + recording.velocities[:, :-1]))[:, is_next]
    norms = np.sum(means**2), np.sum(steps**2)
    if not all(norms):
        return 0.0, 0.0
    product = np.sum(steps * means)
    return float(product / norms[0]), float(product / np.sqrt(norms[0] * norms[1]))


def _step_of_velocities(recording: Recording) -> float | None:
    slope, correlation = velocity_slope(recording)
    return float(f"{slope:.3g}") if correlation > 0.99 and slope > 0 else None
