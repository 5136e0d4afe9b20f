"""Published results: appends those of runs, and builds the tables and pictures from all of them.

    python -m experiments.report runs/nbody-paper-seed3
    python -m experiments.report --freeze walk-wide runs/mine
    python -m experiments.report --out tables runs/mine-seed0 runs/mine-seed1
    python -m experiments.report --picture runs/mocap-run-seed0

The first appends a finished run to `results.jsonl` and writes `RESULTS.md`, its pictures and the
table in `README.md`. Settings that are in no file of `configs/` need `--freeze NAME`, which writes
it. `--out` does all of it, except the README, in a folder of yours.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egno_jax.files import replacing, write_text
from experiments import dot_plot, run_directory, run_pictures, run_records, settings
from experiments.data_settings import named
from experiments.published import RUN_AGAIN
from experiments.run_records import EXPERIMENTS, Row, append, by_task, load, rivals, selected

_ROOT = Path(__file__).parent.parent
_PAGE = Path(__file__).with_name("RESULTS.md")
_README, _IMAGES = _ROOT / "README.md", _ROOT / "docs" / "images"
_INTRODUCTION = Path(__file__).with_name("results_intro.md")
_HELP = "Publish results: experiments/RESULTS.md and the table in README.md."
_BEGIN, _END = "<!-- results: python -m experiments.report -->", "<!-- end of results -->"
_SUMMARY = (
    "task|unit|EGNO, F-MSE|baseline, F-MSE|no model, F-MSE|EGNO in its paper|its code run again|"
    "steps|seeds|notes"
)
# Predictions without a model: label, and key in the records.
_REFERENCES = (("x + v t", "linear_baseline"), ("nothing moves", "still_baseline"))
# Settings that make more training windows of the same frames.
_FURTHER = {
    "time_reversal": "reversed in time",
    "parts": "in parts",
    "scale_spread": "at other lengths",
}
_AHEAD = "task|error|EGNO|baseline|its error|seeds|EGNO, valid F-MSE|its valid F-MSE"
_TASK = "model|config|F-MSE|A-MSE|valid F-MSE|seeds|steps|minutes"


def table(head: str, lines: Sequence[Sequence[Any]]) -> str:
    """Returns a table in Markdown; an empty cell is a dash."""
    cells = [head.split("|"), ["---"] * len(head.split("|")), *lines]
    return "\n".join(f"| {' | '.join(str(cell) or '–' for cell in line)} |" for line in cells)


def summary(title: str, ours: Row, rows: Sequence[Row]) -> list[Any]:
    """Returns the cells of a task in the summary: EGNO, a baseline, no model, the literature."""
    known = {other.method: other for other in ours.experiment.published_for(ours.task)}
    notes, baseline, seeds = [f"`{ours.config}`"], "", str(ours.seeds)
    without = selected([row for row in rows if not row.settings.model.mean_field])
    if ours.settings.model.mean_field and without is not None:
        notes.append(f"without global message passing {without.spread('f_mse')}")
    plain = selected([row for row in rows if row.settings.model.layer == "egnn"])
    if ours.settings.model.layer != "egnn" and plain is not None:
        notes.append(f"with the original's layers (`{plain.config}`) {plain.spread('f_mse')}")
    also = [text for name, text in _FURTHER.items() if getattr(ours.settings.data, name, False)]
    if also:
        notes.append(f"training windows also {', '.join(also)}")
    for best in rivals(rows, ours)[:1]:
        baseline = f"{best.title}: {best.row.spread('f_mse')}"
        seeds += f" / {best.row.seeds}"
    cited = [known[m].cited("f_mse") if m in known else "" for m in ("EGNO", RUN_AGAIN)]
    still = min(errors["f_mse"] for _, errors in references(rows))
    cells = [
        title,
        ours.experiment.error_unit,
        ours.spread("f_mse"),
        baseline,
        f"{still:.5f}",
        *cited,
    ]
    return [*cells, ours.records[0]["steps"], seeds, "; ".join(notes)]


def count(title: str, tasks: Sequence[tuple[str, Row, Sequence[Row]]]) -> list[Any]:
    """Returns the cells of several tasks in the summary: in how many EGNO is ahead."""
    pairs = [(ours, best.row) for _, ours, rows in tasks for best in rivals(rows, ours)[:1]]
    wins = sum(ours.mean("f_mse") < best.mean("f_mse") for ours, best in pairs)
    models = ", ".join(dict.fromkeys(best.model for _, best in pairs))
    seeds = [max(row.seeds for row in side) for side in zip(*pairs, strict=True)]
    notes = ", ".join(dict.fromkeys(f"`{ours.config}`" for _, ours, _ in tasks))
    steps = sorted({ours.records[0]["steps"] for _, ours, _ in tasks})
    lower = [f"lower in {wins} of {len(pairs)}", f"{models}: lower in {len(pairs) - wins}"]
    cells = [
        title,
        tasks[0][1].experiment.error_unit,
        *lower,
        "",
        "",
        "",
        " or ".join(map(str, steps)),
    ]
    return [*cells, " / ".join(map(str, seeds)), notes]


def ahead(title: str, ours: Row, rows: Sequence[Row]) -> Iterator[tuple[Row, list[Any]]]:
    """Yields row and cells of each error in which a baseline of the same budget is lower."""
    for rival in rivals(rows, ours, same_budget=True):
        row = rival.row
        for label, key in (("F-MSE", "f_mse"), ("A-MSE", "a_mse")):
            if row.mean(key) < ours.mean(key):
                errors = [ours.spread(key), rival.title, row.spread(key)]
                valid = [each.spread("valid_f_mse") for each in (ours, row)]
                yield row, [title, label, *errors, f"{ours.seeds} / {row.seeds}", *valid]


def references(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields label and errors of each prediction without a model, with the most times."""
    for label, key in _REFERENCES:
        known = [record[key] for row in rows for record in row.records if key in record]
        if known:
            yield label, max(known, key=lambda errors: len(errors["mse_per_time"]))


