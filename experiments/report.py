"""Results that are published: collects those of runs, and builds the tables from what is collected.

    python -m experiments.report runs/nbody-paper-seed0 runs/nbody-paper-seed1
    python -m experiments.report --picture runs/mocap-run-seed0

copies the results and settings of finished runs to `experiments/results/<run>.json`, and writes
`experiments/RESULTS.md` and the table in `README.md` from all files there. Nothing in them is typed
by hand: the published figures stand in the experiments' scripts. A figure of each experiment comes
to `experiments/results/<experiment>.png`, if matplotlib is there, and the moving picture of a run
to `docs/images/<experiment>.gif`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import md17, mocap, nbody, protein, run_directory, run_page
from experiments.run_page import a_mse

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (nbody.EXPERIMENT, mocap.EXPERIMENT, md17.EXPERIMENT, protein.EXPERIMENT)
}

_ROOT = Path(__file__).parent.parent
_RECORDS = _ROOT / "experiments" / "results"
_PAGE = _ROOT / "experiments" / "RESULTS.md"
_README = _ROOT / "README.md"
_IMAGES = _ROOT / "docs" / "images"
_BEGIN, _END = "<!-- results: python -m experiments.report -->", "<!-- end of results -->"

_INTRODUCTION = """# Results

Made by `python -m experiments.report` from the files in `experiments/results/`; each holds the
settings, errors and origin of one run. Errors are mean squared errors of positions, averaged over
samples, nodes and coordinates; F-MSE at the last time, A-MSE at all times. Runs that differ in
nothing but their seed share a row: mean and, behind +-, the sample standard deviation.

## All experiments

EGNO's settings with the most seeds beside the best baseline that was trained here with the same
budget, what the paper reports for EGNO, and what an independent run of its public code gave.

"""

_SHORTFALLS = """### Where a baseline is ahead

