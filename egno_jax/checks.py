"""Checks of arrays (dtype, rank, axes, finite values), of numbers and seeds, and of JSON."""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Lengths above this have squares that float32 cannot hold, whatever their unit.
LARGEST_LENGTH = 1e18
# JAX without its x64 mode, and NumPy's legacy generator, take 32 bits of a seed.
LARGEST_SEED = 2**32 - 1

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


def is_finite(number: float) -> bool:
    """Returns whether a number is finite as a float; an integer may be too large for that."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def as_count(name: str, value: Any, least: int) -> int:
    """Returns an integer of any library, `least` or more, as a Python integer."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}, expected an integer >= {least}")
    return count


def as_seed(name: str, value: Any, most: int = LARGEST_SEED) -> int:
    """Returns a seed of any library as a Python integer, if all generators keep it apart."""
    seed = as_count(name, value, 0)
    if seed > most:
        raise ValueError(
            f"{name}: got {value}, expected at most {most}: beyond, different seeds may give the "
            "same numbers; choose a smaller one"
        )
    return seed


def is_length(array: Any) -> np.ndarray:
    """Returns which numbers are finite, and small enough for squares of distances in float32."""
    return np.abs(array) <= LARGEST_LENGTH


def parse_json(text: str | bytes, place: str) -> Any:
    """Parses JSON; whatever is wrong with it is a ValueError that begins with `place`."""
    try:
        return json.loads(text)
    # Bytes that are no UTF-8, numbers of thousands of digits; brackets in brackets in brackets.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error}), expected a JSON text") from error


def type_name(value: Any) -> str:
    """Names a type, the same for a tracer as for the array that it represents."""
    return "array" if hasattr(value, "shape") else type(value).__name__


def shape_text(array: Any) -> str:
    """Formats a shape as docstrings write it, `[5, 3]`."""
    return str(list(np.shape(array)))
