"""Proteins: what is read, what is refused, and what samples and splits are made of."""

from __future__ import annotations

import pickle
import struct
import sys
import types
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import egno_jax
from egno_jax import datasets
from egno_jax.datasets import protein
from egno_jax.datasets.protein import gromacs_files
from tests import protein_files
from tests.protein_files import backbone, motion, write_frames, write_psf

mda = pytest.importorskip("MDAnalysis")
pytest.importorskip("vesin")

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
RESIDUES = 6
BOX = np.array([40.0, 45.0, 50.0, 90.0, 90.0, 90.0])
SKEW = np.array([40.0, 45.0, 50.0, 75.0, 80.0, 70.0])


@pytest.fixture(scope="module")
def psf(tmp_path_factory):
    return write_psf(tmp_path_factory.mktemp("psf") / "chain.psf", RESIDUES)


def universe_of(positions, box=None, with_bonds=True):
    """The chain in memory; it shares no array with `positions`."""
    num_atoms = positions.shape[1]
    universe = mda.Universe.empty(
        num_atoms,
        n_residues=num_atoms // 5,
        atom_resindex=np.arange(num_atoms) // 5,
        trajectory=True,
    )
    universe.add_TopologyAttr("names", [*protein_files.RESIDUE] * (num_atoms // 5))
    universe.add_TopologyAttr("resnames", ["ALA"] * (num_atoms // 5))
    universe.add_TopologyAttr("charges", protein_files.charges(num_atoms // 5))
    if with_bonds:
        universe.add_TopologyAttr("bonds", protein_files.bonds(num_atoms // 5))
    universe.load_new(positions.copy(), dimensions=box)
    return universe


def trajectory_of(num_frames=40, num_residues=RESIDUES, seed=0):
    return protein.read(universe_of(motion(num_frames, num_residues, seed=seed)))


# Files


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "trr", "xyz", "pdb"])
def test_what_a_simulation_wrote_is_read(psf, tmp_path, suffix):
    written = motion(7, RESIDUES)
    path = write_frames(tmp_path / f"chain.{suffix}", written)
    found = protein.read(protein.load_universe(psf, path))
    exact = 1e-5 if suffix in ("dcd", "trr") else 6e-3
    np.testing.assert_allclose(found.positions, backbone(written), atol=exact)
    assert found.positions.dtype == np.float32
    np.testing.assert_allclose(found.charges, np.tile([-0.47, 0.07, 0.51, -0.51], RESIDUES))
    chain = np.array([(0, 1), (1, 2), (2, 3), (2, 4)])
    expected = np.concatenate([chain + 4 * residue for residue in range(RESIDUES)])[:-1]
    np.testing.assert_array_equal(found.bonds, expected)


def test_several_files_follow_one_another(psf, tmp_path):
    written = motion(9, RESIDUES)
    first = write_frames(tmp_path / "first.dcd", written[:4])
    second = write_frames(tmp_path / "second.xtc", written[4:])
    found = protein.read(protein.load_universe(psf, first, second), "all")
    np.testing.assert_allclose(found.positions, written, atol=6e-3)


@pytest.mark.parametrize("suffix", ["dcd", "xtc", "trr", "xyz", "pdb"])
@settings(deadline=None, max_examples=30)
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_trajectory_cut_within_a_frame_is_found(psf, tmp_path_factory, suffix, kept):
    folder = tmp_path_factory.mktemp("cut")
    written = motion(5, RESIDUES)
    files = [write_frames(folder / f"{n}.{suffix}", written[:n], BOX) for n in (1, 2, 3, 4, 5)]
    data = files[-1].read_bytes()
    whole = [path.stat().st_size for path in files]
    path = folder / f"chain.{suffix}"
    path.write_bytes(data[: int(kept * len(data))])
    try:
        found = protein.read(protein.load_universe(psf, path), "all")
    except ValueError as error:
        assert f"chain.{suffix}" in str(error)
    else:
        if suffix == "pdb":  # lines after the last frame may be missing
            assert path.read_text().rstrip().endswith(("ENDMDL", "END"))
        elif suffix == "xyz":  # the empty line after the last frame may be missing
            assert path.stat().st_size + 1 in whole or path.stat().st_size in whole
        else:
            assert path.stat().st_size in whole
        np.testing.assert_allclose(found.positions, written[: len(found.positions)], atol=6e-3)


@few
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_topology_cut_before_the_end_of_its_bonds_is_found(psf, tmp_path_factory, kept):
    folder = tmp_path_factory.mktemp("cut")
    text = psf.read_text()
    path, frames = folder / "cut.psf", write_frames(folder / "chain.dcd", motion(2, RESIDUES))
    path.write_text(text[: int(kept * text.index("!NTHETA"))])
    with pytest.raises(ValueError, match=r"cut\.psf"):
        protein.load_universe(path, frames)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("suffix", ["dcd", "xtc", "trr", "psf", "pdb"])
@settings(deadline=None, max_examples=40)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_gives_finite_numbers_or_a_named_error(
    psf, tmp_path_factory, suffix, where, flip
):
    folder = tmp_path_factory.mktemp("changed")
    name = "dcd" if suffix == "psf" else suffix
    frames = write_frames(folder / f"chain.{name}", motion(3, RESIDUES), BOX)
    files = {"psf": psf, name: frames}
    data = bytearray(files[suffix].read_bytes())
    data[int(where * len(data))] ^= flip
    files[suffix] = folder / f"changed.{suffix}"
    files[suffix].write_bytes(data)
    try:
        found = protein.read(protein.load_universe(files["psf"], files[name]), "all")
    except ValueError as error:
        assert str(folder) in str(error) or "selection" in str(error)
    else:
        assert np.isfinite(found.positions).all()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0, 1e3, 1e4, 4e4, 1e5])
def test_packed_coordinates_are_read_as_written_or_refused(tmp_path, scale):
    """XTC has a table of sizes; beyond its end writers write nonsense, which is not read."""
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(20):
        written = scale * rng.normal(size=(2, int(rng.integers(10, 60)), 3))
        if number % 2:  # neighbours close to each other are packed as displacements
            written = np.cumsum(written, axis=1) / 5
        path = write_frames(tmp_path / "a.xtc", written.astype(np.float32), BOX)
        try:
            gromacs_files.check_xtc(path)
        except ValueError as error:
            assert "a.xtc: frame" in str(error) or "packing from" in str(error)
            refused += 1
        else:
            universe = mda.Universe.empty(written.shape[1], trajectory=True)
            universe.load_new(str(path), refresh_offsets=True)
            found = np.stack([universe.atoms.positions.copy() for _ in universe.trajectory])
            np.testing.assert_allclose(found, written, atol=6e-3 + 1e-5 * scale)
    assert (refused > 0) == (scale > 3e4)


def packed_file(path, atoms):
    """Writes an XTC frame of 10 atoms whose coordinates are packed in 4 bits, as the atoms say.

    Each is the code after a coordinate, or None for the bit without one, and the bits that follow.
    """
    codes = ("0" if code is None else f"1{code:05b}" for code, _ in atoms)
    bits = "".join(
        "0000" + code + "0" * after for code, (_, after) in zip(codes, atoms, strict=True)
    )
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">iiif9fi", 1995, 10, 0, 0.0, *np.eye(3).ravel(), 10)
    packing = struct.pack(">f8i", 1000.0, 0, 0, 0, 1, 1, 1, 9, len(data))
    path.write_bytes(header + packing + data + b"\0" * (-len(data) % 4))
    return path


@pytest.mark.parametrize(
    "atoms, is_right",
    [
        ([(None, 0)] * 10, True),
        ([(13, 4 * 9), (None, 4 * 9)], True),  # four displacements each
        ([(5, 9)] + [(None, 10)] * 4, True),  # one each, longer from the second on
        ([(13, 4 * 9)], False),  # 5 atoms of 10
        ([(31, 10 * 9)], False),  # 11 atoms
        ([(13, 4 * 9), (None, 2 * 9)], False),  # displacements are missing
        ([(0, 0)] + [(None, 0)] * 9, False),  # shorter than the shortest
    ],
)
def test_packing_is_followed(tmp_path, atoms, is_right):
    path = packed_file(tmp_path / "a.xtc", atoms)
    if is_right:
        gromacs_files.check_xtc(path)
    else:
        with pytest.raises(ValueError, match=r"a\.xtc: frame 0 cannot be unpacked"):
            gromacs_files.check_xtc(path)


def test_files_that_hold_no_simulation_are_refused(psf, tmp_path):
    written = motion(3, RESIDUES)
    dcd = write_frames(tmp_path / "good.dcd", written)
    write_frames(tmp_path / "other.dcd", written[:, 5:])
    np.savez(tmp_path / "archive.npz", positions=written)
    np.save(tmp_path / "array.npy", written)
    (tmp_path / "pickle.psf").write_bytes(pickle.dumps({"atoms": 1}))
    (tmp_path / "archive.dcd").write_bytes((tmp_path / "archive.npz").read_bytes())
    (tmp_path / "folder.dcd").mkdir()
    for name in ("empty.psf", "empty.dcd"):
        (tmp_path / name).touch()
    for name in ("text.psf", "text.dcd", "text.xtc", "text.trr", "text.pdb", "text.abc", "t.pkl"):
        (tmp_path / name).write_text("some words that mean nothing to anyone\n" * 20)
    for topology, coordinates, message in (
        ("missing.psf", dcd, r"missing\.psf is not there"),
        (psf, "missing.dcd", r"missing\.dcd is not there"),
        ("empty.psf", dcd, r"empty\.psf: got an empty file"),
        (psf, "empty.dcd", r"empty\.dcd: got an empty file"),
        (psf, "folder.dcd", r"folder\.dcd: got a folder"),
        ("pickle.psf", dcd, r"pickle\.psf: got a pickle, which is never loaded"),
        ("t.pkl", dcd, r"t\.pkl: got the name of a pickle"),
        ("archive.npz", dcd, r"archive\.npz: got a zip or NumPy archive, which is never loaded"),
        (psf, "array.npy", r"array\.npy: got NumPy's, which is never loaded"),
        (psf, "archive.dcd", r"archive\.dcd: got a zip or NumPy archive"),
        ("text.psf", dcd, r"text\.psf: got .*expected a PSF file"),
        ("text.pdb", dcd, r"text\.pdb: got .*expected END.*not a PDB file"),
        ("text.abc", dcd, r"text\.abc: cannot be read as a topology"),
        (psf, "text.dcd", r"text\.dcd: got .*expected a DCD file"),
        (psf, "text.xtc", r"text\.xtc: got .*not a \.xtc file"),
        (psf, "text.trr", r"text\.trr: got .*not a \.trr file"),
        (psf, "other.dcd", r"other\.dcd: cannot be read as coordinates of 30 atoms"),
        (psf, psf, r"chain\.psf: cannot be read as coordinates of 30 atoms"),
    ):
        with pytest.raises(ValueError, match=message):
            protein.load_universe(tmp_path / topology, tmp_path / coordinates)
    with pytest.raises(ValueError, match=r"chain\.psf: got no coordinates"):
        protein.load_universe(psf)


def test_an_index_beside_a_trajectory_is_not_trusted(psf, tmp_path):
    """MDAnalysis keeps the places of frames in a file of NumPy's, which could be anyone's."""
    written = motion(4, RESIDUES)
    path = write_frames(tmp_path / "chain.xtc", written)
    protein.load_universe(psf, path)
    index = tmp_path / ".chain.xtc_offsets.npz"
    index.write_bytes(pickle.dumps({"offsets": None}))
    found = protein.read(protein.load_universe(psf, path), "all")
    np.testing.assert_allclose(found.positions, written, atol=6e-3)


def test_what_cannot_be_read_of_a_universe_is_said():
    positions = motion(4, RESIDUES)
    universe = universe_of(positions)
    for selection, message in (
        ("backbone and", "selection: got 'backbone and', which is not valid"),
        ("resname TRP", "selection: got 'resname TRP', which selects none of the 30 atoms"),
    ):
        with pytest.raises(ValueError, match=message):
            protein.read(universe, selection)
    with pytest.raises(ValueError, match="got 1 frames, expected at least 2"):
        protein.read(universe_of(positions[:1]))
    broken = positions.copy()
    broken[2, 2, 1] = np.nan
    with pytest.raises(
        ValueError, match="coordinate 1 of atom 1 of 'backbone' in frame 2: got nan"
    ):
        protein.read(universe_of(broken))
    for charges in (np.ones(3), np.full(24, np.nan)):
        with pytest.raises(ValueError, match="expected 24 finite numbers"):
            protein.read(universe, charges=charges)
    universe.del_TopologyAttr("charges")
    with pytest.raises(ValueError, match="charges: got None, and the topology has none"):
        protein.read(universe)
    given = np.linspace(-1, 1, 24)
    np.testing.assert_array_equal(protein.read(universe, charges=given).charges, given)


# Periodic boxes


def wrapped(positions, box):
    """Puts each atom into the box, as simulations do that know no molecules."""
    from MDAnalysis.lib.mdamath import triclinic_vectors

    cell = triclinic_vectors(box).astype(np.float64)
    fractions = positions.astype(np.float64) @ np.linalg.inv(cell)
    return ((fractions - np.floor(fractions)) @ cell).astype(np.float32)


@pytest.mark.parametrize("box", [BOX, SKEW], ids=["rectangular", "triclinic"])
@settings(deadline=None, max_examples=5)
@given(seed=seeds)
def test_a_molecule_that_crosses_its_box_is_made_whole(box, seed):
    rng = np.random.default_rng(seed)
    drift, shift = rng.normal(scale=3, size=3), rng.uniform(-100, 100, size=3)
    true = motion(60, RESIDUES, seed=seed, drift=drift) + shift.astype(np.float32)
    inside = wrapped(true, box)
    universe = universe_of(inside, np.tile(box, (60, 1)))
    found = protein.read(universe).positions
    # All that is lost is by which vectors of the lattice the whole was moved.
    moved = found - backbone(true)
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0, 0], moved.shape), atol=2e-3)
    positions = [step.positions.copy() for step in universe.trajectory]
    np.testing.assert_array_equal(positions, inside)


