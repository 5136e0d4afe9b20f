"""Makes trajectories like those of MD17, of any molecule: RDKit, GFN2-xTB, a Nose-Hoover chain."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import shutil
import tempfile
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.datasets import cache
from egno_jax.datasets.md17 import dynamics, trajectory
from egno_jax.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import ase
    from ase.calculators.calculator import Calculator

METHOD = "GFN2-xTB"

_BOND_TOLERANCE = 1.25  # times the covalent radii
_BROKEN = 1.6  # times the length at the start
_LARGEST_SEED = 2**31 - 1  # of RDKit
_START = ("numbers", "start_sha256")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a trajectory is made; the defaults are those of MD17.

    Attributes:
      num_steps: frames to store, one each time step.
      time_step: in femtoseconds.
      temperature: in kelvin, of the vibrations; the molecule as a whole neither moves nor turns.
      relaxation_time: of the Nose-Hoover chain, in femtoseconds.
      equilibration_steps: steps of Langevin dynamics before the first frame.
      friction: of the Langevin dynamics, in 1 / fs.
      seed: of the start geometry, the first momenta and the Langevin dynamics.
      chunk_steps: steps between two savings of the state. The calculator starts anew with each
        chunk, so that a run that was interrupted goes on to the same bits.

    Raises:
      ValueError: a field is out of range; names it.
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
        for name, least in (
            ("num_steps", 2),
            ("equilibration_steps", 0),
            ("seed", 0),
            ("chunk_steps", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"Settings.{name}: got {value!r}, expected an integer >= {least}")
        for name in ("time_step", "temperature", "relaxation_time", "friction"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"Settings.{name}: got {value!r}, expected a number above 0")


def start_atoms(smiles: str, *, seed: int = 0) -> ase.Atoms:
    """Returns a molecule's geometry in the force field MMFF94 (or UFF), heavy atoms first.

    Args:
      smiles: its structure.
      seed: of the embedding in space, 0 to 2^31 - 1.

    Returns:
      ASE Atoms, in the order of the SMILES; `info["charge"]` is the total charge.

    Raises:
      ValueError: the SMILES is none, or not that of one molecule without radicals, or the seed is
        out of range.
      ImportError: RDKit or ASE, of the extra `generate`, is not installed.
    """
    chem = require("rdkit.Chem", "generate")
    embedding = require("rdkit.Chem.AllChem", "generate")
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed: got {seed}, expected 0 to {_LARGEST_SEED}, which RDKit takes")
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise ValueError(f"smiles: RDKit reads no molecule in {smiles!r}")
    if len(chem.GetMolFrags(molecule)) > 1:
        raise ValueError(f"smiles: {smiles!r} holds several molecules, expected one")
    if any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        raise ValueError(f"smiles: {smiles!r} is a radical, expected paired electrons")
    molecule = chem.AddHs(molecule)
    if embedding.EmbedMolecule(molecule, randomSeed=seed) != 0:
        raise ValueError(f"smiles: RDKit finds no geometry for {smiles!r}; try another seed")
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

    Raises:
      ImportError: tblite, of the extra `generate`, is not installed.
    """
    calculator = require("tblite.ase", "generate").TBLite
    return calculator(method=METHOD, charge=atoms.info.get("charge", 0), verbosity=0)


