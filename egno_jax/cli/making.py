"""`egno-jax train`: a model from trajectory files."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
from typing import Annotated, Any, Literal

import jax
import numpy as np

from egno_jax import EGNOConfig, checkpoint, init, visualize
from egno_jax.cli.loading import load
from egno_jax.cli.options import DataOptions, describe_recipe, frames_in, read
from egno_jax.datasets import Samples, take, trajectories
from egno_jax.datasets.trajectories import Recording
from egno_jax.extras import require
from egno_jax.files import replacing, write_text
from egno_jax.params import Params
from egno_jax.recipe import GraphRecipe
from egno_jax.training import (
    JSONLines,
    OptimizerConfig,
    Progress,
    TrainingConfig,
    evaluate,
    fit,
)

_conf = require("tyro", "cli").conf
_MOST_TARGETS = 8
# The model and its training unless options say otherwise.
_MODEL = EGNOConfig(velocity_scale=1.0)
_TRAINING = TrainingConfig(
    num_steps=2000,
    batch_size=32,
    ema_decay=0.99,
    velocity_weight=0.1,
    optimizer=OptimizerConfig(warmup_steps=50),
)
# Settings of the model that follow from the window.
_FROM_WINDOW = ("time_scale", "temporal_grid", "context_times")
# What the recipe of a model to start from decides.
_DECIDED = ("selection", "window", "targets", "cutoff", "velocities")


class Interrupted(Exception):
    """A signal ended a training run, which can be resumed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowOptions(DataOptions):
    """What a window and its graph are.

    Attributes:
      window: time from the initial state to the last target: 40fs, 2ps, 20frames; by default ten
        frames, or fewer if recordings are short: a twelfth of one that is alone.
      targets: number of targets, equally spaced; by default the largest divisor up to 8.
      stride: from one window to the next.
      cutoff: connects nodes within this distance; by default all pairs of a small open system,
        else 5 Å.
      velocities: from the file, or by finite differences; by default from the file if it has any.
    """

    window: str | None = None
    targets: int | None = None
    stride: str = "1frame"
    cutoff: float | None = None
    velocities: Literal["file", "difference"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(WindowOptions):
    """How a model is trained.

    Attributes:
      out: the folder of the run; by default runs/ and the name of the data.
      resume: continues the run in that folder.
      start_from: a model to start from, with its settings and its recipe: the folder of a run, a
        checkpoint, or the name of a published model.
    """

    out: pathlib.Path | None = None
    resume: bool = False
    start_from: str | None = None


def recipe_for(recording: Recording, options: WindowOptions) -> GraphRecipe:
    """Returns the recipe that options and a recording lead to."""
    if options.window is None:
        window = trajectories.usual_window(recording)
    else:
        window = frames_in(options.window, recording, "window")
    if options.cutoff is not None and not 0 < options.cutoff < np.inf:
        raise ValueError(
            f"cutoff: got {options.cutoff:g}, expected a finite length above 0; give another"
        )
    divisors = [n for n in range(1, min(window, _MOST_TARGETS) + 1) if window % n == 0]
    if options.targets is not None and (options.targets < 1 or window % options.targets):
        raise ValueError(
            f"targets: got {options.targets} in a window of {window} frames, expected a divisor of "
            f"it, as targets are equally spaced; choose one of {divisors}, or another window"
        )
    return trajectories.make_recipe(
        recording,
        window=window,
        num_targets=options.targets or divisors[-1],
        cutoff=options.cutoff,
        velocities=options.velocities,
    )


def train(
    data: _conf.Positional[tuple[pathlib.Path, ...]],
    options: Annotated[TrainOptions, _conf.arg(name="")] = TrainOptions(),
    model: EGNOConfig = _MODEL,
    training: TrainingConfig = _TRAINING,
) -> None:
    """Trains a model on a trajectory and reports its errors on the last fifth of the data.

    Args:
      data: a file, or a topology and its trajectories.
      options: data, windows, and where the run lives.
      model: the model; time_scale and the time grid follow from the window, and velocity_scale is
        the number of targets unless it is given.
      training: the training.
    """
    out = options.out or _default_folder(data)
    _check_folder(out, options.resume)
    base = None if options.start_from is None else _base(options, model)
    recipe = None if base is None else base.recipe
    recording = read(data, options, recipe)
    recipe = recipe or recipe_for(recording, options)
    stride = frames_in(options.stride, recording, "stride")
    starts = trajectories.partition(recording, recipe, stride=stride)
    parts = [trajectories.samples_at(recording, recipe, part) for part in starts]
    print(describe_windows(recipe, is_usual=options.window is None and base is None))
    print(_plan(recipe, starts))
    settings = _settings(training, len(starts.train))
    params = _initial(model, recipe, parts[0], settings.seed) if base is None else base
    result = fit(
        out,
        params,
        parts[0],
        parts[1],
        settings,
        resume=options.resume,
        make_callbacks=lambda step: [
            Progress(settings.num_steps, step),
            JSONLines(out / "log.jsonl", step),
        ],
    )
    if result.interrupted:
        raise Interrupted(f"interrupted at step {result.step} of {settings.num_steps}")
    errors = errors_of(result.params, parts[2])
    summary = {
        "data": recording.source,
        "windows": {name: len(part) for name, part in starts._asdict().items()},
        "recipe": dataclasses.asdict(recipe),
        "best_step": result.best_step,
        "seconds": result.seconds,
        "test_mse_per_time": errors,
    }
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw(out / "errors.png", recipe, errors)
    print(report(recipe, errors))
    print(f"model: {out}/best, errors: {out}/summary.json and errors.png")
    print(f"next: egno-jax predict {shlex.join(map(str, (out, *data)))} --out predicted.extxyz")


def _plan(recipe: GraphRecipe, starts: trajectories.Partitions) -> str:
    """Returns the samples that a run will have, and the error that it shows meanwhile."""
    windows = ", ".join(f"{name} {len(part)}" for name, part in starts._asdict().items())
    return (
        f"  windows: {windows}\n  valid F-MSE: mean squared error of coordinates at the last time "
        f"of the validation windows ({_length_unit(recipe)} squared)"
    )


def describe_windows(recipe: GraphRecipe, *, is_usual: bool) -> str:
    """Returns the recipe in a few lines, and whether its window is the usual one."""
    text = f"  {describe_recipe(recipe)}"
    return text + ("\n  this window is the default; --window sets it" if is_usual else "")


def _base(options: TrainOptions, model: EGNOConfig) -> Params:
    """Returns the model to start from; refuses options that it decides."""
    usual = WindowOptions()
    decided = [name for name in _DECIDED if getattr(options, name) != getattr(usual, name)]
    if model != _MODEL:
        decided.append("model")
    if decided:
        raise ValueError(
            f"start-from: got {options.start_from} together with {', '.join(decided)}, expected "
            "one of both: settings and windows are those of the model; omit the others"
        )
    return load(options.start_from)


def _initial(model: EGNOConfig, recipe: GraphRecipe, train: Samples, seed: int) -> Params:
    """Returns a new model with its recipe."""
    config = _model_config(model, recipe)
    example = take(train, np.arange(1), np)
    params = init(jax.random.key(seed), config, example.graph, example.times)
    return dataclasses.replace(params, recipe=recipe)


def _default_folder(data: tuple[pathlib.Path, ...]) -> pathlib.Path:
    return pathlib.Path("runs", data[0].name.partition(".")[0] if data else "")


def _check_folder(out: pathlib.Path, resume: bool) -> None:
    """Checks that a new run does not meet an old one, before any time is spent on it."""
    holds_run = (out / checkpoint.BEST).exists() or any((out / "checkpoints").glob("[0-9]*"))
    if resume and not holds_run:
        print(f"{out} holds no run to resume: a new one starts")
    if holds_run and not resume:
        raise ValueError(
            f"out: got {out}, which holds a run, expected a new folder; choose another with --out, "
            "or pass --resume to continue this run"
        )


def _model_config(model: EGNOConfig, recipe: GraphRecipe) -> EGNOConfig:
    """Returns the model's settings, with times in the unit of the recipe."""
    times = recipe.times
    for name in _FROM_WINDOW:
        if (given := getattr(model, name)) != getattr(_MODEL, name):
            raise ValueError(
                f"model.{name}: got {given!r}, expected nothing, as it follows from the window; "
                "choose --window and --targets"
            )
    changed: dict[str, Any] = {"time_scale": times[0]}
    if model.velocity_scale == 1:
        changed["velocity_scale"] = float(len(times))
    if len(times) > 1:  # any time of the window can then be requested
        changed |= {"temporal_grid": "context", "context_times": times}
    return dataclasses.replace(model, **changed)


def _settings(training: TrainingConfig, num_train: int) -> TrainingConfig:
    """Returns the settings, with intervals that suit the number of steps and samples."""
    every = training.eval_every or max(training.num_steps // 20, 1)
    return dataclasses.replace(
        training,
        batch_size=min(training.batch_size, num_train),
        eval_every=every,
        steps_per_chunk=training.steps_per_chunk or min(every, 50),
    )


def errors_of(params: Any, samples: Samples) -> dict[str, list[float]]:
    """Returns the squared error at each time of the model, of x + v t, and of standing still."""
    graph, mask = samples.graph, samples.node_mask
    start, velocity = graph.nodes["positions"], graph.nodes["velocities"]
    elapsed = np.asarray(params.recipe.times)[:, None, None] / params.recipe.velocity_time
    guesses = {
        "x + v t": start[:, None] + elapsed * velocity[:, None],
        "x": np.broadcast_to(start[:, None], samples.positions.shape),
    }
    errors = {"model": np.asarray(evaluate(params, samples)[2]).tolist()}
    for name, guess in guesses.items():
        squares = np.mean((guess - samples.positions) ** 2, axis=-1)
        errors[name] = [float(squares[:, p][mask].mean()) for p in range(squares.shape[1])]
    return errors


def draw(path: pathlib.Path, recipe: GraphRecipe, errors: dict[str, list[float]]) -> None:
    """Writes a picture of errors over time."""
    unit = "Å" if recipe.length_unit == "angstrom" else ""
    figure = visualize.plot_error_over_time(
        np.asarray(recipe.times), errors, time_unit=recipe.time_unit, length_unit=unit
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)


def _length_unit(recipe: GraphRecipe) -> str:
    return "Å" if recipe.length_unit == "angstrom" else "unit of the data"


def report(recipe: GraphRecipe, errors: dict[str, list[float]]) -> str:
    """Returns a table of mean squared errors, and the last one of the model as a length."""
    unit = _length_unit(recipe)
    lines = [f"mean squared error of coordinates ({unit} squared)"]
    lines.append(f"{'time (' + recipe.time_unit + ')':>12}" + "".join(f"{n:>12}" for n in errors))
    for index, time in enumerate(recipe.times):
        row = "".join(f"{values[index]:12.4g}" for values in errors.values())
        lines.append(f"{time:12g}{row}")
    off = np.sqrt(errors["model"][-1])
    lines.append(f"root mean squared error of the model at the last time: {off:.4g} ({unit})")
    return "\n".join(lines)