def test_without_bonds_jumps_are_undone_and_the_first_frame_stays():
    true = motion(60, RESIDUES, drift=(1.5, -2.0, 0.5)) + np.float32(10)
    universe = universe_of(wrapped(true, BOX), np.tile(BOX, (60, 1)), with_bonds=False)
    with pytest.warns(
        UserWarning, match="24 of the 24 selected atoms have no bond .* atom 0: they"
    ):
        found = protein.read(universe)
    np.testing.assert_allclose(found.positions, backbone(true), atol=2e-3)
    assert found.bonds.shape == (0, 2)


def test_a_topology_with_some_bonds_does_not_pass_for_whole():
    """As one with those of a CONECT record alone; without a box there is nothing to make whole."""
    true = motion(5, RESIDUES)
    for box, bonds, message in (
        (BOX, [(2, 27)], "22 of the 24 selected atoms have no bond in the topology"),
        (None, [(2, 27)], None),
        (BOX, protein_files.bonds(RESIDUES), None),
    ):
        boxes = None if box is None else np.tile(box, (5, 1))
        universe = universe_of(true if box is None else wrapped(true, box), boxes, with_bonds=False)
        universe.add_TopologyAttr("bonds", bonds)
        if message:
            with pytest.warns(UserWarning, match=message):
                protein.read(universe)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                protein.read(universe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: ["30.0", *lines[1:]], r"line 1: got '30\.0', expected a number"),
        (
            lambda lines: [*lines[:32], "x" * 999, *lines[33:]],
            r"line 33: got 'x+\.\.\., expected a",
        ),
        (lambda lines: [*lines[:32], "", *lines[32:]], "line 33: got an empty line and then '30"),
        (lambda lines: lines[:-2], "line 65: the file ends in the middle"),
    ],
)
def test_damaged_xyz_files_are_refused(psf, tmp_path, change, message):
    path = write_frames(tmp_path / "chain.xyz", motion(3, RESIDUES))
    protein.load_universe(psf, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*change(lines), ""]))
    with pytest.raises(ValueError, match=rf"chain\.xyz.*{message}"):
        protein.load_universe(psf, path)


