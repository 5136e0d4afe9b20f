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
from egno_jax.training.mixed import mean_nodes, mixed_steps, origins_of
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

    is_mixed = isinstance(train, Buckets)
    batch_of = origins_of(train, config) if is_mixed else _batch_of(train, config)
    if stream:
        streamed = _Streamed(train, config, mesh)
        return Placement(lay, streamed, errors, batch_of, lambda: streamed.seconds_waited)
    if is_mixed:
        laid = tuple(sharded.place_train(part, mesh) for part in train.samples)
        steps, _ = mixed_steps(train._replace(samples=laid), config, mesh)

        def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
            with jax.set_mesh(mesh):
                return steps(state, step, length)

        return Placement(lay, advance, errors, batch_of)
    return Placement(lay, _from_devices(train, config, mesh), errors, batch_of)


def _from_devices(train: Samples, config: TrainingConfig, mesh: Mesh) -> Callable:
    train = sharded.place_train(train, mesh)

    def advance(state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        with jax.set_mesh(mesh):
            return sharded.sharded_chunk(state, train, config, length)

    return advance


class _Streamed:
    """Advances on batches from the host; buckets one step at a time, for their sizes differ."""

    def __init__(self, train: Samples | Buckets, config: TrainingConfig, mesh: Mesh) -> None:
        self._train, self._config, self._mesh = jax.tree.map(np.asarray, train), config, mesh
        self._is_mixed = isinstance(train, Buckets)
        self._mean_nodes = None
        if self._is_mixed:
            self._mean_nodes = np.float32(mean_nodes(train, config.batch_size))
        self._stream: Stream | None = None
        self.seconds_waited = 0.0

    def __call__(self, state: TrainState, step: int, length: int) -> tuple[TrainState, StepMetrics]:
        stream, found = self._stream_at(state, step), []
        self.seconds_waited = 0.0
        call = 1 if self._is_mixed else length
        with jax.set_mesh(self._mesh):
            for _ in range(length // call):
                batches = stream.take(call)
                self.seconds_waited += stream.seconds_waited
                state, part = sharded.streamed_chunk(state, batches, self._config, self._mean_nodes)
                found.append(part)
        return state, jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(found))

    def _stream_at(self, state: TrainState, step: int) -> Stream:
        if self._stream is None:
            key = jax.random.wrap_key_data(
                np.asarray(jax.random.key_data(state.sampler_key)),
                impl=jax.random.key_impl(state.sampler_key),
            )
            self._stream = Stream(self._train, key, self._config, self._mesh)
        if self._stream.get_state() != {"next_step": step}:
            self._stream.set_state({"next_step": step})
        return self._stream
