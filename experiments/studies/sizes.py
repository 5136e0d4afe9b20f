"""Systems of changing size: one model for 3 to 20 bodies, also tested on more bodies.

    python -m experiments.studies.sizes

Also bodies that appear or leave between two windows of a rollout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from egno_jax import Params, training
from egno_jax.datasets import Samples, concatenate, nbody
from egno_jax.datasets.buckets import padded
from experiments.decoding import decode, linear_baseline
from experiments.studies import paths
from experiments.studies.study import (
    Figure,
    Record,
    Study,
    Workshop,
    by_number,
    main,
    panels,
    ticks_at,
)

_NUM_TIMES = 5
_WINDOW_FRAMES = 10
_SPACING = _WINDOW_FRAMES // _NUM_TIMES  # frames
_BURN_IN = 5 * paths.STEPS_A_FRAME  # from the random state to the initial one
_SPEED = 0.5
_VELOCITY_WEIGHT = 0.1
_SEEDS = {"train": 0, "valid": 1, "test": 2}

_Fields = Sequence[np.ndarray]  # positions, velocities


@dataclasses.dataclass(frozen=True)
class Size:
    """Numbers of bodies, and of simulations for each of them."""

    train_bodies: tuple[int, ...] = tuple(range(3, 21))
    each: int = 100  # to train on; the model of one size has as many in all
    one_size: int = 5  # the bodies of the model that it is compared with
    test_bodies: tuple[int, ...] = (3, 5, 10, 20, 40)
    num_test: int = 100
    num_valid: int = 20  # to select the model on
    num_steps: int = 1000  # training steps
    changing: int = 10  # the bodies where some appear or leave


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


def simulate(seed: int, num_bodies: int, num_simulations: int) -> nbody.Trajectories:
    """Simulates charged systems of N bodies, as dense as the canonical ones of five.

    Returns:
      The initial states and five targets in a window of 10 frames.
    """
    rng = np.random.default_rng([seed, num_bodies])
    charges = rng.choice([-1.0, 1.0], (num_simulations, num_bodies))
    positions = rng.normal(size=(num_simulations, num_bodies, 3)) * (num_bodies / 5) ** (1 / 3)
    directions = rng.normal(size=positions.shape)
    velocities = _SPEED * directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    state = (positions, velocities, nbody.charge_products(charges))
    return _go_on(nbody.simulate(*state, num_frames=1, frame_spacing=_BURN_IN))


def _go_on(state: nbody.Trajectories) -> nbody.Trajectories:
    """Returns the last frame and the targets of the window after it."""
    last = state.positions[:, -1], state.velocities[:, -1]
    spacing = {"num_frames": _NUM_TIMES, "frame_spacing": _SPACING * paths.STEPS_A_FRAME}
    after = nbody.simulate(*last, state.couplings, **spacing)
    x, v = (
        np.concatenate([start[:, None], moved], axis=1)
        for start, moved in zip(last, after[:2], strict=True)
    )
    return nbody.Trajectories(x, v, state.couplings)


def _samples(motion: nbody.Trajectories) -> Samples:
    frames = np.arange(1, _NUM_TIMES + 1)
    cut = nbody.samples(motion, start=0, target_frames=frames)
    return cut._replace(times=(_SPACING * frames).astype(np.float32))


def measure(size: Size, workshop: Workshop) -> Record:
    """Trains a model on many sizes and one on a single size; tests both on all sizes.

    Returns:
      `a_mse`: by model and number of bodies, `x + v t` included; `changes`: mean squared errors of
      the second window of a rollout after a body left or appeared, or nothing changed.
    """
    low, high, count = min(size.train_bodies), max(size.train_bodies), len(size.train_bodies)

    def mixed(split: str, each: int) -> Samples:
        parts = (simulate(_SEEDS[split], bodies, each) for bodies in size.train_bodies)
        # One node and one edge more than the largest system has.
        nodes, edges = high + 1, high * (high - 1) + 1
        return concatenate(*(padded(_samples(part), nodes, edges) for part in parts))

    def of_one_size(split: str, each: int) -> Samples:
        return _samples(simulate(_SEEDS[split], size.one_size, count * each))

    model = dataclasses.replace(paths.MODEL, time_scale=_WINDOW_FRAMES / _NUM_TIMES)
    settings = paths.training_config(size.num_steps, velocity_weight=_VELOCITY_WEIGHT)

    def trained(name: str, samples: Callable[[str, int], Samples]) -> Params:
        sets = samples("train", size.each), samples("valid", size.num_valid)
        return workshop.train(name, model, settings, *sets)

    models = {
        f"{low} to {high} bodies": trained("mixed", mixed),
        f"{size.one_size} bodies": trained("one size", of_one_size),
    }
    found: dict[str, dict[str, float]] = {name: {} for name in (*models, "x + v t")}
    for bodies in size.test_bodies:
        test = _samples(simulate(_SEEDS["test"], bodies, size.num_test))
        for name, params in models.items():
            errors = training.evaluate(params, test, batch_size=25)
            found[name][str(bodies)] = float(errors.a_mse)
        straight, true = linear_baseline(test, nbody.DT * paths.STEPS_A_FRAME)
        found["x + v t"][str(bodies)] = float(np.mean((straight - true) ** 2))
    first = next(iter(models.values()))
    return {"a_mse": found, "changes": _changes(size, first)}


def _changes(size: Size, params: Params) -> dict[str, dict[str, float]]:
    """Returns errors of the second window for the bodies that are in both windows."""
    bodies = size.changing
    motion = simulate(_SEEDS["test"], bodies + 1, size.num_test)
    found: dict[str, dict[str, float]] = {}
    for name, before, after in (
        ("nothing changes", bodies, bodies),
        ("one leaves", bodies + 1, bodies),
        ("one appears", bodies, bodies + 1),
    ):
        couplings = motion.couplings[:, :before, :before]
        first = _go_on(nbody.Trajectories(*(x[:, :1, :before] for x in motion[:2]), couplings))
        couplings = motion.couplings[:, :after, :after]
        end = _with_newcomers(first[:2], motion[:2], after)
        truth = _go_on(nbody.Trajectories(*end, couplings))
        predicted = _with_newcomers(decode(params, _samples(first)), end, after)
        later = [field[:, 1:] for field in truth[:2]]
        joined = (np.concatenate(x, axis=1) for x in zip(predicted, later, strict=True))
        state = nbody.Trajectories(*joined, couplings)
        for label, start in (("from the prediction", state), ("from the truth", truth)):
            second = _samples(start)
            positions = np.asarray(decode(params, second)[0], np.float64)
            squares = (positions - second.positions)[:, :, : min(before, after)] ** 2
            found.setdefault(name, {})[label] = float(np.mean(squares))
    return found


def _with_newcomers(own: _Fields, others: _Fields, count: int) -> _Fields:
    """Returns the last frames of the first `count` bodies of `own`, filled up from `others`."""
    have = min(own[0].shape[2], count)
    return [
        np.concatenate([mine[:, -1:, :have], theirs[:, -1:, have:count]], axis=2, dtype=np.float64)
        for mine, theirs in zip(own, others, strict=True)
    ]


def draw(record: Record) -> Figure:
    """Draws A-MSE against the number of bodies, and the second windows of changed systems."""
    figure, (left, right) = panels(2, 10, 4)
    for name, errors in record["a_mse"].items():
        is_line = name == "x + v t"
        label = name if is_line else f"trained on {name}"
        by_number(left, errors, ":" if is_line else "-", label=label)
    left.set(xscale="log", yscale="log", xlabel="bodies", ylabel="A-MSE")
    ticks_at(left, errors)
    left.legend(fontsize=8)
    changes = record["changes"]
    for index, label in enumerate(next(iter(changes.values()))):
        heights = [entry[label] for entry in changes.values()]
        right.bar(np.arange(len(changes)) + 0.35 * index, heights, 0.35, label=label)
    right.set_xticks(np.arange(len(changes)) + 0.175, list(changes))
    right.set(ylabel="A-MSE of the second window")
    right.margins(y=0.2)  # room for the legend
    right.legend(fontsize=8, loc="upper center", ncols=2)
    return figure


QUESTION = "Does one model serve systems of many sizes, and of sizes that it has not seen?"
STUDY = Study("sizes", QUESTION, SIZES, measure, draw)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
