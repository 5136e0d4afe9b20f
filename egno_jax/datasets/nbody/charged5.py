"""The canonical 5-body data set "charged5_initvel1small": its random numbers, splits and cache."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.checks import as_count
from egno_jax.datasets import cache
from egno_jax.datasets.argument_checks import check_choice
from egno_jax.datasets.base import Samples
from egno_jax.datasets.nbody.body_samples import START, TARGET_FRAMES, samples
from egno_jax.datasets.nbody.simulation import (
    COULOMB,
    DT,
    FRAME_SPACING,
    MAX_FORCE,
    Trajectories,
    charge_products,
    simulate,
)
from egno_jax.datasets.npz import PathLike

if TYPE_CHECKING:
    from jaxtyping import Float

SEED = 43
NUM_PARTICLES = 5
NUM_FRAMES = 49
INITIAL_SPEED = 0.5
SPLIT_SIZES = {"train": 10000, "valid": 2000, "test": 2000}
PUBLISHED_SIZES = {"train": 3000, "valid": 2000, "test": 2000}

_SIMULATION = {
    "num_frames": NUM_FRAMES,
    "frame_spacing": FRAME_SPACING,
    "dt": DT,
    "max_force": MAX_FORCE,
}
# Increased whenever the simulator's numbers change, so that older caches are rebuilt.
_SIMULATOR_VERSION = 1


class States(NamedTuple):
    """The initial states of S simulations of N charged particles: charges are `[S, N]`."""

    positions: Float[np.ndarray, "S N 3"]
    velocities: Float[np.ndarray, "S N 3"]
    charges: Float[np.ndarray, "S N"]


def load(
    split: str,
    *,
    num_samples: int | None = None,
    start: int = START,
    target_frames: Sequence[int] = TARGET_FRAMES,
    dtype: np.typing.DTypeLike = np.float32,
    cache_dir: PathLike | None = None,
) -> Samples:
    """Loads the 5-body data set of EGNO's experiments; see `samples` for its contents.

    The first call simulates the split (a few seconds) and stores it in the cache.

    `num_samples` are the first simulations of the split; by default 3000 of the 10000 train, 2000
    valid and 2000 test simulations, as published. `cache_dir` is the cache; `$EGNO_CACHE_DIR`, else
    `~/.cache/egno_jax`, if None. Other arguments, and errors, are those of `samples`.
    """
    trajectories = load_trajectories(split, num_simulations=num_samples, cache_dir=cache_dir)
    return samples(trajectories, start=start, target_frames=target_frames, dtype=dtype)


def load_trajectories(
    split: str, *, num_simulations: int | None = None, cache_dir: PathLike | None = None
) -> Trajectories:
    """Loads all 49 frames of simulations of `canonical` from the cache; arguments as for `load`."""
    num_simulations = _check_split(split, num_simulations)
    settings = {
        "split": split,
        "num_simulations": num_simulations,
        "simulator_version": _SIMULATOR_VERSION,
        "seed": SEED,
        "num_particles": NUM_PARTICLES,
        "initial_speed": INITIAL_SPEED,
        **_SIMULATION,
    }
    arrays = cache.load_or_build(
        f"nbody_charged5_initvel1small_{split}_{num_simulations}",
        settings,
        build=lambda: canonical(split, num_simulations=num_simulations)._asdict(),
        directory=cache_dir,
    )
    return Trajectories(**arrays)


def canonical(split: str, *, num_simulations: int | None = None) -> Trajectories:
    """Simulates one split of the canonical 5-body data set "charged5_initvel1small".

    There are 49 frames, 0.1 time units apart, in float64. Simulation s does not depend on the
    number of simulations, to the bit. Frames agree with those of the original code to rounding,
    which close encounters of opposite charges amplify: to 1e-8 in most simulations, to 1e-4 in a
    few.

    Args:
      split: "train", "valid" or "test".
      num_simulations: at most 10000, 2000 and 2000; by default 3000, 2000 and 2000, as published.

    Raises:
      ValueError: the split is unknown or has fewer simulations.
    """
    states = canonical_states(split, num_simulations=num_simulations)
    couplings = charge_products(states.charges)
    return simulate(
        states.positions, states.velocities, couplings, interaction=COULOMB, **_SIMULATION
    )


def canonical_states(split: str, *, num_simulations: int | None = None) -> States:
    """Draws the initial states of `canonical`, whose arguments and errors these are, in float64.

    All splits come from one stream of NumPy's legacy generator with seed 43: charges -1 or +1,
    normal positions, velocities of length 0.5 in normal directions.
    """
    num_simulations = _check_split(split, num_simulations)
    rng = np.random.RandomState()
    rng.set_state(_generator_state(split))
    draws = [_draw_state(rng) for _ in range(num_simulations)]
    return States(*(np.stack(field) for field in zip(*draws, strict=True)))


@functools.cache
def _generator_state(split: str) -> tuple:
    """Returns the state of the generator before the first draw of a split."""
    names = list(SPLIT_SIZES)
    rng = np.random.RandomState(SEED)
    if split != names[0]:
        previous = names[names.index(split) - 1]
        rng.set_state(_generator_state(previous))
        for _ in range(SPLIT_SIZES[previous]):
            _draw_state(rng)
    return rng.get_state()


def _draw_state(rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws positions `[N, 3]`, velocities `[N, 3]` and charges `[N]` of one simulation."""
    charges = rng.choice([-1.0, 0.0, 1.0], size=(NUM_PARTICLES, 1), p=[0.5, 0.0, 0.5])
    positions = rng.randn(3, NUM_PARTICLES)
    velocities = rng.randn(3, NUM_PARTICLES)
    velocities = velocities * INITIAL_SPEED / np.sqrt((velocities**2).sum(axis=0))
    # The original draws measurement noise of variance 0 here, for positions and velocities.
    rng.randn(2, NUM_FRAMES, 3, NUM_PARTICLES)
    return positions.T, velocities.T, charges[:, 0]


def _check_split(split: str, num_simulations: int | None) -> int:
    """Checks the choice of simulations and returns their number."""
    check_choice("split", split, SPLIT_SIZES)
    if num_simulations is None:
        return PUBLISHED_SIZES[split]
    return as_count(f"number of {split} simulations", num_simulations, most=SPLIT_SIZES[split])
