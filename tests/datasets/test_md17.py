"""Molecules: what is read, what is refused, and what samples and splits are made of."""

from __future__ import annotations

import itertools
import json
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import datasets
from egno_jax.datasets import md17

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)

# Ethanol: carbon, carbon, oxygen, and hydrogens far enough from one another.
ETHANOL = np.array(
    [
        [0.00, 0.00, 0.00],
        [1.51, 0.00, 0.00],
        [2.03, 1.33, 0.00],
        [-0.37, 1.02, 0.00],
        [-0.38, -0.52, 0.88],
        [-0.38, -0.52, -0.88],
        [1.88, -0.54, 0.88],
        [1.88, -0.54, -0.88],
        [2.99, 1.27, 0.00],
    ]
)
NUMBERS = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])


def trembling_ethanol(num_frames=200, seed=0, dtype=np.float64):
    """A trajectory that swings about the structure above; frame 0 is that structure."""
    rng = np.random.default_rng(seed)
    amplitudes, phases = rng.normal(scale=0.05, size=(2, *ETHANOL.shape))
    times = np.arange(num_frames)[:, None, None]
    swings = amplitudes * (np.sin(0.1 * times + 50 * phases) - np.sin(50 * phases))
    return md17.Trajectory((ETHANOL + swings).astype(dtype), NUMBERS)


def save(path, **members):
    np.savez(path, **members)
    return path


# Files


@few
@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float64]))
def test_read_returns_what_write_was_given(tmp_path_factory, seed, dtype):
    path = tmp_path_factory.mktemp("md") / "deep" / "ethanol.npz"
    trajectory = trembling_ethanol(5, seed, dtype)._replace(
        source="a method", provenance={"seed": seed, "nested": {"smiles": "CCO"}}
    )
    md17.write(path, trajectory)
    found = md17.read(path)
    assert found.positions.dtype == dtype
    np.testing.assert_array_equal(found.positions, trajectory.positions)
    np.testing.assert_array_equal(found.numbers, NUMBERS)
    assert (found.source, found.provenance) == ("a method", trajectory.provenance)
    assert [p.name for p in path.parent.iterdir()] == ["ethanol.npz"]


@few
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_is_found(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("md") / "ethanol.npz"
    md17.write(path, trembling_ethanol(5))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"ethanol\.npz(: |, | is )"):
        md17.read(path)


@settings(deadline=None, max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_harmless_or_found(tmp_path_factory, where, flip):
    path = tmp_path_factory.mktemp("md") / "ethanol.npz"
    trajectory = trembling_ethanol(5)._replace(source="a method", provenance={"seed": 1})
    md17.write(path, trajectory)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= flip
    path.write_bytes(data)
    try:
        found = md17.read(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(found.positions, trajectory.positions)
        np.testing.assert_array_equal(found.numbers, NUMBERS)
        # The name of a field that need not be there is the one thing that can go unnoticed.
        assert found.source in ("a method", "unknown")


POSITIONS = trembling_ethanol(4).positions
BROKEN = POSITIONS.copy()
BROKEN[2, 7, 1] = np.nan
COINCIDENT = POSITIONS.copy()
COINCIDENT[2, 7] = COINCIDENT[2, 4]
PROVENANCE = {"format_version": 1, "source": "xtb"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"R": POSITIONS}, r"got fields \['R'\], expected R and z"),
        ({"z": NUMBERS, "E": POSITIONS}, r"got fields \['E', 'z'\], expected R and z"),
        ({"coords": POSITIONS, "nuclear_charges": NUMBERS}, "rMD17.*order of time"),
        (
            {"R": POSITIONS[0], "z": NUMBERS},
            r"R: got float64 \[9, 3\], expected floating \[T, N, 3\]",
        ),
        ({"R": POSITIONS[..., :2], "z": NUMBERS}, r"R.* float64 \[4, 9, 2\]"),
        ({"R": POSITIONS.astype(int), "z": NUMBERS}, "R.* int64"),
        ({"R": POSITIONS, "z": NUMBERS[:8]}, r"z.* int64 \[8\]"),
        ({"R": POSITIONS, "z": NUMBERS.astype(float)}, "z.* float64"),
        ({"R": POSITIONS, "z": NUMBERS - 1}, r"z\[3\]: got 0, expected an atomic number"),
        ({"R": POSITIONS[:1], "z": NUMBERS}, "1 frames of 9 atoms"),
        ({"R": POSITIONS[:, :0], "z": NUMBERS[:0]}, "4 frames of 0 atoms"),
        ({"R": BROKEN, "z": NUMBERS}, r"R\[2, 7, 1\]: got nan, expected a finite"),
        ({"R": np.array([{}]), "z": NUMBERS}, "got a pickle of Python objects"),
        (
            {"R": POSITIONS, "z": NUMBERS, "provenance": "{"},
            "provenance: got .*expected what egno_jax writes",
        ),
        (
            {"R": POSITIONS, "z": NUMBERS, "provenance": "{}"},
            "provenance: got .*expected what egno_jax writes",
        ),
        (
            {"R": POSITIONS, "z": NUMBERS, "provenance": json.dumps(PROVENANCE | {"source": 3})},
            "source 3, expected a text",
        ),
        (
            {
                "R": POSITIONS,
                "z": NUMBERS,
                "provenance": json.dumps(PROVENANCE | {"format_version": 2}),
            },
            "format version 2, expected 1",
        ),
        *(
            (
                {"R": POSITIONS, "z": NUMBERS, "provenance": json.dumps(provenance)},
                "source 'MD17' and molecule .*, expected one of its molecules",
            )
            for provenance in (
                PROVENANCE | {"source": "MD17"},
                PROVENANCE | {"source": "MD17", "molecule": "foo"},
                PROVENANCE | {"source": "MD17", "molecule": ["ethanol"]},
            )
        ),
        ({"R": COINCIDENT, "z": NUMBERS}, r"R\[2\]: got atoms 4 and 7 both at \[-0\."),
    ],
)
def test_archives_that_hold_no_trajectory_are_refused(tmp_path, members, message):
    path = save(tmp_path / "bad.npz", **members)
    with pytest.raises(ValueError, match=rf"(?s)bad\.npz[:,] .*{message}"):
        md17.read(path)


