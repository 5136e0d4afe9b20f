"""Long windows: decoding them in one pass, or rolling out a model of a short window.

    python -m experiments.studies.long_windows

Errors over time, and what happens to energy and momentum of the predicted motion. All models have
their velocities supervised.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from egno_jax import rolling
from egno_jax.datasets import Samples, nbody
from experiments.decoding import decode
from experiments.studies import paths
from experiments.studies.study import Figure, Record, Study, Workshop, main, panels

_VELOCITY_WEIGHT = 0.1
# A system whose mean squared error is larger than this, its own size many times over, is lost.
_LOST = 100.0


@dataclasses.dataclass(frozen=True)
class Size(paths.Size):
    """How much is trained and tested; windows are in frames, multiples of the first."""

    num_steps: int = 2400
    num_times: int = 10  # P of a window of each model
    windows: tuple[int, ...] = (10, 20, 40, 80)


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, windows=(10, 20)),
}


def measure(size: Size, workshop: Workshop) -> Record:
    """Trains a model for each window and compares them with a rollout of the shortest.

    Returns:
      `curves`: for each way of decoding, at each time, the mean squared error of the positions, its
      median over the systems, the share of systems that are lost, and the median errors of energy
      and momentum; `truth`: the same for the simulation, which conserves energy only nearly.
    """
    steps = {window: paths.uniform_steps(size.num_times, window) for window in size.windows}
    shortest, longest = size.windows[0], size.windows[-1]
    num_windows = longest // shortest
    spacing = shortest * paths.STEPS_A_FRAME // size.num_times
    rolled = np.arange(1, num_windows * size.num_times + 1) * spacing
    moved = paths.simulate_splits(size, *steps.values(), rolled)
    settings = paths.training_config(size.num_steps, velocity_weight=_VELOCITY_WEIGHT)
    start, everything = (paths.samples_at(moved["test"], s) for s in (steps[shortest], rolled))
    couplings = moved["test"].trajectories.couplings
    curves, models = {}, {}
    for window in size.windows:
        train, valid, test = paths.cut_splits(moved, steps[window])
        model = dataclasses.replace(paths.MODEL, time_scale=window / size.num_times)
        models[window] = workshop.train(f"window {window}", model, settings, train, valid)
        predicted = decode(models[window], test)
        curves[f"direct, {window} frames"] = _curve(predicted, test, couplings)
    roll = paths.roll_out(num_windows, rolling.refresh())
    predicted = decode(models[shortest], start, roll=roll)
    curves[f"rolled out, {shortest} frames a window"] = _curve(predicted, everything, couplings)
    truth = _curve((everything.positions, everything.velocities), everything, couplings)
    return {"curves": curves, "truth": truth}


def _curve(
    motion: tuple[np.ndarray, np.ndarray], true: Samples, couplings: np.ndarray
) -> dict[str, Any]:
    """Returns the errors of positions and velocities at each of their times."""
    positions, velocities = (np.nan_to_num(np.asarray(x, np.float64), nan=np.inf) for x in motion)
    nodes = true.graph.nodes
    initial = (nodes[key].astype(np.float64) for key in ("positions", "velocities"))
    at_start = nbody.energy(*initial, couplings)
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


def draw(record: Record) -> Figure:
    """Draws the errors of positions, energy and momentum over time."""
    quantities = {
        "median_mse": "MSE of the positions, median of the systems",
        "energy_error": "energy, median |E(t) - E(0)|",
        "momentum_error": "momentum, median |p(t) - p(0)|",
    }
    figure, all_axes = panels(3, 13, 4.3)
    for axes, (field, label) in zip(all_axes, quantities.items(), strict=True):
        for name, curve in record["curves"].items():
            style = "k--" if name.startswith("rolled") else "-"
            # As a float, None is NaN, which is not drawn.
            axes.plot(curve["times"], np.array(curve[field], float), style, label=name)
        if field != "median_mse":
            truth = record["truth"]
            values = np.array(truth[field], float)
            axes.plot(truth["times"], values, ":", label="the simulation")
        axes.set(xlabel="frames after the initial state", ylabel=label, yscale="log")
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, fontsize=8, ncols=6, loc="outside upper center")
    return figure


QUESTION = "Is a long window better decoded in one pass, or rolled out from short ones?"
STUDY = Study("long_windows", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
