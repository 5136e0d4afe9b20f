"""The file of runs, made of the recordings of subject 9 and a choice of windows."""

from __future__ import annotations

import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.datasets import cache
from egno_jax.datasets.mocap.acclaim import read_motion, read_skeleton
from egno_jax.datasets.mocap.kinematics import joint_positions
from egno_jax.datasets.mocap.subjects import DRAWN_WITH_SEED, RUN_KEYS, run_trials
from egno_jax.datasets.mocap.windows import HORIZON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    # Frames at which windows start, by the name of the trial, by the name of the split.
    Split = Mapping[str, Mapping[str, Sequence[int]]]

_SKELETON = "09.asf"
_TRIALS = tuple(f"09_{number:02d}" for number in range(1, 12))
# How many of the eleven trials are trained, selected and tested on, as published.
_SIZES = {"train": 5, "valid": 3, "test": 3}


def convert_run(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> None:
    """Writes `cmu/subject09_run.npz` of the recordings of subject 9, for `load("run", ...)`.

    The published windows are random draws that nothing makes again. Whoever has them writes them
    down as `split`. Otherwise trials and windows are drawn here, the sizes of the splits as
    published: a fair set of the same task, but **errors on it do not compare with published ones**.
    Loading such a file warns of that.

    Args:
      folder: holds `09.asf` and the trials `09_01.amc` to `09_11.amc` of mocap.cs.cmu.edu, or those
        of them that the split names.
      out: the file to write; it must not be there yet.
      split: a JSON file, `{"train": {"09_02": [0, 17], ...}, "valid": {...}, "test": {...}}`: the
        frames, counted from 0, at which windows of a trial start, in the order of their use.
      seed: of the draw, where there is no split.

    Raises:
      ValueError: a file is missing, damaged or there already, or a window does not fit into its
        trial; names the file and the place.
      OSError: the file cannot be written.
    """
    folder, out = pathlib.Path(folder), pathlib.Path(out)
    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or choose another --out")
    chosen = None if split is None else _read_split(pathlib.Path(split))
    names = _TRIALS if chosen is None else sorted(name for part in chosen.values() for name in part)
    for name in (_SKELETON, *(f"{name}.amc" for name in names)):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing; download it from mocap.cs.cmu.edu, where it belongs "
                "to subject 9, into the folder that --folder names"
            )
    skeleton = read_skeleton(folder / _SKELETON)
    positions = {
        name: joint_positions(skeleton, read_motion(folder / f"{name}.amc", skeleton))
        for name in names
    }
    num_frames = {name: len(frames) for name, frames in positions.items()}
    arrays = {"edges": skeleton.bonds}
    if chosen is None:
        chosen = _draw(num_frames, seed)
        arrays[DRAWN_WITH_SEED] = np.array(seed)
    else:
        _check_starts(split, chosen, num_frames)
    arrays |= _arrays(positions, chosen)
    for part in RUN_KEYS:
        run_trials(out, arrays, part)  # What cannot be read is not written.
    cache.save_npz(out, arrays)


def _arrays(positions: Mapping[str, np.ndarray], split: Split) -> dict[str, np.ndarray]:
    """Returns what the file holds of trials and windows; trials are numbered as their names are."""
    numbers = {name: number for number, name in enumerate(positions)}
    arrays = {f"trial_{numbers[name]}": frames for name, frames in positions.items()}
    for part, key in RUN_KEYS.items():
        arrays[f"{key}_trials"] = np.array([numbers[name] for name in split[part]])
        for name, starts in split[part].items():
            arrays[f"{key}_start_{numbers[name]}"] = np.asarray(starts)
    return arrays


def _check_starts(path: str | os.PathLike[str], split: Split, num_frames: dict[str, int]) -> None:
    for part, trials in split.items():
        for name, starts in trials.items():
            last = num_frames[name] - HORIZON - 2
            bad = [start for start in starts if not 0 <= start <= last]
            if bad or not starts or len(set(starts)) != len(starts):
                came = f"frame {bad[0]}" if bad else f"{starts}"
                raise ValueError(
                    f"{path}, {part}, {name}: came {came}, expected at least one frame, each once, "
                    f"from 0 to {last}: a window is {HORIZON + 2} of the {num_frames[name]} frames"
                )


def _draw(num_frames: Mapping[str, int], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Draws which trial belongs to which split, and the order of all windows of each."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}, expected an integer from 0 to {2**32 - 1}")
    rng = np.random.RandomState(seed)
    order = iter(rng.permutation(sorted(num_frames)).tolist())
    return {
        part: {
            name: rng.permutation(max(num_frames[name] - HORIZON - 1, 0))
            for name in sorted(next(order) for _ in range(size))
        }
        for part, size in _SIZES.items()
    }


def _read_split(path: pathlib.Path) -> dict[str, dict[str, list[int]]]:
    """Reads a choice of windows; what the frames must be is checked once the trials are known."""
    try:
        split: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(split, dict) or set(split) != set(RUN_KEYS):
        found = sorted(split) if isinstance(split, dict) else type(split).__name__
        raise ValueError(f"{path}: came {found}, expected an object with {sorted(RUN_KEYS)}")
    for part, trials in split.items():
        if not isinstance(trials, dict) or not trials:
            raise ValueError(
                f"{path}, {part}: came {trials!r}, expected an object of trials, such as "
                '{"09_02": [0, 17]}'
            )
        for name, starts in trials.items():
            if not isinstance(starts, list) or any(type(start) is not int for start in starts):
                raise ValueError(
                    f"{path}, {part}, {name}: expected a list of frames, counted from 0"
                )
    names = [name for trials in split.values() for name in trials]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: came {twice} in more than one split, expected each trial once")
    return split
