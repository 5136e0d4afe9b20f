"""What every study does: train models, write measurements with their origin, draw a figure."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

import egno_jax
from egno_jax import EGNOConfig, Params, training
from egno_jax.datasets import Batch, Samples, take
from egno_jax.files import replacing
from egno_jax.training import TrainingConfig
from egno_jax.training.liveness import RESUMABLE
from experiments import run_directory

# Matplotlib is an extra: only what draws imports it.
if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

# The measurements and figures that are published, one of each a study.
PUBLISHED = Path(__file__).parent / "results"

# What a study has measured, as JSON values.
Record = Mapping[str, Any]


class Study(NamedTuple):
    """What a study's script defines.

    Attributes:
      name: the script's name.
      question: what it answers, in a sentence.
      sizes: settings by the name of a size; `default` is the one to publish, `smoke` a test.
      measure: called with the settings and a `Workshop`; returns the measurements.
      draw: called with the measurements; returns a figure.
    """

    name: str
    question: str
    sizes: Mapping[str, Any]
    measure: Callable[[Any, Workshop], Record]
    draw: Callable[[Record], Figure]


class Workshop:
    """Trains the models of a study, each once and resumable, in the study's directory."""

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
        off: str = "",
    ) -> Params:
        """Returns the model that is best on `valid`: trains it, or loads it if that was done.

        Weights whose path in the model contains `off`, such as `/temporal_conv/`, stay zero.

        Raises:
          CheckpointError: the directory holds a model of this name with other settings.
        """
        directory = self._directory / "models" / re.sub(r"[^\w=.-]+", "-", name)
        example = take(train, np.arange(1))
        initial = jax.jit(egno_jax.init, static_argnums=1)(
            jax.random.key(config.seed), model, example.graph, example.times
        )
        loss = None
        if off:
            initial, loss = _without(initial, off), functools.partial(_loss_without, off)
        is_known = (directory / "checkpoints").exists()
        result = training.fit(
            directory, initial, train, valid, config, resume=is_known, loss_fn=loss
        )
        if result.interrupted:
            raise KeyboardInterrupt
        error, seconds = result.best_f_mse, result.seconds
        self.models[name] = {
            "steps": result.step,
            "best_step": result.best_step,
            "valid_f_mse": error,
            "train_seconds": round(seconds, 1),
        }
        print(f"{name}: valid F-MSE {error:.5f}, {seconds:.0f} s of training", flush=True)
        return result.params


def _without(params: Params, off: str) -> Params:
    """Returns a model whose weights with `off` in their path are zero."""

    def kept(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return 0 * leaf if off in name else leaf

    weights = jax.tree_util.tree_map_with_path(kept, params.weights)
    return dataclasses.replace(params, weights=weights)


def _loss_without(off: str, model: Any, params: Params, batch: Batch) -> jax.Array:
    return training.mse_loss(model, _without(params, off), batch)


def main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Runs a study from the words after the program's name, by default those of this process.

    Returns:
      The exit code: 0, or 75 if a signal interrupted it; the same command resumes it.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
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
        _draw(study, json.loads(published.read_text()), published)
        return 0
    directory = options.out or Path("runs") / "studies" / f"{study.name}-{options.size}"
    directory.mkdir(parents=True, exist_ok=True)
    workshop, started = Workshop(directory), time.perf_counter()
    try:
        measured = study.measure(study.sizes[options.size], workshop)
    except KeyboardInterrupt:
        print(f"interrupted; the same command resumes it from {directory}")
        return RESUMABLE
    record = {
        "study": study.name,
        "size": options.size,
        **measured,
        "models": workshop.models,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        **run_directory.origin(shlex.join([*program.split(), *arguments])),
    }
    for path in (directory / published.name, *([published] if options.publish else [])):
        path.parent.mkdir(exist_ok=True)
        run_directory.write_json(path, record)
        print(_draw(study, record, path))
    return 0


def _draw(study: Study, record: Record, path: Path) -> Path:
    """Draws the figure next to the file of the measurements and returns where."""
    picture = path.with_suffix(".png")
    with replacing(picture) as partial:
        study.draw(record).savefig(partial, dpi=120, bbox_inches="tight")
    return picture


def panels(number: int, width: float, height: float) -> tuple[Figure, Sequence[Any]]:
    """Returns an empty figure and the axes of its panels, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, number, squeeze=False)[0]


def by_number(axes: Any, errors: Mapping[str, float], style: str = "-", **look: Any) -> None:
    """Draws errors over the numbers that are their keys."""
    axes.plot([int(number) for number in errors], [*errors.values()], style, marker="o", **look)


def ticks_at(axes: Any, numbers: Sequence[str]) -> None:
    """Marks these numbers on the first axis and no others."""
    places = [int(number) for number in numbers]
    axes.set_xticks(places, places)
    axes.minorticks_off()
