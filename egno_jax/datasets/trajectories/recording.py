"""Recordings: frames of one system, or of several of the same atoms, with their units and times."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.datasets.argument_checks import check_choice
from egno_jax.durations import FEMTOSECOND, FRAME
from egno_jax.graph import periodic_cell
from egno_jax.recipe import State

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """S recordings of T frames of the same N atoms, unwrapped.

    Attributes:
      source: the files, for messages.
      positions: `[S, T, N, 3]`, float64; in a cell, unwrapped from frame to frame.
      velocities: `[S, T, N, 3]`, length per fs (per frame with `counts_frames`), even if the time
        between frames is unknown; None if the files have none.
      numbers: `[N]`, atomic numbers; None if unknown.
      charges: `[N]`; None if unknown.
      images: `[S, T, N, 3]`, the positions in the files minus the unwrapped ones, where the cell
        varies: then they are lattice vectors of no one cell, and a state has the positions of its
        file. None: they do not matter.
      cells: `[T, 3, 3]`, lattice vectors as rows; None without periodic boundaries.
      periodic: which lattice vectors are periodic.
      times: `[T]` in fs, or in frames with `counts_frames`, as the files say; None if they do not.
      counts_frames: whether the files say that times count frames of an unknown length.
      time_step: femtoseconds between frames; None if unknown.
      segments: `[T]`, increasing; frames of one number follow each other without a gap.
      fixed: `[N]`, atoms that a constraint in the files keeps from moving.
      constraints: names of constraints in the files.
      length_unit: `"angstrom"` or `"unknown"`.
      selection: which atoms of the files these are; empty: all.
      template: the atoms as the reader has them, from which writers take names and residues.
      notes: what was done at reading, for people.
    """

    source: str
    positions: Float[np.ndarray, "S T N 3"]
    velocities: Float[np.ndarray, "S T N 3"] | None = None
    numbers: Int[np.ndarray, "N"] | None = None
    charges: Float[np.ndarray, "N"] | None = None
    images: Float[np.ndarray, "S T N 3"] | None = None
    cells: Float[np.ndarray, "T 3 3"] | None = None
    periodic: tuple[bool, bool, bool] = (False, False, False)
    times: Float[np.ndarray, "T"] | None = None
    counts_frames: bool = False
    time_step: float | None = None
    segments: Int[np.ndarray, "T"] | None = None
    fixed: Bool[np.ndarray, "N"] | None = None
    constraints: tuple[str, ...] = ()
    length_unit: str = "angstrom"
    selection: str = ""
    template: Any = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.segments is None:
            object.__setattr__(self, "segments", np.zeros(self.positions.shape[1], int))

    @property
    def time_unit(self) -> str:
        """The unit of times: `"fs"` if the time between frames is known, else `"frame"`."""
        return FRAME if self.time_step is None else FEMTOSECOND

    @property
    def spacing(self) -> float:
        """The time between two frames, in `time_unit`."""
        return 1.0 if self.time_step is None else self.time_step

    @property
    def has_previous(self) -> Bool[np.ndarray, "T"]:
        """Whether the frame before each frame is known."""
        return np.diff(self.segments, prepend=-1) == 0


def velocities_by(recording: Recording, rule: str) -> Float[np.ndarray, "S T N 3"]:
    """Returns the velocities of all frames, by the rule of a recipe.

    With `"difference"`, v[t] = (x[t] - x[t-1]) / spacing; NaN where the previous frame is unknown.
    With `"forward_difference"`, v[t] = (x[t+1] - x[t]) / spacing; NaN where the next is.

    Raises:
      ValueError: the rule is unknown, or `"file"` and the files have none.
    """
    check_choice("rule", rule, ("file", "difference", "forward_difference"))
    if rule == "file":
        if recording.velocities is None:
            raise ValueError(
                f"velocities: got none in {recording.source}, expected velocities or momenta; use "
                "finite differences"
            )
        return recording.velocities
    steps = np.diff(recording.positions, axis=1) / recording.spacing
    steps = np.where(recording.has_previous[1:, None, None], steps, np.nan)
    found = np.full(recording.positions.shape, np.nan)
    found[:, slice(None, -1) if rule == "forward_difference" else slice(1, None)] = steps
    return found


def state_at(
    recording: Recording, velocities: Float[np.ndarray, "S T N 3"] | None, sample: int, frame: int
) -> State:
    """Returns one frame, with velocities of `velocities_by`; None where they are unknown."""
    found = None if velocities is None else velocities[sample, frame]
    positions, images = recording.positions[sample, frame], recording.images
    return State(
        positions=positions if images is None else positions + images[sample, frame],
        velocities=None if found is None or np.isnan(found).any() else found,
        numbers=recording.numbers,
        charges=recording.charges,
        cell=None if recording.cells is None else recording.cells[frame],
        periodic=recording.periodic,
    )


def inverse_cells(
    cells: Float[np.ndarray, "T 3 3"], periodic: tuple[bool, bool, bool]
) -> Float[np.ndarray, "T 3 3"]:
    """Returns the inverses of cells, whose vectors that are not periodic may be zero, as ASE's."""
    if all(periodic):
        return np.linalg.inv(cells)
    if (cells == cells[:1]).all():
        cells = cells[:1]
    inverses = [np.linalg.inv(periodic_cell(cell, periodic)[0]) for cell in cells]
    return np.asarray(inverses).reshape(-1, 3, 3)


def unwrapped(
    positions: Float[np.ndarray, "S T N 3"],
    cells: Float[np.ndarray, "T 3 3"],
    periodic: tuple[bool, bool, bool],
) -> tuple[Float[np.ndarray, "S T N 3"], int]:
    """Moves every atom to the image nearest to its previous position.

    x[t+1] <- x[t] + d - round(d C^-1) C with d = x[t+1] - x[t] and the lattice vectors C of frame
    t + 1. It is right if no atom moves farther than half a cell between two frames. Returns the
    positions and the number of steps, of all atoms and frames, that crossed a wall of the cell.
    """
    inverse = inverse_cells(cells[1:], periodic)
    fractions = np.einsum("stni,tij->stnj", np.diff(positions, axis=1), inverse)
    turns = np.round(fractions) * np.asarray(periodic, float)
    images = np.cumsum(np.einsum("stni,tij->stnj", turns, cells[1:]), axis=1)
    moved = positions.copy()
    moved[:, 1:] -= images
    return moved, int(np.any(turns != 0, axis=-1).sum())