def test_files_of_another_kind_are_refused(tmp_path):
    for name, text, message in (
        ("empty.npz", "", "got an empty file"),
        ("text.npz", "not a zip file", r"got b'not ' at its start, expected an \.npz archive"),
        ("data.pdb", "ATOM", "expected a suffix of"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}:? ?.*{message}"):
            md17.read(tmp_path / name)
    np.save(tmp_path / "array.npy", POSITIONS)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(ValueError, match=r"expected an \.npz archive"):
        md17.read(tmp_path / "array.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="got a folder"):
        md17.read(tmp_path / "folder.npz")
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        md17.read(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match=r"expected the suffix '\.npz'"):
        md17.write(tmp_path / "out.xyz", trembling_ethanol(3))


def test_a_pickle_is_never_loaded(tmp_path):
    """Not even one that calls itself an archive, or hides in one."""
    pickle = b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n(S'touch x'\ntR."
    (tmp_path / "bare.npz").write_bytes(pickle)
    with pytest.raises(ValueError, match=r"bare\.npz"):
        md17.read(tmp_path / "bare.npz")
    with zipfile.ZipFile(tmp_path / "inside.npz", "w") as file:
        file.writestr("R.npy", pickle)
        file.writestr("z.npy", pickle)
    with pytest.raises(ValueError, match=r"inside\.npz"):
        md17.read(tmp_path / "inside.npz")


def test_only_an_archive_with_all_marks_of_the_original_is_taken_for_it(tmp_path, monkeypatch):
    molecule = md17.MOLECULES["ethanol"]._replace(num_frames=4)
    monkeypatch.setitem(md17.MOLECULES, "ethanol", molecule)
    marks = {"R": POSITIONS, "z": NUMBERS, "E": np.zeros((4, 1)), "F": np.zeros_like(POSITIONS)}
    original = md17.read(save(tmp_path / "a.npz", **marks))
    assert original.source == md17.ORIGINAL and original.provenance == {"molecule": "ethanol"}
    for change in (
        {"R": POSITIONS[:3]},
        {"z": np.where(NUMBERS == 8, 7, NUMBERS)},
        {"provenance": json.dumps(PROVENANCE)},
    ):
        assert md17.read(save(tmp_path / "b.npz", **(marks | change))).source != md17.ORIGINAL
    for missing in ("E", "F"):
        members = {name: value for name, value in marks.items() if name != missing}
        assert md17.read(save(tmp_path / "c.npz", **members)).source == md17.UNKNOWN


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"R": np.tile(POSITIONS, (2, 1, 1))},
        {"E": np.zeros((4, 1))},
        {"E": np.zeros((4, 1)), "F": POSITIONS, "R": POSITIONS[:3]},
        {"E": np.zeros((4, 1)), "F": POSITIONS, "z": np.where(NUMBERS == 8, 7, NUMBERS)},
        {"E": np.zeros((4, 1)), "F": POSITIONS, "provenance": json.dumps(PROVENANCE)},
    ],
)
def test_a_file_that_calls_itself_the_original_is_not_taken_for_it(tmp_path, monkeypatch, change):
    molecule = md17.MOLECULES["ethanol"]._replace(num_frames=4)
    monkeypatch.setitem(md17.MOLECULES, "ethanol", molecule)
    claim = PROVENANCE | {"source": "MD17", "molecule": "ethanol"}
    path = md17.path_of("ethanol", archive="md17", data_dir=tmp_path)
    path.parent.mkdir()
    members = {"R": POSITIONS, "z": NUMBERS, "provenance": json.dumps(claim)}
    save(path, **(members | change))
    with pytest.raises(
        ValueError, match=r"md17_ethanol\.npz: .*not MD17's ethanol, expected 4 frames"
    ):
        md17.load_trajectory("ethanol", archive="md17", data_dir=tmp_path)


