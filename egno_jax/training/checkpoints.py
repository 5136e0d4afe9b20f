"""Checkpoints of a training run: the whole state through orbax, and what the loop remembers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp

from egno_jax.checkpoint import CheckpointError
from egno_jax.training.step import TrainState

if TYPE_CHECKING:
    from types import TracebackType


class RunCheckpoints:
    """The last checkpoints of a run, below one directory, each written whole or not at all.

    Use as a context manager. A checkpoint holds weights, their average, the optimizer's state, the
    step, the sampler's key, and a small JSON record of the loop.

    Args:
      directory: where; made if it is not there.
      keep: how many of the last checkpoints are kept.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(), options=options, item_names=("state", "record")
        )

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, or None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, record: dict[str, Any]) -> None:
        """Writes a checkpoint of the state and the record; the oldest beyond `keep` is removed."""
        step = int(state.step)
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_with_plain_key(state)),
                record=ocp.args.JsonSave(record),
            ),
        )

    def read_record(self) -> dict[str, Any]:
        """Returns the record of the newest checkpoint.

        Raises:
          CheckpointError: there is none, or it cannot be read.
        """
        return self._read(record=ocp.args.JsonRestore())["record"]

    def restore(self, like: TrainState) -> TrainState:
        """Reads the state of the newest checkpoint, bit for bit.

        Args:
          like: a state of the same structure, such as the initial one.

        Returns:
          The state.

        Raises:
          CheckpointError: there is none, or it cannot be read as a state of this structure.
        """
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            _with_plain_key(like),
        )
        state = self._read(state=ocp.args.StandardRestore(target))["state"]
        return _with_typed_key(state, like)

    def _read(self, **items: Any) -> Any:
        step = self.latest_step()
        if step is None:
            raise CheckpointError(
                f"{self._manager.directory}: there is no checkpoint to resume from"
            )
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:
            raise CheckpointError(
                f"{self._manager.directory / str(step)}: the checkpoint cannot be restored; it is "
                f"damaged, or of a run with other settings ({error})"
            ) from error


def _with_plain_key(state: TrainState) -> TrainState:
    return dataclasses.replace(state, sampler_key=jax.random.key_data(state.sampler_key))


def _with_typed_key(state: TrainState, like: TrainState) -> TrainState:
    implementation = jax.random.key_impl(like.sampler_key)
    key = jax.random.wrap_key_data(state.sampler_key, impl=implementation)
    return dataclasses.replace(state, sampler_key=key)
