"""Writing trajectories for viewers: extended XYZ, ASE, PDB, XTC, DCD, and arrays."""

from __future__ import annotations

import pathlib
import uuid
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.datasets.npz import PathLike, save_npz
from egno_jax.durations import FEMTOSECOND
from egno_jax.extras import require

if TYPE_CHECKING:
    import MDAnalysis
    from jaxtyping import Float, Int

_ASE = (".extxyz", ".xyz", ".traj")
_UNIVERSE = (".pdb", ".xtc", ".dcd", ".trr", ".gro")
SUFFIXES = (*_ASE, *_UNIVERSE, ".npz")


def write(
    path: PathLike,
    positions: Float[np.ndarray, "T N 3"],
    *,
    times: Float[np.ndarray, "T"],
    time_unit: str = FEMTOSECOND,
    velocities: Float[np.ndarray, "T N 3"] | None = None,
    numbers: Int[np.ndarray, "N"] | None = None,
    cell: Float[np.ndarray, "3 3"] | None = None,
    periodic: tuple[bool, bool, bool] = (False, False, False),
    template: Any = None,
) -> None:
    """Writes frames to a file, by its suffix, completely or not at all.

    - `.extxyz`, `.xyz`, `.traj`: ASE, which XYZ without `numbers` does not need; momenta, cell, and
      `info["time"]` in fs;
    - `.pdb`, `.xtc`, `.dcd`, `.trr`, `.gro`: MDAnalysis, with its units, so times in ps;
    - `.npz`: `positions`, `velocities`, `numbers`, `cell`, and `times` with `time_unit`.

    Times in frames are written as if a frame were 1 fs. Unknown atoms are written as X.

    Args:
      path: the file; its folder is made if missing.
      positions: `[T, N, 3]`, in Angstrom if known.
      times: `[T]`, in `time_unit`.
      time_unit: `"fs"` or `"frame"`.
      velocities: `[T, N, 3]`, length per `time_unit`.
      numbers: `[N]`, atomic numbers.
      cell: `[3, 3]`, lattice vectors as rows.
      periodic: which lattice vectors are periodic.
      template: ASE Atoms or an MDAnalysis AtomGroup of these atoms, for names and residues.

    Raises:
      ValueError: the suffix is unknown.
      OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path: got {path}, expected a suffix of {SUFFIXES}")
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"positions": positions, "times": times, "velocities": velocities, "numbers": numbers}
    if cell is not None:
        arrays["cell"] = cell
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    if suffix == ".npz":
        save_npz(path, {**arrays, "time_unit": np.array(time_unit)})
        return
    writer = _write_ase if suffix in _ASE else _write_universe
    if numbers is None and suffix in (".extxyz", ".xyz"):
        writer = _write_particles  # without atoms nothing of ASE is needed
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        writer(partial, arrays, periodic, template)
        partial.replace(path)
    finally:
        for left in path.parent.glob(f".{partial.stem}*"):  # its index of frames, too
            left.unlink(missing_ok=True)


def _write_particles(
    path: pathlib.Path,
    arrays: dict[str, np.ndarray],
    periodic: tuple[bool, bool, bool],
    template: Any,
) -> None:
    """Writes extended XYZ of particles of unknown species, as ASE does."""
    names = [name for name in ("positions", "velocities") if name in arrays]
    columns = {"positions": "pos:R:3", "velocities": "velocities:R:3"}
    properties = ":".join(["species:S:1", *(columns[name] for name in names)])
    pbc = " ".join("T" if is_periodic else "F" for is_periodic in periodic)
    cell = ""
    if "cell" in arrays:
        cell = f'Lattice="{" ".join(f"{x:.16g}" for x in arrays["cell"].ravel())}" '
    lines = []
    for index, time in enumerate(arrays["times"]):
        lines.append(f"{arrays['positions'].shape[1]}")
        lines.append(f'{cell}Properties={properties} time={float(time)} pbc="{pbc}"')
        rows = np.concatenate([arrays[name][index] for name in names], axis=1)
        lines += ["X " + " ".join(f"{x:16.8f}" for x in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def _write_ase(
    path: pathlib.Path,
    arrays: dict[str, np.ndarray],
    periodic: tuple[bool, bool, bool],
    template: Any,
) -> None:
    ase = require("ase", "data")
    numbers = arrays.get("numbers", np.zeros(arrays["positions"].shape[1], int))
    fs, frames = require("ase.units", "data").fs, []
    for index, positions in enumerate(arrays["positions"]):
        atoms = ase.Atoms(numbers, positions, cell=arrays.get("cell"), pbc=periodic)
        if "velocities" in arrays:
            if (numbers == 0).any():
                atoms.arrays["velocities"] = arrays["velocities"][index]
            else:
                atoms.set_velocities(arrays["velocities"][index] / fs)
        atoms.info["time"] = float(arrays["times"][index])
        frames.append(atoms)
    formats = {".traj": "traj"}
    require("ase.io", "data").write(
        str(path), frames, format=formats.get(path.suffix.lower(), "extxyz")
    )


def _write_universe(
    path: pathlib.Path,
    arrays: dict[str, np.ndarray],
    periodic: tuple[bool, bool, bool],
    template: Any,
) -> None:
    mda = require("MDAnalysis", "data")
    universe = _universe(mda, arrays, template)
    positions, times = arrays["positions"], arrays["times"] / 1e3
    box = None
    if "cell" in arrays and any(periodic):
        box = require("MDAnalysis.lib.mdamath", "data").triclinic_box(*arrays["cell"])
        positions = positions @ _rotation(arrays["cell"], box)
    elif path.suffix.lower() == ".dcd":
        _write_open_dcd(path, positions, times)
        return
    options = {}
    if path.suffix.lower() == ".dcd" and len(times) > 1:
        options = {"dt": float(times[1] - times[0])}
    elif path.suffix.lower() in (".pdb", ".gro"):
        options = {"reindex": True} if path.suffix.lower() == ".gro" else {"multiframe": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults for what the data do not have
        with mda.Writer(str(path), n_atoms=positions.shape[1], **options) as file:
            for frame, time in enumerate(times):
                universe.atoms.positions = positions[frame]
                step = universe.trajectory.ts
                step.frame, step.time, step.dimensions = frame, float(time), box
                if "velocities" in arrays:
                    universe.atoms.velocities = arrays["velocities"][frame] * 1e3
                file.write(universe.atoms)


def _write_open_dcd(path: pathlib.Path, positions: np.ndarray, times: np.ndarray) -> None:
    """Writes a DCD file without a cell, for which MDAnalysis' writer has a cell of zeros."""
    picosecond = require("MDAnalysis.units", "data").convert(1.0, "ps", "AKMA")
    spacing = float(times[1] - times[0]) if len(times) > 1 else 1.0
    with require("MDAnalysis.lib.formats.libdcd", "data").DCDFile(str(path), "w") as file:
        file.write_header("egno_jax", positions.shape[1], 0, 1, spacing * picosecond, 0)
        for frame in positions:
            file.write(frame.astype(np.float32), np.zeros(6))


