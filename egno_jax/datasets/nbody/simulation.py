"""A simulator of particles with central forces between all pairs, many systems at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.checks import as_count, as_float, check_array
from egno_jax.datasets.argument_checks import check_states

if TYPE_CHECKING:
    from jaxtyping import Float

# The settings of the canonical data set, which are the defaults everywhere.
FRAME_SPACING = 100
DT = 0.001
MAX_FORCE = 100.0

# Systems advanced together: enough to hide NumPy's overhead, few enough for the L2 cache.
_CHUNK = 1024


class Interaction(NamedTuple):
    """A central force between two particles, and its potential, elementwise in r^2 and c_ij.

    Attributes:
      strength: force / distance; the force on i is `strength(r^2, c_ij) (x_i - x_j)`.
      potential: the energy of the pair, with `strength = -2 dpotential/d(r^2)`.
    """

    strength: Callable[[np.ndarray, np.ndarray], np.ndarray]
    potential: Callable[[np.ndarray, np.ndarray], np.ndarray]


# Quotients and roots are rounded alike on all machines; a power of 3/2 is not.
COULOMB = Interaction(lambda r2, c: c / r2 / np.sqrt(r2), lambda r2, c: c / np.sqrt(r2))
"""Charges: force c_ij (x_i - x_j) / r^3, potential c_ij / r; like charges repel where c > 0."""

SPRINGS = Interaction(lambda r2, c: -c, lambda r2, c: c * r2 / 2)
"""Springs of rest length 0: force -c_ij (x_i - x_j), potential c_ij r^2 / 2 (Kipf et al. 2018)."""


class Trajectories(NamedTuple):
    """Simulations in frames: S simulations, T frames, N particles.

    Attributes:
      positions: `[S, T, N, 3]`.
      velocities: `[S, T, N, 3]`, the velocities that led to the positions (see `simulate`).
      couplings: `[S, N, N]`, c_ij of each pair; the diagonal is not used.
    """

    positions: Float[np.ndarray, "S T N 3"]
    velocities: Float[np.ndarray, "S T N 3"]
    couplings: Float[np.ndarray, "S N N"]


def charge_products(charges: Float[np.ndarray, "*S N"]) -> Float[np.ndarray, "*S N N"]:
    """Returns the couplings c_ij = q_i q_j of charges: `[..., N]` to `[..., N, N]`."""
    charges = np.asarray(charges, np.float64)
    return charges[..., :, None] * charges[..., None, :]


def simulate(
    positions: Float[np.ndarray, "S N 3"],
    velocities: Float[np.ndarray, "S N 3"],
    couplings: Float[np.ndarray, "S N N"],
    *,
    interaction: Interaction = COULOMB,
    num_frames: int,
    frame_spacing: int = FRAME_SPACING,
    dt: float = DT,
    max_force: float = MAX_FORCE,
) -> Trajectories:
    """Simulates S systems of N particles of unit mass together, in float64.

    One step is v <- v + dt F(x), then x <- x + dt v (symplectic Euler), with
    F_i = sum_j strength(r_ij^2, c_ij) (x_i - x_j). Frame t is the state after
    `(t + 1) frame_spacing` steps; the initial state is not a frame. The frames are the same to the
    bit whichever systems are simulated together.

    Args:
      positions: `[S, N, 3]`, initial.
      velocities: `[S, N, 3]`, initial.
      couplings: `[S, N, N]`, symmetric; the diagonal is not used.
      interaction: the force law, such as `COULOMB` or `SPRINGS`.
      num_frames: T.
      frame_spacing: steps from frame to frame.
      dt: time of one step; negative goes back in time.
      max_force: each component of a particle's total force is clipped to this size, as in the
        canonical data set; `math.inf` does not clip. A clipped force is not equivariant.

    Raises:
      ValueError: an argument is out of range, couplings are not symmetric, or the result overflows.
    """
    x0, v0, couplings = _check_systems(positions, velocities, couplings)
    as_count("num_frames", num_frames)
    as_count("frame_spacing", frame_spacing)
    if not (math.isfinite(as_float(dt)) and dt != 0 and max_force > 0):
        raise ValueError(
            f"dt, max_force: got {dt} and {max_force}, expected a finite dt other than 0 and a "
            "positive max_force"
        )
    shape = (len(x0), num_frames, *x0.shape[1:])
    frames = Trajectories(np.empty(shape), np.empty(shape), couplings)
    for first in range(0, len(x0), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        x, v, c = _to_blocks(x0[chunk], v0[chunk], couplings[chunk])
        for frame in range(num_frames):
            _advance(x, v, c, interaction, frame_spacing, dt, max_force)
            frames.positions[chunk, frame] = x.transpose(2, 1, 0)
            frames.velocities[chunk, frame] = v.transpose(2, 1, 0)
    if not (np.isfinite(frames.positions).all() and np.isfinite(frames.velocities).all()):
        raise ValueError(
            f"dt: got {dt}, with which the simulation overflows: two particles coincide, or dt is "
            "too large for the forces; move them apart or use a smaller dt"
        )
    return frames


def _to_blocks(
    positions: np.ndarray, velocities: np.ndarray, couplings: np.ndarray
) -> list[np.ndarray]:
    """Transposes states for speed: `[3, N, S]` twice, and pairs i < j `[N (N - 1) / 2, S]`."""
    rows, columns = np.triu_indices(positions.shape[1], 1)
    arrays = (positions.transpose(2, 1, 0), velocities.transpose(2, 1, 0))
    return [np.ascontiguousarray(a) for a in (*arrays, couplings[:, rows, columns].T)]


@np.errstate(all="ignore")  # Overflow is detected in the results.
def _advance(
    x: np.ndarray,
    v: np.ndarray,
    c: np.ndarray,
    interaction: Interaction,
    num_steps: int,
    dt: float,
    max_force: float,
) -> None:
    """Advances blocks `x` and `v` in place by `num_steps` steps."""
    differences, change = np.empty((3, *c.shape)), np.empty_like(x)
    for _ in range(num_steps):
        _block_forces(x, c, interaction, max_force, differences, out=change)
        np.multiply(change, dt, out=change)
        np.add(v, change, out=v)
        np.multiply(v, dt, out=change)
        np.add(x, change, out=x)


def _block_forces(
    x: np.ndarray,
    c: np.ndarray,
    interaction: Interaction,
    max_force: float,
    differences: np.ndarray,
    out: np.ndarray,
) -> None:
    """Writes the forces on `x` `[3, N, S]` to `out`, each pair evaluated once.

    Uses elementwise operations in a fixed order only, so that no result depends on S.
    """
    num_particles = x.shape[1]
    ends = np.cumsum(range(num_particles - 1, 0, -1)).tolist()
    rows = [differences[:, i:j] for i, j in zip([0, *ends][:-1], ends, strict=True)]
    for i, row in enumerate(rows):
        np.subtract(x[:, i : i + 1], x[:, i + 1 :], out=row)
    squares = differences * differences
    strength = interaction.strength(squares[0] + squares[1] + squares[2], c)
    np.multiply(differences, strength, out=differences)
    out.fill(0.0)
    for i, row in enumerate(rows):
        for j in range(row.shape[1]):
            out[:, i] += row[:, j]
        out[:, i + 1 :] -= row
    if max_force < math.inf:
        np.clip(out, -max_force, max_force, out=out)


def forces(
    positions: Float[np.ndarray, "S N 3"],
    couplings: Float[np.ndarray, "S N N"],
    *,
    interaction: Interaction = COULOMB,
    max_force: float = MAX_FORCE,
) -> Float[np.ndarray, "S N 3"]:
    """Returns the total force on each particle, F_i = sum_j strength(r_ij^2, c_ij) (x_i - x_j).

    Arguments and errors are those of `simulate`, and so are the forces, to the bit.
    """
    systems = _check_systems(positions, np.zeros_like(positions, np.float64), couplings)
    x, out, c = _to_blocks(*systems)
    with np.errstate(all="ignore"):
        _block_forces(x, c, interaction, max_force, np.empty((3, *c.shape)), out)
    return np.ascontiguousarray(out.transpose(2, 1, 0))


def energy(
    positions: Float[np.ndarray, "*S N 3"],
    velocities: Float[np.ndarray, "*S N 3"],
    couplings: Float[np.ndarray, "*S N N"],
    *,
    interaction: Interaction = COULOMB,
) -> Float[np.ndarray, "*S"]:
    """Returns the total energy, sum_i |v_i|^2 / 2 + sum_{i<j} potential(r_ij^2, c_ij).

    Leading axes are broadcast: `couplings[:, None]` serves all frames.
    """
    rows, columns = np.triu_indices(positions.shape[-2], 1)
    differences = positions[..., rows, :] - positions[..., columns, :]
    pairs = interaction.potential((differences**2).sum(-1), couplings[..., rows, columns])
    return (velocities**2).sum((-2, -1)) / 2 + pairs.sum(-1)


def momentum(velocities: Float[np.ndarray, "*S N 3"]) -> Float[np.ndarray, "*S 3"]:
    """Returns the total momentum of particles of unit mass, sum_i v_i: `[..., 3]`."""
    return velocities.sum(-2)


def reverse_time(
    trajectories: Trajectories,
    *,
    interaction: Interaction = COULOMB,
    dt: float = DT,
    max_force: float = MAX_FORCE,
) -> Trajectories:
    """Reverses time: trajectories of the same physics, whose settings are the arguments.

    Frames are in opposite order, with velocities -(v + dt F(x)): `simulate` stores the velocity
    that led to a position, so the velocity that leads to it from the other side is the next one,
    negated. `simulate` reproduces the result from its first frame.
    """
    positions, velocities, couplings = check_trajectories(trajectories)
    kicks = [
        forces(positions[:, t], couplings, interaction=interaction, max_force=max_force)
        for t in range(positions.shape[1])
    ]
    backwards = -(velocities + dt * np.stack(kicks, axis=1))
    return Trajectories(positions[:, ::-1], backwards[:, ::-1], couplings)


def check_trajectories(trajectories: Trajectories) -> Trajectories:
    """Returns the trajectories as arrays, or raises `ValueError` if shapes do not match."""
    found, sizes = Trajectories(*map(np.asarray, trajectories)), {}
    shapes = (("S", "T", "N", 3), ("S", "T", "N", 3), ("S", "N", "N"))
    for name, array, shape in zip(found._fields, found, shapes, strict=True):
        check_array(f"trajectories.{name}", array, "integer or floating", shape, sizes)
    return found


def _check_systems(
    positions: np.ndarray, velocities: np.ndarray, couplings: np.ndarray
) -> list[np.ndarray]:
    """Returns float64 copies, checked."""
    state, pairs = ("S", "N", 3), ("S", "N", "N")
    states = {"positions": (positions, state), "velocities": (velocities, state)}
    arrays = check_states({**states, "couplings": (couplings, pairs)})
    if not np.array_equal(arrays[2], arrays[2].swapaxes(1, 2)):
        raise ValueError(
            "couplings: got an asymmetric matrix, expected couplings[s, i, j] == couplings[s, j, "
            "i]; a pair has one coupling (see charge_products)"
        )
    return arrays
