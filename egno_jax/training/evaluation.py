"""Errors of a model over a whole data set."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from egno_jax import metrics, model
from egno_jax.datasets.base import Samples, num_samples, take, validate
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.model import Params


def evaluate(
    params: Params, samples: Samples | Buckets, *, batch_size: int = 500
) -> metrics.Errors:
    """Returns F-MSE, A-MSE and the error at each time of the positions, every real node equal.

    Args:
      params: the model.
      samples: the data set, of one size or in buckets; every sample is used once.
      batch_size: samples evaluated together, at least 1.

    Returns:
      The errors, in the squared unit of the positions.

    Raises:
      ValueError: there are no samples, a value is not finite, or they do not fit the model.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    model.check_params(params)
    parts = by_size(samples)
    for part in parts:
        validate(part)
    if len(parts) == 1:
        return errors_of(params, *parts, batch_size=batch_size)
    return errors_of_parts(params, parts, batch_size=batch_size)


def errors_of_parts(params: Params, parts: Sequence[Samples], *, batch_size: int) -> metrics.Errors:
    """Does what `evaluate` does on samples of several sizes, without looking at values."""
    sums = [error_sums_of(params, part, batch_size=batch_size) for part in parts]
    return functools.reduce(metrics.ErrorSums.merge, sums).finalize()


@functools.partial(jax.jit, static_argnames="batch_size")
def errors_of(params: Params, samples: Samples, *, batch_size: int) -> metrics.Errors:
    """Does what `evaluate` does, compiled, without looking at values."""
    return error_sums(params, samples, batch_size=batch_size).finalize()


@functools.partial(jax.jit, static_argnames="batch_size")
def error_sums_of(params: Params, samples: Samples, *, batch_size: int) -> metrics.ErrorSums:
    """Does what `error_sums` does, compiled."""
    return error_sums(params, samples, batch_size=batch_size)


def error_sums(params: Params, samples: Samples, *, batch_size: int) -> metrics.ErrorSums:
    """Returns the sums that the errors are the means of."""
    total = num_samples(samples)
    batch_size = min(batch_size, total)
    num_batches = -(-total // batch_size)

    def add_batch(sums: metrics.ErrorSums, start: jax.Array) -> tuple[metrics.ErrorSums, None]:
        indices = start + jnp.arange(batch_size)
        batch = take(samples, indices)
        # The last batch is filled up with the last sample, which must not count again.
        is_new = jnp.repeat(indices < total, batch.node_mask.shape[0] // batch_size)
        predicted = model.apply(params, batch.graph, batch.times)
        mask = batch.node_mask & is_new
        return sums.add(predicted.positions, batch.positions, mask), None

    starts = batch_size * jnp.arange(num_batches)
    sums, _ = jax.lax.scan(add_batch, metrics.ErrorSums.zero(samples.positions.shape[1]), starts)
    return sums
