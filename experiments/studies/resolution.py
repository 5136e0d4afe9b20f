"""Zero-shot resolution: models trained at a few times of a window, evaluated at other times.

    python -m experiments.studies.resolution

Models with the grid of the requested times ("index", the original's scheme) and with a context grid
are trained at P equally spaced times of the window and evaluated at others; one more is trained at
times that are drawn anew in each step. The 5-body problem is simulated again from the same seeds,
so that every integration step is available; motion capture is subject 35's walk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from egno_jax import EGNOConfig, Params, training
from egno_jax.datasets import Samples, mocap
from egno_jax.training import TrainingConfig
from experiments.studies import paths
from experiments.studies.study import Figure, Record, Study, Workshop, by_number, main, panels

# The length of a window: 10 frames of a 5-body simulation, 30 of motion capture.
_WINDOW_FRAMES, _WALK_FRAMES = 10, 30
_WINDOW = _WINDOW_FRAMES * paths.STEPS_A_FRAME
_NUM_CONTEXT = 5
# Random times are drawn from so many equally spaced ones.
_NUM_DRAWN_FROM = 40
_ANY, _GRID = "any times", "its grid"
_SETS = ("train", "valid")


@dataclasses.dataclass(frozen=True)
class Size(paths.Size):
    """How much is trained and tested: P of training and of tests, and more steps."""

    long_steps: int = 6000  # of the model for any times and of the one it is compared with
    train_times: tuple[int, ...] = (5, 10, 16, 32, 64)
    test_times: tuple[int, ...] = (1, 2, 4, 8, 10, 16, 32, 40, 64, 128)
    walk_steps: int = 800  # of each model of the walk; 0 leaves the walk out
    walk_train_times: tuple[int, ...] = (5, 10, 15)  # divisors of 30, as the next
    walk_test_times: tuple[int, ...] = (1, 2, 3, 5, 6, 10, 15, 30)
    num_grids: int = 100  # random grids of 8 times


SIZES = {
    "default": Size(),
    "smoke": Size(
        num_train=60,
        num_test=20,
        num_steps=4,
        long_steps=4,
        train_times=(5,),
        test_times=(1, 8),
        walk_steps=0,
        num_grids=2,
    ),
}


class _Task(NamedTuple):
    """A data set whose samples can be cut at any of its times.

    Attributes:
      training: how its models are trained.
      window: the length of the window, in the unit of its times.
      cut: called with a split and P; returns samples with P equally spaced targets.
    """

    training: TrainingConfig
    window: float
    cut: Callable[[str, int], Samples]


# P equally spaced steps of a 5-body window.
_uniform = functools.partial(paths.uniform_steps, frames=_WINDOW_FRAMES)


def _bodies(size: Size) -> tuple[_Task, paths.Paths]:
    """Returns the 5-body task, and its test paths at every integration step."""
    numbers = (*size.train_times, *size.test_times, _NUM_CONTEXT, _NUM_DRAWN_FROM)
    uniform = {number: _uniform(number) for number in numbers}
    kept = np.concatenate([*uniform.values()])
    by_split = {
        split: paths.simulate(split, number, range(1, _WINDOW + 1) if split == "test" else kept)
        for split, number in size.per_split().items()
    }
    task = _Task(
        training=paths.training_config(size.num_steps),
        window=_WINDOW_FRAMES,
        cut=lambda split, number: paths.samples_at(by_split[split], uniform[number]),
    )
    return task, by_split["test"]


def _walk(size: Size) -> _Task:
    """Returns the task of motion capture."""

    def cut(split: str, num_times: int) -> Samples:
        windows = mocap.load_windows(
            "walk", split, num_samples=mocap.PUBLISHED_SIZES["walk"][split]
        )
        spacing = _WALK_FRAMES // num_times
        return mocap.samples(windows, target_frames=range(spacing, _WALK_FRAMES + 1, spacing))

    settings = paths.training_config(size.walk_steps, batch_size=12)
    optimizer = dataclasses.replace(settings.optimizer, learning_rate=1e-3)
    settings = dataclasses.replace(settings, optimizer=optimizer)
    return _Task(settings, window=_WALK_FRAMES, cut=cut)


def _with_grid(task: _Task, grid: str, num_times: int) -> EGNOConfig:
    """Returns the hyper-parameters of a model that is trained on P times."""
    if grid == "index":
        return dataclasses.replace(paths.MODEL, time_scale=task.window / num_times)
    count = _NUM_CONTEXT
    context = tuple(task.window * (1 + i) / count for i in range(count))
    return dataclasses.replace(
        paths.MODEL, time_scale=task.window / count, temporal_grid="context", context_times=context
    )


def measure(size: Size, workshop: Workshop) -> Record:
    """Trains the models of the study and measures their errors at times they were not trained on.

    Returns:
      `sweeps`: for each data set and grid, A-MSE by P trained and P requested. `any_times`: errors
      of the models trained at any times and on a grid.
    """
    bodies, every_step = _bodies(size)
    sweeps = {
        "5-body problem": _sweep(bodies, "bodies", workshop, size.train_times, size.test_times)
    }
    if size.walk_steps:
        sweeps["motion capture, walk"] = _sweep(
            _walk(size), "walk", workshop, size.walk_train_times, size.walk_test_times
        )
    return {"sweeps": sweeps, "any_times": _any_times(size, bodies, every_step, workshop)}


def _sweep(
    task: _Task,
    name: str,
    workshop: Workshop,
    train_times: Sequence[int],
    test_times: Sequence[int],
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns A-MSE by grid, P trained and P requested."""
    tests = {number: task.cut("test", number) for number in test_times}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for grid in ("index", "context"):
        for number in train_times:
            model, sets = _with_grid(task, grid, number), map(task.cut, _SETS, (number, number))
            params = workshop.train(f"{name} {grid} {number}", model, task.training, *sets)
            errors = {str(asked): _a_mse(params, test) for asked, test in tests.items()}
            found.setdefault(grid, {})[str(number)] = errors
    return found


