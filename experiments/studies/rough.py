"""Rough dynamics: hard spheres that collide, where few Fourier modes should struggle.

    python -m experiments.studies.rough

Plain EGNO is compared with more modes, shorter windows, no temporal convolutions, and an additional
local convolution over time. All have the same data, steps and width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from egno_jax import EGNOConfig, rolling
from egno_jax.baselines import BaselineConfig
from egno_jax.datasets import Samples, collisions, concatenate
from egno_jax.training import TrainingConfig
from experiments.decoding import decode
from experiments.studies import paths
from experiments.studies.local import LocalConfig
from experiments.studies.study import Figure, Record, Study, Workshop, main, panels

_PLAIN = "plain, 2 modes"
_LAST_FRAME = 64


@dataclasses.dataclass(frozen=True)
class Size(paths.Size):
    """How much is trained and tested."""

    num_steps: int = 1200
    num_times: int = 16  # P over the window of 64 frames
    modes: tuple[int, ...] = (4, 9)  # M of the variants with more modes
    windows: tuple[int, ...] = (2, 4)  # numbers of shorter windows, which are rolled out
    seeds: tuple[int, ...] = (0,)  # of each variant


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, num_times=4, modes=(), windows=(2,)),
}


def measure(size: Size, workshop: Workshop) -> Record:
    """Trains the variants and measures their errors over the window.

    Returns:
      `variants`: for each, A-MSE and F-MSE a seed, the error at each time, and A-MSE in the thirds
      of the boxes with the fewest, some and the most collisions; `times`; `collisions`: the most
      in a box of each third.
    """
    motions = {
        split: collisions.load_motion(split, num_boxes=number)
        for split, number in size.per_split().items()
    }
    spacing = _LAST_FRAME // size.num_times
    frames = range(spacing, _LAST_FRAME + 1, spacing)
    train, valid, test = (_samples(motion, frames) for motion in motions.values())
    variants: dict[str, Any] = {}
    counts = motions["test"].num_collisions[:, _LAST_FRAME]
    thirds = np.array_split(np.argsort(counts, kind="stable"), 3)

    def note(name: str, positions: np.ndarray) -> None:
        real = slice(collisions.NUM_SPHERES)
        squares = (positions - test.positions)[:, :, real] ** 2
        each = squares.mean(axis=(1, 2, 3))
        entry = variants.setdefault(name, {"a_mse": [], "f_mse": [], "curve": []})
        entry["a_mse"].append(float(squares.mean()))
        entry["f_mse"].append(float(squares[:, -1].mean()))
        entry["curve"].append([float(x) for x in squares.mean(axis=(0, 2, 3))])
        entry["by_collisions"] = [float(each[third].mean()) for third in thirds]

    for seed in size.seeds:
        settings = paths.training_config(size.num_steps, seed=seed)
        for name, model in _models(size, spacing).items():
            params = workshop.train(f"{name} seed {seed}", model, settings, train, valid)
            note(name, decode(params, test, batch_size=100)[0])
        for count in size.windows:
            rolled = _rolled(count, settings, workshop, motions, frames)
            note(f"plain, {count} windows rolled out", rolled)
    return {
        "times": [float(frame) for frame in frames],
        "collisions": [int(counts[third[-1]]) for third in thirds],
        "variants": variants,
    }


def _samples(motion: collisions.Motion, frames: Sequence[int], start: int = 0) -> Samples:
    """Cuts samples with targets so many frames after the initial one."""
    targets = [start + frame for frame in frames]
    return collisions.samples(motion, box=collisions.BOX, start=start, target_frames=targets)


def _models(size: Size, spacing: int) -> dict[str, EGNOConfig]:
    """Returns the variants that decode the window in one pass."""
    plain = dataclasses.replace(paths.MODEL, time_scale=float(spacing))
    shared = {f.name: getattr(plain, f.name) for f in dataclasses.fields(EGNOConfig)}
    return {
        _PLAIN: plain,
        **{f"{m} modes": dataclasses.replace(plain, num_modes=m) for m in size.modes},
        "without convolutions": BaselineConfig(method="egno-no-conv", **shared),
        "local convolution beside": LocalConfig(reach=1, **shared),
        "wider local convolution beside": LocalConfig(reach=2, **shared),
    }


def _rolled(
    count: int,
    settings: TrainingConfig,
    workshop: Workshop,
    motions: Mapping[str, collisions.Motion],
    frames: Sequence[int],
) -> np.ndarray:
    """Trains on shorter windows, with supervised velocities, and rolls them out."""
    frames = frames[: len(frames) // count]
    length = frames[-1]

    def windows(split: str) -> Samples:
        # As many samples as boxes: one window of each box.
        parts = [
            _samples(collisions.Motion(*(x[index::count] for x in motions[split])), frames, start)
            for index, start in enumerate(range(0, _LAST_FRAME - length + 1, length))
        ]
        return concatenate(*parts)

    model = dataclasses.replace(paths.MODEL, time_scale=float(frames[0]))
    # Errors of velocities count as much as those of positions.
    settings = dataclasses.replace(settings, velocity_weight=(length / 32 / 2) ** 2)
    name = f"{count} windows seed {settings.seed}"
    params = workshop.train(name, model, settings, windows("train"), windows("valid"))
    roll = paths.roll_out(count, _with_walls(rolling.refresh()))
    return decode(params, _samples(motions["test"], frames), roll=roll)[0]


def _with_walls(refresh: rolling.NextGraph) -> rolling.NextGraph:
    """Keeps the walls where they are, whatever the model predicts for them."""

    def next_graph(graph: Any, state: rolling.State) -> Any:
        is_wall = graph.nodes["features"][:, 1:] > 0.5
        state = state._replace(
            positions=jnp.where(is_wall, graph.nodes["positions"], state.positions),
            velocities=jnp.where(is_wall, 0.0, state.velocities),
        )
        return refresh(graph, state)

    return next_graph


def draw(record: Record) -> Figure:
    """Draws errors over time, and how they grow with the number of collisions."""
    figure, (left, right) = panels(2, 11, 4.2)
    bins = [f"up to {most}" for most in record["collisions"]]
    for name, entry in record["variants"].items():
        label = f"{name}: A-MSE {np.mean(entry['a_mse']):.4f}"
        style = "k-" if name == _PLAIN else "-"
        left.plot(record["times"], np.mean(entry["curve"], axis=0), style, label=label)
        right.plot(bins, entry["by_collisions"], style, marker="o")
    left.set(xlabel="frames after the initial state", ylabel="MSE of the positions")
    right.set(xlabel="collisions in the box, thirds of the boxes", ylabel="A-MSE")
    left.legend(fontsize=7)
    return figure


QUESTION = "How much do collisions cost a model of few Fourier modes, and what helps?"
STUDY = Study("rough", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
