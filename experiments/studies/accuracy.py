"""What buys accuracy: layer, channels, convolutions, data and steps, at the error they give.

    python -m experiments.studies.accuracy

Models of the 5-body problem that differ from one of them in a single thing, trained alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from egno_jax import EGNOConfig, Params, training
from egno_jax.datasets import Samples, concatenate, nbody
from egno_jax.nn import VectorLayer, register_layer
from experiments.decoding import decode
from experiments.studies.paths import Budget
from experiments.studies.study import Figure, Record, Study, Workshop, main, panels

_TIME_SCALE = 2.0
_NUM_GROUPS = 5  # of test samples, by the distance of the closest pair


@register_layer("vector_alone")
class VectorsAlone(VectorLayer):
    """The layer `vector` without pseudo-vectors."""

    pseudovectors: bool = False


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs from the usual model, which has the layer `vector`.

    Attributes:
      group: what the difference is about.
      model: fields of `EGNOConfig`.
      off: a part of the paths of weights that are kept at zero; empty: none are.
      last_only: whether the last target alone is trained on and predicted.
      num_train: number of simulations to train on; None: the usual one.
      steps: training steps, as a multiple of the usual number.
    """

    group: str
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    off: str = ""
    last_only: bool = False
    num_train: int | None = None
    steps: float = 1.0


_CONVOLUTIONS = {
    "all": "temporal_conv",
    "h": "/temporal_conv/",
    "x, v": "vector_temporal_conv",
    "V, A": "temporal_conv_vectors",
}
VARIANTS = {
    "usual": Variant("usual"),
    "egnn": Variant("layer", {"layer": "egnn"}),
    "vector, no pseudo-vectors": Variant("layer", {"layer": "vector_alone"}),
    "steerable, l = 1": Variant("layer", {"layer": "steerable", "max_degree": 1}),
    "4 vectors": Variant("size", {"num_vectors": 4}),
    "32 vectors": Variant("size", {"num_vectors": 32}),
    "32 features": Variant("size", {"hidden_dim": 32}),
    "2 layers": Variant("size", {"num_layers": 2}),
    "6 layers": Variant("size", {"num_layers": 6}),
    **{f"not over time: {key}": Variant("time", off=off) for key, off in _CONVOLUTIONS.items()},
    "last frame alone": Variant("time", {"num_modes": 1}, last_only=True),
    "1000 simulations": Variant("data", num_train=1000),
    "10000 simulations": Variant("data", num_train=10000),
    "half the steps": Variant("steps", steps=0.5),
    "twice the steps": Variant("steps", steps=2),
    "4 times the steps": Variant("steps", steps=4),
}


@dataclasses.dataclass(frozen=True)
class Size(Budget):
    """How much is trained and tested, and which variants."""

    variants: tuple[str, ...] = tuple(VARIANTS)


SIZES = {
    "default": Size(),
    "smoke": Size(
        num_train=40,
        num_test=10,
        num_steps=2,
        batch_size=4,
        variants=("usual", "not over time: h", "last frame alone", "half the steps"),
    ),
}


def measure(size: Size, workshop: Workshop) -> Record:
    """Trains every variant once.

    Returns:
      `variants`: for each its group, F-MSE and A-MSE on the test set, number of weights, and
      milliseconds of a training step; `by_distance`: the F-MSE of the usual model on the test
      samples, divided by the smallest distance of a pair of bodies in the window.
    """
    numbers = size.per_split()
    numbers["train"] = max(VARIANTS[name].num_train or size.num_train for name in size.variants)
    paths = {
        split: nbody.load_trajectories(split, num_simulations=number)
        for split, number in numbers.items()
    }
    found = {}
    for name in size.variants:
        variant = VARIANTS[name]
        params = _trained(name, variant, size, workshop, paths)
        test = _cut(paths["test"], variant)
        errors = training.evaluate(params, test, batch_size=100)
        course = workshop.models[name]
        found[name] = {
            "group": variant.group,
            "f_mse": float(errors.f_mse),
            "a_mse": float(errors.a_mse),
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "ms_per_step": 1000 * course["train_seconds"] / course["steps"],
        }
        if name == "usual":
            by_distance = _by_distance(params, test, paths["test"])
    return {"variants": found, "by_distance": by_distance}


