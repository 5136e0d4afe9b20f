"""Products over channels, at a given precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def matmul(
    x: Float[Array, "... A"], kernel: Float[Array, "A B"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Multiplies along the last axis: `y_b = sum_a x_a kernel_ab`, in the dtype of the inputs.

    `precision` is the name of a `jax.lax.Precision`, here and in the functions below.
    """
    return jnp.matmul(x, kernel, precision=precision)


def linear(
    weights: Mapping[str, Array], x: Float[Array, "... A"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Applies `y = x kernel + bias` with `weights` `kernel` `[A, B]` and `bias` `[B]`."""
    return matmul(x, weights["kernel"], precision) + weights["bias"]


def mlp(
    weights: Mapping[str, Mapping[str, Array]],
    x: Float[Array, "... A"],
    precision: str = "highest",
) -> Float[Array, "... B"]:
    """Applies the model's two-layer perceptron: `linear_1(SiLU(linear_0(x)))`.

    `weights` has `linear_0` and `linear_1`, each with `kernel` and `bias`.
    """
    hidden = jax.nn.silu(linear(weights["linear_0"], x, precision))
    return linear(weights["linear_1"], hidden, precision)
