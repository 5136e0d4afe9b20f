"""Batches from the host, each process its share of them, by grain.

The samples of a step are those that `batch_indices` names, or `BucketSampler` for samples of
different sizes: the stream and the path on the device see the same batches, in any number of
processes. A process reads the samples of its own shares and
no others, so samples may be memory maps of files larger than the memory.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from egno_jax import ops
from egno_jax.datasets.base import Batch, Samples, num_samples
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.extras import require
from egno_jax.training.config import TrainingConfig
from egno_jax.training.mesh import time_axis
from egno_jax.training.mixed import BucketSampler
from egno_jax.training.sampler import epoch_permutation, steps_per_epoch
from egno_jax.training.sharded import share_places

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jaxtyping import Array, Bool, Int


class LocalShare(NamedTuple):
    """What of a batch this process's devices hold.

    Attributes:
      rows: which of the D shares, increasing.
      columns: which of the shares of the times, increasing.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def local_share(mesh: Mesh, process_index: int) -> LocalShare:
    """Returns what of a batch a process's devices hold."""
    is_local = np.vectorize(lambda device: device.process_index == process_index)(mesh.devices)
    rows, columns = (np.flatnonzero(is_local.any(axis=axis)).tolist() for axis in (1, 0))
    return LocalShare(tuple(rows), tuple(columns))


class StepBatches:
    """The batches of all steps of a run, in shares: a random-access source, as grain takes it.

    Element i is what one process reads for step i: a `Batch` of NumPy arrays whose leaves have a
    leading axis, the shares of `share.rows`; of the targets only the times of `share.columns`.

    Args:
      samples: the training set, of one size or in buckets; NumPy arrays or memory maps.
      key: the sampler's random key.
      config: the run's settings.
      mesh: the mesh.
      share: what is read; by default what this process's devices hold.
    """

    def __init__(
        self,
        samples: Samples | Buckets,
        key: Array,
        config: TrainingConfig,
        mesh: Mesh,
        share: LocalShare | None = None,
    ) -> None:
        self._parts, self._config = by_size(samples), config
        share = share or local_share(mesh, jax.process_index())
        places, is_sample = share_places(config.batch_size, mesh.shape[ops.DATA_AXIS])
        self._places, self._is_sample = places[list(share.rows)], is_sample[list(share.rows)]
        self._times = slice(None)
        num_times = self._parts[0].positions.shape[1]
        if time_axis(mesh, num_times):
            size = num_times // mesh.shape[ops.TIME_AXIS]
            self._times = slice(size * share.columns[0], size * (share.columns[-1] + 1))
        counts = [num_samples(part) for part in self._parts]
        if isinstance(samples, Buckets):
            self._draw = BucketSampler(key, counts, config.batch_size)
        else:
            self._draw = _one_size_sampler(key, *counts, config.batch_size)

    def __len__(self) -> int:
        return self._config.num_steps

    def __getitem__(self, step: int) -> Batch:
        part, indices = self._draw(int(step))
        return _read(self._parts[part], indices[self._places], self._is_sample, self._times)


def _one_size_sampler(
    key: Array, total: int, batch_size: int
) -> Callable[[int], tuple[int, Int[np.ndarray, "B"]]]:
    """Makes the function of the step that returns `batch_indices`; one permutation an epoch."""
    epoch_length = steps_per_epoch(total, batch_size)

    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.asarray(epoch_permutation(key, epoch, total))

    def draw(step: int) -> tuple[int, np.ndarray]:
        epoch, place = divmod(step, epoch_length)
        return 0, permutation(epoch)[place * batch_size :][:batch_size]

    return draw


