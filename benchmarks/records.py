"""The file of results: entries, and the run that made each of them.

    {"runs": {"1": {"command": ..., "commit": ..., "device": ..., "versions": ..., "date": ...}},
     "entries": {"step/nbody-p5": {"run": "1", "seconds": {...}, ...}}}

A later run replaces only its own entries; each entry refers to the run that made it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from egno_jax.files import write_text

EMPTY: dict[str, Any] = {"runs": {}, "entries": {}}


def read(path: Path) -> dict[str, Any]:
    """Reads a file of results; without the file there are none."""
    if not path.exists():
        return EMPTY
    return json.loads(path.read_text())


def merge(old: dict[str, Any], run: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """Adds the entries of one more run to `old`; runs without entries are dropped."""
    number = str(1 + max(map(int, old["runs"]), default=0))
    merged = {**old["entries"], **{name: {"run": number, **e} for name, e in entries.items()}}
    used = {entry["run"] for entry in merged.values()}
    runs = {**old["runs"], number: run}
    return {
        "runs": {key: runs[key] for key in sorted(used, key=int)},
        "entries": {name: merged[name] for name in sorted(merged)},
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes a file of results atomically."""
    write_text(path, json.dumps(_rounded(results), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Rounds every real number to six digits."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
