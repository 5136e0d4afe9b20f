"""The generator: its dynamics on springs, and resuming to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax.datasets import cache, md17
from egno_jax.datasets.md17 import __main__ as command_line
from egno_jax.datasets.md17 import generator, thermostat

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def toy_molecule(seed=0, num_atoms=5):
    """Atoms joined by stiff springs, each to each, at rest where they are."""
    rng = np.random.default_rng(seed)
    positions = rng.normal(scale=1.5, size=(num_atoms, 3))
    return positions, rng.uniform(1.0, 16.0, size=num_atoms)


def springs(positions):
    """Returns energy and forces of springs of strength 2 between all pairs."""
    lengths = np.linalg.norm(positions[:, None] - positions, axis=-1)

    def energy(x):
        stretched = np.linalg.norm(x[:, None] - x, axis=-1) - lengths
        return 0.5 * np.sum(stretched**2)

    def forces(x):
        vectors = x[:, None] - x
        distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(x))
        return np.sum((-2 * (1 - (lengths + np.eye(len(x))) / distances))[..., None] * vectors, 1)

    return energy, forces


# The dynamics

KELVIN = 580.0  # about 0.05 eV


class Calls:
    """Makes spring calculators for ASE, and may fail at the n-th force."""

    def __init__(self, fail_at=None, strength=5):
        self.num_forces, self.fail_at, self.strength = 0, fail_at, strength

    def __call__(self, atoms):
        calculators = pytest.importorskip("ase.calculators.calculator")
        calls = self

        class Springs(calculators.Calculator):
            implemented_properties = ("energy", "free_energy", "forces")
            springs = springs(atoms.info["start"])

            def calculate(self, atoms=None, properties=None, system_changes=None):
                super().calculate(atoms, properties, system_changes)
                calls.num_forces += 1
                if calls.num_forces == calls.fail_at:
                    raise KeyboardInterrupt
                energy, forces = (calls.strength * f(self.atoms.positions) for f in self.springs)
                self.results = {"energy": energy, "free_energy": energy, "forces": forces}

        return Springs()


def toy_atoms(seed=0, num_atoms=5, is_linear=False):
    """Atoms joined by springs, each to each, or in a line that is bent a little; not at rest."""
    ase = pytest.importorskip("ase")
    positions, masses = toy_molecule(seed, num_atoms)
    rng = np.random.default_rng(seed)
    if is_linear:
        positions = np.outer(1.2 * np.arange(num_atoms), [0.0, 0.0, 1.0])
        positions += 1e-2 * rng.normal(size=positions.shape)
    atoms = ase.Atoms(numbers=[6] * num_atoms, positions=positions, masses=masses)
    atoms.set_momenta(np.sqrt(0.05 * masses)[:, None] * rng.normal(size=positions.shape))
    atoms.info["start"] = positions
    return atoms


def dynamics_of(atoms, state=None, time_step=0.05):
    """The dynamics from a state, with a new calculator; from rest if None."""
    atoms.calc = Calls(strength=1)(atoms)
    state = thermostat.stop(atoms) if state is None else state
    return thermostat.nose_hoover_chain(
        atoms, state, time_step=time_step, temperature_K=KELVIN, relaxation_time=2.0
    )


def turning(atoms):
    return np.sum(np.cross(atoms.positions, atoms.get_momenta()), axis=0)


def test_the_springs_pull_as_their_energy_says():
    positions, _ = toy_molecule()
    energy, forces = springs(positions)
    x = positions + 0.1
    x[0] += 0.3
    for atom, axis in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[atom, axis] = 1e-6
        slope = (energy(x + step) - energy(x - step)) / 2e-6
        np.testing.assert_allclose(forces(x)[atom, axis], -slope, atol=1e-6)


@few
@given(seed=seeds)
def test_a_stopped_molecule_neither_moves_nor_rotates(seed):
    atoms = toy_atoms(seed)
    state = thermostat.stop(atoms)
    np.testing.assert_allclose(atoms.get_center_of_mass(), 0, atol=1e-10)
    np.testing.assert_allclose(np.sum(state.momenta, axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(turning(atoms), 0, atol=1e-10)


def test_stopping_leaves_vibrations_and_accepts_linear_molecules():
    ase = pytest.importorskip("ase")
    for axis in ([0.0, 0.0, 1.0], [0.6, 0.0, 0.8]):
        line = np.outer([0.0, 1.2, 2.4], axis)
        masses = np.array([16.0, 12.0, 16.0])
        stretch = np.outer([1.0, 0.0, -1.0], axis)
        moved = np.outer(masses, [0.3, 0.1, 0.2])
        across = np.cross(axis, [0.0, 1.0, 0.0])
        spin = masses[:, None] * np.cross(0.5 * across, line - line.mean(axis=0))
        atoms = ase.Atoms("OCO", positions=line, masses=masses)
        atoms.set_momenta(stretch + moved + spin)
        np.testing.assert_allclose(thermostat.stop(atoms).momenta, stretch, atol=1e-12)


@few
@given(seed=seeds, num_atoms=st.integers(2, 5), is_linear=st.booleans())
def test_vibrations_are_what_is_left_of_momenta_at_rest(seed, num_atoms, is_linear):
    """Their number is the rank of the map that removes the motion of the whole."""
    atoms = toy_atoms(seed, num_atoms, is_linear)
    left = []
    for unit in np.eye(3 * num_atoms) * np.repeat(np.sqrt(atoms.get_masses()), 3)[:, None]:
        atoms.set_momenta(unit.reshape(-1, 3))
        left.append(thermostat.stop(atoms).momenta.ravel())
    rank = np.linalg.matrix_rank(left, tol=1e-6)
    assert rank == thermostat.degrees_of_freedom(num_atoms)


def test_one_atom_has_no_vibration():
    assert [thermostat.degrees_of_freedom(n) for n in (1, 2, 3, 9)] == [0, 1, 3, 21]


@settings(deadline=None, max_examples=5)
@given(seed=seeds, num_steps=st.integers(1, 20))
def test_the_dynamics_resumes_from_a_state_to_the_bit(seed, num_steps):
    """With all variables of the chain; a chain that starts again goes elsewhere."""
    whole = dynamics_of(toy_atoms(seed))
    for _ in range(num_steps):
        whole.step()
    middle = thermostat.state_of(whole)
    resumed = dynamics_of(toy_atoms(seed), middle)
    fresh = dynamics_of(toy_atoms(seed), middle._replace(chain_momenta=np.zeros(3)))
    for _ in range(10):
        for dynamics in (whole, resumed, fresh):
            dynamics.step()
    for a, b in zip(thermostat.state_of(whole), thermostat.state_of(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(whole.atoms.positions - fresh.atoms.positions).max() > 0


@settings(deadline=None, max_examples=5)
@given(seed=seeds)
def test_the_dynamics_runs_backwards(seed):
    """With all momenta reversed, those of the chain too, it returns to its start."""
    dynamics = dynamics_of(toy_atoms(seed))
    start = thermostat.state_of(dynamics)
    for _ in range(50):
        dynamics.step()
    last = thermostat.state_of(dynamics)
    reverse = last._replace(momenta=-last.momenta, chain_momenta=-last.chain_momenta)
    backwards = dynamics_of(toy_atoms(seed), reverse)
    for _ in range(50):
        backwards.step()
    first = thermostat.state_of(backwards)
    np.testing.assert_allclose(first.positions, start.positions, atol=1e-9)
    np.testing.assert_allclose(-first.momenta, start.momenta, atol=1e-9)
    np.testing.assert_allclose(first.chain_positions, start.chain_positions, atol=1e-9)


@settings(deadline=None, max_examples=3)
@given(seed=seeds)
def test_energy_with_the_chain_is_conserved_to_second_order(seed):
    def drift(time_step):
        dynamics = dynamics_of(toy_atoms(seed), time_step=time_step)
        energies = [dynamics.get_conserved_energy()]
        for _ in range(round(5 / time_step)):
            dynamics.step()
            energies.append(dynamics.get_conserved_energy())
        return np.abs(np.array(energies) - energies[0]).max()

    coarse, fine = drift(0.05), drift(0.025)
    assert coarse < 0.05 * 0.05 * thermostat.degrees_of_freedom(5)
    assert fine < 0.4 * coarse


def test_the_vibrations_have_the_temperature_and_the_whole_stays_at_rest():
    """ASE's own count of 3 N would make them hotter by 15 / 9."""
    units = pytest.importorskip("ase.units")
    dynamics = dynamics_of(toy_atoms(3), time_step=0.1)
    kinetic, angular = [], []
    for _ in range(3000):
        dynamics.step()
        kinetic.append(dynamics.atoms.get_kinetic_energy())
        angular.append(np.abs(turning(dynamics.atoms)).max())
    temperature = 2 * np.mean(kinetic) / thermostat.degrees_of_freedom(5) / units.kB
    np.testing.assert_allclose(temperature, KELVIN, rtol=0.1)
    assert max(angular) < 1e-8


