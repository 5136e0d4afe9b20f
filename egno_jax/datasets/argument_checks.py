"""Checks of the arguments that data sets share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from egno_jax.checks import LARGEST_LENGTH, LARGEST_NUMBER, check_array, is_length

if TYPE_CHECKING:
    from jaxtyping import Int


def check_numbers(name: str, numbers: np.ndarray, least: int = 0) -> None:
    """Raises ValueError if one is no atomic number; ASE has 0 for an unknown element."""
    for place in np.flatnonzero((numbers < least) | (numbers > LARGEST_NUMBER)):
        raise ValueError(
            f"{name}[{place}]: got {numbers[place]}, expected an atomic number, {least} to "
            f"{LARGEST_NUMBER}"
        )


def check_lengths(name: str, lengths: np.ndarray) -> None:
    """Raises ValueError if one is not finite, or too large for its square; names its place."""
    for place in map(tuple, np.argwhere(~is_length(lengths)).tolist()):
        raise ValueError(
            f"{name}{[*place]}: got {lengths[place]}, expected a finite number of at most "
            f"{LARGEST_LENGTH:g}"
        )


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises `ValueError` unless `value` is one of the choices."""
    if value not in (choices := list(choices)):
        raise ValueError(f"{name}: got {value!r}, expected one of {choices}")


def check_frames(
    start: int, target_frames: Sequence[int], num_frames: int
) -> Int[np.ndarray, "1+P"]:
    """Returns the initial frame and the target frames `[P]` as one increasing array.

    Raises `ValueError` if they are not integers, do not exist, or do not increase.
    """
    frames = np.asarray([start, *target_frames])
    is_valid = len(frames) > 1 and np.issubdtype(frames.dtype, np.integer)
    if not is_valid or frames[0] < 0 or frames[-1] >= num_frames or (np.diff(frames) <= 0).any():
        raise ValueError(
            f"start, target_frames: got {start!r} and {[*target_frames]}, expected integers that "
            f"increase from start, at least one target, all from 0 to {num_frames - 1}"
        )
    return frames


def check_states(arrays: Mapping[str, tuple[ArrayLike, tuple[str | int, ...]]]) -> list[np.ndarray]:
    """Returns float64 copies of non-empty arrays, given with their shapes by name.

    Raises `ValueError` as `egno_jax.checks.check_array` and `check_lengths` do.
    """
    sizes: dict[str, int] = {}
    copies = []
    for name, (array, shape) in arrays.items():
        copies.append(np.array(array, np.float64))
        check_array(name, copies[-1], "floating", shape, sizes)
        if not copies[-1].size:
            raise ValueError(f"{name}: got none, expected at least one")
        check_lengths(name, copies[-1])
    return copies
