"""The page of results: `python -m benchmarks.tables` writes `benchmarks/RESULTS.md`.

Every number comes from `benchmarks/results/run-*.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import compiled_page, records
from benchmarks.markdown import megabytes, seconds, table, write_pictures
from egno_jax.files import write_text

OURS = "egno_jax"
# The goals: the least speed over PINA's, the most time over the floor, the most memory over PINA's.
SPEED_GOALS = {"step": 2.0, "inference": 2.5}
FLOOR_GOALS = {"step": 2.0, "inference": 1.5}
MEMORY_GOAL = 0.5
MODES_GOAL = 1.25
WORKLOADS = {"step": "Training step", "inference": "Inference"}

_INTRODUCTION = f"""# Speed

Written by `python -m benchmarks.tables` from the files in `benchmarks/results/`.
[README.md](README.md) describes what is measured and how.

Times are medians over rounds in which the peers run in turn, each in its own process; a ratio is
the median of the ratios within the rounds, its quartiles in brackets. `naive` is the plain
segment-sum version of the same model with the same weights, `pina` is PINA's
`EquivariantGraphNeuralOperator` on PyTorch at matched sizes (the differences are listed at the
end). Sizes are those of a batch: N nodes, E edges, P times, C channels, L layers. Columns such as
"at least 2" and "at most 0.5" show whether a goal is met.

Peak memory is what a process needs in addition to its imports and the same workload on one graph.
There are two figures, each with the goal of {MEMORY_GOAL:g} times PINA's: that of the compiled
workload, which limits the size of a batch; and the maximum "with compiling", when XLA compiles for
the new sizes (PyTorch does not compile).
"""

Entry = dict[str, Any]


def write(directory: Path) -> None:
    """Writes `RESULTS.md` and its pictures from the records in `directory/results`."""
    folder = directory / "results"
    sections = [
        page(records.read(path), pictures(folder, path.stem, records.read(path)))
        for path in sorted(folder.glob("run-*.json"))
    ]
    others = [
        f"- [{path.stem}](results/{path.name})" for path in sorted(folder.glob("spectral-*.md"))
    ]
    if others:
        sections.append("\n".join(["## Other measurements", "", *others, ""]))
    compiled = records.read(folder / f"{compiled_page.NAME}.json")
    if compiled["entries"]:
        images = compiled_page.pictures(folder, compiled)
        sections.append(compiled_page.page(compiled, images))
    write_text(directory / "RESULTS.md", "\n".join([_INTRODUCTION, *sections]))


def page(record: dict[str, Any], images: Sequence[str] = ()) -> str:
    """Returns the section of one device.

    Args:
      record: as `benchmarks.records.read` returns it.
      images: file names of its pictures.
    """
    entries = record["entries"]
    runs = record["runs"]
    newest = runs[max(runs, key=int)]
    parts = [f"## {newest['device']}\n"]
    for workload, title in WORKLOADS.items():
        parts += _section(title, comparison(entries, workload))
        parts += _section(f"Peak memory, {title.lower()}", memory(entries, workload))
    parts += _section("Compile time, seconds", compile_times(entries))
    parts += _section("Time to an error, 5-body problem", targets(entries))
    parts += _section("The floor, by parts", floors(entries))
    parts += _section("Where a training step's time goes", profiles(entries))
    parts += [f"![{image}]({Path('results') / image})\n" for image in images]
    parts += _section("Scaling", scaling(entries))
    parts += _section("Where the peers differ", notes(entries))
    parts += _section("What made these results", provenance(record))
    return "\n".join(parts)


def _section(title: str, body: str) -> list[str]:
    return [f"### {title}\n", f"{body}\n"] if body else []


def of_kind(entries: dict[str, Entry], kind: str) -> dict[str, Entry]:
    """Returns the entries `kind/name` by their names."""
    found = (name.partition("/") for name in entries)
    return {name: entries[f"{prefix}/{name}"] for prefix, _, name in found if prefix == kind}


def spread(value: dict[str, float]) -> str:
    """Formats a median with its quartiles."""
    return f"{value['median']:.2f} [{value['q1']:.2f}, {value['q3']:.2f}]"


def verdict(is_met: bool) -> str:
    """Returns whether a goal is met, as a cell."""
    return "yes" if is_met else "**no**"


# Tables


def comparison(entries: dict[str, Entry], workload: str) -> str:
    """Returns the times of all peers, their ratios to ours and, if measured, the floor."""
    goal, floor_goal = SPEED_GOALS[workload], FLOOR_GOALS[workload]
    rows = []
    for case, entry in of_kind(entries, workload).items():
        times, ratios = entry["seconds"], entry["ratio"]
        row = [f"{case} ({_sizes(entry)})"]
        row += [seconds(times[peer]["median"]) if peer in times else "" for peer in _peers(entries)]
        row += [spread(ratios["naive"]) if "naive" in ratios else ""]
        row += [spread(ratios["pina"]) if "pina" in ratios else "not measured"]
        row += [verdict(ratios["pina"]["median"] >= goal) if "pina" in ratios else ""]
        row += _over_floor(entries.get(f"floor/{case}"), entry, workload, floor_goal)
        rows.append(row)
    titles = ["case", *_peers(entries), "naive / ours", "pina / ours", f"at least {goal:g}"]
    return table([*titles, "floor", "ours / floor", f"at most {floor_goal:g}"], rows)


def _over_floor(floor: Entry | None, entry: Entry, workload: str, goal: float) -> list[str]:
    if floor is None or OURS not in entry["seconds"]:
        return ["", "", ""]
    least = floor[workload]["seconds"]
    over = entry["seconds"][OURS]["median"] / least
    return [seconds(least), f"{over:.2f}", verdict(over <= goal)]


def _peers(entries: dict[str, Entry]) -> list[str]:
    """Returns the peers that were timed, ours first, then those of the goals."""
    found = {peer for entry in entries.values() for peer in entry.get("seconds", ())}
    order = [OURS, "naive", "pina"]
    return [p for p in order if p in found] + sorted(found.difference(order))


def _sizes(entry: Entry) -> str:
    sizes = entry["sizes"]
    return ", ".join(f"{letter} {sizes[letter]}" for letter in "NEPCL")


def memory(entries: dict[str, Entry], workload: str) -> str:
    """Returns the peak memory of all peers and its ratio to PINA's."""
    rows = []
    for case, entry in of_kind(entries, f"memory-{workload}").items():
        found = entry["memory"]
        ours, theirs = found.get(OURS), found.get("pina")
        row = [f"{case}, on the {next(iter(found.values()))['of']}"]
        for peer in (OURS, "naive", "pina"):
            known = found.get(peer)
            row += [megabytes(known["run"]) if known else ""]
            row += [megabytes(known["peak"]) if known else ""]
        if ours and theirs:
            run, peak = (ours[key] / theirs[key] for key in ("run", "peak"))
            row += [f"{run:.2f}", verdict(run <= MEMORY_GOAL), f"{peak:.2f}"]
            row += [verdict(peak <= MEMORY_GOAL)]
        else:
            row += [""] * 4
        rows.append(row)
    titles = [f"{p}{w}" for p in (OURS, "naive", "pina") for w in ("", ", with compiling")]
    goal = f"at most {MEMORY_GOAL:g}"
    ratios = ["ours / pina", goal, "ours / pina, with compiling", f"{goal}, with compiling"]
    return table(["case", *titles, *ratios], rows)