def test_what_is_written_says_nothing_of_its_origin_that_is_not_read(tmp_path):
    for provenance in (None, {"molecule": "foo"}, {"molecule": ["ethanol"]}):
        wrong = trembling_ethanol(3)._replace(source=md17.ORIGINAL, provenance=provenance)
        with pytest.raises(ValueError, match="source 'MD17' and molecule"):
            md17.write(tmp_path / "w.npz", wrong)
    assert not list(tmp_path.iterdir())
    right = trembling_ethanol(3)._replace(source=md17.ORIGINAL, provenance={"molecule": "ethanol"})
    md17.write(tmp_path / "w.npz", right)
    assert md17.read(tmp_path / "w.npz").provenance == right.provenance


def test_molecules_are_those_of_their_formulas():
    for name, molecule in md17.MOLECULES.items():
        letters = [letter for letter in molecule.smiles.upper() if letter in "CON"]
        heavy = {z: count for z, count in molecule.counts.items() if z > 1}
        assert {6: letters.count("C"), 7: letters.count("N"), 8: letters.count("O")} == {
            6: 0,
            7: 0,
            8: 0,
        } | heavy, name
        atoms = [atom for pair in molecule.sticks for atom in pair]
        assert len(set(atoms)) == len(atoms) and max(atoms) < sum(heavy.values()), name


# Files of ASE


def atoms_of(trajectory):
    ase = pytest.importorskip("ase")
    return [ase.Atoms(trajectory.numbers, positions=x) for x in trajectory.positions]


@pytest.mark.parametrize("name", ["ethanol.xyz", "ethanol.extxyz", "ethanol.traj"])
def test_frames_of_ase_are_read(tmp_path, name):
    frames = atoms_of(trembling_ethanol(5))
    for atoms in frames:
        atoms.set_momenta(np.ones((9, 3)))  # more columns than the reader needs
    pytest.importorskip("ase.io").write(tmp_path / name, frames)
    found = md17.read(tmp_path / name)
    np.testing.assert_allclose(found.positions, trembling_ethanol(5).positions, atol=1e-7)
    np.testing.assert_array_equal(found.numbers, NUMBERS)
    assert found.source == md17.UNKNOWN


