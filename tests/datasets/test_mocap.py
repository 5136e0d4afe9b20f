"""Motion capture: the reader of Acclaim files, kinematics, windows, and the two subjects."""

from __future__ import annotations

import json
import os
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from egno_jax import datasets
from egno_jax.datasets import mocap
from egno_jax.datasets.mocap import __main__ as command_line
from tests import mocap_files
from tests.mocap_files import AMC, ASF, random_motion, random_skeleton, write

seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=20)
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with both subjects, made up."""
    path = tmp_path_factory.mktemp("data")
    mocap_files.write_walk(path)
    mocap_files.write_run(path)
    return path


def lengths(positions, skeleton):
    ends = positions[..., skeleton.bonds, :]
    return np.linalg.norm(ends[..., 0, :] - ends[..., 1, :], axis=-1)


# Reading


@few
@given(seed=seeds, num_bones=st.integers(1, 8), unit=st.sampled_from(["deg", "rad"]))
def test_what_is_written_is_read(seed, num_bones, unit, tmp_path_factory):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("files")
    skeleton = random_skeleton(rng, num_bones)
    motion = random_motion(rng, skeleton, num_frames=3, first_frame=int(rng.integers(1000)))
    asf = write(folder / "a.asf", mocap_files.asf_text(skeleton, unit))
    amc = write(folder / "a.amc", mocap_files.amc_text(skeleton, motion, unit))
    found = mocap.read_skeleton(asf)
    for bone, expected in zip(found.bones, skeleton.bones, strict=True):
        for name, value, wanted in zip(bone._fields, bone, expected, strict=True):
            if name in ("axis", "limits"):
                np.testing.assert_allclose(value, wanted, rtol=1e-14)
            else:
                assert value == wanted, name
    assert found.root[:3] == skeleton.root[:3]
    np.testing.assert_allclose(found.root.orientation, skeleton.root.orientation, rtol=1e-14)
    assert found.length_unit == skeleton.length_unit

    moved = mocap.read_motion(amc, found)
    assert moved.first_frame == motion.first_frame
    np.testing.assert_array_equal(moved.translations, motion.translations)
    assert moved.rotations.keys() == motion.rotations.keys()
    for name, angles in motion.rotations.items():
        np.testing.assert_allclose(moved.rotations[name], angles, rtol=1e-14)


def test_values_are_those_of_the_files_own_order(tmp_path):
    text = ASF.replace("order TX TY TZ RX RY RZ", "order RZ TY RX TX TZ RY")
    skeleton = mocap.read_skeleton(write(tmp_path / "a.asf", text))
    motion = mocap.read_motion(write(tmp_path / "a.amc", AMC), skeleton)
    assert skeleton.joint_names == ("root", "hip", "leg", "foot", "spine")
    assert skeleton.bonds.tolist() == [[1, 0], [2, 1], [3, 2], [4, 0]]
    assert skeleton.bones[2].dofs == ("rz", "rx") and skeleton.bones[0].dofs == ()
    assert motion.first_frame == 7
    np.testing.assert_array_equal(motion.translations, [[10, 2, 20], [11, 2.5, 21]])
    degrees = {
        name: np.rad2deg(angles).round(9).tolist() for name, angles in motion.rotations.items()
    }
    assert degrees == {
        "root": [[1, 3, 30], [1.5, 3.5, 31]],
        "leg": [[1, 2, 3], [-1, -2, -3]],
        "foot": [[4, 5], [-4, 5]],
        "spine": [[6], [0.6]],
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "   # note\n"),
        lambda text: text.replace("    ", "\t"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: "\ufeff" + text,
    ],
)
def test_white_space_and_comments_say_nothing(change, tmp_path):
    paths = [tmp_path / name for name in ("a.asf", "a.amc", "b.asf", "b.amc")]
    for path, text in zip(paths, (ASF, AMC, change(ASF), change(AMC)), strict=True):
        path.write_bytes(text.encode())
    plain, other = mocap.read_skeleton(paths[0]), mocap.read_skeleton(paths[2])
    assert plain == other
    positions = [
        mocap.joint_positions(plain, mocap.read_motion(path, plain)) for path in paths[1::2]
    ]
    np.testing.assert_array_equal(*positions)


def line_of(text, word):
    """The number of the line that holds a word."""
    return next(n for n, line in enumerate(text.split("\n"), 1) if word in line)


ASF_END = ASF.count("\n")
AMC_END = AMC.count("\n")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (":version 1.10", ":version 1.20", 2, r"got version '1.20', expected '1.10'"),
        (":version 1.10\n", "", ASF_END - 1, "expected a section :version"),
        (":version 1.10", "version 1.10", 2, "got 'version', expected a section"),
        (":name test", ":nam test", 3, "got section ':nam', expected one of :version"),
        (":name test", ":version 1.10", 3, "got section ':version' again, after line 2"),
        ("angle deg", "angle grad", 7, "got angle 'grad', expected deg or rad"),
        ("  angle deg\n", "", 7, "got the end of the section, expected 'angle'"),
        ("length 0.45", "length 0", 6, "got length 0, expected a unit above 0"),
        ("length 0.45", "length 0.45 inch", 6, r"got 2 value\(s\) for length"),
        ("RX RY RZ", "RX RY RY", 11, "expected TX, TY, TZ, RX, RY and RZ, each once"),
        ("axis XYZ\n", "axis XYX\n", 12, "got axis order 'XYX', expected X, Y and Z"),
        ("position 0 0 0", "position 0 0", 13, r"got 2 value\(s\) for position, expected 3"),
        ("orientation 0 0 0", "orientation 0 nan 0", 14, "got 'nan', expected a finite number"),
        ("orientation 0 0 0", "tilt 0 0 0", 14, "got 'tilt', expected one of order, axis"),
        ("id 2", "id 1", 23, "got id '1' again, after line 16"),
        ("name leg", "name hip", 23, "got bone 'hip' again, after line 16"),
        ("name leg", "name root", 25, "got a bone named 'root'"),
        ("name leg", "name left leg", 25, "got 2 words, expected one name"),
        ("name leg", "id leg", 25, "got 'id' again, after line 24"),
        ("     name leg\n", "", 32, "got the end of the section, expected 'name' before it"),
        ("direction 0.6 -0.8 0", "direction 0.6 -0.9 0", 26, "got a direction of length 1.08"),
        ("direction 0.6 -0.8 0", "direction 0.6 -0.8", 26, r"2 value\(s\) for direction"),
        ("length 2.5", "length -2.5", 27, "got length -2.5, expected 0 or more"),
        ("length 2.5", "length 2,5", 27, r"got 2 value\(s\) for length"),
        ("length 2.5", "length 2_5", 27, "got '2_5', expected a finite number"),
        ("length 2.5", "length inf", 27, "got 'inf', expected a finite number"),
        ("axis 0 0 20  XYZ", "axis 0 0  XYZ", 28, "got 'XYZ', expected a finite number for axis"),
        ("axis 0 0 20  XYZ", "axis 0 0 20", 28, "got axis order '', expected X, Y and Z"),
        ("dof rx ry rz", "dof rx ry rq", 29, "got dof 'rq', expected rx, ry or rz"),
        ("dof rx ry rz", "dof rx ry tx", 29, "got dof 'tx'"),
        ("dof rx ry rz", "dof rx ry ry", 29, "got dof 'rx ry ry', expected some of"),
        ("           (-inf inf)\n", "", 31, r"got limits of 4 value\(s\), expected 2 for each of"),
        ("(-70.0 70.0)", "(70.0 -70.0)", 31, "got the limit 70.0 above the next one"),
        ("(-70.0 70.0)", "(-70.0 nan)", 31, "got 'nan', expected a finite number for a limit"),
        ("(-70.0 70.0)", "(-70.0 -+inf)", 31, r"got '-\+inf', expected a finite number"),
        ("     direction 0 0 1\n", "     begin\n", 37, "got 'begin' inside of a bone"),
        ("root hip spine", "root hip spin", 53, "got the unknown bone 'spin'"),
        (
            "    leg foot\n",
            "    leg foot leg\n",
            55,
            "'leg' again, after line 54, expected it once",
        ),
        ("    leg foot\n", "    leg root\n", 55, "got the root as a child"),
        ("    leg foot\n", "    leg\n", 55, "got 'leg' alone, expected a bone and its children"),
        ("    leg foot\n", "", 34, "got bone 'foot', which the hierarchy omits"),
        ("hip leg\n    leg foot", "leg foot\n    foot leg", 54, "got 'foot' in a cycle"),
        ("  begin\n    root", "    root", 52, "got 'root hip spine', expected 'begin'"),
        ("leg foot\n  end\n", "leg foot\n", 55, "got 'leg foot' and nothing more, expected 'end'"),
        (
            "leg foot\n  end\n",
            "leg foot\n  end\n  leg\n",
            57,
            "got 'leg', expected nothing after",
        ),
    ],
)
def test_wrong_skeletons_are_refused_with_file_and_line(old, new, line, message, tmp_path):
    assert ASF.count(old) >= 1
    path = write(tmp_path / "wrong.asf", ASF.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        mocap.read_skeleton(path)
    assert str(caught.value).startswith(f"{path}, line {line}: got "), caught.value
    assert ", expected " in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (":DEGREES\n", "", 3, "got a header without a unit of angles"),
        (":DEGREES\n", ":DEGREES\n:RADIANS\n", 5, "got :DEGREES and :RADIANS, expected either"),
        (":DEGREES\n", ":DEGREES\n:DEGREES\n", 4, "got ':DEGREES' again, after line 3"),
        (":DEGREES", ":GRADS", 3, "got the flag ':GRADS', expected one of :FULLY-SPECIFIED"),
        (":FULLY-SPECIFIED\n", "", 3, "expected :FULLY-SPECIFIED"),
        ("\n8\n", "\n9\n", 9, "got frame 9, expected frame 8, the next one"),
        ("\n8\n", "\n7\n", 9, "got frame 7, expected frame 8"),
        ("\n7\n", "\n", 4, "got 'root', expected the number of the first frame"),
        ("\n7\n", "\n-7\n", 4, "got '-7', expected the number of the first frame"),
        ("leg 1 2 3", "leg 1 2", 6, r"got 2 value\(s\) for 'leg', expected 3"),
        ("leg 1 2 3", "leg 1 2 3 4", 6, r"got 4 value\(s\) for 'leg', expected 3"),
        ("root 1 2 3 10 20 30", "root 1 2 3", 5, r"got 3 value\(s\) for 'root', expected 6"),
        ("leg -1 -2 -3", "leg -1 nan -3", 11, "got nan for 'leg', expected finite numbers"),
        ("leg -1 -2 -3", "leg -1 1e999 -3", 11, "got inf for 'leg', expected finite numbers"),
        ("leg 1 2 3", "leg 1 2_0 3", 6, "got '2_0', expected a finite number for 'leg'"),
        ("\n7\n", f"\n{'7' * 5000}\n", 4, r"got frame 7+\.\.\., expected a number of fewer"),
        ("leg 1 2 3", "leg 1 2 x3", 6, "got 'x3', expected a finite number for 'leg'"),
        ("leg 1 2 3", "arm 1 2 3", 6, "got the unknown bone 'arm'"),
        ("leg 1 2 3", "hip 1 2 3", 6, "got the unknown bone 'hip', expected the root or a bone"),
        ("leg 1 2 3", "spine 1", 8, "got 'spine' again, expected it once in frame 7"),
        ("foot 4 5\n", "", 8, "got the end of a frame without foot, expected all bones"),
        ("foot -4 5\n", "", AMC_END - 1, "got the end of a frame without foot"),
        ("foot -4 5\n", "foot -4 5", AMC_END, "got the end of the file in the middle of a line"),
        ("foot -4 5\n", "foot -4 5\n9\n", AMC_END + 1, r"leg, foot \(4 of 4 are missing\)"),
    ],
)
def test_wrong_motions_are_refused_with_file_and_line(old, new, line, message, tmp_path):
    assert AMC.count(old) >= 1
    skeleton = mocap.read_skeleton(write(tmp_path / "right.asf", ASF))
    path = write(tmp_path / "wrong.amc", AMC.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        mocap.read_motion(path, skeleton)
    assert str(caught.value).startswith(f"{path}, line {line}: got "), caught.value
    assert ", expected " in str(caught.value)


def read(path, skeleton):
    return mocap.read_skeleton(path) if skeleton is None else mocap.read_motion(path, skeleton)


@pytest.mark.parametrize("kind", ["asf", "amc"])
def test_empty_binary_and_missing_files_are_refused(kind, tmp_path):
    skeleton = mocap.read_skeleton(write(tmp_path / "right.asf", ASF)) if kind == "amc" else None
    path = tmp_path / f"wrong.{kind}"
    text = (ASF if kind == "asf" else AMC).encode()
    for data, message in (
        (b"", r"wrong\.\w+: got an empty file"),
        (b"\xef\xbb\xbf", r"wrong\.\w+: got an empty file"),
        (b"\n\n# nothing\n", r", line 3: got"),
        (bytes(range(256)), r", line 2: got the byte 0x80, expected UTF-8 text"),
        (text.replace(b"root", b"r\xf6ot", 1), r"line \d+: got the byte 0xf6, expected UTF-8 text"),
        (text.decode().encode("utf-16"), "line 1: got the byte 0xff, expected UTF-8 text"),
        (text.replace(b"0", b"\0"), r"line \d+: got"),
        (text + bytes(10**6), r"line \d+: got .*\.\.\., expected"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as caught:
            read(path, skeleton)
        assert str(path) in str(caught.value) and len(str(caught.value)) < len(str(path)) + 250
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="cannot be read") as caught:
            read(missing, skeleton)
        assert str(missing) in str(caught.value)


@pytest.mark.parametrize("kind", ["asf", "amc"])
def test_a_file_cut_short_anywhere_is_refused(kind, tmp_path):
    skeleton = mocap.read_skeleton(write(tmp_path / "right.asf", ASF)) if kind == "amc" else None
    text = ASF if kind == "asf" else AMC
    with pytest.raises(ValueError, match=r"cut\.\w+: got an empty file"):
        read(write(tmp_path / f"cut.{kind}", ""), skeleton)
    # A skeleton ends with a word, after which nothing is lost; a motion may end after any frame.
    whole = {len(text)} if kind == "amc" else {len(text), len(text) - 1}
    whole |= {text.index("8\nroot 1.5")} if kind == "amc" else set()
    for size in set(range(1, len(text))) - whole:
        path = write(tmp_path / f"cut.{kind}", text[:size])
        with pytest.raises(ValueError, match=rf"cut.{kind}, line \d+: got .*, expected"):
            read(path, skeleton)


@few
@given(seed=seeds)
def test_damaged_lines_never_raise_anything_else(seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("damaged")
    right = mocap.read_skeleton(write(folder / "right.asf", ASF))
    for kind, text in (("asf", ASF), ("amc", AMC)):
        lines = text.split("\n")
        for _ in range(10):
            damaged = list(lines)
            words = damaged[line := rng.integers(len(lines))].split() or [""]
            word = rng.choice([":root", "begin", "end", "1", "-", "leg", "root", "", "nan", ":"])
            words[rng.integers(len(words))] = str(word)
            damaged[line] = " ".join(words)
            path = write(folder / f"damaged.{kind}", "\n".join(damaged))
            try:
                read(path, None if kind == "asf" else right)
            except ValueError as error:
                assert re.search(rf"damaged.{kind}, line \d+: got", str(error)), error


# Kinematics


def positions_joint_by_joint(skeleton, motion, frame):
    """The same by recursion in one frame, with the rotations of SciPy."""

    def rotation(order, angles):
        return Rotation.from_euler(order, np.asarray(angles)).as_matrix()  # lower case: fixed axes

    def axes(order, angles):
        return rotation(order, [angles["xyz".index(letter)] for letter in order])

    root = skeleton.root
    order = "".join(name[1] for name in root.order if name[0] == "r")
    frames = [rotation(order, motion.rotations["root"][frame])]
    frames[0] = frames[0] @ axes(root.axis_order, root.orientation)
    places = [np.array(root.position) + motion.translations[frame]]
    for bone in skeleton.bones:
        local = np.eye(3)
        if bone.dofs:
            turn = rotation("".join(d[1] for d in bone.dofs), motion.rotations[bone.name][frame])
            rest = axes(bone.axis_order, bone.axis)
            local = rest @ turn @ np.linalg.inv(rest)
        frames.append(frames[bone.parent] @ local)
        along = frames[-1] @ np.array(bone.direction)
        places.append(places[bone.parent] + bone.length * along)
    return np.stack(places)


@few
@given(seed=seeds, num_bones=st.integers(1, 8))
def test_kinematics_are_those_of_one_joint_after_the_other(seed, num_bones):
    rng = np.random.default_rng(seed)
    skeleton = random_skeleton(rng, num_bones)
    motion = random_motion(rng, skeleton, num_frames=4)
    found = mocap.joint_positions(skeleton, motion)
    expected = [positions_joint_by_joint(skeleton, motion, frame) for frame in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@few
@given(seed=seeds, num_bones=st.integers(1, 8))
def test_bones_keep_their_lengths_whatever_the_angles(seed, num_bones):
    rng = np.random.default_rng(seed)
    skeleton = random_skeleton(rng, num_bones)
    found = mocap.joint_positions(skeleton, random_motion(rng, skeleton, num_frames=5))
    expected = [bone.length for bone in skeleton.bones]
    np.testing.assert_allclose(lengths(found, skeleton), np.tile(expected, (5, 1)), rtol=1e-12)


@few
@given(seed=seeds)
def test_the_root_turns_and_moves_everything(seed):
    rng = np.random.default_rng(seed)
    skeleton = random_skeleton(rng, 6)
    skeleton = skeleton._replace(
        root=skeleton.root._replace(order=("tx", "ty", "tz", "rx", "ry", "rz"))
    )
    motion = random_motion(rng, skeleton, num_frames=3)
    rest = {**motion.rotations, "root": np.zeros((3, 3))}
    at_rest = mocap.joint_positions(skeleton, motion._replace(rotations=rest))
    found = mocap.joint_positions(skeleton, motion)
    turns = Rotation.from_euler("xyz", motion.rotations["root"]).as_matrix()
    np.testing.assert_allclose(
        found - found[:, :1], (at_rest - at_rest[:, :1]) @ turns.swapaxes(1, 2), atol=1e-12
    )
    shift = rng.normal(size=(3, 3))
    moved = motion._replace(translations=motion.translations + shift)
    np.testing.assert_allclose(
        mocap.joint_positions(skeleton, moved), found + shift[:, None], atol=1e-12
    )


def test_without_any_angle_bones_lie_along_their_directions():
    skeleton = random_skeleton(np.random.default_rng(0), 6)
    skeleton = skeleton._replace(root=skeleton.root._replace(orientation=(0.0, 0.0, 0.0)))
    motion = random_motion(np.random.default_rng(1), skeleton, num_frames=2)
    still = {name: np.zeros_like(angles) for name, angles in motion.rotations.items()}
    found = mocap.joint_positions(skeleton, motion._replace(rotations=still))
    for joint, bone in enumerate(skeleton.bones, 1):
        offset = bone.length * np.array(bone.direction)
        np.testing.assert_allclose(found[:, joint], found[:, bone.parent] + offset, atol=1e-12)


def test_the_order_of_the_degrees_of_freedom_matters(tmp_path):
    results = []
    for order in ("rz rx", "rx rz"):
        path = write(tmp_path / "a.asf", ASF.replace("dof rz rx", f"dof {order}"))
        skeleton = mocap.read_skeleton(path)
        values = "foot 40 50" if order == "rz rx" else "foot 50 40"  # the same angles by name
        motion = mocap.read_motion(
            write(tmp_path / "a.amc", AMC.replace("foot 4 5", values)), skeleton
        )
        results.append(mocap.joint_positions(skeleton, motion)[0])
    moved = np.abs(results[0] - results[1]).max(axis=1)
    assert moved[3] > 0.1 and (np.delete(moved, 3) == 0).all()


def test_a_motion_of_another_skeleton_is_refused():
    rng = np.random.default_rng(0)
    skeleton, other = random_skeleton(rng, 5), random_skeleton(rng, 7)
    with pytest.raises(ValueError, match=r"motion.rotations\['bone\d'\]: got shape"):
        mocap.joint_positions(skeleton, random_motion(rng, other, num_frames=2))


@pytest.mark.skipif("EGNO_DATA_DIR" not in os.environ, reason="EGNO_DATA_DIR is not set")
def test_positions_of_subject_35():
    folder = pathlib.Path(os.environ["EGNO_DATA_DIR"]) / "cmu"
    with np.load(folder / "check_subject35.npz") as file:
        check = dict(file)
    skeleton = mocap.read_skeleton(folder / "subject35" / "35.asf")
    assert skeleton.joint_names == tuple(check["joint_names"].tolist())
    np.testing.assert_array_equal(skeleton.bonds, check["edges"])
    for trial in ("35_01", "35_29"):
        motion = mocap.read_motion(folder / "subject35" / f"{trial}.amc", skeleton)
        found = mocap.joint_positions(skeleton, motion)[:12]
        np.testing.assert_allclose(found, check[f"positions_{trial}"], rtol=0, atol=1e-6)


# Windows and samples


@few
@given(
    seed=seeds,
    first=st.integers(0, 9),
    frames=st.sets(st.integers(10, 30), min_size=1),
    height=st.booleans(),
    joints=st.booleans(),
    kinds=st.booleans(),
)
def test_samples_hold_the_state_and_the_targets(seed, first, frames, height, joints, kinds):
    rng = np.random.default_rng(seed)
    trial = rng.normal(size=(50, 4, 3))
    starts = rng.integers(0, 19, size=3)
    bonds = np.array([[1, 0], [2, 1], [3, 2]])
    windows = mocap.Windows(mocap.cut(trial, starts), bonds, np.zeros(3), starts)
    frames = sorted(frames)
    chosen = {"start": first, "target_frames": frames, "height": height}
    chosen |= {"joints": joints, "joint_kinds": kinds}
    found = mocap.samples(windows, **chosen, dtype=np.float64)
    nodes = found.graph.nodes
    for index, start in enumerate(starts):
        x = trial[start + first]
        v = trial[start + first + 1] - x
        np.testing.assert_array_equal(nodes["positions"][index], x)
        np.testing.assert_array_equal(nodes["velocities"][index], v)
        np.testing.assert_allclose(nodes["features"][index, :, 0], np.linalg.norm(v, axis=-1))
        if height:
            np.testing.assert_allclose(nodes["features"][index, :, 1], x[:, 1] / 30)
        after = trial[start + np.array(frames) + 1]
        np.testing.assert_array_equal(found.positions[index], trial[start + np.array(frames)])
        np.testing.assert_allclose(found.positions[index] + found.velocities[index], after)
        graph = found.graph
        for sender, receiver, (hops, square) in zip(
            graph.senders[index],
            graph.receivers[index],
            graph.edges["features"][index],
            strict=True,
        ):
            assert hops == abs(int(sender) - int(receiver))
            np.testing.assert_allclose(square, ((x[sender] - x[receiver]) ** 2).sum())
    one_hot = np.zeros((4, 0))
    if joints:
        one_hot = np.eye(4)
    if kinds:  # the ends are alike, and what is between them
        one_hot = np.hstack([one_hot, np.eye(2)[[0, 1, 1, 0]]])
    assert nodes["features"].shape == (3, 4, 1 + height + one_hot.shape[1])
    np.testing.assert_array_equal(nodes["features"][..., 1 + height :], [one_hot] * 3)
    assert found.graph.senders.shape == (3, 10)  # 3 bonds and 2 pairs two bonds apart, both ways
    np.testing.assert_array_equal(found.times, np.array(frames) - first)
    datasets.validate(found)


def test_kinds_of_joints_are_alike_left_and_right():
    """Of a skeleton whose joints have no order: a spine with a head, two arms and two legs."""
    bonds = np.array([[7, 3], [3, 0], [3, 5], [5, 1], [3, 6], [6, 8], [7, 2], [2, 9], [7, 4]])
    bonds = np.vstack([bonds, [4, 10]])
    alike = [{5, 6}, {1, 8}, {2, 4}, {9, 10}, {7}, {3}, {0}]
    windows = mocap.Windows(np.zeros((1, 32, 11, 3)), bonds, np.zeros(1, int), np.zeros(1, int))
    features = mocap.samples(windows, joint_kinds=True).graph.nodes["features"][0]
    found = {frozenset(np.flatnonzero(column)) for column in features[:, 1:].T}
    assert found == {*map(frozenset, alike)}


def test_features_do_not_depend_on_the_rest_of_the_batch(folder):
    windows = mocap.load_windows("run", "test", num_samples=6, data_dir=folder)
    alone = windows._replace(positions=windows.positions[2:3])
    together, single = (mocap.samples(w, height=True) for w in (windows, alone))
    for name, array in single.graph.nodes.items():
        np.testing.assert_array_equal(array[0], together.graph.nodes[name][2], err_msg=name)


def test_height_is_invariant_under_turns_about_the_vertical_alone(folder):
    windows = mocap.load_windows("run", "test", num_samples=3, data_dir=folder)

    def features(turn, shift, height):
        moved = windows._replace(positions=windows.positions @ turn.T + shift)
        found = mocap.samples(moved, height=height, dtype=np.float64)
        return np.concatenate(
            [found.graph.nodes["features"].ravel(), found.graph.edges["features"].ravel()]
        )

    anything, about_y = (Rotation.from_rotvec(v).as_matrix() for v in ([1, 2, 3], [0, 2, 0]))
    shift, level = np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 3.0])
    for height, turn, by, is_invariant in (
        (False, anything, shift, True),
        (True, about_y, level, True),
        (True, anything, 0 * shift, False),
        (True, np.eye(3), shift, False),
    ):
        plain, moved = features(np.eye(3), 0, height), features(turn, by, height)
        assert np.allclose(plain, moved, atol=1e-9) == is_invariant


def test_protocols_are_those_of_the_paper():
    assert mocap.PROTOCOLS == {"last": (26, 27, 28, 29, 30), "uniform": (6, 12, 18, 24, 30)}
    assert mocap.PUBLISHED_SIZES["run"] == {"train": 200, "valid": 240, "test": 240}
    assert mocap.PUBLISHED_SIZES["walk"] == {"train": 200, "valid": 600, "test": 600}


@pytest.mark.parametrize("starts", [[-1], [19], [0.5], [[1]]])
def test_windows_outside_of_a_trial_are_refused(starts):
    with pytest.raises(
        ValueError, match=r"starts.*: got .*(expected 0 to 18|expected integers \[S\])"
    ):
        mocap.cut(np.zeros((50, 4, 3)), starts)


@pytest.mark.parametrize("frames", [[], [0, 5], [31], [5, 5], [6, 5], [1.5]])
def test_frames_outside_of_a_window_are_refused(frames):
    windows = mocap.Windows(np.zeros((2, 32, 2, 3)), np.array([[1, 0]]), *np.zeros((2, 2)))
    with pytest.raises(
        ValueError,
        match="expected integers that increase from start, at least one target, all from 0 to 30",
    ):
        mocap.samples(windows, target_frames=frames)
    with pytest.raises(ValueError, match=r"windows.positions: got shape \(2, 31, 2, 3\)"):
        mocap.samples(windows._replace(positions=windows.positions[:, 1:]))


# The two subjects


def test_the_split_of_walks_is_the_shuffle_of_its_trials():
    split = mocap.WALK_SPLIT
    order = [trial for name in SPLITS for trial in split[name]]
    expected = [1, 2, 5, *range(7, 17), *range(28, 35)]
    assert order == np.random.RandomState(0).permutation(expected).tolist()
    assert [len(split[name]) for name in SPLITS] == [10, 5, 5]


@pytest.mark.parametrize("motion", ["run", "walk"])
def test_windows_of_both_subjects(motion, folder):
    seen = set()
    for split in SPLITS:
        windows = mocap.load_windows(motion, split, num_samples=30, data_dir=folder)
        again = mocap.load_windows(motion, split, num_samples=30, data_dir=folder)
        for a, b in zip(windows, again, strict=True):
            np.testing.assert_array_equal(a, b)
        trials, counts = np.unique(windows.trials, return_counts=True)
        assert len(set(counts)) == 1 and len(windows.positions) == 30
        assert not seen & set(trials.tolist())
        seen |= set(trials.tolist())
        pairs = set(zip(windows.trials.tolist(), windows.starts.tolist(), strict=True))
        assert len(pairs) == 30
        fewer = mocap.load_windows(
            motion, split, num_samples=15 if motion == "run" else 10, data_dir=folder
        )
        assert set(zip(fewer.trials.tolist(), fewer.starts.tolist(), strict=True)) < pairs
        samples = mocap.load(motion, split, num_samples=30, data_dir=folder)
        np.testing.assert_array_equal(samples.times, [26, 27, 28, 29, 30])
        datasets.validate(samples)
    expected = range(11) if motion == "run" else sum(mocap.WALK_SPLIT.values(), ())
    assert seen == set(expected)


def test_runs_start_where_their_file_says(folder):
    arrays = mocap_files.run_arrays()
    windows = mocap.load_windows("run", "valid", num_samples=9, data_dir=folder)
    np.testing.assert_array_equal(windows.trials, [0, 0, 0, 4, 4, 4, 9, 9, 9])
    expected = [arrays[f"val_start_{trial}"][:3] for trial in (0, 4, 9)]
    np.testing.assert_array_equal(windows.starts, np.concatenate(expected))
    for positions, trial, start in zip(*windows[:1], windows.trials, windows.starts, strict=True):
        np.testing.assert_array_equal(positions, arrays[f"trial_{trial}"][start : start + 32])


def test_walks_are_the_kinematics_of_their_files(folder):
    windows = mocap.load_windows("walk", "test", num_samples=10, data_dir=folder)
    skeleton = mocap.read_skeleton(folder / "cmu/subject35/35.asf")
    np.testing.assert_array_equal(windows.bonds, skeleton.bonds)
    trial, start = windows.trials[2], windows.starts[2]
    motion = mocap.read_motion(folder / f"cmu/subject35/35_{trial:02d}.amc", skeleton)
    expected = mocap.joint_positions(skeleton, motion)[start : start + 32]
    np.testing.assert_array_equal(windows.positions[2], expected)


def test_the_folder_comes_from_the_environment(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("EGNO_DATA_DIR", str(folder))
    assert len(mocap.load_windows("run", "test", num_samples=3).positions) == 3
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("EGNO_DATA_DIR", f"~/{folder.name}")
    assert len(mocap.load_windows("run", "test", num_samples=3).positions) == 3
    monkeypatch.delenv("EGNO_DATA_DIR")
    for motion in ("run", "walk"):
        with pytest.raises(ValueError, match=r"set EGNO_DATA_DIR.*mocap\.cs\.cmu\.edu"):
            mocap.load_windows(motion, "test")
        needed = "cmu/subject09_run.npz" if motion == "run" else "cmu/subject35/35.asf"
        message = rf"^{tmp_path}/{needed} is missing; .*--data\.data-dir.*mocap\.cs\.cmu\.edu"
        with pytest.raises(ValueError, match=message):
            mocap.load_windows(motion, "test", data_dir=tmp_path)


def test_a_missing_or_short_trial_is_named(tmp_path):
    rng = np.random.default_rng(0)
    skeleton = mocap_files.write_walk(tmp_path, num_frames=33, num_bones=2)
    path = tmp_path / "cmu/subject35/35_29.amc"
    path.unlink()
    with pytest.raises(ValueError, match=r"35_29.amc is missing.*mocap.cs.cmu.edu"):
        mocap.load_windows("walk", "valid", num_samples=5, data_dir=tmp_path)
    write(path, mocap_files.amc_text(skeleton, random_motion(rng, skeleton, num_frames=31)))
    with pytest.raises(ValueError, match=r"35_29.amc: got 31 frames, expected 32 or more"):
        mocap.load_windows("walk", "valid", num_samples=5, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jump", "test", 3), "motion: got 'jump'"),
        (("run", "val", 3), "split: got 'val', expected one of"),
        (("run", "test", 4), "number of test samples: got 4, expected a multiple of 3"),
        (("run", "test", 39), "got 39, expected a multiple of 3.*up to 36, such as 36"),
        (("run", "train", 12), r"up to 60, such as 10: .* has 12 windows .*--data\.num-train"),
        (("walk", "train", 0), "got 0, expected a multiple of 10"),
        (("walk", "train", 10.0), r"got 10\.0, expected"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, folder):
    motion, split, num_samples = arguments
    with pytest.raises(ValueError, match=message):
        mocap.load_windows(motion, split, num_samples=num_samples, data_dir=folder)


def edges(*changes):
    """Edges of a run, some replaced: by two joints, by another edge, or by its reverse."""
    found = mocap_files.run_arrays()["edges"]
    for index, new in changes:
        if isinstance(new, str):
            found[index] = found[int(new.split()[0])][::-1]
        else:
            found[index] = new if isinstance(new, tuple) else found[new]
    return found


def with_nan(array):
    array = array.copy()
    array[4, 2, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": None}, "edges: got no such array, expected integer"),
        ({"edges": np.ones((5, 3), int)}, r"edges: got int64 \[5, 3\], expected integer"),
        ({"edges": np.full((5, 2), 7)}, "edges: got joints 7 to 7, expected joints 0 to 5"),
        (
            {"edges": edges((3, (2, 2)))},
            r"edges\[3\]: got \[2, 2\], expected a bond between joints that are not",
        ),
        ({"edges": edges((4, 1))}, r"edges\[4\]: got .*edges are a tree"),
        ({"edges": edges((4, "1 reversed"))}, r"edges\[4\]: got .*edges are a tree"),
        ({"test_trials": None}, "test_trials: got no such array"),
        ({"test_trials": np.array([3, 3])}, r"test_trials: got \[3, 3\], expected at least one"),
        ({"test_trials": np.array([0, 3])}, r"test_trials: got \[0\] of val_trials, expected"),
        ({"trial_3": None}, "trial_3: got no such array, expected floating"),
        ({"trial_3": np.zeros((50, 7, 3))}, r"trial_3: got float64 \[50, 7, 3\], expected"),
        ({"trial_3": with_nan(np.zeros((50, 6, 3)))}, r"trial_3\[4, 2, 1\]: got nan, expected"),
        ({"test_start_7": None}, "test_start_7: got no such array"),
        ({"test_start_7": np.arange(12.0)}, "test_start_7: got float64"),
        ({"test_start_7": np.array([3, 40])}, "test_start_7: got frame 40, .*from 0 to 23"),
        ({"test_start_7": np.array([-1])}, "test_start_7: got frame -1"),
        ({"test_start_7": np.array([3, 3])}, r"test_start_7: got \[3, 3\], expected .*each once"),
        ({"trial_3": np.array([{}])}, "trial_3: got a pickle of Python objects"),
    ],
)
def test_wrong_files_of_runs_are_refused_with_file_and_place(changes, message, tmp_path):
    path = mocap_files.write_run(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        mocap.load_windows("run", "test", num_samples=3, data_dir=tmp_path)
    assert str(caught.value).startswith(f"{path}, ")


def test_a_trial_with_too_few_starts_is_named_with_its_file_and_key(tmp_path):
    changes = {"test_start_7": np.arange(3)}
    path = mocap_files.write_run(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"up to 9.*the shortest has 3 windows") as caught:
        mocap.load_windows("run", "test", num_samples=12, data_dir=tmp_path)
    assert f"({path}, test_start_7)" in str(caught.value)
    skeleton = mocap_files.write_walk(tmp_path)
    motion = random_motion(np.random.default_rng(0), skeleton, num_frames=34)
    path = write(tmp_path / "cmu/subject35/35_07.amc", mocap_files.amc_text(skeleton, motion))
    with pytest.raises(ValueError, match=r"up to 15.*the shortest has 3 windows") as caught:
        mocap.load_windows("walk", "test", num_samples=20, data_dir=tmp_path)
    assert f"({path})" in str(caught.value)


def test_starts_of_any_integer_type_are_those_of_the_file(tmp_path, folder):
    kinds = (np.uint64, np.uint8, np.int16)
    changes = {
        f"test_start_{trial}": mocap_files.run_arrays()[f"test_start_{trial}"].astype(kind)
        for trial, kind in zip((3, 7, 8), kinds, strict=True)
    }
    mocap_files.write_run(tmp_path, **changes)
    found, expected = (
        mocap.load_windows("run", "test", num_samples=9, data_dir=place)
        for place in (tmp_path, folder)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("damage", ["empty", "text", "pickle", "half", "bytes"])
def test_damaged_files_of_runs_are_refused(damage, tmp_path):
    path = mocap_files.write_run(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "bytes":
        data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    else:
        data = {
            "empty": b"",
            "text": b"motion",
            "pickle": b"\x80\x04}.",
            "half": data[: len(data) // 2],
        }[damage]
    path.write_bytes(data)
    is_archive = damage in ("half", "bytes")
    message = r"cannot be read.*the file is damaged" if is_archive else r"expected an \.npz archive"
    with pytest.raises(ValueError, match=message) as caught:
        mocap.load_windows("run", "test", num_samples=3, data_dir=tmp_path)
    assert str(path) in str(caught.value) and "allow_pickle" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "cmu" / "subject09_run.npz").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"subject09_run\.npz: cannot be read \(Is a directory\)"):
        mocap.load_windows("run", "test", num_samples=3, data_dir=tmp_path)


# The file of runs, made


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder with the recordings of subject 9, made up."""
    path = tmp_path_factory.mktemp("recordings")
    mocap_files.write_recordings(path)
    return path


