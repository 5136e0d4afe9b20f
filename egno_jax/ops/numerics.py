"""Norms whose values and derivatives stay finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def squared_norm(vectors: Float[Array, "... 3"]) -> Float[Array, "... 1"]:
    """Returns `|v|^2`; the last axis is kept, with length 1."""
    return jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)


def safe_norm(vectors: Float[Array, "... 3"]) -> Float[Array, "... 1"]:
    """Returns `|v|`; the last axis is kept, with length 1. The gradient at zero is zero."""
    squared = squared_norm(vectors)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def limit_norm(vectors: Float[Array, "... 3"], max_norm: float) -> Float[Array, "... 3"]:
    """Scales vectors that are longer than `max_norm` to that length: `v min(1, max_norm / |v|)`.

    Unlike a clip of each component it commutes with rotations. The result is zero where the squared
    length overflows.
    """
    wide = vectors.astype(jnp.result_type(vectors.dtype, jnp.float32))
    squared = squared_norm(wide / max_norm)
    is_long = squared > 1
    scale = jnp.where(is_long, jax.lax.rsqrt(jnp.where(is_long, squared, 1.0)), 1.0)
    return (wide * scale).astype(vectors.dtype)
