"""Symmetry in practice: the error of a trained model's equivariance, at each precision.

    python -m experiments.studies.symmetry

The error of a prediction from a rotated, reflected or shifted state is split in two: what rounding
of the input has lost before the model saw it, and what the model adds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import numpy as np

import egno_jax
from egno_jax import Params
from egno_jax.datasets import Batch, num_samples, take
from experiments.studies import paths
from experiments.studies.study import Figure, Record, Study, Workshop, main, panels

if TYPE_CHECKING:
    from jaxtyping import Float

_NUM_TIMES = 5
_WINDOW_FRAMES = 10


@dataclasses.dataclass(frozen=True)
class Size(paths.Size):
    """How much is trained, and on how many states what is tried."""

    num_test: int = 200
    num_steps: int = 2400
    num_draws: int = 5  # random axes or directions of each transformation
    shifts: tuple[float, ...] = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # in sizes of the system


SIZES = {
    "default": Size(),
    "smoke": Size(num_train=30, num_test=10, num_steps=2, num_draws=1, shifts=(1.0, 1e3)),
}

_Motion = tuple[np.ndarray, ...]  # positions, velocities


def measure(size: Size, workshop: Workshop) -> Record:
    """Trains a model and measures its errors under transformations of its input.

    Returns:
      `errors`: for each transformation the largest error of a position, relative to the largest
      distance from the centre: `input`, `model` and `total` in float32, `float64`, and `bfloat16`.
    """
    steps = paths.uniform_steps(_NUM_TIMES, _WINDOW_FRAMES)
    train, valid, test = paths.cut_splits(paths.simulate_splits(size, steps), steps)
    model = dataclasses.replace(paths.MODEL, time_scale=_WINDOW_FRAMES / _NUM_TIMES)
    settings = paths.training_config(size.num_steps)
    params = workshop.train("5 bodies", model, settings, train, valid)
    batch = jax.device_get(take(test, np.arange(num_samples(test))))
    with jax.enable_x64(True):
        reach = float(np.abs(batch.graph.nodes["positions"]).max())
        errors: dict[str, dict[str, float]] = {}
        for name, turn, shift in _transformations(size, reach):
            worst = errors.setdefault(name, {})
            for kind, error in _errors(params, batch, turn, shift).items():
                worst[kind] = max(worst.get(kind, 0.0), error)
    return {"errors": errors}


def _transformations(
    size: Size, reach: float
) -> list[tuple[str, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]]:
    """Returns names, orthogonal matrices and translations."""
    rng = np.random.default_rng(0)
    angles = {"1": 1.0, "pi - 0.001": np.pi - 1e-3, "pi - 0.000001": np.pi - 1e-6, "pi": np.pi}
    still, made = np.zeros(3), []
    for _ in range(size.num_draws):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        made += [(f"turn by {name}", _rotation(axis, x), still) for name, x in angles.items()]
        made.append(("reflection", np.eye(3) - 2 * np.outer(axis, axis), still))
        made.append(("inversion", -np.eye(3), still))
        made += [(f"shift by {s:g} sizes", np.eye(3), s * reach * axis) for s in size.shifts]
    return made


def _rotation(axis: Float[np.ndarray, "3"], angle: float) -> Float[np.ndarray, "3 3"]:
    """Returns the rotation about an axis of length 1 (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _errors(
    params: Params, batch: Batch, turn: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"]
) -> dict[str, float]:
    """Returns the errors of one transformation, by kind."""
    decode = functools.partial(_decode, params, batch)
    state = _as_type(np.float64, *(batch.graph.nodes[key] for key in ("positions", "velocities")))
    moved = (state[0] @ turn.T + shift, state[1] @ turn.T)
    rounded = _as_type(np.float32, *moved)
    unmoved = decode(state, "float64")
    expected = unmoved @ turn.T + shift
    reach = np.abs(unmoved).max()

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(np.subtract(*_as_type(np.float64, a, b))).max() / reach)

    exact_of_rounded = decode(_as_type(np.float64, *rounded), "float64")
    single = decode(rounded, "float32")
    (half,) = _as_type(np.float64, decode(_as_type(np.float32, *state), "bfloat16"))
    return {
        "input": apart(exact_of_rounded, expected),
        "model": apart(single, exact_of_rounded),
        "total": apart(single, expected),
        "float64": apart(decode(moved, "float64"), expected),
        "bfloat16": apart(decode(rounded, "bfloat16"), half @ turn.T + shift),
    }


def _as_type(dtype: type, *arrays: np.ndarray) -> _Motion:
    return tuple(np.asarray(array, dtype) for array in arrays)


def _decode(params: Params, batch: Batch, state: _Motion, dtype: str) -> np.ndarray:
    """Returns positions decoded from a state in place of the batch's, at a precision."""
    wide = np.float64 if dtype == "float64" else np.float32
    half = "bfloat16" if dtype == "bfloat16" else None
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, wide), params.weights)
    model = Params(weights=weights, config=dataclasses.replace(params.config, dtype=half))
    graph = jax.tree.map(lambda x: x.astype(wide) if x.dtype.kind == "f" else x, batch.graph)
    nodes = {**graph.nodes, "positions": state[0], "velocities": state[1]}
    times = np.asarray(batch.times, wide)
    return np.asarray(_apply(model, graph._replace(nodes=nodes), times).positions)


_apply = jax.jit(egno_jax.apply)


def draw(record: Record) -> Figure:
    """Draws the errors, one group of bars for each transformation; "0" marks an exact zero."""
    kinds = {
        "input": "float32: lost by rounding the input",
        "model": "float32: added by the model",
        "float64": "float64, all together",
        "bfloat16": "bfloat16 products",
    }
    names = list(record["errors"])
    figure, (axes,) = panels(1, 10, 4.5)
    width = 0.8 / len(kinds)
    for index, (kind, label) in enumerate(kinds.items()):
        heights = np.array([record["errors"][name][kind] for name in names])
        places = np.arange(len(names)) + index * width
        is_zero = heights == 0  # a logarithmic axis has no place for it
        bars = axes.bar(places[~is_zero], heights[~is_zero], width, label=label)
        look = {"color": bars[0].get_facecolor(), "ha": "center", "va": "bottom", "fontsize": 8}
        for place in places[is_zero]:
            axes.text(place, 0.01, "0", transform=axes.get_xaxis_transform(), **look)
    axes.set_xticks(np.arange(len(names)) + 0.3, names, rotation=30, ha="right", fontsize=8)
    axes.set(yscale="log", ylabel="largest error / size of the motion")
    figure.legend(fontsize=8, ncols=len(kinds), loc="outside upper center")
    return figure


QUESTION = "How much of its symmetry does rounding leave a trained model?"
STUDY = Study("symmetry", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
