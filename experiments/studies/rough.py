"""Rough dynamics: hard spheres that collide, where few Fourier modes should struggle.

    python -m experiments.studies.rough

Plain EGNO is compared with more modes, shorter windows, no temporal convolutions, and an additional
local convolution over time. All have the same data, steps and width.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

import egno_jax
from egno_jax import EGNOConfig, rolling
from egno_jax.baselines import BaselineConfig
from egno_jax.datasets import Samples, collisions, concatenate
from experiments.studies import paths
from experiments.studies.local import LocalConfig
from experiments.studies.study import Study, Workshop, main, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_PLAIN = "plain, 2 modes"
_LAST_FRAME = 64


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
      num_train: boxes to train on.
      num_test: boxes to test on; as many select the models.
      num_steps: training steps of each model.
      num_times: P over the window of 64 frames.
      modes: M of the variants with more modes.
      windows: numbers of shorter windows, which are rolled out.
      seeds: seeds of each variant.
    """

    num_train: int = 3000
    num_test: int = 1000
    num_steps: int = 1200
    num_times: int = 16
    modes: tuple[int, ...] = (4, 9)
    windows: tuple[int, ...] = (2, 4)
    seeds: tuple[int, ...] = (0,)


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, num_times=4, modes=(), windows=(2,)),
}


def measure(size: Size, workshop: Workshop) -> dict[str, Any]:
    """Trains the variants and measures their errors over the window.

    Returns:
      `variants`: for each, A-MSE and F-MSE a seed, the error at each time, and A-MSE in the thirds
      of the boxes with the fewest, some and the most collisions; `times`; `collisions`: the most
      in a box of each third.
    """
    numbers = {"train": size.num_train, "valid": size.num_test, "test": size.num_test}
    motions = {
        split: collisions.load_motion(split, num_boxes=number) for split, number in numbers.items()
    }
    spacing = _LAST_FRAME // size.num_times
    frames = tuple(range(spacing, _LAST_FRAME + 1, spacing))
    cut = {
        split: collisions.samples(motion, box=collisions.BOX, target_frames=frames)
        for split, motion in motions.items()
    }
    variants: dict[str, Any] = {}
    counts = motions["test"].num_collisions[:, _LAST_FRAME]
    thirds = np.array_split(np.argsort(counts, kind="stable"), 3)

    def note(name: str, positions: np.ndarray) -> None:
        real = positions[:, :, : collisions.NUM_SPHERES]
        squares = (real - cut["test"].positions[:, :, : collisions.NUM_SPHERES]) ** 2
        each = squares.mean(axis=(1, 2, 3))
        entry = variants.setdefault(name, {"a_mse": [], "f_mse": [], "curve": []})
        entry["a_mse"].append(float(squares.mean()))
        entry["f_mse"].append(float(squares[:, -1].mean()))
        entry["curve"].append([float(x) for x in squares.mean(axis=(0, 2, 3))])
        entry["by_collisions"] = [float(each[third].mean()) for third in thirds]

    for seed in size.seeds:
        settings = dataclasses.replace(paths.training_config(size.num_steps), seed=seed)
        for name, model in _models(size, spacing).items():
            params = workshop.train(
                f"{name} seed {seed}", model, settings, cut["train"], cut["valid"]
            )
            note(name, paths.decode(params, cut["test"], batch_size=100)[0])
        for count in size.windows:
            name = f"plain, {count} windows rolled out"
            note(name, _rolled(size, count, seed, workshop, motions, frames))
    return {
        "times": [float(frame) for frame in frames],
        "collisions": [int(counts[third[-1]]) for third in thirds],
        "variants": variants,
    }


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
    size: Size,
    count: int,
    seed: int,
    workshop: Workshop,
    motions: Mapping[str, collisions.Motion],
    frames: tuple[int, ...],
) -> np.ndarray:
    """Trains on shorter windows, with supervised velocities, and rolls them out."""
    num_times = len(frames) // count
    length = frames[num_times - 1]
    starts = range(0, _LAST_FRAME - length + 1, length)

    def windows(split: str) -> Samples:
        # As many samples as boxes: one window of each box.
        parts = [
            collisions.samples(
                collisions.Motion(*(field[index::count] for field in motions[split])),
                box=collisions.BOX,
                start=start,
                target_frames=[start + frame for frame in frames[:num_times]],
            )
            for index, start in enumerate(starts)
        ]
        return concatenate(*parts)

    model = dataclasses.replace(paths.MODEL, time_scale=frames[0])
    settings = paths.training_config(size.num_steps, velocity_weight=_velocity_weight(length))
    params = workshop.train(
        f"{count} windows seed {seed}",
        model,
        dataclasses.replace(settings, seed=seed),
        windows("train"),
        windows("valid"),
    )
    test = collisions.samples(motions["test"], box=collisions.BOX, target_frames=frames[:num_times])
    next_graph = _with_walls(rolling.refresh())
    roll = functools.partial(egno_jax.rollout, num_windows=count, next_graph=next_graph)
    return paths.decode(params, test, roll=roll)[0]


def _velocity_weight(length: int) -> float:
    """Returns a weight that makes errors of velocities count as much as those of positions."""
    return (length / 32 / 2) ** 2


def _with_walls(refresh: rolling.NextGraph) -> rolling.NextGraph:
    """Keeps the walls where they are, whatever the model predicts for them."""

    def next_graph(graph: Any, state: rolling.State) -> Any:
        is_wall = graph.nodes["features"][:, 1:] > 0.5
        still = jnp.where
        state = state._replace(
            positions=still(is_wall, graph.nodes["positions"], state.positions),
            velocities=still(is_wall, 0.0, state.velocities),
        )
        return refresh(graph, state)

    return next_graph


def draw(record: Mapping[str, Any]) -> Figure:
    """Draws errors over time, and how they grow with the number of collisions."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    low, high, most = record["collisions"]
    bins = [f"up to {low}", f"up to {high}", f"up to {most}"]
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
    sys.exit(main(STUDY, sys.argv[1:]))
