"""Checks of one array (dtype, rank, axes, finite values) and of one integer."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KINDS = {"integer": jnp.integer, "floating": jnp.floating, "boolean": jnp.bool_}


def check_array(
    name: str, array: Any, kind: str, shape: tuple[str | int, ...], sizes: dict[str, int]
) -> None:
    """Checks dtype and shape, never values.

    Args:
      name: the array's name in messages.
      array: the array to check.
      kind: `integer`, `floating`, `boolean`, or several of them joined by " or ".
      shape: a letter or a number for each axis.
      sizes: known sizes by letter; a letter not yet in it is added with the size of its axis.

    Raises:
      ValueError: if it is not an array of this dtype and shape.
    """
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise ValueError(f"{name}: got {type_name(array)}, expected an array; use jnp.asarray")
    known = ", ".join(f"{letter} = {sizes[letter]}" for letter in shape if letter in sizes)
    wanted = f"{kind} [{', '.join(map(str, shape))}]" + (f" with {known}" if known else "")
    error = f"{name}: got {array.dtype} {shape_text(array)}, expected {wanted}; "
    if not any(jnp.issubdtype(array.dtype, _KINDS[word]) for word in kind.split(" or ")):
        raise ValueError(f"{error}convert it with .astype")
    if len(array.shape) != len(shape):
        raise ValueError(f"{error}rank {len(array.shape)} must be {len(shape)}")
    for axis, (letter, size) in enumerate(zip(shape, array.shape, strict=True)):
        expected = sizes.setdefault(letter, size) if isinstance(letter, str) else letter
        if size != expected:
            raise ValueError(f"{error}axis {axis} must have length {expected}")


def check_finite(name: str, array: Any) -> None:
    """Raises ValueError if a value is NaN or infinite in the dtype that JAX computes in."""
    array = as_jax_sees(array)
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        value, place = array[tuple(bad[0])], ", ".join(map(str, bad[0]))
        raise ValueError(
            f"{name}: got {value} at [{place}] and {len(bad) - 1} more such values (as "
            f"{array.dtype}), expected finite values; clean the data first"
        )


def as_jax_sees(array: Any) -> np.ndarray:
    """Rounds to the dtype that JAX computes in: float32, unless its x64 mode is on."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def as_floating(array: Any, name: str = "array") -> np.ndarray:
    """Converts numbers to the floating dtype that JAX would give them."""
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name}: got {error}, expected an array of numbers") from error
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
        came = "None" if array.shape == () and array.item() is None else array.dtype
        raise ValueError(f"{name}: got {came} {shape_text(array)}, expected an array of numbers")
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.float64)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def as_count(name: str, value: Any, least: int) -> int:
    """Returns an integer of any library, `least` or more, as a Python integer."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}, expected an integer >= {least}")
    return count


def type_name(value: Any) -> str:
    """Names a type, the same for a tracer as for the array that it represents."""
    return "array" if hasattr(value, "shape") else type(value).__name__


def shape_text(array: Any) -> str:
    """Formats a shape as docstrings write it, `[5, 3]`."""
    return str(list(np.shape(array)))