def task_table(rows: Sequence[Row]) -> str:
    """Returns the table of all results of a task, the published ones included."""
    ours, lines = selected(rows), []
    better = [row.config for row, _ in ahead("", ours, rows)] if ours else []
    for row in rows:
        model = f"**{row.model}**" if row is ours else row.model
        model += " ▲" if row.config in better else ""
        errors = [row.spread(key) for key in ("f_mse", "a_mse", "valid_f_mse")]
        minutes = np.mean([record["train_seconds"] for record in row.records]) / 60
        cost = [row.seeds, row.records[0]["steps"], f"{minutes:.1f}"]
        lines.append([model, f"`{row.config}`", *errors, *cost])
    for title, errors in references(rows):
        over_all = f"{errors['a_mse']:.5f}" if len(errors["mse_per_time"]) > 1 else ""
        lines.append([title, "", f"{errors['f_mse']:.5f}", over_all, *[""] * 4])
    for other in rows[0].experiment.published_for(rows[0].task):
        errors = [other.cited("f_mse"), other.cited("a_mse")]
        lines.append([f"published: {other.method}", other.source, *errors, *[""] * 4])
    return table(_TASK, lines)


def section(name: str, tasks: Sequence[tuple[str, list[Row]]], folder: Path) -> Iterator[str]:
    """Yields the parts of an experiment's section: its picture and a table for each task."""
    experiment = EXPERIMENTS[name]
    yield (
        f"## {experiment.title}\n\n{experiment.summary} Errors are in {experiment.error_unit}. To "
        f"repeat a row: `python -m experiments.{name} --preset CONFIG --training.seed SEED`."
    )
    if dot_plot.draw(experiment, tasks, folder / f"{name}.png"):
        yield f"![F-MSE of every model]({folder.name}/{name}.png)"
    for task, rows in tasks:
        options = [f"--{k.replace('_', '-')} {v}" for k, v in rows[0].records[0]["varied"].items()]
        yield f"### {task}" + (f" (`{' '.join(options)}`)" if options else "") if task else ""
        yield task_table(rows)