def xyz_lines(tmp_path, trajectory=None):
    trajectory = trembling_ethanol(4) if trajectory is None else trajectory
    pytest.importorskip("ase.io").write(tmp_path / "x.xyz", atoms_of(trajectory))
    return (tmp_path / "x.xyz").read_text().splitlines()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: lines[:-3],
            "frame 3: cannot be read.*ends in the middle.*expected 11 lines",
        ),
        (lambda lines: [*lines[:33], "8", *lines[34:]], "frame 3: got 8 atoms, expected 9"),
        (lambda lines: [*lines[:22], "10", *lines[23:]], "frame 2: cannot be read"),
        (lambda lines: [*lines[:11], "-9", *lines[12:]], "frame 1: cannot .*'-9', expected a num"),
        (lambda lines: [*lines[:11], "9" * 9, *lines[12:]], "frame 1: cannot .*ends in the middle"),
        (lambda lines: [*lines[:11], "9" * 9999, *lines[12:]], r"frame 1: cannot .*'9+\.\.\., exp"),
        (
            lambda lines: [line.replace(":pos:R:3", ":vel:R:3") for line in lines],
            "frame 0: cannot be read.*Properties: got 'species:S:1:vel:R:3', expected pos:R:3",
        ),
        (  # ASE would make as many columns, for ever
            lambda lines: [line.replace("species:S:1", "species:S:" + "9" * 30) for line in lines],
            "frame 0: cannot be read.*Properties: got '9+' columns, expected a number up to 9999",
        ),
        (lambda lines: [*lines[:17], lines[16], *lines[18:]], r"positions\[1\]: got atoms"),
        (lambda lines: [*lines[:14], "C 0.1 zero 0.3", *lines[15:]], "frame 1: cannot be read"),
        (
            lambda lines: [*lines[:11], "nine", *lines[12:]],
            "frame 1: cannot be read.*'nine', expected",
        ),
        (lambda lines: [*lines[:22], "", *lines[22:]], "frame 2: cannot be read.*an empty line"),
        (
            lambda lines: [*lines[:24], "N 0 0 0", *lines[25:]],
            "frame 2: atom [0-9] is N",
        ),
        (lambda lines: lines[:11], "1 frames of 9 atoms"),
        (lambda lines: [""], "got no frames"),
        (
            lambda lines: [*lines[:12], 'Lattice="9 0 0 0 9 0 0 0 9"', *lines[13:]],
            r"frame 1: got pbc \[True.*expected \[False",
        ),
        (
            lambda lines: [
                'Lattice="9 0 0 0 9 0 0 0 9"' if "Properties" in line else line for line in lines
            ],
            r"got pbc \[True.*trajectories.read or egno-jax train.*unwrap",
        ),
    ],
)
def test_damaged_xyz_files_name_the_frame(tmp_path, change, message):
    lines = change(xyz_lines(tmp_path))
    (tmp_path / "x.xyz").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"(?s)x\.xyz:? .*{message}"):
        md17.read(tmp_path / "x.xyz")


