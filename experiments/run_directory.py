"""The files of a run's directory: settings, results, and where they came from.

- `config.json`: all settings, the commands that made the run, versions of the libraries;
- `metrics.jsonl`: training loss and validation errors, one line each;
- `checkpoints/`: the complete state of the training, to resume from;
- `best/`: the model with the lowest F-MSE on the validation set, for `egno_jax.load`;
- `tensorboard/`: the curves for TensorBoard;
- `run.lock`: which process trains here, or did last;
- `profile/`: with `--profile`, a trace of some steps;
- `damaged-checkpoints/`: checkpoints that were found damaged and not used;
- `results.json`: errors on the test set, and what made them;
- `pictures/`: PNG, and a GIF where the experiment's systems have bonds to draw;
- `report.html`: all of it on one page.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from egno_jax import model, training
from egno_jax.checkpoint import library_versions
from egno_jax.checks import parse_json
from egno_jax.files import write_text
from experiments.settings import FOLDERS, changed, flatten, plain

CONFIG = "config.json"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
RESULTS = "results.json"
PICTURES = "pictures"
REPORT = "report.html"

# What may change when a run is resumed, because it changes no number.
_FREE = (
    "preset",
    *FOLDERS,
    "training.steps_per_chunk",
    "training.keep_checkpoints",
    "training.max_skipped_steps",
)


def fresh(name: str) -> Path:
    """Returns `runs/<name>`, or the first of `runs/<name>-2`, `-3`, ... that does not exist."""
    directory, number = Path("runs") / name, 1
    while directory.exists():
        number += 1
        directory = directory.with_name(f"{name}-{number}")
    return directory


def holds_run(directory: Path) -> bool:
    """Returns whether a run has been started in a directory."""
    return (directory / CONFIG).exists()


def check_new(directory: Path) -> None:
    """Raises a ValueError if a directory cannot hold a new run: it has one, or is a file."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--out: got the file {directory}, expected a directory")
    if holds_run(directory):
        raise ValueError(
            f"--out: {directory} holds a run already; continue it with --resume {directory}, or "
            "choose another directory"
        )


def start(directory: Path, config: Any, command: str) -> None:
    """Makes the directory of a new run and writes `config.json`; a ValueError if it has a run."""
    check_new(directory)
    directory.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": plain(config),
        "model_class": model.class_name(type(config.model)),
        "made_with": [origin(command)],
    }
    write_json(directory / CONFIG, record)


def resume(directory: Path, config: Any, command: str) -> None:
    """Checks that the settings are those of the run and adds the command to `config.json`.

    Raises:
      ValueError: a setting differs; names it.
    """
    record = check_settings(directory, config)
    record["made_with"].append(origin(command))
    write_json(directory / CONFIG, record)


def check_settings(directory: Path, config: Any) -> dict[str, Any]:
    """Returns the record in `config.json` if the settings are those of the run.

    Raises:
      ValueError: a setting differs, or the file cannot be read; names it.
    """
    record = read_record(directory)
    settings = training.upgrade_settings(plain(config))
    found, expected = (dict(flatten(tree)) for tree in (settings, record["settings"]))
    for name in expected:
        if name not in _FREE and found.get(name) != expected[name]:
            raise ValueError(
                f"{name}: got {found.get(name)!r}, but the run in {directory} was made with "
                f"{expected[name]!r}; a run keeps its settings, start a new one to change them"
            )
    return record


def read_config(directory: Path, config_class: type) -> Any:
    """Returns the settings of a run.

    Raises:
      ValueError: there is no run, or its settings are not those of `config_class`; names the file.
    """
    record = read_record(directory)
    try:
        return changed(config_class(), record["settings"], record.get("model_class"))
    # A field may hold anything, so a class may fail on it anywhere.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{directory / CONFIG}: not the settings of this experiment, or written by another "
            f"version of it ({error})"
        ) from error


def write_json(path: Path, record: Any, *, allow_nan: bool = True) -> None:
    """Writes JSON to a file, completely or not at all.

    Raises:
      ValueError: `allow_nan` is False, and a number is not finite.
    """
    write_text(path, json.dumps(record, indent=2, allow_nan=allow_nan) + "\n")


def check_results(directory: Path, results: dict[str, Any]) -> None:
    """Raises a ValueError if a result is not a finite number, which JSON cannot hold."""
    for name, value in flatten(results):
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"{directory / RESULTS}: {name} is {value}, expected finite numbers")


def origin(command: str) -> dict[str, Any]:
    """Returns what made a result: command, commit, date, device and versions."""
    device = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if device.platform == "cpu" else f" x {jax.device_count()}"
    return {
        "command": command,
        "git_commit": _git_commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": f"{device.device_kind}{cores}",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {
            "python": platform.python_version(),
            **library_versions(),
            "numpy": metadata.version("numpy"),
        },
    }


def read_record(directory: Path) -> dict[str, Any]:
    """Returns what `config.json` holds, with today's names of the settings.

    Raises:
      ValueError: there is no run, or the file is damaged; names it.
    """
    path = directory / CONFIG
    try:
        record = parse_json(path.read_bytes(), str(path))
        settings, made_with = record["settings"], record["made_with"]
        groups = [settings[name] for name in ("model", "training", "data")]
        if not isinstance(settings["preset"], str) or not all(isinstance(g, dict) for g in groups):
            raise TypeError("settings have no preset, or no model, training and data")
        is_list = isinstance(made_with, list) and made_with
        if not is_list or not all(isinstance(one, dict) for one in made_with):
            raise TypeError("made_with is not a list of objects, one for each command")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} holds no run: there is no {CONFIG} in it") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or not written by an experiment ({error})") from error
    return record | {"settings": training.upgrade_settings(settings)}


def _git_commit() -> str | None:
    """Returns the commit of the code, with `-dirty` if files differ from it; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
