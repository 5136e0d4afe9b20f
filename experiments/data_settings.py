"""What the settings of the data share: checks of fields, and names of tasks."""

from __future__ import annotations

import math
import typing
from typing import Any

from egno_jax.config import check_field


def check_choices(config: Any) -> None:
    """Raises a ValueError that names a field whose value its `Literal` type does not list."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is typing.Literal:
            choices = [*typing.get_args(hint)]
            check_field(config, name, getattr(config, name) in choices, f"one of {choices}")


def check_positive(config: Any, *names: str) -> None:
    """Raises a ValueError that names a field unless it is finite and above 0, an integer from 1."""
    for name in names:
        value = getattr(config, name)
        expected = "1 or more" if isinstance(value, int) else "a number above 0"
        is_valid = 0 < value < math.inf and not isinstance(value, bool)
        check_field(config, name, is_valid, expected)


def check_targets(config: Any) -> None:
    """Raises a ValueError unless `num_targets` fit into `window`."""
    in_window = 1 <= config.num_targets <= config.window
    check_field(config, "num_targets", in_window, f"1 to {config.window}, the frames of the window")


def split_sizes(data: Any) -> dict[str, int]:
    """Returns the number of samples by split."""
    return {split: getattr(data, f"num_{split}") for split in ("train", "valid", "test")}


def named(*parts: str, **changes: tuple[Any, Any]) -> str:
    """Returns the name of a task: words that are not empty, and settings that are not the usual.

    `changes` are value and usual value; `field=value` is added where they differ.
    """
    others = [f"{key}={value}" for key, (value, usual) in changes.items() if value != usual]
    return ", ".join([*filter(None, parts), *others])


def unusual(data: Any, usual: Any, *fields: str) -> dict[str, tuple[Any, Any]]:
    """Returns value and usual value of some settings in `data`, for `named`."""
    return {field: (getattr(data, field), getattr(usual, field)) for field in fields}
