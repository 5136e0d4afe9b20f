"""What the readers of data files share: where the data are, safe `.npz` files, short messages."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # with members, and without


def data_directory(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Returns the folder of the data: the one given, else `$EGNO_DATA_DIR`, else None.

    A leading `~` is the home folder. `md17.data_directory` gives the cache instead of None.
    """
    chosen = data_dir or os.environ.get("EGNO_DATA_DIR")
    return pathlib.Path(chosen).expanduser() if chosen else None


def read_npz(
    path: pathlib.Path, choose: Callable[[list[str]], Iterable[str]] = lambda names: names
) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` archive; never unpickles anything.

    Args:
      path: the file.
      choose: takes the names of all arrays, returns those to read; may raise a ValueError about
        the names, to which the file is added.

    Returns:
      The arrays by name.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is no archive, or it is damaged, or one of these arrays is none of plain
        numbers or texts; names the file, and the array.
    """
    with path.open("rb") as file:
        start = file.read(len(_ZIP[0]))
        if start not in _ZIP:
            raise ValueError(
                f"{path} is no .npz archive: " + (f"it begins with {start!r}" if start else "empty")
            )
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
                f"{path}, {name}: it holds Python objects, a pickle, which is never loaded; "
                "expected plain numbers"
            ) from error
        raise ValueError(f"{path}, {name}: {_damage('it', error)}") from error
    if not isinstance(array, np.ndarray):  # NumPy hands out the bytes of what is no .npy file.
        raise ValueError(f"{path}, {name}: it is no array of NumPy's, expected plain numbers")
    return array


def _damage(what: str, error: Exception) -> str:
    reason = shorten(f"{type(error).__name__}: {error}", 200)
    return f"{what} cannot be read ({reason}); the file is damaged or not whole, get it again"


def shorten(text: object, width: int = 80) -> str:
    """Returns a text for a message, cut to `width` characters: files may hold lines of any length.

    The end is cut off, with dots in its place.
    """
    text = str(text)
    return text if len(text) <= width else f"{text[: width - 3]}..."
