"""The file of running trials, `cmu/subject09_run.npz`: checked when read, and made of recordings.

It holds `edges` `[N - 1, 2]`, `trial_<k>` `[T, N, 3]`, and for each part, `train`, `val` and
`test`, `<part>_trials` and `<part>_start_<k>`, the first frames of the windows of trial k.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from egno_jax.checks import as_seed, parse_json, shorten
from egno_jax.datasets import npz
from egno_jax.datasets.acclaim import joint_positions, read_motion, read_skeleton
from egno_jax.datasets.argument_checks import check_lengths
from egno_jax.datasets.mocap.trial_windows import NUM_FRAMES
from egno_jax.datasets.npz import PathLike

Arrays = Mapping[str, np.ndarray]

RUN_KEYS = {"train": "train", "valid": "val", "test": "test"}
# Present in files whose windows are not the published ones.
DRAWN_WITH_SEED = "drawn_with_seed"

_SKELETON = "09.asf"
_TRIALS = tuple(f"09_{number:02d}" for number in range(1, 12))
# The numbers of trials in each split, as published.
_SIZES = {"train": 5, "valid": 3, "test": 3}


class Trials(NamedTuple):
    """The trials of one split, by their numbers.

    Attributes:
      positions: `[T, N, 3]` of each trial.
      starts: `[K]` of each trial, the first frames of its windows in order of use.
      bonds: `[B, 2]`.
      places: the file of each trial, and the place in it, for errors.
    """

    positions: dict[int, np.ndarray]
    starts: dict[int, np.ndarray]
    bonds: np.ndarray
    places: dict[int, str]


def run_trials(path: pathlib.Path, arrays: Arrays, split: str) -> Trials:
    """Returns the checked trials of one split; errors begin with the path."""
    key, bonds = RUN_KEYS[split], _get(path, arrays, "edges", np.integer, (None, 2))
    _check_tree(path, bonds)
    members = {name: _trials_of(path, arrays, f"{name}_trials") for name in RUN_KEYS.values()}
    for other, trials in members.items():
        shared = sorted(set(trials) & set(members[key]))
        if other != key and shared:
            _fail(path, f"{key}_trials", f"{shared} of {other}_trials", "trials of one split each")
    found = Trials({}, {}, bonds.astype(np.int32), {})
    for trial in members[key]:
        name, start = f"trial_{trial}", f"{key}_start_{trial}"
        frames = _get(path, arrays, name, np.floating, (None, len(bonds) + 1, 3))
        starts = _get(path, arrays, start, np.integer, (None,)).astype(np.int64)
        found.places[trial] = f"{path}, {start}"
        _check_starts(found.places[trial], starts.tolist(), len(frames))
        found.positions[trial], found.starts[trial] = frames, starts
    return found


def _check_tree(path: pathlib.Path, bonds: np.ndarray) -> None:
    """Checks that N - 1 bonds connect N joints to a tree, that is, that none closes a ring."""
    last = len(bonds)
    if bonds.min(initial=0) < 0 or bonds.max(initial=0) > last:
        _fail(path, "edges", f"joints {bonds.min()} to {bonds.max()}", f"joints 0 to {last}")
    part = np.arange(last + 1)  # joints connected by the bonds so far have the same number
    for index, (one, other) in enumerate(bonds):
        if part[one] == part[other]:
            expected = "a bond between joints that are not connected yet, since edges are a tree"
            _fail(path, f"edges[{index}]", f"[{one}, {other}]", expected)
        part[part == part[one]] = part[other]


def _trials_of(path: pathlib.Path, arrays: Arrays, name: str) -> list[int]:
    trials = _get(path, arrays, name, np.integer, (None,)).tolist()
    if not trials or len(set(trials)) != len(trials):
        _fail(path, name, f"{trials}", "at least one trial, each once")
    return trials


def _check_starts(place: str, starts: Sequence[int], num_frames: int) -> None:
    """Checks that windows are in their trial, and different."""
    last = num_frames - NUM_FRAMES
    bad = [start for start in starts if not 0 <= start <= last]
    if bad or not starts or len(set(starts)) != len(starts):
        got = f"frame {bad[0]}" if bad else f"{[*starts]}"
        raise ValueError(
            f"{place}: got {shorten(got)}, expected at least one frame, each once, from 0 to "
            f"{last}: a window is {NUM_FRAMES} of the {num_frames} frames"
        )


def _get(
    path: pathlib.Path, arrays: Arrays, key: str, kind: type, shape: tuple[int | None, ...]
) -> np.ndarray:
    """Returns an array of the file after checking its dtype, shape and values."""
    wanted = f"{kind.__name__} [{', '.join('any' if n is None else str(n) for n in shape)}]"
    if key not in arrays:
        _fail(path, key, "no such array", wanted)
    array = arrays[key]
    is_shape = array.ndim == len(shape) and all(
        n in (None, m) for m, n in zip(array.shape, shape, strict=True)
    )
    if not np.issubdtype(array.dtype, kind) or not is_shape:
        _fail(path, key, f"{array.dtype} {list(array.shape)}", wanted)
    if np.issubdtype(kind, np.floating):
        check_lengths(f"{path}, {key}", array)
    return array


def _fail(path: pathlib.Path, place: str, got: str, expected: str) -> Any:
    raise ValueError(f"{path}, {place}: got {shorten(got)}, expected {expected}")


def convert_run(
    folder: PathLike, out: PathLike, *, split: PathLike | None = None, seed: int = 0
) -> None:
    """Writes `cmu/subject09_run.npz` from the recordings of subject 9, for `load("run", ...)`.

    The published windows are random draws that cannot be reproduced. If you have them, write them
    down as `split`. Otherwise trials and windows are drawn here, with the published sizes: a fair
    set of the same task, but **errors on it do not compare with published ones**. Loading such a
    file warns of this.

    Args:
      folder: holds `09.asf` and the trials of mocap.cs.cmu.edu, `09_01.amc` to `09_11.amc`.
      out: the file to write; it must not exist.
      split: a JSON file, `{"train": {"09_02": [0, 17], ...}, "valid": {...}, "test": {...}}`: the
        frames, counted from 0, at which windows of a trial start, in order of use.
      seed: of the draw, without a split.

    Raises:
      ValueError: a file is missing, damaged or exists already, or a window is not in its trial.
      OSError: the file cannot be written.
    """
    folder, out = pathlib.Path(folder), pathlib.Path(out)
    if out.exists():
        raise ValueError(f"{out}: the file exists already; remove it, or choose another --out")
    chosen = None if split is None else _read_split(pathlib.Path(split))
    names = _TRIALS if chosen is None else sorted(name for part in chosen.values() for name in part)
    positions, bonds = _read_recordings(folder, names)
    num_frames = {name: len(frames) for name, frames in positions.items()}
    arrays = {"edges": bonds}
    if chosen is None:
        chosen = _draw(num_frames, seed)
        arrays[DRAWN_WITH_SEED] = np.array(seed)
    else:
        for part, trials in chosen.items():
            for name, starts in trials.items():
                _check_starts(f"{split}, {part}, {name}", starts, num_frames[name])
    numbers = {name: number for number, name in enumerate(positions)}
    arrays |= {f"trial_{numbers[name]}": frames for name, frames in positions.items()}
    for part, key in RUN_KEYS.items():
        arrays[f"{key}_trials"] = np.array([numbers[name] for name in chosen[part]])
        for name, starts in chosen[part].items():
            arrays[f"{key}_start_{numbers[name]}"] = np.asarray(starts)
    for part in RUN_KEYS:
        run_trials(out, arrays, part)  # What cannot be read is not written.
    npz.save_npz(out, arrays)


def _read_recordings(
    folder: pathlib.Path, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the positions `[T, N, 3]` of each trial, and the bonds."""
    for name in (_SKELETON, *(f"{name}.amc" for name in names)):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing; download it from mocap.cs.cmu.edu (subject 9) into "
                "the folder of --folder"
            )
    skeleton = read_skeleton(folder / _SKELETON)
    positions = {
        name: joint_positions(skeleton, read_motion(folder / f"{name}.amc", skeleton))
        for name in names
    }
    return positions, skeleton.bonds


