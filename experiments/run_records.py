"""Published results: one line a run in `results.jsonl`, settings in `configs/`.

A line names its config, the seed, and those settings of `Experiment.varied` that differ from the
config. It holds a fingerprint of the config file, so that a published config cannot be edited.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from egno_jax.checks import parse_json
from egno_jax.files import write_text
from experiments import md17, mocap, nbody, protein, run_directory, settings
from experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (nbody, mocap, md17, protein)
}
RESULTS = Path(__file__).with_name("results.jsonl")

OURS = "EGNO"
# A config with as many seeds may represent a model; otherwise the luckiest would.
ENOUGH_SEEDS = 3
# What a line must hold, in addition to numbers.
_TEXTS = ("name", "experiment", "config", "model", "fingerprint")
# What a line says of a run before everything else.
_FIRST = (
    *("name", "experiment", "config", "varied", "seed", "model", "f_mse", "a_mse", "valid_f_mse"),
    *("best_step", "steps", "num_parameters", "train_seconds"),
)
# As many differences of settings are listed; of more, the config is named.
_FEW = 1


class Row(NamedTuple):
    """Runs that differ only in their seed: config, settings, lines of `results.jsonl`."""

    config: str
    settings: Any
    records: list[dict[str, Any]]

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return EXPERIMENTS[self.records[0]["experiment"]]

    @property
    def task(self) -> str:
        """The task that results are compared within."""
        return self.experiment.task(self.settings.data)

    @property
    def model(self) -> str:
        """What people call the model."""
        return self.records[0]["model"]

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({record["seed"] for record in self.records})

    def errors(self, key: str) -> list[float]:
        """Returns an error of each run; none for the A-MSE of models that predict one time."""
        if key == "a_mse" and len(self.records[0]["mse_per_time"]) == 1:
            return []
        return [record[key] for record in self.records]

    def mean(self, key: str) -> float:
        """Returns the mean of an error over the runs; infinite where there is none."""
        return float(np.mean(self.errors(key) or [np.inf]))

    def spread(self, key: str) -> str:
        """Returns mean and standard deviation of an error as text; empty where there is none."""
        values = self.errors(key)
        deviation = f" ± {np.std(values, ddof=1):.5f}" if len(values) > 1 else ""
        return f"{np.mean(values):.5f}{deviation}" if values else ""


class Rival(NamedTuple):
    """A baseline that is compared with a row of EGNO, and how its training and data differ."""

    row: Row
    differences: list[str]

    @property
    def title(self) -> str:
        """The model, with † and the differences if there are any; if many, its config instead."""
        few = len(self.differences) <= _FEW
        named = self.differences if few else [self.row.config]
        return self.row.model + (f" † (`{'`, `'.join(named)}`)" if self.differences else "")


def config_file(experiment: Experiment, name: str, folders: Sequence[Path]) -> Path:
    """Returns the file of a config in the first folder that has it; a ValueError if none has."""
    for folder in folders:
        path = folder / experiment.name / f"{name}.yaml"
        if Path(name).name == name and path.exists():  # no path out of the folder
            return path
    raise ValueError(f"config: got {name!r}, expected a file in {folders[0] / experiment.name}")


def load(path: Path = RESULTS, folders: Sequence[Path] = (settings.CONFIGS,)) -> list[Row]:
    """Reads a file of results; runs that differ only in their seed share a row.

    Raises:
      ValueError: there are no results, a line is of no experiment or config, or its config was
        edited; names the run.
    """
    if not path.exists():
        raise ValueError(f"{path}: there are no results; give directories of finished runs")
    groups: dict[tuple[str, ...], Row] = {}
    for record in _lines(path):
        key = (record["experiment"], record["config"], str(record["varied"]))
        if key not in groups:
            groups[key] = Row(record["config"], _settings(record, path, folders), [])
        groups[key].records.append(record)
    return [*groups.values()]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a file of results; a ValueError names one that is not valid."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        place = f"{path}, line {number}"
        record = parse_json(line, place)
        _check(record, place, (*_FIRST, "mse_per_time"), _TEXTS)
        found.append(record)
    return found


def _check(record: Any, place: str, keys: Sequence[str], texts: Sequence[str]) -> None:
    """Raises a ValueError unless a record has these keys, texts among them, the rest numbers."""

    def is_valid(key: str) -> bool:
        value = record.get(key)
        if key == "mse_per_time":
            return isinstance(value, list)
        if key == "varied":
            return isinstance(value, dict) and all(name.count(".") == 1 for name in value)
        if key in texts:
            return isinstance(value, str)
        return type(value) in (int, float) and abs(value) < math.inf

    wrong = list(dict.fromkeys((*keys, *texts)))
    if isinstance(record, dict):
        wrong = [key for key in wrong if not is_valid(key)]
    if wrong:
        raise ValueError(
            f"{place}: got a record without a valid {wrong[0]!r}, expected one that a run and "
            "`python -m experiments.report` have written"
        )


def by_task(rows: Sequence[Row], name: str) -> list[tuple[str, list[Row]]]:
    """Returns the tasks of an experiment and their rows, the lowest error first."""
    tasks: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.mean("f_mse")):
        if row.experiment.name == name:
            tasks.setdefault(row.task, []).append(row)
    published = [other.task for other in EXPERIMENTS[name].published]
    return sorted(tasks.items(), key=lambda item: (item[0] not in published, item[0]))


def _settings(record: dict[str, Any], path: Path, folders: Sequence[Path]) -> Any:
    """Returns the settings of a run, from its config."""
    name = record["experiment"]
    try:
        if name not in EXPERIMENTS:
            raise ValueError(f"experiment: got {name!r}, expected one of {[*EXPERIMENTS]}")
        file = config_file(EXPERIMENTS[name], record["config"], folders)
        if settings.fingerprint(file) != record["fingerprint"]:
            raise ValueError(f"{file} was edited; restore it, and put new settings into a new file")
        tree: dict[str, Any] = {}
        for setting, value in record["varied"].items():
            group, field = setting.split(".")
            tree.setdefault(group, {})[field] = value
        return settings.changed(settings.read(file, EXPERIMENTS[name].default)[0], tree)
    except ValueError as error:
        raise ValueError(f"{path}: {record['name']}: {error}") from error


def append(
    directory: Path,
    path: Path = RESULTS,
    folders: Sequence[Path] = (settings.CONFIGS,),
    freeze: str = "",
    description: str = "",
    *,
    replace: bool = False,
) -> str:
    """Appends a finished run to a file of results.

    Args:
      directory: the run.
      path: the file.
      folders: where configs are.
      freeze: the name of a config file that is written to the last folder if the run's settings
        are in none; without it such a run is refused.
      description: the description in that file.
      replace: whether a line of the same run is replaced; otherwise it is an error.

    Raises:
      ValueError: the run is not finished, published already, or of no config.
    """
    results = read_results(directory)
    experiment = EXPERIMENTS[results["experiment"]]
    config = run_directory.read_config(directory, type(experiment.default))
    if not results["finished"]:
        raise ValueError(
            f"{directory}: the run ended at step {results['steps']} of "
            f"{config.training.num_steps}; only finished runs are published"
        )
    name = directory.absolute().name
    file = _config_of(config, experiment, folders)
    if file is None:
        file = _new_file(directory, folders[-1] / experiment.name, freeze)
        text = description or f"The settings of the run {name}."
        settings.write(file, config, experiment.default, text)
    own, usual = (
        dict(settings.flatten(settings.plain(each)))
        for each in (config, settings.read(file, experiment.default)[0])
    )
    varied = {key: own[key] for key in experiment.varied if own[key] != usual[key]}
    for record in (results, *results.get("resumed", ())):
        record["command"] = portable(record["command"])
    record = {"name": name, "config": file.stem, **results, "varied": varied}
    record["fingerprint"] = settings.fingerprint(file)
    others = _others(record, path, replace=replace)
    ordered = {key: record[key] for key in (*_FIRST, *record) if key not in ("preset", "finished")}
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in (*others, ordered)))
    return f"{name}: {file.stem}"


def read_results(directory: Path) -> dict[str, Any]:
    """Returns the results of a finished run; a ValueError names the file if it is damaged."""
    path = directory / run_directory.RESULTS
    try:
        results = parse_json(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{directory}: there is no {run_directory.RESULTS}") from error
    keys = [key for key in _FIRST if key not in ("name", "config", "varied")]
    _check(results, str(path), keys, ("experiment", "model", "command"))
    if results["experiment"] not in EXPERIMENTS or not isinstance(results.get("finished"), bool):
        raise ValueError(f"{path}: not the results of a run of {[*EXPERIMENTS]}")
    return results


def _new_file(directory: Path, folder: Path, name: str) -> Path:
    """Returns where the config of a run is to be written; an error if it must not be."""
    if not name:
        raise ValueError(
            f"{directory}: its settings are those of no file in {folder}; "
            f"write one with: python -m experiments.report --freeze NAME {directory}"
        )
    file = folder / f"{name}.yaml"
    if file.exists():
        raise ValueError(f"--freeze: {file} exists with other settings; choose another name")
    return file


def _config_of(config: Any, experiment: Experiment, folders: Sequence[Path]) -> Path | None:
    """Returns the file of the config that holds some settings; None if there is none."""
    wanted = settings.compared(config, free=experiment.varied)
    for file in (path for folder in folders for path in settings.files(experiment.name, folder)):
        found = settings.read(file, experiment.default)[0]
        if settings.compared(found, free=experiment.varied) == wanted:
            return file
    return None


def _others(record: dict[str, Any], path: Path, *, replace: bool) -> list[dict[str, Any]]:
    """Returns the lines of a file that stay when a run is appended; a duplicate is an error."""
    others = _lines(path) if path.exists() else []
    if replace:
        return [other for other in others if other["name"] != record["name"]]
    for other in others:
        keys = ("experiment", "config", "varied", "seed")
        if record["name"] == other["name"] or all(record[key] == other[key] for key in keys):
            raise ValueError(
                f"{record['name']}: {path} holds {other['name']} with the same name, or the same "
                "settings and seed; remove that line to replace it"
            )
    return others


def portable(command: str) -> str:
    """Returns a command without the folders of this machine; runs are in `runs/`."""
    words, option = [], ""
    for word in shlex.split(command):
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag:
            option = flag.removeprefix("--").replace("-", "_")
        if option in settings.FOLDERS:
            continue
        if option in ("out", "resume", "evaluate") and Path(value).is_absolute():
            value = f"runs/{Path(value).name}"
        words.append(flag + equals + value)
    return shlex.join(words)


def best_validated(rows: Iterable[Row]) -> Row:
    """Returns the row of the lowest mean F-MSE on the validation set."""
    return min(rows, key=lambda row: (row.mean("valid_f_mse"), row.config))


def selected(rows: Iterable[Row]) -> Row | None:
    """Returns the row of EGNO that represents it in a task; None if it has no row.

    It is the best validated of those with `ENOUGH_SEEDS` seeds or, if there are none, the most.
    """
    rows = [row for row in rows if row.model == OURS]
    enough = min(ENOUGH_SEEDS, max((row.seeds for row in rows), default=0))
    return best_validated(row for row in rows if row.seeds >= enough) if rows else None


def differences(ours: Row, other: Row) -> list[str]:
    """Returns the settings of training and data, as `other` has them, in which two rows differ."""
    mine, its = settings.compared(ours.settings), settings.compared(other.settings)
    return [
        f"{key.split('.', 1)[1].removeprefix('optimizer.')}={its.get(key)}"
        for key in dict.fromkeys([*mine, *its])
        if key.startswith(("training.", "data.")) and mine.get(key) != its.get(key)
    ]


def _budget(row: Row) -> tuple[int, int]:
    return row.settings.training.num_steps, row.settings.training.batch_size


def rivals(rows: Sequence[Row], ours: Row, *, same_budget: bool = False) -> list[Rival]:
    """Returns one row of each baseline, sorted by the error on the validation set.

    It is the row trained with the settings of `ours`, the row of EGNO; where a method has none, the
    best validated of those with as many steps and samples a step, otherwise of all. Baselines with
    global message passing are compared only with an EGNO that has it. With `same_budget` it is the
    best validated of all with as many steps and samples a step, whatever their other settings.
    """
    found = []
    for model in dict.fromkeys(row.model for row in rows if row.model != OURS):
        own = [row for row in rows if row.model == model]
        budget = [row for row in own if _budget(row) == _budget(ours)]
        if not same_budget:
            if not ours.settings.model.mean_field:
                own = [row for row in own if not row.settings.model.mean_field]
            alike = [row for row in own if not differences(ours, row)]
            budget = alike or [row for row in budget if row in own] or own
        if budget:
            row = best_validated(budget)
            found.append(Rival(row, differences(ours, row)))
    return sorted(found, key=lambda rival: (rival.row.mean("valid_f_mse"), rival.row.config))