def own_split():
    return {
        "train": {"09_02": [7, 0, 3], "09_11": [1, 2, 9]},
        "valid": {"09_01": [4, 5]},
        "test": {"09_04": [0, 8]},
    }


def test_a_split_of_ones_own_is_taken_as_it_is(recordings, tmp_path):
    path = write(tmp_path / "split.json", json.dumps(own_split()))
    out = tmp_path / "cmu/subject09_run.npz"
    mocap.convert_run(recordings, out, split=path)
    skeleton = mocap.read_skeleton(recordings / "09.asf")
    for part, trials in own_split().items():
        starts = [start for chosen in trials.values() for start in chosen]
        windows = mocap.load_windows("run", part, num_samples=len(starts), data_dir=tmp_path)
        assert windows.starts.tolist() == starts
        np.testing.assert_array_equal(windows.bonds, skeleton.bonds)
        names = [name for name, starts in trials.items() for _ in starts]
        for name, start, positions in zip(names, windows.starts, windows.positions, strict=True):
            motion = mocap.read_motion(recordings / f"{name}.amc", skeleton)
            expected = mocap.joint_positions(skeleton, motion)[start : start + 32]
            np.testing.assert_array_equal(positions, expected)


def test_drawn_windows_follow_the_seed_and_say_so(recordings, tmp_path):
    def drawn(name, seed):
        folder = tmp_path / name
        mocap.convert_run(recordings, folder / "cmu/subject09_run.npz", seed=seed)
        found = {}
        for part, count in {"train": 25, "valid": 15, "test": 15}.items():
            with pytest.warns(UserWarning, match=f"drawn with seed {seed}.*not the published"):
                found[part] = mocap.load_windows("run", part, num_samples=count, data_dir=folder)
        return found

    first, again, other = drawn("a", 0), drawn("b", 0), drawn("c", 1)
    trials = [set(windows.trials.tolist()) for windows in first.values()]
    assert [len(part) for part in trials] == [5, 3, 3] and len(set.union(*trials)) == 11
    for part in SPLITS:
        for a, b in zip(first[part], again[part], strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(first[part].starts.tolist() != other[part].starts.tolist() for part in SPLITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("valid"), r"got \['test', 'train'\], expected an object with"),
        (lambda s: s.update(test={}), r"test: got \{\}, expected an object of trials"),
        (
            lambda s: s["test"].update({"09_04": [0.5]}),
            "test, 09_04: got .*expected a list of frames",
        ),
        (
            lambda s: s["test"].update({"09_04": [True]}),
            "test, 09_04: got .*expected a list of frames",
        ),
        (lambda s: s["test"].update({"09_04": [3, 13]}), "09_04: got frame 13, .* from 0 to 12"),
        (lambda s: s["test"].update({"09_04": [3, 3]}), r"09_04: got \[3, 3\], .* each once"),
        (lambda s: s["test"].update({"09_04": []}), r"09_04: got \[\], expected at least one"),
        (lambda s: s["test"].update({"09_01": [0]}), r"got \['09_01'\] in more than one split"),
    ],
)
def test_wrong_splits_are_refused_with_file_and_place(change, message, recordings, tmp_path):
    split = own_split()
    change(split)
    path = write(tmp_path / "split.json", json.dumps(split))
    with pytest.raises(ValueError, match=message) as caught:
        mocap.convert_run(recordings, tmp_path / "out.npz", split=path)
    assert str(caught.value).startswith(str(path))
    assert not (tmp_path / "out.npz").exists()


