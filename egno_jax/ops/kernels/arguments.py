"""What the calls of all kernels share: whether arguments fit, and the types of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from egno_jax.ops.kernels import library

if TYPE_CHECKING:
    from jaxtyping import Array

# A kernel's vectors have at most so many numbers, and it has no tails.
_LANES = 16


def fits(arrays: Sequence[Array], shapes: Sequence[Sequence[int]], widths: Sequence[int]) -> bool:
    """Says whether the kernels have something to do: float32, whole vectors, no broadcasting."""
    return (
        all(array.dtype == jnp.float32 for array in arrays)
        and [array.shape for array in arrays] == [tuple(shape) for shape in shapes]
        and all(width > 0 and width % _LANES == 0 for width in widths)
        and all(size > 0 for size in arrays[0].shape)
        and library.load().is_loaded
    )


def floats(*shapes: Sequence[int]) -> list[jax.ShapeDtypeStruct]:
    """Returns the types of float32 arrays of these shapes, for `jax.ffi.ffi_call`."""
    return [jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for shape in shapes]


def pick(gradients: Sequence[Array], wanted: tuple[bool, ...]) -> list[Array]:
    """Returns the gradients that are wanted, of those of all arguments."""
    return [gradient for gradient, is_wanted in zip(gradients, wanted, strict=True) if is_wanted]
