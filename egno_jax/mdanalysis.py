"""MDAnalysis: a predicted trajectory as a `Universe`, for analysis and for its writers.

    universe = egno_jax.mdanalysis.universe_of(atoms, trajectory.positions, times)

Needs the extra `mdanalysis`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.checks import as_floating, check_array, check_finite
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
      ValueError: shapes do not fit, positions are not finite, or times are not evenly spaced.
      ImportError: if MDAnalysis, of the extra `mdanalysis`, is not installed.
    """
    mda = require("MDAnalysis", "mdanalysis")
    memory = require("MDAnalysis.coordinates.memory", "mdanalysis")
    group = atoms.atoms
    sizes = {"N": len(group)}
    positions = as_floating(positions, "positions")
    check_array("positions", positions, "floating", ("T", "N", 3), sizes)
    check_finite("positions", positions)
    times = as_floating(times, "times").astype(float)
    check_array("times", times, "floating", ("T",), sizes)
    steps = np.diff(times)
    if not len(times) or (steps <= 0).any() or not np.allclose(steps, steps[:1].sum(), rtol=1e-3):
        raise ValueError(
            f"times: got {times.tolist()}, expected increasing and evenly spaced times; predict at "
            "evenly spaced times"
        )
    if velocities is not None:
        velocities = as_floating(velocities, "velocities") / time_unit
        check_array("velocities", velocities, "floating", ("T", "N", 3), sizes)
        velocities = velocities.astype(np.float32)
    universe = mda.Merge(group)
    universe.load_new(
        positions.astype(np.float32),
        format=memory.MemoryReader,
        dt=float(steps.mean() if len(steps) else 1) * time_unit,
        time_offset=float(times[0]) * time_unit,
        dimensions=group.dimensions if dimensions is None else np.asarray(dimensions),
        velocities=velocities,
    )
    return universe
