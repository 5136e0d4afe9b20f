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
# The channels that a TPU computes with at once.
_LANES = 128


def matmul(
    x: Float[Array, "... A"], kernel: Float[Array, "A B"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Multiplies along the last axis: `y_b = sum_a x_a kernel_ab`, in the dtype of the inputs.

    `precision` is the name of a `jax.lax.Precision`, here and in the functions below. A single
    column is a sum of products in float32 or wider, at any precision: compilers join its gradient
    with other sums.
    """
    if kernel.shape == (x.shape[-1], 1):
        return _column(x, kernel)
    return jnp.matmul(x, kernel, precision=precision)


def _column(
    x: Float[Array, "... A"], kernel: Float[Array, "A 1"], bias: Float[Array, "1"] | float = 0.0
) -> Float[Array, "... 1"]:
    """Computes `x kernel + bias` as one sum of A terms, each with a share of the bias."""
    dtype = jnp.result_type(x, kernel, bias)
    wide = jnp.result_type(dtype, jnp.float32)
    share = jnp.asarray(bias, wide) / max(x.shape[-1], 1)
    terms = x.astype(wide) * kernel[:, 0].astype(wide) + share
    return jnp.sum(terms, axis=-1, keepdims=True).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def matmul_of_two(
    first: Float[Array, "... A"],
    second: Float[Array, "... B"],
    kernel: Float[Array, "A+B C"],
    precision: str,
) -> Float[Array, "... C"]:
    """Computes `matmul([first, second], kernel)`.

    Its derivative has a product for each of the two on a TPU, where the derivative of a
    concatenation takes longer to split than to compute.
    """
    return matmul(jnp.concatenate([first, second], axis=-1), kernel, precision)


def _matmul_of_two_jvp(precision: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    first, second, kernel = primals
    *of_parts, of_kernel = tangents

    def in_one(first: Array, second: Array, kernel: Array) -> Array:
        return matmul(jnp.concatenate([first, second], axis=-1), kernel, precision)

    def apart(first: Array, second: Array, kernel: Array) -> Array:
        width = first.shape[-1]
        parts = matmul(first, kernel[:width], precision), matmul(second, kernel[width:], precision)
        return parts[0] + parts[1]

    result = matmul_of_two(*primals, precision)
    tangent = jnp.zeros_like(result)
    if not all(map(_is_zero, of_parts)):
        of_parts = map(_instantiated, of_parts, primals)
        tangent += jax.lax.platform_dependent(*of_parts, kernel, tpu=apart, default=in_one)
    if not _is_zero(of_kernel):
        tangent += in_one(first, second, of_kernel)
    return result, tangent


matmul_of_two.defjvp(_matmul_of_two_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def matmul_at_times(
    x: Float[Array, "*edges A"], kernel: Float[Array, "A B"], num_times: int, precision: str
) -> Float[Array, "P *edges B"]:
    """Computes `matmul(x, kernel)` of values that are the same at all P times.

    From 128 channels on, the derivative of the kernel is one product over edges and times on a TPU,
    which takes several times as long to sum over the times first.
    """
    return _repeated(matmul(x, kernel, precision), num_times)


def _repeated(x: Float[Array, "*edges B"], num_times: int) -> Float[Array, "P *edges B"]:
    return jnp.broadcast_to(x, (num_times, *x.shape))


def _matmul_at_times_jvp(
    num_times: int, precision: str, primals: Any, tangents: Any
) -> tuple[Array, Array]:
    x, kernel = primals
    of_x, of_kernel = tangents

    def once(x: Array, kernel: Array) -> Array:
        return _repeated(matmul(x, kernel, precision), num_times)

    def at_each(x: Array, kernel: Array) -> Array:
        return matmul(_repeated(x, num_times), kernel, precision)

    on_tpu = at_each if kernel.shape[1] >= _LANES else once
    result = matmul_at_times(*primals, num_times, precision)
    tangent = jnp.zeros_like(result)
    if not _is_zero(of_x):
        tangent += once(of_x, kernel)
    if not _is_zero(of_kernel):
        tangent += jax.lax.platform_dependent(x, of_kernel, tpu=on_tpu, default=once)
    return result, tangent


matmul_at_times.defjvp(_matmul_at_times_jvp, symbolic_zeros=True)


def linear(
    weights: Mapping[str, Array], x: Float[Array, "... A"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Applies `y = x kernel + bias` with `weights` `kernel` `[A, B]` and `bias` `[B]`."""
    return _affine_reference(x, weights["kernel"], weights["bias"], precision)


def _affine_reference(
    x: Float[Array, "... A"], kernel: Float[Array, "A B"], bias: Float[Array, "B"], precision: str
) -> Float[Array, "... B"]:
    def plain(x: Array, kernel: Array, bias: Array) -> Array:
        return matmul(x, kernel, precision) + bias

    # A TPU adds the bias within the sum, if that has terms.
    if x.shape[-1] and kernel.shape == (x.shape[-1], 1):
        return jax.lax.platform_dependent(x, kernel, bias, tpu=_column, default=plain)
    return plain(x, kernel, bias)


def linear_by_products(
    weights: Mapping[str, Array], x: Float[Array, "... A"], precision: str = "highest"
) -> Float[Array, "... B"]:
    """Computes `linear`; its gradients of weights are matrix products alone on a TPU.

    For values of `egno_jax.ops.Blocks`, over whose axes a TPU sums slowly: for the gradient of one
    bias as long as two matrix products take.
    """
    return _affine(x, weights["kernel"], weights["bias"], precision)


_affine = jax.custom_jvp(_affine_reference, nondiff_argnums=(3,))


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
    of_weights = map(_instantiated, of_weights, primals[1:])
    product, plain = (
        functools.partial(function, precision=precision)
        for function in (affine_as_product, _affine_reference)
    )
    return result, tangent + jax.lax.platform_dependent(x, *of_weights, tpu=product, default=plain)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _instantiated(tangent: Any, primal: Array) -> Array:
    return jnp.zeros_like(primal) if _is_zero(tangent) else tangent


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
