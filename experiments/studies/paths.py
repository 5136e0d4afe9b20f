"""Trajectories that studies cut their samples from, and predictions for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

import egno_jax
from egno_jax import EGNOConfig
from egno_jax.datasets import Samples, mocap, nbody, num_samples, take
from egno_jax.training import OptimizerConfig, TrainingConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from egno_jax import Params

# Integration steps from one frame of the 5-body data to the next.
STEPS_A_FRAME = nbody.FRAME_SPACING
_SIMULATIONS_AT_ONCE = 250

# The original's model of the 5-body problem; `time_scale` depends on the times it is trained on.
MODEL = EGNOConfig(num_layers=4, hidden_dim=64, num_modes=2, time_embed_dim=32)


def training_config(
    num_steps: int, *, batch_size: int = 25, velocity_weight: float = 0.0
) -> TrainingConfig:
    """Returns how models of the 5-body problem are trained: like the config `quick`, any length."""
    return TrainingConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        velocity_weight=velocity_weight,
        ema_decay=0.99 if num_steps > 500 else 0.9,
        eval_every=max(num_steps // 10, 1),
        eval_batch_size=100,
        optimizer=OptimizerConfig(warmup_steps=min(200, num_steps // 10)),
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
    """Simulates the canonical 5-body systems again and keeps any integration steps.

    Args:
      split: "train", "valid" or "test".
      num_simulations: how many, from the first.
      steps: which steps after frame 30 to keep, in addition to step 0.

    Returns:
      The paths: those of `nbody.load_trajectories` where steps are whole frames.
    """
    states = nbody.canonical_states(split, num_simulations=num_simulations)
    kept = np.unique([0, *steps])
    parts = []
    for first in range(0, num_simulations, _SIMULATIONS_AT_ONCE):
        chunk = slice(first, first + _SIMULATIONS_AT_ONCE)
        couplings = nbody.charge_products(states.charges[chunk])
        start = nbody.simulate(
            states.positions[chunk],
            states.velocities[chunk],
            couplings,
            num_frames=1,
            frame_spacing=(nbody.START + 1) * nbody.FRAME_SPACING,
        )
        x, v = start.positions[:, 0], start.velocities[:, 0]
        frames = [(x, v)]
        for gap in np.diff(kept):
            moved = nbody.simulate(x, v, couplings, num_frames=1, frame_spacing=int(gap))
            x, v = moved.positions[:, 0], moved.velocities[:, 0]
            frames.append((x, v))
        positions, velocities = (np.stack(field, axis=1) for field in zip(*frames, strict=True))
        parts.append(nbody.Trajectories(positions, velocities, couplings))
    return Paths(kept, nbody.Trajectories(*map(np.concatenate, zip(*parts, strict=True))))


def simulate_splits(size: Any, steps: Sequence[int]) -> dict[str, Paths]:
    """Simulates training, validation and test systems, as many as a study's size says."""
    numbers = {"train": size.num_train, "valid": size.num_test, "test": size.num_test}
    return {split: simulate(split, number, steps) for split, number in numbers.items()}


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


def uniform_steps(num_times: int, window: int) -> Int[np.ndarray, "P"]:
    """Returns P equally spaced steps up to `window`, rounded to whole ones."""
    return np.rint(window * np.arange(1, num_times + 1) / num_times).astype(int)


def walk_samples(split: str, num_samples: int, frames: Sequence[int]) -> Samples:
    """Cuts samples of subject 35's walk with the requested frames after the initial one."""
    windows = mocap.load_windows("walk", split, num_samples=num_samples)
    return mocap.samples(windows, target_frames=frames)


def error_at(errors: Float[np.ndarray, "T"], times: Sequence[float], requested: Sequence[float]):
    """Returns the mean of an error-over-time curve at the requested times; it is 0 at time 0."""
    return float(np.interp(requested, [0.0, *times], [0.0, *errors]).mean())


def decode(
    params: Params,
    samples: Samples,
    *,
    roll: Callable[..., Any] = egno_jax.apply,
    batch_size: int | None = None,
) -> tuple[Float[np.ndarray, "S P N 3"], Float[np.ndarray, "S P N 3"]]:
    """Returns the predicted positions and velocities of samples.

    Args:
      params: the model.
      samples: S samples.
      roll: called as `egno_jax.apply`; a rollout gives more times.
      batch_size: samples that are predicted together; None: all.
    """
    total, run = num_samples(samples), jax.jit(roll)
    parts = []
    for start in range(0, total, batch_size or total):
        batch = take(samples, np.arange(start, min(start + (batch_size or total), total)))
        found = run(params, batch.graph, batch.times)
        parts.append([_by_sample(x, samples) for x in (found.positions, found.velocities)])
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def _by_sample(values: jax.Array, samples: Samples) -> Float[np.ndarray, "S P N 3"]:
    num_nodes = samples.positions.shape[2]
    return np.asarray(values).reshape(len(values), -1, num_nodes, 3).swapaxes(0, 1)