def generate(
    path: str | os.PathLike[str],
    atoms: ase.Atoms,
    settings: Settings,
    *,
    make_calculator: Callable[[ase.Atoms], Calculator] = xtb,
    source: str = METHOD,
    about: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> trajectory.Trajectory:
    """Simulates a molecule and writes its trajectory, as `trajectory.write` does.

    Langevin dynamics first; then total momentum and angular momentum are removed, and a Nose-Hoover
    chain keeps the vibrations at the temperature. Every step is stored, in float32. The same
    arguments and versions give the same bits.

    Until it is done its parts lie in `<path>.parts/`; called again with the same arguments, it goes
    on from there.

    Args:
      path: the `.npz` file to write; it must not exist.
      atoms: the start geometry, not periodic.
      settings: how to simulate.
      make_calculator: takes atoms, returns a new calculator; called for each chunk.
      source: what the file says made it; the calculator's method.
      about: what else the file is to say, as JSON values, such as the SMILES.
      report: takes a line about the progress after each chunk.

    Returns:
      The trajectory.

    Raises:
      FileExistsError: the file is there already.
      OSError: the file cannot be written there; found out before anything is computed.
      ValueError: the parts that lie there were made in another way or of another start geometry,
        or are damaged.
      RuntimeError: the calculator failed or the molecule came apart; says at which step.
      ImportError: ASE, of the extra `generate`, is not installed.
    """
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the suffix is {path.suffix!r}, expected '.npz'")
    if path.exists():
        raise FileExistsError(f"{path} is there already; remove it, or choose another file")
    made_with = {
        "source": source,
        **(about or {}),
        **dataclasses.asdict(settings),
        "charge": int(atoms.info.get("charge", 0)),
        "numbers": atoms.numbers.tolist(),
        "start_sha256": _fingerprint(atoms),
        "versions": _versions(),
    }
    parts = _Parts(path.with_name(f"{path.name}.parts"), made_with, settings)
    simulation = _Simulation(atoms, settings, make_calculator)
    _check_writable(path)
    state, done = parts.last_state()
    if state is None:
        report(f"{path}: {settings.equilibration_steps} steps of equilibration")
        state = simulation.equilibrate()
        parts.save(state, 0)
    elif done:
        report(f"{path}: goes on from step {done}")
    while done < settings.num_steps:
        began = time.perf_counter()
        count = min(settings.chunk_steps, settings.num_steps - done)
        frames, state, temperature = simulation.run(state, count, done)
        parts.save_frames(done, frames)
        done += count
        parts.save(state, done)
        per_step = (time.perf_counter() - began) / count
        report(
            f"{path}: step {done} of {settings.num_steps}, {1000 * per_step:.1f} ms each, "
            f"{temperature:.0f} K, {per_step * (settings.num_steps - done) / 60:.0f} min left"
        )
    positions = parts.frames()
    provenance = {name: value for name, value in made_with.items() if name != "source"}
    provenance["degrees_of_freedom"] = simulation.thermostat.degrees
    result = trajectory.Trajectory(positions, atoms.numbers, source, provenance)
    trajectory.write(path, result)
    shutil.rmtree(parts.folder)
    return result


class _Simulation:
    """The molecule, its thermostat, and ASE's view of both."""

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
        self._masses = atoms.get_masses()
        self._lengths = np.linalg.norm(atoms.positions[:, None] - atoms.positions, axis=-1)
        self._heavy_bonds = _heavy_bonds(atoms.numbers, self._lengths)
        self.thermostat = dynamics.Thermostat(
            dynamics.degrees_of_freedom(atoms.positions),
            self._units.kB * settings.temperature,
            self._units.fs * settings.relaxation_time,
        )
        if self.thermostat.degrees < 1:
            raise ValueError("atoms: got one atom, expected a molecule")

    def equilibrate(self) -> dynamics.State:
        """Returns the state after the Langevin dynamics, at rest as a whole."""
        settings, atoms = self._settings, self._atoms
        generator = np.random.default_rng(settings.seed)
        spread = np.sqrt(self._masses * self.thermostat.temperature)
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
        except Exception as error:  # Calculators raise whatever they like.
            raise RuntimeError(f"equilibration failed: {type(error).__name__}: {error}") from error
        self._check_whole(atoms.positions[None], "the start")
        return dynamics.at_rest(atoms.get_positions(), atoms.get_momenta(), self._masses)

    def run(
        self, state: dynamics.State, count: int, done: int
    ) -> tuple[np.ndarray, dynamics.State, float]:
        """Returns `count` frames, the state after them, and their mean temperature in kelvin."""
        atoms = self._atoms
        atoms.calc = self._make_calculator(atoms)

        def compute_forces(positions: np.ndarray) -> np.ndarray:
            atoms.positions = positions
            return atoms.get_forces()

        frames = np.empty((count, len(atoms), 3), np.float32)
        kinetic = 0.0
        time_step = self._settings.time_step * self._units.fs
        for index in range(count):
            try:
                if index == 0:
                    forces = compute_forces(state.positions)
                state, forces = dynamics.step(
                    state, forces, compute_forces, self._masses, self.thermostat, time_step
                )
            except Exception as error:  # Calculators raise whatever they like.
                raise RuntimeError(
                    f"step {done + index + 1} failed: {type(error).__name__}: {error}"
                ) from error
            frames[index] = state.positions
            kinetic += dynamics.kinetic_energy(state.momenta, self._masses)
        self._check_whole(frames, f"step {done}")
        degrees = self.thermostat.degrees
        return frames, state, 2 * kinetic / count / degrees / self._units.kB

    def _check_whole(self, frames: np.ndarray, begin: str) -> None:
        """Raises a RuntimeError if heavy atoms come apart or an atom is alone.

        A hydrogen may move over to another atom, as those of acids do.
        """
        distances = np.linalg.norm(frames[:, :, None] - frames[:, None], axis=-1)
        is_whole = (distances < _BROKEN * self._lengths)[:, self._heavy_bonds].all(axis=1)
        nearest, at_start = (
            np.where(np.eye(frames.shape[1], dtype=bool), np.inf, d).min(axis=-1)
            for d in (distances, self._lengths)
        )
        is_whole &= (nearest < _BROKEN * at_start).all(axis=1)  # False where a position is NaN
        if not is_whole.all():
            raise RuntimeError(
                f"the molecule came apart {np.argmin(is_whole) + 1} steps after {begin}; lower the "
                "temperature or the time step"
            )


class _Parts:
    """The folder of a run that is not done: the state, and the frames chunk by chunk."""

    def __init__(self, folder: pathlib.Path, made_with: dict[str, Any], settings: Settings) -> None:
        self.folder = folder
        self._made_with = made_with
        self._settings = settings

    def last_state(self) -> tuple[dynamics.State | None, int]:
        """Returns the state to go on from, None if there is none, and the steps that are done."""
        path = self.folder / "state.npz"
        try:
            arrays = self._read(path)
        except FileNotFoundError:
            return None, 0
        except ValueError as error:
            raise ValueError(f"{error}; remove {self.folder} to start again") from error
        done = int(arrays.pop("done"))
        return dynamics.State(**arrays), done

    def _read(self, path: pathlib.Path) -> dict[str, np.ndarray]:
        """Reads a part, also one of a version that did not write down the start geometry."""
        try:
            return cache.read(path, self._made_with)
        except ValueError:
            before = {name: self._made_with[name] for name in self._made_with if name not in _START}
            with contextlib.suppress(ValueError):
                return cache.read(path, before)
            raise

    def save(self, state: dynamics.State, done: int) -> None:
        arrays = {**state._asdict(), "done": np.array(done)}
        cache.write(self.folder / "state.npz", arrays, self._made_with)

    def save_frames(self, first: int, frames: np.ndarray) -> None:
        cache.write(self._frames_path(first), {"frames": frames}, self._made_with)

    def frames(self) -> np.ndarray:
        """Returns the frames of all chunks."""
        firsts = range(0, self._settings.num_steps, self._settings.chunk_steps)
        try:
            chunks = [self._read(self._frames_path(k))["frames"] for k in firsts]
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{error}; remove {self.folder} to start again") from error
        return np.concatenate(chunks)

    def _frames_path(self, first: int) -> pathlib.Path:
        return self.folder / f"frames_{first:09d}.npz"


def _heavy_bonds(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns `[N, N]`, True on heavy atoms that are about as close as covalent radii say."""
    radii = require("ase.data", "generate").covalent_radii[numbers]
    is_bond = lengths < _BOND_TOLERANCE * (radii[:, None] + radii)
    return is_bond & np.triu(np.outer(numbers > 1, numbers > 1), 1)


def _fingerprint(atoms: ase.Atoms) -> str:
    """Returns a checksum of positions and masses, blind to the last bits, which machines differ in.

    0.0 is added because -0.0 has other bytes.
    """
    columns = np.column_stack([atoms.positions, atoms.get_masses()])
    return hashlib.sha256((np.round(columns, 6) + 0.0).tobytes()).hexdigest()


def _check_writable(path: pathlib.Path) -> None:
    """Raises an OSError if a file cannot be made where the trajectory and its parts are to be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror})") from error


def _versions() -> dict[str, str]:
    """Returns the versions of what decides the numbers, of those that are installed."""
    found = {}
    for name in ("egno_jax", "ase", "tblite", "rdkit", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
