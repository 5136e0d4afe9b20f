"""Long windows: decoding them in one pass, or rolling out a model of a short window.

    python -m experiments.studies.long_windows

Errors over time, and what happens to energy and momentum of the predicted motion. All models have
their velocities supervised.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import egno_jax
from egno_jax import rolling
from egno_jax.datasets import Samples, nbody
from experiments.studies import paths
from experiments.studies.study import Study, Workshop, main, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_VELOCITY_WEIGHT = 0.1
# A system whose mean squared error is larger than this, its own size many times over, is lost.
_LOST = 100.0


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
      num_train: simulations to train on.
      num_test: simulations to test on; as many select the models.
      num_steps: training steps of each model.
      num_times: P of a window of each model.
      windows: lengths of windows, in frames, multiples of the first, which is rolled out.
      num_modes: M.
    """

    num_train: int = 3000
    num_test: int = 1000
    num_steps: int = 2400
    num_times: int = 10
    windows: tuple[int, ...] = (10, 20, 40, 80)
    num_modes: int = 2


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, windows=(10, 20)),
}


def measure(size: Size, workshop: Workshop) -> dict[str, Any]:
    """Trains a model for each window and compares them with a rollout of the shortest.

    Returns:
      `curves`: for each way of decoding, at each time, the mean squared error of the positions, its
      median over the systems, the share of systems that are lost, and the median errors of energy
      and momentum; `truth`: the same for the simulation, which conserves energy only nearly.
    """
    steps = {
        window: paths.uniform_steps(size.num_times, window * paths.STEPS_A_FRAME)
        for window in size.windows
    }
    shortest, longest = size.windows[0], size.windows[-1]
    spacing = shortest * paths.STEPS_A_FRAME // size.num_times
    rolled = np.arange(1, longest // shortest * size.num_times + 1) * spacing
    kept = np.unique(np.concatenate([*steps.values(), rolled]))
    moved = paths.simulate_splits(size, kept)
    couplings = moved["test"].trajectories.couplings
    curves, models = {}, {}
    for window in size.windows:
        train, valid, test = (paths.samples_at(part, steps[window]) for part in moved.values())
        models[window] = workshop.train(
            f"window {window}",
            dataclasses.replace(
                paths.MODEL,
                time_scale=window / size.num_times,
                num_modes=size.num_modes,
            ),
            paths.training_config(size.num_steps, velocity_weight=_VELOCITY_WEIGHT),
            train,
            valid,
        )
        predicted = paths.decode(models[window], test)
        curves[f"direct, {window} frames"] = _curve(predicted, test, couplings)
    start, everything = (paths.samples_at(moved["test"], s) for s in (steps[shortest], rolled))
    roll = functools.partial(
        egno_jax.rollout, num_windows=longest // shortest, next_graph=rolling.refresh()
    )
    predicted = paths.decode(models[shortest], start, roll=roll)
    curves[f"rolled out, {shortest} frames a window"] = _curve(predicted, everything, couplings)
    truth = _curve((everything.positions, everything.velocities), everything, couplings)
    return {"curves": curves, "truth": truth}


_Motion = tuple[np.ndarray, np.ndarray]


def _curve(motion: _Motion, true: Samples, couplings: np.ndarray) -> dict[str, Any]:
    """Returns the errors of a motion at each of its times."""
    positions, velocities = (np.nan_to_num(np.asarray(x, np.float64), nan=np.inf) for x in motion)
    nodes = true.graph.nodes
    at_start = nbody.energy(
        nodes["positions"].astype(np.float64), nodes["velocities"].astype(np.float64), couplings
    )
    with np.errstate(all="ignore"):
        energies = nbody.energy(positions, velocities, couplings[:, None])
    drift = np.median(np.abs(energies - at_start[:, None]), axis=0)
    pushed = nbody.momentum(velocities) - nbody.momentum(nodes["velocities"])[:, None]
    squares = np.mean((positions - true.positions) ** 2, axis=(2, 3))
    return {
        "times": [float(time) for time in true.times],
        "mse": _finite(np.mean(squares, axis=0)),
        "median_mse": _finite(np.median(squares, axis=0)),
        "lost": _finite(np.mean(~(squares < _LOST), axis=0)),
        "energy_error": _finite(drift),
        "momentum_error": _finite(np.median(np.linalg.norm(pushed, axis=-1), axis=0)),
    }


def _finite(values: np.ndarray) -> list[float | None]:
    """Returns numbers for JSON, which has no infinity: None in its place."""
    return [float(value) if np.isfinite(value) else None for value in values]


def draw(record: Mapping[str, Any]) -> Figure:
    """Draws the errors of positions, energy and momentum over time."""
    figure = new_figure(13, 4.3)
    quantities = {
        "median_mse": "MSE of the positions, median of the systems",
        "energy_error": "energy, median |E(t) - E(0)|",
        "momentum_error": "momentum, median |p(t) - p(0)|",
    }
    for axes, (field, label) in zip(figure.subplots(1, 3), quantities.items(), strict=True):
        for name, curve in record["curves"].items():
            style = "k--" if name.startswith("rolled") else "-"
            axes.plot(curve["times"], _numbers(curve[field]), style, label=name)
        if field != "median_mse":
            truth = record["truth"]
            axes.plot(truth["times"], _numbers(truth[field]), ":", label="the simulation")
        axes.set(xlabel="frames after the initial state", ylabel=label, yscale="log")
    figure.legend(
        *axes.get_legend_handles_labels(), fontsize=8, ncols=6, loc="outside upper center"
    )
    return figure


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


QUESTION = "Is a long window better decoded in one pass, or rolled out from short ones?"
STUDY = Study("long_windows", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY, sys.argv[1:]))
