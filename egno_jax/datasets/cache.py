"""Arrays on disk that check themselves: written whole or not at all, rebuilt when in any doubt."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import uuid
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT_VERSION = 1
_HEADER = "header"
_logger = logging.getLogger(__name__)


def default_directory() -> pathlib.Path:
    """Returns `$EGNO_CACHE_DIR` where it is set, else `~/.cache/egno_jax`."""
    configured = os.environ.get("EGNO_CACHE_DIR")
    return pathlib.Path(configured or "~/.cache/egno_jax").expanduser()


def load_or_build(
    name: str,
    settings: Mapping[str, Any],
    build: Callable[[], Mapping[str, np.ndarray]],
    *,
    directory: str | os.PathLike[str] | None = None,
) -> dict[str, np.ndarray]:
    """Reads named arrays from the cache, or builds them and leaves them there.

    A file that is damaged, incomplete, of another format version or made with other settings is
    built anew and replaced, with a warning that says why. A cache that cannot be written costs a
    warning too, never the result.

    Args:
      name: the file's name inside the cache, without its suffix.
      settings: all that determines the arrays, as JSON values.
      build: returns the arrays; called only where the cache has none to give.
      directory: the cache; `default_directory()` if None.

    Returns:
      The arrays by name, equal to what `build()` returns.
    """
    folder = default_directory() if directory is None else pathlib.Path(directory).expanduser()
    path = folder / f"{name}.npz"
    try:
        return read(path, settings)
    except FileNotFoundError:
        _logger.info("%s is not there yet; building it", path)
    except ValueError as error:
        warnings.warn(f"{error}; building it again", stacklevel=2)
    arrays = {key: np.asarray(value) for key, value in build().items()}
    try:
        write(path, arrays, settings)
    except OSError as error:
        warnings.warn(
            f"cannot keep {path} ({error}): the next run builds it again; "
            "set EGNO_CACHE_DIR to a writable folder",
            stacklevel=2,
        )
    return arrays


def read(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Reads the arrays of one cache file after checking its version, settings and checksum.

    Args:
      path: a file written by `write`.
      settings: what the arrays are expected to be made with.

    Returns:
      The arrays by name.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged or incomplete, or was made by another format version or
        with other settings; the message names the file and the reason.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(str(arrays.pop(_HEADER)))
        version, made_with, checksum = (header[k] for k in ("version", "settings", "sha256"))
    except FileNotFoundError:
        raise
    except Exception as error:  # Damaged bytes make the zip, npy and JSON readers raise anything.
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}, expected {FORMAT_VERSION}")
    if made_with != (expected := _as_json(settings)):
        raise ValueError(f"{path} was made with {_difference(made_with, expected)}")
    if checksum != _sha256(arrays):
        raise ValueError(f"{path} is damaged: its contents do not match their checksum")
    return arrays


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    """Writes arrays to one cache file, so that readers see the whole of it or nothing.

    The bytes go to a new file beside `path`, which then takes its name in one step
    (`os.replace`); of writers at the same time the last one stays.

    Args:
      path: the file to write, its folder made if missing.
      arrays: arrays by name, of any dtype but object.
      settings: all that determines the arrays, as JSON values.

    Raises:
      ValueError: if an array holds Python objects, or is named as the header is.
      OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    for key, value in arrays.items():
        if value.dtype.hasobject or key == _HEADER:
            raise ValueError(
                f"array {key!r} of dtype {value.dtype}: expected plain numbers under a name other "
                f"than {_HEADER!r}; convert or rename it"
            )
    header = {
        "version": FORMAT_VERSION,
        "settings": _as_json(settings),
        "sha256": _sha256(arrays),
    }
    save_npz(path, {_HEADER: np.array(json.dumps(header)), **arrays})


def save_npz(path: pathlib.Path, members: Mapping[str, np.ndarray]) -> None:
    """Writes an `.npz` archive, whole or not at all; makes its folder if it is missing.

    Raises:
      OSError: if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the checksum of names, dtypes, shapes and bytes, whatever the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        value = arrays[key]
        digest.update(f"{key} {value.dtype.str} {value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings as JSON gives them back, so that a tuple equals its list."""
    return json.loads(json.dumps(dict(settings)))


def _difference(found: Any, expected: Mapping[str, Any]) -> str:
    """Names the settings in which `found` is not what was expected."""
    if not isinstance(found, dict):
        return f"settings {found!r}, expected {expected!r}"
    keys = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    return ", ".join(f"{k}={found.get(k)!r}, expected {expected.get(k)!r}" for k in keys)
