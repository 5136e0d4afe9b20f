"""Where a run computes: on one device, on a mesh, or on a mesh that is fed from the host."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from egno_jax import metrics
from egno_jax.datasets.base import Samples, num_samples
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.model import Params
from egno_jax.training import mesh as mesh_lib
from egno_jax.training import sharded
from egno_jax.training.config import TrainingConfig
from egno_jax.training.evaluation import errors_of, errors_of_parts
from egno_jax.training.mixed import mixed_steps
from egno_jax.training.sampler import batch_indices
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
      batch_of: takes a state and a number of steps done; returns which samples make up the next
        batch, `[B]`.
      seconds_waited: how long the last `advance` waited for data.
    """

    lay: Callable[[TrainState], TrainState]
    advance: Callable[[TrainState, int, int], tuple[TrainState, StepMetrics]]
    errors: Callable[[Params], metrics.Errors]
    batch_of: Callable[[TrainState, int], np.ndarray]
    seconds_waited: Callable[[], float] = lambda: 0.0


def place(
    train: Samples | Buckets,
    valid: Samples | Buckets,
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
        on every device; None: if there are several processes. Needs a mesh, and samples of one
        size: buckets lie on every device.

    Raises:
      ValueError: there are several processes and no mesh, or no stream; or a stream and no mesh, or
        buckets.
    """
    num_processes, is_mixed = jax.process_count(), isinstance(train, Buckets)
    stream = num_processes > 1 and not is_mixed if stream is None else stream
    if stream and is_mixed:
        raise ValueError("stream: got True with buckets, expected False")
    if mesh is None and (stream or num_processes > 1):
        raise ValueError(
            f"mesh: got None with stream={stream} in {num_processes} processes, expected a mesh"
        )
    if num_processes > 1 and not stream and not is_mixed:
        raise ValueError(f"stream: got False in {num_processes} processes, expected True")
    if mesh is None:
        return _on_one_device(train, valid, config)
    return _on_mesh(train, valid, config, mesh, stream=stream)


def _on_one_device(
    train: Samples | Buckets, valid: Samples | Buckets, config: TrainingConfig
) -> Placement:
    parts = jax.device_put(by_size(valid))

    def errors(params: Params) -> metrics.Errors:
        if len(parts) == 1:
            return errors_of(params, *parts, batch_size=config.eval_batch_size)
        return errors_of_parts(params, parts, batch_size=config.eval_batch_size)

    if isinstance(train, Buckets):
        train = train._replace(samples=jax.device_put(train.samples))
        advance, batch_of = mixed_steps(train, config, None)
        return Placement(lambda state: state, advance, errors, batch_of)
    train = jax.device_put(train)

    def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        return train_chunk(state, train, config, length)

    return Placement(lambda state: state, advance, errors, _batch_of(train, config))


def _batch_of(train: Samples, config: TrainingConfig) -> Callable[[TrainState, int], np.ndarray]:
    total = num_samples(train)

    def batch_of(state: TrainState, step: int) -> np.ndarray:
        return np.asarray(batch_indices(state.sampler_key, step, total, config.batch_size))

    return batch_of


def _on_mesh(
    train: Samples | Buckets,
    valid: Samples | Buckets,
    config: TrainingConfig,
    mesh: Mesh,
    *,
    stream: bool,
) -> Placement:
    parts = [sharded.place_valid(part, mesh) for part in by_size(valid)]

    def errors(params: Params) -> metrics.Errors:
        with jax.set_mesh(mesh):
            sums = [
                sharded.sharded_sums_of(params, part, batch_size=config.eval_batch_size)
                for part in parts
            ]
        return jax.device_get(functools.reduce(metrics.ErrorSums.merge, sums)).finalize()

    def lay(state: TrainState) -> TrainState:
        return mesh_lib.replicate(state, mesh)

    if isinstance(train, Buckets):
        laid = tuple(sharded.place_train(part, mesh) for part in train.samples)
        steps, batch_of = mixed_steps(train._replace(samples=laid), config, mesh)

        def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
            with jax.set_mesh(mesh):
                return steps(state, step, length)

        return Placement(lay, advance, errors, batch_of)
    batch_of = _batch_of(train, config)
    if not stream:
        return Placement(lay, _from_devices(train, config, mesh), errors, batch_of)
    streams: list[Stream] = []
    advance = _streamed(train, config, mesh, streams)
    return Placement(lay, advance, errors, batch_of, lambda: streams[0].seconds_waited)


def _from_devices(train: Samples, config: TrainingConfig, mesh: Mesh) -> Callable:
    train = sharded.place_train(train, mesh)

    def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        with jax.set_mesh(mesh):
            return sharded.sharded_chunk(state, train, config, length)

    return advance


def _streamed(
    train: Samples, config: TrainingConfig, mesh: Mesh, streams: list[Stream]
) -> Callable:
    train = jax.tree.map(np.asarray, train)

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
