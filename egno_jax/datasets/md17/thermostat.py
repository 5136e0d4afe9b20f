"""Molecular dynamics of one molecule in ASE's Nose-Hoover chain, resumable to the bit.

Units are those of ASE: Angstrom, electron volt, atomic mass unit, and a time of 10.18 fs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.extras import require

if TYPE_CHECKING:
    import ase
    from ase.md.nose_hoover_chain import NoseHooverChainNVT
    from jaxtyping import Float

NAME = "ase.md.nose_hoover_chain"


class State(NamedTuple):
    """Everything that the future of the dynamics depends on; of the chain, eta and p_eta."""

    positions: Float[np.ndarray, "N 3"]
    momenta: Float[np.ndarray, "N 3"]
    chain_positions: Float[np.ndarray, "3"]
    chain_momenta: Float[np.ndarray, "3"]


def degrees_of_freedom(num_atoms: int) -> int:
    """Returns the degrees of freedom with kinetic energy in a molecule at rest as a whole.

    3 N - 6 for N >= 3, and 1 for two atoms: `stop` removes three components of the momentum and
    three of the angular momentum. This holds for linear molecules too, which are bent out of
    equilibrium, so that all three components of the angular momentum can be removed.
    """
    return 3 * num_atoms - 6 if num_atoms > 2 else num_atoms - 1


def stop(atoms: ase.Atoms) -> State:
    """Centres atoms and removes their momentum and angular momentum; the chain starts at 0."""
    distribution = require("ase.md.velocitydistribution", "generate")
    atoms.positions -= atoms.get_center_of_mass()
    distribution.Stationary(atoms, preserve_temperature=False)
    with np.errstate(divide="ignore", invalid="ignore"):  # the inertia of linear molecules
        distribution.ZeroRotation(atoms, preserve_temperature=False)
    return State(atoms.get_positions(), atoms.get_momenta(), np.zeros(3), np.zeros(3))


def nose_hoover_chain(
    atoms: ase.Atoms,
    state: State,
    *,
    time_step: float,
    temperature_K: float,
    relaxation_time: float,
) -> NoseHooverChainNVT:
    """Returns ASE's dynamics in a given state; call its `step`, and `state_of` for the next state.

    ASE counts 3 N degrees of freedom. In a molecule that neither moves nor rotates this would heat
    the vibrations by 3 N / (3 N - 6), those of ethanol to 643 K instead of 500 K, so the chain is
    made for `degrees_of_freedom` instead. Times are in ASE's unit.
    """
    chains = require(NAME, "generate")
    atoms.set_positions(state.positions)
    atoms.set_momenta(state.momenta)
    settings = {"temperature_K": temperature_K, "tdamp": relaxation_time}
    dynamics = chains.NoseHooverChainNVT(atoms, time_step, **settings)
    dynamics._thermostat = chain = chains.NoseHooverChainThermostat(
        degrees_of_freedom(len(atoms)) / 3, atoms.get_masses()[:, None], **settings
    )
    chain._eta, chain._p_eta = state.chain_positions.copy(), state.chain_momenta.copy()
    return dynamics


def state_of(dynamics: NoseHooverChainNVT) -> State:
    """Returns the state of the dynamics, from which `nose_hoover_chain` resumes to the bit."""
    atoms, chain = dynamics.atoms, dynamics._thermostat
    return State(atoms.get_positions(), atoms.get_momenta(), chain._eta.copy(), chain._p_eta.copy())