Of those trained for the same number of steps. [Why](../docs/baselines.md#where-egno-is-not-ahead).
"""

# What a row of the summary shows of the literature.
_PAPER, _REPRODUCTION = "EGNO", "EGNO, its public code run again"
# How many of its columns say what a run cost.
_COST = 4

# The settings in `data` that make a task.
_Task = tuple[tuple[str, Any], ...]


class Row(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
      name: preset, and the settings that differ from it.
      records: a record a run, as `collect` wrote them.
    """

    name: str
    records: list[dict[str, Any]]

    @property
    def model(self) -> str:
        """What people call the model."""
        return self.records[0].get("model", "EGNO")


def collect(directory: Path) -> Path:
    """Copies the results and settings of a finished run to the published records.

    Args:
      directory: the run.

    Returns:
      The file written.

    Raises:
      ValueError: there are no results of a finished run.
    """
    try:
        results = json.loads((directory / run_directory.RESULTS).read_text())
        settings = json.loads((directory / run_directory.CONFIG).read_text())["settings"]
    except FileNotFoundError as error:
        raise ValueError(f"{directory}: there is no {Path(error.filename).name}") from error
    if not results["finished"]:
        raise ValueError(
            f"{directory}: the run ended at step {results['steps']} of "
            f"{settings['training']['num_steps']}; only finished runs are published"
        )
    for folder in run_directory.FOLDERS:
        settings["data"].pop(folder.removeprefix("data."), None)
    for record in (results, *results.get("resumed", ())):
        record["command"] = _anywhere(record["command"])
    _RECORDS.mkdir(exist_ok=True)
    target = _RECORDS / f"{directory.name}.json"
    run_directory.write_json(target, {**results, "settings": settings})
    return target


def _anywhere(command: str) -> str:
    """The command without the folders of the machine it ran on: runs are below `runs/`."""
    words = []
    for word in shlex.split(command):
        path = Path(word)
        words.append(f"runs/{path.name}" if path.is_absolute() else word)
    return shlex.join(words)


def copy_picture(directory: Path) -> Path:
    """Copies the moving picture of a run to `docs/images/<experiment>.gif`.

    Args:
      directory: the run.

    Returns:
      The file written.

    Raises:
      ValueError: the run has no results, or its systems are drawn in no moving picture.
    """
    picture = directory / run_directory.PICTURES / run_page.FILM
    try:
        name = json.loads((directory / run_directory.RESULTS).read_text())["experiment"]
        target = _IMAGES / f"{name}.gif"
        target.write_bytes(picture.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{directory}: there is no {Path(error.filename).name}") from error
    return target


def rows_of(name: str, records: Sequence[dict[str, Any]]) -> list[Row]:
    """Groups the records of an experiment by their settings, seeds apart; best first.

    Args:
      name: the experiment.
      records: its records.
    """

    def settings(record: dict[str, Any]) -> str:
        # A setting that is newer than a run has the value that the preset gives it.
        preset = run_directory.plain(EXPERIMENTS[name].presets[record["settings"]["preset"]])
        both = (preset, record["settings"])
        flat = dict(entry for tree in both for entry in run_directory.flatten(tree))
        for folder in run_directory.FOLDERS:
            flat.pop(folder, None)
        return json.dumps({k: v for k, v in flat.items() if k != "training.seed"}, sort_keys=True)

    groups = itertools.groupby(sorted(records, key=settings), key=settings)
    rows = [
        Row(_row_name(name, group[0]["settings"]), group)
        for group in (sorted(members, key=lambda r: r["seed"]) for _, members in groups)
    ]
    return sorted(rows, key=lambda row: np.mean([record["f_mse"] for record in row.records]))


def comparison(name: str, rows: Sequence[Row]) -> str:
    """Returns the table of our errors beside the published ones.

    Args:
      name: the experiment.
      rows: our runs.
    """
    lines = ["| model | F-MSE | A-MSE | runs | source |", "|---|---|---|---|---|"]
    for row in rows:
        errors = " | ".join(_errors(row))
        lines.append(f"| **{row.model}**, {row.name} | {errors} | {len(row.records)} | here |")
    baseline = max(
        (row.records[0]["linear_baseline"] for row in rows),
        key=lambda errors: len(errors.get("mse_per_time", "")),
    )
    lines.append(f"| x + v t | {baseline['f_mse']:.4f} | {baseline['a_mse']:.4f} | | here |")
    for other in _published(name, rows[0].records[0]):
        errors = f"{_cited(other.f_mse)} | {_cited(other.a_mse)}"
        lines.append(f"| {other.method} | {errors} | | {other.source} |")
    return "\n".join(lines)


def runs_table(rows: Sequence[Row]) -> str:
    """Returns the table of every run: errors, selection, size, time, and what made it.

    Args:
      rows: our runs.
    """
    titles = "settings|seed|F-MSE|A-MSE|best step|steps|parameters|minutes|device|commit|date"
    lines = [f"| {titles.replace('|', ' | ')} |", "|---" * len(titles.split("|")) + "|"]
    for name, record in ((row.name, record) for row in rows for record in row.records):
        cells = [
            name,
            record["seed"],
            f"{record['f_mse']:.5f}",
            f"{record['a_mse']:.5f}",
            record["best_step"],
            record["steps"],
            record["num_parameters"],
            f"{record['train_seconds'] / 60:.1f}",
            record["device"],
            f"`{(record['git_commit'] or 'unknown')[:7]}`",
            record["date"].split()[0],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def build() -> None:
    """Writes `RESULTS.md` and the table in `README.md`."""
    records = [json.loads(path.read_text()) for path in sorted(_RECORDS.glob("*.json"))]
    page = [_INTRODUCTION]
    found = {
        name: rows_of(name, [record for record in records if record["experiment"] == name])
        for name in EXPERIMENTS
    }
    found = {name: rows for name, rows in found.items() if rows}
    page[0] += f"{summary(found)}\n\n{shortfalls(found)}\n"
    for name, rows in found.items():
        experiment = EXPERIMENTS[name]
        table = "\n\n".join(
            _task_title(task) + comparison(name, of_task)
            for task, of_task in _by_task(name, rows).items()
        )
        page += [f"## {experiment.title}\n"]
        if draw(name, rows, _RECORDS / f"{name}.png"):
            picture = f"results/{name}.png"
            page += [f"![F-MSE of every model: {experiment.title}]({picture})\n"]
        page += [f"{table}\n\n### Runs\n\n{runs_table(rows)}\n"]
        commands = "\n".join(r["command"] for row in rows for r in row.records)
        note = "Each at the commit of its run, whose presets may have been others."
        page += [f"### Commands\n\n{note}\n\n```sh\n{commands}\n```\n"]
    _write_between_marks(_README, summary(found, with_cost=False))
    _PAGE.write_text("\n".join(page))


def summary(found: Mapping[str, Sequence[Row]], *, with_cost: bool = True) -> str:
    """Returns the one table of all experiments, a row a task.

    Args:
      found: our rows by experiment.
      with_cost: whether with parameters, steps, time and device.
    """
    titles = (
        "task|EGNO, F-MSE|EGNO, A-MSE|seeds|best baseline here|its F-MSE|its A-MSE|paper, F-MSE|"
        "paper, A-MSE|run again, F-MSE|run again, A-MSE|parameters|steps|minutes|device"
    ).split("|")
    titles = titles if with_cost else titles[:-_COST]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, rows in found.items():
        for task, of_task in _by_task(name, rows).items():
            if any(row.model == "EGNO" for row in of_task):
                most = _of_most_seeds(of_task, "EGNO")
                title = ", ".join([EXPERIMENTS[name].title, *_words(task, _by_task(name, rows))])
                cells = [title, *_summary(name, most, of_task)][: len(titles)]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shortfalls(found: Mapping[str, Sequence[Row]]) -> str:
    """Returns the section about tasks in which a baseline has the lower error.

    Args:
      found: our rows by experiment.
    """
    titles = "task|error|EGNO|baseline|its error|EGNO, valid F-MSE|baseline, valid F-MSE"
    lines = [f"| {titles.replace('|', ' | ')} |", "|---" * len(titles.split("|")) + "|"]
    for name, rows in found.items():
        tasks = _by_task(name, rows)
        for task, of_task in tasks.items():
            if not any(row.model == "EGNO" for row in of_task):
                continue
            ours = _of_most_seeds(of_task, "EGNO")
            title = ", ".join([EXPERIMENTS[name].title, *_words(task, tasks)])
            for row in _baselines(of_task, ours):
                lines += [
                    f"| {title} | {label} | {mine} | {row.model} | {its} | {_valid(ours)} | "
                    f"{_valid(row)} |"
                    for label, mine, its in _lower(ours, row)
                ]
    if len(lines) == 2:
        return "No baseline with the same number of steps has a lower error in any task."
    return "\n".join([_SHORTFALLS, *lines])


def _lower(ours: Row, other: Row) -> list[tuple[str, str, str]]:
    """Returns name and values of those errors in which `other` is below `ours`."""
    pairs = zip(("F-MSE", "A-MSE"), ("f_mse", "a_mse"), _errors(ours), _errors(other), strict=True)
    return [
        (label, mine, its)
        for label, key, mine, its in pairs
        if mine and its and _mean(other, key) < _mean(ours, key)
    ]


def _valid(row: Row) -> str:
    errors = [record.get("valid_f_mse") for record in row.records]
    return "" if None in errors else _spread(errors)


def _baselines(rows: Sequence[Row], ours: Row) -> list[Row]:
    """Returns the baselines that were trained for as many steps."""
    return [row for row in rows if row.model != "EGNO" and _steps(row) == _steps(ours)]


def _summary(name: str, ours: Row, rows: Sequence[Row]) -> list[str]:
    """Returns the cells of a row of the summary, behind its title."""
    record = ours.records[0]
    baselines = _baselines(rows, ours)
    baseline = [baselines[0].model, *_errors(baselines[0])] if baselines else ["", "", ""]
    literature = {other.method: other for other in _published(name, record)}
    cited = []
    for method in (_PAPER, _REPRODUCTION):
        other = literature.get(method)
        cited += ["", ""] if other is None else [_cited(other.f_mse), _cited(other.a_mse)]
    minutes = np.mean([record["train_seconds"] for record in ours.records]) / 60
    cost = (record["num_parameters"], record["steps"], f"{minutes:.1f}", record["device"])
    return [*_errors(ours), str(len(ours.records)), *baseline, *cited, *map(str, cost)]


def _words(task: _Task, tasks: Iterable[_Task]) -> list[str]:
    """Returns the settings of a task that are words, and numbers too where they alone tell it."""
    words = [value for _, value in task if isinstance(value, str)]
    alike = [
        other for other in tasks if words == [value for _, value in other if isinstance(value, str)]
    ]
    numbers = [
        f"{key}={value}"
        for index, (key, value) in enumerate(task)
        if not isinstance(value, str) and len({other[index][1] for other in alike}) > 1
    ]
    return words + numbers


def _of_most_seeds(rows: Sequence[Row], model: str) -> Row:
    """Returns the row of a model that rests on the most runs; of several the best."""
    return max((row for row in rows if row.model == model), key=lambda row: len(row.records))


def _steps(row: Row) -> int:
    return row.records[0]["steps"]


def draw(name: str, rows: Sequence[Row], path: Path) -> bool:
    """Draws the F-MSE of every model of an experiment, a line a task; published ones are hollow.

    Args:
      name: the experiment.
      rows: our runs.
      path: the picture.

    Returns:
      Whether it was drawn or is there: not without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return path.exists()
    tasks = _by_task(name, rows)
    figure = Figure(figsize=(8, 1.6 + 0.45 * len(tasks)), layout="constrained")
    axes = figure.subplots()
    colors: dict[str, str] = {}
    for height, of_task in enumerate(tasks.values()):
        models = {row.model: _of_most_seeds(of_task, row.model) for row in of_task}
        points = [(model, _mean(row, "f_mse"), True) for model, row in models.items()]
        points += [
            (other.method.split(",")[0], other.f_mse, False)
            for other in _published(name, of_task[0].records[0])
        ]
        for model, error, is_ours in points:
            color = colors.setdefault(model, f"C{len(colors)}")
            face = color if is_ours else "none"
            axes.scatter(error, height, s=55, facecolor=face, edgecolor=color, linewidth=1.4)
    for model, color in colors.items():
        axes.scatter([], [], s=40, color=color, label=model)
    axes.scatter([], [], s=40, facecolor="none", edgecolor="black", label="published")
    axes.set_xscale("log")
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_yticks(
        range(len(tasks)),
        [", ".join(_words(task, tasks)) or EXPERIMENTS[name].title for task in tasks],
    )
    axes.set_xlabel(f"F-MSE ({EXPERIMENTS[name].length_label}²)")
    axes.grid(axis="x", which="both", alpha=0.2)
    figure.legend(
        *axes.get_legend_handles_labels(), ncols=6, fontsize=8, loc="outside lower center"
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def _mean(row: Row, key: str) -> float:
    return float(np.mean([record[key] for record in row.records]))


def _errors(row: Row) -> tuple[str, str]:
    """Returns F-MSE and A-MSE of a row as texts; the latter empty if one time was predicted."""
    over_all = [a_mse(record) for record in row.records]
    f_mse = _spread([record["f_mse"] for record in row.records])
    return f_mse, "" if None in over_all else _spread(over_all)


def _cited(error: float | None) -> str:
    return "" if error is None else f"{error:.5f}".rstrip("0")


def _published(name: str, record: dict[str, Any]) -> list[Any]:
    """Returns the published results that a run may be compared with."""
    task = _task(name, record)
    return [
        other
        for other in EXPERIMENTS[name].published
        if all(task[key] == value for key, value in other.conditions.items())
    ]


def _task(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings in `data` that decide which published results compare with a run."""
    keys = dict.fromkeys(key for other in EXPERIMENTS[name].published for key in other.conditions)
    return {key: record["settings"]["data"][key] for key in keys}


def _by_task(name: str, rows: Sequence[Row]) -> dict[_Task, list[Row]]:
    """Returns the rows of each task, under those settings in `data` that make the task."""
    groups: dict[_Task, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_task(name, row.records[0]).items()), []).append(row)
    return dict(sorted(groups.items()))


def _task_title(task: _Task) -> str:
    """Returns the words above the table of a task, none where there is only one task."""
    settings = ", ".join(f"`data.{key}={value}`" for key, value in task)
    return f"With {settings}:\n\n" if task else ""


def _row_name(name: str, settings: dict[str, Any]) -> str:
    """Names a row after its preset and the settings in which it differs from it."""
    preset = run_directory.plain(EXPERIMENTS[name].presets[settings["preset"]])
    expected = dict(run_directory.flatten(preset))
    ignored = ("training.seed", *run_directory.FOLDERS, "training.steps_per_call")
    changes = [
        f"{key}={value}"
        for key, value in run_directory.flatten(settings)
        if key not in ignored and expected.get(key) != value
    ]
    return ", ".join([f"preset `{settings['preset']}`", *(f"`{change}`" for change in changes)])


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.5f}"
    return f"{np.mean(values):.5f} +- {np.std(values, ddof=1):.5f}"


def _write_between_marks(path: Path, text: str) -> None:
    before, rest = path.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    path.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


def main(arguments: Sequence[str]) -> int:
    """Collects the runs given and builds the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Publish results: experiments/RESULTS.md and the table in README.md.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="directories of runs to collect first")
    parser.add_argument(
        "--picture",
        action="append",
        default=[],
        type=Path,
        help="directory of a run whose moving picture the docs shall show; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        for directory in options.runs:
            print(collect(directory))
        for directory in options.picture:
            print(copy_picture(directory))
        build()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
