"""Small Acclaim files and files of positions for tests of motion capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from egno_jax.datasets import mocap

ASF = """# a comment
:version 1.10
:name test
:units
  mass 1.0
  length 0.45
  angle deg
:documentation
   anything at all
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name hip
     direction 0 -1 0
     length 0.5
     axis 0 0 0  XYZ
  end
  begin
     id 2
     name leg
     direction 0.6 -0.8 0
     length 2.5
     axis 0 0 20  XYZ
    dof rx ry rz
    limits (-160.0 20.0)
           (-70.0 70.0)
           (-inf inf)
  end
  begin
     id 3
     name foot
     direction 0 0 1
     length 1.25
     axis -90 7.5e-016 20  XYZ
    dof rz rx
  end
  begin
     id 4
     name spine
     direction 0 1 0
     length 3
     axis 0 0 0  XYZ
    dof rx
    limits (-10.0 170.0)
  end
:hierarchy
  begin
    root hip spine
    hip leg
    leg foot
  end
"""

AMC = """#!OML:ASF somewhere
:FULLY-SPECIFIED
:DEGREES
7
root 1 2 3 10 20 30
leg 1 2 3
foot 4 5
spine 6
8
root 1.5 2.5 3.5 11 21 31
leg -1 -2 -3
spine 6e-1
foot -4 5
"""


def write(path: Path, text: str) -> Path:
    """Writes text to a file, makes its folder, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def random_skeleton(rng: np.random.Generator, num_bones: int) -> mocap.Skeleton:
    """Draws a skeleton with dofs, axes and orders of every kind, in depth-first order."""

    def order():
        return "".join(rng.permutation(list("xyz")))

    def dofs(count):
        return tuple(f"r{letter}" for letter in order()[:count])

    bones, ancestors = [], [0]
    for index in range(num_bones):
        parent = int(rng.choice(ancestors))
        del ancestors[ancestors.index(parent) + 1 :]
        ancestors.append(index + 1)
        direction = rng.normal(size=3)
        turns = dofs(rng.integers(4))
        bones.append(
            mocap.Bone(
                name=f"bone{index}",
                parent=parent,
                direction=tuple((direction / np.linalg.norm(direction)).tolist()),
                length=float(rng.uniform(0.5, 2)),
                axis=tuple(rng.uniform(-3, 3, 3).tolist()),
                axis_order=order(),
                dofs=turns,
                limits=tuple((-float(k) - 1, float(k)) for k in range(len(turns))),
            )
        )
    channels = tuple(rng.permutation(["tx", "ty", "tz", "rx", "ry", "rz"]).tolist())
    root = mocap.Root(channels, order(), *(tuple(rng.normal(size=3).tolist()) for _ in range(2)))
    return mocap.Skeleton(root, tuple(bones), length_unit=0.45)


def random_motion(
    rng: np.random.Generator, skeleton: mocap.Skeleton, num_frames: int, first_frame: int = 1
) -> mocap.Motion:
    """Draws a smooth motion: a walk of the root, and angles that swing."""
    times = np.arange(num_frames)[:, None] / 20

    def swing(count):
        return rng.normal(size=count) + 0.5 * np.sin(times + rng.uniform(0, 6, count))

    rotations = {bone.name: swing(len(bone.dofs)) for bone in skeleton.bones if bone.dofs}
    translations = rng.normal(size=3) + times * [0.0, 0.0, 1.0]
    return mocap.Motion(first_frame, translations, {"root": swing(3), **rotations})


