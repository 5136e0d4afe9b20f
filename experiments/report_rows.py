"""What the report's tables and pictures show: rows of seeds, tasks, and what compares with what."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import md17, mocap, nbody, protein, run_directory
from experiments.runner import Experiment, Published

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (nbody.EXPERIMENT, mocap.EXPERIMENT, md17.EXPERIMENT, protein.EXPERIMENT)
}

OURS = "EGNO"
# A setting tried with as many seeds may stand for a model; of fewer the luckiest would.
ENOUGH_SEEDS = 3

# Settings that change no number, or, as the seed, not what a number says.
_BOOKKEEPING = (
    "training.seed",
    "training.steps_per_call",
    "training.eval_batch_size",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.max_skipped_steps",
)
# Settings that noise alone reads.
_COLUMNS = tuple(f"training.noise.{name}_column" for name in ("speed", "distance", "length"))
_BUDGET = ("training.num_steps", "training.batch_size")

# The settings in `data` that make a task.
Task = tuple[tuple[str, Any], ...]


class Row(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
      name: preset, and the settings that differ from it.
      records: a record a run, as `report.collect` wrote them.
    """

    name: str
    records: list[dict[str, Any]]

    @property
    def model(self) -> str:
        """What people call the model."""
        return self.records[0].get("model", OURS)

    @property
    def experiment(self) -> Experiment:
        """What its script says of the experiment."""
        return EXPERIMENTS[self.records[0]["experiment"]]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings under dotted names, those of the first run where runs differ."""
        return settings_of(self.records[0])

    @property
    def data(self) -> dict[str, Any]:
        """The settings in `data`."""
        return {
            key.removeprefix("data."): value
            for key, value in self.settings.items()
            if key.startswith("data.")
        }

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        return len({record["seed"] for record in self.records})

    def mean(self, key: str) -> float:
        """The mean of an error over the runs."""
        return float(np.mean([record[key] for record in self.records]))

    @property
    def valid_error(self) -> float:
        """The mean F-MSE on the validation set; infinite where a run did not write it down."""
        errors = [record.get("valid_f_mse") for record in self.records]
        mean = math.inf if None in errors else float(np.mean(errors))
        return math.inf if math.isnan(mean) else mean


class Rival(NamedTuple):
    """A baseline beside a row of EGNO.

    Attributes:
      row: its runs.
      differences: the settings of training and data, as it has them, in which the two differ.
    """

    row: Row
    differences: list[str]


def load_records(directory: Path) -> list[dict[str, Any]]:
    """Reads the records of a folder; each is called after its file.

    Args:
      directory: holds a JSON file a run.

    Raises:
      ValueError: a record is of an experiment or a preset that there is not; names the file.
    """
    records = []
    for path in sorted(directory.glob("*.json")):
        record = {**json.loads(path.read_text()), "name": path.stem}
        experiment = EXPERIMENTS.get(record["experiment"])
        if experiment is None:
            name = record["experiment"]
            raise ValueError(f"{path}: experiment: got {name!r}, expected one of {[*EXPERIMENTS]}")
        preset = record["settings"]["preset"]
        if preset not in experiment.presets:
            raise ValueError(
                f"{path}: preset: got {preset!r}, expected one of {[*experiment.presets]}"
            )
        records.append(record)
    return records


def preset_of(record: Mapping[str, Any]) -> str:
    """Returns the preset whose settings of today are nearest to those of a run.

    The model's kind counts first, then the task, then how much else differs. A preset may have
    changed since the run, and another may now hold its settings.
    """
    experiment = EXPERIMENTS[record["experiment"]]
    of_task = {f"data.{field}" for field in task_fields(experiment)}
    wanted, own = settings_of(record), record["settings"]["preset"]

    def distance(name: str) -> tuple[bool, int, int, bool]:
        changed = _unequal(wanted, preset_settings(record, name))
        return "model.method" in changed, len(of_task & {*changed}), len(changed), name != own

    return min(experiment.presets, key=distance)


def preset_settings(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns today's settings of a preset of a run's experiment as `settings_of` does."""
    preset = EXPERIMENTS[record["experiment"]].presets[name]
    return dict(_settings(run_directory.plain(preset)))


