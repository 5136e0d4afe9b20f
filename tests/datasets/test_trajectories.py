import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest

pytest.importorskip("MDAnalysis")
ase_io = pytest.importorskip("ase.io")

import ase  # noqa: E402
from ase.build import fcc111  # noqa: E402
from ase.constraints import FixAtoms  # noqa: E402

from egno_jax.datasets import md17, trajectories  # noqa: E402
from egno_jax.predicting import as_state  # noqa: E402
from egno_jax.recipe import GraphRecipe  # noqa: E402

FILES = pathlib.Path(__file__).parent / "files"
INPUTS = {
    "recorded.npy": (60, 40, 6, 3),
    "cluster_momenta.extxyz": (1, 200, 13, 3),
    "cluster.traj": (1, 200, 13, 3),
    "plain.xyz.gz": (1, 200, 13, 3),
    "copper_wrapped.extxyz": (1, 120, 32, 3),
    "md17_like.npz": (1, 200, 13, 3),
    "rmd17_like.npz": (1, 200, 13, 3),
    "helix_box.pdb helix_box.xtc": (1, 120, 48, 3),
}


def read(names, **options):
    return trajectories.read(*(FILES / name for name in names.split()), **options)


def kinds(recording):
    return {suspicion.kind for suspicion in trajectories.suspicions(recording)}


@pytest.mark.parametrize("names", INPUTS)
def test_right_files_are_read_without_suspicion(names):
    recording = read(names)
    assert recording.positions.shape == INPUTS[names]
    assert kinds(recording) == set()


def test_shuffled_archives_are_sorted():
    np.testing.assert_allclose(
        read("rmd17_like.npz").positions, read("md17_like.npz").positions, atol=1e-6
    )


def test_times_without_a_unit_are_said_to_be_taken_as_femtoseconds(tmp_path):
    positions = np.random.default_rng(0).normal(size=(4, 3, 3))
    for unit in ({}, {"time_unit": "ps"}):
        np.savez(tmp_path / "a.npz", positions=positions, times=np.arange(4.0), **unit)
        found = trajectories.read(tmp_path / "a.npz")
        assert found.time_step == (1000 if unit else 1)
        assert any("taken as fs" in note for note in found.notes) is not bool(unit)


@pytest.mark.parametrize(
    ("recordings", "frames", "window"),
    [(1, 31, 2), (1, 200, 10), (4, 31, 2), (5, 31, 10), (5, 7, 5)],
)
def test_the_usual_window_leaves_windows_for_all_partitions(recordings, frames, window, tmp_path):
    positions = np.random.default_rng(0).normal(size=(recordings, frames, 3, 3))
    np.save(tmp_path / "a.npy", positions)
    recording = trajectories.read(tmp_path / "a.npy")
    assert trajectories.usual_window(recording) == window
    recipe = trajectories.make_recipe(recording, window=window, num_targets=1)
    assert min(map(len, trajectories.partition(recording, recipe))) > 0


def test_gaps_in_times_are_kept_with_a_time_step_of_ones_own(tmp_path):
    positions = np.random.default_rng(0).normal(size=(6, 4, 3))
    times = np.array([0.0, 1, 2, 50, 51, 52])
    for unit in ("fs", "frame"):
        np.savez(tmp_path / "a.npz", positions=positions, times=times, time_unit=unit)
        for step in (None, "1fs"):
            recording = trajectories.read(tmp_path / "a.npz", time_step=step)
            assert recording.segments.tolist() == [0, 0, 0, 1, 1, 1]
            assert f"48 {unit}" in str(trajectories.suspicions(recording)[0]).replace(
                "frames", "frame"
            )


def test_positions_in_a_cell_are_unwrapped():
    recording = read("copper_wrapped.extxyz")
    wrapped = np.stack([a.positions for a in ase_io.read(FILES / "copper_wrapped.extxyz", ":")])
    images = (recording.positions[0] - wrapped) / 7.22
    np.testing.assert_allclose(images, np.rint(images), atol=1e-9)
    assert (
        np.abs(np.diff(recording.positions, axis=1)).max()
        < 0.5
        < np.abs(np.diff(wrapped, axis=0)).max()
    )


def slab(tmp_path, vacuum):
    """Writes a layer of copper that moves along x and is wrapped; the cell may have no volume."""
    atoms, frames = fcc111("Cu", (3, 3, 2), vacuum=vacuum), []
    for frame in range(30):
        moved = atoms.copy()
        moved.positions += [0.1 * frame, 0.0, 0.3 * np.sin(frame)]
        moved.wrap()
        moved.info = {"time": 2.0 * frame}
        frames.append(moved)
    ase_io.write(tmp_path / "slab.extxyz", frames)
    return tmp_path / "slab.extxyz"