def build(rows: Sequence[Row], page: Path, readme: Path | None = None) -> None:
    """Writes the page of results, its pictures to `results/` next to it, and the README's table."""
    tasks = {name: own for name in EXPERIMENTS if (own := by_task(rows, name))}
    compared = {
        (name, task): (named(EXPERIMENTS[name].title, task), ours, own)
        for name, of_task in tasks.items()
        for task, own in of_task
        if (ours := selected(own)) is not None
    }
    behind = [cells for each in compared.values() for _, cells in ahead(*each)]
    parts = [
        _INTRODUCTION.read_text().rstrip(),
        table(_SUMMARY, [summary(*each) for each in compared.values()]),
        "### Where a baseline is ahead\n\nBaselines with as many steps and samples a step as EGNO, "
        "each in its best config on the validation set.",
        table(_AHEAD, behind) if behind else "In no task.",
        *(part for each in tasks.items() for part in section(*each, page.parent / "results")),
    ]
    write_text(page, "\n\n".join(filter(None, parts)) + "\n")
    if readme is not None:
        write_readme(readme, compared, {cells[0] for cells in behind})


def write_readme(readme: Path, compared: dict[tuple[str, str], Any], behind: set[str]) -> None:
    """Writes the README's table between its marks, one row for each headline."""
    lines = []
    for name, experiment in EXPERIMENTS.items():
        for title, tasks in experiment.headlines.items():
            found = [compared[name, task] for task in tasks if (name, task) in compared]
            title = named(experiment.title, title)
            if found:
                lines.append(summary(*found[0]) if len(tasks) == 1 else count(title, found))
    rated = [ours for _, ours, own in compared.values() if rivals(own, ours, same_budget=True)]
    text = (
        f"{table(_SUMMARY, lines)}\n\n\\* Measured on another split of the data, for orientation. "
        "Seeds are those of EGNO / of the baseline; ± is the standard deviation over seeds.\n\n"
        f"In {len(behind)} of the {len(rated)} tasks with baselines, one of them has a lower F-MSE "
        "or A-MSE: [which](experiments/RESULTS.md#where-a-baseline-is-ahead), and "
        "[why](docs/baselines.md#where-egno-is-not-ahead)."
    )
    before, rest = readme.read_text().split(_BEGIN)
    write_text(readme, f"{before}{_BEGIN}\n{text}\n{_END}{rest.split(_END)[1]}")


def main(arguments: Sequence[str]) -> int:
    """Appends the runs given, builds the tables, prints what it wrote; returns the exit code."""
    parser = argparse.ArgumentParser("python -m experiments.report", description=_HELP)
    parser.add_argument("runs", nargs="*", type=Path, help="directories of finished runs to append")
    parser.add_argument("--freeze", metavar="NAME", default="", help="name of a new config file")
    parser.add_argument("--description", default="", help="the description in that file")
    parser.add_argument("--out", type=Path, help="folder for the results of your own runs")
    picture = parser.add_argument("--picture", type=Path, action="append", default=[])
    picture.help = "run whose moving picture goes to docs/images"
    options = parser.parse_args(arguments)
    page, lines, folders = _PAGE, run_records.RESULTS, [settings.CONFIGS]
    if replace := options.out is not None:
        page, lines = (options.out / path.name for path in (page, lines))
        folders.append(options.out / "configs")
    try:
        for run in options.runs:
            freeze = options.freeze or (run.absolute().name if replace else "")
            print(append(run, lines, folders, freeze, options.description, replace=replace))
        for run in options.picture:
            name = run_records.read_results(run)["experiment"]
            film = run / run_directory.PICTURES / run_pictures.FILM
            with replacing(_IMAGES / f"{name}.gif") as partial:
                shutil.copyfile(film, partial)
            print(_IMAGES / f"{name}.gif")
        build(load(lines, folders), page, None if replace else _README)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
