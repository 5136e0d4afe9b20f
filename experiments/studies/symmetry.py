"""Symmetry in practice: the error of a trained model's equivariance, at each precision.

    python -m experiments.studies.symmetry

The error of a prediction from a rotated, reflected or shifted state is split in two: what rounding
of the input has lost before the model saw it, and what the model adds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import egno_jax
from egno_jax.datasets import Batch, num_samples, take
from experiments.studies import paths
from experiments.studies.study import Study, Workshop, main

if TYPE_CHECKING:
    from jaxtyping import Float
    from matplotlib.figure import Figure

    from egno_jax import Params

_NUM_TIMES = 5
_WINDOW_FRAMES = 10


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
      num_train: simulations to train on.
      num_test: states that are transformed; as many select the model.
      num_steps: training steps.
      num_draws: random axes or directions of each transformation.
      shifts: lengths of translations, in sizes of the system.
    """

    num_train: int = 3000
    num_test: int = 200
    num_steps: int = 2400
    num_draws: int = 5
    shifts: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, num_draws=1, shifts=(1.0, 1e3)),
}

_Motion = tuple[np.ndarray, np.ndarray]


def measure(size: Size, workshop: Workshop) -> dict[str, Any]:
    """Trains a model and measures its errors under transformations of its input.

    Returns:
      `errors`: for each transformation the largest error of a position, relative to the largest
      distance from the centre: `input`, `model` and `total` in float32, `float64`, and `bfloat16`.
    """
    steps = paths.uniform_steps(_NUM_TIMES, _WINDOW_FRAMES * paths.STEPS_A_FRAME)
    moved = paths.simulate_splits(size, steps)
    cut = {split: paths.samples_at(part, steps) for split, part in moved.items()}
    model = dataclasses.replace(paths.MODEL, time_scale=_WINDOW_FRAMES / _NUM_TIMES)
    settings = paths.training_config(size.num_steps)
    params = workshop.train("5 bodies", model, settings, cut["train"], cut["valid"])
    batch = take(cut["test"], np.arange(num_samples(cut["test"])))
    batch = jax.device_get(batch)
    with jax.enable_x64(True):
        reach = float(np.abs(batch.graph.nodes["positions"]).max())
        errors: dict[str, dict[str, float]] = {}
        for name, turn, shift in _transformations(size, reach):
            found = _errors(params, batch, turn, shift)
            worst = errors.setdefault(name, {})
            for kind, error in found.items():
                worst[kind] = max(worst.get(kind, 0.0), error)
    return {"errors": errors}


def _transformations(
    size: Size, reach: float
) -> list[tuple[str, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]]:
    """Returns names, orthogonal matrices and translations."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(size.num_draws):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        for name, angle in (
            ("turn by 1", 1.0),
            ("turn by pi - 0.001", np.pi - 1e-3),
            ("turn by pi - 0.000001", np.pi - 1e-6),
            ("turn by pi", np.pi),
        ):
            made.append((name, _rotation(axis, angle), np.zeros(3)))
        made.append(("reflection", np.eye(3) - 2 * np.outer(axis, axis), np.zeros(3)))
        made.append(("inversion", -np.eye(3), np.zeros(3)))
        made += [(f"shift by {s:g} sizes", np.eye(3), s * reach * axis) for s in size.shifts]
    return made


def _rotation(axis: Float[np.ndarray, "3"], angle: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation about an axis of length 1 (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _errors(
    params: Params,
    batch: Batch,
    turn: Float[np.ndarray, "3 3"],
    shift: Float[np.ndarray, "3"],
) -> dict[str, float]:
    nodes = batch.graph.nodes
    state = tuple(np.asarray(nodes[key], np.float64) for key in ("positions", "velocities"))
    moved = (state[0] @ turn.T + shift, state[1] @ turn.T)
    rounded = tuple(np.asarray(field, np.float32) for field in moved)
    decode = _decoder(params, batch)
    expected = decode(state, "float64") @ turn.T + shift
    reach = np.abs(decode(state, "float64")).max()

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() / reach)

    exact_of_rounded = decode(tuple(np.asarray(x, np.float64) for x in rounded), "float64")
    single = decode(rounded, "float32")
    unmoved = tuple(np.asarray(field, np.float32) for field in state)
    half_expected = np.asarray(decode(unmoved, "bfloat16"), np.float64) @ turn.T + shift
    return {
        "input": apart(exact_of_rounded, expected),
        "model": apart(single, exact_of_rounded),
        "total": apart(single, expected),
        "float64": apart(decode(moved, "float64"), expected),
        "bfloat16": apart(decode(rounded, "bfloat16"), half_expected),
    }


def _decoder(params: Params, batch: Batch) -> Callable[[_Motion, str], np.ndarray]:
    """Returns a function that decodes positions from a state at a precision."""

    def decode(state: _Motion, dtype: str) -> np.ndarray:
        wide = np.float64 if dtype == "float64" else np.float32
        config = dataclasses.replace(
            params.config, dtype="bfloat16" if dtype == "bfloat16" else None
        )
        weights = jax.tree.map(lambda leaf: np.asarray(leaf, wide), params.weights)
        graph = jax.tree.map(
            lambda leaf: leaf.astype(wide) if leaf.dtype.kind == "f" else leaf, batch.graph
        )
        positions, velocities = state
        nodes = {**graph.nodes, "positions": positions, "velocities": velocities}
        model = egno_jax.Params(weights=weights, config=config)
        times = np.asarray(batch.times, wide)
        return np.asarray(_apply(model, graph._replace(nodes=nodes), times).positions)

    return decode


_apply = jax.jit(egno_jax.apply)


def draw(record: Mapping[str, Any]) -> Figure:
    """Draws the errors, one group of bars for each transformation."""
    from matplotlib.figure import Figure

    kinds = {
        "input": "float32: lost by rounding the input",
        "model": "float32: added by the model",
        "float64": "float64, all together",
        "bfloat16": "bfloat16 products",
    }
    names = list(record["errors"])
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(kinds)
    for index, (kind, label) in enumerate(kinds.items()):
        heights = [max(record["errors"][name][kind], 1e-17) for name in names]
        axes.bar(np.arange(len(names)) + index * width, heights, width, label=label)
    axes.set_xticks(np.arange(len(names)) + 0.3, names, rotation=30, ha="right", fontsize=8)
    axes.set(yscale="log", ylabel="largest error / size of the motion")
    figure.legend(fontsize=8, ncols=len(kinds), loc="outside upper center")
    return figure


QUESTION = "How much of its symmetry does rounding leave a trained model?"
STUDY = Study("symmetry", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY, sys.argv[1:]))
