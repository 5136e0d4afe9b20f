"""Systems of changing size: one model for 3 to 20 bodies, also tested on more bodies.

    python -m experiments.studies.sizes

Also bodies that appear or leave between two windows of a rollout.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import egno_jax
from egno_jax import training
from egno_jax.datasets import Samples, concatenate, nbody, num_samples
from experiments.studies import paths
from experiments.studies.study import Study, Workshop, main, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from egno_jax import Params

_NUM_TIMES = 5
_WINDOW_FRAMES = 10
_SPACING = _WINDOW_FRAMES * paths.STEPS_A_FRAME // _NUM_TIMES
# Frames from the random state to the initial one.
_BURN_IN = 5
_SPEED = 0.5
_VELOCITY_WEIGHT = 0.1
_SEEDS = {"train": 0, "valid": 1, "test": 2}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
      train_bodies: numbers of bodies that the mixed model is trained on.
      each: simulations of each number; the model of one size is trained on as many in all.
      one_size: the number of bodies of the model that it is compared with.
      test_bodies: numbers of bodies to test on.
      num_test: simulations of each number to test on.
      num_valid: simulations of each number to select the model on.
      num_steps: training steps.
      changing: the number of bodies where some appear or leave.
    """

    train_bodies: tuple[int, ...] = tuple(range(3, 21))
    each: int = 100
    one_size: int = 5
    test_bodies: tuple[int, ...] = (3, 5, 10, 20, 40)
    num_test: int = 100
    num_valid: int = 20
    num_steps: int = 1000
    changing: int = 10


SIZES = {
    "default": Size(),
    "smoke": Size(
        train_bodies=(3, 4),
        each=25,
        one_size=3,
        test_bodies=(3, 5),
        num_test=4,
        num_valid=4,
        num_steps=2,
        changing=4,
    ),
}


def simulate(seed: int, num_bodies: int, num_simulations: int, num_windows: int = 1) -> Any:
    """Simulates charged systems of N bodies, as dense as the canonical ones of five.

    Returns:
      The initial states and five targets for each window of 10 frames.
    """
    rng = np.random.default_rng([seed, num_bodies])
    charges = rng.choice([-1.0, 1.0], (num_simulations, num_bodies))
    positions = rng.normal(size=(num_simulations, num_bodies, 3)) * (num_bodies / 5) ** (1 / 3)
    directions = rng.normal(size=positions.shape)
    velocities = _SPEED * directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    couplings = nbody.charge_products(charges)
    start = nbody.simulate(
        positions,
        velocities,
        couplings,
        num_frames=1,
        frame_spacing=_BURN_IN * paths.STEPS_A_FRAME,
    )
    return _go_on(start, num_windows)


def _go_on(state: nbody.Trajectories, num_windows: int) -> nbody.Trajectories:
    """Returns the last frame and the targets after it."""
    x, v = state.positions[:, -1], state.velocities[:, -1]
    after = nbody.simulate(
        x, v, state.couplings, num_frames=num_windows * _NUM_TIMES, frame_spacing=_SPACING
    )
    return nbody.Trajectories(
        np.concatenate([x[:, None], after.positions], axis=1),
        np.concatenate([v[:, None], after.velocities], axis=1),
        state.couplings,
    )


def _samples(motion: nbody.Trajectories) -> Samples:
    cut = nbody.samples(motion, start=0, target_frames=range(1, _NUM_TIMES + 1))
    spacing = _SPACING / paths.STEPS_A_FRAME
    return cut._replace(times=(spacing * np.arange(1, _NUM_TIMES + 1)).astype(np.float32))


def padded(samples: Samples, num_bodies: int) -> Samples:
    """Pads samples to the nodes and edges of a larger system, plus one node and one edge."""
    size = {
        "num_nodes": num_bodies + 1,
        "num_edges": num_bodies * (num_bodies - 1) + 1,
        "num_graphs": 2,
    }
    graphs, masks = zip(
        *(
            egno_jax.graph.pad(jax.tree.map(lambda leaf, i=i: leaf[i], samples.graph), **size)
            for i in range(num_samples(samples))
        ),
        strict=True,
    )
    missing = size["num_nodes"] - samples.positions.shape[2]
    grow = [(0, 0), (0, 0), (0, missing), (0, 0)]
    return samples._replace(
        graph=jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(list(graphs))),
        positions=np.pad(samples.positions, grow),
        velocities=np.pad(samples.velocities, grow),
        node_mask=np.stack(jax.device_get(list(masks))),
    )


