"""Checks of arrays, numbers, seeds, paths and JSON, and the texts of their messages."""

from __future__ import annotations

import json
import math
import operator
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Lengths above this have squares that float32 cannot hold, whatever their unit.
LARGEST_LENGTH = 1e18
# JAX without its x64 mode, and NumPy's legacy generator, take 32 bits of a seed.
LARGEST_SEED = 2**32 - 1
# Sizes and indices of arrays are int32.
LARGEST_COUNT = 2**31 - 1
# The last element, Og.
LARGEST_NUMBER = 118

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


def as_array(
    name: str, value: Any, kind: str, shape: tuple[str | int, ...], sizes: dict[str, int]
) -> np.ndarray:
    """Returns a value as an array on the host, which `check_array` has checked."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}, expected an array of numbers") from error
    check_array(name, array, kind, shape, sizes)
    return array


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
    array = np.asarray(array)
    with np.errstate(over="ignore"):
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def as_floating(name: str, array: Any) -> np.ndarray:
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
    return as_jax_sees(array)


def as_float(value: Any) -> float:
    """Returns a number of any library as a float; NaN for an integer too large, and all else."""
    try:
        is_other = isinstance(value, bool | np.bool_ | str | bytes) or np.ndim(value) > 0
        return math.nan if is_other else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def is_positive(value: Any) -> bool:
    """Returns whether a value is a finite number above 0."""
    return 0 < as_float(value) < math.inf


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless a value is a finite number above 0."""
    if not is_positive(value):
        raise ValueError(f"{name}: got {value_text(value)}, expected a finite number above 0")


def as_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Returns an integer of any library, within its limits, as a Python integer."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or (most is not None and count > most) or isinstance(value, bool):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}: got {value_text(value)}, expected an integer {limits}")
    return count


def as_window_times(times: Any, num_axes: int = 1) -> np.ndarray:
    """Returns the times of a window, `[P]` or `[P, G]`: finite, increasing along P and above 0."""
    shape = "[P]" if num_axes == 1 else "[P, G]"
    try:
        found = np.asarray(times, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"times: got {times!r}, expected numbers {shape}") from error
    is_valid = found.ndim == num_axes and found.size and np.isfinite(found).all()
    if not is_valid or not (np.diff(found, axis=0, prepend=0) > 0).all():
        raise ValueError(f"times: got {found.tolist()}, expected {shape}, increasing and above 0")
    return found


def as_seed(name: str, value: Any, most: int = LARGEST_SEED) -> int:
    """Returns a seed of any library as a Python integer, if all generators keep it apart."""
    seed = as_count(name, value, 0)
    if seed > most:
        raise ValueError(
            f"{name}: got {value_text(seed)}, expected at most {most}: beyond, different seeds may "
            "give the same numbers; choose a smaller one"
        )
    return seed


def check_key(key: Any) -> None:
    """Raises ValueError unless it is one random key of JAX, of either kind."""
    dtype, shape = getattr(key, "dtype", None), np.shape(key)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (shape == () if is_typed else dtype == jnp.uint32 and len(shape) == 1):
        came = type_name(key) if dtype is None else f"{dtype} {shape_text(key)}"
        raise ValueError(f"key: got {came}, expected one random key; use jax.random.key(0)")


def check_bound(bound: Any) -> None:
    """Raises ValueError unless a bound of coordinates is a number above 0, or traced."""
    is_traced = isinstance(bound, jax.core.Tracer) and bound.shape == ()
    if not (is_traced or as_float(bound) > 0):
        raise ValueError(f"bound: got {bound!r}, expected a number above 0; numpy.inf for none")


def as_path(name: str, value: Any) -> Path:
    """Returns a path; raises ValueError for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name}: got {type(value).__name__}, expected a path")
    return Path(value)


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


def shorten(text: object, width: int = 80) -> str:
    """Returns a text cut to `width` characters, ending in dots: files hold lines of any length."""
    text = str(text)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def error_text(error: Exception) -> str:
    """Returns the type and the text of an error, which may be anything, in one short line."""
    return shorten(" ".join(f"{type(error).__name__}: {error}".split()), 200)


def value_text(value: Any) -> str:
    """Formats a value for a message; of an integer of thousands of digits, its number of bits."""
    is_huge = isinstance(value, int) and value.bit_length() > 1024
    return f"an integer of {value.bit_length()} bits" if is_huge else repr(value)


def type_name(value: Any) -> str:
    """Names a type, the same for a tracer as for the array that it represents."""
    return "array" if hasattr(value, "shape") else type(value).__name__


def shape_text(array: Any) -> str:
    """Formats a shape as docstrings write it, `[5, 3]`."""
    return str(list(np.shape(array)))
