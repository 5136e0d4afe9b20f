"""Where a run computes: on one device, on a mesh, or on a mesh that is fed from the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from egno_jax import metrics
from egno_jax.datasets.base import Samples
from egno_jax.model import Params
from egno_jax.training import mesh as mesh_lib
from egno_jax.training import sharded
from egno_jax.training.config import TrainingConfig
from egno_jax.training.evaluation import errors_of
from egno_jax.training.step import StepMetrics, TrainState, train_chunk
from egno_jax.training.stream import Stream

if TYPE_CHECKING:
    from jax.sharding import Mesh


class Placement(NamedTuple):
    """What the loop needs of the devices.

    Attributes:
      lay: lays a state out where it is computed with.
      advance: takes the state, the number of steps done, and how many to take; returns the state
        after them and the metrics of each. The state's buffers are donated.
      errors: returns the errors of a model on the validation set.
    """

    lay: Callable[[TrainState], TrainState]
    advance: Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]]
    errors: Callable[[Params], metrics.Errors]


def place(
    train: Samples,
    valid: Samples,
    config: TrainingConfig,
    mesh: Mesh | None = None,
    *,
    stream: bool | None = None,
) -> Placement:
    """Chooses where a run computes, and puts its data there.

    Args:
      train: the training set.
      valid: the validation set.
      config: the settings.
      mesh: the mesh; None: the default device, and all data on it.
      stream: whether batches come from the host (`Stream`) rather than the whole training set lying
        on every device; None: if there are several processes. Needs a mesh.

    Raises:
      ValueError: there are several processes and no mesh, or no stream; or a stream and no mesh.
    """
    num_processes = jax.process_count()
    stream = num_processes > 1 if stream is None else stream
    if mesh is None and (stream or num_processes > 1):
        raise ValueError(
            f"mesh: got None with stream={stream} in {num_processes} processes, expected a mesh"
        )
    if num_processes > 1 and not stream:
        raise ValueError(f"stream: got False in {num_processes} processes, expected True")
    if mesh is None:
        return _on_one_device(train, valid, config)
    return _on_mesh(train, valid, config, mesh, stream=stream)


def _on_one_device(train: Samples, valid: Samples, config: TrainingConfig) -> Placement:
    train, valid = jax.device_put((train, valid))

    def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        return train_chunk(state, train, config, length)

    def errors(params: Params) -> metrics.Errors:
        return errors_of(params, valid, batch_size=config.eval_batch_size)

    return Placement(lambda state: state, advance, errors)


def _on_mesh(
    train: Samples, valid: Samples, config: TrainingConfig, mesh: Mesh, *, stream: bool
) -> Placement:
    valid = sharded.place_valid(valid, mesh)

    def errors(params: Params) -> metrics.Errors:
        with jax.set_mesh(mesh):
            return sharded.sharded_errors_of(params, valid, batch_size=config.eval_batch_size)

    def lay(state: TrainState) -> TrainState:
        return mesh_lib.replicate(state, mesh)

    advance = (_streamed if stream else _from_devices)(train, config, mesh)
    return Placement(lay, advance, errors)


def _from_devices(train: Samples, config: TrainingConfig, mesh: Mesh) -> Callable:
    train = sharded.place_train(train, mesh)

    def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        with jax.set_mesh(mesh):
            return sharded.sharded_chunk(state, train, config, length)

    return advance


def _streamed(train: Samples, config: TrainingConfig, mesh: Mesh) -> Callable:
    train = jax.tree.map(np.asarray, train)
    streams: list[Stream] = []

    def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        if not streams:
            key = jax.random.wrap_key_data(
                np.asarray(jax.random.key_data(state.sampler_key)),
                impl=jax.random.key_impl(state.sampler_key),
            )
            streams.append(Stream(train, key, config, mesh))
        (batches,) = streams
        if batches.get_state() != {"next_step": step}:
            batches.set_state({"next_step": step})
        with jax.set_mesh(mesh):
            return sharded.streamed_chunk(state, batches.take(length), config)

    return advance
