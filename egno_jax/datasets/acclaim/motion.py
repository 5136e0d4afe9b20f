"""Motions (AMC files): the root's path and the angles of all bones, frame by frame."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.checks import LARGEST_LENGTH, is_length
from egno_jax.datasets.acclaim.lines import (
    RADIANS,
    ROOT,
    ROTATIONS,
    TRANSLATIONS,
    Line,
    Problem,
    check_new,
    end_of,
    lines_of,
    parse_file,
    to_number,
)
from egno_jax.datasets.acclaim.skeleton import Skeleton
from egno_jax.datasets.npz import PathLike

if TYPE_CHECKING:
    from jaxtyping import Float

_LONGEST_NUMBER = 18  # digits of a frame number; int() refuses thousands of them
_FULLY_SPECIFIED = ":FULLY-SPECIFIED"
_ANGLE_FLAGS = {":DEGREES": RADIANS["deg"], ":RADIANS": RADIANS["rad"]}


class Motion(NamedTuple):
    """The contents of an AMC file for one skeleton, T frames.

    Attributes:
      first_frame: the number of the first frame; the others follow without a gap.
      translations: `[T, 3]`, of the root along x, y and z.
      rotations: angles `[T, k]` in radians by the name of the bone, "root" included, one for each
        degree of freedom in the skeleton's order; bones without any are omitted.
    """

    first_frame: int
    translations: Float[np.ndarray, "T 3"]
    rotations: Mapping[str, Float[np.ndarray, "T k"]]


def read_motion(path: PathLike, skeleton: Skeleton) -> Motion:
    """Reads the motion of a skeleton from an AMC file.

    Raises:
      ValueError: the file cannot be read, or does not match the skeleton; names file and line.
    """
    return parse_file(path, lambda text: _motion(text, skeleton))


def _motion(text: str, skeleton: Skeleton) -> Motion:
    sizes = {ROOT: len(skeleton.root.order)}
    sizes |= {bone.name: len(bone.dofs) for bone in skeleton.bones if bone.dofs}
    lines, end = list(lines_of(text)), end_of(text)
    radians, start = _header(lines, end)
    first_frame, values, numbers = _frames(lines[start:], sizes, end)
    if not text.endswith("\n"):
        got = "the end of the file in the middle of a line"
        raise Problem(end, got, "a line break, since the last number may be cut short")
    arrays = {name: np.asarray(rows, np.float64) for name, rows in values.items()}
    for name, array in arrays.items():
        bad = np.argwhere(~is_length(array))
        if bad.size:
            frame, column = bad[0]
            got = f"{array[frame, column]} for {name!r}"
            expected = f"finite numbers of at most {LARGEST_LENGTH:g}"
            raise Problem(numbers[name][frame], got, expected)
    order = skeleton.root.order
    root = arrays.pop(ROOT)
    translations = root[:, [order.index(name) for name in TRANSLATIONS]]
    arrays = {ROOT: root[:, [i for i, name in enumerate(order) if name in ROTATIONS]], **arrays}
    return Motion(
        first_frame, translations, {name: radians * array for name, array in arrays.items()}
    )


def _header(lines: list[Line], end: int) -> tuple[float, int]:
    """Returns the unit of angles in radians, and the index of the first line after the header."""
    known, flags = (_FULLY_SPECIFIED, *_ANGLE_FLAGS), {}
    for number, words in itertools.takewhile(lambda line: line.words[0][0] == ":", lines):
        flag = " ".join(words).upper()
        if flag not in known:
            raise Problem(number, f"the flag {' '.join(words)!r}", f"one of {', '.join(known)}")
        check_new(flags, flag, number)
    next_line = lines[len(flags)].number if len(lines) > len(flags) else end
    if _FULLY_SPECIFIED not in flags:
        raise Problem(next_line, "a header without it", f"{_FULLY_SPECIFIED}")
    angles = [flag for flag in _ANGLE_FLAGS if flag in flags]
    if len(angles) != 1:
        got = " and ".join(angles) or "a header without a unit of angles"
        raise Problem(next_line, got, f"either {' or '.join(_ANGLE_FLAGS)}")
    return _ANGLE_FLAGS[angles[0]], len(flags)


def _frames(
    lines: list[Line], sizes: Mapping[str, int], end: int
) -> tuple[int, dict[str, list[list[float]]], dict[str, list[int]]]:
    """Returns the first frame's number, and by bone the values and the line of every frame."""
    values: dict[str, list[list[float]]] = {name: [] for name in sizes}
    numbers: dict[str, list[int]] = {name: [] for name in sizes}
    if not lines:
        raise Problem(end, "the end of the file", "the number of the first frame")
    first, count = None, 0
    for number, words in lines:
        if len(words) == 1 and words[0].isdecimal():
            if len(words[0]) > _LONGEST_NUMBER:
                raise Problem(number, f"frame {words[0]}", "a number of fewer digits")
            _check_complete(values, count, number)
            first = int(words[0]) if first is None else first
            if int(words[0]) != first + count:
                raise Problem(number, f"frame {words[0]}", f"frame {first + count}, the next one")
            count += 1
            continue
        name, *words = words
        if first is None:
            raise Problem(number, f"{name!r}", "the number of the first frame")
        if name not in sizes:
            got = f"the unknown bone {name!r}"
            raise Problem(number, got, "the root or a bone of the skeleton that has dof")
        if len(values[name]) == count:
            raise Problem(number, f"{name!r} again", f"it once in frame {first + count - 1}")
        if len(words) != sizes[name]:
            raise Problem(number, f"{len(words)} value(s) for {name!r}", f"{sizes[name]}")
        values[name].append(_row(words, number, name))
        numbers[name].append(number)
    _check_complete(values, count, end)
    return first, values, numbers


def _row(words: list[str], number: int, name: str) -> list[float]:
    """Returns the numbers of a line, fast where all are sound; infinite ones are found later."""
    try:
        if "_" not in "".join(words):  # float() skips underscores between digits
            return [float(word) for word in words]
    except ValueError:
        pass
    return [to_number(word, number, repr(name)) for word in words]


def _check_complete(values: Mapping[str, list], count: int, line: int) -> None:
    """Checks that the frame that ends before `line` has given every bone."""
    missing = [name for name, rows in values.items() if len(rows) != count]
    if missing:
        more = f" ({len(missing)} of {len(values)} are missing)" if len(missing) > 3 else ""
        got = f"the end of a frame without {', '.join(missing[:3])}{more}"
        raise Problem(line, got, "all bones that have dof")
