"""Batches of a run: which samples at which times, with which noise, from the devices or the host.

The samples of a step depend on the seed and the number of the step alone. A batch is always split
into D shares, one for each part of the mesh axis `data`, which are stacked along a leading axis:
a flat batch split by nodes would make XLA gather the features of all nodes on every device.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from egno_jax import ops
from egno_jax.checks import as_count
from egno_jax.datasets.argument_checks import check_choice
from egno_jax.datasets.base import Batch, Samples, num_samples, prepared, take
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.extras import require
from egno_jax.rolling import check_columns, with_state
from egno_jax.training.config import COLUMNS, NoiseConfig, TrainingConfig
from egno_jax.training.devices import constrain, global_array, map_shares, shape_of, time_axis

if TYPE_CHECKING:
    from jaxtyping import Array, Int

# Folded into the sampler's key; far from the numbers of epochs, which are folded into it too.
NOISE, TIMES = 0x7FFFFFFE, 0x7FFFFFFF
# Samples of each size whose features are compared with their states.
_NUM_CHECKED = 16


def sampler_key(config: TrainingConfig) -> Array:
    """Returns the random key of a run's batches, noise and times."""
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch; the other samples wait for the next epoch.

    Raises:
      ValueError: a batch is larger than the data set.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(
            f"batch_size: got {batch_size}, expected from 1 to {num_samples}, the number of samples"
        )
    return num_samples // batch_size


def _batches_per_epoch(counts: int | Sequence[int], batch_size: int) -> list[int]:
    if isinstance(counts, int):
        return [steps_per_epoch(counts, batch_size)]
    found = []
    for bucket, count in enumerate(counts):
        try:
            found.append(steps_per_epoch(count, batch_size))
        except ValueError as error:
            raise ValueError(f"bucket {bucket}: {error}; make fewer buckets") from error
    return found