def test_a_molecule_is_made_whole_through_atoms_that_are_not_selected():
    true = motion(5, RESIDUES)
    universe = universe_of(wrapped(true, BOX), np.tile(BOX, (5, 1)))
    found = protein.read(universe, "name CA").positions
    differences = np.diff(found, axis=1)
    np.testing.assert_allclose(differences, np.diff(true[:, 2::5], axis=1), atol=1e-3)


def test_a_frame_that_has_lost_its_box_is_found(psf, tmp_path):
    boxes = np.tile(BOX, (4, 1))
    boxes[2] = 0
    with pytest.raises(ValueError, match=r"frame 2 of 4: cannot be read .*no periodic box"):
        protein.read(universe_of(motion(4, RESIDUES), boxes))
    with pytest.raises(ValueError, match=r"frame 1 of 4: .*expected none, as in the first frame"):
        protein.read(universe_of(motion(4, RESIDUES), np.where(boxes == 0, BOX, 0)[[1, 2, 1, 2]]))


# Graphs, samples, splits


@few
@given(seed=seeds, cutoff=st.floats(1.5, 12))
def test_contacts_are_all_pairs_within_the_cutoff(seed, cutoff):
    positions = motion(3, RESIDUES, seed=seed)[:, protein_files.BACKBONE]
    rng = np.random.default_rng(seed)
    positions = np.concatenate([positions, rng.normal(scale=5, size=(3, 30, 3))], axis=1)
    trajectory = protein.Trajectory(positions, np.ones(34), np.zeros((0, 2), int))
    edges = protein.contacts(trajectory, 1, cutoff=cutoff)
    x = positions[1].astype(np.float64)
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    receivers, senders = np.nonzero((distances < cutoff) & ~np.eye(34, dtype=bool))
    np.testing.assert_array_equal(edges.receivers, receivers)
    np.testing.assert_array_equal(edges.senders, senders)
    expected = distances[receivers, senders]
    np.testing.assert_allclose(edges.features, np.stack([expected, expected**2], 1), 1e-5, 1e-6)


