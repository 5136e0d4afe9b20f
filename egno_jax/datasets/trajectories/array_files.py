"""Recordings in NumPy files, among them the archives of MD17 and rMD17."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from egno_jax import durations
from egno_jax.checks import error_text
from egno_jax.datasets import npz
from egno_jax.datasets.argument_checks import check_numbers
from egno_jax.datasets.trajectories.recording import Recording

# The fields that archives have, by what they hold.
_NAMES = {
    "positions": ("positions", "R", "coords", "x"),
    "velocities": ("velocities", "v", "vel", "velo"),
    "numbers": ("numbers", "z", "nuclear_charges", "atomic_numbers"),
    "charges": ("charges",),
    "cells": ("cell", "cells"),
    "periodic": ("periodic", "pbc"),
    "times": ("times", "time"),
    "time_unit": ("time_unit",),
    "old_indices": ("old_indices",),
}


def read_arrays(path: pathlib.Path) -> Recording:
    """Reads `.npy` `[T, N, 3]` or `[S, T, N, 3]`, or `.npz` with such an array.

    Fields of an `.npz`: positions (or `R`, `coords`, `x`); optional are velocities, numbers (`z`,
    `nuclear_charges`), charges, cell `[3, 3]` or `[T, 3, 3]` and which of its vectors are
    `periodic` `[3]` (all if it is missing), times and their `time_unit` (fs if it is missing;
    "frame" counts frames), in which velocities are too, and `old_indices` of rMD17, by which frames
    are sorted. No pickle is ever loaded.

    Raises:
      ValueError: the file is damaged, or an array is missing or of a wrong shape; names it.
    """
    if path.suffix.lower() == ".npy":
        found = {"positions": _load_npy(path)}
    else:
        found = _load_npz(path)
    try:
        return _recording(path, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load_npy(path: pathlib.Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("an archive of arrays; name it .npz")
        return found
    except Exception as error:  # Damaged bytes make the reader raise anything.
        raise ValueError(
            f"{path}: cannot be read ({error_text(error)}), expected a NumPy array of plain "
            "numbers; check its suffix, or save it with numpy.save"
        ) from error


def _load_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    chosen: dict[str, str] = {}

    def choose(fields: list[str]) -> list[str]:
        for key, names in _NAMES.items():
            if known := [name for name in names if name in fields]:
                chosen[key] = known[0]
        if "positions" not in chosen:
            raise ValueError(
                f"got fields {sorted(fields)}, expected positions under one of the names "
                f"{_NAMES['positions']}; rename the array of positions"
            )
        return [*chosen.values()]

    arrays = npz.read_npz(path, choose)
    return {key: arrays[name] for key, name in chosen.items()}


def _recording(path: pathlib.Path, found: dict[str, np.ndarray]) -> Recording:
    positions = _frames("positions", found["positions"])
    _, num_frames, num_nodes, _ = positions.shape
    fields: dict[str, Any] = {"positions": positions}
    one = durations.parse(f"1{found.get('time_unit', durations.FEMTOSECOND)}", "time_unit")
    if "velocities" in found:
        velocities = _frames("velocities", found["velocities"], positions.shape)
        fields["velocities"] = velocities / one.value
    for key, kind in (("numbers", "iu"), ("charges", "fiu")):
        if key in found:
            _expect(key, found[key], kind, (num_nodes,))
            fields[key] = found[key].astype(int if key == "numbers" else float)
    if "numbers" in fields:
        check_numbers("numbers", fields["numbers"])
    if "cells" in found:
        cells = np.asarray(found["cells"], float)
        _expect("cell", cells, "f", (3, 3), (num_frames, 3, 3))
        periodic = found.get("periodic", np.ones(3, bool))
        _expect("periodic", periodic, "b", (3,))
        if periodic.any():
            fields["cells"] = np.broadcast_to(cells, (num_frames, 3, 3))
            fields["periodic"] = tuple(periodic.tolist())
    if "times" in found:
        _expect("times", found["times"], "fiu", (num_frames,))
        times = found["times"].astype(float)
        if "time_unit" not in found:
            fields["notes"] = (
                'times without time_unit: taken as fs; store time_unit, such as "ps" or "frame"',
            )
        fields["counts_frames"] = one.unit == durations.FRAME
        fields["times"] = one.value * times
    if "old_indices" in found:
        fields |= _sorted(found["old_indices"], fields)
    is_molecule = "numbers" in fields or "cells" in fields
    return Recording(
        source=str(path), length_unit="angstrom" if is_molecule else "unknown", **fields
    )


def _sorted(old_indices: np.ndarray, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields with frames in the order of `old_indices`, and segments without gaps."""
    positions = fields["positions"]
    _expect("old_indices", old_indices, "iu", (positions.shape[1],))
    order = np.argsort(old_indices, kind="stable")
    steps = np.diff(old_indices[order])
    if (repeated := np.flatnonzero(steps == 0)).size:
        first, second = order[repeated[0] : repeated[0] + 2]
        raise ValueError(
            f"old_indices: got {old_indices[first]} for rows {first} and {second}, expected each "
            "once"
        )
    values, counts = np.unique(steps, return_counts=True)
    usual = values[np.argmax(counts)] if len(values) else 1
    segments = np.concatenate([[0], np.cumsum(steps != usual)])
    note = f"frames sorted by old_indices; they are {usual} apart"
    if segments[-1]:
        gaps = f"{segments[-1]} gap{'' if segments[-1] == 1 else 's'}"
        note += f", with {gaps} that no window crosses"
    changed: dict[str, Any] = {"segments": segments, "notes": (*fields.get("notes", ()), note)}
    for name, axis in (("positions", 1), ("velocities", 1), ("cells", 0), ("times", 0)):
        if name in fields:
            changed[name] = np.take(fields[name], order, axis=axis)
    return changed


def _frames(name: str, array: np.ndarray, expected: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns float64 `[S, T, N, 3]`."""
    is_frames = array.ndim in (3, 4) and array.shape[-1] == 3 and array.dtype.kind in "fiu"
    if not is_frames or not array.size:
        raise ValueError(
            f"{name}: got {array.dtype} {[*array.shape]}, expected numbers [T, N, 3] (frames) or "
            "[S, T, N, 3] (several recordings); reshape the array"
        )
    frames = np.asarray(array if array.ndim == 4 else array[None], np.float64)
    if expected is not None and frames.shape != expected:
        raise ValueError(f"{name}: got {[*frames.shape]}, expected {[*expected]} as the positions")
    return frames


def _expect(name: str, array: np.ndarray, kinds: str, *shapes: tuple[int, ...]) -> None:
    if array.dtype.kind not in kinds or array.shape not in shapes:
        wanted = " or ".join(str([*shape]) for shape in shapes)
        kind = {"b": "booleans", "iu": "integers"}.get(kinds, "numbers")
        raise ValueError(f"{name}: got {array.dtype} {[*array.shape]}, expected {kind} {wanted}")
