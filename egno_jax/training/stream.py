"""Batches that are read on the host ahead of the steps, and only where a process needs them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from egno_jax import ops
from egno_jax.datasets.base import Batch, Samples, prepared, take
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.extras import require
from egno_jax.training.batches import by_kind, sampler_of, share_places
from egno_jax.training.config import TrainingConfig
from egno_jax.training.devices import time_axis

if TYPE_CHECKING:
    from jaxtyping import Array


class LocalShare(NamedTuple):
    """The part of a batch that a process's devices hold: shares of samples and of times."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def local_share(mesh: Mesh, process_index: int) -> LocalShare:
    """Returns the part of a batch that a process's devices hold."""
    is_local = np.vectorize(lambda device: device.process_index == process_index)(mesh.devices)
    rows, columns = (np.flatnonzero(is_local.any(axis=axis)).tolist() for axis in (1, 0))
    return LocalShare(tuple(rows), tuple(columns))


class StepBatches:
    """The batches of all steps of a run in shares: a random-access source for grain.

    Element i is what one process reads for step i: a `Batch` of NumPy arrays whose leaves have a
    leading axis, the shares in `share.rows`, and whose targets have the times in `share.columns`.
    """

    def __init__(
        self,
        samples: Samples | Buckets,
        key: Array,
        config: TrainingConfig,
        mesh: Mesh,
        share: LocalShare,
    ) -> None:
        self._num_steps = config.num_steps
        self._places = share_places(config.batch_size, mesh.shape[ops.DATA_AXIS])[0][[*share.rows]]
        self._draw = sampler_of(samples, key, config.batch_size)
        times, num_times = slice(None), by_size(samples)[0].positions.shape[1]
        if time_axis(mesh, num_times):
            size = num_times // mesh.shape[ops.TIME_AXIS]
            times = slice(size * share.columns[0], size * (share.columns[-1] + 1))
        parts = [prepared(part) for part in by_size(samples)]
        self._parts = [by_kind(x, lambda leaf, *t: leaf[:, *t], times) for x in parts]

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> Batch:
        bucket, indices = self._draw(int(step))
        shares = [take(self._parts[bucket], indices[row], np) for row in self._places]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *shares)


class Stream:
    """Reads batches on the host ahead of the steps, by grain, and places them on the mesh.

    Each process reads its share of a batch alone, so samples may be memory maps of files larger
    than the memory. Batches are those that a training set on the devices gives, in any number of
    processes. The state is the next step alone, so a run may resume in another number of processes.
    Needs the extra `train`.

    Args:
      samples: the training set, on the host; of one size or in buckets.
      key: the sampler's random key.
      config: the run's settings.
      mesh: the mesh.

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
    ) -> None:
        self._grain = require("grain", "train")
        self._mesh, self._share = mesh, local_share(mesh, jax.process_index())
        samples = jax.tree.map(np.asarray, samples)
        self._source = StepBatches(samples, key, config, mesh, self._share)
        self._num_times = by_size(samples)[0].positions.shape[1]
        self._options = self._grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
        self.seconds_waited = 0.0
        self.set_state({"next_step": 0})

    def get_state(self) -> dict[str, int]:
        """Returns the state that `set_state` accepts, as JSON can hold it."""
        return {"next_step": self._next_step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the step of a state; batches that were read ahead are dropped."""
        self._next_step = state["next_step"]
        following = self._grain.MapDataset.source(self._source)[self._next_step :]
        self._batches = iter(following.to_iter_dataset(self._options))

    def take(self, num_steps: int) -> Batch:
        """Returns the batches of the next K steps, `[K, D, ...]`, split over the mesh.

        Batches from buckets have different sizes: take one at a time.
        """
        started = time.perf_counter()
        batches = [next(self._batches) for _ in range(num_steps)]
        self.seconds_waited = time.perf_counter() - started
        self._next_step += num_steps
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return by_kind(stacked, self._global, time_axis(self._mesh, self._num_times))

    def _global(self, local: np.ndarray, over_time: str | None = None) -> jax.Array:
        """Joins the parts of all processes, `[K, d, ...]` or `[K, d, p, ...]`, to one array."""
        rows, columns = self._share
        shape = [local.shape[0], self._mesh.shape[ops.DATA_AXIS], *local.shape[2:]]
        if over_time:
            shape[2] = self._num_times
            size = self._num_times // self._mesh.shape[ops.TIME_AXIS]

        def block(index: tuple[slice, ...]) -> np.ndarray:
            row = rows.index(index[1].start or 0)
            part = local[:, row : row + 1]
            if over_time:
                start = (index[2].start or 0) - columns[0] * size
                part = part[:, :, start : start + size]
            return part

        axes = (None, ops.DATA_AXIS, *([over_time] if over_time else []))
        sharding = NamedSharding(self._mesh, PartitionSpec(*axes))
        return jax.make_array_from_callback(tuple(shape), sharding, block)
