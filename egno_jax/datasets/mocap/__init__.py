"""Motion capture: running and walking, from the CMU Graphics Lab Motion Capture Database.

    samples = mocap.load("run", "train", data_dir="data")    # frame 0 -> 26, 27, 28, 29, 30
    positions = mocap.joint_positions(skeleton, mocap.read_motion("35_01.amc", skeleton))

Nothing is downloaded: the files are free for research at mocap.cs.cmu.edu. `convert_run`, or
`python -m egno_jax.datasets.mocap convert`, makes the file of running trials. Lengths are as in the
files: 1 is 5.64 cm for these subjects (an inch divided by the header's 0.45); 120 frames a second,
y up.

Sources: Kipf et al., "Neural Relational Inference for Interacting Systems" (ICML 2018) for the
walking task; Huang et al. (ICLR 2022) for the splits; Xu et al. (ICML 2024) for the experiments.
"""

from egno_jax.datasets.acclaim import (
    Bone,
    Motion,
    Root,
    Skeleton,
    joint_positions,
    read_motion,
    read_skeleton,
)
from egno_jax.datasets.mocap.run_file import convert_run
from egno_jax.datasets.mocap.subjects import PUBLISHED_SIZES, WALK_SPLIT, load, load_windows
from egno_jax.datasets.mocap.trial_windows import (
    HEIGHT_SCALE,
    HORIZON,
    PROTOCOLS,
    Windows,
    cut,
    samples,
)

__all__ = [
    "HEIGHT_SCALE",
    "HORIZON",
    "PROTOCOLS",
    "PUBLISHED_SIZES",
    "WALK_SPLIT",
    "Bone",
    "Motion",
    "Root",
    "Skeleton",
    "Windows",
    "convert_run",
    "cut",
    "joint_positions",
    "load",
    "load_windows",
    "read_motion",
    "read_skeleton",
    "samples",
]
