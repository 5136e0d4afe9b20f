"""Checks of one array: its dtype, its rank and its axes, never its values."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

_KINDS = {"integer": jnp.integer, "floating": jnp.floating, "boolean": jnp.bool_}


def check_array(
    name: str, array: Any, kind: str, shape: tuple[str | int, ...], sizes: dict[str, int]
) -> None:
    """Checks dtype and shape; a letter takes its size from the first array that shows it.

    Args:
      name: what messages call the array.
      array: what should be one.
      kind: `integer`, `floating`, `boolean`, or several of them joined by " or ".
      shape: a letter or a number for each axis.
      sizes: the sizes of letters so far; those that the array shows first are added.

    Raises:
      ValueError: naming the array, what came and what was expected.
    """
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise ValueError(f"{name} must be an array, came {type_name(array)}; use jnp.asarray")
    came = f"came {array.dtype} {shape_text(array)}"
    known = [f"{letter} = {sizes[letter]}" for letter in shape if letter in sizes]
    letters = ", ".join(str(letter) for letter in shape)
    wanted = f"{name} must be {kind} [{letters}]" + (f" with {', '.join(known)}" if known else "")
    if not any(jnp.issubdtype(array.dtype, _KINDS[word]) for word in kind.split(" or ")):
        raise ValueError(f"{wanted}, {came}; convert it with .astype")
    if len(array.shape) != len(shape):
        raise ValueError(f"{wanted}, {came}: rank {len(array.shape)} instead of {len(shape)}")
    for axis, (letter, size) in enumerate(zip(shape, array.shape, strict=True)):
        expected = sizes.setdefault(letter, size) if isinstance(letter, str) else letter
        if size != expected:
            raise ValueError(f"{wanted}, {came}: axis {axis} is {size} instead of {expected}")


def type_name(value: Any) -> str:
    """Names a type, the same for a tracer as for the array that it stands for."""
    return "array" if hasattr(value, "shape") else type(value).__name__


def shape_text(array: Any) -> str:
    """Formats a shape as docstrings write it, `[5, 3]`."""
    return str(list(np.shape(array)))