@pytest.mark.parametrize("vacuum", [None, 5.0])
def test_slabs_are_unwrapped_with_or_without_a_third_vector(tmp_path, vacuum):
    recording = trajectories.read(slab(tmp_path, vacuum))
    steps = np.diff(recording.positions, axis=1)
    np.testing.assert_allclose(steps[..., 0], 0.1, atol=1e-6)
    assert kinds(recording) == set()
    recipe = trajectories.make_recipe(recording, window=4, num_targets=2, cutoff=3.0)
    samples = trajectories.samples_at(
        recording, recipe, trajectories.starts_of(recording, recipe)[:2]
    )
    assert (samples.graph.n_edge == 18 * 9).all()  # six in the layer, three in the other
    out = tmp_path / "out.pdb"
    more = {"cell": recording.cells[0], "periodic": recording.periodic}
    trajectories.write(out, recording.positions[0], times=recording.times, **more)
    assert len(trajectories.read(out).positions[0]) == 30


def test_two_frames_of_a_slab_make_a_state(tmp_path):
    frames = ase_io.read(slab(tmp_path, None), ":2")
    recipe = GraphRecipe(edges="radius", cutoff=3.0, is_periodic=True, velocities="difference")
    state = as_state(recipe, frames)
    np.testing.assert_allclose(state.velocities[:, 0], 0.1, atol=1e-6)
    assert state.periodic == (True, True, False)


def test_a_periodic_vector_that_is_zero_is_named(tmp_path):
    path = slab(tmp_path, None)
    path.write_text(path.read_text().replace('pbc="T T F"', 'pbc="T T T"'))
    with pytest.raises(ValueError, match=r"cell of frame 0 has no volume.*expected 3 independent"):
        trajectories.read(path)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_cell_that_is_not_finite_is_named(tmp_path):
    """ASE writes and reads `nan`; MDAnalysis reads any bytes of a TRR file as a cell."""
    path = slab(tmp_path, None)
    assert 'Lattice="7.65' in path.read_text()
    path.write_text(re.sub(r'Lattice="\S+', 'Lattice="nan', path.read_text(), count=1))
    with pytest.raises(ValueError, match=r"the cell of frame 0: got \[\[nan.*expected finite"):
        trajectories.read(path)


@pytest.fixture(scope="module")
def cluster():
    return read("cluster_momenta.extxyz")


def edited(recording, frame, change):
    positions = recording.positions.copy()
    change(positions[0, frame:])
    return dataclasses.replace(recording, positions=positions)


def exchange(frames):
    frames[:, [2, 5]] = frames[:, [5, 2]]


def jump(frames):
    frames[:, 4] += 10.0


def test_exchanged_atoms_and_jumps_name_frame_and_atom(cluster):
    (found,) = [
        s for s in trajectories.suspicions(edited(cluster, 90, exchange)) if s.kind == "order"
    ]
    assert found.frame == 90 and found.atom in (2, 5)
    (found,) = [s for s in trajectories.suspicions(edited(cluster, 90, jump)) if s.kind == "step"]
    assert (found.frame, found.atom) == (90, 4)
    with pytest.raises(ValueError, match=r"(?s)frame 90, atom 4: moves .*--accept step"):
        trajectories.check(edited(cluster, 90, jump))
    assert trajectories.check(edited(cluster, 90, jump), accept=["all"])


def test_repeated_frames_units_and_velocities(cluster):
    repeated = cluster.positions.copy()
    repeated[:, 50] = repeated[:, 49]
    assert "repeat" in kinds(dataclasses.replace(cluster, positions=repeated))
    assert "units" in kinds(dataclasses.replace(cluster, positions=0.1 * cluster.positions))
    assert "units" in kinds(dataclasses.replace(cluster, positions=cluster.positions / 0.529))
    assert kinds(dataclasses.replace(cluster, velocities=1e3 * cluster.velocities)) == {
        "velocities"
    }
    assert kinds(dataclasses.replace(cluster, velocities=-cluster.velocities)) == {"velocities"}