# The generator, with a calculator of springs


WATER = np.array([[0.0, 0.0, 0.0], [0.0, 0.76, 0.59], [0.0, -0.76, 0.59]])
SHORT = generator.Settings(num_steps=25, equilibration_steps=10, chunk_steps=10, seed=7)


def water():
    atoms = pytest.importorskip("ase").Atoms("OHH", positions=WATER)
    atoms.info["start"] = WATER
    return atoms


def make(path, settings=SHORT, atoms=None, **options):
    options = {"make_calculator": Calls(), "source": "springs"} | options
    return md17.generate(path, atoms or water(), settings, **options)


def test_a_generated_file_says_how_it_was_made(tmp_path):
    lines = []
    made = make(tmp_path / "w.npz", about={"smiles": "O"}, report=lines.append)
    found = md17.read(tmp_path / "w.npz")
    assert found.positions.shape == (25, 3, 3) and found.positions.dtype == np.float32
    np.testing.assert_array_equal(found.positions, made.positions)
    np.testing.assert_array_equal(found.numbers, [8, 1, 1])
    assert found.source == "springs"
    expected = {"smiles": "O", "seed": 7, "temperature": 500.0, "degrees_of_freedom": 3}
    assert expected.items() <= found.provenance.items()
    assert found.provenance["versions"]["numpy"] == np.__version__
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]
    assert len(lines) == 4 and "step 25 of 25" in lines[-1]