def test_the_command_converts_and_names_what_is_missing(recordings, tmp_path, capsys):
    out = tmp_path / "cmu/subject09_run.npz"
    words = ["convert", "--folder", str(recordings), "--out", str(out)]
    assert command_line.main(words) == 0
    assert "not the published windows" in capsys.readouterr().out
    assert command_line.main(words) == 2
    assert f"{out}: the file exists already" in capsys.readouterr().err
    out.unlink()
    for missing in (recordings / "09_07.amc", recordings / "09.asf"):
        missing.rename(tmp_path / missing.name)
        assert command_line.main(words) == 2
        assert f"{missing} is missing; download it" in capsys.readouterr().err
        (tmp_path / missing.name).rename(missing)
    broken = write(tmp_path / "split.json", "{")
    assert command_line.main([*words, "--split", str(broken)]) == 2
    assert f"{broken}: not JSON" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif("EGNO_DATA_DIR" not in os.environ, reason="EGNO_DATA_DIR is not set")
@pytest.mark.parametrize("motion", ["run", "walk"])
def test_the_real_subjects_are_as_published(motion):
    for split in SPLITS:
        samples = mocap.load(motion, split)
        assert datasets.num_samples(samples) == mocap.PUBLISHED_SIZES[motion][split]
        assert samples.graph.senders.shape[1] == 130 and samples.positions.shape[2] == 31
        datasets.validate(samples)