def test_steps_of_half_a_cell_cannot_be_unwrapped():
    recording = read("copper_wrapped.extxyz")
    small = np.broadcast_to(np.eye(3) * 7.22, recording.cells.shape)
    positions = recording.positions.copy()
    positions[0, 60:, 7, 0] += 0.45 * 7.22
    found = dataclasses.replace(recording, positions=positions, cells=small)
    assert "half-cell" in kinds(found)


def written(tmp_path, change, name="frames.XYZ"):
    frames = ase_io.read(FILES / "cluster_momenta.extxyz", ":40")
    for index, atoms in enumerate(frames):
        atoms.info["time"] = 2.0 * index
        change(index, atoms)
    ase_io.write(tmp_path / name, frames, format="extxyz")
    return tmp_path / name


def test_times_order_of_species_and_constraints(tmp_path):
    def nothing(index, atoms):
        pass

    def gap(index, atoms):
        atoms.info["time"] += 6.0 * (index >= 20)

    def backwards(index, atoms):
        atoms.info["time"] = -2.0 * index if index > 20 else atoms.info["time"]

    def species(index, atoms):
        atoms.numbers[3] = 28 if index == 7 else 29

    def fixed(index, atoms):
        atoms.set_constraint(FixAtoms([4]))

    right = trajectories.read(written(tmp_path, nothing))
    assert kinds(right) == set() and right.time_step == 2.0
    uneven = trajectories.read(written(tmp_path, gap))
    assert kinds(uneven) == {"time"}
    recipe = trajectories.make_recipe(uneven, window=4, num_targets=2)
    starts = trajectories.starts_of(uneven, recipe)[:, 1]
    assert not any(start < 20 <= start + 4 for start in starts) and len(starts) == 32
    assert kinds(trajectories.read(written(tmp_path, backwards))) == {"time"}
    with pytest.raises(ValueError, match="frame 7: atom 3 is Ni, expected Cu"):
        trajectories.read(written(tmp_path, species))
    assert "constraints" in kinds(trajectories.read(written(tmp_path, fixed)))


def test_forward_differences_need_the_next_frame(tmp_path):
    recording = read("plain.xyz.gz", time_step="2fs")
    recipe = trajectories.make_recipe(
        recording, window=4, num_targets=2, velocities="forward_difference"
    )
    starts = trajectories.starts_of(recording, recipe)
    assert starts[0, 1] == 0 and starts[-1, 1] == 200 - 1 - 4 - 1
    samples = trajectories.samples_at(recording, recipe, starts[:3])
    steps = np.diff(recording.positions[0], axis=0) * 2  # in the unit of the graphs, a target
    np.testing.assert_allclose(samples.graph.nodes["velocities"], steps[:3], atol=1e-5)
    np.testing.assert_allclose(samples.velocities[:, -1], steps[4:7], atol=1e-5)


def test_gaps_in_old_indices_are_not_crossed(tmp_path):
    archive = dict(np.load(FILES / "rmd17_like.npz"))
    archive["old_indices"] = archive["old_indices"] + 5 * (archive["old_indices"] >= 100)
    np.savez(tmp_path / "gap.npz", **archive)
    recording = trajectories.read(tmp_path / "gap.npz")
    recipe = trajectories.make_recipe(recording, window=10, num_targets=5)
    starts = trajectories.starts_of(recording, recipe)[:, 1]
    assert not any(start - 1 < 100 <= start + 10 for start in starts)


TIMES = np.array([0.0, 500.0, 1000.0, 1500.0])  # fs
MASSES = np.array([63.546, 15.999] * 6)[:, None]  # of copper and oxygen
ASE_TIME = 10.180505  # fs, sqrt(u Å^2 / eV)
AKMA_TIME = 0.04888821  # ps, sqrt(u Å^2 mol / kcal), the unit of DCD files


def chemfiles_frames(path):
    """Returns what chemfiles reads: positions, velocities or None, times or None, frames."""
    chemfiles = pytest.importorskip("chemfiles")
    with chemfiles.Trajectory(str(path), "r", "XYZ" if path.suffix == ".extxyz" else "") as file:
        frames = [file.read_step(t) for t in range(file.nsteps)]
    positions = np.stack([frame.positions.copy() for frame in frames])
    velocities = None
    if frames[0].has_velocities():
        velocities = np.stack([frame.velocities.copy() for frame in frames]) / 1e3  # of Å/ps
    elif "momenta" in frames[0].atoms[0].list_properties():  # of ASE
        momenta = np.array([[atom["momenta"] for atom in frame.atoms] for frame in frames])
        velocities = momenta / MASSES / ASE_TIME
    times = None
    if "time" in frames[0].list_properties():
        unit = {".dcd": 1e3 * AKMA_TIME, ".extxyz": 1, ".xyz": 1}.get(path.suffix, 1e3)
        times = np.array([float(frame["time"]) for frame in frames]) * unit
    if path.suffix == ".gro":  # in picoseconds in the titles
        titles = [line for line in path.read_text().splitlines() if "t=" in line]
        times = np.array([float(title.split("t=")[1]) for title in titles]) * 1e3
    return positions, velocities, times, frames


