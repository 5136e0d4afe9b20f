"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report_rows import (
    EXPERIMENTS,
    OURS,
    Rival,
    Row,
    Task,
    by_task,
    command_today,
    contenders,
    error_unit,
    is_repeatable,
    notes,
    published_for,
    rivals,
    selected,
    task_title,
    titles,
    trained_like,
    varying,
)
from experiments.run_page import a_mse
from experiments.runner import Experiment, Published

# What a row of the summary shows of the literature.
_PAPER, _REPRODUCTION = "EGNO", "EGNO, its public code run again"

_SPLIT_MARK, _SETTINGS_MARK = "\\*", "†"
_SPLIT_NOTE = f"{_SPLIT_MARK} Measured on another split of the data: for orientation."
_SETTINGS_NOTE = f"{_SETTINGS_MARK} Trained with other settings than EGNO, as the notes say."

_SUMMARY = (
    "task|unit|EGNO, F-MSE|EGNO, A-MSE|seeds|best baseline here|its F-MSE|its A-MSE|its seeds|"
    "paper, F-MSE|paper, A-MSE|run again, F-MSE|run again, A-MSE|notes|"
    "parameters|steps|minutes|device"
).split("|")
# How many of its columns say what a run cost.
_COST = 4

_README = (
    "task|unit|EGNO, F-MSE|best baseline here|EGNO in its paper|its code run again|steps|seeds|"
    "notes"
).split("|")
_README_NOTE = (
    "Seeds are those of EGNO / of the baseline; behind ± stands their standard deviation."
)

_SHORTFALLS = "task|error|EGNO|baseline|its error|its other settings|EGNO with these|seeds"
_SHORTFALLS += "|EGNO, valid F-MSE|baseline, valid F-MSE"

# Our rows by experiment.
Found = Mapping[str, Sequence[Row]]


