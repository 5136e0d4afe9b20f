"""How many Fourier modes: errors against the number of modes and the length of the window.

    python -m experiments.studies.modes

A longer window holds more of the motion's oscillations, so that it should need more modes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax import training
from experiments.studies import paths
from experiments.studies.study import Study, Workshop, main, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
      num_train: simulations to train on.
      num_test: simulations to test on; as many select the model.
      num_steps: training steps of each model.
      num_times: P of all models; more than twice the modes, so that all of them are used.
      modes: M.
      windows: lengths of windows, in frames.
    """

    num_train: int = 3000
    num_test: int = 1000
    num_steps: int = 1000
    num_times: int = 32
    modes: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16)
    windows: tuple[int, ...] = (10, 20, 40)


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, num_times=8, modes=(1, 2), windows=(10,)),
}


def measure(size: Size, workshop: Workshop) -> dict[str, Any]:
    """Trains a model for each number of modes and each window.

    Returns:
      `a_mse` and `f_mse` by window and M; `amplitudes` by window: root mean square of the Fourier
      modes of the true motion, relative to the motion itself.
    """
    steps = {
        window: paths.uniform_steps(size.num_times, window * paths.STEPS_A_FRAME)
        for window in size.windows
    }
    kept = np.unique(np.concatenate([*steps.values()]))
    moved = paths.simulate_splits(size, kept)
    found: dict[str, dict[str, dict[str, float]]] = {"a_mse": {}, "f_mse": {}}
    amplitudes = {}
    for window in size.windows:
        train, valid, test = (paths.samples_at(part, steps[window]) for part in moved.values())
        amplitudes[str(window)] = _amplitudes(test.positions, max(size.modes))
        for modes in size.modes:
            model = dataclasses.replace(
                paths.MODEL, num_modes=modes, time_scale=window / size.num_times
            )
            params = workshop.train(
                f"window {window} modes {modes}",
                model,
                paths.training_config(size.num_steps),
                train,
                valid,
            )
            errors = training.evaluate(params, test, batch_size=100)
            for name in found:
                error = float(getattr(errors, name))
                found[name].setdefault(str(window), {})[str(modes)] = error
    return {**found, "amplitudes": amplitudes}


def _amplitudes(positions: np.ndarray, num_modes: int) -> list[float]:
    """Returns the root mean square of each Fourier mode of the motion about its first target."""
    motion = positions - positions[:, :1]
    spectrum = np.fft.rfft(motion, axis=1)[:, :num_modes] / motion.shape[1]
    size = np.sqrt(np.mean(motion**2))
    return [float(x) for x in np.sqrt(np.mean(np.abs(spectrum) ** 2, axis=(0, 2, 3))) / size]


def draw(record: Mapping[str, Any]) -> Figure:
    """Draws A-MSE, relative to that of one mode, and the spectrum, one line for each window."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for window, errors in record["a_mse"].items():
        modes = [int(number) for number in errors]
        of_one = next(iter(errors.values()))
        relative = [error / of_one for error in errors.values()]
        left.plot(modes, relative, marker="o", label=f"{window} frames, {of_one:.4f}")
        amplitudes = record["amplitudes"][window]
        right.plot(range(len(amplitudes)), amplitudes, marker="o", markersize=3)
    left.set(xlabel="modes kept, the constant one included", ylabel="A-MSE / A-MSE of one mode")
    left.set_xscale("log", base=2)
    left.set_xticks(modes, modes)
    left.legend(title="window, A-MSE of one mode")
    right.set(xlabel="mode", ylabel="root mean square / motion", yscale="log")
    right.set_title("the true motion", fontsize=10)
    return figure


QUESTION = "How many Fourier modes does a window need, and how does that depend on its length?"
STUDY = Study("modes", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY, sys.argv[1:]))
