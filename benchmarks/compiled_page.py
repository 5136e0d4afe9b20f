"""Tables and pictures of the compiler's figures, made from `benchmarks/results/compiled.json`."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import markdown
from benchmarks.chips import chip_of, least_seconds

Entry = dict[str, Any]

NAME = "compiled"
NOTE = "The compiler's figures; nothing was run."
KINDS = {"forward": "Forward pass", "step": "Training step"}
_INTRODUCTION = """## Compiled for accelerators

Written by `python -m benchmarks.compiled` from `results/compiled.json`. XLA compiled the programs
for devices that were not there. **Every figure of this section is the compiler's; nothing was
run.** [README.md](README.md) describes the figures. `ours` is this library, `naive` the plain
segment-sum version of the same model, `ours-pallas` this library with its Pallas kernel, `ours-O1`
at XLA's effort level O1; other rows are other precisions and other checkouts.
"""


class Row(NamedTuple):
    """An entry with the parts of its name.

    Attributes:
      target: a chip or a slice.
      case: the name of the case.
      kind: `forward` or `step`; on a slice the mesh.
      variant: whose program it is.
      entry: its figures, or `error` if it does not fit the device's memory.
    """

    target: str
    case: str
    kind: str
    variant: str
    entry: Entry


def rows_of(record: dict[str, Any]) -> list[Row]:
    """Returns the entries of the results, by target, case and kind, ours first."""
    rows = [Row(*name.split("/"), entry) for name, entry in record["entries"].items()]
    return sorted(rows, key=lambda row: (*row[:3], row.variant != "ours", row.variant))


def seconds(row: Row) -> float | None:
    """Returns the estimated cycles as a time at the chip's clock, if there is an estimate."""
    chip, cycles = chip_of(row.target), row.entry.get("cycles")
    return None if chip is None or cycles is None else cycles / chip.clock


def floor(row: Row) -> float | None:
    """Returns the least time of the work of an entry on one device; None on a GPU."""
    chip, work = chip_of(row.target), row.entry
    if chip is None or "least_operations" not in work:
        return None
    return least_seconds(chip, row.variant, work["least_operations"], work["least_bytes"])


def line(name: str, entry: Entry) -> str:
    """Returns an entry in one line, for the terminal."""
    if "error" in entry:
        return f"{name}: does not fit: {entry['error']}"
    row = Row(*name.split("/"), entry)
    parts = [f"{entry['launches']} launches"]
    if seconds(row) is not None:
        parts.append(f"{_millions(row)} cycles, {_time(row)}, {_over_floor(row)} x floor")
        parts.append(f"{entry['without_estimate']} without an estimate")
    parts.append(f"{entry['gathers']} gathers, {entry['scatters']} scatters")
    if entry["collectives"]:
        parts.append(_collectives(row))
    parts.append(f"{markdown.megabytes(entry['temporary_bytes'])} temporary")
    parts.append(f"compiled in {_compiling(entry)}")
    return f"{name}: {'; '.join(parts)}"


# Cells


def _millions(row: Row) -> str:
    return f"{row.entry['cycles'] / 1e6:.3g} M"


def _time(row: Row) -> str:
    return markdown.seconds(seconds(row))


def _floor(row: Row) -> str:
    return markdown.seconds(floor(row))


def _over_floor(row: Row) -> str:
    return f"{seconds(row) / floor(row):.3g}"


def _collectives(row: Row) -> str:
    found = row.entry["collectives"].items()
    cells = (f"{each['count']} {kind}, {markdown.megabytes(each['bytes'])}" for kind, each in found)
    return "; ".join(cells) or "none"


def _compiling(entry: Entry) -> str:
    return f"{entry['compile_seconds']:.0f} s ({entry['compile_cpu_seconds']:.0f} s)"


def _figure(name: str) -> Callable[[Row], Any]:
    return lambda row: row.entry[name]


def _memory(name: str) -> Callable[[Row], str]:
    return lambda row: markdown.megabytes(row.entry[f"{name}_bytes"])


Columns = dict[str, Callable[[Row], Any]]

_ESTIMATES: Columns = {
    "estimated cycles": _millions,
    "as a time": _time,
    "floor": _floor,
    "time / floor": _over_floor,
}
_COUNTS: Columns = {"launches": _figure("launches")}
_UNESTIMATED: Columns = {"without an estimate": _figure("without_estimate")}
_INDEXING: Columns = {"gathers": _figure("gathers"), "scatters": _figure("scatters")}
_MEMORY: Columns = {
    "accessed": lambda row: _memory("accessed")(row) if row.entry.get("accessed_bytes") else "–",
    "temporaries": _memory("temporary"),
    "arguments": _memory("argument"),
    "outputs": _memory("output"),
}
_COMPILING: Columns = {"compiled in (CPU time)": lambda row: _compiling(row.entry)}
_NAMES: Columns = {"case": lambda row: _sizes(row), "": lambda row: row.variant}
_TPU = _NAMES | _ESTIMATES | _COUNTS | _UNESTIMATED | _INDEXING | _MEMORY | _COMPILING
_GPU = _NAMES | _COUNTS | _INDEXING | _MEMORY | _COMPILING
_POD: Columns = {
    "slice": lambda row: row.target,
    "mesh": lambda row: row.kind,
    **_NAMES,
    "time without collectives": _time,
    "time / floor": _over_floor,
    "collectives, bytes a chip": _collectives,
    **_INDEXING,
    **_MEMORY,
    **_COMPILING,
}