def _unequal(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Returns the names of the settings in which two differ, those of bookkeeping left out."""
    return [
        key
        for key in dict.fromkeys([*first, *second])
        if key not in _BOOKKEEPING and first.get(key) != second.get(key)
    ]


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of a run under dotted names, but for folders and its preset's name.

    A setting that is newer than the run has its default: what it does was not done then, whatever
    the preset says today. Without noise its columns do nothing, and are those of the preset.
    """
    preset = EXPERIMENTS[record["experiment"]].presets[record["settings"]["preset"]]
    parts = {name: type(getattr(preset, name))() for name in ("model", "training", "data")}
    defaults = run_directory.plain(dataclasses.replace(preset, **parts))
    settings = dict(_settings(defaults)) | dict(_settings(record["settings"]))
    if not (settings["training.noise.positions"] or settings["training.noise.velocities"]):
        today = preset_settings(record, record["settings"]["preset"])
        settings |= {key: value for key, value in today.items() if key in _COLUMNS}
    return settings


def _settings(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in run_directory.flatten(tree):
        if key not in (*run_directory.FOLDERS, "preset"):
            yield key, value


def rows_of(name: str, records: Sequence[dict[str, Any]]) -> list[Row]:
    """Groups the records of an experiment by their settings, seeds apart; best first.

    Args:
      name: the experiment.
      records: its records.
    """

    def settings(record: dict[str, Any]) -> str:
        kept = {k: v for k, v in settings_of(record).items() if k not in _BOOKKEEPING}
        return json.dumps(kept, sort_keys=True)

    records = [record for record in records if record["experiment"] == name]
    groups = itertools.groupby(sorted(records, key=settings), key=settings)
    rows = [
        Row(_row_name(group[0]), group)
        for group in (sorted(members, key=lambda r: r["seed"]) for _, members in groups)
    ]
    return sorted(rows, key=lambda row: row.mean("f_mse"))


def _row_name(record: dict[str, Any]) -> str:
    """Names a row after its preset and the settings in which it differs from it."""
    name, settings = preset_of(record), settings_of(record)
    changed = _unequal(settings, preset_settings(record, name))
    changes = [f"`{_leaf(key)}={settings.get(key)}`" for key in changed]
    return ", ".join([f"preset `{name}`", *changes])


def _leaf(key: str) -> str:
    """Returns a setting's own name, with that of its group where it says little alone."""
    group, _, name = key.rpartition(".")
    return f"{group.rsplit('.', 1)[-1]}.{name}" if group.endswith("noise") else name


def by_task(rows: Sequence[Row]) -> dict[Task, list[Row]]:
    """Returns the rows of each task of an experiment, the published tasks first."""
    groups: dict[Task, list[Row]] = {}
    for row in rows:
        groups.setdefault(task_of(row), []).append(row)
    standard = run_directory.plain(rows[0].experiment.published_data)

    def order(task: Task) -> list[Any]:
        return [(_frozen(standard[key]) != value, str(type(value)), value) for key, value in task]

    return {task: groups[task] for task in sorted(groups, key=order)}


def task_of(row: Row) -> Task:
    """Returns those settings in `data` that make the row's task."""
    data = row.data
    return tuple((key, _frozen(data[key])) for key in task_fields(row.experiment))


def task_fields(experiment: Experiment) -> Sequence[str]:
    """Returns the names of those settings in `data` that make a task."""
    conditions = (key for other in experiment.published for key in other.conditions)
    return experiment.task_fields or [*dict.fromkeys(conditions)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def titles(experiment: Experiment, tasks: Iterable[Task]) -> dict[Task, str]:
    """Returns what people call each task of an experiment; no two are called the same."""
    named = {task: task_title(experiment, dict(task)) for task in tasks}
    for title in dict.fromkeys(named.values()):
        alike = [task for task, other in named.items() if other == title]
        for task in alike:
            apart = [f"{key}={value}" for key, value in varying(task, alike)]
            named[task] = ", ".join([title, *apart])
    return named


def varying(task: Task, tasks: Iterable[Task]) -> Task:
    """Returns those settings of a task that are not the same in all of the tasks."""
    values: dict[str, set[Any]] = {}
    for other in tasks:
        for key, value in other:
            values.setdefault(key, set()).add(value)
    return tuple((key, value) for key, value in task if len(values[key]) > 1)


def task_title(experiment: Experiment, settings: Mapping[str, Any]) -> str:
    """Returns the experiment's title and the words for some settings in `data`."""
    words = (_words(experiment, key, value) for key, value in settings.items())
    return ", ".join([experiment.title, *filter(None, words)])


def _words(experiment: Experiment, key: str, value: Any) -> str:
    """Returns what people call a setting in `data`; empty where it goes without saying."""
    named = experiment.data_words.get(key, {})
    if value in named:
        return named[value]
    standard = run_directory.plain(experiment.published_data).get(key)
    return "" if _frozen(standard) == value else f"{key}={value}"


def notes(row: Row) -> list[str]:
    """Returns how the data of a row differ from the published ones, its task apart."""
    task = dict(task_of(row))
    standard = run_directory.plain(row.experiment.published_data)
    words = (
        _words(row.experiment, key, _frozen(value))
        for key, value in row.data.items()
        if key not in task and key in standard and standard[key] != value
    )
    return [*filter(None, words)]


def error_unit(experiment: Experiment) -> str:
    """Returns the unit of errors, `"Å²"`."""
    if experiment.length_unit:
        return f"({experiment.length_unit})²"
    return f"{experiment.length_label}²"


def published_for(row: Row) -> list[Published]:
    """Returns the published results that a row may be compared with."""
    experiment, data = row.experiment, row.data
    standard = run_directory.plain(experiment.published_data)
    if any(data[key] != standard[key] for key in experiment.published_fields):
        return []
    return [
        other
        for other in experiment.published
        if all(data.get(key, value) == value for key, value in other.conditions.items())
    ]


def best_validated(rows: Iterable[Row]) -> Row:
    """Returns the row of least mean F-MSE on the validation set; the test set decides nothing."""
    return min(rows, key=lambda row: (row.valid_error, row.name))


def selected(rows: Iterable[Row], model: str = OURS) -> Row | None:
    """Returns the row that stands for a model: the best validated of those with enough seeds.

    Args:
      rows: those of a task.
      model: what people call the model.

    Returns:
      The row, of `ENOUGH_SEEDS` seeds where there are such and of the most otherwise; None if the
      model has none.
    """
    rows = [row for row in rows if row.model == model]
    if not rows:
        return None
    enough = min(ENOUGH_SEEDS, max(row.seeds for row in rows))
    return best_validated(row for row in rows if row.seeds >= enough)


def differences(ours: Row, other: Row) -> list[str]:
    """Returns the settings of training and data, as `other` has them, in which two rows differ."""
    its = other.settings
    return [
        f"{_leaf(key)}={its.get(key)}"
        for key in _unequal(ours.settings, its)
        if key.startswith(("training.", "data."))
    ]


def has_budget_of(ours: Row, other: Row) -> bool:
    """Whether two rows were trained for as many steps of as many samples."""
    mine, its = ours.settings, other.settings
    return all(mine[key] == its[key] for key in _BUDGET)


def rivals(rows: Iterable[Row], ours: Row) -> list[Rival]:
    """Returns a row for each baseline, by the error on the validation set.

    It is the one trained with the settings of `ours`; where a method has none, the best validated
    of those with as many steps and samples a step, or else of all. One with a mean field stands
    beside an EGNO with one alone.

    Args:
      rows: those of a task.
      ours: the row of EGNO that they are compared with.
    """
    found = []
    key = "model.mean_field"
    rows = [row for row in rows if ours.settings[key] or not row.settings[key]]
    for own in _by_baseline(rows).values():
        alike = [row for row in own if not differences(ours, row)]
        row = best_validated(alike or [row for row in own if has_budget_of(ours, row)] or own)
        found.append(Rival(row, differences(ours, row)))
    return sorted(found, key=lambda rival: (rival.row.valid_error, rival.row.name))


def contenders(rows: Iterable[Row], ours: Row) -> list[Rival]:
    """Returns the best validated row of each baseline with as many steps and samples a step."""
    found = []
    for own in _by_baseline(rows).values():
        own = [row for row in own if has_budget_of(ours, row)]
        if own:
            row = best_validated(own)
            found.append(Rival(row, differences(ours, row)))
    return found


def _by_baseline(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.model != OURS:
            groups.setdefault(row.model, []).append(row)
    return groups


def trained_like(rows: Iterable[Row], other: Row) -> Row | None:
    """Returns the row of EGNO that was trained with the settings of another; None without one."""
    alike = [row for row in rows if row.model == OURS and not differences(other, row)]
    return best_validated(alike) if alike else None


def command_today(record: Mapping[str, Any]) -> str:
    """Returns the command that asks today's presets for the settings of a run."""
    name, wanted = preset_of(record), settings_of(record)
    preset = preset_settings(record, name)
    words = ["python", "-m", f"experiments.{record['experiment']}", "--preset", name]
    for key in preset:
        if wanted[key] != preset[key]:
            words += _option(key, wanted[key])
    return shlex.join([*words, "--out", f"runs/{record.get('name', 'again')}"])


def is_repeatable(record: Mapping[str, Any]) -> bool:
    """Whether the command of a run still asks for its settings, whatever its order and spelling."""
    given = dict(_options(shlex.split(record["command"])))
    if given.get("preset") != [record["settings"]["preset"]]:
        return False
    preset = preset_settings(record, record["settings"]["preset"])
    today = {key: _texts(value) for key, value in preset.items()}
    asked = {**today, **{key: words for key, words in given.items() if key in today}}
    wanted = settings_of(record)
    return all(asked[key] == _texts(wanted[key]) for key in today)


def _option(key: str, value: Any) -> list[str]:
    """Returns the words that give a setting its value."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        group, _, field = name.rpartition(".")
        return [f"--{group}.{field}" if value else f"--{group}.no-{field}"]
    return [f"--{name}", *_texts(value)]


def _options(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the settings that a command gives, under dotted names, with the words behind each."""
    starts = [index for index, word in enumerate(words) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        name, _, value = words[start].removeprefix("--").partition("=")
        values = [value, *words[start + 1 : end]] if value else [*words[start + 1 : end]]
        group, _, field = name.replace("-", "_").rpartition(".")
        if not values:
            values = ["False" if field.startswith("no_") else "True"]
            field = field.removeprefix("no_")
        yield f"{group}.{field}" if group else field, values


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
