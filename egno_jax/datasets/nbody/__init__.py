"""Particles that attract and repel: a simulator, and the 5-body charged data set made with it.

The data set is "charged5_initvel1small", on which EGNN, SEGNN, PONITA, CGENN and EGNO report. It is
simulated here, from the same random numbers as the original, and needs no download:

    samples = nbody.load("train")              # 3000 samples, frame 30 -> 32, 34, 36, 38, 40

Sources: Kipf et al., "Neural Relational Inference for Interacting Systems" (ICML 2018) for the
simulations; Satorras et al., "E(n) Equivariant Graph Neural Networks" (ICML 2021) for the 3D set.
"""

from egno_jax.datasets.nbody.body_samples import (
    START,
    TARGET_FRAMES,
    reversed_samples,
    samples,
    scaled_samples,
    with_orbits,
)
from egno_jax.datasets.nbody.charged5 import (
    PUBLISHED_SIZES,
    SPLIT_SIZES,
    States,
    canonical,
    canonical_states,
    load,
    load_trajectories,
)
from egno_jax.datasets.nbody.simulation import (
    COULOMB,
    DT,
    FRAME_SPACING,
    MAX_FORCE,
    SPRINGS,
    Interaction,
    Trajectories,
    charge_products,
    energy,
    forces,
    momentum,
    reverse_time,
    simulate,
)

__all__ = [
    "COULOMB",
    "DT",
    "FRAME_SPACING",
    "MAX_FORCE",
    "PUBLISHED_SIZES",
    "SPLIT_SIZES",
    "SPRINGS",
    "START",
    "TARGET_FRAMES",
    "Interaction",
    "States",
    "Trajectories",
    "canonical",
    "canonical_states",
    "charge_products",
    "energy",
    "forces",
    "load",
    "load_trajectories",
    "momentum",
    "reverse_time",
    "reversed_samples",
    "samples",
    "scaled_samples",
    "simulate",
    "with_orbits",
]