def table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Returns a table; an empty cell is a dash."""
    cells = [head, ["---"] * len(head), *lines]
    texts = [[str(cell) or "–" for cell in line] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def summary(found: Found, *, with_cost: bool = True) -> str:
    """Returns the one table of all experiments, a row a task, and what its marks mean.

    Args:
      found: our rows by experiment.
      with_cost: whether with parameters, steps, time and device.
    """
    head = _SUMMARY if with_cost else _SUMMARY[:-_COST]
    lines = []
    for experiment, title, _, rows in _tasks(found):
        ours = selected(rows)
        if ours is not None:
            lines.append([title, error_unit(experiment), *_summary(ours, rows)][: len(head)])
    return _with_marks(table(head, lines))


def _tasks(found: Found) -> list[tuple[Experiment, str, Task, list[Row]]]:
    """Returns experiment, title, settings and rows of each task."""
    tasks = []
    for name, rows in found.items():
        groups = by_task(rows)
        named = titles(EXPERIMENTS[name], groups)
        tasks += [
            (EXPERIMENTS[name], named[task], task, of_task) for task, of_task in groups.items()
        ]
    return tasks


def _summary(ours: Row, rows: Sequence[Row]) -> list[str]:
    """Returns the cells of a row of the summary, behind task and unit."""
    best = next(iter(rivals(rows, ours)), None)
    baseline = ["", "", "", ""]
    if best is not None:
        baseline = [_marked(best), *_errors(best.row), str(best.row.seeds)]
    literature = {other.method: other for other in published_for(ours)}
    cited = []
    for method in (_PAPER, _REPRODUCTION):
        other = literature.get(method)
        cited += ["", ""] if other is None else [_cited(other), _cited(other, "a_mse")]
    record = ours.records[0]
    minutes = f"{ours.mean('train_seconds') / 60:.1f}"
    cost = [str(record["num_parameters"]), str(record["steps"]), minutes, record["device"]]
    return [*_errors(ours), str(ours.seeds), *baseline, *cited, _notes(ours, rows, best), *cost]


def _marked(rival: Rival) -> str:
    return f"{rival.row.model} {_SETTINGS_MARK}" if rival.differences else rival.row.model


def _notes(ours: Row, rows: Sequence[Row], best: Rival | None) -> str:
    """Returns how EGNO and its data differ from the published, and the best baseline from it."""
    parts = notes(ours)
    if ours.settings["model.mean_field"]:
        plain = selected(row for row in rows if not row.settings["model.mean_field"])
        without = "" if plain is None else f", without: {_errors(plain)[0]}"
        parts.append(f"EGNO with mean field{without}")
    if best is not None and best.differences:
        parts.append(f"{best.row.model} with {', '.join(f'`{d}`' for d in best.differences)}")
    return "; ".join(parts)


def _with_marks(text: str, *lines: str) -> str:
    """Returns a table with lines below it that explain its marks."""
    notes_below = [
        note
        for mark, note in ((_SPLIT_MARK, _SPLIT_NOTE), (_SETTINGS_MARK, _SETTINGS_NOTE))
        if mark in text
    ]
    return "\n\n".join([text, "\n".join([*notes_below, *lines])]).rstrip()


def headlines(found: Found, page: str, reasons: str) -> str:
    """Returns the README's table, a row a headline of the experiments, and what stands below it.

    Args:
      found: our rows by experiment.
      page: the address of all results.
      reasons: the address of what is said about baselines that are ahead.
    """
    lines = []
    for name in found:
        experiment = EXPERIMENTS[name]
        for settings in experiment.headlines:
            tasks = [
                (ours, rows)
                for other, _, task, rows in _tasks({name: found[name]})
                if all(dict(task).get(key, value) == value for key, value in settings.items())
                and (ours := selected(rows)) is not None
            ]
            if tasks:
                title = task_title(experiment, settings)
                cells = _headline(*tasks[0]) if len(tasks) == 1 else _count(tasks)
                lines.append([title, error_unit(experiment), *cells])
    return _with_marks(table(_README, lines), _README_NOTE, "", _count_ahead(found, page, reasons))


def _headline(ours: Row, rows: Sequence[Row]) -> list[str]:
    """Returns the cells of a headline that is one task, behind title and unit."""
    best = next(iter(rivals(rows, ours)), None)
    baseline, seeds = "", str(ours.seeds)
    if best is not None:
        baseline = f"{_marked(best)}: {_errors(best.row)[0]}"
        seeds += f" / {best.row.seeds}"
    literature = {other.method: _cited(other) for other in published_for(ours)}
    return [
        _errors(ours)[0],
        baseline,
        *(literature.get(method, "") for method in (_PAPER, _REPRODUCTION)),
        str(ours.records[0]["steps"]),
        seeds,
        _notes(ours, rows, best),
    ]


def _count(tasks: Sequence[tuple[Row, Sequence[Row]]]) -> list[str]:
    """Returns the cells of a headline of several tasks: in how many EGNO is ahead."""
    pairs = [(ours, best) for ours, rows in tasks for best in rivals(rows, ours)[:1]]
    ahead = sum(ours.mean("f_mse") < best.row.mean("f_mse") for ours, best in pairs)
    models = dict.fromkeys(_marked(best) for _, best in pairs)
    baseline = f"{', '.join(models)}: lower in {len(pairs) - ahead}" if pairs else ""
    steps = sorted({ours.records[0]["steps"] for ours, _ in tasks})
    seeds = [_range([ours.seeds for ours, _ in tasks])]
    if pairs:
        seeds.append(_range([best.row.seeds for _, best in pairs]))
    said = dict.fromkeys(note for ours, _ in tasks for note in notes(ours))
    return [
        f"lower in {ahead} of {len(pairs)}" if pairs else f"{len(tasks)} tasks",
        baseline,
        "",
        "",
        _range(steps),
        " / ".join(seeds),
        "; ".join(said),
    ]


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def _count_ahead(found: Found, page: str, reasons: str) -> str:
    """Returns the sentence that says in how many tasks a baseline is ahead."""
    compared = [
        (ours, rows)
        for _, _, _, rows in _tasks(found)
        if (ours := selected(rows)) is not None and contenders(rows, ours)
    ]
    ahead = sum(bool(_shortfalls(ours, rows)) for ours, rows in compared)
    return (
        f"In {ahead} of the {len(compared)} tasks with baselines one of them has the lower F-MSE "
        f"or A-MSE: [which]({page}#where-a-baseline-is-ahead), and [why]({reasons})."
    )


def shortfalls(found: Found) -> str:
    """Returns the table of the tasks in which a baseline has the lower error.

    Args:
      found: our rows by experiment.
    """
    lines = []
    for _, title, _, rows in _tasks(found):
        ours = selected(rows)
        if ours is not None:
            lines += [[title, *cells] for cells in _shortfalls(ours, rows)]
    if not lines:
        return "No baseline with as many steps and samples a step has a lower error in any task."
    return table(_SHORTFALLS.split("|"), lines)


def _shortfalls(ours: Row, rows: Sequence[Row]) -> list[list[str]]:
    """Returns the cells, behind the task's, of each error in which a baseline is ahead."""
    lines = []
    for row, others in contenders(rows, ours):
        twin = trained_like(rows, row) if others else None
        for index, (label, key) in enumerate((("F-MSE", "f_mse"), ("A-MSE", "a_mse"))):
            mine, its = _errors(ours)[index], _errors(row)[index]
            if its and row.mean(key) < ours.mean(key):
                with_these = _errors(twin)[index] if twin is not None else ""
                settings = ", ".join(f"`{other}`" for other in others)
                seeds = f"{ours.seeds} / {row.seeds}"
                valid = [_spread_of(ours, "valid_f_mse"), _spread_of(row, "valid_f_mse")]
                lines.append([label, mine, row.model, its, settings, with_these, seeds, *valid])
    return lines