def batch_indices(
    key: Array, step: Int[Array, ""] | int, num_samples: int, batch_size: int
) -> Int[Array, "B"]:
    """Returns the samples of a step: a slice of its epoch's permutation.

    It depends on key and step alone, so a run that is resumed, or cut into other chunks, sees the
    same batches. No sample is seen twice in an epoch.

    Args:
      key: the sampler's random key.
      step: the number of steps already done; may be traced.
      num_samples: S, size of the data set.
      batch_size: B.

    Returns:
      `[B]`, indices in `[0, S)`.
    """
    epoch_length = steps_per_epoch(num_samples, batch_size)
    permutation = _permutation(key, step // epoch_length, num_samples)
    return jax.lax.dynamic_slice_in_dim(permutation, step % epoch_length * batch_size, batch_size)


def _permutation(key: Array, epoch: Int[Array, ""] | int, size: int) -> Int[Array, "S"]:
    return jax.random.permutation(jax.random.fold_in(key, epoch), size)


class BucketSampler:
    """The batch of each step as a function of the key and the step alone, on the host.

    For samples of one size this is `batch_indices`. With buckets, an epoch contains every full
    batch of every bucket, in one shuffled order.

    Args:
      key: the sampler's random key.
      counts: number of samples; or that of each bucket.
      batch_size: B.

    Attributes:
      steps_per_epoch: number of batches in an epoch.
      num_batches: those of each bucket.

    Raises:
      ValueError: there are fewer samples than in a batch; names the bucket.
    """

    def __init__(self, key: Array, counts: int | Sequence[int], batch_size: int) -> None:
        self.num_batches = num_batches = _batches_per_epoch(counts, batch_size)
        self.steps_per_epoch = sum(num_batches)

        @functools.lru_cache(maxsize=2)
        def epoch_plan(epoch: int) -> list[tuple[int, np.ndarray]]:
            buckets, sizes, keys = np.repeat(range(len(num_batches)), num_batches), [counts], [key]
            if not isinstance(counts, int):
                buckets = buckets[np.asarray(_permutation(key, epoch, len(buckets)))]
                sizes, keys = counts, [jax.random.fold_in(key, 1 + b) for b in range(len(counts))]
            batches = [
                iter(np.asarray(_permutation(k, epoch, size))[: n * batch_size].reshape(n, -1))
                for k, size, n in zip(keys, sizes, num_batches, strict=True)
            ]
            return [(bucket, next(batches[bucket])) for bucket in buckets.tolist()]

        self._epoch_plan = epoch_plan

    def __call__(self, step: int) -> tuple[int, Int[np.ndarray, "B"]]:
        """Returns the bucket of a step and the samples of it that make up the batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch_plan(epoch)[place]


def sampler_of(data: Samples | Buckets, key: Array, batch_size: int) -> BucketSampler:
    """Returns the sampler of a training set."""
    is_mixed = isinstance(data, Buckets)
    counts = [*map(num_samples, data.samples)] if is_mixed else num_samples(data)
    return BucketSampler(key, counts, batch_size)


def mean_nodes(buckets: Buckets, num_batches: Sequence[int], batch_size: int) -> np.float32:
    """Returns the mean number of real nodes of a batch over an epoch."""
    nodes = [float(np.asarray(part.node_mask).sum(axis=1).mean()) for part in buckets.samples]
    return np.float32(batch_size * float(np.average(nodes, weights=num_batches)))


def time_indices(
    key: Array, num_times: int, num_kept: int, batch_size: int, *, kind: str
) -> Int[Array, "Q B"]:
    """Draws which of its target times each sample of a batch is trained on.

    Args:
      key: a random key.
      num_times: P, the number of targets.
      num_kept: Q, the number that is drawn, from 1 to P.
      batch_size: B.
      kind: `subsets`: any Q times, all equally likely; `grids`: Q equally spaced indices, of a
        spacing and from an offset that are drawn.

    Returns:
      `[Q, B]`, increasing along Q.
    """
    check_choice("kind", kind, ("subsets", "grids"))
    num_kept = as_count("num_kept", num_kept, 1, num_times)
    if kind == "subsets":
        order = jnp.argsort(jax.random.uniform(key, (num_times, batch_size)), axis=0)
        return jnp.sort(order[:num_kept], axis=0)
    spacing_key, offset_key = jax.random.split(key)
    largest = max((num_times - 1) // max(num_kept - 1, 1), 1)
    spacing = jax.random.randint(spacing_key, (batch_size,), 1, largest + 1)
    room = num_times - (num_kept - 1) * spacing
    offset = jax.random.randint(offset_key, (batch_size,), 0, room)
    return offset + spacing * jnp.arange(num_kept)[:, None]


def step_key(key: Array, step: Int[Array, ""], purpose: int = NOISE) -> Array:
    """Returns the key of a step's noise or times, so that a resumed run draws the same."""
    return jax.random.fold_in(jax.random.fold_in(key, purpose), step)


def add_noise(batch: Batch, key: Array, places: Int[Array, "B"], config: NoiseConfig) -> Batch:
    """Returns a batch with noise on its initial states and targets; works inside `jit`.

        x_i <- x_i + s_x e_i,    v_i <- v_i + s_v e'_i,    y_pi <- y_pi + s_y e''_pi

    with e, e', e'' ~ N(0, 1). Features that `config` names are recomputed. The noise of a sample
    depends on the key of the step and on the sample's place in its batch, `places`, and so not on
    how a mesh splits the batch.

    Raises:
      ValueError: the graph has no such column as the config names.

    Source: Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", Neural
    Computation 1995; Sanchez-Gonzalez et al., "Learning to Simulate Complex Physics with Graph
    Networks", ICML 2020, section 4.
    """
    if config.is_off:
        return batch
    batch = _with_noisy_targets(batch, key, places, config)
    if config.positions == config.velocities == 0:
        return batch
    nodes = batch.graph.nodes
    shape = (2, nodes["positions"].shape[0] // places.shape[0], 3)
    dtype = jnp.result_type(nodes["positions"].dtype, nodes["velocities"].dtype)

    def draw(place: Array) -> tuple[Array, ...]:
        return tuple(jax.random.normal(jax.random.fold_in(key, place), shape, dtype))

    noisy = [
        nodes[name] + getattr(config, name) * drawn.reshape(-1, 3).astype(nodes[name].dtype)
        for name, drawn in zip(("positions", "velocities"), jax.vmap(draw)(places), strict=True)
    ]
    return batch._replace(graph=with_state(batch.graph, *noisy, **_columns(config)))


def _with_noisy_targets(
    batch: Batch, key: Array, places: Int[Array, "B"], config: NoiseConfig
) -> Batch:
    if config.targets == 0:
        return batch
    num_times, num_nodes, _ = batch.positions.shape
    shape, dtype = (num_times, num_nodes // places.shape[0], 3), batch.positions.dtype

    def draw(place: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, place), 1)  # the state's is one level up
        return jax.random.normal(own, shape, dtype)

    drawn = jnp.moveaxis(jax.vmap(draw)(places), 0, 1).reshape(batch.positions.shape)
    return batch._replace(positions=batch.positions + config.targets * drawn)


def check_noise(data: Samples | Buckets, config: NoiseConfig) -> None:
    """Raises a ValueError if a column that the noise recomputes holds something else."""
    if config.is_off:
        return
    for part in by_size(data):
        part = jax.tree.map(np.asarray, part)
        graph = take(part, np.arange(min(num_samples(part), _NUM_CHECKED)), np).graph
        try:
            check_columns(graph, **_columns(config))
        except ValueError as error:
            raise ValueError(f"NoiseConfig.{error}") from error


def _columns(config: NoiseConfig) -> dict[str, int | None]:
    return {name: getattr(config, name) for name in COLUMNS}


def share_places(batch_size: int, num_shares: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of each share's samples in a batch, `[D, ceil(B / D)]` in `[0, B)`.

    Also returns which are a sample's; the others repeat the last one, so that shares are as large.
    """
    share_size = -(-batch_size // num_shares)
    places = np.arange(num_shares * share_size).reshape(num_shares, share_size)
    return np.minimum(places, batch_size - 1), places < batch_size


def take_shares(samples: Samples, indices: Int[Array, "B"]) -> Batch:
    """Gathers the samples of a step, with repetitions, in shares `[D, ...]`; works inside `jit`."""
    places, _ = share_places(indices.shape[0], ops.axis_size(ops.DATA_AXIS))
    return map_shares(functools.partial(take, samples), jnp.asarray(indices)[places])


def split_shares(shares: Batch) -> Batch:
    """Keeps on each device its share of the graphs, and its share of their times."""
    is_even = ops.num_missing_times(shares.positions.shape[1]) == 0
    over_time = [ops.TIME_AXIS] if is_even else []
    return by_kind(shares, lambda leaf, *axes: constrain(leaf, ops.DATA_AXIS, *axes), *over_time)


def without_repetitions(shares: Batch, batch_size: int) -> tuple[Batch, Int[Array, "D"]]:
    """Masks the repetitions of the last sample, and counts the real nodes of each share.

    A share of repetitions alone counts 0 nodes but keeps its mask, so that no loss divides by 0.
    """
    _, is_sample = share_places(batch_size, shares.node_mask.shape[0])
    is_empty = ~is_sample.any(axis=1)
    is_visible = is_sample | is_empty[:, None]
    mask = shares.node_mask
    if not is_visible.all():
        mask &= np.repeat(is_visible, mask.shape[1] // is_sample.shape[1], axis=1)
    return shares._replace(node_mask=mask), jnp.sum(mask, axis=1) * ~is_empty


def by_kind(data: Any, function: Callable[..., Any], *axes: Any) -> Any:
    """Maps `function(leaf, *axes)` over the targets of data, and `function(leaf)` over the rest."""
    mapped = jax.tree.map(function, data._replace(positions=None, velocities=None))
    targets = {"positions": data.positions, "velocities": data.velocities}
    return mapped._replace(**jax.tree.map(lambda leaf: function(leaf, *axes), targets))


def place(samples: Samples, mesh: Mesh | None, *axes: str) -> Samples:
    """Places samples, whose first axes are split as given, on the mesh; their times are split."""
    over_time = time_axis(mesh, samples.positions.shape[len(axes) + 1])

    def placed(leaf: Any, *others: str | None) -> jax.Array:
        return global_array(leaf, mesh, *axes, *others)

    return by_kind(samples, placed, None, over_time)


def in_shares(samples: Samples, num_shares: int) -> Samples:
    """Splits samples into D shares on the host, `[D, ceil(S / D), ...]`; repetitions are masked."""
    places, is_sample = share_places(num_samples(samples), num_shares)
    samples = prepared(samples)

    def split(leaf: Any) -> np.ndarray:
        return np.asarray(leaf)[None] if num_shares == 1 else np.asarray(leaf)[places]

    shares = jax.tree.map(split, samples._replace(times=None))
    if np.ndim(samples.times) == 2:
        times = split(samples.times)
    else:
        times = np.broadcast_to(samples.times, (num_shares, *np.shape(samples.times)))
    return shares._replace(times=times, node_mask=shares.node_mask & is_sample[..., None])


def place_valid(samples: Samples, mesh: Mesh | None) -> Samples:
    """Places a validation set on the mesh in shares, its times split."""
    return place(in_shares(samples, shape_of(mesh).data), mesh, ops.DATA_AXIS)


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
