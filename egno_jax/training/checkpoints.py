"""Checkpoints of a training run: the whole state, by orbax, and the progress of the loop.

Below `checkpoints/` each is a directory named by its step:

    state/     the tree of arrays, as orbax writes it
    record/    JSON: progress, settings, versions of the libraries, and the SHA-256 of every array

The sums are taken of the arrays before they are written and compared with what is read back, so a
state is restored to the bit or not at all. The record holds its own SHA-256 too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from egno_jax.checkpoint import CheckpointError, library_versions
from egno_jax.training.flat import unflatten
from egno_jax.training.liveness import LostProcessError
from egno_jax.training.processes import agree_on_any, is_main_process, wait_for_all
from egno_jax.training.step import TrainState

FORMAT_VERSION = 2

_DIGEST = "sha256_of_record"
# What a record of the first format held; it had no sums.
_FIRST_FORMAT = {"progress", "settings"}
_DAMAGED = "damaged-checkpoints"


class StorageError(OSError):
    """The disk refused what a run wanted to write; earlier checkpoints are complete."""


class RunCheckpoints:
    """The last checkpoints of a run in one directory, each written completely or not at all.

    A context manager. A checkpoint holds a `TrainState` and a small JSON record of the loop. It is
    written in the background while the next steps are taken.

    Args:
      directory: created if needed.
      keep: how many of the last checkpoints are kept.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._directory, names = Path(directory).absolute(), ("state", "record")
        # What a killed run left half-written looks to one of several processes like the directory
        # that another one creates when the step is saved again.
        for path in self._directory.glob("*tmp*") if is_main_process() else ():
            shutil.rmtree(path, ignore_errors=True)
        wait_for_all("checkpoints opened")
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=names)

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, LostProcessError):
            return  # orbax would wait for the process that has ended
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            with _storage_errors():
                self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, record: dict[str, Any]) -> None:
        """Begins to write a checkpoint, after the one before is written; the state may be donated.

        The oldest checkpoint beyond `keep` is removed when the new one is complete.

        Raises:
          StorageError: this checkpoint or the one before it could not be written.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        # A copy, because the next step may reuse the buffers before they are written.
        state = jax.tree.map(jnp.copy, _saved_form(state))
        record = {
            **record,
            "format_version": FORMAT_VERSION,
            "step": step,
            "versions": library_versions(),
            "sha256": _sums(state),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            record=ocp.args.JsonSave({**record, _DIGEST: _digest(record)}),
        )
        with _storage_errors():
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Returns when the last checkpoint is written.

        Raises:
          StorageError: it could not be written.
        """
        with _storage_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, like: TrainState) -> TrainState:
        """Reads the state of the newest checkpoint, bit for bit.

        Args:
          like: a state of the same structure, such as the initial one, whose devices are used; its
            weights may be flat, those that are returned are not.

        Raises:
          CheckpointError: there is none, or it cannot be read as a state of this structure.
        """
        step = self._newest()
        return self._restore(step, like, self._read_record(step))

    def restore_newest(
        self, like: TrainState, check_record: Callable[[dict[str, Any]], None]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Reads the newest valid checkpoint and its record; sets newer ones aside, with a warning.

        Args:
          like: see `restore`.
          check_record: raises an error if the record is of another run than the caller's.

        Raises:
          CheckpointError: there is no valid checkpoint; nothing is moved then.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        problems: dict[int, str] = {}
        for step in steps or [self._newest()]:
            found = problem = None
            try:
                record = self._read_record(step)
                check_record(record)
                found = self._restore(step, like, record), record
            except DamagedCheckpointError as error:
                problem = str(error)
            if not agree_on_any(found is None):
                self._set_aside(problems)
                return found
            problems[step] = problem or "another process cannot read it"
        raise CheckpointError(
            f"{self._directory}: none of the checkpoints is whole: {'; '.join(problems.values())}"
        )

    def _newest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self._directory}: there is no checkpoint to resume from")
        return step

    def _read_record(self, step: int) -> dict[str, Any]:
        """Returns the record of a step if it is the one that was written."""
        record = self._read(step, record=ocp.args.JsonRestore())["record"]
        if isinstance(record, dict) and set(record) == _FIRST_FORMAT:
            return record
        digest = record.pop(_DIGEST, None) if isinstance(record, dict) else None
        if digest is None or digest != _digest(record) or record["step"] != step:
            raise self._damaged(step, "its record is not the one that was written")
        return record

    def _restore(self, step: int, like: TrainState, record: dict[str, Any]) -> TrainState:
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            _saved_form(like),
        )
        state = self._read(step, state=ocp.args.StandardRestore(target))["state"]
        found = _sums(state)
        expected = record.get("sha256", found)  # the first format has none
        for name in {**expected, **found}:
            if found.get(name) != expected.get(name):
                raise self._damaged(step, f"{name} is not what was saved")
        implementation = jax.random.key_impl(like.sampler_key)
        key = jax.random.wrap_key_data(state.sampler_key, impl=implementation)
        return dataclasses.replace(state, sampler_key=key)

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise self._damaged(step, f"it cannot be read ({_first_line(error)})") from error

    def _set_aside(self, problems: dict[int, str]) -> None:
        """Moves damaged checkpoints out of the way of those that will have their steps."""
        for step, problem in problems.items() if is_main_process() else ():
            place = self._directory.parent / _DAMAGED / f"{step}-{uuid.uuid4().hex[:8]}"
            place.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(place)
            warnings.warn(
                f"{problem}; the checkpoint is moved to {place} and the one before it used",
                stacklevel=2,
            )
        if problems:
            wait_for_all("damaged checkpoints set aside")
            self._manager.reload()

    def _damaged(self, step: int, reason: str) -> DamagedCheckpointError:
        return DamagedCheckpointError(
            f"{self._directory / str(step)}: the checkpoint is damaged, or of a run with other "
            f"settings: {reason}"
        )


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written."""


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StorageError(f"a checkpoint could not be written: {_first_line(error)}") from error


def check_writable(directory: Path) -> None:
    """Writes a file in a directory, or where the directory would be made, and removes it.

    Raises:
      StorageError: that is not possible; says why.
    """
    directory = Path(directory).absolute()
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # without a name, which a kill would leave
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise StorageError(f"directory: {directory} cannot be written to ({error})") from error


def _sums(state: Any) -> dict[str, str]:
    """Returns the SHA-256 of every array, with its type and shape, under its path in the tree."""
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        content = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        sums[jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()
    return sums


def _digest(record: dict[str, Any]) -> str:
    """Returns the SHA-256 of a record, however its JSON is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _saved_form(state: TrainState) -> TrainState:
    """Returns a state of plain arrays, one for each weight."""
    state = unflatten(state)
    return dataclasses.replace(state, sampler_key=jax.random.key_data(state.sampler_key))
