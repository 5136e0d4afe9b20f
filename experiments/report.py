"""Results that are published: collects those of runs, and builds the tables from what is collected.

    python -m experiments.report runs/nbody-paper-seed0 runs/nbody-paper-seed1
    python -m experiments.report --picture runs/mocap-run-seed0
    python -m experiments.report --out tables runs/mine-seed0 runs/mine-seed1

copies the results and settings of finished runs to `experiments/results/<run>.json`, and writes
`experiments/RESULTS.md` and the table in `README.md` from all files there. Nothing in them is typed
by hand: the published figures stand in the experiments' scripts. A figure of each experiment comes
to `experiments/results/<experiment>.png`, if matplotlib is there, and the moving picture of a run
to `docs/images/<experiment>.gif`. With `--out` all of it but the README's table comes to a folder,
from the runs given and those collected there before; the repository's own files stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import run_directory, run_page
from experiments.report_figures import draw
from experiments.report_rows import (
    ENOUGH_SEEDS,
    EXPERIMENTS,
    Row,
    error_unit,
    load_records,
    rows_of,
)
from experiments.report_tables import (
    commands,
    comparison,
    headlines,
    runs_table,
    shortfalls,
    summary,
    task_tables,
)

_ROOT = Path(__file__).parent.parent
_RECORDS = _ROOT / "experiments" / "results"
_PAGE = _ROOT / "experiments" / "RESULTS.md"
_README = _ROOT / "README.md"
_IMAGES = _ROOT / "docs" / "images"
_BEGIN, _END = "<!-- results: python -m experiments.report -->", "<!-- end of results -->"

# Addresses, seen from the repository's root.
_PAGE_ADDRESS = "experiments/RESULTS.md"
_REASONS, _REASONS_HEADING = "docs/baselines.md", "where-egno-is-not-ahead"

_INTRODUCTION = f"""# Results

Made by `python -m experiments.report` from the files in `results/`; each holds the settings, errors
and origin of one run. Errors are mean squared errors of positions, averaged over samples, nodes and
coordinates; F-MSE at the last time, A-MSE at all times. A-MSE is missing (–) where a model predicts
the last time alone, and where a source does not report it. Runs that differ in nothing but their
seed share a row: mean and, behind ±, the sample standard deviation.

The test set selects nothing. The row that stands for EGNO is the one of least mean F-MSE on the
validation set, of the settings that were run with {ENOUGH_SEEDS} seeds or more or, where there are
none, with the most. Each baseline is then compared with the row trained as that one was: the same
data, steps, batch and optimizer. Where a method has no such row, its best on the validation set
stands there instead, marked †. The best baseline is the one of least F-MSE on the validation set.

`x + v t` goes on with the given velocities, which says little of what trembles: molecules and
proteins. That nothing moves is the better guess there, and shown where runs wrote it down.

## All experiments

Beside EGNO and the best baseline here stand what the paper reports for EGNO, and what an
independent run of its public code gave."""

_AHEAD = """Each baseline's best row on the validation set, of those trained for as many steps of as
many samples as EGNO's. Where other settings differ they are named, and EGNO trained with these
stands beside it if there is such a run."""


def collect(directory: Path, target: Path | None = None) -> Path:
    """Copies the results and settings of a finished run to the published records.

    Args:
      directory: the run.
      target: the folder for the record; None: the repository's.

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
    folder = _RECORDS if target is None else target
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{directory.absolute().name}.json"
    run_directory.write_json(written, {**results, "settings": settings})
    return written


def _anywhere(command: str) -> str:
    """The command without the folders of the machine it ran on: runs are below `runs/`."""
    words, option = [], ""
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            option = flag.removeprefix("--").replace("-", "_")
        if option in run_directory.FOLDERS:
            continue
        if option in ("out", "resume", "evaluate") and Path(value).is_absolute():
            value = f"runs/{Path(value).name}"
        words.append(flag + equals + value)
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


def build(directory: Path | None = None) -> list[Path]:
    """Writes the page of results and its pictures, and the table in `README.md`.

    Args:
      directory: where to, from the records in its `results/`; None: the repository's own, of which
        alone there is a README.

    Returns:
      The files written.

    Raises:
      ValueError: there are no records, or one is of no experiment or preset.
    """
    folder = _RECORDS if directory is None else directory / _RECORDS.name
    page = _PAGE if directory is None else directory / _PAGE.name
    records = load_records(folder)
    if directory is not None and not records:
        raise ValueError(f"{folder}: there are no results; give the directories of finished runs")
    found = {name: rows for name in EXPERIMENTS if (rows := rows_of(name, records))}
    at = _ROOT / "experiments" if directory is None else directory.absolute()
    reasons = f"{os.path.relpath(_ROOT / _REASONS, at)}#{_REASONS_HEADING}"
    parts = [_INTRODUCTION, summary(found), "### Where a baseline is ahead"]
    parts += [f"{_AHEAD} [Why]({reasons}).", shortfalls(found)]
    written = []
    for name, rows in found.items():
        experiment = EXPERIMENTS[name]
        parts += [f"## {experiment.title}", f"{experiment.summary}"]
        parts.append(f"Errors here are in {error_unit(experiment)}.")
        picture = folder / f"{name}.png"
        if draw(name, rows, picture):
            written.append(picture)
            parts.append(f"![F-MSE of every model: {experiment.title}](results/{picture.name})")
        parts += [task_tables(rows), "### Runs", runs_table(rows)]
        summary_line = "<details><summary>Commands that repeat these runs today</summary>"
        parts += [summary_line, f"```sh\n{commands(rows)}\n```", "</details>"]
    page.write_text("\n\n".join(parts) + "\n")
    written.append(page)
    if directory is None:
        reasons = f"{_REASONS}#{_REASONS_HEADING}"
        _write_between_marks(_README, headlines(found, _PAGE_ADDRESS, reasons))
        written.append(_README)
    return written


def _write_between_marks(path: Path, text: str) -> None:
    before, rest = path.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    path.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")


def main(arguments: Sequence[str]) -> int:
    """Collects the runs given, builds the tables, prints what it wrote; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="Publish results: experiments/RESULTS.md and the table in README.md.",
    )
    parser.add_argument("runs", nargs="*", type=Path, help="directories of runs to collect first")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the tables, pictures and records of your own runs; the repository's files "
        "are neither read nor written then",
    )
    parser.add_argument(
        "--picture",
        action="append",
        default=[],
        type=Path,
        help="directory of a run whose moving picture the docs shall show; may be repeated",
    )
    options = parser.parse_args(arguments)
    if options.out is not None and options.picture:
        parser.error("--picture: got --out too, expected one: pictures go to the docs")
    records = None if options.out is None else options.out / _RECORDS.name
    try:
        for directory in options.runs:
            print(collect(directory, records))
        for directory in options.picture:
            print(copy_picture(directory))
        for path in build(options.out):
            print(path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


__all__ = [
    "EXPERIMENTS",
    "Row",
    "build",
    "collect",
    "comparison",
    "copy_picture",
    "draw",
    "main",
    "rows_of",
    "runs_table",
    "shortfalls",
    "summary",
]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
