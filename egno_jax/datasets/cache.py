"""A cache of arrays that checks itself: files are complete or absent, and rebuilt when in doubt."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from egno_jax.datasets.npz import PathLike, read_npz, save_npz

FORMAT_VERSION = 1
_HEADER = "header"
_logger = logging.getLogger(__name__)


def default_directory() -> pathlib.Path:
    """Returns `$EGNO_CACHE_DIR` if it is set, else `~/.cache/egno_jax`.

    Raises:
      ValueError: it is not set, and the user has no home directory.
    """
    configured = os.environ.get("EGNO_CACHE_DIR")
    try:
        return pathlib.Path(configured or "~/.cache/egno_jax").expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"EGNO_CACHE_DIR: got {configured!r} and no home directory ({error}), expected a "
            "folder; set it"
        ) from error


def load_or_build(
    name: str,
    settings: Mapping[str, Any],
    build: Callable[[], Mapping[str, np.ndarray]],
    *,
    directory: PathLike | None = None,
) -> dict[str, np.ndarray]:
    """Reads named arrays from the cache, or builds and stores them.

    A file that is damaged, incomplete, of another format version or made with other settings is
    rebuilt, with a warning that gives the reason. A cache that cannot be written only warns.

    Args:
      name: the file's name inside the cache, without its suffix.
      settings: everything that determines the arrays, as JSON values.
      build: returns the arrays; called only if the cache does not have them.
      directory: the cache; `default_directory()` if None.
    """
    folder = default_directory() if directory is None else pathlib.Path(directory).expanduser()
    path = folder / f"{name}.npz"
    try:
        return read(path, settings)
    except FileNotFoundError:
        _logger.info("building %s", path)
    except ValueError as error:
        warnings.warn(f"{error}; building it again", stacklevel=2)
    arrays = {key: np.asarray(value) for key, value in build().items()}
    try:
        write(path, arrays, settings)
    except OSError as error:
        warnings.warn(
            f"{path}: cannot be written ({error}), so the next run builds it again; set "
            "EGNO_CACHE_DIR to a writable folder",
            stacklevel=2,
        )
    return arrays


def read(path: PathLike, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads the arrays of one file of `write` after checking its version, settings and checksum.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or of another format version or other settings; says which.
    """
    path = pathlib.Path(path)
    try:
        arrays = read_npz(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    try:
        header = json.loads(str(arrays.pop(_HEADER)))
        version, made_with, checksum = (header[k] for k in ("version", "settings", "sha256"))
    except Exception as error:  # Damaged bytes make the JSON reader raise anything.
        raise ValueError(f"{path}: cannot be read, got header {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: got format version {version}, expected {FORMAT_VERSION}")
    if made_with != (expected := _as_json(settings)):
        raise ValueError(f"{path}: made with {_difference(made_with, expected)}")
    if checksum != _sha256(arrays):
        raise ValueError(f"{path}: damaged, its contents do not match their checksum")
    return arrays


def write(path: PathLike, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
    """Writes arrays and the settings that determine them, so that readers see all of it or nothing.

    Raises:
      ValueError: an array holds Python objects, or has the name of the header.
      OSError: the file cannot be written.
    """
    for key, value in arrays.items():
        if value.dtype.hasobject or key == _HEADER:
            raise ValueError(
                f"arrays[{key!r}]: got dtype {value.dtype}, expected plain numbers under a name "
                f"other than {_HEADER!r}; convert or rename it"
            )
    header = {"version": FORMAT_VERSION, "settings": _as_json(settings), "sha256": _sha256(arrays)}
    save_npz(pathlib.Path(path), {_HEADER: np.array(json.dumps(header)), **arrays})


def _sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the checksum of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        value = arrays[key]
        digest.update(f"{key} {value.dtype.str} {value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings after a round trip through JSON, in which tuples become lists."""
    return json.loads(json.dumps(dict(settings)))


def _difference(found: Any, expected: Mapping[str, Any]) -> str:
    """Names the settings that differ."""
    if not isinstance(found, dict):
        return f"settings {found!r}, expected {expected!r}"
    keys = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    return ", ".join(f"{k}={found.get(k)!r}, expected {expected.get(k)!r}" for k in keys)