class Stream:
    """Reads batches ahead of the steps that take them, and lays them on the mesh.

    Needs the extra `train`. What it remembers is the next step alone, so a run may go on from it
    in another number of processes.

    Args:
      samples: the training set, on the host; of one size or in buckets.
      key: the sampler's random key.
      config: the run's settings.
      mesh: the mesh.
      num_ahead: how many batches are read ahead.

    Attributes:
      seconds_waited: how long the last `take` waited for batches.

    Raises:
      ImportError: grain is not installed.
    """

    def __init__(
        self,
        samples: Samples | Buckets,
        key: Array,
        config: TrainingConfig,
        mesh: Mesh,
        num_ahead: int = 16,
    ) -> None:
        self._grain = require("grain", "train")
        self._mesh, self._share = mesh, local_share(mesh, jax.process_index())
        self._source = StepBatches(samples, key, config, mesh, self._share)
        self._num_times = by_size(samples)[0].positions.shape[1]
        self._options = self._grain.ReadOptions(num_threads=2, prefetch_buffer_size=num_ahead)
        self.seconds_waited = 0.0
        self.set_state({"next_step": 0})

    def get_state(self) -> dict[str, int]:
        """Returns what `set_state` takes, as JSON can hold it."""
        return {"next_step": self._next_step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the step of a state; what was read ahead is dropped."""
        self._next_step = state["next_step"]
        rest = self._grain.MapDataset.source(self._source)[self._next_step :]
        self._batches = iter(rest.to_iter_dataset(self._options))

    def take(self, num_steps: int) -> Batch:
        """Returns the batches of the next K steps, `[K, D, ...]`, split over the mesh.

        Batches from buckets have different sizes: take one at a time.
        """
        started = time.perf_counter()
        batches = [next(self._batches) for _ in range(num_steps)]
        self.seconds_waited = time.perf_counter() - started
        self._next_step += num_steps
        return self._laid(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))

    def _laid(self, batches: Batch) -> Batch:
        over_time = time_axis(self._mesh, self._num_times)
        positions, velocities = jax.tree.map(
            lambda leaf: self._global(leaf, over_time), (batches.positions, batches.velocities)
        )
        others = batches._replace(positions=None, velocities=None)
        others = jax.tree.map(self._global, others)
        return others._replace(positions=positions, velocities=velocities)

    def _global(self, local: np.ndarray, over_time: str | None = None) -> jax.Array:
        """Lays `[K, d, ...]` of this process, or `[K, d, p, ...]`, into the array of all."""
        rows, columns = self._share
        shape = [local.shape[0], self._mesh.shape[ops.DATA_AXIS], *local.shape[2:]]
        if over_time:
            shape[2] = self._num_times
            first_time = columns[0] * self._num_times // self._mesh.shape[ops.TIME_AXIS]

        def block(index: tuple[slice, ...]) -> np.ndarray:
            row = rows.index(index[1].start or 0)
            part = local[:, row : row + 1]
            if over_time:
                start = (index[2].start or 0) - first_time
                size = self._num_times // self._mesh.shape[ops.TIME_AXIS]
                part = part[:, :, start : start + size]
            return part

        axes = (None, ops.DATA_AXIS, *([over_time] if over_time else []))
        sharding = NamedSharding(self._mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(tuple(shape), sharding, block)


def _read(
    samples: Samples,
    indices: Int[np.ndarray, "d b"],
    is_sample: Bool[np.ndarray, "d b"],
    times: slice,
) -> Batch:
    """Reads samples as `take` joins them, in NumPy, one batch for each row of `indices`."""

    def join(leaf: np.ndarray, axis: int = 1) -> np.ndarray:
        return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])

    def targets(leaf: np.ndarray) -> np.ndarray:
        return join(np.moveaxis(leaf[:, times][indices], 2, 1), axis=2)

    positions, velocities = jax.tree.map(targets, (samples.positions, samples.velocities))
    graph = jax.tree.map(lambda leaf: leaf[indices], samples.graph)
    mask = samples.node_mask[indices] & is_sample[..., None]
    offset = mask.shape[2] * np.arange(indices.shape[1], dtype=np.int32)[:, None]
    graph = graph._replace(
        senders=graph.senders.astype(np.int32) + offset,
        receivers=graph.receivers.astype(np.int32) + offset,
    )
    return Batch(
        graph=jax.tree.map(join, graph),
        times=np.broadcast_to(samples.times, (indices.shape[0], *samples.times.shape)),
        positions=positions,
        velocities=velocities,
        node_mask=join(mask),
    )