def traj_frames(path):
    """Returns the same of ASE's .traj, read by its description (ase.io.ulm) with NumPy alone."""
    data = path.read_bytes()
    assert data[:8] == b"- of Ulm" and data[8:24].rstrip(b"\0 ") == b"ASE-Trajectory"
    _, count, place = np.frombuffer(data, "<i8", 3, 24)
    masses, fields = None, []
    for offset in np.frombuffer(data, "<i8", count, place):
        (length,) = np.frombuffer(data, "<i8", 1, offset)
        fields.append(json.loads(data[offset + 8 : offset + 8 + length]))

    def array(entry):
        shape, dtype, offset = entry["ndarray"]
        return np.frombuffer(data, dtype, np.prod(shape), offset).reshape(shape)

    masses = MASSES if array(fields[0]["numbers."]).any() else 1.0  # ASE's mass of X
    positions = np.stack([array(each["positions."]) for each in fields])
    momenta = np.stack([array(each["momenta."]) for each in fields])
    cell = fields[0].get("cell", np.zeros((3, 3)))
    return positions, momenta / masses / ASE_TIME, np.asarray(cell), fields[0]["pbc"]


HAS_VELOCITIES = (".extxyz", ".xyz", ".trr", ".gro")
TOLERANCES = {".xtc": 6e-5, ".pdb": 6e-4, ".gro": 6e-3}