def asf_text(skeleton: mocap.Skeleton, unit: str = "deg") -> str:
    """Writes a skeleton as an ASF file, angles in the unit."""
    scale = 180 / np.pi if unit == "deg" else 1.0

    def join(values, factor=1.0):
        return " ".join(repr(float(factor * value)) for value in values)

    root = skeleton.root
    lines = [
        *(":version 1.10", ":name test", ":units", f"length {skeleton.length_unit}"),
        *(f"angle {unit}", ":root", f"order {' '.join(root.order).upper()}"),
        *(f"axis {root.axis_order.upper()}", f"position {join(root.position)}"),
        *(f"orientation {join(root.orientation, scale)}", ":bonedata"),
    ]
    for index, bone in enumerate(skeleton.bones):
        lines += [
            *("begin", f"id {index + 1}", f"name {bone.name}"),
            *(f"direction {join(bone.direction)}", f"length {bone.length!r}"),
            f"axis {join(bone.axis, scale)} {bone.axis_order.upper()}",
        ]
        if bone.dofs:
            limits = [f"({join(pair, scale)})" for pair in bone.limits]
            lines += [f"dof {' '.join(bone.dofs)}", "limits " + "\n  ".join(limits)]
        lines.append("end")
    lines += [":hierarchy", "begin"]
    names = skeleton.joint_names
    for parent, name in enumerate(names):
        children = [bone.name for bone in skeleton.bones if bone.parent == parent]
        if children:
            lines.append(" ".join([name, *children]))
    return "\n".join([*lines, "end", ""])


def amc_text(skeleton: mocap.Skeleton, motion: mocap.Motion, unit: str = "deg") -> str:
    """Writes a motion as an AMC file, angles in the unit."""
    scale = 180 / np.pi if unit == "deg" else 1.0
    lines = [
        "# written by a test",
        ":FULLY-SPECIFIED",
        f":{unit.upper()}".replace("DEG", "DEGREES"),
    ]
    lines[-1] = lines[-1].replace("RAD", "RADIANS")
    turns = [name for name in skeleton.root.order if name.startswith("r")]
    for frame, place in enumerate(motion.translations):
        lines.append(str(motion.first_frame + frame))
        root = dict(zip(("tx", "ty", "tz"), place, strict=True))
        root |= dict(zip(turns, scale * motion.rotations["root"][frame], strict=True))
        lines.append(" ".join(["root", *(repr(float(root[k])) for k in skeleton.root.order)]))
        for name, angles in motion.rotations.items():
            if name != "root":
                values = " ".join(repr(float(angle)) for angle in scale * angles[frame])
                lines.append(f"{name} {values}")
    return "\n".join([*lines, ""])


def write_walk(folder: Path, num_frames: int = 44, num_bones: int = 5) -> mocap.Skeleton:
    """Writes all trials of a random subject 35 into a data folder; returns the skeleton."""
    rng = np.random.default_rng(0)
    skeleton = random_skeleton(rng, num_bones)
    target = folder / "cmu" / "subject35"
    write(target / "35.asf", asf_text(skeleton))
    for trial in (trial for trials in mocap.WALK_SPLIT.values() for trial in trials):
        motion = random_motion(rng, skeleton, num_frames, first_frame=trial)
        write(target / f"35_{trial:02d}.amc", amc_text(skeleton, motion))
    return skeleton


def run_arrays(num_frames: int = 48, num_bones: int = 5, num_starts: int = 12) -> dict:
    """Returns the arrays of the file of a random subject 9."""
    rng = np.random.default_rng(1)
    skeleton = random_skeleton(rng, num_bones)
    arrays = {"edges": skeleton.bonds.astype(np.int64)}
    for trial in range(11):
        motion = random_motion(rng, skeleton, num_frames + trial)
        arrays[f"trial_{trial}"] = mocap.joint_positions(skeleton, motion)
    for split, trials in {"train": [1, 2, 5, 6, 10], "val": [0, 4, 9], "test": [3, 7, 8]}.items():
        arrays[f"{split}_trials"] = np.array(trials)
        for trial in trials:
            starts = rng.permutation(num_frames - 31)[:num_starts]
            arrays[f"{split}_start_{trial}"] = starts
    return arrays


def write_run(folder: Path, **changes: np.ndarray | None) -> Path:
    """Writes the file of a random subject 9 into a data folder; None omits an array."""
    path = folder / "cmu" / "subject09_run.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {**run_arrays(), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_recordings(folder: Path, num_frames: int = 40, num_bones: int = 4) -> mocap.Skeleton:
    """Writes the recordings of a random subject 9, named as in the database."""
    rng = np.random.default_rng(2)
    skeleton = random_skeleton(rng, num_bones)
    write(folder / "09.asf", asf_text(skeleton))
    for trial in range(1, 12):
        motion = random_motion(rng, skeleton, num_frames + trial)
        write(folder / f"09_{trial:02d}.amc", amc_text(skeleton, motion))
    return skeleton