def test_an_xyz_file_cut_anywhere_but_between_frames_is_refused(tmp_path):
    trajectory = md17.heavy_atoms(trembling_ethanol(3))
    data = "\n".join([*xyz_lines(tmp_path, trajectory), ""])
    whole = trajectory.positions
    ends = [k * len(data) // 3 for k in range(4)]
    assert all(data[end : end + 2] == "3\n" for end in ends[:-1])
    for size in range(len(data) + 1):
        (tmp_path / "cut.xyz").write_text(data[:size])
        try:
            found = md17.read(tmp_path / "cut.xyz").positions
        except ValueError as error:
            assert "cut.xyz" in str(error) and (size not in ends or size <= ends[1])
        else:
            assert size in ends
            np.testing.assert_allclose(found, whole[: len(found)], atol=1e-7)


@few
@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_ase_trajectory_is_found(tmp_path_factory, kept):
    path = tmp_path_factory.mktemp("md") / "x.traj"
    pytest.importorskip("ase.io").write(path, atoms_of(trembling_ethanol(4)))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    try:
        found = md17.read(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:  # Its index is in the middle; the bytes after it may not be needed.
        np.testing.assert_array_equal(found.positions, trembling_ethanol(4).positions)


# Graphs


def test_the_original_graph_by_hand():
    """Carbon 0, carbon 1, oxygen 2 in a row; the stick is the bond 0-1."""
    pytest.importorskip("vesin")
    edges = md17.bond_graph(md17.heavy_atoms(trembling_ethanol()))
    table = np.column_stack([edges.receivers, edges.senders, edges.features])
    np.testing.assert_array_equal(
        table,
        [
            [0, 1, 6, 6, 1, 1],
            [0, 2, 6, 8, 2, 0],
            [1, 0, 6, 6, 1, 1],
            [1, 2, 6, 8, 1, 0],
            [2, 0, 8, 6, 2, 0],
            [2, 1, 8, 6, 1, 0],
        ],
    )


def rebuilt(trajectory, cutoff=1.6):
    """The edges as the original code finds them: two loops and a matrix product."""
    x, z = trajectory.positions[0], trajectory.numbers
    n = len(z)
    near = np.zeros((n, n), int)
    for i, j in itertools.permutations(range(n), 2):
        near[i, j] = np.sqrt(np.sum((x[i] - x[j]) ** 2)) < cutoff
    twice = near @ near
    return [
        (i, j, z[i], z[j], 1 if near[i, j] else 2)
        for i, j in itertools.permutations(range(n), 2)
        if near[i, j] or twice[i, j]
    ]


@few
@given(seed=seeds, num_atoms=st.integers(2, 12))
def test_edges_are_the_originals(seed, num_atoms):
    """On chains that curl at random, of C, N and O."""
    pytest.importorskip("vesin")
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(num_atoms, 3))
    steps *= 1.4 / np.linalg.norm(steps, axis=1, keepdims=True)
    trajectory = md17.Trajectory(
        np.stack([np.cumsum(steps, axis=0)] * 2), rng.choice([6, 7, 8], num_atoms)
    )
    edges = md17.bond_graph(trajectory, sticks=[])
    found = np.column_stack([edges.receivers, edges.senders, edges.features])
    np.testing.assert_array_equal(found[:, :5], rebuilt(trajectory))
    assert not found[:, 5].any()


def test_all_atoms_are_bound_as_chemistry_has_it():
    pytest.importorskip("vesin")
    close = trembling_ethanol()
    close.positions[0, 4] = [-0.3, 0.6, 1.1]  # 1.27 from another hydrogen
    bonds = md17.bonds(close)
    assert len(bonds) == 8
    assert not (NUMBERS[bonds] == 1).all(axis=1).any()


def test_sticks_share_no_atom_and_are_those_of_the_archive_where_it_is_read():
    pytest.importorskip("vesin")
    heavy = md17.heavy_atoms(trembling_ethanol())
    rng = np.random.default_rng(0)
    for _ in range(20):
        bonds = np.unique(np.sort(rng.integers(10, size=(12, 2)), axis=1), axis=0)
        bonds = bonds[bonds[:, 0] != bonds[:, 1]]
        chosen = md17.default_sticks(heavy, bonds)
        atoms = [atom for pair in chosen for atom in pair]
        assert len(set(atoms)) == len(atoms)
        assert all(set(bond) & set(atoms) for bond in bonds.tolist())  # no bond is left free
    numbers = np.array([6] * 7 + [8] * 3 + [6] * 2 + [8])
    aspirin = md17.Trajectory(np.zeros((2, 13, 3)), numbers, md17.ORIGINAL, {"molecule": "aspirin"})
    assert md17.default_sticks(aspirin, bonds)[3] == (7, 10)
    for molecule in ("aspirin", "foo", ["ethanol"], None):  # these are not its atoms
        other = heavy._replace(source=md17.ORIGINAL, provenance={"molecule": molecule})
        assert md17.default_sticks(other, np.array([[1, 2]])) == [(1, 2)]
    assert md17.default_sticks(heavy._replace(source=md17.ORIGINAL), bonds) == chosen
    with pytest.raises(ValueError, match=r"sticks: got \(0, 3\), expected two of 3 atoms"):
        md17.bond_graph(heavy, sticks=[(0, 3)])


def test_an_atom_without_bonds_is_named():
    pytest.importorskip("vesin")
    chloride = trembling_ethanol()
    chloride.positions[:, 2] *= 3
    with pytest.raises(
        ValueError,
        match=r"of 3 atoms, atom 2 \(Z = 8\) has no other within 1\.6 Angstrom",
    ):
        md17.bonds(md17.heavy_atoms(chloride))
    methane = md17.select(trembling_ethanol(), [0])
    with pytest.raises(ValueError, match=r"of 1 atoms, atom 0 .* has no other"):
        md17.bonds(methane)
    with pytest.raises(ValueError, match="atoms: got none of 9"):
        md17.select(trembling_ethanol(), NUMBERS > 8)


# Samples


def some_samples(seed=0, window=80, num_targets=8, num_samples=6):
    trajectory = md17.heavy_atoms(trembling_ethanol(seed=seed))
    starts = np.random.default_rng(seed).integers(200 - window - 1, size=num_samples)
    pytest.importorskip("vesin")
    edges = md17.bond_graph(trajectory)
    cut = md17.samples(trajectory, starts, edges, window=window, num_targets=num_targets)
    return trajectory, starts, cut


@few
@given(seed=seeds, window=st.integers(8, 100), num_targets=st.integers(1, 8))
def test_samples_are_frames_of_the_trajectory(seed, window, num_targets):
    trajectory, starts, cut = some_samples(seed, window, num_targets)
    offsets = [window * p // num_targets for p in range(1, num_targets + 1)]
    np.testing.assert_array_equal(cut.times, offsets)
    x = trajectory.positions
    for s, t in enumerate(starts):
        nodes = jax.tree.map(lambda leaf, s=s: leaf[s], cut.graph.nodes)
        np.testing.assert_allclose(nodes["positions"], x[t], atol=1e-6)
        np.testing.assert_allclose(nodes["velocities"], x[t + 1] - x[t], atol=1e-6)
        speeds = np.linalg.norm(x[t + 1] - x[t], axis=-1)
        np.testing.assert_allclose(nodes["features"][:, 0], speeds, atol=1e-6)
        np.testing.assert_allclose(nodes["features"][:, 1], [0.75, 0.75, 1.0])
        for p, offset in enumerate(offsets):
            np.testing.assert_allclose(cut.positions[s, p], x[t + offset], atol=1e-6)
            step = x[t + offset + 1] - x[t + offset]
            np.testing.assert_allclose(cut.velocities[s, p], step, atol=1e-6)
        senders, receivers = cut.graph.senders[s], cut.graph.receivers[s]
        squares = np.sum((x[t][receivers] - x[t][senders]) ** 2, axis=-1)
        np.testing.assert_allclose(cut.graph.edges["features"][s, :, -1], squares, rtol=1e-5)
    assert cut.graph.edges["features"].shape[-1] == 5
    datasets.validate(cut)


@few
@given(seed=seeds)
def test_features_do_not_turn_with_the_molecule(seed):
    trajectory, starts, cut = some_samples(seed)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turned = trajectory._replace(positions=trajectory.positions @ q.T + 5.0)
    edges = md17.bond_graph(turned)
    again = md17.samples(turned, starts, edges, window=80)
    np.testing.assert_allclose(
        again.graph.nodes["features"], cut.graph.nodes["features"], atol=1e-5
    )
    np.testing.assert_allclose(
        again.graph.edges["features"], cut.graph.edges["features"], atol=1e-4
    )
    np.testing.assert_allclose(again.positions, cut.positions @ q.T + 5.0, atol=1e-5)


@few
@given(seed=seeds, radius=st.floats(1.0, 4.0))
def test_radius_graphs_join_what_is_near_in_each_state(seed, radius):
    pytest.importorskip("vesin")
    trajectory = trembling_ethanol(seed=seed)
    starts = np.array([0, 31, 77])
    cut = md17.radius_samples(trajectory, starts, radius=radius, window=80)
    assert cut.positions.shape == (3, 8, 10, 3)
    np.testing.assert_array_equal(cut.node_mask, [[True] * 9 + [False]] * 3)
    for s, t in enumerate(starts):
        x = trajectory.positions[t].astype(np.float32).astype(np.float64)
        distances = np.linalg.norm(x[:, None] - x[None], axis=-1) + 99 * np.eye(9)
        count = cut.graph.n_edge[s, 0]
        pairs = np.stack([cut.graph.receivers[s, :count], cut.graph.senders[s, :count]], axis=1)
        np.testing.assert_array_equal(pairs, np.argwhere(distances < radius))
        expected = np.column_stack([NUMBERS[pairs], distances[tuple(pairs.T)] ** 2])
        np.testing.assert_allclose(
            cut.graph.edges["features"][s, :count], expected, rtol=1e-4, atol=1e-4
        )
    datasets.validate(cut)


def test_radius_samples_are_batched_like_all_others():
    pytest.importorskip("vesin")
    cut = md17.radius_samples(trembling_ethanol(), np.array([0, 5, 9]), radius=2.0, window=80)
    batch = datasets.take(cut, jnp.array([2, 0]))
    assert batch.graph.senders.max() < 20 and batch.node_mask.sum() == 18
    with pytest.raises(ValueError, match="num_edges"):
        md17.radius_samples(trembling_ethanol(), np.array([0]), num_edges=3, window=80)


@few
@given(seed=seeds, window=st.integers(2, 60))
def test_windows_run_backwards_are_their_frames_in_reverse(seed, window):
    trajectory = md17.heavy_atoms(trembling_ethanol(seed=seed))
    starts = np.array([1, 50, 200 - window - 2])
    backwards, again = md17.reverse_time(trajectory, starts, window=window)
    for t, b in zip(starts, again, strict=True):
        np.testing.assert_array_equal(
            backwards.positions[b : b + window + 1],
            trajectory.positions[t : t + window + 1][::-1],
        )
        # The last velocity looks one frame beyond, which exists.
        assert 0 <= b and b + window + 1 < 200
    twice, first = md17.reverse_time(backwards, again, window=window)
    np.testing.assert_array_equal(twice.positions, trajectory.positions)
    np.testing.assert_array_equal(first, starts)
    with pytest.raises(ValueError, match="got frame 0"):
        md17.reverse_time(trajectory, np.array([0]), window=window)


@few
@given(window=st.integers(8, 100), num_targets=st.integers(1, 8), per_target=st.integers(1, 9))
def test_paths_pass_through_the_targets(window, num_targets, per_target):
    trajectory, starts, cut = some_samples(1, window, num_targets)
    paths = md17.paths(
        trajectory, starts, window=window, num_targets=num_targets, frames_per_target=per_target
    )
    assert paths.shape[1] == num_targets * per_target + 1
    np.testing.assert_allclose(paths[:, 0], cut.graph.nodes["positions"], atol=1e-6)
    np.testing.assert_allclose(paths[:, per_target::per_target], cut.positions, atol=1e-6)


def test_windows_that_do_not_fit_are_refused():
    trajectory = md17.heavy_atoms(trembling_ethanol())
    pytest.importorskip("vesin")
    edges = md17.bond_graph(trajectory)
    md17.samples(trajectory, np.array([118]), edges, window=80)
    for starts, message in (
        ([118, 119], r"starts\[1\]: got 119, expected 0 to 118: the trajectory has 200 frames"),
        ([-1], r"starts\[0\]: got -1"),
        ([], r"starts: got float64 \[0\]"),
        ([0.5], "starts: got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            md17.samples(trajectory, np.array(starts), edges, window=80)
    with pytest.raises(ValueError, match="num_targets: got 9, expected an integer from 1 to 8"):
        md17.target_offsets(8, 9)
    all_atoms = md17.bond_graph(trembling_ethanol())
    with pytest.raises(ValueError, match="edges: got nodes 0 to 8, expected 0 to 2"):
        md17.samples(trajectory, np.array([0]), all_atoms, window=80)


# Splits


def originals(num_frames):
    """The original's split, as its code draws it."""
    legacy = np.random.RandomState(100)
    frames = np.arange(num_frames - 1)[10000:-10000]
    chosen, rest = [], np.arange(len(frames))
    for fraction in (0.1, 0.05, 0.05):
        chosen.append(legacy.choice(rest, size=int(fraction * len(frames)), replace=False))
        rest = np.setdiff1d(rest, chosen[-1])
    return [indices + 10000 for indices in chosen]


@pytest.mark.parametrize("num_frames", [61_000, 65_000])
def test_random_starts_are_the_originals(num_frames):
    found = md17.random_starts(num_frames)
    for starts, expected, size in zip(found, originals(num_frames), md17.SIZES, strict=True):
        np.testing.assert_array_equal(starts, expected[:size])


def test_a_trajectory_of_60000_frames_is_enough_for_all_samples():
    for draw in (md17.random_starts, md17.block_starts):
        assert tuple(map(len, draw(60_000))) == md17.SIZES
    np.testing.assert_array_equal(md17.random_starts(60_000).train, originals(60_000)[0][:500])


splits = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))


@few
@given(
    num_frames=st.integers(50, 5000), sizes=splits, window=st.integers(1, 100), seed=st.integers(0)
)
def test_blocks_share_no_time(num_frames, sizes, window, seed):
    try:
        starts = md17.block_starts(num_frames, sizes, window=window, seed=seed % 2**32)
    except ValueError as error:
        assert f"{num_frames} frames" in str(error)
        return
    touched = []
    for frames, size in zip(starts, sizes, strict=True):
        assert len(set(frames.tolist())) == size
        touched.append((frames.min() - 1, frames.max() + window + 1))
    assert touched[0][0] >= 0 and touched[2][1] < num_frames
    for before, after in itertools.pairwise(touched):
        assert after[0] - before[1] > window


@few
@given(
    num_frames=st.integers(50, 5000),
    sizes=splits,
    window=st.integers(1, 100),
    margin=st.integers(0, 50),
)
def test_random_starts_are_distinct_and_fit(num_frames, sizes, window, margin):
    try:
        starts = md17.random_starts(num_frames, sizes, window=window, margin=margin)
    except ValueError as error:
        assert f"{num_frames} frames" in str(error)
        return
    everything = np.concatenate(starts)
    assert len(set(everything.tolist())) == sum(sizes) == len(everything)
    assert everything.min() >= max(margin, 1)
    assert everything.max() + max(window, margin) + 1 < num_frames


def test_what_is_said_to_be_needed_is_enough():
    sizes, window = (50, 20, 20), 300
    with pytest.raises(ValueError, match="are needed") as caught:
        md17.block_starts(1000, sizes, window=window)
    message = str(caught.value)
    assert "train: got 50 samples" in message and "50 / 20 / 20 samples" in message
    needed = int(message.split("about ")[1].split(" ")[0])
    md17.block_starts(needed + 3, sizes, window=window)
    with pytest.raises(ValueError):
        md17.block_starts(needed - 10, sizes, window=window)
    with pytest.raises(ValueError, match=r"90 samples, which need 90 initial frames, but of 20010"):
        md17.random_starts(20_010, sizes, window=window)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (1, 2)}, "sizes"),
        ({"sizes": (1, 2, 0)}, "sizes"),
        ({"sizes": (20.5, 10, 10)}, "sizes"),
        ({"window": 0}, "window"),
        ({"fractions": (0.5, 0.6, 0.1)}, "fractions"),
        ({"fractions": (1.0, 0.0, 0.0)}, "fractions"),
    ],
)
def test_impossible_splits_are_refused(options, message):
    with pytest.raises(ValueError, match=f"{message}: got"):
        md17.block_starts(60_000, **options)
    with pytest.raises(ValueError, match="margin: got -1"):
        md17.random_starts(60_000, margin=-1)
    for draw in (md17.random_starts, md17.block_starts):
        with pytest.raises(ValueError, match=r"num_frames: got 60000\.5"):
            draw(60_000.5)


