"""Makes trajectories like those of MD17, of any molecule: RDKit, GFN2-xTB, a Nose-Hoover chain."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.checks import as_count, as_seed, check_positive
from egno_jax.datasets import cache
from egno_jax.datasets.md17 import molecule_trajectory, thermostat
from egno_jax.datasets.npz import PathLike
from egno_jax.extras import require, versions_of

if TYPE_CHECKING:
    import ase
    from ase.calculators.calculator import Calculator

METHOD = "GFN2-xTB"

_BOND_TOLERANCE = 1.25  # times the covalent radii
_BROKEN = 1.6  # times the initial length
_LARGEST_SEED = 2**31 - 1  # of RDKit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a simulation; the defaults are those of MD17.

    Attributes:
      num_steps: frames to store, one each time step.
      time_step: in femtoseconds.
      temperature: of the vibrations, in kelvin; the molecule as a whole neither moves nor rotates.
      relaxation_time: of the Nose-Hoover chain, in femtoseconds.
      equilibration_steps: steps of Langevin dynamics before the first frame.
      friction: of the Langevin dynamics, in 1 / fs.
      seed: of the start geometry, the first momenta and the Langevin dynamics.
      chunk_steps: steps between two saved states, with a new calculator each; a run resumes there.
    """

    num_steps: int = 60_000
    time_step: float = 0.5
    temperature: float = 500.0
    relaxation_time: float = 100.0
    equilibration_steps: int = 2000
    friction: float = 0.01
    seed: int = 0
    chunk_steps: int = 1000

    def __post_init__(self) -> None:
        as_seed("Settings.seed", self.seed, _LARGEST_SEED)
        least = {"num_steps": 2, "equilibration_steps": 0, "chunk_steps": 1}
        for name, value in vars(self).items():
            if name in least:
                as_count(f"Settings.{name}", value, least[name])
            elif name != "seed":
                check_positive(f"Settings.{name}", value)


def start_atoms(smiles: str, *, seed: int = 0) -> ase.Atoms:
    """Returns a molecule's geometry in the force field MMFF94 (or UFF), heavy atoms first.

    Atoms are in the order of the SMILES; `info["charge"]` is the total charge, and `seed`, 0 to
    2^31 - 1, that of the embedding in space. Needs RDKit and ASE, of the extra `generate`.

    Raises:
      ValueError: the SMILES is not that of one molecule without radicals, or a wrong seed.
    """
    chem = require("rdkit.Chem", "generate")
    embedding = require("rdkit.Chem.AllChem", "generate")
    seed = as_seed("seed", seed, _LARGEST_SEED)
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"smiles: got {smiles!r}, in which RDKit reads no molecule")
    if len(chem.GetMolFrags(molecule)) > 1:
        raise ValueError(f"smiles: got {smiles!r}, several molecules, expected one")
    if any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        raise ValueError(f"smiles: got {smiles!r}, a radical, expected paired electrons")
    molecule = chem.AddHs(molecule)
    if embedding.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise ValueError(f"smiles: got {smiles!r}, for which RDKit finds no geometry; change seed")
    if embedding.MMFFHasAllMoleculeParams(molecule):
        embedding.MMFFOptimizeMolecule(molecule)
    else:
        embedding.UFFOptimizeMolecule(molecule)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    positions = molecule.GetConformer().GetPositions()
    order = np.argsort(numbers == 1, kind="stable")
    atoms = require("ase", "generate").Atoms(numbers=numbers[order], positions=positions[order])
    atoms.info["charge"] = chem.GetFormalCharge(molecule)
    return atoms


def xtb(atoms: ase.Atoms) -> Calculator:
    """Returns a new GFN2-xTB calculator for a molecule of the charge in `atoms.info`.

    Needs tblite, of the extra `generate`.
    """
    calculator = require("tblite.ase", "generate").TBLite
    return calculator(method=METHOD, charge=atoms.info.get("charge", 0), verbosity=0)