@pytest.mark.parametrize("suffix", sorted({*trajectories.SUFFIXES} - {".npz", ".traj"}))
@pytest.mark.parametrize("is_open", [False, True])
def test_written_files_are_read_by_another_library(tmp_path, suffix, is_open):
    rng = np.random.default_rng(0)
    positions, path = rng.normal(size=(4, 12, 3)), tmp_path / f"out{suffix}"
    velocities = 0.01 * rng.normal(size=(4, 12, 3))
    trajectories.write(
        path,
        positions,
        times=TIMES,
        velocities=velocities,
        numbers=[29, 8] * 6,
        cell=None if is_open else 9.0 * np.eye(3),
        periodic=(not is_open,) * 3,
    )
    found, found_velocities, times, frames = chemfiles_frames(path)
    np.testing.assert_allclose(found, positions, atol=TOLERANCES.get(suffix, 1e-5))
    assert (found_velocities is not None) == (suffix in HAS_VELOCITIES)
    if found_velocities is not None:
        np.testing.assert_allclose(found_velocities, velocities, atol=1e-6)
    assert (times is not None) == (suffix != ".pdb")
    if times is not None:
        np.testing.assert_allclose(times, TIMES, rtol=1e-5)
    if suffix in (".extxyz", ".xyz", ".pdb", ".gro"):
        assert [atom.name for atom in frames[0].atoms] == ["Cu", "O"] * 6
    np.testing.assert_allclose(frames[0].cell.lengths, 0 if is_open else 9, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("numbers", [[29, 8] * 6, None])
def test_trajectories_of_ase_hold_positions_momenta_and_cell(tmp_path, numbers):
    rng = np.random.default_rng(0)
    positions, velocities = rng.normal(size=(2, 4, 12, 3))
    path, cell = tmp_path / "out.traj", np.array([[9.0, 0, 0], [2, 8, 0], [1, -1.5, 7]])
    more = {"velocities": velocities, "numbers": numbers, "cell": cell}
    trajectories.write(path, positions, times=TIMES, periodic=(True, True, False), **more)
    found, found_velocities, found_cell, pbc = traj_frames(path)
    np.testing.assert_allclose(found, positions)
    np.testing.assert_allclose(found_velocities, velocities, rtol=1e-6)
    np.testing.assert_allclose(found_cell, cell)
    assert [bool(each) for each in pbc] == [True, True, False]
    assert [atoms.info["time"] for atoms in ase_io.read(path, ":")] == [*TIMES]


def test_arrays_are_read_by_numpy(tmp_path):
    rng = np.random.default_rng(0)
    arrays = dict(zip(("positions", "velocities"), rng.normal(size=(2, 4, 12, 3)), strict=True))
    arrays |= {"times": TIMES, "numbers": np.full(12, 29), "cell": 9.0 * np.eye(3)}
    trajectories.write(tmp_path / "out.npz", periodic=(True,) * 3, **arrays)
    with np.load(tmp_path / "out.npz") as found:
        assert str(found["time_unit"]) == "fs"
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_times_that_are_missing_or_not_finite_are_said(tmp_path):
    positions = np.random.default_rng(0).normal(size=(3, 4, 3))
    np.savez(tmp_path / "a.npz", positions=positions, times=[0.0, np.nan, 2.0])
    with pytest.raises(ValueError, match=r"a\.npz: time of frame 1: got nan"):
        trajectories.read(tmp_path / "a.npz")
    frames = [
        ase.Atoms("Cu4", x, info={"time": 2.0 * t} if t else {}) for t, x in enumerate(positions)
    ]
    ase_io.write(tmp_path / "a.extxyz", frames)
    found = trajectories.read(tmp_path / "a.extxyz")
    assert found.times is None and "frame 0 has no time" in found.notes[0]


@pytest.mark.parametrize(("unit", "length"), [({}, 1), ({"time_unit": "ps"}, 1000)])
def test_velocities_are_in_the_time_unit_of_their_file(unit, length, tmp_path):
    positions, velocities = np.random.default_rng(0).normal(size=(2, 3, 4, 3))
    arrays = {"positions": positions, "velocities": velocities, "times": np.arange(3.0)}
    np.savez(tmp_path / "a.npz", **arrays, **unit)
    found = trajectories.read(tmp_path / "a.npz").velocities[0]
    np.testing.assert_allclose(found, velocities / length)


def test_graphs_in_a_cell_that_varies_are_those_of_their_frames(tmp_path):
    """A crystal that vibrates across the walls of its breathing cell."""
    rng, sites = np.random.default_rng(0), np.indices((3, 3, 3)).reshape(3, -1).T / 3
    frames, steps = 60, 0.01 * rng.normal(size=(60, 27, 3))
    lengths = 9 * (1 + 0.03 * np.sin(np.arange(frames)))[:, None, None]
    places = (sites + steps) % 1 * lengths
    np.savez(tmp_path / "a.npz", positions=places, cell=lengths * np.eye(3), times=np.arange(60.0))
    recording = trajectories.read(tmp_path / "a.npz")
    options = {"window": 2, "num_targets": 2, "cutoff": 3.6}
    recipe = trajectories.make_recipe(recording, **options, velocities="difference")
    samples = trajectories.samples_at(recording, recipe, np.array([[0, 1], [0, 55]]))
    found = samples.graph.nodes["positions"]
    np.testing.assert_allclose(found, places[[1, 55]], atol=1e-5)
    assert samples.graph.senders.shape[1] == 27 * 6
    moved = samples.positions[1] - found[1]
    expected = places[[56, 57]] - places[55]
    expected -= np.round(expected / 9) * lengths[[56, 57]]
    np.testing.assert_allclose(moved, expected, atol=0.6)
    assert np.abs(moved).max() < 1.5


@pytest.mark.parametrize(("unit", "spacing"), [("frame", None), ("ps", 1000.0), ("fs", 1.0)])
def test_arrays_say_the_unit_of_their_times(unit, spacing, tmp_path):
    positions = np.random.default_rng(0).normal(size=(3, 4, 3))
    path = tmp_path / "out.npz"
    np.savez(path, positions=positions, times=np.arange(3.0), time_unit=unit)
    assert trajectories.read(path).time_step == spacing
    np.savez(path, positions=positions, times=np.arange(3.0), time_unit="years")
    with pytest.raises(ValueError, match=r"out.npz: time_unit: got '1years', expected .* unit of"):
        trajectories.read(path)


def test_arrays_are_read_as_they_were_written(tmp_path):
    """Frames without a length in time, and which vectors of the cell are periodic."""
    rng = np.random.default_rng(0)
    velocities = np.broadcast_to(rng.normal(size=(1, 4, 3)), (5, 4, 3))
    positions = rng.normal(size=(4, 3)) + np.arange(5)[:, None, None] * 5.0 * velocities
    arrays = {"times": np.arange(5.0), "velocities": velocities, "numbers": np.full(4, 29)}
    cell = {"cell": 4.0 * np.eye(3), "periodic": (False, False, False)}
    trajectories.write(tmp_path / "a.npz", positions, time_unit="frame", **arrays, **cell)
    found = trajectories.read(tmp_path / "a.npz")
    assert (found.time_unit, found.time_step, found.cells) == ("frame", None, None)
    np.testing.assert_array_equal(found.positions[0], positions)
    given = trajectories.read(tmp_path / "a.npz", time_step="2fs")
    np.testing.assert_array_equal(given.velocities[0], velocities / 2)
    cell["periodic"] = (True, True, False)
    wrapped = np.where([True, True, False], np.mod(positions, 4.0), positions)
    trajectories.write(tmp_path / "a.npz", wrapped, time_unit="frame", **arrays, **cell)
    found = trajectories.read(tmp_path / "a.npz")
    assert found.periodic == (True, True, False)
    np.testing.assert_array_equal(found.positions[0, ..., 2], positions[..., 2])


def test_a_file_that_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, *_):
        path.write_text("half")
        raise OSError("no space left")

    path = tmp_path / "[a].traj"
    path.write_text("before")
    monkeypatch.setattr(trajectories.writing, "_write_ase", fail)
    with pytest.raises(OSError, match="no space left"):
        trajectories.write(path, np.zeros((1, 2, 3)), times=np.zeros(1), numbers=[1, 1])
    assert [*tmp_path.iterdir()] == [path] and path.read_text() == "before"