def test_frames_are_those_of_the_dynamics(tmp_path):
    """No net motion, no net rotation, half a femtosecond a frame."""
    settings = generator.Settings(num_steps=600, equilibration_steps=50, seed=1)
    positions = make(tmp_path / "w.npz", settings).positions.astype(float)
    masses = water().get_masses()[:, None]
    centre = np.sum(masses * positions, axis=1) / masses.sum()
    np.testing.assert_allclose(centre, 0, atol=1e-6)
    velocities = (positions[2:] - positions[:-2]) / 2
    angular = np.sum(np.cross(positions[1:-1], masses * velocities), axis=1)
    scale = np.sum(masses * np.linalg.norm(velocities, axis=2, keepdims=True), axis=1).mean()
    assert np.abs(angular).max() < 1e-4 * max(scale, 1)
    units = pytest.importorskip("ase.units")
    step = 0.5 * units.fs
    kinetic = np.sum(masses * (velocities / step) ** 2, axis=(1, 2)) / 2
    assert 100 < 2 * kinetic.mean() / 3 / units.kB < 1500


def test_the_same_arguments_give_the_same_bits_and_another_seed_others(tmp_path):
    for name in ("a", "b"):
        make(tmp_path / f"{name}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    other = make(tmp_path / "c.npz", generator.Settings(**{**vars(SHORT), "seed": 8}))
    assert not np.allclose(other.positions, md17.read(tmp_path / "a.npz").positions, atol=1e-3)


@settings(deadline=None, max_examples=8)
@given(fail_at=st.integers(1, 39))
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path_factory, fail_at):
    folder = tmp_path_factory.mktemp("md")
    make(folder / "whole.npz")
    with pytest.raises(KeyboardInterrupt):
        make(folder / "cut.npz", make_calculator=Calls(fail_at))
    assert not (folder / "cut.npz").exists()
    calls = Calls()
    make(folder / "cut.npz", make_calculator=calls)
    assert (folder / "cut.npz").read_bytes() == (folder / "whole.npz").read_bytes()
    if fail_at > 22:  # equilibration and one chunk were done
        assert calls.num_forces < 30
    assert sorted(p.name for p in folder.iterdir()) == ["cut.npz", "whole.npz"]


def interrupted(tmp_path, settings=SHORT):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "w.npz", settings, make_calculator=Calls(fail_at=35))
    return tmp_path / "w.npz.parts"