def _trained(
    name: str,
    variant: Variant,
    size: Size,
    workshop: Workshop,
    paths: Mapping[str, nbody.Trajectories],
) -> Params:
    num_train = variant.num_train or size.num_train
    train = nbody.Trajectories(*(field[:num_train] for field in paths["train"]))
    samples = concatenate(_cut(train, variant), _cut(train, variant, nbody.reversed_samples))
    usual = {"layer": "vector", "time_scale": _TIME_SCALE}
    model = EGNOConfig(**{**usual, **variant.model})
    num_steps = max(int(variant.steps * size.num_steps), 1)
    # The published rates of both kinds of layers.
    config = size.training(num_steps, learning_rate=2e-3 if model.layer == "egnn" else 4e-3)
    valid = _cut(paths["valid"], variant)
    return workshop.train(name, model, config, samples, valid, off=variant.off)


def _cut(paths: nbody.Trajectories, variant: Variant, cut: Any = nbody.samples) -> Samples:
    return cut(paths, target_frames=nbody.TARGET_FRAMES[-1 if variant.last_only else 0 :])


def _by_distance(
    params: Params, test: Samples, paths: nbody.Trajectories
) -> dict[str, list[float]]:
    """Returns the F-MSE of groups of samples, by the smallest distance of a pair of bodies."""
    window = paths.positions[:, nbody.START : nbody.TARGET_FRAMES[-1] + 1]
    pairs = np.triu_indices(window.shape[2], 1)
    gaps = window[:, :, pairs[0]] - window[:, :, pairs[1]]
    closest = np.linalg.norm(gaps, axis=-1).min(axis=(1, 2))
    predicted = decode(params, test, batch_size=100)[0]
    errors = np.mean((predicted[:, -1] - test.positions[:, -1]) ** 2, axis=(1, 2))
    groups = np.array_split(np.argsort(closest), _NUM_GROUPS)
    return {
        "distance": [float(closest[group].mean()) for group in groups],
        "f_mse": [float(errors[group].mean()) for group in groups],
    }


# What variants are called in the figure, where their names are too short.
_LABELS = {
    "usual": "usual: layer vector",
    "egnn": "layer egnn",
    "vector, no pseudo-vectors": "without pseudo-vectors",
    "steerable, l = 1": "layer steerable, l = 1",
    "not over time: all": "no temporal convolutions",
    "not over time: h": "none of features",
    "not over time: x, v": "none of positions, velocities",
    "not over time: V, A": "none of (pseudo-)vectors",
}


def draw(record: Record) -> Figure:
    """Draws the F-MSE and the cost of a step of all variants, and the F-MSE by closest pair."""
    figure, (errors, cost, near) = panels(3, 15, 5.5)
    variants = record["variants"]
    groups = dict.fromkeys(found["group"] for found in variants.values())
    colors = [f"C{[*groups].index(found['group'])}" for found in variants.values()]
    for axes, field in ((errors, "f_mse"), (cost, "ms_per_step")):
        axes.barh(range(len(variants)), [x[field] for x in variants.values()], color=colors)
        axes.axvline(variants["usual"][field], color="0.5", linewidth=0.8)
        axes.invert_yaxis()
    errors.set_title("each differs in one thing from the usual model (line)", fontsize=10)
    cost.set_title("cost of the same variants", fontsize=10)
    errors.set_yticks(range(len(variants)), [_LABELS.get(name, name) for name in variants])
    errors.set(xlabel="F-MSE (length units²)")
    cost.set_yticks([])
    cost.set(xlabel="milliseconds of a training step")
    near.plot(record["by_distance"]["distance"], record["by_distance"]["f_mse"], "o-")
    near.set(xlabel="distance of the closest pair in the window (length units)", yscale="log")
    near.set(ylabel="F-MSE (length units²)")
    near.set_title("the usual model, fifths of the test set", fontsize=10)
    return figure


QUESTION = "What makes a model of the 5-body problem accurate, and what does it cost?"
STUDY = Study("accuracy", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
