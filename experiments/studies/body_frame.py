"""Kernel regression for one skeleton: how much of motion capture's error is due to the windows.

    EGNO_DATA_DIR=data python -m experiments.studies.body_frame

Unlike EGNO the regression knows every joint by name and is given the body's own axes, so it cannot
serve a second skeleton; its error shows how much the training windows determine. It is kernel ridge
regression on positions and velocities z of all joints in the frame of the body,

    x(30) - x(0) = mean + sum_s a_s k(z, z_s),
    k(z, z') = exp(-|z - z'|^2 / (2 l m)) + c z . z' / m,    m = median |z_s - z_t|^2,

with the weight of velocities in z, l, c and the ridge chosen on the validation set. It is fitted to
the windows as recorded, and to these and their mirror images with left and right joints exchanged,
which an equivariant model knows from its symmetry.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from egno_jax.datasets import mocap
from experiments import run_records
from experiments.studies.study import Figure, Record, Study, Workshop, main, panels

if TYPE_CHECKING:
    from jaxtyping import Float

# Joints of CMU's skeleton in the order of its files: left leg, right leg, trunk and head, left arm,
# right arm; and the joint that each becomes in a mirror image.
_ROOT, _HEAD = 0, 16
SWAPPED = np.r_[0, 6:11, 1:6, 11:17, 24:31, 17:24]
_MIRRORED = np.array([1.0, 1.0, -1.0])


@dataclasses.dataclass(frozen=True)
class Size:
    """Which motions, and the settings to choose from."""

    motions: tuple[str, ...] = ("run", "walk")
    velocity_weights: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0)  # (per frame) over positions
    lengths: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # l
    linear: tuple[float, ...] = (0.0, 1.0)  # c
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)  # added to the kernel's diagonal


SIZES = {
    "default": Size(),
    "smoke": Size(motions=("walk",), velocity_weights=(10.0,), lengths=(1.0,), ridges=(1e-2,)),
}


class States(NamedTuple):
    """S windows in the frames of their bodies: first axis forward, second up, third sideways.

    Attributes:
      positions: `[S, N, 3]`, at the initial frame, relative to the mean of the joints.
      velocities: `[S, N, 3]`, per frame.
      moves: `[S, N, 3]`, displacements from the initial to the last frame.
    """

    positions: Float[np.ndarray, "S N 3"]
    velocities: Float[np.ndarray, "S N 3"]
    moves: Float[np.ndarray, "S N 3"]


def in_body_frame(windows: Float[np.ndarray, "S W N 3"]) -> States:
    """Rotates windows so that the body moves along the first axis and is upright along the second.

    Up is from the root to the head; forward is the component of the mean velocity across it.
    Windows are `[S, 32, N, 3]`, as `mocap.load_windows` gives them.
    """
    positions, velocities = windows[:, 0], windows[:, 1] - windows[:, 0]
    up = _unit(positions[:, _HEAD] - positions[:, _ROOT])
    drift = velocities.mean(1)
    ahead = _unit(drift - np.sum(drift * up, axis=-1, keepdims=True) * up)
    axes = np.stack([ahead, up, np.cross(ahead, up)], axis=1)
    offsets = positions - positions.mean(1, keepdims=True)
    moves = windows[:, mocap.HORIZON] - positions
    return States(*(np.einsum("sij,snj->sni", axes, x) for x in (offsets, velocities, moves)))


def _unit(vectors: Float[np.ndarray, "S 3"]) -> Float[np.ndarray, "S 3"]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def with_mirror_images(states: States) -> States:
    """Returns the states, followed by their mirror images."""
    return States(*(np.concatenate([x, x[:, SWAPPED] * _MIRRORED]) for x in states))


def regress(train: States, valid: States, test: States, size: Size) -> dict[str, float]:
    """Fits all settings of a size to `train`; returns the best on `valid` and its errors."""
    sets = (train, valid, test)
    fitted, *unseen = (_flat(states.moves - train.moves.mean(0)) for states in sets)
    best: dict[str, float] = {"valid_f_mse": np.inf}
    for weight in size.velocity_weights:
        inputs = [_flat(states.positions, weight * states.velocities) for states in sets]
        inputs = [each - inputs[0].mean(0) for each in inputs]
        distances = [_squared_distances(each, inputs[0]) for each in inputs]
        products = [each @ inputs[0].T for each in inputs]
        median = np.median(distances[0])
        for length, linear in itertools.product(size.lengths, size.linear):
            kernels = [
                np.exp(-distance / (2 * length * median)) + linear * product / median
                for distance, product in zip(distances, products, strict=True)
            ]
            for ridge in size.ridges:
                factors = np.linalg.solve(kernels[0] + ridge * np.eye(len(fitted)), fitted)
                errors = [
                    float(np.mean((kernel @ factors - targets) ** 2))
                    for kernel, targets in zip(kernels[1:], unseen, strict=True)
                ]
                if errors[0] < best["valid_f_mse"]:
                    best = {"velocity_weight": weight, "length": length, "linear": linear}
                    best |= {"ridge": ridge, "valid_f_mse": errors[0], "f_mse": errors[1]}
    return best


def _flat(*fields: Float[np.ndarray, "S N 3"]) -> Float[np.ndarray, "S D"]:
    return np.concatenate([field.reshape(len(field), -1) for field in fields], axis=1)


def _squared_distances(
    left: Float[np.ndarray, "A D"], right: Float[np.ndarray, "B D"]
) -> Float[np.ndarray, "A B"]:
    squares = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1)
    return np.maximum(squares - 2 * left @ right.T, 0)


def measure(size: Size, workshop: Workshop) -> Record:
    """Measures the `errors` of the regression by motion and training set."""
    errors: dict[str, Any] = {}
    for motion in size.motions:
        windows = (
            mocap.load_windows(motion, split, num_samples=number).positions
            for split, number in mocap.PUBLISHED_SIZES[motion].items()
        )
        train, valid, test = (in_body_frame(np.asarray(positions)) for positions in windows)
        errors[motion] = {
            "as recorded": regress(train, valid, test, size),
            "mirrored too": regress(with_mirror_images(train), valid, test, size),
        }
    return {"errors": errors}


# The published configs of EGNO to compare with, by motion and label.
_EGNO = {
    "run": {"EGNO": "run", "EGNO,\njoints given": "run-joints"},
    "walk": {"EGNO": "walk", "EGNO, kinds of\njoints given": "walk-kinds"},
}


def published(config: str) -> dict[str, float]:
    """Returns the errors of a published config of motion capture, means over its seeds."""
    (row,) = (
        row for row in run_records.load() if (row.experiment.name, row.config) == ("mocap", config)
    )
    return {field: row.mean(field) for field in ("valid_f_mse", "f_mse")}


def draw(record: Record) -> Figure:
    """Draws the errors and those of EGNO in `results.jsonl`, one panel for each motion."""
    figure, all_axes = panels(len(record["errors"]), 13, 3.8)
    for axes, (motion, variants) in zip(all_axes, record["errors"].items(), strict=True):
        groups = {f"regression,\n{name}": found for name, found in variants.items()}
        groups |= {label: published(config) for label, config in _EGNO[motion].items()}
        places = np.arange(len(groups))
        for shift, field, label in ((-0.2, "valid_f_mse", "validation"), (0.2, "f_mse", "test")):
            heights = [found[field] for found in groups.values()]
            bars = axes.bar(places + shift, heights, 0.38, label=label)
            axes.bar_label(bars, fmt="%#.3g", fontsize=8)
        axes.set_xticks(places, list(groups))
        axes.margins(y=0.3)  # room for the legend
        axes.set(ylabel="F-MSE, (5.64 cm)²", title=f"motion capture, {motion}")
    axes.legend(fontsize=8)
    return figure


QUESTION = "How much of motion capture's errors is due to the windows there are to learn from?"
STUDY = Study("body_frame", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