GOOD = {"positions": np.zeros((2, 3, 3)), "times": np.arange(2.0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": np.arange(3.0)}, r"times: got .* with T = 2"),
        ({"positions": np.zeros((3, 3))}, r"positions: got .* expected .*\[T, N, 3\]"),
        ({"positions": np.full((2, 3, 3), np.nan)}, "positions: got nan"),
        ({"positions": np.zeros((0, 3, 3)), "times": np.zeros(0)}, "positions: got none"),
        ({"velocities": np.zeros((2, 4, 3))}, r"velocities: got .* with T = 2, N = 3"),
        ({"numbers": [6, 6]}, r"numbers: got .* with N = 3"),
        ({"numbers": ["C", "C", "C"]}, "numbers: got .*expected integer"),
        ({"cell": [9.0, 9.0, 9.0]}, r"cell: got .*expected .*\[3, 3\]"),
        ({"periodic": True}, r"periodic: got bool \[\], expected boolean \[3\]"),
        ({"time_unit": "ps"}, "time_unit: got 'ps', expected one of"),
    ],
)
@pytest.mark.parametrize("suffix", [".xyz", ".npz", ".pdb"])
def test_what_cannot_be_written_is_named(tmp_path, suffix, changes, message):
    arrays = {**GOOD, **changes}
    with pytest.raises(ValueError, match=message):
        trajectories.write(tmp_path / f"a{suffix}", arrays.pop("positions"), **arrays)
    assert not [*tmp_path.iterdir()]


def test_windows_that_are_not_in_the_recording_are_named():
    recording = read("recorded.npy")
    recipe = trajectories.make_recipe(recording, window=4, num_targets=2)
    with pytest.raises(ValueError, match="rule: got 'central', expected one of"):
        trajectories.velocities_by(recording, "central")
    for frames in (range(0, 20, 5), range(-5, 10), range(100)):
        with pytest.raises(ValueError, match=r"frames: got range.*within range\(40\)"):
            trajectories.starts_of(recording, recipe, frames=frames)
    for start in ([0, -1], [0, 36], [60, 5]):
        with pytest.raises(
            ValueError, match=r"starts\[1\]: got .*of 0 to 59 and a frame of 1 to 35"
        ):
            trajectories.samples_at(recording, recipe, np.array([[0, 1], start]))
    with pytest.raises(ValueError, match=r"recipe\.times: got none"):
        trajectories.starts_of(recording, dataclasses.replace(recipe, times=()))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"cell": np.ones(3)}, r"cell: got float64 \[3\], expected numbers \[3, 3\]"),
        ({"numbers": np.ones(3)}, r"numbers: got float64 \[3\], expected integers \[3\]"),
        (
            {"cell": np.eye(3), "periodic": [1, 1, 0]},
            r"periodic: got int64 \[3\], expected booleans \[3\]",
        ),
    ],
)
def test_arrays_of_another_kind_or_shape_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", positions=np.zeros((2, 3, 3)), **arrays)
    with pytest.raises(ValueError, match=message):
        trajectories.read(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".pdb", ".xtc", ".dcd", ".trr", ".gro"])
