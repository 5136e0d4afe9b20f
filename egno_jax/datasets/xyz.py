"""The frames of an XYZ file as lines, with checks that readers of this format do not make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TextIO

from egno_jax.datasets.npz import shorten


def xyz_frames(file: TextIO) -> Iterator[list[str]]:
    """Yields the lines of each frame: the number of atoms, a comment, and a line for each atom.

    ASE and MDAnalysis drop an incomplete last frame, or accept a number that was cut short; here
    both raise `ValueError` with the number of the line.
    """
    number = 1
    while (line := file.readline()).strip():
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", line) or int(line) < 1:
            raise ValueError(
                f"line {number}: got {shorten(repr(line.strip()))}, expected a number of atoms"
            )
        lines = [line, *itertools.islice(file, int(line) + 1)]
        if len(lines) < int(line) + 2 or not lines[-1].endswith("\n"):
            raise ValueError(
                f"line {number}: the file ends in the middle of this frame, in "
                f"{shorten(repr(lines[-1]))}, expected {int(line) + 2} lines, each with a line "
                "break"
            )
        yield lines
        number += len(lines)
    if rest := file.read(80).strip():
        raise ValueError(
            f"line {number}: got an empty line and then {rest[:20]!r}, expected a frame"
        )