@few
@given(seed=seeds, window=st.integers(1, 9), num_targets=st.integers(1, 4))
def test_samples_are_what_the_trajectory_says(seed, window, num_targets):
    num_targets = min(num_targets, window)
    trajectory = trajectory_of(seed=seed)
    starts = np.array([3, 0, 29])
    found = protein.samples(
        trajectory, starts, cutoff=5.0, window=window, num_targets=num_targets, dtype=np.float64
    )
    datasets.validate(found)
    x = trajectory.positions.astype(np.float64)
    times = window * np.arange(1, num_targets + 1) // num_targets
    np.testing.assert_array_equal(found.times, times)
    for sample, start in enumerate(starts):
        nodes = found.graph.nodes
        frames = start + times
        np.testing.assert_allclose(nodes["positions"][sample, :24], x[start])
        np.testing.assert_allclose(nodes["velocities"][sample, :24], x[start + 1] - x[start])
        np.testing.assert_allclose(found.positions[sample, :, :24], x[frames])
        np.testing.assert_allclose(found.velocities[sample, :, :24], x[frames + 1] - x[frames])
        speeds = np.linalg.norm(x[start + 1] - x[start], axis=-1)
        expected = np.stack([speeds, trajectory.charges / 0.51], axis=-1)
        np.testing.assert_allclose(nodes["features"][sample, :24], expected, rtol=1e-6)
        edges = protein.contacts(trajectory, start, cutoff=5.0)
        count = len(edges.senders)
        assert found.graph.n_edge[sample, 0] == count and found.graph.n_node[sample, 0] == 24
        np.testing.assert_array_equal(found.graph.senders[sample, :count], edges.senders)
        np.testing.assert_allclose(found.graph.edges["features"][sample, :count], edges.features)
    np.testing.assert_array_equal(found.node_mask, np.tile(np.arange(25) < 24, (3, 1)))
    paths = protein.paths(trajectory, starts, window=window)
    np.testing.assert_allclose(paths[:, times], found.positions[:, :, :24], atol=1e-6)


