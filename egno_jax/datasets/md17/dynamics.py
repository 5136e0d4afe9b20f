"""Molecular dynamics of one molecule in a thermostat that is deterministic: a Nose-Hoover chain.

Units are those of ASE: Angstrom, electron volt, atomic mass unit, and a time of 10.18 fs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

CHAIN_LENGTH = 3

_YOSHIDA = (1 / (2 - 2 ** (1 / 3)), -(2 ** (1 / 3)) / (2 - 2 ** (1 / 3)), 1 / (2 - 2 ** (1 / 3)))


class State(NamedTuple):
    """Where the dynamics stands; all that its future depends on.

    Attributes:
      positions: `[N, 3]`.
      momenta: `[N, 3]`.
      chain_positions: `[3]`, eta of the chain.
      chain_momenta: `[3]`, p_eta of the chain.
    """

    positions: Float[np.ndarray, "N 3"]
    momenta: Float[np.ndarray, "N 3"]
    chain_positions: Float[np.ndarray, "3"]
    chain_momenta: Float[np.ndarray, "3"]


class Thermostat(NamedTuple):
    """A Nose-Hoover chain that couples to every atom alike.

    Attributes:
      degrees: g, the degrees of freedom that hold kinetic energy, see `degrees_of_freedom`.
      temperature: k T, an energy.
      relaxation_time: tau; the chain's masses are Q_1 = g k T tau^2 and Q_j = k T tau^2.
    """

    degrees: int
    temperature: float
    relaxation_time: float

    @property
    def masses(self) -> Float[np.ndarray, "3"]:
        """Q `[3]`."""
        masses = np.full(CHAIN_LENGTH, self.temperature * self.relaxation_time**2)
        masses[0] *= self.degrees
        return masses


def degrees_of_freedom(positions: Float[np.ndarray, "N 3"]) -> int:
    """Returns how many degrees of freedom hold kinetic energy in a molecule at rest as a whole.

    3 N - 6 for N >= 3, and 1 for two atoms: `at_rest` takes away three components of the momentum
    and three of the angular momentum. That holds for linear molecules too, which have 3 N - 5
    vibrations about their equilibrium: out of it they are bent, so all three components are there
    to be taken, and without the one along the axis two bends of one frequency can only swing in a
    plane.

    A thermostat that is told 3 N, when the molecule as a whole neither moves nor turns, heats the
    vibrations by 3 N / (3 N - 6): those of ethanol to 643 K instead of 500 K.

    Args:
      positions: `[N, 3]`; only N matters.
    """
    num_atoms = len(positions)
    return 3 * num_atoms - 6 if num_atoms > 2 else num_atoms - 1


def at_rest(
    positions: Float[np.ndarray, "N 3"],
    momenta: Float[np.ndarray, "N 3"],
    masses: Float[np.ndarray, "N"],
) -> State:
    """Returns a centred state without total momentum and angular momentum; the chain starts at 0.

    Args:
      positions: `[N, 3]`.
      momenta: `[N, 3]`.
      masses: `[N]`.

    Returns:
      The state, whose vibrations are those given.
    """
    weights = masses[:, None]
    positions = positions - np.sum(weights * positions, axis=0) / masses.sum()
    velocities = momenta / weights
    velocities = velocities - np.sum(momenta, axis=0) / masses.sum()
    angular_momentum = np.sum(np.cross(positions, weights * velocities), axis=0)
    squares = np.sum(positions**2, axis=1)
    inertia = np.einsum("n,nij->ij", masses, squares[:, None, None] * np.eye(3)) - np.einsum(
        "n,ni,nj->ij", masses, positions, positions
    )
    # The inertia of a linear molecule is singular.
    velocities = velocities - np.cross(np.linalg.pinv(inertia) @ angular_momentum, positions)
    chain = np.zeros(CHAIN_LENGTH)
    return State(positions, weights * velocities, chain, chain)


def kinetic_energy(momenta: Float[np.ndarray, "N 3"], masses: Float[np.ndarray, "N"]) -> float:
    """Returns sum_i p_i^2 / (2 m_i)."""
    return float(np.sum(momenta**2 / masses[:, None])) / 2


def step(
    state: State,
    forces: Float[np.ndarray, "N 3"],
    compute_forces: Callable[[np.ndarray], np.ndarray],
    masses: Float[np.ndarray, "N"],
    thermostat: Thermostat,
    time_step: float,
) -> tuple[State, Float[np.ndarray, "N 3"]]:
    """Advances by one time step: half of the chain, velocity Verlet, half of the chain.

    Args:
      state: where the dynamics stands.
      forces: `[N, 3]`, the forces there.
      compute_forces: takes positions `[N, 3]`, returns forces `[N, 3]`.
      masses: `[N]`.
      thermostat: the chain.
      time_step: dt.

    Returns:
      The next state, and the forces there.

    Source:
      Martyna, Tuckerman, Tobias and Klein, Mol. Phys. 87, 1117 (1996), with the fourth-order
      Suzuki-Yoshida split of the chain.
    """
    momenta, eta, p_eta = _half_chain(state, masses, thermostat, time_step / 2)
    momenta = momenta + time_step / 2 * forces
    positions = state.positions + time_step * momenta / masses[:, None]
    forces = compute_forces(positions)
    momenta = momenta + time_step / 2 * forces
    half = State(positions, momenta, eta, p_eta)
    momenta, eta, p_eta = _half_chain(half, masses, thermostat, time_step / 2)
    return State(positions, momenta, eta, p_eta), forces


def conserved_energy(
    state: State, potential_energy: float, masses: Float[np.ndarray, "N"], thermostat: Thermostat
) -> float:
    """Returns the energy of molecule and chain together, which the dynamics conserves."""
    chain = np.sum(state.chain_momenta**2 / thermostat.masses) / 2
    degrees = np.ones(CHAIN_LENGTH)
    degrees[0] = thermostat.degrees
    chain += thermostat.temperature * np.sum(degrees * state.chain_positions)
    return potential_energy + kinetic_energy(state.momenta, masses) + float(chain)


def _half_chain(
    state: State, masses: np.ndarray, thermostat: Thermostat, time_step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Advances the chain, which scales the momenta; returns momenta, eta and p_eta."""
    kt, q = thermostat.temperature, thermostat.masses.tolist()
    twice_kinetic = 2 * kinetic_energy(state.momenta, masses)
    eta, p = state.chain_positions.tolist(), state.chain_momenta.tolist()
    scale, last = 1.0, CHAIN_LENGTH - 1

    def kick(link: int, dt: float) -> None:
        """Advances one momentum of the chain by what the link before it and the one behind do."""
        if link == 0:
            push = scale**2 * twice_kinetic - thermostat.degrees * kt
        else:
            push = p[link - 1] ** 2 / q[link - 1] - kt
        damping = math.exp(-dt / 2 * p[link + 1] / q[link + 1]) if link < last else 1.0
        p[link] = (p[link] * damping + dt * push) * damping

    for weight in _YOSHIDA:
        dt = weight * time_step
        for link in range(last, -1, -1):
            kick(link, dt / 2)
        scale *= math.exp(-dt * p[0] / q[0])
        eta = [e + dt * pe / qe for e, pe, qe in zip(eta, p, q, strict=True)]
        for link in range(last + 1):
            kick(link, dt / 2)
    return scale * state.momenta, np.array(eta), np.array(p)
