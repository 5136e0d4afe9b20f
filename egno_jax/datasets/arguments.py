"""Checks of the arguments that data sets share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jaxtyping import Int


def check_integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Returns an integer within its limits, or raises `ValueError`."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: got {value!r}, expected an integer {limits}")
    return int(value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises `ValueError` unless `value` is one of the choices."""
    if value not in (choices := list(choices)):
        raise ValueError(f"{name}: got {value!r}, expected one of {choices}")


def check_dtype(dtype: np.typing.DTypeLike) -> None:
    """Raises `ValueError` unless a dtype is one of real numbers."""
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise ValueError(f"dtype: got {np.dtype(dtype)}, expected a floating dtype such as float32")


def check_frames(
    start: int, target_frames: Sequence[int], num_frames: int
) -> Int[np.ndarray, "1+P"]:
    """Returns the initial frame and the target frames `[P]` as one increasing array.

    Raises:
      ValueError: they are not integers, do not exist, or do not increase.
    """
    frames = np.asarray([start, *target_frames])
    is_valid = len(frames) > 1 and np.issubdtype(frames.dtype, np.integer)
    if not is_valid or frames[0] < 0 or frames[-1] >= num_frames or (np.diff(frames) <= 0).any():
        raise ValueError(
            f"start, target_frames: got {start!r} and {[*target_frames]}, expected integers that "
            f"increase from start, at least one target, all from 0 to {num_frames - 1}"
        )
    return frames


def check_shapes(arrays: Mapping[str, tuple[np.ndarray, str]]) -> None:
    """Checks the shapes of arrays by name, each written as "S N 3"; letters are at least 1.

    Raises:
      ValueError: a shape is not as written, or a letter has two sizes; names the array.
    """
    sizes: dict[str, int] = {}
    for name, (array, axes) in arrays.items():
        letters = axes.split()
        expected = [int(x) if x.isdigit() else sizes.get(x, x) for x in letters]
        is_valid = array.ndim == len(letters) and all(
            size == wanted or (isinstance(wanted, str) and size > 0)
            for size, wanted in zip(array.shape, expected, strict=True)
        )
        if not is_valid:
            wanted = ", ".join(map(str, expected))
            raise ValueError(f"{name}: got shape {array.shape}, expected [{wanted}]")
        sizes |= {x: n for x, n in zip(letters, array.shape, strict=True) if not x.isdigit()}


def check_states(arrays: Mapping[str, Any], shapes: Mapping[str, str]) -> list[np.ndarray]:
    """Returns float64 copies of finite arrays of given shapes, see `check_shapes`.

    Raises:
      ValueError: a shape is wrong or a number is not finite; names the array.
    """
    copies = {name: np.array(array, np.float64) for name, array in arrays.items()}
    check_shapes({name: (array, shapes[name]) for name, array in copies.items()})
    for name, array in copies.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: got NaN or infinite numbers, expected finite ones")
    return list(copies.values())
