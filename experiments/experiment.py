"""Description of an experiment: its settings, data and published results."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from egno_jax import EGNOConfig
from egno_jax.datasets import Samples
from egno_jax.training import TrainingConfig
from experiments import settings
from experiments.published import Published

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run; the class of an experiment adds `data`.

    Attributes:
      preset: the config to start from; other options change it.
      model: the model; `time_scale` is in frames.
      training: the training loop.
      data: the data set.
    """

    preset: str
    model: EGNOConfig = dataclasses.field(default_factory=EGNOConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)


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
      length_label: the unit of positions, for people.
      error_unit: the unit of errors, for people.
      time_unit: the unit of `times` in the velocities' unit of time.
      time_label: the unit of `times`, for people.
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
    length_label: str
    error_unit: str
    time_unit: float = 1.0
    time_label: str = "frames"
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
