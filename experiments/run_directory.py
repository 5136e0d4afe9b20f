"""The files of a run's directory: settings, results, and where they came from.

- `config.json`: all settings, the commands that made the run, versions of the libraries;
- `metrics.jsonl`: training loss and validation errors, a line each;
- `checkpoints/`: the whole state of the training, to resume from;
- `best/`: the model with the least F-MSE on the validation set, for `egno_jax.load`;
- `tensorboard/`: the curves for TensorBoard;
- `profile/`: with `--profile`, a trace of some steps;
- `damaged-checkpoints/`: checkpoints that were found damaged and not used;
- `results.json`: errors on the test set, and what made them;
- `pictures/`: PNG, and a GIF where the experiment's systems have bonds to draw;
- `report.html`: all of it on one page.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import subprocess
import typing
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from egno_jax import EGNOConfig, model
from egno_jax.checkpoint import library_versions

CONFIG = "config.json"
METRICS = "metrics.jsonl"
BEST = "best"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
RESULTS = "results.json"
PICTURES = "pictures"
REPORT = "report.html"

# Where data lie on this machine, which says nothing about what they are.
FOLDERS = ("data.cache_dir", "data.data_dir")

# What may change when a run is resumed, because it changes no number.
_FREE = (
    *FOLDERS,
    "training.steps_per_call",
    "training.keep_checkpoints",
    "training.max_skipped_steps",
)


def fresh(name: str) -> Path:
    """Returns `runs/<name>`, or the first of `runs/<name>-2`, `-3`, ... that is not there yet."""
    directory, number = Path("runs") / name, 1
    while directory.exists():
        number += 1
        directory = directory.with_name(f"{name}-{number}")
    return directory


def holds_run(directory: Path) -> bool:
    """Says whether a run has been started in a directory."""
    return (directory / CONFIG).exists()


def check_new(directory: Path) -> None:
    """Raises a ValueError if a new run cannot live here: it holds one already, or is a file."""
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--out: {directory} is a file, expected a directory")
    if holds_run(directory):
        raise ValueError(
            f"--out: {directory} holds a run already; continue it with --resume {directory}, or "
            "choose another directory"
        )


def start(directory: Path, config: Any, command: str) -> None:
    """Makes the directory of a new run and writes `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": plain(config),
        "model_class": model.class_name(type(config.model)),
        "made_with": [origin(command)],
    }
    write_json(directory / CONFIG, record)


def resume(directory: Path, config: Any, command: str) -> None:
    """Checks that the settings are those of the run and notes in `config.json` that it goes on.

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
    record = _read_record(directory)
    found, expected = (dict(flatten(tree)) for tree in (plain(config), record["settings"]))
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
    record = _read_record(directory)
    try:
        return _build(config_class, record["settings"], record.get("model_class"))
    # A field may hold anything, so a class may stumble over it anywhere.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{directory / CONFIG}: not the settings of this experiment, or written by another "
            f"version of it ({error})"
        ) from error


def write_json(path: Path, record: Any, *, allow_nan: bool = True) -> None:
    """Writes JSON to a file, whole or not at all.

    Raises:
      ValueError: `allow_nan` is False, and a number is not finite.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record, indent=2, allow_nan=allow_nan) + "\n")
    partial.replace(path)


def check_results(directory: Path, results: dict[str, Any]) -> None:
    """Raises a ValueError if a result is not a finite number, for which JSON has no word."""
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


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested dicts under dotted names, `("model.hidden_dim", 64)`."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_record(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        record = json.loads(path.read_text())
        settings, made_with = record["settings"], record["made_with"]
        if not isinstance(settings, dict):
            raise TypeError(f"settings are {type(settings).__name__}, expected an object")
        is_list = isinstance(made_with, list) and made_with
        if not is_list or not all(isinstance(one, dict) for one in made_with):
            raise TypeError("made_with is none, expected a list of objects, one for each command")
        return record
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory} holds no run: there is no {CONFIG} in it") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or not written by an experiment ({error})") from error


def plain(config: Any) -> dict[str, Any]:
    """Returns settings as JSON gives them back: lists for tuples, strings for paths."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _build(kind: type, fields: dict[str, Any], model_class: str | None) -> Any:
    """Returns the dataclass of `kind` that `plain` made the fields of.

    Args:
      kind: the class; where it is that of EGNO, the model's own may be another.
      fields: the settings.
      model_class: the name of the model's; None in runs that did not record it.
    """
    if kind is EGNOConfig:
        kind = _model_class(fields, model_class)
    hints = typing.get_type_hints(kind)
    made = {name: _as_type(hints[name], value, model_class) for name, value in fields.items()}
    return kind(**made)


def _model_class(fields: dict[str, Any], name: str | None) -> type[EGNOConfig]:
    found = model.config_class(fields, name)
    if found is None:
        raise ValueError(f"model_class is {name!r}, which is not registered; import it first")
    return found


def _as_type(hint: Any, value: Any, model_class: str | None) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, model_class)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return value


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