@pytest.mark.parametrize("is_left_handed", [False, True])
def test_in_files_with_lengths_and_angles_all_is_rotated_together(tmp_path, suffix, is_left_handed):
    rng, path = np.random.default_rng(0), tmp_path / f"out{suffix}"
    positions, velocities = rng.normal(size=(4, 12, 3)), 0.01 * rng.normal(size=(4, 12, 3))
    cell = np.array([[0.0, 9, 0], [8, 2, 0], [-1.5, 1, -7]])
    if is_left_handed:
        cell[2] *= -1
    more = {"velocities": velocities, "cell": cell, "periodic": (True,) * 3}
    trajectories.write(path, positions, times=TIMES, numbers=[29, 8] * 6, **more)
    found, found_velocities, _, frames = chemfiles_frames(path)

    def invariants(x, v, box):
        """Returns lengths, angles and handedness of positions, velocities and cell together."""
        arms = np.concatenate([x[:, 1:] - x[:, :1]] + ([] if v is None else [100 * v]), axis=1)
        volumes = np.linalg.det(arms[:, :9].reshape(-1, 3, 3))
        fractions = np.abs(arms @ np.linalg.inv(box))  # the same for a cell and its negative
        return arms @ arms.swapaxes(1, 2), volumes, fractions

    box = np.array(frames[0].cell.matrix).T  # its columns are the vectors
    v = None if found_velocities is None else velocities
    expected, got = invariants(positions, v, cell), invariants(found, found_velocities, box)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=0.1 if suffix in TOLERANCES else 1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_open", [False, True])
def test_every_model_of_a_pdb_file_has_the_cell_and_none_is_empty(tmp_path, is_open):
    path, positions = tmp_path / "out.pdb", np.random.default_rng(0).normal(size=(4, 12, 3))
    cell = np.diag([9.0, 8, 7])
    more = {} if is_open else {"cell": cell, "periodic": (True,) * 3}
    trajectories.write(path, positions, times=TIMES, numbers=[29, 8] * 6, **more)
    frames = ase_io.read(path, ":")
    assert [len(atoms) for atoms in frames] == [12] * 4
    for atoms in frames:
        np.testing.assert_allclose(atoms.cell.lengths(), 0 if is_open else [9, 8, 7])
        assert atoms.pbc.any() != is_open
    found = trajectories.read(path).cells
    assert found is None if is_open else np.allclose(found, [cell] * 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [30.0, 1.0])  # 1 stands for no cell
def test_the_cell_of_a_pdb_file_may_stand_before_its_models(tmp_path, length):
    lines, path = (FILES / "helix_box.pdb").read_text().splitlines(), tmp_path / "models.pdb"
    cell = f"CRYST1{length:9.3f}{length:9.3f}{length:9.3f}  90.00  90.00  90.00 P 1           1"
    atoms = [line for line in lines if line.startswith("ATOM")]
    models = [[f"MODEL     {model:4}", *atoms, "ENDMDL"] for model in (1, 2)]
    path.write_text("\n".join([cell, *models[0], *models[1], "END", ""]))
    cells = trajectories.read(path).cells
    assert cells is None if length == 1 else np.allclose(cells, [length * np.eye(3)] * 2)


def test_later_frames_of_a_gro_file_are_not_left_out(tmp_path):
    positions, top, path = np.zeros((3, 2, 3)), tmp_path / "a.gro", tmp_path / "a.trr"
    trajectories.write(top, positions, times=[0, 1, 2])
    trajectories.write(path, positions, times=[0, 1, 2])
    trajectories.write(path.with_suffix(".pdb"), positions[:1], times=[0])
    with pytest.raises(ValueError, match=r"a\.gro: got more than one frame, expected one"):
        trajectories.read(top)
    with pytest.raises(ValueError, match=r"a\.gro: got more than one frame, expected one"):
        trajectories.read(path.with_suffix(".pdb"), top)
    assert trajectories.read(top, path).positions.shape == (1, 3, 2, 3)
    trajectories.write(top, positions[:1], times=[0])
    assert trajectories.read(top).positions.shape == (1, 1, 2, 3)


@pytest.mark.parametrize("digits", [30, 5000])
def test_a_gro_file_with_a_number_of_atoms_that_cannot_be_is_named(tmp_path, digits):
    (tmp_path / "a.gro").write_text(f"title\n{'9' * digits}\n")
    with pytest.raises(ValueError, match=r"a\.gro: cannot be read"):
        trajectories.read(tmp_path / "a.gro")


