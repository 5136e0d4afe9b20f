"""Subjects 9 (running) and 35 (walking) of the CMU database: files, splits and windows."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from egno_jax.checks import as_count
from egno_jax.datasets import npz
from egno_jax.datasets.acclaim import joint_positions, read_motion, read_skeleton
from egno_jax.datasets.argument_checks import check_choice
from egno_jax.datasets.base import Samples
from egno_jax.datasets.mocap.run_file import DRAWN_WITH_SEED, Trials, run_trials
from egno_jax.datasets.mocap.trial_windows import NUM_FRAMES, PROTOCOLS, Windows, cut, samples
from egno_jax.datasets.npz import PathLike

PUBLISHED_SIZES = {
    "run": {"train": 200, "valid": 240, "test": 240},
    "walk": {"train": 200, "valid": 600, "test": 600},
}
"""Samples of each split in the experiments of EGNO, for each motion."""

# Twenty walking trials of subject 35 in the order of RandomState(0).permutation, cut in the paper's
# proportions 11 : 6 : 6. The paper's own split is of 23 trials. Fixed before any training.
WALK_SPLIT = {
    "train": (33, 2, 34, 12, 14, 32, 10, 28, 8, 5),
    "valid": (9, 29, 13, 11, 31),
    "test": (15, 7, 1, 30, 16),
}
"""Trials of subject 35 in each split."""

# As in the original, walking windows start in the first 300 frames of their trial.
_WALK_STARTS = 300
_NEEDED = {"run": "cmu/subject09_run.npz", "walk": "cmu/subject35/35.asf"}
_HOW_TO_GET = {
    "walk": (
        "download 35.asf and the trials 35_*.amc of subject 35 from mocap.cs.cmu.edu, and put them "
        "into the folder cmu/subject35 of the data"
    ),
    "run": (
        "make it: download 09.asf and the trials 09_01.amc to 09_11.amc of subject 9 from "
        "mocap.cs.cmu.edu into a folder, and run python -m egno_jax.datasets.mocap convert "
        "--folder cmu/subject09 --out cmu/subject09_run.npz; docs/mocap.md describes its windows"
    ),
}


def load(
    motion: str,
    split: str,
    *,
    num_samples: int | None = None,
    target_frames: Sequence[int] = PROTOCOLS["last"],
    height: bool = False,
    joints: bool = False,
    joint_kinds: bool = False,
    dtype: np.typing.DTypeLike = np.float32,
    data_dir: PathLike | None = None,
) -> Samples:
    """Loads motion capture as in the experiments of EGNO; arguments as for its two parts.

    Equals `samples(load_windows(motion, split, ...), target_frames=..., ...)`; `PROTOCOLS` has the
    target frames of the experiments.
    """
    windows = load_windows(motion, split, num_samples=num_samples, data_dir=data_dir)
    return samples(
        windows,
        target_frames=target_frames,
        height=height,
        joints=joints,
        joint_kinds=joint_kinds,
        dtype=dtype,
    )


def load_windows(
    motion: str, split: str, *, num_samples: int | None = None, data_dir: PathLike | None = None
) -> Windows:
    """Loads windows of one split, trial by trial, the same number from each.

    Running windows are those of the file, in its order. Walking windows start in the first 300
    frames of the trial, at frames drawn without repetition by NumPy's legacy generator, seeded with
    the number of the trial. In each trial, a smaller number of windows is a prefix of a larger one.

    Args:
      motion: "run" (subject 9, the published split) or "walk" (subject 35, our split).
      split: "train", "valid" or "test".
      num_samples: a multiple of the number of trials; as published if None.
      data_dir: the folder that holds `cmu/`; `$EGNO_DATA_DIR` if None.

    Raises:
      ValueError: an argument is out of range, or files are missing or damaged; says what to do.
    """
    check_choice("motion", motion, PUBLISHED_SIZES)
    check_choice("split", split, WALK_SPLIT)
    num_samples = PUBLISHED_SIZES[motion][split] if num_samples is None else num_samples
    trials = (_read_run if motion == "run" else _read_walk)(_needed_file(data_dir, motion), split)
    per_trial = _per_trial(num_samples, trials, split)
    starts = {trial: starts[:per_trial] for trial, starts in trials.starts.items()}
    return Windows(
        positions=np.concatenate(
            [cut(trials.positions[trial], chosen) for trial, chosen in starts.items()]
        ),
        bonds=trials.bonds,
        trials=np.repeat(list(starts), per_trial),
        starts=np.concatenate(list(starts.values())),
    )


def _per_trial(num_samples: int, trials: Trials, split: str) -> int:
    """Returns the number of windows of each trial."""
    name = f"number of {split} samples"
    num_samples = as_count(name, num_samples, 0)
    shortest = min(trials.starts, key=lambda trial: len(trials.starts[trial]))
    count, most = len(trials.starts), len(trials.starts[shortest])
    if not 1 <= num_samples <= count * most or num_samples % count:
        nearest = count * min(max(round(num_samples / count), 1), most)
        raise ValueError(
            f"{name}: got {num_samples}, expected a multiple of {count}, the number of trials, up "
            f"to {count * most}, such as {nearest}: each trial gives the same number, and the "
            f"shortest has {most} windows ({trials.places[shortest]}); set num_samples, or "
            f"--data.num-{split} in the experiments"
        )
    return num_samples // count


def _needed_file(data_dir: PathLike | None, motion: str) -> pathlib.Path:
    """Returns the file that the motion needs first."""
    folder, needed = npz.data_directory(data_dir), _NEEDED[motion]
    if not folder:
        raise ValueError(
            f"data_dir: got None, expected the folder that holds {needed}; pass it "
            f"(--data.data-dir in the experiments) or set EGNO_DATA_DIR. {_HOW_TO_GET[motion]}"
        )
    if not (folder / needed).exists():
        raise ValueError(
            f"{folder / needed} is missing; set data_dir, --data.data-dir in the experiments, or "
            f"EGNO_DATA_DIR to the folder that holds {needed}, or {_HOW_TO_GET[motion]}"
        )
    return folder / needed


def _read_walk(skeleton_path: pathlib.Path, split: str) -> Trials:
    skeleton = read_skeleton(skeleton_path)
    positions, starts, places = {}, {}, {}
    for trial in WALK_SPLIT[split]:
        path = skeleton_path.with_name(f"35_{trial:02d}.amc")
        if not path.exists():
            raise ValueError(f"{path} is missing; {_HOW_TO_GET['walk']}")
        positions[trial] = joint_positions(skeleton, read_motion(path, skeleton))
        num_starts = len(positions[trial]) - NUM_FRAMES + 1
        if num_starts < 1:
            raise ValueError(
                f"{path}: got {len(positions[trial])} frames, expected {NUM_FRAMES} or more"
            )
        starts[trial] = np.random.RandomState(trial).permutation(min(num_starts, _WALK_STARTS))
        places[trial] = str(path)
    return Trials(positions, starts, skeleton.bonds, places)


def _read_run(path: pathlib.Path, split: str) -> Trials:
    try:
        arrays = npz.read_npz(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if DRAWN_WITH_SEED in arrays:
        warnings.warn(
            f"{path}: its windows were drawn with seed {arrays[DRAWN_WITH_SEED]} and are not the "
            "published ones, so errors do not compare with published errors",
            stacklevel=4,
        )
    return run_trials(path, arrays, split)
