"""What narrower products cost in accuracy: the rounding of accelerators, emulated on a CPU.

    python -m experiments.studies.precision

Accelerators multiply numbers in bfloat16 and add in float32. `matmul_precision="default"` rounds
both factors to bfloat16, `"high"` to the sum of two bfloat16 numbers, and `"highest"` keeps
float32. A CPU computes in float32 always, so here factors are rounded before the product, and
cotangents before the products of the derivative. `dtype="bfloat16"` needs no emulation. The
kernels for CPUs would round nothing, so they are off.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from egno_jax import EGNOConfig, training
from egno_jax.datasets import concatenate, nbody
from egno_jax.ops import kernels
from experiments.studies.paths import Budget
from experiments.studies.study import Figure, Record, Study, Workshop, main, panels

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "high": {"matmul_precision": "high"},
    "default": {"matmul_precision": "default"},
    "bfloat16": {"dtype": "bfloat16"},
}
_PARTS = {"default": 1, "high": 2}


SIZES = {
    "default": Budget(num_steps=1200),
    "smoke": Budget(num_train=20, num_test=10, num_steps=2, batch_size=4),
}


def rounded(x: jax.Array, parts: int) -> jax.Array:
    """Returns float32 numbers as the nearest sums of so many bfloat16 numbers."""
    total = jnp.zeros_like(x)
    for _ in range(parts):
        total += (x - total).astype(jnp.bfloat16).astype(x.dtype)
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _factor(x: jax.Array, parts: int) -> jax.Array:
    return rounded(x, parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _product(y: jax.Array, parts: int) -> jax.Array:
    return y


_factor.defvjp(lambda x, parts: (rounded(x, parts), None), lambda parts, _, g: (g,))
_product.defvjp(lambda y, parts: (y, None), lambda parts, _, g: (rounded(g, parts),))


def narrow(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a product of arrays that rounds as accelerators do, as its `precision` says."""

    @functools.wraps(function)
    def call(*args: Any, precision: Any = None, **options: Any) -> jax.Array:
        parts = _PARTS.get(precision)
        if parts is None:
            return function(*args, precision=precision, **options)
        args = [_factor(x, parts) if isinstance(x, jax.Array) else x for x in args]
        return _product(function(*args, precision=precision, **options), parts)

    return call


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Rounds in all products of a lower precision that are traced within the block."""
    if kernels.load().is_loaded:
        raise ValueError("EGNO_JAX_KERNELS: expected off, as kernels would not round; set it")
    with (
        mock.patch.object(jnp, "matmul", narrow(jnp.matmul)),
        mock.patch.object(jnp, "einsum", narrow(jnp.einsum)),
    ):
        yield


def measure(size: Budget, workshop: Workshop) -> Record:
    """Trains the model with each precision; returns the `errors` of each on the test set."""
    paths = {
        split: nbody.load_trajectories(split, num_simulations=number)
        for split, number in size.per_split().items()
    }
    train = concatenate(nbody.samples(paths["train"]), nbody.reversed_samples(paths["train"]))
    valid, test = nbody.samples(paths["valid"]), nbody.samples(paths["test"])
    config = size.training(size.num_steps)
    errors = {}
    for name, fields in PRECISIONS.items():
        model = EGNOConfig(time_scale=2.0, **fields)
        with emulated():
            params = workshop.train(name, model, config, train, valid)
            found = training.evaluate(params, test, batch_size=100)
        errors[name] = {"f_mse": float(found.f_mse), "a_mse": float(found.a_mse)}
    return {"errors": errors}


def draw(record: Record) -> Figure:
    """Draws the errors of all precisions."""
    figure, (axes,) = panels(1, 6, 2.5)
    for place, found in enumerate(record["errors"].values()):
        axes.barh(place, found["f_mse"], color="C0")
        axes.annotate(f" {found['f_mse']:.5f}", (found["f_mse"], place), va="center")
    axes.set_yticks(range(len(record["errors"])), [*record["errors"]])
    axes.invert_yaxis()
    axes.set(xlabel="F-MSE, 5 bodies")
    axes.margins(x=0.2)
    return figure


QUESTION = "How accurate are models that are trained with narrower products?"
STUDY = Study("precision", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    os.environ["EGNO_JAX_KERNELS"] = "off"
    raise SystemExit(main(STUDY))
