"""Acclaim files of motion capture: skeletons (ASF), motions (AMC) and forward kinematics.

The reader is strict: every error is a `ValueError` that names the file and the line.

Source: M. Schafer, "Acclaim Skeleton File Definition V1.10", 1995, and its use by the CMU Graphics
Lab Motion Capture Database.
"""

from egno_jax.datasets.acclaim.kinematics import joint_positions
from egno_jax.datasets.acclaim.motion import Motion, read_motion
from egno_jax.datasets.acclaim.skeleton import Bone, Root, Skeleton, read_skeleton

__all__ = ["Bone", "Motion", "Root", "Skeleton", "joint_positions", "read_motion", "read_skeleton"]
