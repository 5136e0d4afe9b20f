"""Subjects 9 (running) and 35 (walking) of the CMU database: their files, splits and windows."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from egno_jax.datasets import files
from egno_jax.datasets.mocap.acclaim import read_motion, read_skeleton
from egno_jax.datasets.mocap.kinematics import joint_positions
from egno_jax.datasets.mocap.windows import HORIZON, PROTOCOLS, Windows, cut, samples

if TYPE_CHECKING:
    import os

    from egno_jax.datasets.base import Samples

PUBLISHED_SIZES = {
    "run": {"train": 200, "valid": 240, "test": 240},
    "walk": {"train": 200, "valid": 600, "test": 600},
}
"""Samples of each split in the experiments of EGNO, for each motion."""

# Twenty walking trials of subject 35 in the order of RandomState(0).permutation, cut in the paper's
# proportions 11 : 6 : 6. The paper's own split is of 23 trials. Fixed before anything was trained.
WALK_SPLIT = {
    "train": (33, 2, 34, 12, 14, 32, 10, 28, 8, 5),
    "valid": (9, 29, 13, 11, 31),
    "test": (15, 7, 1, 30, 16),
}
"""Which trials of subject 35 belong to which split."""

_RUN_FILE = "cmu/subject09_run.npz"
_RUN_FOLDER = "cmu/subject09"
_WALK_FOLDER = "cmu/subject35"
RUN_KEYS = {"train": "train", "valid": "val", "test": "test"}
# In files whose windows are not those published: the seed that they were drawn with.
DRAWN_WITH_SEED = "drawn_with_seed"
# As in the original, windows of walks start in the first 300 frames of their trial.
_WALK_STARTS = 300


class _Trials(NamedTuple):
    """The trials of one split, and the starts of their windows in the order in which to take them.

    Attributes:
      positions: `[T, N, 3]` by the number of the trial.
      starts: `[K]` by the number of the trial.
      bonds: `[B, 2]`.
      source: the file, and the place in it, of the trial with the fewest starts, for errors.
    """

    positions: Mapping[int, np.ndarray]
    starts: Mapping[int, np.ndarray]
    bonds: np.ndarray
    source: str


def load(
    motion: str,
    split: str,
    *,
    num_samples: int | None = None,
    target_frames: Sequence[int] = PROTOCOLS["last"],
    height: bool = False,
    dtype: np.typing.DTypeLike = np.float32,
    data_dir: str | os.PathLike[str] | None = None,
) -> Samples:
    """Loads motion capture as the experiments of EGNO use it; see `samples` for its contents.

    Args:
      motion: "run" (subject 9, the published split) or "walk" (subject 35, a split of our own).
      split: "train", "valid" or "test".
      num_samples: as in `load_windows`.
      target_frames: the frames to predict; `PROTOCOLS` has those of the experiments.
      height: whether heights are a feature.
      dtype: the dtype of all real numbers.
      data_dir: as in `load_windows`.

    Returns:
      Samples of NumPy arrays with `times = target_frames`.

    Raises:
      ValueError: as `load_windows`.
    """
    windows = load_windows(motion, split, num_samples=num_samples, data_dir=data_dir)
    return samples(windows, target_frames=target_frames, height=height, dtype=dtype)


def load_windows(
    motion: str,
    split: str,
    *,
    num_samples: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Windows:
    """Loads windows of one split, trial by trial, as many of each.

    A run's windows start where the published split says, in its order. A walk's start in the first
    300 frames of the trial, at frames drawn without repetition by NumPy's legacy generator, seeded
    with the number of the trial. More windows begin with the fewer, in each trial.

    Args:
      motion: "run" (subject 9, the published split) or "walk" (subject 35, a split of our own).
      split: "train", "valid" or "test".
      num_samples: a multiple of the number of trials; as published if None.
      data_dir: the folder that holds `cmu/`; `$EGNO_DATA_DIR` if None.

    Returns:
      The windows.

    Raises:
      ValueError: an argument is out of range, or files are missing or damaged; names the file and
        the place, and for missing ones says how to get them.
    """
    if motion not in PUBLISHED_SIZES or split not in WALK_SPLIT:
        raise ValueError(
            f"motion is {motion!r} and split is {split!r}, expected one of "
            f"{list(PUBLISHED_SIZES)} and one of {list(WALK_SPLIT)}"
        )
    num_samples = PUBLISHED_SIZES[motion][split] if num_samples is None else num_samples
    trials = (_read_run if motion == "run" else _read_walk)(_folder(data_dir, motion), split)
    per_trial = _per_trial(num_samples, trials, split)
    starts = {trial: starts[:per_trial] for trial, starts in trials.starts.items()}
    return Windows(
        positions=np.concatenate(
            [cut(trials.positions[k], chosen) for k, chosen in starts.items()]
        ),
        bonds=trials.bonds,
        trials=np.repeat(list(starts), per_trial),
        starts=np.concatenate(list(starts.values())),
    )


def _per_trial(num_samples: int, trials: _Trials, split: str) -> int:
    """Returns how many windows to take of each trial."""
    count, most = len(trials.starts), min(map(len, trials.starts.values()))
    is_integer = isinstance(num_samples, (int, np.integer)) and not isinstance(num_samples, bool)
    if not is_integer or not 1 <= num_samples <= count * most or num_samples % count:
        nearest = f", such as {_nearest(num_samples, count, most)}" if is_integer else ""
        raise ValueError(
            f"the number of samples is {num_samples!r}, expected a multiple of {count}, the number "
            f"of trials of split {split!r}, up to {count * most}{nearest}: each trial gives the "
            f"same number, and the shortest has {most} windows; num_samples sets it, and "
            f"--data.num-{split} in the experiments ({trials.source})"
        )
    return int(num_samples) // count


def _nearest(num_samples: int, count: int, most: int) -> int:
    """Returns the number of samples next to the one given that so many trials can give."""
    return count * min(max(round(num_samples / count), 1), most)


def _folder(data_dir: str | os.PathLike[str] | None, motion: str) -> pathlib.Path:
    """Returns the folder of the data if it holds what the motion needs."""
    folder = files.data_directory(data_dir)
    needed = _RUN_FILE if motion == "run" else f"{_WALK_FOLDER}/35.asf"
    if not folder:
        raise ValueError(
            "there is no folder of data: give data_dir (--data.data-dir in the experiments) or set "
            f"EGNO_DATA_DIR. {needed} is looked for in it. {_HOW_TO_GET[motion]}"
        )
    if not (pathlib.Path(folder) / needed).exists():
        raise ValueError(
            f"{pathlib.Path(folder) / needed} is missing; data_dir, --data.data-dir in the "
            f"experiments, and EGNO_DATA_DIR name the folder that holds {needed}. "
            f"{_HOW_TO_GET[motion]}"
        )
    return pathlib.Path(folder)


_HOW_TO_GET = {
    "walk": (
        "Download 35.asf and the trials 35_*.amc of subject 35 from mocap.cs.cmu.edu, and put them "
        f"into the folder {_WALK_FOLDER} of the data"
    ),
    "run": (
        "Make it: download 09.asf and the trials 09_01.amc to 09_11.amc of subject 9 from "
        f"mocap.cs.cmu.edu into a folder, and run python -m egno_jax.datasets.mocap convert "
        f"--folder {_RUN_FOLDER} --out {_RUN_FILE}; docs/mocap.md says more of its windows"
    ),
}


def _shortest(starts: Mapping[int, np.ndarray]) -> int:
    """Returns the trial with the fewest starts."""
    return min(starts, key=lambda trial: len(starts[trial]))


# Walking: raw files


def _read_walk(folder: pathlib.Path, split: str) -> _Trials:
    folder = folder / _WALK_FOLDER
    skeleton = read_skeleton(folder / "35.asf")
    positions, starts = {}, {}
    for trial in WALK_SPLIT[split]:
        path = folder / f"35_{trial:02d}.amc"
        if not path.exists():
            raise ValueError(f"{path} is missing. {_HOW_TO_GET['walk']}")
        positions[trial] = joint_positions(skeleton, read_motion(path, skeleton))
        num_starts = len(positions[trial]) - HORIZON - 1
        if num_starts < 1:
            raise ValueError(
                f"{path} holds {len(positions[trial])} frames, expected {HORIZON + 2} or more"
            )
        starts[trial] = np.random.RandomState(trial).permutation(min(num_starts, _WALK_STARTS))
    source = folder / f"35_{_shortest(starts):02d}.amc"
    return _Trials(positions, starts, skeleton.bonds, str(source))


# Running: one file of positions


def _read_run(folder: pathlib.Path, split: str) -> _Trials:
    path = folder / _RUN_FILE
    arrays = _read_arrays(path)
    if DRAWN_WITH_SEED in arrays:
        warnings.warn(
            f"{path}: its windows were drawn with seed {arrays[DRAWN_WITH_SEED]} and are not the "
            "published ones, so errors do not compare with published errors",
            stacklevel=4,
        )
    return run_trials(path, arrays, split)


def run_trials(path: pathlib.Path, arrays: Mapping[str, np.ndarray], split: str) -> _Trials:
    """Returns one split of what a file of runs holds, checked; errors begin with the path."""
    bonds = _get(path, arrays, "edges", np.integer, (None, 2))
    num_joints = len(bonds) + 1
    if bonds.min(initial=0) < 0 or bonds.max(initial=0) >= num_joints:
        _fail(path, "edges", f"joints up to {bonds.max()}", f"those of {num_joints} joints, from 0")
    key = RUN_KEYS[split]
    members = {name: _trials_of(path, arrays, name) for name in RUN_KEYS.values()}
    for other, trials in members.items():
        shared = sorted(set(trials) & set(members[key]))
        if other != key and shared:
            _fail(path, f"{key}_trials", f"{shared} of {other}_trials", "trials of one split each")
    _check_tree(path, bonds)
    positions = {
        trial: _get(path, arrays, f"trial_{trial}", np.floating, (None, num_joints, 3))
        for trial in members[key]
    }
    starts = {
        trial: _starts_of(path, arrays, f"{key}_start_{trial}", len(positions[trial]))
        for trial in members[key]
    }
    source = f"{path}, {key}_start_{_shortest(starts)}"
    return _Trials(positions, starts, bonds.astype(np.int32), source)


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return files.read_npz(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


def _check_tree(path: pathlib.Path, bonds: np.ndarray) -> None:
    """Checks that N - 1 bonds join N joints to a tree, which they do if none closes a ring."""
    part = np.arange(len(bonds) + 1)  # the joints that the bonds so far join have one number
    for index, (one, other) in enumerate(bonds):
        if part[one] == part[other]:
            expected = (
                "a bond between two joints that those before it do not join: edges are a tree"
            )
            _fail(path, f"edges[{index}]", f"[{one}, {other}]", expected)
        part[part == part[one]] = part[other]


def _trials_of(path: pathlib.Path, arrays: Mapping[str, np.ndarray], name: str) -> list[int]:
    trials = _get(path, arrays, f"{name}_trials", np.integer, (None,)).tolist()
    if not trials or len(set(trials)) != len(trials):
        _fail(path, f"{name}_trials", f"{trials}", "at least one trial, each once")
    return trials


def _starts_of(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], key: str, num_frames: int
) -> np.ndarray:
    starts = _get(path, arrays, key, np.integer, (None,))
    last = num_frames - HORIZON - 2
    bad = np.flatnonzero((starts < 0) | (starts > last))
    if bad.size:
        expected = f"0 to {last}, so that {HORIZON} frames and one more follow"
        _fail(path, f"{key}[{bad[0]}]", f"{starts[bad[0]]}", expected)
    if not starts.size or len(np.unique(starts)) != len(starts):
        _fail(path, key, f"{len(starts)} starts, not all different", "at least one, each once")
    return starts.astype(np.int64)


def _get(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    key: str,
    kind: type,
    shape: tuple[int | None, ...],
) -> np.ndarray:
    """Returns an array of the file after checking its dtype, shape and values."""
    wanted = f"{kind.__name__} [{', '.join('any' if n is None else str(n) for n in shape)}]"
    if key not in arrays:
        _fail(path, key, "no such array", wanted)
    array = arrays[key]
    is_shape = len(array.shape) == len(shape) and all(
        size in (None, found) for found, size in zip(array.shape, shape, strict=True)
    )
    if not np.issubdtype(array.dtype, kind) or not is_shape:
        _fail(path, key, f"{array.dtype} {list(array.shape)}", wanted)
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        place = ", ".join(map(str, bad[0]))
        _fail(path, f"{key}[{place}]", f"{array[tuple(bad[0])]}", "finite numbers")
    return array


def _fail(path: pathlib.Path, place: str, came: str, expected: str) -> Any:
    raise ValueError(f"{path}, {place}: came {files.shorten(came)}, expected {expected}")
