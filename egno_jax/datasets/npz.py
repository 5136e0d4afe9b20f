"""Data files: their folder, safe reading of `.npz` and `.xyz`, and atomic writing of `.npz`."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TextIO

import numpy as np

from egno_jax.checks import error_text, shorten
from egno_jax.files import replacing

PathLike = str | os.PathLike[str]
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # with members, and without


def data_directory(data_dir: PathLike | None = None) -> pathlib.Path | None:
    """Returns the data folder: `data_dir`, else `$EGNO_DATA_DIR`, else None; expands `~`."""
    chosen = data_dir or os.environ.get("EGNO_DATA_DIR")
    return pathlib.Path(chosen).expanduser() if chosen else None


def read_npz(
    path: pathlib.Path, choose: Callable[[list[str]], Iterable[str]] = lambda names: names
) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` archive by name; never unpickles anything.

    `choose` is called with the names of all arrays and returns those to read; it may raise a
    `ValueError` about the names, to which the file name is added.

    Raises:
      OSError: the file cannot be opened.
      ValueError: the file is damaged or no archive, or an array does not hold numbers or texts.
    """
    with path.open("rb") as file:
        start = file.read(len(_ZIP[0]))
        if start not in _ZIP:
            raise ValueError(f"{path}: got {start!r} at its start, expected an .npz archive")
        file.seek(0)
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # Damaged bytes make the zip and npy readers raise anything.
            raise ValueError(f"{path}: {_damage('its list of arrays', error)}") from error
        with archive:
            try:
                names = list(choose(archive.files))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            return {name: _member(path, archive, name) for name in names}


def _member(path: pathlib.Path, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except Exception as error:
        if isinstance(error, ValueError) and "allow_pickle" in str(error):
            raise ValueError(
                f"{path}, {name}: got a pickle of Python objects, which is never loaded, expected "
                "plain numbers"
            ) from error
        raise ValueError(f"{path}, {name}: {_damage('it', error)}") from error
    if not isinstance(array, np.ndarray):  # NumPy returns the bytes of a member that is not .npy.
        raise ValueError(f"{path}, {name}: got bytes, expected a NumPy array of plain numbers")
    return array


def _damage(what: str, error: Exception) -> str:
    reason = error_text(error)
    return f"{what} cannot be read ({reason}): the file is damaged or incomplete; get it again"


def save_npz(path: pathlib.Path, members: Mapping[str, np.ndarray]) -> None:
    """Writes an `.npz` archive, completely or not at all; makes its folder if it is missing.

    Raises `OSError` if the file cannot be written.
    """
    with replacing(path) as partial, partial.open("xb") as file:
        np.savez(file, **members)


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
