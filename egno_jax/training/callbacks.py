"""Where the numbers of a run go: JSON lines, TensorBoard, a progress display."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from egno_jax.extras import require


class Callback(Protocol):
    """Something that is told how a run goes; a context manager, open while it does.

    Records are dicts of plain numbers and lists of numbers; each has the key `step`. Loss and
    gradient norm of a chunk are the means of the steps that were taken, and None if all of them
    were skipped.
    """

    def on_chunk(self, record: dict[str, Any]) -> None:
        """Is told how the steps went after every call of the device.

        Keys: `loss`, `grad_norm` and `skipped_steps` (of the run so far); `steps_per_second`;
        `seconds` of the run so far; of this call `step_seconds` (a step, without compiling and
        waiting), `data_seconds` (waiting for batches from the host), `num_compiles` and
        `compile_seconds`; `memory_bytes`, the most in use so far; `padding`, the share of the nodes
        of the training set that only pad.
        """

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Is told the errors on the validation set after every evaluation."""

    def __enter__(self) -> Callback:
        """Opens; called before the first step."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes; called after the last step and on every error."""


class JSONLines:
    """Appends records to a file, one JSON object a line, with `"kind": "train"` or `"valid"`.

    A run that is resumed goes on behind the step that it resumed from: lines of later steps, which
    will be computed again, are removed first.

    Args:
      path: the file.
      start_step: the step that the run starts or resumes from.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        self._path = Path(path)
        self._start_step = start_step

    def __enter__(self) -> JSONLines:
        kept = [
            record for record in read_json_lines(self._path) if record["step"] <= self._start_step
        ]
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def on_chunk(self, record: dict[str, Any]) -> None:
        """Appends a record of kind `train`."""
        self._write({"kind": "train", **record})

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Appends a record of kind `valid`."""
        self._write({"kind": "valid", **record})

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a `JSONLines` file; a last line cut off in mid-write is left out.

    Args:
      path: the file; a missing one has no records.

    Returns:
      The records, in the order of the file.

    Raises:
      ValueError: a line other than the last is not JSON; names file and line.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
    return records


class TensorBoard:
    """Writes the numbers of a run as TensorBoard curves; needs the extra `train`.

    Args:
      directory: where the event files go.

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

    def on_chunk(self, record: dict[str, Any]) -> None:
        """Adds points to the curves `train/...`."""
        self._write("train", record)

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Adds points to the curves `valid/...`."""
        self._write("valid", record)

    def _write(self, kind: str, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, record["step"])
        self._writer.flush()


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
        self._loss = self._error = math.nan

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_chunk(self, record: dict[str, Any]) -> None:
        """Shows the step and the training loss."""
        self._loss = math.nan if record["loss"] is None else record["loss"]
        self._show(record["step"])

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Shows the validation error."""
        self._error = record["f_mse"]
        self._show(record["step"])

    def _show(self, step: int) -> None:
        text = f"loss {self._loss:.5f}  valid F-MSE {self._error:.5f}"
        self._bar.update(self._task, completed=step, description=text)