def _draw(num_frames: Mapping[str, int], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Draws the trials of each split, and the order of all windows of each trial."""
    rng = np.random.RandomState(as_seed("seed", seed))
    order = iter(rng.permutation(sorted(num_frames)).tolist())
    return {
        part: {
            name: rng.permutation(max(num_frames[name] - NUM_FRAMES + 1, 0))
            for name in sorted(next(order) for _ in range(size))
        }
        for part, size in _SIZES.items()
    }


def _read_split(path: pathlib.Path) -> dict[str, dict[str, list[int]]]:
    """Reads a choice of windows; the frames are checked once the trials are known."""
    try:
        split: Any = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(split, dict) or set(split) != set(RUN_KEYS):
        found = sorted(split) if isinstance(split, dict) else type(split).__name__
        raise ValueError(f"{path}: got {found}, expected an object with {sorted(RUN_KEYS)}")
    names: list[str] = []
    for part, trials in split.items():
        if not isinstance(trials, dict) or not trials:
            _fail(path, part, repr(trials), 'an object of trials, such as {"09_02": [0, 17]}')
        for name, starts in trials.items():
            if not isinstance(starts, list) or any(type(start) is not int for start in starts):
                expected = "a list of frames, counted from 0"
                _fail(path, f"{part}, {name}", repr(starts), expected)
        names += trials
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: got {twice} in more than one split, expected each trial once")
    return split
