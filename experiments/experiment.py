"""Description of an experiment: its settings, data and published results."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from egno_jax.datasets import Samples
from experiments import settings

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Drawing(NamedTuple):
    """How to draw systems whose nodes are joined by lines: skeletons, molecules.

    Attributes:
      bonds: `[B, 2]`, pairs of nodes.
      target_frames: `[P]`, indices of the predicted times among the times of the true paths.
      up: the axis that points up, "x", "y" or "z".
    """

    bonds: Int[np.ndarray, "B 2"]
    target_frames: Sequence[int]
    up: str = "z"


class Splits(NamedTuple):
    """The data of a run.

    Attributes:
      train: samples to train on.
      valid: samples to select the model on.
      test: samples to report errors on.
      test_paths: `[S, T, N, 3]`, positions from the initial state to the last target at all known
        times, for pictures.
      drawing: how to draw systems whose nodes are joined by lines; None draws the paths of nodes.
    """

    train: Samples
    valid: Samples
    test: Samples
    test_paths: Float[np.ndarray, "S T N 3"]
    drawing: Drawing | None = None


class Published(NamedTuple):
    """A result from the literature.

    Attributes:
      method: the method's name.
      f_mse: error at the last time.
      a_mse: error over all times, if reported.
      source: who reported it, and what differs.
      task: the task it was measured on, as `Experiment.task` names it.
      other_split: whether the data were split in another way, as `source` says; tables mark it.
    """

    method: str
    f_mse: float
    a_mse: float | None
    source: str
    task: str = ""
    other_split: bool = False

    def cited(self, key: str) -> str:
        """Returns an error as text, marked where it was measured on another split."""
        number = getattr(self, key)
        mark = "\\*" if self.other_split else ""
        return "" if number is None else f"{number:.5f}".rstrip("0") + mark


class Experiment(NamedTuple):
    """What an experiment's script defines. Its configs are in `configs/<name>/`.

    Attributes:
      name: the script's name.
      title: for people.
      summary: a sentence or two about the task.
      default: the default settings, a dataclass with `preset`, `model`, `training` and `data`.
      presets: the configs that `--help` explains; the first is the default.
      load_splits: called with the settings in `data`; returns the data.
      task: called with the settings in `data`; names the task. Results are compared only within
        one task, so all settings that change the difficulty are part of the name.
      published: results from the literature.
      headlines: the rows of the README's table: a title, and the tasks that the row covers.
      time_unit: the unit of `times` in the velocities' unit of time.
      time_label: the unit of `times`, for people.
      length_label: the unit of positions, for people.
      error_unit: the unit of errors, for people.
      varied: settings that a run may choose without needing a config of its own, in addition to the
        seed: which of several similar data sets it sees.
      renamed: new names of configs by their deprecated names.
    """

    name: str
    title: str
    summary: str
    default: Any
    presets: Sequence[str]
    load_splits: Callable[[Any], Splits]
    task: Callable[[Any], str]
    published: Sequence[Published]
    headlines: Mapping[str, Sequence[str]]
    time_unit: float
    time_label: str
    length_label: str
    error_unit: str
    varied: Sequence[str] = ()
    renamed: Mapping[str, str] = types.MappingProxyType({})

    def config(self, name: str) -> tuple[Any, str]:
        """Returns the settings and the description of a config in `configs/<experiment>/`.

        Raises:
          ValueError: there is no config of this name.
        """
        current = settings.current_name(name, self.renamed)
        if current not in settings.names(self.name):
            raise ValueError(
                f"preset: got {name!r}, expected one of {', '.join(self.presets)}, or the name of "
                f"another file in experiments/configs/{self.name}"
            )
        return settings.read(self.path(current), self.default)

    def published_for(self, task: str) -> list[Published]:
        """Returns the published results of a task."""
        return [other for other in self.published if other.task == task]

    def path(self, name: str) -> Path:
        """Returns the file of a config."""
        return settings.CONFIGS / self.name / f"{name}.yaml"


def check(config: Any, name: str, is_valid: bool, expected: str) -> None:
    """Raises a ValueError that names a field of a config and its value, unless it is valid."""
    if not is_valid:
        got = getattr(config, name)
        raise ValueError(f"{type(config).__name__}.{name}: got {got!r}, expected {expected}")


def named(*parts: str, **changes: tuple[Any, Any]) -> str:
    """Returns the name of a task: words, and settings that are not the usual ones.

    Args:
      *parts: words; empty ones are left out.
      **changes: value and usual value of settings; `field=value` is added where they differ.
    """
    others = [f"{key}={value}" for key, (value, usual) in changes.items() if value != usual]
    return ", ".join([*filter(None, parts), *others])


def unusual(data: Any, usual: Any, *fields: str) -> dict[str, tuple[Any, Any]]:
    """Returns value and usual value of some settings in `data`, for `named`."""
    return {field: (getattr(data, field), getattr(usual, field)) for field in fields}