def _sizes(row: Row) -> str:
    sizes = row.entry.get("sizes", {})
    return f"{row.case} ({', '.join(f'{key} {value}' for key, value in sizes.items())})"


def _table(rows: Sequence[Row], columns: Columns) -> str:
    """Returns a table with the note that nothing was run; empty without rows."""
    if not rows:
        return ""
    cells = []
    for row in rows:
        is_there = "error" not in row.entry
        names = {"slice", "mesh", "case", ""}
        cells.append(
            [
                cell(row) if is_there or title in names else "does not fit"
                for title, cell in columns.items()
            ]
        )
    return f"{markdown.table([*columns], cells)}\n\n*{NOTE}*\n"


# The page


def page(record: dict[str, Any], images: Sequence[str] = ()) -> str:
    """Returns the section of the benchmarks page."""
    rows = rows_of(record)
    parts = [_INTRODUCTION, *(f"![{image}](results/{image})\n\n*{NOTE}*\n" for image in images)]
    for target in dict.fromkeys(row.target for row in rows if ":" not in row.target):
        for kind, title in KINDS.items():
            found = [row for row in rows if row.target == target and row.kind == kind]
            columns = _GPU if chip_of(target) is None else _TPU
            if found:
                parts += [f"### {target}, {title.lower()}\n", _table(found, columns)]
    pods = [row for row in rows if ":" in row.target]
    if pods:
        parts += ["### Training steps on slices, each chip\n", _table(pods, _POD)]
    parts += ["### What made these figures\n", _provenance(record)]
    return "\n".join(parts)


def _provenance(record: dict[str, Any]) -> str:
    rows = []
    for number, run in record["runs"].items():
        names = [name for name, entry in record["entries"].items() if entry["run"] == number]
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        made = f"Python {run['python']}, {versions}"
        cells = [f"`{run['command']}`", run["commit"], run["date"], run["machine"], made]
        rows.append([*cells, ", ".join(names)])
    titles = ["command", "commit", "date", "compiled on", "versions", "entries"]
    return markdown.table(titles, rows) + "\n"


# Pictures


def pictures(directory: Path, record: dict[str, Any]) -> list[str]:
    """Draws the figures of programs for one chip into a directory and returns their file names."""
    rows = rows_of(record)
    drawn = {
        "times": lambda: _draw(rows, "estimated time over the floor", _ratio),
        "launches": lambda: _draw(rows, "launches", lambda row: row.entry["launches"]),
    }
    return markdown.write_pictures(directory, NAME, drawn)


def _ratio(row: Row) -> float | None:
    return None if seconds(row) is None else seconds(row) / floor(row)


def _draw(rows: Sequence[Row], title: str, value: Callable[[Row], float | None]) -> Any:
    """Draws bars by case and variant, with axes for each kind of program and chip.

    Other precisions are in the tables alone: their floors differ. So are chips for which only one
    variant has a training step.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    known = [row for row in rows if ":" not in row.target and "error" not in row.entry]
    known = [row for row in known if value(row) is not None and "ours-" not in row.variant]
    steps = {(row.target, row.variant) for row in known if row.kind == "step"}
    counts = collections.Counter(target for target, _ in steps)
    targets = [each for each in dict.fromkeys(row.target for row in known) if counts[each] > 1]
    if not targets:
        return None
    known = [row for row in known if row.target in targets]
    variants = list(dict.fromkeys(row.variant for row in known))
    figure = Figure(figsize=(max(3.2 * len(targets), 5) + 1, 6), layout="constrained")
    grid = figure.subplots(len(KINDS), len(targets), squeeze=False, sharey="row")
    for index, kind in enumerate(KINDS):
        for axes, target in zip(grid[index], targets, strict=True):
            found = [row for row in known if (row.kind, row.target) == (kind, target)]
            names = list(dict.fromkeys(row.case for row in found))
            for row in found:
                offset = 0.8 * variants.index(row.variant) / len(variants)
                colour = f"C{variants.index(row.variant)}"
                place = names.index(row.case) + offset
                axes.bar(place, value(row), width=0.8 / len(variants), color=colour)
            middle = 0.4 - 0.4 / len(variants)
            axes.set_xticks([place + middle for place in range(len(names))], names, rotation=30)
            axes.set_title(f"{target}, {KINDS[kind].lower()}", fontsize="medium")
        grid[index][0].set_ylabel(title)
    colours = [Patch(color=f"C{number}", label=name) for number, name in enumerate(variants)]
    figure.legend(handles=colours, loc="outside lower center", ncols=len(variants))
    figure.suptitle(NOTE, fontsize="medium")
    return figure