def test_padding_of_edges_changes_no_prediction():
    trajectory = trajectory_of()
    starts = np.array([0, 7, 20])
    most = protein.most_contacts(trajectory, starts, cutoff=5.0)
    counts = [len(protein.contacts(trajectory, start, cutoff=5.0).senders) for start in starts]
    assert most == max(counts)
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, time_embed_dim=4)
    params, predicted = None, []
    for num_edges in (None, most + 57):
        samples = protein.samples(trajectory, starts, cutoff=5.0, num_edges=num_edges)
        assert samples.graph.senders.shape == (3, num_edges or most)
        batch = datasets.take(samples, np.arange(3))
        if params is None:
            init = jax.jit(egno_jax.init, static_argnums=1)
            params = init(jax.random.key(0), config, batch.graph, batch.times)
        found = jax.jit(egno_jax.apply)(params, batch.graph, batch.times).positions
        predicted.append(np.asarray(found)[:, np.asarray(batch.node_mask)])
    np.testing.assert_allclose(predicted[0], predicted[1], atol=1e-5)


def test_samples_that_cannot_be_made_are_refused():
    trajectory = trajectory_of()
    with pytest.raises(
        ValueError,
        match=r"no two of 24 atoms are within 0\.5 Angstrom in frame 2",
    ):
        protein.samples(trajectory, np.array([2]), cutoff=0.5)
    with pytest.raises(
        ValueError, match=r"num_edges: got 10, expected at least \d+, the edges of sample 0"
    ):
        protein.samples(trajectory, np.array([2]), cutoff=5.0, num_edges=10)
    with pytest.raises(ValueError, match=r"starts\[1\]: got 24, expected 0 to 23"):
        protein.samples(trajectory, np.array([0, 24]))
    with pytest.raises(ValueError, match="starts: got float64"):
        protein.samples(trajectory, np.zeros(2))
    with pytest.raises(ValueError, match="num_targets: got 4, expected an integer from 1 to 3"):
        protein.samples(trajectory, np.array([0]), window=3)
    with pytest.raises(ValueError, match=r"cutoff: got .*expected a finite"):
        protein.contacts(trajectory, 0, cutoff=-1.0)


