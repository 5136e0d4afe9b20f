"""Writing trajectories for viewers: extended XYZ, ASE, PDB, XTC, DCD, and arrays."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.checks import as_array, as_path, check_finite
from egno_jax.datasets.argument_checks import check_choice, check_numbers
from egno_jax.datasets.npz import PathLike, save_npz
from egno_jax.durations import FEMTOSECOND, FRAME
from egno_jax.extras import require
from egno_jax.files import replacing

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
    - `.pdb`, `.xtc`, `.dcd`, `.trr`, `.gro`: MDAnalysis, so times in ps; no cells without volume;
    - `.npz`: `positions`, `velocities`, `numbers`, `cell` and `periodic`, and `times` with
      `time_unit`.

    Times in frames are written as if a frame were 1 fs. Unknown atoms are written as X. Velocities
    are in `.extxyz`, `.xyz`, `.traj`, `.trr`, `.gro` and `.npz`. PDB has no times, and DCD only
    evenly spaced ones from 0 on. GRO is rounded to 0.01 Angstrom, PDB to 0.001, XTC to 0.0001.
    Positions and velocities are rotated with cells of which a file has lengths and angles.

    Args:
      path: the file; its folder is made if missing.
      positions: `[T, N, 3]`, in Angstrom if known.
      times: `[T]`, in `time_unit`.
      time_unit: `"fs"` or `"frame"`.
      velocities: `[T, N, 3]`, length per `time_unit`.
      numbers: `[N]`, atomic numbers.
      cell: `[3, 3]`, lattice vectors as rows.
      periodic: which lattice vectors are periodic.
      template: an MDAnalysis AtomGroup of these atoms, whose names and residues MDAnalysis' formats
        get; anything else is ignored.

    Raises:
      ValueError: the suffix or the unit is unknown, an array has another shape or a value that is
        not finite, or a number is of no element.
      OSError: the file cannot be written.
    """
    path = as_path("path", path)
    if (suffix := path.suffix.lower()) not in SUFFIXES:
        raise ValueError(f"path: got {path}, expected a suffix of {SUFFIXES}")
    check_choice("time_unit", time_unit, (FEMTOSECOND, FRAME))
    arrays = {"positions": positions, "times": times, "velocities": velocities}
    arrays |= {"numbers": numbers, "cell": cell, "periodic": periodic}
    arrays = _checked({name: array for name, array in arrays.items() if array is not None})
    if suffix == ".npz":
        save_npz(path, {**arrays, "time_unit": np.array(time_unit)})
        return
    with replacing(path) as partial:
        if suffix in _UNIVERSE:
            _write_universe(partial, arrays, template)
        elif suffix == ".traj" or numbers is not None:
            _write_ase(partial, arrays)
        else:
            _write_particles(partial, arrays)


