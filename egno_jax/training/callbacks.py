"""Callbacks that receive the records of a run."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Protocol

from egno_jax.checks import parse_json
from egno_jax.extras import require
from egno_jax.files import write_text


class Callback(Protocol):
    """Receives the records of a run; a context manager that is open during the run.

    Records are dicts of plain numbers and lists of numbers; each has the key `step`. Loss and
    gradient norm of a chunk are means over the steps that were not skipped, and None if all were.
    """

    def on_chunk(self, record: dict[str, Any]) -> None:
        """Receives the record of a jitted chunk of steps; docs/training.md lists its keys."""

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Receives the record of an evaluation: `f_mse`, `a_mse`, `mse_per_time`, metrics."""

    def __enter__(self) -> Callback:
        """Opens; called before the first step."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes; called after the last step and on every error."""


class JSONLines:
    """Appends records to a file, one JSON object a line, with `"kind": "train"` or `"valid"`.

    When a run is resumed, lines of later steps than the one it resumes from are removed first:
    those steps are computed again.

    Args:
      path: the file.
      start_step: the step that the run starts or resumes from.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        self._path = Path(path)
        self._start_step = start_step

    def __enter__(self) -> JSONLines:
        found = read_json_lines(self._path)
        kept = [record for record in found if record["step"] <= self._start_step]
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, **record}, allow_nan=False) + "\n")
        self._file.flush()

    on_chunk = functools.partialmethod(_write, "train")
    on_evaluation = functools.partialmethod(_write, "valid")


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the records of a `JSONLines` file, in its order; a missing file has none.

    A last line cut off in mid-write is left out.

    Raises:
      ValueError: a line other than the last is not JSON, or one has no step; names file and line.
    """
    path = Path(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        try:
            record = parse_json(line, place)
        except ValueError:
            if number < len(lines):
                raise
            break
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            raise ValueError(f"{place}: got no record, expected an object with an integer `step`")
        records.append(record)
    return records


class TensorBoard:
    """Writes the numbers of a run as curves `train/...` and `valid/...` for TensorBoard.

    Needs the extra `train`.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
        self._tensorboard = require("tensorboardX", "train")

    def __enter__(self) -> TensorBoard:
        self._writer = self._tensorboard.SummaryWriter(str(self._directory))
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, record["step"])
        self._writer.flush()

    on_chunk = functools.partialmethod(_write, "train")
    on_evaluation = functools.partialmethod(_write, "valid")


class Progress:
    """Shows a bar with the step, the last errors and the time left; needs the extra `train`.

    Args:
      num_steps: number of steps of the whole run.
      start_step: the step that the run starts or resumes from.

    Raises:
      ImportError: rich is not installed.
    """

    def __init__(self, num_steps: int, start_step: int = 0) -> None:
        progress = require("rich.progress", "train")
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._task = self._bar.add_task("compiling", total=num_steps, completed=start_step)
        self._loss = self._error = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_chunk(self, record: dict[str, Any]) -> None:
        """Shows the step and the training loss."""
        self._loss = record["loss"]
        self._show(record["step"])

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Shows the validation error."""
        self._error = record["f_mse"]
        self._show(record["step"])

    def _show(self, step: int) -> None:
        loss, error = ("-" if x is None else f"{x:.5f}" for x in (self._loss, self._error))
        text = f"loss {loss}  valid F-MSE {error}"
        self._bar.update(self._task, completed=step, description=text)
