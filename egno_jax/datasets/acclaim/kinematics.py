"""Forward kinematics: joint positions from the angles of a motion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from egno_jax.datasets.acclaim.lines import ROOT
from egno_jax.datasets.acclaim.motion import Motion
from egno_jax.datasets.acclaim.skeleton import Skeleton

if TYPE_CHECKING:
    from jaxtyping import Float


def joint_positions(skeleton: Skeleton, motion: Motion) -> Float[np.ndarray, "T N 3"]:
    """Computes the positions of the joints in every frame, `[T, N, 3]` in float64.

    With C the bone's axes at rest, R its rotation in a frame, d its direction and l its length,

        G_root = R_root C_root,    x_root = position + translation,
        G = G_parent C R C^T,      x = x_parent + l G d.

    Rotations are about fixed axes, one after the other in the file's order: angles a, b, c of
    `rx ry rz` give R = R_z(c) R_y(b) R_x(a). Joints are as in `skeleton.joint_names`, lengths as in
    the file. Raises `ValueError` if the motion does not belong to this skeleton.
    """
    _check_fits(skeleton, motion)
    root = skeleton.root
    channels = [name for name in root.order if name.startswith("r")]
    orientation = _rotation(root.axis_order, _by_order(root.orientation, root.axis_order))
    frames = [_rotation(channels, motion.rotations[ROOT]) @ orientation]
    positions = [np.asarray(root.position) + motion.translations]
    for bone in skeleton.bones:
        frame = frames[bone.parent]
        if bone.dofs:
            axes = _rotation(bone.axis_order, _by_order(bone.axis, bone.axis_order))
            rotation = _rotation(bone.dofs, motion.rotations[bone.name])
            frame = frame @ (axes @ rotation @ axes.T)
        frames.append(frame)
        offset = bone.length * np.asarray(bone.direction)
        positions.append(positions[bone.parent] + frame @ offset)
    return np.stack(positions, axis=1)


def _check_fits(skeleton: Skeleton, motion: Motion) -> None:
    """Checks that the motion has angles for every degree of freedom, and nothing else."""
    num_frames = len(motion.translations)
    expected = {ROOT: (num_frames, 3)}
    expected |= {b.name: (num_frames, len(b.dofs)) for b in skeleton.bones if b.dofs}
    found = {name: np.shape(angles) for name, angles in motion.rotations.items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"motion.rotations[{name!r}]: got shape {found.get(name)}, expected "
                f"{expected.get(name)}; read the motion with this skeleton"
            )


def _rotation(
    order: Sequence[str], angles: Float[np.ndarray, "*T k"] | Sequence[float]
) -> Float[np.ndarray, "*T 3 3"]:
    """Returns the product of rotations about axes such as "x" or "rx", the first on the right."""
    angles = np.asarray(angles, np.float64)
    product = np.eye(3)
    for column, name in enumerate(order):
        axis = "xyz".index(name[-1])
        first, second, angle = (axis + 1) % 3, (axis + 2) % 3, angles[..., column]
        matrix = np.zeros((*np.shape(angle), 3, 3))
        matrix[..., axis, axis] = 1.0
        matrix[..., first, first] = matrix[..., second, second] = np.cos(angle)
        matrix[..., second, first] = np.sin(angle)
        matrix[..., first, second] = -matrix[..., second, first]
        product = matrix @ product
    return product


def _by_order(angles: Sequence[float], order: str) -> list[float]:
    """Puts angles about x, y and z in the order in which they are applied."""
    return [angles["xyz".index(letter)] for letter in order]