def test_a_run_does_not_resume_with_other_settings_or_damaged_parts(tmp_path):
    parts = interrupted(tmp_path)
    with pytest.raises(ValueError, match=r"seed=7, expected 8.*remove .*\.parts to start again"):
        make(tmp_path / "w.npz", generator.Settings(**{**vars(SHORT), "seed": 8}))
    frames = parts / "frames_000000000.npz"
    frames.write_bytes(frames.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"frames_000000000\.npz: .*cannot be read.*remove"):
        make(tmp_path / "w.npz")
    (parts / "state.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"state\.npz: got .* at its start.*remove"):
        make(tmp_path / "w.npz")


def other_start(change):
    atoms = water()
    if change == "numbers":
        atoms.numbers[0] = 16
        atoms.set_masses(water().get_masses())
    elif change == "positions":
        atoms.positions[1] += 0.01
    else:
        atoms.set_masses([18.0, 1.0, 1.0])
    return atoms


@pytest.mark.parametrize("change", ["numbers", "positions", "masses"])
def test_a_run_does_not_resume_with_another_molecule(tmp_path, change):
    interrupted(tmp_path)
    place = "numbers" if change == "numbers" else "start_sha256"
    with pytest.raises(ValueError, match=rf"made with {place}=.*expected.*remove .*\.parts"):
        make(tmp_path / "w.npz", atoms=other_start(change))
    make(tmp_path / "w.npz")


def test_a_run_does_not_resume_with_parts_of_another_thermostat(tmp_path, monkeypatch):
    """As earlier versions wrote them."""
    write = cache.write

    def write_before(path, arrays, settings):
        write(path, arrays, {k: v for k, v in settings.items() if k != "thermostat"})

    monkeypatch.setattr(cache, "write", write_before)
    interrupted(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"thermostat=None, expected 'ase\.md\.nose.*remove"):
        make(tmp_path / "w.npz")


def test_a_place_that_cannot_be_written_to_is_named_before_anything_is_computed(tmp_path):
    (tmp_path / "file").touch()
    calls = Calls()
    path = tmp_path / "file" / "w.npz"
    with pytest.raises(OSError, match=r"file/w\.npz: cannot be written"):
        make(path, make_calculator=calls)
    assert calls.num_forces == 0 and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    make(tmp_path / "w.npz")
    with pytest.raises(FileExistsError, match=r"w\.npz: the file exists already"):
        make(tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"expected the suffix '\.npz'"):
        make(tmp_path / "w.xyz")


def test_a_molecule_that_comes_apart_is_named_with_the_step(tmp_path):
    class Pushing:
        def __call__(self, atoms):
            calculators = pytest.importorskip("ase.calculators.calculator")

            class Push(calculators.Calculator):
                implemented_properties = ("energy", "forces")

                def calculate(self, atoms=None, properties=None, system_changes=None):
                    super().calculate(atoms, properties, system_changes)
                    self.results = {"energy": 0.0, "forces": 3 * np.sign(self.atoms.positions)}

            return Push()

    settings = generator.Settings(num_steps=100, equilibration_steps=0, chunk_steps=100)
    with pytest.raises(RuntimeError, match=r"came apart \d+ steps after step 0"):
        make(tmp_path / "w.npz", settings, make_calculator=Pushing())


def test_hydrogen_may_move_over_and_heavy_atoms_may_not(tmp_path):
    ase = pytest.importorskip("ase")
    atoms = ase.Atoms("OHO", positions=[[0, 0, 0], [1.0, 0, 0], [2.4, 0, 0]])
    simulation = generator._Simulation(atoms, SHORT, Calls())
    moved = np.array([[[0, 0, 0], [1.4, 0, 0], [2.4, 0, 0]]], np.float32)
    simulation._check_intact(moved, "the start")
    for lost in ([0.0, 9.0, 0.0], [np.nan, 0.0, 0.0]):
        away = np.array(moved)
        away[0, 1] = lost
        with pytest.raises(RuntimeError, match="came apart 1 steps after the start"):
            simulation._check_intact(away, "the start")
    peroxide = ase.Atoms("OO", positions=[[0, 0, 0], [1.45, 0, 0]])
    simulation = generator._Simulation(peroxide, SHORT, Calls())
    apart = np.array([[[0, 0, 0], [2.5, 0, 0]]], np.float32)
    with pytest.raises(RuntimeError, match="came apart"):
        simulation._check_intact(apart, "the start")


def test_a_calculator_that_fails_is_named_with_the_step(tmp_path):
    class Failing(Calls):
        def __call__(self, atoms):
            calculator = super().__call__(atoms)
            calculate = calculator.calculate

            def wrapped(*arguments):
                if self.num_forces == 15:
                    raise ValueError("no convergence")
                calculate(*arguments)

            calculator.calculate = wrapped
            return calculator

    with pytest.raises(RuntimeError, match=r"step \d+ failed: ValueError: no convergence"):
        make(tmp_path / "w.npz", make_calculator=Failing())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 1),
        ("num_steps", 2.5),
        ("seed", -1),
        ("chunk_steps", 0),
        ("time_step", 0.0),
        ("temperature", -300.0),
        ("relaxation_time", float("nan")),
        ("friction", float("inf")),
    ],
)
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"Settings\.{field}: got"):
        generator.Settings(**{field: value})


def test_one_atom_is_no_molecule(tmp_path):
    with pytest.raises(ValueError, match="got one atom"):
        make(tmp_path / "w.npz", atoms=pytest.importorskip("ase").Atoms("He"))