def compile_times(entries: dict[str, Entry]) -> str:
    """Returns the seconds of tracing and compiling, in a fresh process where that was measured."""
    rows = []
    fresh = of_kind(entries, "compile")
    for workload, title in WORKLOADS.items():
        later = of_kind(entries, workload)
        for case in sorted({*later, *fresh}):
            known = dict(later[case]["compile"]) if case in later else {}
            known |= {k: v for k, v in fresh.get(case, {}).get(workload, {}).items() if v}
            cells = [f"{known[peer]:.1f}" if peer in known else "" for peer in (OURS, "naive")]
            rows.append([f"{case}, {title.lower()}", *cells])
    return table(["", OURS, "naive"], rows)


def scaling(entries: dict[str, Entry]) -> str:
    """Returns the exponents of all curves."""
    rows = []
    for name, entry in of_kind(entries, "scaling").items():
        for workload, title in WORKLOADS.items():
            found = entry[workload]
            times = ", ".join(seconds(point["median"]) for point in found["seconds"])
            row = [f"{name}: {entry['size']}", title, ", ".join(map(str, entry["values"])), times]
            row += [f"{found['exponent']:.2f}", f"{found['last_over_first']:.2f}"]
            rows.append([*row, *_scaling_goal(name, entry, found)])
    titles = ["curve", "", "sizes", "times", "exponent", "last / first", "goal", "met"]
    return table(titles, rows)


