"""Saving and loading a model: its weights through orbax, and its configuration.

A checkpoint is a directory:

    egno_jax.json    format version, config and its class, numbers of features, recipe of the graphs
                     if there is one, versions of the libraries, SHA-256 of every weight file
    weights/         the tree of arrays, as orbax writes it

It is written to a temporary directory next to its final place and moved there when complete.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from egno_jax import published
from egno_jax.checks import as_path, error_text, parse_json
from egno_jax.extras import versions_of
from egno_jax.params import (
    Params,
    check_config,
    check_params,
    check_weights,
    model_record,
    read_model_record,
)

FORMAT_VERSION = 1
# Where a run of training has its best model.
BEST = "best"
# How often a checkpoint is read that is replaced meanwhile, and the seconds between two moves.
_MAX_ATTEMPTS = 20
_MOMENT = 0.05

_MANIFEST = "egno_jax.json"
_WEIGHTS = "weights"
# A checkpoint that is being replaced; if the process is killed meanwhile, it remains complete.
_REPLACED = ".{}-replaced-"
_LIBRARIES = ("egno_jax", "jax", "flax", "orbax-checkpoint")


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read."""


def save(directory: str | os.PathLike[str], params: Params, *, overwrite: bool = False) -> None:
    """Writes a model to a directory, atomically.

    With several processes, each one that calls this function writes; the others need not call it.

    Args:
      directory: the directory; created if it does not exist.
      params: the model.
      overwrite: whether to replace an existing checkpoint.

    Raises:
      CheckpointError: the directory exists and `overwrite` is False, or it holds something other
        than a checkpoint; nothing is changed then.
      ValueError: these are not valid parameters, or the weights are not those of their config.
    """
    directory = as_path("directory", directory).resolve()  # a link keeps pointing there
    check_params(params)
    _check_writable(directory, overwrite)
    # Before a file is made, as arrays may be deleted; orbax would also wait for other processes.
    weights = jax.device_get(params.weights)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{directory.name}-", dir=directory.parent, ignore_cleanup_errors=True
    ) as made:
        staging = Path(made, directory.name)
        staging.mkdir()  # in the usual mode, which that of a temporary directory is not
        with _checkpointer() as checkpointer:
            checkpointer.save(staging / _WEIGHTS, weights)
        manifest = {
            "format_version": FORMAT_VERSION,
            **model_record(params),
            "versions": library_versions(),
            "sha256": _checksums(staging / _WEIGHTS),
        }
        (staging / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        _move_into_place(staging, directory)


def load(directory: str | os.PathLike[str]) -> Params:
    """Reads a model, bit for bit, onto the default device.

    Args:
      directory: what `save` wrote; the directory of a run of training (`egno_jax.training.fit`,
        `egno-jax train`, the experiments), whose best model is meant; or the name of a model that
        is published with the library, such as `"nbody"` (`egno_jax.published`). A directory of that
        name comes first.

    Raises:
      CheckpointError: there is no checkpoint, it is of another format version, a file is missing,
        truncated or changed, weights and config do not belong together, or the weights are
        float64 and JAX's x64 mode is off; names the file. A checkpoint that another process
        replaces meanwhile is read again.
    """
    path = as_path("directory", directory)
    if directory in published.names() and not path.is_dir():
        try:
            return published.load(directory)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    directory = path.absolute()
    best = directory / BEST
    if not (directory / _MANIFEST).exists() and (best.is_dir() or _is_between_moves(best)):
        directory = best
    for _ in range(_MAX_ATTEMPTS):
        mark, failure = _mark_of(directory), None
        try:
            params = _load(directory)
        except (CheckpointError, OSError) as error:
            failure = error
            time.sleep(_MOMENT)
        if mark == _mark_of(directory) and not (mark is None and _is_between_moves(directory)):
            if failure is not None:
                raise failure
            return params
    if mark is None and failure is not None:  # the process that replaced it was killed
        raise failure
    raise CheckpointError(
        f"directory: {directory} was replaced {_MAX_ATTEMPTS} times while it was read; try again"
    )


def _mark_of(directory: Path) -> tuple[int, int] | None:
    """Returns what differs if another checkpoint takes the place of one; None without one."""
    try:
        found = (directory / _MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _is_between_moves(directory: Path) -> bool:
    """Returns whether a checkpoint that was not there is being replaced, or just was."""
    return bool(_left_behind(directory)) or (directory / _MANIFEST).exists()


def _left_behind(directory: Path) -> list[Path]:
    """Returns the checkpoints that are being replaced, or were when a process was killed."""
    return sorted(directory.parent.glob(f"{_REPLACED.format(glob.escape(directory.name))}*"))


def _load(directory: Path) -> Params:
    """Reads the checkpoint in a directory, which another process may be replacing."""
    manifest = _read_manifest(directory)
    try:
        config, recipe, sizes = read_model_record(manifest)
    except ValueError as error:
        raise CheckpointError(
            f"{directory / _MANIFEST}: {error} (written by {manifest.get('versions')})"
        ) from error
    _check_files(directory, manifest["sha256"])
    params = Params(weights=_restore(directory / _WEIGHTS), config=config, recipe=recipe)
    try:
        check_config(config)
        check_weights(params, sizes)
    except ValueError as error:
        raise CheckpointError(
            f"{directory / _WEIGHTS}: not the weights of the config in {_MANIFEST}: {error}"
        ) from error
    return params


def _checkpointer() -> ocp.StandardCheckpointer:
    """Returns a checkpointer that does not wait for other processes."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"alone{index}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that read and write checkpoints."""
    return versions_of(*_LIBRARIES)


def _check_writable(directory: Path, overwrite: bool) -> None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(
            f"directory: {directory} is already there; pass overwrite=True to replace it, or "
            "choose another"
        )
    if not (directory / _MANIFEST).is_file():
        raise CheckpointError(
            f"directory: {directory} holds no {_MANIFEST} and so is not a checkpoint; choose "
            "another"
        )


def _move_into_place(staging: Path, directory: Path) -> None:
    """Moves a finished checkpoint to its place; an existing one is removed after that."""
    if not directory.exists():
        staging.rename(directory)
        return
    replaced = directory.with_name(f"{_REPLACED.format(directory.name)}{uuid.uuid4().hex}")
    try:
        directory.rename(replaced)
        staging.rename(directory)
    except BaseException:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Removes what killed calls of `save` left next to a checkpoint; none may be going on.

    A checkpoint that was being replaced goes back to its place if nothing is there.
    """
    for path in directory.parent.glob(f".{glob.escape(directory.name)}-*"):
        is_replaced = path.name.startswith(_REPLACED.format(directory.name))
        if is_replaced and (path / _MANIFEST).is_file() and not directory.exists():
            path.rename(directory)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / _MANIFEST
    try:
        manifest = parse_json(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        left_behind = _left_behind(directory)
        hint = f"; a save was killed, the one before it is {left_behind[-1]}" if left_behind else ""
        if directory.is_file() and (directory.parent / _MANIFEST).is_file():
            hint = f"; it is a file of one, load {directory.parent}"
        if not directory.exists():
            hint += f"; names of published models are {published.names()}"
        raise CheckpointError(
            f"directory: {directory} is no checkpoint, it has no {_MANIFEST}{hint}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{error}; the file is damaged") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {version!r}, this egno_jax reads {FORMAT_VERSION}; load it "
            f"with the version that wrote it ({manifest.get('versions') if version else 'unknown'})"
        )
    missing = [key for key in ("config", "sha256") if not isinstance(manifest.get(key), dict)]
    if missing:
        raise CheckpointError(f"{path}: the entries {missing} are missing; the file is damaged")
    return manifest


def _checksums(root: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `root`."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _check_files(directory: Path, expected: dict[str, str]) -> None:
    found = _checksums(directory / _WEIGHTS)
    if not expected:
        raise CheckpointError(f"{directory / _MANIFEST}: lists no weight files; it is damaged")
    for name, checksum in expected.items():
        path = f"{directory / _WEIGHTS}/{name}"  # a damaged name may be an absolute path
        if name not in found:
            raise CheckpointError(f"{path}: the file is missing; the checkpoint is damaged")
        if found[name] != checksum:
            raise CheckpointError(
                f"{path}: its SHA-256 is {found[name][:12]}..., expected {checksum[:12]}...; the "
                "file was truncated or changed"
            )


def _restore(path: Path) -> dict[str, Any]:
    """Restores a tree of arrays onto the default device, wherever it was saved."""
    try:
        return _restore_tree(path)
    except CheckpointError:
        raise
    except Exception as error:  # orbax raises anything if files are damaged or vanish
        raise CheckpointError(
            f"{path}: the weights cannot be read ({error_text(error)})"
        ) from error


def _restore_tree(path: Path) -> dict[str, Any]:
    sharding = jnp.zeros(()).sharding
    with _checkpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(tree)}
        too_wide = [str(x) for x in dtypes if jax.dtypes.canonicalize_dtype(x) != x]
        if too_wide:
            raise CheckpointError(
                f"{path}: the weights are {', '.join(sorted(too_wide))}, which JAX would round to "
                '32 bits; call jax.config.update("jax_enable_x64", True) before loading'
            )
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )
        return checkpointer.restore(path, target)
