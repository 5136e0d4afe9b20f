"""How Fourier coefficients depend on the requested times, in three schemes.

    python -m experiments.studies.leakage

Trajectories are not periodic, so coefficients that are computed from the values at the requested
times depend on these times, and so does the output at every time. Three schemes are compared on
known functions, without training:

- `index`: the original's, a discrete Fourier transform of the values, whatever their times;
- `quadrature`: the integral over a fixed period, X_k = (1/T) sum_p w_p z(t_p) exp(-2 pi i k t_p/T),
  with w_p the part of the window that is nearest to t_p;
- `context`: `index` on equally spaced context times that are always the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from experiments.studies.study import Figure, Record, Study, Workshop, main, panels, ticks_at

if TYPE_CHECKING:
    from jaxtyping import Complex, Float

_FINE = 4096
_SCHEMES = ("index", "quadrature", "context")
# Differences of equal numbers from their mean, which float64 rounds.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured; all grids end with the window."""

    num_times: tuple[int, ...] = (5, 8, 16, 32, 64, 128)  # P
    num_random: int = 200  # random grids of each P
    num_modes: int = 4  # M of the convolution
    num_context: int = 16  # context times
    num_channels: int = 32  # C


SIZES = {"default": Size(), "smoke": Size(num_times=(5, 8), num_random=3, num_channels=4)}

Signal = Callable[[np.ndarray], np.ndarray]


def uniform(num_times: int) -> Float[np.ndarray, "P"]:
    """Returns equally spaced times in (0, 1], the unit being the window."""
    return np.arange(1, num_times + 1) / num_times


def coefficients(
    scheme: str, signal: Signal, times: Float[np.ndarray, "P"], size: Size
) -> Complex[np.ndarray, "M C"]:
    """Returns the first Fourier coefficients of a signal in the window from 0 to 1.

    Args:
      scheme: one of the three.
      signal: called with times `[P]`; returns values `[P, C]`.
      times: increasing, the last is 1.
      size: how many modes and context times.
    """
    if scheme == "context":
        times = uniform(size.num_context)
    phases, weights = times, cells(times)
    if scheme != "quadrature":
        phases, weights = uniform(len(times)), np.full(len(times), 1 / len(times))
    modes = np.arange(size.num_modes)[:, None]
    return np.exp(-2j * np.pi * modes * phases) * weights @ signal(times)


def cells(times: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
    """Returns how much of the window from 0 to 1 is nearest to each time."""
    borders = np.concatenate([[0.0], (times[1:] + times[:-1]) / 2, [1.0]])
    return np.diff(borders)


def output(
    scheme: str, signal: Signal, times: Float[np.ndarray, "P"], kernel: np.ndarray, size: Size
) -> Float[np.ndarray, "C"]:
    """Returns the output of a spectral convolution at the window's end, `sum_k a_k Re[R_k X_k]`."""
    mixed = np.einsum("kio,ki->ko", kernel, coefficients(scheme, signal, times, size))
    factors = np.where(np.arange(size.num_modes) == 0, 1.0, 2.0)
    return factors @ mixed.real


def measure(size: Size, workshop: Workshop) -> Record:
    """Measures how far coefficients and outputs are from those of a fine grid.

    Returns:
      `ramp`: relative error of the first mode of x(t) = t on equally spaced times; `leakage`: of a
      pure first mode on random times, the share of the power that is found in other modes;
      `uniform` and `random`: relative error of a convolution's output at the window's end, on
      equally spaced and on random times; `spread`: how much that output differs between random
      grids. Each by scheme, then by the number of times.
    """
    rng = np.random.default_rng(0)
    shape = (size.num_modes, size.num_channels, size.num_channels)
    kernel = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    slopes, amplitudes, phases = rng.normal(size=(3, size.num_channels))
    frequencies = rng.uniform(0.2, 2.5, size.num_channels)

    def features(times: np.ndarray) -> np.ndarray:
        waves = np.sin(2 * np.pi * (frequencies * times[:, None] + phases))
        return slopes * times[:, None] + amplitudes * waves

    def ramp(times: np.ndarray) -> np.ndarray:
        return times[:, None]

    def wave(times: np.ndarray) -> np.ndarray:
        return np.cos(2 * np.pi * times)[:, None]

    found: dict[str, dict[str, dict[str, float]]] = {}

    def note(name: str, scheme: str, value: float) -> None:
        found.setdefault(name, {}).setdefault(scheme, {})[str(number)] = float(value)

    # On a fine grid all schemes are the integral, except for the borders.
    limit = output("quadrature", features, uniform(_FINE), kernel, size)
    slope = coefficients("quadrature", ramp, uniform(_FINE), size)[1, 0]
    for number in size.num_times:
        grids = [
            np.append(np.sort(rng.uniform(0, 1, number - 1)), 1.0) for _ in range(size.num_random)
        ]
        for scheme in _SCHEMES:
            first = coefficients(scheme, ramp, uniform(number), size)[1, 0]
            note("ramp", scheme, abs(first - slope) / abs(slope))
            powers = [abs(coefficients(scheme, wave, grid, size)[:, 0]) ** 2 for grid in grids]
            note("leakage", scheme, np.mean([1 - p[1] / p.sum() for p in powers]))
            regular = output(scheme, features, uniform(number), kernel, size)
            outputs = np.stack([output(scheme, features, grid, kernel, size) for grid in grids])
            note("uniform", scheme, _relative(regular - limit, limit))
            note("random", scheme, _relative(outputs - limit, limit))
            note("spread", scheme, _relative(outputs - outputs.mean(axis=0), limit))
    return found


def _relative(errors: np.ndarray, values: np.ndarray) -> float:
    """Returns the root mean square of errors over that of the values."""
    return float(np.sqrt((errors**2).mean() / (values**2).mean()))


def draw(record: Record) -> Figure:
    """Draws the errors against the number of times, one panel for each measure."""
    titles = {
        "ramp": "first mode of a ramp, equally spaced",
        "uniform": "output of a convolution, equally spaced",
        "spread": "output, difference between random grids",
    }
    figure, all_axes = panels(len(titles), 13, 4)
    for axes, (name, title) in zip(all_axes, titles.items(), strict=True):
        has_zeros = False
        for scheme, errors in record[name].items():
            values = np.array([*errors.values()])
            values[values < _ROUNDING] = 0
            axes.plot([int(number) for number in errors], values, marker="o", label=scheme)
            has_zeros |= not values.all()
        axes.set(xscale="log", yscale="log", xlabel="P", ylabel="relative error")
        if has_zeros:  # which have no place on a logarithmic axis
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.set_ylim(bottom=-1e-4)
        ticks_at(axes, errors)
        axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    return figure


QUESTION = "How much do Fourier coefficients depend on the requested times?"
STUDY = Study("leakage", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
