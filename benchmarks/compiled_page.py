"""Tables and pictures of the compiler's figures, made from `benchmarks/results/compiled.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import records, tables
from benchmarks.chips import accelerator_of, least_seconds

Entry = dict[str, Any]

NOTE = "**The compiler's figures; nothing was run.**"


def seconds(target: str, entry: Entry) -> float | None:
    """Returns the estimated cycles as a time at the chip's clock, if there is an estimate."""
    clock = accelerator_of(target).clock
    if clock is None or entry.get("cycles") is None:
        return None
    return entry["cycles"] / clock


def floor(name: str, entry: Entry) -> float:
    """Returns the least time of the work of an entry on one device."""
    target, _, _, row = name.split("/")
    return least_seconds(target, row, entry["least_operations"], entry["least_bytes"])


def line(name: str, entry: Entry) -> str:
    """Returns an entry in one line, for the terminal."""
    if "error" in entry:
        return f"{name}: does not fit: {entry['error']}"
    parts = [f"{entry['launches']} launches"]
    time = seconds(name.partition("/")[0], entry)
    if time is not None:
        over = time / floor(name, entry)
        parts.append(
            f"{entry['cycles'] / 1e6:.3g} M cycles, {tables.seconds(time)}, {over:.1f} x floor"
        )
        parts.append(f"{entry['without_estimate']} without an estimate")
    parts.append(f"{entry['gathers']} gathers, {entry['scatters']} scatters")
    parts += [
        f"{kind} {found['count']} of {tables.megabytes(found['bytes'])}"
        for kind, found in entry["collectives"].items()
    ]
    parts.append(f"{tables.megabytes(entry['temporary_bytes'])} temporary")
    parts.append(f"compiled in {entry['compile_seconds']:.0f} s")
    return f"{name}: {'; '.join(parts)}"


def write(directory: Path) -> None:
    """Writes `results/compiled.md` and its pictures from `results/compiled.json`."""
    record = records.read(directory / "results" / "compiled.json")
    lines = [f"- {line(name, entry)}" for name, entry in record["entries"].items()]
    text = "\n".join(["# Compiled for accelerators", "", NOTE, "", *lines, ""])
    (directory / "results").mkdir(parents=True, exist_ok=True)
    (directory / "results" / "compiled.md").write_text(text)
