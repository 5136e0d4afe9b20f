"""Lines, words and numbers of Acclaim files, and errors that name the line."""

from __future__ import annotations

import codecs
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from egno_jax.checks import LARGEST_LENGTH, shorten
from egno_jax.datasets.npz import PathLike

T = TypeVar("T")
ROOT = "root"
RADIANS = {"deg": math.pi / 180, "rad": 1.0}
ROTATIONS = ("rx", "ry", "rz")
TRANSLATIONS = ("tx", "ty", "tz")
_BLANKS = str.maketrans("(),", "   ")


class Line(NamedTuple):
    """One line: its number in the file, counted from 1, and its words."""

    number: int
    words: list[str]


class Problem(Exception):
    """What is wrong with a line; `parse_file` adds the file."""

    def __init__(self, line: int, got: str, expected: str) -> None:
        super().__init__(f"line {line}: got {shorten(got)}, expected {expected}")


def parse_file(path: PathLike, parse: Callable[[str], T]) -> T:
    """Returns what `parse` makes of the text of a file; a `Problem` becomes a `ValueError`."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data:
        raise ValueError(f"{path}: got an empty file, expected text")
    try:
        return parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: got the byte 0x{data[error.start]:02x}, expected UTF-8 text"
        ) from error
    except Problem as problem:
        raise ValueError(f"{path}, {problem}") from None


def lines_of(text: str) -> Iterator[Line]:
    """Yields the lines that hold words; comments, commas and parentheses do not count."""
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].translate(_BLANKS).split()
        if words:
            yield Line(number, words)


def end_of(text: str) -> int:
    """Returns the number of the last line that is not blank."""
    return max(text.rstrip().count("\n") + 1, 1)


def to_number(word: str, line: int, what: str) -> float:
    """Returns a finite number of at most 1e18."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not abs(number) <= LARGEST_LENGTH or "_" in word:
        expected = f"a finite number for {what}, at most {LARGEST_LENGTH:g}"
        raise Problem(line, f"{word!r}", expected)
    return number


def to_numbers(words: Sequence[str], count: int, line: int, what: str) -> tuple[float, ...]:
    """Returns `count` finite numbers."""
    if len(words) != count:
        raise Problem(line, f"{len(words)} value(s) for {what}", f"{count}")
    return tuple(to_number(word, line, what) for word in words)


def check_new(seen: dict[str, int], key: str, line: int, what: str = "") -> None:
    """Adds a key and its line, or raises a `Problem` if it has been there before."""
    if key in seen:
        raise Problem(line, f"{what}{key!r} again, after line {seen[key]}", "it once")
    seen[key] = line