def _a_mse(params: Params, test: Samples) -> float:
    return float(training.evaluate(params, test, batch_size=100).a_mse)


def _any_times(
    size: Size, task: _Task, every_step: paths.Paths, workshop: Workshop
) -> dict[str, Any]:
    """Compares a model that was trained at any times with one that was trained on a grid."""
    long = paths.training_config(size.long_steps)
    grid = _NUM_CONTEXT
    random = dataclasses.replace(long, random_times="subsets", num_times=(grid,))
    drawn, fixed = (map(task.cut, _SETS, (p, grid)) for p in (_NUM_DRAWN_FROM, grid))
    any_model, grid_model = (_with_grid(task, name, grid) for name in ("context", "index"))
    models = {
        _ANY: workshop.train("bodies any times", any_model, random, *drawn),
        _GRID: workshop.train("bodies its grid", grid_model, long, *fixed),
    }
    rng = np.random.default_rng(0)
    grids = {f"P = {number}": _uniform(number) for number in size.test_times}
    grids["its training times"] = _uniform(grid)
    random_grids = [
        np.sort(rng.choice(np.arange(1, _WINDOW + 1), 8, replace=False))
        for _ in range(size.num_grids)
    ]
    curve_steps = _uniform(_NUM_DRAWN_FROM)
    result: dict[str, Any] = {}
    times = curve_steps / paths.STEPS_A_FRAME
    for name, params in models.items():
        curve = training.evaluate(params, paths.samples_at(every_step, curve_steps), batch_size=100)

        def both(steps: np.ndarray, params=params, curve=curve) -> tuple[float, float]:
            """Returns the A-MSE at some steps, and the one that follows from the curve."""
            requested = steps / paths.STEPS_A_FRAME
            expected = paths.error_at(curve.per_time, times, requested)
            return _a_mse(params, paths.samples_at(every_step, steps)), expected

        found = {label: both(steps) for label, steps in grids.items()}
        eights = np.array([both(steps) for steps in random_grids])
        found[f"{size.num_grids} random grids of 8"] = tuple(map(float, eights.mean(axis=0)))
        result[name] = {
            "a_mse": {label: measured for label, (measured, _) in found.items()},
            "from_curve": {label: expected for label, (_, expected) in found.items()},
            "worst_random_grid": float(np.max(eights[:, 0] / eights[:, 1])),
            "curve": [float(error) for error in curve.per_time],
        }
    return {"times": [float(time) for time in times], "models": result}


def draw(record: Record) -> Figure:
    """Draws A-MSE against the number of requested times, one panel for each data set."""
    sweeps = record["sweeps"]
    figure, all_axes = panels(len(sweeps), 5.5 * len(sweeps), 4.2)
    for axes, (name, by_grid) in zip(all_axes, sweeps.items(), strict=True):
        for grid, style in (("index", "--"), ("context", "-")):
            for colour, (trained, errors) in enumerate(by_grid[grid].items()):
                look = {"markersize": 3, "color": f"C{colour}"}
                by_number(axes, errors, style, label=f"{grid}, trained at P = {trained}", **look)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="P, equally spaced requested times", ylabel="A-MSE")
        axes.set_title(name)
        axes.legend(fontsize=7, ncols=2)
    return figure


QUESTION = "What does a model that was trained at a few times know of other times?"
STUDY = Study("resolution", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