def _scaling_goal(name: str, entry: Entry, found: dict[str, Any]) -> tuple[str, str]:
    if name == "modes":
        is_met = found["last_over_first"] <= MODES_GOAL
        return f"last / first at most {MODES_GOAL:g}", verdict(is_met)
    if entry["limit"] is None:
        return "", ""
    return f"exponent at most {entry['limit']:g}", verdict(found["exponent"] <= entry["limit"])


def targets(entries: dict[str, Entry]) -> str:
    """Returns how long each peer took to reach the target."""
    rows = []
    for entry in of_kind(entries, "target").values():
        ours = entry["fits"].get(OURS)
        for peer, found in entry["fits"].items():
            reached = "yes" if found["is_reached"] else f"no, best {found['best_f_mse']:.4f}"
            over = f"{found['seconds'] / ours['seconds']:.2f}" if ours else ""
            row = [peer, f"{entry['target']:g}", reached, found["step"]]
            rows.append([*row, f"{found['seconds']:.1f} s", over])
    titles = ["peer", "target F-MSE", "reached", "steps", "training and evaluation", "over ours"]
    about = "One run with one seed; the same samples in the same batches. Compiling included."
    return table(titles, rows) + f"\n\n{about}" if rows else ""


def floors(entries: dict[str, Entry]) -> str:
    """Returns the parts of every floor: operations, evaluations or bytes, and seconds."""
    tables = []
    for case, entry in of_kind(entries, "floor").items():
        rows = []
        step = entry["step"]["parts"]
        for part in step:
            found = [entry[workload]["parts"].get(part) for workload in ("inference", "step")]
            cells = [
                [f"{known['count']:.3g}", seconds(known["seconds"])] if known else ["", ""]
                for known in found
            ]
            rows.append([part, *cells[0], *cells[1]])
        totals = [seconds(entry[workload]["seconds"]) for workload in ("inference", "step")]
        rows.append(["**sum**", "", totals[0], "", totals[1]])
        rates = entry["rates"]
        products = [known["rate"] for known in rates["products"].values()]
        about = (
            f"Matrix products up to {max(products) / 1e9:.3g} GFLOP/s, copies "
            f"{rates['copy'] / 1e9:.3g} GB/s, SiLU {rates['silu'] / 1e9:.3g} and its derivative "
            f"{rates['derivative'] / 1e9:.3g} billion a second."
        )
        titles = [case, "inference", "least time", "training step", "least time"]
        tables.append(f"{table(titles, rows)}\n\n{about}")
    return "\n\n".join(tables)


def profiles(entries: dict[str, Entry]) -> str:
    """Returns the seconds of a training step by kind of operation, and its slowest operations."""
    tables = []
    for case, entry in of_kind(entries, "profile").items():
        total = sum(kind["seconds"] for kind in entry["kinds"].values())
        rows = [
            [kind, f"{k['count']:.0f}", seconds(k["seconds"]), f"{k['seconds'] / total:.0%}"]
            for kind, k in entry["kinds"].items()
        ]
        by_kind = table([case, "operations", "own time, all threads", "share"], rows)
        rows = [[op["name"], op["kind"], seconds(op["seconds"])] for op in entry["ops"][:8]]
        tables += [by_kind, table([f"{case}, slowest", "kind", "own time"], rows)]
    return "\n\n".join(tables)


def notes(entries: dict[str, Entry]) -> str:
    """Returns the differences of the peers' models, and their numbers of parameters."""
    timed = [entry for entry in entries.values() if "notes" in entry]
    lines = {note: None for entry in timed for found in entry["notes"].values() for note in found}
    if not lines:
        return ""
    rows = [
        [case, *(entry["parameters"].get(peer, "") for peer in (OURS, "pina"))]
        for case, entry in of_kind(entries, "step").items()
    ]
    counts = table(["parameters", OURS, "pina"], rows)
    return "\n".join(f"- {note}." for note in lines) + f"\n\n{counts}"


def provenance(record: dict[str, Any]) -> str:
    """Returns the runs that made the entries."""
    rows = []
    for number, run in record["runs"].items():
        names = [name for name, entry in record["entries"].items() if entry["run"] == number]
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        threads = ", ".join(f"{name} {count}" for name, count in run["threads"].items())
        cells = [f"`{run['command']}`", run["commit"], run["date"], threads]
        rows.append([number, *cells, f"Python {run['python']}, {versions}", ", ".join(names)])
    titles = ["run", "command", "commit", "date", "threads", "versions", "entries"]
    return table(titles, rows)


