import dataclasses
import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip("MDAnalysis")
ase_io = pytest.importorskip("ase.io")

from ase.constraints import FixAtoms  # noqa: E402

from egno_jax.datasets import trajectories  # noqa: E402

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


@pytest.mark.parametrize("suffix", [".extxyz", ".pdb", ".xtc", ".dcd", ".npz"])
@pytest.mark.parametrize("is_open", [False, True])
def test_written_files_are_read_by_another_library(tmp_path, suffix, is_open):
    chemfiles = pytest.importorskip("chemfiles")
    rng = np.random.default_rng(0)
    positions, path = rng.normal(size=(4, 12, 3)), tmp_path / f"out{suffix}"
    trajectories.write(
        path,
        positions,
        times=[0, 500, 1000, 1500],
        numbers=[29] * 12,
        cell=None if is_open else 9.0 * np.eye(3),
        periodic=(not is_open,) * 3,
    )
    if suffix == ".npz":
        found = np.load(path)["positions"]
    else:
        with chemfiles.Trajectory(str(path), "r", "XYZ" if suffix == ".extxyz" else "") as file:
            frames = [file.read_step(t) for t in range(file.nsteps)]
            found = np.stack([frame.positions.copy() for frame in frames])
            lengths = frames[0].cell.lengths  # PDB has 1 where there is no cell
            np.testing.assert_allclose(lengths, 0 if is_open else 9, atol=1 if is_open else 1e-4)
    tolerance = {".xtc": 6e-3, ".pdb": 6e-4}.get(suffix, 1e-5)
    np.testing.assert_allclose(found, positions, atol=tolerance)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_too_short_or_not_known_is_named(tmp_path):
    state = read("helix_box.pdb")
    assert state.positions.shape == (1, 1, 48, 3)
    with pytest.raises(ValueError, match="1 x 1 frames has no 7 frames in a row"):
        recipe = trajectories.make_recipe(state, window=5, num_targets=5)
        trajectories.partition(state, recipe)
    with pytest.raises(ValueError, match="expected a divisor of 10"):
        trajectories.make_recipe(state, window=10, num_targets=3)
    with pytest.raises(ValueError, match="selects none of 48 atoms"):
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
    positions, velocities = rng.normal(size=(2, 3, 4, 3))
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
        np.testing.assert_allclose(frame.positions, positions[index], atol=1e-7)
        np.testing.assert_array_equal(frame.cell[:], cell)
        assert frame.get_chemical_symbols() == ["X"] * 4
        assert frame.pbc.tolist() == [True, True, False]
        assert ("velocities" in frame.arrays) == has_velocities
        if has_velocities:
            np.testing.assert_allclose(frame.arrays["velocities"], velocities[index], atol=1e-7)