# The command line, and the real tools where they are installed


def test_the_command_line_hands_on_what_is_asked_for(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        generator, "start_atoms", lambda smiles, seed: asked.append(smiles) or water()
    )
    monkeypatch.setattr(
        generator,
        "generate",
        lambda path, atoms, settings, about, report: make(path, settings, atoms, about=about),
    )
    words = "--num-steps 25 --equilibration-steps 10 --chunk-steps 10 --seed 7".split()
    words += ["--data-dir", str(tmp_path)]
    assert command_line.main(["generate", "--molecule", "ethanol", *words]) == 0
    found = md17.read(tmp_path / "md" / "ethanol.npz")
    assert found.provenance["smiles"] == "CCO" and found.provenance["molecule"] == "ethanol"
    assert "25 frames of 3 atoms" in capsys.readouterr().out
    assert command_line.main(["generate", "--smiles", "O", "--name", "water", *words]) == 0
    assert (tmp_path / "md" / "water.npz").exists()
    named = ["generate", "--molecule", "ethanol", "--name", "mine", *words]
    assert command_line.main(named) == 0
    assert md17.read(tmp_path / "md" / "mine.npz").provenance["molecule"] == "ethanol"
    out = str(tmp_path / "w.npz")
    assert command_line.main(["generate", "--smiles", "O", "--out", out, *words]) == 0
    capsys.readouterr()
    for arguments, message in (
        (["--molecule", "ethanol", *words], "ethanol.npz: the file exists already"),
        (["--smiles", "O", *words], "--smiles: got no file name; add --name or --out"),
        (["--smiles", "O", "--name", "a/b", *words], "expected a name of letters"),
        (["--molecule", "uracil", "--name", "", *words], "expected a name of letters"),
        (["--molecule", "uracil", *words, "--temperature", "0"], "Settings.temperature"),
    ):
        assert command_line.main(["generate", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert command_line.main(["generate", "--smiles", "", "--name", "nothing", *words]) == 0
    assert asked == ["CCO", "O", "CCO", "O", ""]
    for arguments in (["--molecule", "phenol"], [], ["--molecule", "uracil", "--smiles", "O"]):
        with pytest.raises(SystemExit):
            command_line.main(["generate", *arguments])


def test_what_is_missing_is_named_with_its_extra(tmp_path, capsys):
    try:
        import rdkit  # noqa: F401
    except ImportError:
        words = ["generate", "--molecule", "ethanol", "--data-dir", str(tmp_path)]
        assert command_line.main(words) == 2
        assert 'pip install "egno_jax[generate]"' in capsys.readouterr().err
    else:
        pytest.skip("RDKit is installed")


@pytest.mark.parametrize("name", md17.MOLECULES)
def test_geometries_have_the_atoms_of_md17_heavy_ones_first(name):
    pytest.importorskip("rdkit")
    molecule = md17.MOLECULES[name]
    atoms = md17.start_atoms(molecule.smiles)
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == molecule.counts
    assert (np.diff((atoms.numbers == 1).astype(int)) >= 0).all()
    assert atoms.info["charge"] == 0


@pytest.mark.parametrize(
    ("smiles", "message"),
    [("C(", "reads no molecule"), ("", "reads no"), ("C.O", "several"), ("[CH3]", "radical")],
)
def test_smiles_that_are_no_molecule_are_refused(smiles, message):
    pytest.importorskip("rdkit")
    with pytest.raises(ValueError, match=f"smiles: .*{message}"):
        md17.start_atoms(smiles)


@pytest.mark.parametrize("seed", [-1, 2**31, 3_000_000_000])
def test_seeds_that_rdkit_does_not_take_are_refused(seed):
    pytest.importorskip("rdkit")
    with pytest.raises(
        ValueError, match=f"seed: got {seed}, expected an integer from 0 to 2147483647"
    ):
        md17.start_atoms("CCO", seed=seed)


def test_xtb_makes_ethanol(tmp_path):
    pytest.importorskip("rdkit")
    pytest.importorskip("tblite")
    words = "--molecule ethanol --num-steps 40 --equilibration-steps 20 --chunk-steps 20".split()
    for name in ("a", "b"):
        out = ["--out", str(tmp_path / f"{name}.npz")]
        assert command_line.main(["generate", *words, *out]) == 0
    found = md17.read(tmp_path / "a.npz")
    assert found.source == "GFN2-xTB" and found.positions.shape == (40, 9, 3)
    assert found.provenance["degrees_of_freedom"] == 21
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