def measure(size: Size, workshop: Workshop) -> dict[str, Any]:
    """Trains a model on many sizes and one on a single size; tests both on all sizes.

    Returns:
      `a_mse`: by model and number of bodies, `x + v t` included; `changes`: mean squared errors of
      the second window of a rollout after a body left or appeared, or nothing changed.
    """
    largest = max(size.train_bodies)

    def mixed(split: str, each: int) -> Samples:
        parts = [
            padded(_samples(simulate(_SEEDS[split], bodies, each)), largest)
            for bodies in size.train_bodies
        ]
        return concatenate(*parts)

    def of_one_size(split: str, number: int) -> Samples:
        return _samples(simulate(_SEEDS[split], size.one_size, number))

    count = len(size.train_bodies)
    model = dataclasses.replace(paths.MODEL, time_scale=_WINDOW_FRAMES / _NUM_TIMES)
    settings = paths.training_config(size.num_steps, velocity_weight=_VELOCITY_WEIGHT)
    low, high = min(size.train_bodies), largest
    models = {
        f"{low} to {high} bodies": workshop.train(
            "mixed", model, settings, mixed("train", size.each), mixed("valid", size.num_valid)
        ),
        f"{size.one_size} bodies": workshop.train(
            "one size",
            model,
            settings,
            of_one_size("train", count * size.each),
            of_one_size("valid", count * size.num_valid),
        ),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in (*models, "x + v t")}
    for bodies in size.test_bodies:
        test = _samples(simulate(_SEEDS["test"], bodies, size.num_test))
        for name, params in models.items():
            errors = training.evaluate(params, test, batch_size=25)
            found[name][str(bodies)] = float(errors.a_mse)
        nodes = test.graph.nodes
        duration = test.times[:, None, None] * nbody.DT * paths.STEPS_A_FRAME
        straight = nodes["positions"][:, None] + duration * nodes["velocities"][:, None]
        found["x + v t"][str(bodies)] = float(np.mean((straight - test.positions) ** 2))
    first = next(iter(models.values()))
    return {"a_mse": found, "changes": _changes(size, first)}


def _changes(size: Size, params: Params) -> dict[str, dict[str, float]]:
    """Returns errors of the second window for the bodies that are in both windows."""
    bodies = size.changing
    motion = simulate(_SEEDS["test"], bodies + 1, size.num_test)
    found = {}
    for name, before, after in (
        ("nothing changes", bodies, bodies),
        ("one leaves", bodies + 1, bodies),
        ("one appears", bodies, bodies + 1),
    ):
        first = _go_on(_first_bodies(motion, before, frames=1), 1)
        end = nbody.Trajectories(
            *(_with_newcomers(getattr(first, f)[:, -1:], getattr(motion, f)[:, -1:], after)
              for f in ("positions", "velocities")),
            motion.couplings[:, :after, :after],
        )  # fmt: skip
        truth = _go_on(end, 1)
        decoded = paths.decode(params, _samples(first))
        predicted = [np.asarray(field, np.float64)[:, -1:] for field in decoded]
        state = nbody.Trajectories(
            *(
                np.concatenate([_with_newcomers(own, exact[:, :1], after), exact[:, 1:]], axis=1)
                for own, exact in zip(predicted, truth[:2], strict=True)
            ),
            truth.couplings,
        )
        both = min(before, after)
        results = {}
        for label, motion_of in (("from the prediction", state), ("from the truth", truth)):
            second = _samples(motion_of)
            positions = np.asarray(paths.decode(params, second)[0], np.float64)
            squares = (positions - second.positions)[:, :, :both] ** 2
            results[label] = float(np.mean(squares))
        found[name] = results
    return found


def _first_bodies(motion: nbody.Trajectories, count: int, *, frames: int) -> nbody.Trajectories:
    return nbody.Trajectories(
        motion.positions[:, :frames, :count],
        motion.velocities[:, :frames, :count],
        motion.couplings[:, :count, :count],
    )


def _with_newcomers(own: np.ndarray, others: np.ndarray, count: int) -> np.ndarray:
    """Returns the first `count` bodies of `own`, filled up from `others`."""
    have = min(own.shape[2], count)
    return np.concatenate([own[:, :, :have], others[:, :, have:count]], axis=2)


def draw(record: Mapping[str, Any]) -> Figure:
    """Draws A-MSE against the number of bodies, and the second windows of changed systems."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for name, errors in record["a_mse"].items():
        style = ":" if name == "x + v t" else "-"
        label = name if name == "x + v t" else f"trained on {name}"
        bodies = [int(number) for number in errors]
        left.plot(bodies, list(errors.values()), style, marker="o", label=label)
    left.set(xscale="log", yscale="log", xlabel="bodies", ylabel="A-MSE")
    left.set_xticks(bodies, bodies)
    left.minorticks_off()
    left.legend(fontsize=8)
    changes = record["changes"]
    for index, label in enumerate(next(iter(changes.values()))):
        heights = [entry[label] for entry in changes.values()]
        right.bar(np.arange(len(changes)) + 0.35 * index, heights, 0.35, label=label)
    right.set_xticks(np.arange(len(changes)) + 0.175, list(changes))
    right.set(ylabel="A-MSE of the second window")
    right.legend(fontsize=8, loc="center right")
    return figure


QUESTION = "Does one model serve systems of many sizes, and of sizes that it has not seen?"
STUDY = Study("sizes", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY, sys.argv[1:]))
