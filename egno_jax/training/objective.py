"""What training minimises and evaluations measure: losses, errors and metrics."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from egno_jax import metrics as metrics_lib
from egno_jax import model
from egno_jax.checks import as_count
from egno_jax.datasets.base import Batch, Samples, num_samples, take, validate
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.metrics import Errors
from egno_jax.model import Params, Trajectory
from egno_jax.training.batches import in_shares
from egno_jax.training.config import TrainingConfig
from egno_jax.training.devices import constrain, map_shares

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LossFn = Callable[[Callable[..., Trajectory], Params, Batch], Any]
Metric = Callable[[Trajectory, Batch], Any]
# As `jit` takes them: names and functions.
Metrics = tuple[tuple[str, Metric], ...]

_ERRORS = ("f_mse", "a_mse", "mse_per_time")
_RESERVED = ("kind", "step", "seconds", *_ERRORS)


def loss_fn(params: Params, batch: Batch) -> Float[Array, ""]:
    """Returns `mse_loss` with the weight `params.config.velocity_weight` of the velocities."""
    return mse_loss(model.apply, params, batch, params.config.velocity_weight)


def mse_loss(
    apply: Callable[..., Trajectory], params: Params, batch: Batch, velocity_weight: float = 0.0
) -> Float[Array, ""]:
    """Returns `A-MSE(positions) + velocity_weight A-MSE(velocities)`, the default loss.

    Args:
      apply: `egno_jax.apply`.
      params: the model.
      batch: the graphs and their targets.
      velocity_weight: see `TrainingConfig`.

    Raises:
      ValueError: the velocities have a weight and the batch has none.
    """
    predicted = apply(params, batch.graph, batch.times)
    loss = metrics_lib.a_mse(predicted.positions, batch.positions, batch.node_mask)
    if velocity_weight == 0:
        return loss
    if batch.velocities is None:
        raise ValueError(
            f"batch.velocities: got None with velocity_weight={velocity_weight}, expected the "
            "target velocities; train with velocity_weight=0 without them"
        )
    velocities = metrics_lib.a_mse(predicted.velocities, batch.velocities, batch.node_mask)
    return loss + velocity_weight * velocities


def velocity_weight(params: Params, config: TrainingConfig) -> float:
    """Returns the weight of the velocity error; the model's (deprecated) if the training's is 0."""
    return config.velocity_weight or params.config.velocity_weight


def check_loss(loss_fn: LossFn, params: Params, data: Samples | Buckets) -> None:
    """Raises a ValueError if a loss does not return a floating scalar; computes nothing."""
    _check_function("loss_fn", loss_fn, "model", "params", "batch")
    found = _shape_of(functools.partial(loss_fn, model.apply), params, data)
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        got = f"{dtype} of shape {list(shape)}" if shape is not None else type(found).__name__
        raise ValueError(
            f"loss_fn: got {got}, expected a floating scalar, the mean over the batch's real nodes"
        )


def _check_function(name: str, function: Any, *arguments: str) -> None:
    """Raises a ValueError if it does not take these arguments, or `jit` cannot tell it apart."""
    try:
        with contextlib.suppress(ValueError):  # of what has no signature
            inspect.signature(function).bind(*arguments)
    except TypeError as error:  # it cannot be called, or not with these
        raise ValueError(
            f"{name}: got {function!r}, expected a function of ({', '.join(arguments)})"
        ) from error
    try:
        hash(function)
    except TypeError as error:
        raise ValueError(
            f"{name}: got {type(function).__name__}, which has no hash, expected a function; make "
            "a class of it that has one, such as @dataclass(frozen=True)"
        ) from error


def _shape_of(function: Callable[..., Any], params: Params, data: Samples | Buckets) -> Any:
    """Returns the shapes of what a function of the model and a batch returns."""
    part = by_size(data)[0]
    batch = jax.eval_shape(lambda samples: take(samples, np.arange(1)), part)
    return jax.eval_shape(function, params, batch)


def evaluate(
    params: Params,
    samples: Samples | Buckets,
    *,
    batch_size: int = 500,
    metrics: Mapping[str, Metric] | None = None,
) -> Errors | tuple[Errors, dict[str, Any]]:
    """Returns F-MSE, A-MSE and the error at each time of the positions, every real node equal.

    Args:
      params: the model.
      samples: the data set, of one size or in buckets; every sample is used once.
      batch_size: samples evaluated together, at least 1.
      metrics: further metrics by name, see `fit`.

    Returns:
      The errors, in the squared unit of the positions. With `metrics` a pair of the errors and
      `{name: result}`.

    Raises:
      ValueError: there are no samples, a value is not finite, or they do not fit the model; or a
        metric is not summable.
    """
    batch_size = as_count("batch_size", batch_size, 1)
    model.check_params(params)
    parts = by_size(samples)
    for part in parts:
        validate(part)
    chosen = tuple((metrics or {}).items())
    check_metrics(chosen, params, samples)
    shares = [in_shares(part, 1) for part in parts]
    errors, found = measure(params, shares, batch_size=batch_size, metrics=chosen)
    return errors if metrics is None else (errors, found)


def measure(
    params: Params, parts: Sequence[Samples], *, batch_size: int, metrics: Metrics
) -> tuple[Errors, dict[str, Any]]:
    """Does what `evaluate` does, compiled and without checks, on samples in shares of each size."""
    sums = [_sums(params, part, batch_size=batch_size, metrics=metrics) for part in parts]
    errors, *found = jax.tree.map(lambda *leaves: sum(leaves), *jax.device_get(sums))
    results = {name: each.finalize() for (name, _), each in zip(metrics, found, strict=True)}
    return jax.jit(metrics_lib.ErrorSums.finalize)(errors), results


@functools.partial(jax.jit, static_argnames=("batch_size", "metrics"))
def _sums(params: Params, shares: Samples, *, batch_size: int, metrics: Metrics) -> list[Any]:
    """Returns the sums of the errors and of each metric, on samples `[D, S, ...]`."""
    batch_size = min(-(-batch_size // shares.positions.shape[0]), shares.positions.shape[1])

    def sums_of_batch(samples: Samples, start: Array) -> list[Any]:
        indices = start + jnp.arange(batch_size)
        batch = take(samples, indices)
        # The last batch is filled up with the last sample, which must not count again.
        is_new = jnp.repeat(indices < num_samples(samples), batch.node_mask.shape[0] // batch_size)
        batch = batch._replace(node_mask=batch.node_mask & is_new)
        return _measured((_errors, *(metric for _, metric in metrics)), params, batch)

    def sums_of_share(samples: Samples) -> list[Any]:
        def add_batch(sums: list[Any], start: Array) -> tuple[list[Any], None]:
            return jax.tree.map(jnp.add, sums, sums_of_batch(samples, start)), None

        starts = jnp.arange(0, num_samples(samples), batch_size)
        shapes = jax.eval_shape(sums_of_batch, samples, starts[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add_batch, zeros, starts)[0]

    found = map_shares(sums_of_share, shares)
    return constrain(jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=leaf.dtype), found))


def _measured(metrics: Sequence[Metric], params: Params, batch: Batch) -> list[Any]:
    predicted = model.apply(params, batch.graph, batch.times)
    return [metric(predicted, batch) for metric in metrics]


def _errors(predicted: Trajectory, batch: Batch) -> metrics_lib.ErrorSums:
    return metrics_lib.squared_errors(predicted.positions, batch.positions, batch.node_mask)


def check_metrics(
    metrics: Metrics, params: Params, data: Samples | Buckets, select_by: str = "f_mse"
) -> None:
    """Raises a ValueError if a metric is not summable, or no evaluation has the entry `select_by`.

    Computes no metric: only `finalize` is called, on sums of 1.
    """
    scalars = ["f_mse", "a_mse"]
    for name, metric in metrics:
        if name in _RESERVED or not isinstance(name, str):
            raise ValueError(f"metrics: got the name {name!r}, expected none of {_RESERVED}")
        _check_function(f"metrics[{name!r}]", metric, "predicted", "batch")
        if metric in (metrics_lib.f_mse, metrics_lib.a_mse):
            raise ValueError(
                f"metrics[{name!r}]: got egno_jax.metrics.{metric.__name__}, which every "
                "evaluation has already; expected a function of (predicted, batch)"
            )
        found = _shape_of(functools.partial(_measured, (metric,)), params, data)[0]
        is_number = [jnp.issubdtype(leaf.dtype, jnp.number) for leaf in jax.tree.leaves(found)]
        if not (callable(getattr(found, "finalize", None)) and is_number and all(is_number)):
            raise ValueError(
                f"metrics[{name!r}]: got {type(found).__name__}, expected sums that add up leaf by "
                "leaf and have .finalize(), such as egno_jax.metrics.Mean(total, weight)"
            )
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), found)
        entries = entries_of({name: ones.finalize()})
        scalars += [entry for entry, value in entries.items() if not isinstance(value, list)]
    if select_by not in scalars:
        raise ValueError(f"select_by: got {select_by!r}, expected one of {scalars}")


def entries_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns results of metrics as entries of a record: numbers, lists, None for no finite number.

    A metric with several results has an entry for each, `name.field`.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _plain(np.asarray(leaf).tolist())
        for path, leaf in jax.tree_util.tree_leaves_with_path(dict(found))
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if np.isfinite(value) else None
