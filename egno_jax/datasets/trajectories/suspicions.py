"""Checks of recordings: what looks wrong, with its frame and atom."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from egno_jax.datasets.trajectories.reading import velocity_slope
from egno_jax.datasets.trajectories.recording import Recording, inverse_cells
from egno_jax.extras import require

KINDS = {
    "step": "an atom moves much farther in one frame than usual",
    "order": "two atoms are exchanged from one frame to the next",
    "half-cell": "a step is so near half a cell that it cannot be unwrapped",
    "time": "times do not increase, or are uneven",
    "repeat": "a frame repeats the one before it",
    "constraints": "atoms are kept from moving, which the model does not know",
    "units": "distances between atoms do not fit their species",
    "velocities": "velocities do not fit the displacements",
}
# A step is suspicious if it is this much longer than the usual one of its atom and of all atoms.
_FACTOR = 12.0
_HALF_CELL = 0.4
# Distance of nearest neighbours over the sum of their covalent radii; 0.1 in nm, 1.9 in bohr.
_SHORTEST, _LONGEST = 0.5, 1.7
_NOBLE = (2, 10, 18, 36, 54, 86)


class Suspicion(NamedTuple):
    """Something in a recording that is probably wrong.

    Attributes:
      kind: one of `KINDS`, by which it can be accepted.
      text: what was found, where, and what to do.
      frame: the frame; None if it is about all frames.
      atom: the atom; None if it is about all atoms.
    """

    kind: str
    text: str
    frame: int | None = None
    atom: int | None = None


def check(recording: Recording, accept: Collection[str] = ()) -> list[Suspicion]:
    """Returns the suspicions that are accepted, and raises an error for all others.

    Args:
      recording: the recording.
      accept: kinds of suspicions to accept; `"all"` accepts every kind.

    Raises:
      ValueError: there are others, or a kind is unknown; lists them.
    """
    if unknown := {*accept} - {*KINDS, "all"}:
        raise ValueError(f"accept: got {sorted(unknown)}, expected some of {[*KINDS, 'all']}")
    found = suspicions(recording)
    refused = [each for each in found if not {each.kind, "all"} & {*accept}]
    if refused:
        lines = "\n".join(f"  [{each.kind}] {each.text}" for each in refused)
        kinds = " ".join(dict.fromkeys(each.kind for each in refused))
        raise ValueError(
            f"{recording.source}: the data look wrong:\n{lines}\nFix them, or accept them if you "
            f"know that they are right: --accept {kinds}"
        )
    return found


def suspicions(recording: Recording) -> list[Suspicion]:
    """Returns what looks wrong in a recording, at most one suspicion of each kind and cause."""
    found = [*_times(recording), *_constraints(recording), *_units(recording)]
    if recording.positions.shape[1] > 1:
        found += [*_repeats(recording), *_half_cells(recording)]
        found += [*_steps(recording), *_velocities(recording)]
    return found


def _steps_of(recording: Recording) -> np.ndarray:
    """Returns the displacements `[S, T - 1, N, 3]`, zero across gaps."""
    is_next = recording.has_previous[1:, None, None]
    return np.where(is_next, np.diff(recording.positions, axis=1), 0.0)


def _place(recording: Recording, sample: int, frame: int) -> str:
    many = len(recording.positions) > 1
    return f"recording {sample}, frame {frame}" if many else f"frame {frame}"


def _steps(recording: Recording) -> list[Suspicion]:
    """Finds the longest step that is far longer than usual, and why."""
    vectors = _steps_of(recording)
    lengths = np.linalg.norm(vectors, axis=-1)
    moving = lengths[lengths > 0]
    if moving.size < 8:
        return []
    masked = np.where(lengths > 0, lengths, np.nan)
    with np.errstate(all="ignore"):
        counts = np.isfinite(masked).sum(axis=1)
        own = np.where(counts >= 4, _median(masked), np.inf)
    typical = np.maximum(np.median(moving), own)
    ratio = lengths / typical[:, None]
    sample, frame, atom = np.unravel_index(np.argmax(ratio), ratio.shape)
    if not ratio[sample, frame, atom] > _FACTOR:
        return []
    length, usual = lengths[sample, frame, atom], typical[sample, atom]
    place = _place(recording, sample, int(frame) + 1)
    text = f"{place}, atom {atom}: moves {length:.3g}, usually {usual:.3g}"
    jumping = np.flatnonzero(ratio[sample, frame] > _FACTOR)
    other = _exchanged(recording, int(sample), int(frame), int(atom), jumping)
    if other is not None:
        return [
            Suspicion(
                "order",
                f"{text}, and lands where atom {other} was; atoms {atom} and {other} look "
                "exchanged: give the atoms one order in all frames",
                int(frame) + 1,
                int(atom),
            )
        ]
    advice = "check the frame for damage"
    if recording.cells is None:
        advice += ", or unwrap the positions if this is a jump through a periodic box"
    return [Suspicion("step", f"{text}: {advice}", int(frame) + 1, int(atom))]


def _median(values: np.ndarray) -> np.ndarray:
    """Returns the median over frames `[S, N]` of the values that are not NaN."""
    ordered = np.sort(values, axis=1)  # NaN last
    counts = np.isfinite(ordered).sum(axis=1)
    places = np.maximum(counts - 1, 0)[:, None] // 2
    return np.take_along_axis(ordered, places, axis=1)[:, 0]


def _exchanged(
    recording: Recording, sample: int, frame: int, atom: int, jumping: np.ndarray
) -> int | None:
    """Returns the atom at whose previous place an atom lands, if that one jumps too."""
    before, after = recording.positions[sample, frame], recording.positions[sample, frame + 1]
    others = jumping[jumping != atom]
    if not others.size:
        return None
    step = np.linalg.norm(after[atom] - before[atom])
    distances = np.linalg.norm(before[others] - after[atom], axis=-1)
    nearest = int(np.argmin(distances))
    return int(others[nearest]) if distances[nearest] < 0.3 * step else None


def _half_cells(recording: Recording) -> list[Suspicion]:
    if recording.cells is None:
        return []
    inverse = inverse_cells(recording.cells[1:], recording.periodic)
    fractions = np.abs(np.einsum("stni,tij->stnj", _steps_of(recording), inverse))
    fractions = np.max(fractions * np.asarray(recording.periodic, float), axis=-1)
    sample, frame, atom = np.unravel_index(np.argmax(fractions), fractions.shape)
    if fractions[sample, frame, atom] <= _HALF_CELL:
        return []
    text = (
        f"{_place(recording, sample, int(frame) + 1)}, atom {atom}: moves "
        f"{fractions[sample, frame, atom]:.2f} of a cell in one frame, so its image is uncertain: "
        "write frames more often, or unwrapped"
    )
    return [Suspicion("half-cell", text, int(frame) + 1, int(atom))]


def _times(recording: Recording) -> list[Suspicion]:
    times = recording.times
    if times is None or len(times) < 2:
        return []
    steps = np.diff(times)
    usual, unit = float(np.median(steps)), "frames" if recording.counts_frames else "fs"
    for frame in np.flatnonzero(steps <= 0):
        text = f"frame {frame + 1}: time {times[frame + 1]:g} {unit} after {times[frame]:g} {unit}"
        return [Suspicion("time", f"{text}: sort the frames, or remove repeated ones", frame + 1)]
    uneven = np.flatnonzero(np.abs(steps - usual) > 1e-3 * usual)
    if uneven.size:
        frame = int(uneven[0])
        text = (
            f"frame {frame + 1}: {steps[frame]:g} {unit} after the frame before it, usually "
            f"{usual:g} {unit} ({uneven.size} such gaps): no window crosses a gap if you accept "
            "this"
        )
        return [Suspicion("time", text, frame + 1)]
    step = recording.time_step
    if unit == "fs" and step is not None and abs(step - usual) > 1e-3 * usual:
        text = f"the time step is {step:g} fs, but the file has frames {usual:g} fs apart"
        return [Suspicion("time", text)]
    return []


def _repeats(recording: Recording) -> list[Suspicion]:
    is_still = np.all(_steps_of(recording) == 0, axis=(2, 3)) & recording.has_previous[1:]
    for sample, frame in np.argwhere(is_still):
        text = (
            f"{_place(recording, sample, int(frame) + 1)} repeats the frame before it "
            f"({int(is_still.sum())} such frames): remove the copies"
        )
        return [Suspicion("repeat", text, int(frame) + 1)]
    return []


def _constraints(recording: Recording) -> list[Suspicion]:
    fixed = np.zeros(0) if recording.fixed is None else np.flatnonzero(recording.fixed)
    if fixed.size:
        text = (
            f"atom {fixed[0]} is fixed by a constraint ({fixed.size} such atoms): the model moves "
            "all atoms"
        )
        return [Suspicion("constraints", text, atom=int(fixed[0]))]
    if recording.constraints:
        text = f"the file has constraints ({', '.join(recording.constraints)}) that the model lacks"
        return [Suspicion("constraints", text)]
    if recording.positions.shape[1] < 3:
        return []
    still = np.flatnonzero(np.ptp(recording.positions, axis=1).max(axis=(0, 2)) == 0)
    if still.size and still.size < recording.positions.shape[2]:
        text = f"atom {still[0]} never moves ({still.size} such atoms), as if it were fixed"
        return [Suspicion("constraints", text, atom=int(still[0]))]
    return []


def _units(recording: Recording) -> list[Suspicion]:
    """Compares the distances of nearest neighbours in the first frame with covalent radii."""
    numbers, positions = recording.numbers, recording.positions[0, 0]
    if numbers is None or not 1 < len(numbers) <= 20_000 or recording.selection:
        return []
    try:
        radii = require("ase.data", "data").covalent_radii[numbers]
    except ImportError:
        return []
    ratio, atom = _nearest(recording, positions, radii)
    advice = "positions must be in Å: multiply them by 10 if they are in nm, by 0.529 if in bohr"
    is_far = ratio > _LONGEST and not np.isin(numbers, _NOBLE).any() and len(numbers) < 2000
    if ratio < _SHORTEST or is_far:
        text = (
            f"frame 0, atom {atom}: nearest neighbours are {ratio:.2g} of the sum of covalent "
            f"radii apart, expected about 1; {advice}"
        )
        return [Suspicion("units", text, 0, atom)]
    return []


def _nearest(recording: Recording, positions: np.ndarray, radii: np.ndarray) -> tuple[float, int]:
    """Returns the median over atoms of the least distance over the sum of radii, and an atom."""
    chosen = np.arange(len(positions))[:: max(1, len(positions) // 200)]
    vectors = positions[chosen, None] - positions[None]
    if recording.cells is not None:
        cell = recording.cells[0]
        inverse = inverse_cells(cell[None], recording.periodic)[0]
        turns = np.round(vectors @ inverse) * np.asarray(recording.periodic, float)
        vectors = vectors - turns @ cell
    ratios = np.linalg.norm(vectors, axis=-1) / (radii[chosen, None] + radii[None])
    ratios[np.arange(len(chosen)), chosen] = np.inf
    least = ratios.min(axis=1)
    middle = int(np.argsort(least)[len(least) // 2])
    return float(least[middle]), int(chosen[middle])


def _velocities(recording: Recording) -> list[Suspicion]:
    if recording.velocities is None:
        return []
    slope, correlation = velocity_slope(recording)
    spacing = recording.spacing
    if recording.time_step is None and recording.length_unit == "angstrom":
        return []  # velocities per fs, and frames of unknown length
    ratio = slope / spacing
    if correlation > 0.9 and not 0.7 < ratio < 1.4:
        text = (
            f"atoms move {ratio:.3g} times as far as their velocities say in {spacing:g} "
            f"{recording.time_unit}: velocities are in another unit, or the time step is wrong"
        )
        return [Suspicion("velocities", text)]
    if correlation < -0.5:
        return [Suspicion("velocities", "atoms move against their velocities: is time reversed?")]
    return []
