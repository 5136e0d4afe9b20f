"""Markdown tables, and numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table; empty if there are no rows."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    if not lines:
        return ""
    head = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join(head + lines)


def megabytes(value: float) -> str:
    """Formats a size in units of 1e6 bytes."""
    return f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


def seconds(value: float) -> str:
    """Formats a time with a unit that fits."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