def test_charges_that_say_nothing_are_zeros():
    trajectory = trajectory_of()._replace(charges=np.zeros(24))
    found = protein.samples(trajectory, np.array([0]), cutoff=5.0)
    assert not found.graph.nodes["features"][..., 1].any()


@settings(deadline=None)
@given(num_frames=st.integers(1, 400), window=st.integers(1, 20), stride=st.integers(1, 3))
def test_splits_share_no_time(num_frames, window, stride):
    least = 5 * (window + 3) + 2 * window
    try:
        starts = protein.block_starts(num_frames, window=window, stride=stride)
    except ValueError as error:
        assert f"of {num_frames} frames is too short" in str(error) and num_frames < least
        return
    last = -window - 1
    for block in starts:
        # A window's time lies between the frames that two partitions touch.
        assert block[0] - last > window and (np.diff(block) == stride).all()
        last = block[-1] + window + 1
    assert last < num_frames
    if stride == 1:
        lengths = np.array([block[-1] - block[0] + window + 2 for block in starts])
        assert lengths.sum() == num_frames - 2 * window
        np.testing.assert_allclose(lengths, np.array([0.6, 0.2, 0.2]) * lengths.sum(), atol=1)


def test_splits_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="valid: its block of 13 of 98 frames is too short"):
        protein.block_starts(98, window=16)
    for wrong, message in (
        ({"window": 0}, "window: got 0"),
        ({"stride": 0}, "stride: got 0"),
        ({"fractions": (0.5, 0.5)}, "three that add up to 1"),
        ({"fractions": (0.5, 0.4, 0.2)}, "three that add up to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            protein.block_starts(98, **wrong)
    with pytest.raises(ValueError, match=r"num_frames: got 100\.5, expected an integer"):
        protein.block_starts(100.5)


# Adenylate kinase; the real files are not read in tests


def test_the_transition_is_that_of_mdanalysistests(psf, tmp_path, monkeypatch):
    dcd = write_frames(tmp_path / "chain.dcd", motion(4, RESIDUES))
    files = types.SimpleNamespace(PSF=str(psf), DCD=str(dcd))
    monkeypatch.setitem(sys.modules, "MDAnalysisTests", types.ModuleType("MDAnalysisTests"))
    monkeypatch.setitem(sys.modules, "MDAnalysisTests.datafiles", files)
    assert protein.load_transition().positions.shape == (4, 24, 3)
    assert protein.load_transition("name CA").positions.shape == (4, RESIDUES, 3)


def test_the_equilibrium_is_that_of_mdanalysisdata(psf, tmp_path, monkeypatch):
    dcd = write_frames(tmp_path / "chain.dcd", motion(4, RESIDUES))
    asked = []

    def fetch(data_home):
        asked.append(data_home)
        if len(asked) == 3:
            raise OSError("no network")
        return types.SimpleNamespace(topology=str(psf), trajectory=str(dcd))

    module = types.SimpleNamespace(fetch_adk_equilibrium=fetch)
    monkeypatch.setitem(sys.modules, "MDAnalysisData", types.ModuleType("MDAnalysisData"))
    monkeypatch.setitem(sys.modules, "MDAnalysisData.adk_equilibrium", module)
    monkeypatch.delenv("EGNO_DATA_DIR", raising=False)
    assert protein.load_equilibrium().positions.shape == (4, 24, 3)
    monkeypatch.setenv("EGNO_DATA_DIR", "data")
    protein.load_equilibrium(data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"could not be downloaded \(no network\)"):
        protein.load_equilibrium()
    assert asked == [None, str(tmp_path), "data"]


@pytest.mark.parametrize(
    ("package", "extra", "load"),
    [
        ("MDAnalysis", "data", lambda: protein.load_universe("a.psf")),
        ("MDAnalysisTests", "protein", protein.load_transition),
        ("MDAnalysisData", "protein", protein.load_equilibrium),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, extra, load):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}, which is not installed.*\[{extra}\]"):
        load()