# The whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    md17.write(folder / "md" / "ethanol.npz", trembling_ethanol(32_000, dtype=np.float32))
    return folder


def test_load_is_the_sum_of_its_parts(folder):
    pytest.importorskip("vesin")
    trajectory = md17.heavy_atoms(md17.read(folder / "md" / "ethanol.npz"))
    starts = md17.block_starts(32_000)
    parts = {
        partition: md17.load("ethanol", partition, data_dir=folder)
        for partition in ("train", "valid", "test")
    }
    assert [datasets.num_samples(part) for part in parts.values()] == [500, 2000, 2000]
    expected = md17.samples(trajectory, starts.valid, md17.bond_graph(trajectory))
    jax.tree.map(np.testing.assert_array_equal, parts["valid"], expected)
    few_samples = md17.load("ethanol", "valid", num_samples=3, data_dir=folder)
    np.testing.assert_array_equal(few_samples.positions, expected.positions[:3])


def test_load_says_what_is_wrong(folder, monkeypatch):
    monkeypatch.setenv("EGNO_DATA_DIR", str(folder))
    for arguments, options, message in (
        (("ethanol", "validation"), {}, "partition: got 'validation'"),
        (("ethanol", "train"), {"split": "time"}, "split: got 'time'"),
        (
            ("ethanol", "train"),
            {"num_samples": 501},
            "num_samples: got 501, expected an integer from 1 to 500",
        ),
        (("ethanol", "train"), {"archive": "rmd17"}, "archive: got 'rmd17'"),
        (("../ethanol", "train"), {}, "molecule: got '../ethanol', expected a name"),
        (
            ("aspirin", "train"),
            {},
            r"aspirin\.npz is not there; make it with `python -m egno",
        ),
        (("phenol", "train"), {}, "md17 generate --smiles SMILES --name phenol`"),
        (("phenol", "train"), {"archive": "md17"}, "molecule: got 'phenol', expected one of"),
        (("ethanol", "train"), {"archive": "md17"}, "md17 download --molecule ethanol"),
        (("ethanol", "train"), {"split": "random", "window": 18_000}, "of 32000 frames"),
    ):
        with pytest.raises(ValueError, match=message):
            md17.load(*arguments, **options)