@pytest.mark.parametrize("times", [[0, 26, 27], [10, 12, 14]])
@pytest.mark.parametrize("is_open", [False, True])
def test_times_that_a_dcd_file_cannot_hold_are_warned_of(tmp_path, is_open, times):
    options = {} if is_open else {"cell": 9.0 * np.eye(3), "periodic": (True,) * 3}
    with pytest.warns(UserWarning, match=r"path: got \.dcd, which holds only evenly spaced"):
        trajectories.write(tmp_path / "a.dcd", np.zeros((3, 2, 3)), times=times, **options)


@pytest.mark.parametrize("number", [-1, 119, 2**40])
def test_numbers_of_no_element_are_named(tmp_path, number):
    numbers = np.array([1, number, 8])
    positions = np.random.default_rng(0).normal(size=(4, 3, 3))
    frames = [ase.Atoms("HHO", positions=x) for x in positions]
    frames[2].numbers[:] = numbers
    ase_io.write(tmp_path / "a.traj", frames)
    np.savez(tmp_path / "a.npz", positions=positions, numbers=numbers)
    expected = rf"numbers\[1\]: got {number}, expected an atomic number, "
    for read in (trajectories.read, md17.read):
        with pytest.raises(ValueError, match=rf"a\.traj: frame 2: .*{expected}"):
            read(tmp_path / "a.traj")
    with pytest.raises(ValueError, match=rf"a\.npz: {expected}"):
        trajectories.read(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=expected):
        path = tmp_path / "new" / "a.extxyz"
        trajectories.write(path, positions, times=np.arange(4.0), numbers=numbers)
    assert not (tmp_path / "new").exists()


def test_particles_of_unknown_species_are_read_and_make_a_recipe(tmp_path):
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(1, 5, 3)) + 0.1 * np.arange(20)[:, None, None]
    trajectories.write(tmp_path / "bodies.xyz", positions, times=2.0 * np.arange(20))
    recording = trajectories.read(tmp_path / "bodies.xyz")
    assert recording.numbers is None and recording.length_unit == "unknown"
    assert kinds(recording) == set()
    recipe = trajectories.make_recipe(recording, window=2, num_targets=1)
    assert recipe.node_features == ("speed",) and recipe.species == ()


def test_what_is_too_short_or_not_known_is_named(tmp_path):
    state = read("helix_box.pdb")
    assert state.positions.shape == (1, 1, 48, 3)
    with pytest.raises(ValueError, match="1 x 1 frames has no 7 frames in a row"):
        recipe = trajectories.make_recipe(state, window=5, num_targets=5)
        trajectories.partition(state, recipe)
    with pytest.raises(ValueError, match="expected a divisor of 10"):
        trajectories.make_recipe(state, window=10, num_targets=3)
    with pytest.raises(ValueError, match="selects none of the 48 atoms"):
        read("helix_box.pdb helix_box.xtc", selection="name XX")
    assert read("helix_box.pdb helix_box.xtc", selection="name CA").positions.shape[2] == 12
    with pytest.raises(ValueError, match="accept: got"):
        trajectories.check(state, accept=["everything"])
    np.save(tmp_path / "flat.npy", np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"got float64 \[4, 3\], expected numbers \[T, N, 3\]"):
        trajectories.read(tmp_path / "flat.npy")


@pytest.mark.parametrize("has_velocities", [True, False])
def test_particles_without_species_are_written_without_ase_and_read_by_it(
    tmp_path, monkeypatch, has_velocities
):
    rng = np.random.default_rng(0)
    positions, velocities = 1e-9 * rng.normal(size=(2, 3, 4, 3))
    path, cell = tmp_path / "bodies.xyz", np.diag([5.0, 6.0, 7.0])
    more = {"velocities": velocities} if has_velocities else {}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ase", None)
        trajectories.write(
            path, positions, times=[0, 2, 4], cell=cell, periodic=(True, True, False), **more
        )
    frames = pytest.importorskip("ase.io").read(path, ":")
    assert [frame.info["time"] for frame in frames] == [0, 2, 4]
    for index, frame in enumerate(frames):
        np.testing.assert_allclose(frame.positions, positions[index])
        np.testing.assert_array_equal(frame.cell[:], cell)
        assert frame.get_chemical_symbols() == ["X"] * 4
        assert frame.pbc.tolist() == [True, True, False]
        assert ("velocities" in frame.arrays) == has_velocities
        if has_velocities:
            np.testing.assert_allclose(frame.arrays["velocities"], velocities[index])