def _checked(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns arrays; raises a ValueError that names one of a wrong shape or value."""
    shapes: dict[str, tuple[str | int, ...]] = {
        "positions": ("T", "N", 3),
        "times": ("T",),
        "velocities": ("T", "N", 3),
        "numbers": ("N",),
        "cell": (3, 3),
        "periodic": (3,),
    }
    kinds = {"numbers": "integer", "periodic": "boolean"}
    sizes: dict[str, int] = {}
    found = {}
    for name, array in arrays.items():
        kind = kinds.get(name, "integer or floating")
        found[name] = as_array(name, array, kind, shapes[name], sizes)
        if kind != "boolean":
            check_finite(name, found[name])
    if not found["positions"].size:
        raise ValueError("positions: got none, expected [T, N, 3] with one frame and node or more")
    if "numbers" in found:
        check_numbers("numbers", found["numbers"])
    return found


def _write_particles(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes extended XYZ of particles of unknown species, whose lengths may be of any size."""
    names = [name for name in ("positions", "velocities") if name in arrays]
    columns = {"positions": "pos:R:3", "velocities": "velocities:R:3"}
    properties = ":".join(["species:S:1", *(columns[name] for name in names)])
    pbc = " ".join("T" if is_periodic else "F" for is_periodic in arrays["periodic"])
    cell = ""
    if "cell" in arrays:
        cell = f'Lattice="{" ".join(f"{x:.16g}" for x in arrays["cell"].ravel())}" '
    lines = []
    for index, time in enumerate(arrays["times"]):
        lines.append(f"{arrays['positions'].shape[1]}")
        lines.append(f'{cell}Properties={properties} time={float(time)} pbc="{pbc}"')
        rows = np.concatenate([arrays[name][index] for name in names], axis=1)
        lines += ["X " + " ".join(f"{x:.16g}" for x in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def _write_ase(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    ase = require("ase", "data")
    numbers = arrays.get("numbers", np.zeros(arrays["positions"].shape[1], int))
    fs, frames = require("ase.units", "data").fs, []
    for index, positions in enumerate(arrays["positions"]):
        atoms = ase.Atoms(numbers, positions, cell=arrays.get("cell"), pbc=arrays["periodic"])
        if "velocities" in arrays:
            if (numbers == 0).any() and path.suffix.lower() != ".traj":  # has no such columns
                atoms.arrays["velocities"] = arrays["velocities"][index]
            else:
                atoms.set_velocities(arrays["velocities"][index] / fs)
        atoms.info["time"] = float(arrays["times"][index])
        frames.append(atoms)
    kind = "traj" if path.suffix.lower() == ".traj" else "extxyz"
    require("ase.io", "data").write(str(path), frames, format=kind)


def _write_universe(path: pathlib.Path, arrays: dict[str, np.ndarray], template: Any) -> None:
    mda = require("MDAnalysis", "data")
    universe = _universe(mda, arrays, template)
    positions, velocities = arrays["positions"], arrays.get("velocities")
    times = arrays["times"] / 1e3
    box = None
    if "cell" in arrays and arrays["periodic"].any() and np.linalg.det(arrays["cell"]):
        box = require("MDAnalysis.lib.mdamath", "data").triclinic_box(*arrays["cell"])
        rotation = _rotation(arrays["cell"], box)
        positions, velocities = (x if x is None else x @ rotation for x in (positions, velocities))
    suffix, spacing = path.suffix.lower(), 1.0
    if suffix == ".dcd":
        spacing = _even_spacing(times)
        if box is None:
            _write_open_dcd(path, positions, spacing)
            return

    def frames() -> Iterator[MDAnalysis.AtomGroup]:
        for frame, time in enumerate(times):
            universe.atoms.positions = positions[frame]
            step = universe.trajectory.ts
            step.frame, step.time, step.dimensions = frame, float(time), box
            if velocities is not None:
                universe.atoms.velocities = 1e3 * velocities[frame]  # per ps
            yield universe.atoms

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults for what the data do not have
        if suffix == ".gro":
            _write_gro(path, frames())
            return
        options: dict[str, dict[str, Any]] = {
            ".dcd": {"dt": spacing},
            ".pdb": {"multiframe": True},
            ".xtc": {"precision": 5},  # decimals in nm: steps of some fs are of 0.01 Angstrom
        }
        of_format = options.get(suffix, {})
        with mda.Writer(str(path), n_atoms=positions.shape[1], **of_format) as file:
            for atoms in frames():
                file.write(atoms)
    if suffix == ".pdb":
        _complete_pdb(path, box is not None)


def _complete_pdb(path: pathlib.Path, has_cell: bool) -> None:
    """Writes the cell in every model, or in none, and removes END after the last one.

    MDAnalysis and ASE read the cell of a model from the model. ASE takes END for one more model,
    which is empty, and the cell of 1 Angstrom that stands for none for a cell.
    """
    lines = path.read_text().splitlines(keepends=True)
    cells = [line for line in lines if line.startswith("CRYST1")][: int(has_cell)]
    dropped = ("END\n", "END ") if has_cell else ("END\n", "END ", "CRYST1", "REMARK     285")
    kept = []
    for line in lines:
        if not line.startswith(dropped):
            kept += [line, *cells] if line.startswith("MODEL ") else [line]
    path.write_text("".join(kept))


def _write_gro(path: pathlib.Path, frames: Iterator[MDAnalysis.AtomGroup]) -> None:
    """Writes all frames, with times in their titles, as GROMACS does."""
    parts = []
    for atoms in frames:
        atoms.write(str(path), reindex=True)
        _, rest = path.read_text().split("\n", 1)
        parts.append(f"egno_jax t= {atoms.universe.trajectory.ts.time:.5f}\n{rest}")
    path.write_text("".join(parts))


def _even_spacing(times: np.ndarray) -> float:
    """Returns the time between frames, of which DCD files have one for all, from 0 on."""
    steps = np.diff(times)
    if times[0] or not np.allclose(steps, steps[:1], rtol=1e-3):
        warnings.warn(
            "path: got .dcd, which holds only evenly spaced times from 0 on: the times in the file "
            "are not those of the frames; write another format to keep them",
            stacklevel=4,
        )
    return float(steps[0]) if len(steps) else 1.0


def _write_open_dcd(path: pathlib.Path, positions: np.ndarray, spacing: float) -> None:
    """Writes a DCD file without a cell, for which MDAnalysis' writer has a cell of zeros."""
    picosecond = require("MDAnalysis.units", "data").convert(1.0, "ps", "AKMA")
    with require("MDAnalysis.lib.formats.libdcd", "data").DCDFile(str(path), "w") as file:
        file.write_header("egno_jax", positions.shape[1], 0, 1, spacing * picosecond, 0)
        for frame in positions:
            file.write(frame.astype(np.float32), np.zeros(6))


def _rotation(cell: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns the rotation from a cell to that of its lengths and angles, which files hold.

    A left-handed cell is replaced by its negative, which has the same lattice: files hold
    right-handed ones, and a reflection would change the handedness of molecules.
    """
    vectors = require("MDAnalysis.lib.mdamath", "data").triclinic_vectors
    return np.linalg.inv(np.sign(np.linalg.det(cell)) * cell) @ vectors(box).astype(float)


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