def _rotation(cell: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns the rotation from a cell to that of its lengths and angles, which files hold."""
    vectors = require("MDAnalysis.lib.mdamath", "data").triclinic_vectors
    return np.linalg.inv(cell) @ vectors(box).astype(float)


def _universe(mda: Any, arrays: dict[str, np.ndarray], template: Any) -> MDAnalysis.Universe:
    """Returns a universe in memory with the names of the template's atoms, or of their species."""
    count = arrays["positions"].shape[1]
    is_group = hasattr(template, "resindices") and len(template) == count
    residues, index = np.unique(template.resindices, return_inverse=True) if is_group else ([0], 0)
    universe = mda.Universe.empty(
        count,
        n_residues=len(residues),
        atom_resindex=np.broadcast_to(index, count),
        trajectory=True,
        velocities="velocities" in arrays,
    )
    symbols = require("ase.data", "data").chemical_symbols
    species = [symbols[number] for number in arrays.get("numbers", np.zeros(count, int))]
    names = template.names if is_group and hasattr(template, "names") else species
    universe.add_TopologyAttr("names", [*names])
    universe.add_TopologyAttr("elements", species)
    universe.add_TopologyAttr("types", species)
    first = template.residues if is_group else None
    resnames = getattr(first, "resnames", ["UNK"])
    universe.add_TopologyAttr("resnames", [*resnames])
    universe.add_TopologyAttr("resids", [*getattr(first, "resids", [1])])
    return universe
