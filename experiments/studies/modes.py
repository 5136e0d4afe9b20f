"""How many Fourier modes: errors against the number of modes and the length of the window.

    python -m experiments.studies.modes

A longer window holds more of the motion's oscillations, so that it should need more modes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from egno_jax import training
from experiments.studies import paths
from experiments.studies.study import Figure, Record, Study, Workshop, by_number, main, panels


@dataclasses.dataclass(frozen=True)
class Size(paths.Size):
    """How much is trained and tested; windows are in frames."""

    num_times: int = 32  # P of all models; more than twice the modes, so that all of them are used
    modes: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16)
    windows: tuple[int, ...] = (10, 20, 40)


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, num_times=8, modes=(1, 2), windows=(10,)),
}


def measure(size: Size, workshop: Workshop) -> Record:
    """Trains a model for each number of modes and each window.

    Returns:
      `a_mse` and `f_mse` by window and M; `amplitudes` by window: root mean square of the Fourier
      modes of the true motion, relative to the motion itself.
    """
    steps = {window: paths.uniform_steps(size.num_times, window) for window in size.windows}
    moved = paths.simulate_splits(size, *steps.values())
    settings = paths.training_config(size.num_steps)
    found: dict[str, dict[str, dict[str, float]]] = {"a_mse": {}, "f_mse": {}}
    amplitudes = {}
    for window in size.windows:
        train, valid, test = paths.cut_splits(moved, steps[window])
        amplitudes[str(window)] = _amplitudes(test.positions, max(size.modes))
        spaced = dataclasses.replace(paths.MODEL, time_scale=window / size.num_times)
        for modes in size.modes:
            model = dataclasses.replace(spaced, num_modes=modes)
            name = f"window {window} modes {modes}"
            params = workshop.train(name, model, settings, train, valid)
            errors = training.evaluate(params, test, batch_size=100)
            for key, by_window in found.items():
                by_window.setdefault(str(window), {})[str(modes)] = float(getattr(errors, key))
    return {**found, "amplitudes": amplitudes}


def _amplitudes(positions: np.ndarray, num_modes: int) -> list[float]:
    """Returns the root mean square of each Fourier mode of the motion about its first target."""
    motion = positions - positions[:, :1]
    spectrum = np.fft.rfft(motion, axis=1)[:, :num_modes] / motion.shape[1]
    size = np.sqrt(np.mean(motion**2))
    return [float(x) for x in np.sqrt(np.mean(np.abs(spectrum) ** 2, axis=(0, 2, 3))) / size]


def draw(record: Record) -> Figure:
    """Draws A-MSE, relative to that of one mode, and the spectrum, one line for each window."""
    figure, (left, right) = panels(2, 10, 4)
    for window, errors in record["a_mse"].items():
        of_one = next(iter(errors.values()))
        relative = {modes: error / of_one for modes, error in errors.items()}
        by_number(left, relative, label=f"{window} frames, {of_one:.4f}")
        right.plot(record["amplitudes"][window], marker="o", markersize=3)
    left.set(xlabel="modes kept, the constant one included", ylabel="A-MSE / A-MSE of one mode")
    left.set_xscale("log", base=2)
    left.set_xticks([*map(int, errors)], [*errors])
    left.legend(title="window, A-MSE of one mode")
    right.set(xlabel="mode", ylabel="root mean square / motion", yscale="log")
    right.set_title("the true motion", fontsize=10)
    return figure


QUESTION = "How many Fourier modes does a window need, and how does that depend on its length?"
STUDY = Study("modes", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
