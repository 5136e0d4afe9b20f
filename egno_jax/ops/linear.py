"""Products over channels, at a given precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# The fewest columns of a matrix product that XLA does not turn into a sum.
_MIN_COLUMNS = 8


def matmul(
    x: Float[Array, "... A"], kernel: Float[Array, "A B"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Multiplies along the last axis: `y_b = sum_a x_a kernel_ab`, in the dtype of the inputs.

    `precision` is the name of a `jax.lax.Precision`, here and in the functions below. A single
    column is a sum of products in float32 or wider, at any precision: compilers join its gradient
    with other sums.
    """
    if kernel.shape != (x.shape[-1], 1):
        return jnp.matmul(x, kernel, precision=precision)
    wide = jnp.result_type(x.dtype, kernel.dtype, jnp.float32)
    total = jnp.sum(x.astype(wide) * kernel[:, 0].astype(wide), axis=-1, keepdims=True)
    return total.astype(jnp.result_type(x.dtype, kernel.dtype))


def linear(
    weights: Mapping[str, Array], x: Float[Array, "... A"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Applies `y = x kernel + bias` with `weights` `kernel` `[A, B]` and `bias` `[B]`."""
    return matmul(x, weights["kernel"], precision) + weights["bias"]


def linear_by_products(
    weights: Mapping[str, Array], x: Float[Array, "... A"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Computes `linear`; its gradients of weights are matrix products alone on a TPU.

    For values of `egno_jax.ops.Blocks`, over whose axes a TPU sums slowly: for the gradient of one
    bias as long as two matrix products take.
    """
    return _affine(x, weights["kernel"], weights["bias"], precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _affine(
    x: Float[Array, "... A"], kernel: Float[Array, "A B"], bias: Float[Array, "B"], precision: str
) -> Float[Array, "... B"]:
    return matmul(x, kernel, precision) + bias


def affine_as_product(
    x: Float[Array, "... A"], kernel: Float[Array, "A B"], bias: Float[Array, "B"], precision: str
) -> Float[Array, "... B"]:
    """Computes `x kernel + bias` as `[x, 1] [kernel; bias]`, with at least 8 columns."""
    x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
    kernel = jnp.concatenate([kernel, bias[None]])
    width = kernel.shape[1]
    kernel = jnp.pad(kernel, ((0, 0), (0, max(0, _MIN_COLUMNS - width))))
    return jnp.matmul(x, kernel, precision=precision)[..., :width]


def _affine_jvp(precision: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, kernel, _ = primals
    of_x, *of_weights = tangents
    result = _affine(*primals, precision)
    tangent = (
        jnp.zeros_like(result)
        if _is_zero(of_x)
        else matmul(of_x, kernel, precision).astype(result.dtype)
    )
    if all(map(_is_zero, of_weights)):
        return result, tangent
    of_weights = [
        jnp.zeros_like(w) if _is_zero(t) else t
        for w, t in zip(primals[1:], of_weights, strict=True)
    ]
    product, plain = (
        functools.partial(function, precision=precision)
        for function in (affine_as_product, _affine)
    )
    return result, tangent + jax.lax.platform_dependent(x, *of_weights, tpu=product, default=plain)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


_affine.defjvp(_affine_jvp, symbolic_zeros=True)


def mlp(
    weights: Mapping[str, Mapping[str, Array]],
    x: Float[Array, "... A"],
    precision: str = "highest",
    affine: Callable[..., Array] = linear,
) -> Float[Array, "... B"]:
    """Applies the model's two-layer perceptron: `linear_1(SiLU(linear_0(x)))`.

    `weights` has `linear_0` and `linear_1`, each with `kernel` and `bias`; `affine` is `linear` or
    `linear_by_products`.
    """
    hidden = jax.nn.silu(affine(weights["linear_0"], x, precision))
    return affine(weights["linear_1"], hidden, precision)
