"""Trajectories that studies cut their samples from, and predictions for them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import egno_jax
from egno_jax import EGNOConfig, rolling
from egno_jax.datasets import Samples, nbody
from egno_jax.training import OptimizerConfig, TrainingConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Integration steps from one frame of the 5-body data to the next.
STEPS_A_FRAME = nbody.FRAME_SPACING
_SIMULATIONS_AT_ONCE = 250

# The original's model of the 5-body problem; `time_scale` depends on the times it is trained on.
MODEL = EGNOConfig(num_layers=4, hidden_dim=64, num_modes=2, time_embed_dim=32)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and tested: numbers of systems and of training steps of each model.

    As many systems as those to test on select the models.
    """

    num_train: int = 3000
    num_test: int = 1000
    num_steps: int = 1000

    def per_split(self) -> dict[str, int]:
        """Returns the number of systems by split."""
        return {"train": self.num_train, "valid": self.num_test, "test": self.num_test}


def training_config(num_steps: int, **changes: Any) -> TrainingConfig:
    """Returns how models of the 5-body problem are trained: like the config `quick`, any length."""
    usual = TrainingConfig(
        num_steps=num_steps,
        batch_size=25,
        ema_decay=0.99 if num_steps > 500 else 0.9,
        eval_every=max(num_steps // 10, 1),
        eval_batch_size=100,
        optimizer=OptimizerConfig(warmup_steps=min(200, num_steps // 10)),
    )
    return dataclasses.replace(usual, **changes)


@dataclasses.dataclass(frozen=True)
class Budget(Size):
    """A size to compare models of the canonical simulations at, with the samples of a step."""

    num_test: int = 2000
    num_steps: int = 600
    batch_size: int = 50

    def training(self, num_steps: int, learning_rate: float = 2e-3) -> TrainingConfig:
        """Returns how a model is trained for so many steps."""
        return TrainingConfig(
            num_steps=num_steps,
            batch_size=self.batch_size,
            eval_every=max(num_steps // 8, 1),
            eval_batch_size=min(250, self.num_test),
            optimizer=OptimizerConfig(
                learning_rate=learning_rate, warmup_steps=min(200, num_steps // 4)
            ),
        )


class Paths(NamedTuple):
    """S charged systems, from frame 30 of their simulation on.

    Attributes:
      steps: `[T]`, integration steps after frame 30; the first is 0.
      trajectories: the systems at those steps.
    """

    steps: Int[np.ndarray, "T"]
    trajectories: nbody.Trajectories


def simulate(split: str, num_simulations: int, steps: Sequence[int]) -> Paths:
    """Simulates the first canonical 5-body systems again and keeps any integration steps.

    Args:
      split: "train", "valid" or "test".
      num_simulations: how many.
      steps: which steps after frame 30 to keep, in addition to step 0.

    Returns:
      The paths: those of `nbody.load_trajectories` where steps are whole frames.
    """
    states = nbody.canonical_states(split, num_simulations=num_simulations)
    kept = np.unique([0, *steps])
    burn_in = (nbody.START + 1) * nbody.FRAME_SPACING
    parts = []
    for first in range(0, num_simulations, _SIMULATIONS_AT_ONCE):
        chunk = slice(first, first + _SIMULATIONS_AT_ONCE)
        couplings = nbody.charge_products(states.charges[chunk])
        x, v, frames = states.positions[chunk], states.velocities[chunk], []
        for gap in (burn_in, *np.diff(kept)):
            moved = nbody.simulate(x, v, couplings, num_frames=1, frame_spacing=int(gap))
            x, v = moved.positions[:, 0], moved.velocities[:, 0]
            frames.append((x, v))
        positions, velocities = (np.stack(field, axis=1) for field in zip(*frames, strict=True))
        parts.append(nbody.Trajectories(positions, velocities, couplings))
    return Paths(kept, nbody.Trajectories(*map(np.concatenate, zip(*parts, strict=True))))


def simulate_splits(size: Size, *steps: Sequence[int]) -> dict[str, Paths]:
    """Simulates training, validation and test systems; keeps all of the steps."""
    kept = np.concatenate(steps)
    return {split: simulate(split, number, kept) for split, number in size.per_split().items()}


def samples_at(paths: Paths, steps: Sequence[int]) -> Samples:
    """Cuts samples whose targets are at some of the steps that were kept.

    Args:
      paths: the trajectories.
      steps: `[P]`, increasing and above 0, each among `paths.steps`.

    Returns:
      Samples whose times are in frames after the initial state.
    """
    where = np.searchsorted(paths.steps, steps)
    if not np.array_equal(paths.steps[np.minimum(where, len(paths.steps) - 1)], steps):
        raise ValueError(f"steps: got {list(steps)}, expected steps that were kept")
    cut = nbody.samples(paths.trajectories, start=0, target_frames=where)
    return cut._replace(times=(np.asarray(steps) / STEPS_A_FRAME).astype(np.float32))


def cut_splits(splits: dict[str, Paths], steps: Sequence[int]) -> list[Samples]:
    """Cuts training, validation and test samples, as `samples_at` does."""
    return [samples_at(paths, steps) for paths in splits.values()]


def uniform_steps(num_times: int, frames: int) -> Int[np.ndarray, "P"]:
    """Returns P equally spaced steps in a window of some frames, rounded to whole ones."""
    window = frames * STEPS_A_FRAME
    return np.rint(window * np.arange(1, num_times + 1) / num_times).astype(int)


def error_at(errors: Float[np.ndarray, "T"], times: Sequence[float], requested: Sequence[float]):
    """Returns the mean of an error-over-time curve at the requested times; it is 0 at time 0."""
    return float(np.interp(requested, [0.0, *times], [0.0, *errors]).mean())


def roll_out(num_windows: int, next_graph: rolling.NextGraph) -> Callable[..., Any]:
    """Returns a rollout for `decode`, of a model that was trained on velocities."""
    return functools.partial(
        egno_jax.rollout,
        num_windows=num_windows,
        next_graph=next_graph,
        supervised_velocities=True,
    )