def generate(
    path: PathLike,
    atoms: ase.Atoms,
    settings: Settings,
    *,
    make_calculator: Callable[[ase.Atoms], Calculator] = xtb,
    source: str = METHOD,
    about: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> molecule_trajectory.Trajectory:
    """Simulates a molecule and writes its trajectory, in the format of `write`.

    Langevin dynamics first; then momentum and angular momentum are removed, and a Nose-Hoover chain
    keeps the vibrations at the temperature. Every step is stored, in float32. The same arguments
    and versions give the same bits. Until it is done, its parts are in `<path>.parts/`; called
    again with the same arguments, it resumes from them. Needs ASE, of the extra `generate`.

    Args:
      path: the `.npz` file to write; it must not exist.
      atoms: the start geometry, not periodic.
      settings: the settings.
      make_calculator: called with atoms for each chunk, returns a new calculator.
      source: the calculator's method, recorded in the file.
      about: further JSON values to record, such as the SMILES.
      report: called with a line about the progress after each chunk.

    Raises:
      FileExistsError: the file exists.
      OSError: the file cannot be written; raised before anything is computed.
      ValueError: the parts have other settings or another start geometry, or are damaged.
      RuntimeError: the calculator failed or the molecule came apart; names the step.
    """
    path = pathlib.Path(path)
    _check_writable(path)
    made_with = _made_with(source, about or {}, settings, atoms)
    parts = _Parts(path.with_name(f"{path.name}.parts"), made_with)
    simulation = _Simulation(atoms, settings, make_calculator)
    positions = _run(simulation, parts, settings, lambda line: report(f"{path}: {line}"))
    del made_with["source"]
    made_with["degrees_of_freedom"] = simulation.degrees
    result = molecule_trajectory.Trajectory(positions, atoms.numbers, source, made_with)
    molecule_trajectory.write(path, result)
    shutil.rmtree(parts.folder)
    return result


def _run(
    simulation: _Simulation, parts: _Parts, settings: Settings, report: Callable[[str], None]
) -> np.ndarray:
    """Simulates what the parts lack, chunk by chunk; returns all frames."""
    state, done = parts.last_state()
    if state is None:
        report(f"{settings.equilibration_steps} steps of equilibration")
        state = simulation.equilibrate()
        parts.save(state, 0)
    elif done:
        report(f"resumes from step {done}")
    while done < settings.num_steps:
        began = time.perf_counter()
        count = min(settings.chunk_steps, settings.num_steps - done)
        frames, state, temperature = simulation.run(state, count, done)
        done += count
        parts.save(state, done, frames)
        per_step = (time.perf_counter() - began) / count
        report(
            f"step {done} of {settings.num_steps}, {1000 * per_step:.1f} ms each, "
            f"{temperature:.0f} K, {per_step * (settings.num_steps - done) / 60:.0f} min left"
        )
    return parts.frames(range(0, settings.num_steps, settings.chunk_steps))


class _Simulation:
    """The molecule, its calculators and its dynamics."""

    def __init__(
        self,
        atoms: ase.Atoms,
        settings: Settings,
        make_calculator: Callable[[ase.Atoms], Calculator],
    ) -> None:
        self._units = require("ase.units", "generate")
        self._atoms = atoms.copy()
        self._settings = settings
        self._make_calculator = make_calculator
        self._lengths = np.linalg.norm(atoms.positions[:, None] - atoms.positions, axis=-1)
        self._heavy_bonds = _heavy_bonds(atoms.numbers, self._lengths)
        self.degrees = thermostat.degrees_of_freedom(len(atoms))
        if self.degrees < 1:
            raise ValueError("atoms: got one atom, expected a molecule")

    def equilibrate(self) -> thermostat.State:
        """Returns the state after the Langevin dynamics, at rest as a whole."""
        settings, atoms = self._settings, self._atoms
        generator = np.random.default_rng(settings.seed)
        spread = np.sqrt(atoms.get_masses() * self._units.kB * settings.temperature)
        atoms.set_momenta(spread[:, None] * generator.normal(size=(len(atoms), 3)))
        atoms.calc = self._make_calculator(atoms)
        langevin = require("ase.md.langevin", "generate").Langevin(
            atoms,
            timestep=settings.time_step * self._units.fs,
            temperature_K=settings.temperature,
            friction=settings.friction / self._units.fs,
            fixcm=False,
            rng=generator,
        )
        try:
            langevin.run(settings.equilibration_steps)
        except Exception as error:  # Calculators raise anything.
            raise RuntimeError(f"equilibration failed: {type(error).__name__}: {error}") from error
        self._check_intact(atoms.positions[None], "the start")
        return thermostat.stop(atoms)

    def run(
        self, state: thermostat.State, count: int, done: int
    ) -> tuple[np.ndarray, thermostat.State, float]:
        """Returns `count` frames, the state after them, and their mean temperature in kelvin."""
        atoms, settings = self._atoms, self._settings
        atoms.calc = self._make_calculator(atoms)
        dynamics = thermostat.nose_hoover_chain(
            atoms,
            state,
            time_step=settings.time_step * self._units.fs,
            temperature_K=settings.temperature,
            relaxation_time=settings.relaxation_time * self._units.fs,
        )
        frames = np.empty((count, len(atoms), 3), np.float32)
        kinetic = 0.0
        for index in range(count):
            try:
                dynamics.step()
            except Exception as error:  # Calculators raise anything.
                raise RuntimeError(
                    f"step {done + index + 1} failed: {type(error).__name__}: {error}"
                ) from error
            frames[index] = atoms.positions
            kinetic += atoms.get_kinetic_energy()
        self._check_intact(frames, f"step {done}")
        temperature = 2 * kinetic / count / self.degrees / self._units.kB
        return frames, thermostat.state_of(dynamics), temperature

    def _check_intact(self, frames: np.ndarray, begin: str) -> None:
        """Raises if heavy atoms come apart or an atom is alone; hydrogen may move, as in acids."""
        distances = np.linalg.norm(frames[:, :, None] - frames[:, None], axis=-1)
        is_intact = (distances < _BROKEN * self._lengths)[:, self._heavy_bonds].all(axis=1)
        nearest, at_start = (
            np.where(np.eye(frames.shape[1], dtype=bool), np.inf, d).min(axis=-1)
            for d in (distances, self._lengths)
        )
        is_intact &= (nearest < _BROKEN * at_start).all(axis=1)  # False where a position is NaN
        if not is_intact.all():
            raise RuntimeError(
                f"the molecule came apart {np.argmin(is_intact) + 1} steps after {begin}; lower "
                "the temperature or the time step"
            )


class _Parts:
    """The folder of an unfinished run: the state, and the frames chunk by chunk."""

    def __init__(self, folder: pathlib.Path, made_with: dict[str, Any]) -> None:
        self.folder, self._made_with = folder, dict(made_with)

    def last_state(self) -> tuple[thermostat.State | None, int]:
        """Returns the state to resume from, None without one, and the number of finished steps."""
        if not (self.folder / "state.npz").exists():
            return None, 0
        arrays = self._read("state")
        done = int(arrays.pop("done"))
        return thermostat.State(**arrays), done

    def save(self, state: thermostat.State, done: int, frames: np.ndarray | None = None) -> None:
        """Saves the frames of one chunk, if any, that end before step `done`, then the state."""
        if frames is not None:
            self._write(f"frames_{done - len(frames):09d}", {"frames": frames})
        self._write("state", {**state._asdict(), "done": np.array(done)})

    def frames(self, firsts: range) -> np.ndarray:
        """Returns the frames of all chunks."""
        return np.concatenate([self._read(f"frames_{first:09d}")["frames"] for first in firsts])

    def _read(self, name: str) -> dict[str, np.ndarray]:
        try:
            return cache.read(self.folder / f"{name}.npz", self._made_with)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{error}; remove {self.folder} to start again") from error

    def _write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        cache.write(self.folder / f"{name}.npz", arrays, self._made_with)


def _made_with(
    source: str, about: Mapping[str, Any], settings: Settings, atoms: ase.Atoms
) -> dict[str, Any]:
    """Returns everything that determines a trajectory, as JSON values."""
    # The checksum ignores the last bits, which differ between machines; -0.0 + 0.0 is 0.0.
    start = np.round(np.column_stack([atoms.positions, atoms.get_masses()]), 6) + 0.0
    return {
        "source": source,
        **about,
        **dataclasses.asdict(settings),
        "thermostat": thermostat.NAME,
        "charge": int(atoms.info.get("charge", 0)),
        "numbers": atoms.numbers.tolist(),
        "start_sha256": hashlib.sha256(start.tobytes()).hexdigest(),
        "versions": versions_of("egno_jax", "ase", "tblite", "rdkit", "numpy"),
    }


def _heavy_bonds(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns `[N, N]`, True for pairs i < j of heavy atoms about as close as covalent radii."""
    radii = require("ase.data", "generate").covalent_radii[numbers]
    is_bond = lengths < _BOND_TOLERANCE * (radii[:, None] + radii)
    return is_bond & np.triu(np.outer(numbers > 1, numbers > 1), 1)


def _check_writable(path: pathlib.Path) -> None:
    """Checks that the file and its parts can be written, and that the file does not exist."""
    if path.suffix != ".npz":
        raise ValueError(f"path: got {path}, expected the suffix '.npz'")
    if path.exists():
        raise FileExistsError(f"{path}: the file exists already; remove it, or choose another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror})") from error
