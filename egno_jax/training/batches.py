"""Batches of a run: which samples, at which times, and in which shares.

The samples of a step depend on the seed and the number of the step alone. A batch is always split
into D shares, one for each part of the mesh axis `data`, which are stacked along a leading axis:
a flat batch split by nodes would make XLA gather the features of all nodes on every device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from egno_jax import ops
from egno_jax.checks import as_count
from egno_jax.datasets.argument_checks import check_choice
from egno_jax.datasets.base import Batch, Samples, num_samples, prepared, take
from egno_jax.datasets.buckets import Buckets
from egno_jax.training.config import TrainingConfig
from egno_jax.training.devices import constrain, global_array, map_shares, shape_of, time_axis

if TYPE_CHECKING:
    from jaxtyping import Array, Int

# Folded into the sampler's key; far from the numbers of epochs, which are folded into it too.
NOISE, TIMES = 0x7FFFFFFE, 0x7FFFFFFF


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