def test_an_archive_that_is_not_the_original_is_not_taken_for_it(folder, tmp_path):
    path = tmp_path / "md17" / "md17_ethanol.npz"
    path.parent.mkdir()
    path.write_bytes((folder / "md" / "ethanol.npz").read_bytes())
    with pytest.raises(ValueError, match="not MD17's ethanol, expected 555092 frames, 1 of Z = 8"):
        md17.load_trajectory("ethanol", archive="md17", data_dir=tmp_path)


def test_the_folder_is_given_or_of_the_environment_or_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EGNO_DATA_DIR", str(tmp_path / "environment"))
    assert md17.data_directory(tmp_path) == tmp_path
    assert md17.path_of("ethanol") == tmp_path / "environment" / "md" / "ethanol.npz"
    monkeypatch.delenv("EGNO_DATA_DIR")
    monkeypatch.setenv("EGNO_CACHE_DIR", str(tmp_path / "cache"))
    path = md17.path_of("benzene", archive="md17")
    assert path == tmp_path / "cache" / "md17" / "md17_benzene2017.npz"


def test_angles_of_the_test_molecule_are_sane():
    """The hydrogens of these tests stand where hydrogens stand."""
    pytest.importorskip("vesin")
    lengths = [math.dist(ETHANOL[i], ETHANOL[j]) for i, j in md17.bonds(trembling_ethanol())]
    assert len(lengths) == 8 and 0.9 < min(lengths) and max(lengths) < 1.6
