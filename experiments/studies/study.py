"""What every study does: train models, write measurements with their origin, draw a figure."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

import egno_jax
from egno_jax import training
from egno_jax.datasets import Samples, take
from experiments import run_directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from egno_jax import EGNOConfig, Params
    from egno_jax.training import TrainingConfig

# The measurements and figures that are published, one of each a study.
PUBLISHED = Path(__file__).parent / "results"


class Study(NamedTuple):
    """What a study's script defines.

    Attributes:
      name: the script's name.
      question: what it answers, in a sentence.
      sizes: settings by the name of a size; `default` is the one to publish, `smoke` a test.
      measure: called with the settings and a `Workshop`; returns the measurements as JSON values.
      draw: called with the measurements; returns a figure.
    """

    name: str
    question: str
    sizes: Mapping[str, Any]
    measure: Callable[[Any, Workshop], dict[str, Any]]
    draw: Callable[[Mapping[str, Any]], Figure]


class Workshop:
    """Trains the models of a study, each once and resumable, in a directory of its own.

    Args:
      directory: the study's directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.models: dict[str, dict[str, Any]] = {}

    def train(
        self,
        name: str,
        model: EGNOConfig,
        config: TrainingConfig,
        train: Samples,
        valid: Samples,
    ) -> Params:
        """Trains a model, or loads it from the study's directory if it is trained already.

        Args:
          name: the model's name within the study.
          model: its hyper-parameters.
          config: how it is trained.
          train: samples to train on.
          valid: samples to select the model on.

        Returns:
          The model that is best on `valid`.

        Raises:
          CheckpointError: the directory holds a model of this name with other settings.
        """
        directory = self._directory / "models" / name.replace(" ", "-").replace(",", "")
        example = take(train, np.arange(1))
        initial = jax.jit(egno_jax.init, static_argnums=1)(
            jax.random.key(config.seed), model, example.graph, example.times
        )
        result = training.fit(
            directory, initial, train, valid, config, resume=(directory / "checkpoints").exists()
        )
        if result.interrupted:
            raise KeyboardInterrupt
        self.models[name] = {
            "steps": result.step,
            "best_step": result.best_step,
            "valid_f_mse": result.best_f_mse,
            "train_seconds": round(result.seconds, 1),
        }
        print(
            f"{name}: valid F-MSE {result.best_f_mse:.5f}, {result.seconds:.0f} s of training",
            flush=True,
        )
        return result.params


def main(study: Study, arguments: Sequence[str]) -> int:
    """Runs a study from its command line.

    Args:
      study: which.
      arguments: the words after the program's name.

    Returns:
      The exit code: 0, or 75 if a signal interrupted it; the same command resumes it.
    """
    program = f"python -m experiments.studies.{study.name}"
    parser = argparse.ArgumentParser(prog=program, description=study.question)
    parser.add_argument("--size", choices=[*study.sizes], default="default")
    parser.add_argument("--out", type=Path, help=f"default: runs/studies/{study.name}-SIZE")
    parser.add_argument(
        "--publish", action="store_true", help="write measurements and figure to the repository too"
    )
    parser.add_argument("--draw", action="store_true", help="draw the published figure again")
    options = parser.parse_args(arguments)
    published = PUBLISHED / f"{study.name}.json"
    if options.draw:
        _draw(study, json.loads(published.read_text()), published.with_suffix(".png"))
        return 0
    directory = options.out or Path("runs") / "studies" / f"{study.name}-{options.size}"
    directory.mkdir(parents=True, exist_ok=True)
    workshop, started = Workshop(directory), time.perf_counter()
    try:
        measured = study.measure(study.sizes[options.size], workshop)
    except KeyboardInterrupt:
        print(f"interrupted; the same command resumes it from {directory}")
        return 75
    record = {
        "study": study.name,
        "size": options.size,
        **measured,
        "models": workshop.models,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        **run_directory.origin(shlex.join([*program.split(), *arguments])),
    }
    paths = [directory / f"{study.name}.json", *([published] if options.publish else [])]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        run_directory.write_json(path, record)
        _draw(study, record, path.with_suffix(".png"))
        print(path.with_suffix(".png"))
    return 0


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _draw(study: Study, record: Mapping[str, Any], path: Path) -> None:
    figure = study.draw(record)
    figure.savefig(path, dpi=120, bbox_inches="tight")
