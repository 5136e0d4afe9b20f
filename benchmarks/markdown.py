"""Markdown tables, numbers in them, and the pictures of a page."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from egno_jax.files import replacing


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


def write_pictures(directory: Path, name: str, drawn: Mapping[str, Callable[[], Any]]) -> list[str]:
    """Writes figures to `<name>-<kind>.png`, where there are any; returns the names of the files.

    Without Matplotlib, which draws them, the pictures that are there stay.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return sorted(path.name for path in directory.glob(f"{name}-*.png"))
    written = []
    for kind, draw in drawn.items():
        if (figure := draw()) is not None:
            path = directory / f"{name}-{kind}.png"
            with replacing(path) as partial:
                figure.savefig(partial, dpi=90, metadata={"Software": None})
            written.append(path.name)
    return written