def task_tables(rows: Sequence[Row]) -> str:
    """Returns the tables of an experiment, one for each task under its title.

    Args:
      rows: our runs.
    """
    tasks = by_task(rows)
    name = rows[0].experiment.name
    named = titles(rows[0].experiment, tasks)
    parts = []
    for task, of_task in tasks.items():
        if len(tasks) > 1 or named[task] != rows[0].experiment.title:
            parts.append(f"### {named[task]}")
        apart = ", ".join(f"`data.{key}={value}`" for key, value in varying(task, tasks))
        parts += [f"With {apart}:"] if apart else []
        parts.append(comparison(name, of_task))
    return "\n\n".join(parts)


def comparison(name: str, rows: Sequence[Row]) -> str:
    """Returns the table of our errors beside the published ones.

    Args:
      name: the experiment.
      rows: our runs of one of its tasks.
    """
    lines = [
        [f"**{row.model}**, {row.name}", *_errors(row), len(row.records), "here"] for row in rows
    ]
    for title, key in (("x + v t", "linear_baseline"), ("nothing moves", "still_baseline")):
        known = [r[key] for row in rows for r in row.records if key in r]
        if known:
            baseline = max(known, key=lambda errors: len(errors.get("mse_per_time", "")))
            over_all = a_mse(baseline)
            errors = [f"{baseline['f_mse']:.5f}", "" if over_all is None else f"{over_all:.5f}"]
            lines.append([title, *errors, "", "here"])
    for other in published_for(rows[0]):
        errors = [_number(other.f_mse), _number(other.a_mse)]
        lines.append([other.method, *errors, "", other.source])
    return table(["model", "F-MSE", "A-MSE", "runs", "source"], lines)


def runs_table(rows: Sequence[Row]) -> str:
    """Returns the table of every run: errors, selection, size, time, and what made it.

    Args:
      rows: our runs.
    """
    head = (
        "run|settings|seed|valid F-MSE|F-MSE|A-MSE|best step|steps|parameters|minutes|device|"
        "commit|date"
    )
    lines = []
    for row in rows:
        for record in row.records:
            over_all, valid = a_mse(record), record.get("valid_f_mse")
            lines.append(
                [
                    f"[{record['name']}](results/{record['name']}.json)",
                    row.name,
                    record["seed"],
                    "" if valid is None else f"{valid:.5f}",
                    f"{record['f_mse']:.5f}",
                    "" if over_all is None else f"{over_all:.5f}",
                    record["best_step"],
                    record["steps"],
                    record["num_parameters"],
                    f"{record['train_seconds'] / 60:.1f}",
                    record["device"],
                    f"`{_commit(record)}`",
                    record["date"].split()[0],
                ]
            )
    return table(head.split("|"), lines)


def commands(rows: Sequence[Row]) -> str:
    """Returns what repeats each run today, and what made it where that asks for something else now.

    Args:
      rows: our runs.
    """
    lines = []
    for record in (record for row in rows for record in row.records):
        lines += [f"# {record['name']}", command_today(record)]
        if not is_repeatable(record):
            lines.append(f"# made at {_commit(record)} by: {record['command']}")
    return "\n".join(lines)


def _commit(record: Mapping[str, Any]) -> str:
    return (record["git_commit"] or "unknown")[:7]


def _errors(row: Row) -> tuple[str, str]:
    """Returns F-MSE and A-MSE of a row as texts; the latter empty if one time was predicted."""
    over_all = [a_mse(record) for record in row.records]
    return _spread_of(row, "f_mse"), "" if None in over_all else _spread_of(row, "a_mse")


def _spread_of(row: Row, key: str) -> str:
    """Returns the mean of an error over the runs and its spread; empty where a run lacks it."""
    values = [record.get(key) for record in row.records]
    if None in values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.5f}"
    return f"{np.mean(values):.5f} ± {np.std(values, ddof=1):.5f}"


def _cited(other: Published, key: str = "f_mse") -> str:
    """Returns a published error, marked where it is of another split."""
    number = _number(getattr(other, key))
    return f"{number}{_SPLIT_MARK}" if number and other.other_split else number


def _number(error: float | None) -> str:
    return "" if error is None else f"{error:.5f}".rstrip("0")


__all__ = [
    "OURS",
    "commands",
    "comparison",
    "headlines",
    "runs_table",
    "shortfalls",
    "summary",
    "task_tables",
]
