"""Results that are published: collects those of runs, and builds the tables from what is collected.

    python -m experiments.results runs/nbody-paper-seed0 runs/nbody-paper-seed1
    python -m experiments.results

copies the results and settings of finished runs to `experiments/results/<run>.json`, and writes
`experiments/RESULTS.md` and the table in `README.md` from all files there. Nothing in them is typed
by hand: the published figures stand in the experiments' scripts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import md17, mocap, nbody, run_directory
from experiments.report import a_mse

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (nbody.EXPERIMENT, mocap.EXPERIMENT, md17.EXPERIMENT)
}

_ROOT = Path(__file__).parent.parent
_RECORDS = _ROOT / "experiments" / "results"
_PAGE = _ROOT / "experiments" / "RESULTS.md"
_README = _ROOT / "README.md"
_BEGIN, _END = "<!-- results: python -m experiments.results -->", "<!-- end of results -->"

_INTRODUCTION = """# Results

Made by `python -m experiments.results` from the files in `experiments/results/`; each holds the
settings, errors and origin of one run. Errors are mean squared errors of positions, averaged over
samples, nodes and coordinates; F-MSE at the last time, A-MSE at all times. Runs that differ in
nothing but their seed share a row: mean and, behind +-, the sample standard deviation.
"""


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
    _RECORDS.mkdir(exist_ok=True)
    target = _RECORDS / f"{directory.name}.json"
    run_directory.write_json(target, {**results, "settings": settings})
    return target


def rows_of(name: str, records: Sequence[dict[str, Any]]) -> list[Row]:
    """Groups the records of an experiment by their settings, seeds apart; best first.

    Args:
      name: the experiment.
      records: its records.
    """

    def settings(record: dict[str, Any]) -> str:
        flat = dict(run_directory.flatten(record["settings"]))
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
        f_mse = _spread([record["f_mse"] for record in row.records])
        over_all = [a_mse(record) for record in row.records]
        over_all = "" if None in over_all else _spread(over_all)
        lines.append(
            f"| **{row.model}**, {row.name} | {f_mse} | {over_all} | {len(row.records)} | here |"
        )
    baseline = max(
        (row.records[0]["linear_baseline"] for row in rows),
        key=lambda errors: len(errors.get("mse_per_time", "")),
    )
    lines.append(f"| x + v t | {baseline['f_mse']:.4f} | {baseline['a_mse']:.4f} | | here |")
    task = _task(name, rows[0].records[0])
    for other in EXPERIMENTS[name].published:
        if any(task[key] != value for key, value in other.conditions.items()):
            continue
        over_all = "" if other.a_mse is None else f"{other.a_mse:.5f}".rstrip("0")
        f_mse = f"{other.f_mse:.5f}".rstrip("0")
        lines.append(f"| {other.method} | {f_mse} | {over_all} | | {other.source} |")
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
    for name, experiment in EXPERIMENTS.items():
        rows = rows_of(name, [record for record in records if record["experiment"] == name])
        if not rows:
            continue
        table = "\n\n".join(
            title + comparison(name, of_task) for title, of_task in _by_task(name, rows)
        )
        page += [f"## {experiment.title}\n\n{table}\n\n### Runs\n\n{runs_table(rows)}\n"]
        commands = "\n".join(r["command"] for row in rows for r in row.records)
        note = "Each at the commit of its run, whose presets may have been others."
        page += [f"### Commands\n\n{note}\n\n```sh\n{commands}\n```\n"]
        if name == nbody.EXPERIMENT.name:
            _write_between_marks(_README, table)
    _PAGE.write_text("\n".join(page))


def _task(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings in `data` that decide which published results compare with a run."""
    keys = dict.fromkeys(key for other in EXPERIMENTS[name].published for key in other.conditions)
    return {key: record["settings"]["data"][key] for key in keys}


def _by_task(name: str, rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Returns the rows of each task under a title, which is empty where there is only one task."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        settings = _task(name, row.records[0]).items()
        title = ", ".join(f"`data.{key}={value}`" for key, value in settings)
        groups.setdefault(f"With {title}:\n\n" if title else "", []).append(row)
    return sorted(groups.items())


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
        prog="python -m experiments.results",
        description="Publish results: experiments/RESULTS.md and the table in README.md.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="directories of runs to collect first")
    try:
        for directory in parser.parse_args(arguments).runs:
            print(collect(directory))
        build()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
