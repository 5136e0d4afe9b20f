"""MDAnalysis: a predicted trajectory as a `Universe`, for analysis and for its writers.

    universe = egno_jax.mdanalysis.universe_of(atoms, trajectory.positions, times)

Needs the extra `mdanalysis`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.checks import as_array, as_floating, check_array, check_finite, check_positive
from egno_jax.extras import require

if TYPE_CHECKING:
    from jaxtyping import ArrayLike, Float

__all__ = ["universe_of"]

FEMTOSECOND = 1e-3  # in picoseconds, MDAnalysis' unit of time


def universe_of(
    atoms: Any,
    positions: Float[ArrayLike, "T N 3"],
    times: Float[ArrayLike, "T"],
    *,
    velocities: Float[ArrayLike, "T N 3"] | None = None,
    time_unit: float = FEMTOSECOND,
    dimensions: Float[ArrayLike, "6"] | None = None,
) -> Any:
    """Returns a predicted trajectory as a Universe in memory, with the names and bonds of `atoms`.

    Args:
      atoms: the `AtomGroup`, or `Universe`, that the graph was made of: names, residues, bonds.
      positions: `[T, N, 3]` in Angstrom, such as those of a `Trajectory` or a `Rollout`; unwrapped.
      times: `[T]`, evenly spaced, because trajectories of MDAnalysis have one time step.
      velocities: `[T, N, 3]`, in Angstrom per `time_unit`; None: the universe has none.
      time_unit: the unit of `times`, in picoseconds; by default 1 fs.
      dimensions: `[6]`, the cell: lengths and angles; None: that of `atoms`.

    Raises:
      ValueError: shapes do not fit, numbers are not finite, times are not evenly spaced, or the
        unit or the cell is not above 0.
      ImportError: if MDAnalysis, of the extra `mdanalysis`, is not installed.
    """
    mda = require("MDAnalysis", "mdanalysis")
    memory = require("MDAnalysis.coordinates.memory", "mdanalysis")
    group = atoms.atoms
    sizes = {"N": len(group)}
    positions = as_floating("positions", positions)
    check_array("positions", positions, "floating", ("T", "N", 3), sizes)
    check_finite("positions", positions)
    check_positive("time_unit", time_unit)
    times = as_array("times", times, "integer or floating", ("T",), sizes).astype(np.float64)
    step = _step_of(times)
    if velocities is not None:
        velocities = as_floating("velocities", velocities)
        check_array("velocities", velocities, "floating", ("T", "N", 3), sizes)
        with np.errstate(over="ignore"):
            velocities = (velocities.astype(np.float64) / time_unit).astype(np.float32)
        check_finite("velocities", velocities)
    universe = mda.Merge(group)
    universe.load_new(
        positions.astype(np.float32),
        format=memory.MemoryReader,
        dt=step * time_unit,
        time_offset=float(times[0]) * time_unit,
        dimensions=group.dimensions if dimensions is None else _checked_cell(dimensions),
        velocities=velocities,
    )
    return universe


def _step_of(times: np.ndarray) -> float:
    """Returns the step of evenly spaced times; 1 for a single time."""
    steps = np.diff(times)
    # No absolute tolerance: the unit is the caller's, and steps may be of any size.
    is_even = (steps > 0).all() and np.allclose(steps, steps[:1].sum(), rtol=1e-3, atol=0)
    if not len(times) or not np.isfinite(times).all() or not is_even:
        raise ValueError(
            f"times: got {times.tolist()}, expected increasing and evenly spaced times; predict at "
            "evenly spaced times"
        )
    return float(steps.mean()) if len(steps) else 1.0


def _checked_cell(dimensions: Float[ArrayLike, "6"]) -> np.ndarray:
    """Returns a cell, whose lengths and angles are finite and above 0."""
    cell = as_floating("dimensions", dimensions)
    check_array("dimensions", cell, "floating", (6,), {})
    if not (np.isfinite(cell).all() and (cell > 0).all()):
        raise ValueError(
            f"dimensions: got {cell.tolist()}, expected finite lengths and angles above 0; use "
            "None for the cell of atoms"
        )
    return cell