def line(name: str, entry: Entry) -> str:
    """Returns an entry in one line, for the terminal."""
    if "seconds" in entry:
        times = ", ".join(f"{p} {seconds(t['median'])}" for p, t in entry["seconds"].items())
        ratios = ", ".join(f"{p} / ours {spread(r)}" for p, r in entry["ratio"].items())
        return f"{name}: {times}; {ratios}"
    if "memory" in entry:
        sizes = (
            f"{peer} {megabytes(found['run'])} ({megabytes(found['peak'])} with compiling)"
            for peer, found in entry["memory"].items()
        )
        return f"{name}: {', '.join(sizes)}"
    if "size" in entry:
        found = (f"{w} exponent {entry[w]['exponent']:.2f}" for w in WORKLOADS)
        return f"{name}: {', '.join(found)}"
    if "rates" in entry:
        found = (f"{w} at least {seconds(entry[w]['seconds'])}" for w in WORKLOADS)
        return f"{name}: {', '.join(found)}"
    if "kinds" in entry:
        found = (f"{kind} {seconds(each['seconds'])}" for kind, each in entry["kinds"].items())
        return f"{name}: step {seconds(entry['step_seconds'])}; {', '.join(found)}"
    if "fits" in entry:
        found = (f"{peer} {each['seconds']:.1f} s" for peer, each in entry["fits"].items())
        return f"{name}: {', '.join(found)}"
    found = (f"{w} {peer} {s:.1f} s" for w in WORKLOADS for peer, s in entry[w].items() if s)
    return f"{name}: {', '.join(found)}"


# Pictures


def pictures(directory: Path, name: str, record: dict[str, Any]) -> list[str]:
    """Draws the figures of a record into a directory and returns their file names, if any."""
    entries = record["entries"]
    drawn = {"times": lambda: _draw_times(entries), "scaling": lambda: _draw_scaling(entries)}
    return write_pictures(directory, name, drawn)


def _draw_times(entries: dict[str, Entry]) -> Any:
    """Draws the times of all peers over ours, and the floor's."""
    from matplotlib.figure import Figure

    found = {workload: of_kind(entries, workload) for workload in WORKLOADS}
    if not any(found.values()):
        return None
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (workload, cases) in zip(figure.subplots(1, 2), found.items(), strict=True):
        peers = _peers(cases)
        for index, peer in enumerate(peers):
            heights = [_over_ours(entry, peer) for entry in cases.values()]
            places = [place + 0.8 * index / len(peers) for place in range(len(cases))]
            axes.bar(places, heights, width=0.8 / len(peers), label=peer)
        for place, (case, entry) in enumerate(cases.items()):
            floor = entries.get(f"floor/{case}")
            if floor is not None and OURS in entry["seconds"]:
                least = floor[workload]["seconds"] / entry["seconds"][OURS]["median"]
                label = "floor" if place == 0 else None
                axes.hlines(least, place - 0.15, place + 0.7, color="black", label=label)
        axes.set_xticks([place + 0.25 for place in range(len(cases))], list(cases), rotation=20)
        axes.set_title(f"{WORKLOADS[workload]}, time over ours")
        if cases:
            axes.legend(fontsize="small")
    return figure


def _over_ours(entry: Entry, peer: str) -> float:
    if peer == OURS:
        return 1.0
    return entry["ratio"].get(peer, {"median": 0.0})["median"]


def _draw_scaling(entries: dict[str, Entry]) -> Any:
    """Draws time over size for every curve, both axes logarithmic."""
    from matplotlib.figure import Figure

    curves = of_kind(entries, "scaling")
    if not curves:
        return None
    rows = -(-len(curves) // 3)
    figure = Figure(figsize=(9, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False).flatten()
    for axes, (name, entry) in zip(grid, curves.items(), strict=False):
        for workload, title in WORKLOADS.items():
            medians = [point["median"] for point in entry[workload]["seconds"]]
            label = f"{title}, {entry[workload]['exponent']:.2f}"
            axes.loglog(entry["values"], medians, "o-", label=label)
        axes.set(title=name, xlabel=entry["size"], ylabel="seconds")
        axes.set_xticks(entry["values"], list(map(str, entry["values"])))
        axes.set_xticks([], minor=True)
        axes.legend(fontsize="small")
    for axes in grid[len(curves) :]:
        axes.set_axis_off()
    return figure


if __name__ == "__main__":
    write(Path(__file__).parent)
