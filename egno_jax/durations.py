"""Lengths of time as people write them: `500fs`, `2ps`, `30frames`, `30`."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

FRAME = "frame"
"""The unit of times that are counted in frames."""

FEMTOSECOND = "fs"
"""The unit of all other times."""

_FEMTOSECONDS = {"as": 1e-3, "fs": 1.0, "ps": 1e3, "ns": 1e6, "us": 1e9, "ms": 1e12, "s": 1e15}
_PATTERN = re.compile(r"\s*([-+0-9.eE]+)\s*([a-z]*)\s*")


class Duration(NamedTuple):
    """A length of time.

    Attributes:
      value: the number.
      unit: `"fs"` or `"frame"`.
    """

    value: float
    unit: str


def parse(text: str | float | Duration, name: str = "time") -> Duration:
    """Reads a number with a unit: as, fs, ps, ns, us, ms, s, or frames; frames without one.

    Raises:
      ValueError: it is not a finite number above 0 with one of these units; names `name`.
    """
    if isinstance(text, Duration):
        return text
    match = _PATTERN.fullmatch(str(text))
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    unit = match[2] if match else ""
    is_frames = unit in ("", "frame", "frames")
    if not (math.isfinite(value) and value > 0) or not (is_frames or unit in _FEMTOSECONDS):
        raise ValueError(
            f"{name}: got {text!r}, expected a number above 0 and a unit of "
            f"{[*_FEMTOSECONDS, 'frames']}, such as 500fs, 2ps or 30frames"
        )
    if is_frames:
        return Duration(value, FRAME)
    return Duration(value * _FEMTOSECONDS[unit], FEMTOSECOND)


def convert(duration: Duration, unit: str, spacing: float | None, name: str = "time") -> float:
    """Returns a duration as a number in a unit.

    Args:
      duration: the duration.
      unit: `"fs"` or `"frame"`.
      spacing: femtoseconds from one frame to the next; None if unknown.
      name: what the duration is, for errors.

    Raises:
      ValueError: frames and femtoseconds cannot be converted, as `spacing` is None.
    """
    if duration.unit == unit:
        return duration.value
    if spacing is None:
        raise ValueError(
            f"{name}: got {duration.value:g} {duration.unit}, expected {unit}s, as the data "
            "have no times; give the time between frames (time_step) or count frames"
        )
    return duration.value * spacing if unit == FEMTOSECOND else duration.value / spacing


def format_time(value: float, unit: str) -> str:
    """Returns a time for people: `2 ps`, `30 frames`."""
    if unit == FRAME:
        return f"{value:g} frame{'' if value == 1 else 's'}"
    return f"{value / 1e3:g} ps" if value >= 1e3 else f"{value:g} fs"
