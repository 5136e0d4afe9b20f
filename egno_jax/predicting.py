"""Predictions of a model that knows its recipe: from a state of the data to positions in time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checkpoint import load
from egno_jax.checks import (
    as_array,
    as_count,
    as_window_times,
    check_array,
    check_bound,
    type_name,
)
from egno_jax.durations import FEMTOSECOND, FRAME, Duration, convert, format_time, parse
from egno_jax.extras import require
from egno_jax.model import Params, apply
from egno_jax.recipe import GraphRecipe, State, checked_state, graph_of

if TYPE_CHECKING:
    import ase
    from jaxtyping import Float

_apply = jax.jit(apply)


class Prediction(NamedTuple):
    """Predicted motion of one system, in the units of the data.

    Attributes:
      times: `[P]`, from the initial state, in `time_unit`.
      positions: `[P, N, 3]`.
      velocities: `[P, N, 3]`, length per `time_unit`; None if the model was not trained on them.
      time_unit: `"fs"` or `"frame"`.
      state: the initial state.
      first_invalid: the first window that is not finite, is out of bounds, or starts from a state
        without a graph, as no nodes are within the cutoff; the prediction ends before it. None: all
        are valid.
    """

    times: Float[np.ndarray, "P"]
    positions: Float[np.ndarray, "P N 3"]
    velocities: Float[np.ndarray, "P N 3"] | None
    time_unit: str
    state: State
    first_invalid: int | None = None


def predict(
    model: Params | str | os.PathLike[str],
    state: State | ase.Atoms | Mapping[str, Any] | Sequence[ase.Atoms],
    times: Sequence[float | str | Duration] | None = None,
    *,
    num_windows: int = 1,
    bound: float = np.inf,
) -> Prediction:
    """Predicts the motion that follows a state, with the recipe that travels in the checkpoint.

        prediction = egno_jax.predict("runs/copper", atoms, ["50fs", "100fs"])

    Args:
      model: a model with a recipe, or what `egno_jax.load` reads.
      state: `egno_jax.recipe.State`; or ASE Atoms, with momenta, or a list of two frames for a
        difference; or a mapping with `positions` `[N, 3]` (or `[2, N, 3]`, two frames) and, as the
        recipe needs, `velocities` (length per unit of time of the recipe), `numbers`, `charges`,
        `cell`. Of two frames the second is the state; if the recipe takes forward differences, the
        first.
      times: after the state, increasing: numbers in the recipe's unit, or texts such as `"2ps"` and
        `"3frames"`, which is what `"3"` means too;
        None: the times that the model was trained on.
      num_windows: predicts this many windows in a row, each from the end of the one before it.
      bound: a window is invalid if a node is farther than this from the centre of the initial
        state.

    Raises:
      ValueError: the model has no recipe, the state lacks something, or times are not valid.
    """
    if not isinstance(model, Params | str | os.PathLike):
        raise ValueError(
            f"model: got {type(model).__name__}, expected parameters or a path; the model comes "
            "first, then the state"
        )
    params = model if isinstance(model, Params) else load(model)
    recipe = params.recipe
    if recipe is None:
        raise ValueError(
            "model: got one without a recipe, expected one that egno-jax trained; build its graph "
            "yourself and call egno_jax.apply, or set it: dataclasses.replace(params, recipe=...)"
        )
    count = as_count("num_windows", num_windows, 1)
    check_bound(bound)
    requested = requested_times(params, times)
    return _predict(params, as_state(recipe, state), requested, count, bound)


def _predict(
    params: Params, initial: State, requested: Float[np.ndarray, "P"], count: int, bound: float
) -> Prediction:
    """Predicts windows until one is not valid."""
    current, centre = initial, np.mean(initial.positions, axis=0)
    supervised = params.predicts_velocities
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    first_invalid = None
    for window in range(count):
        try:
            positions, velocities = _window(params, current, requested)
        except ValueError:
            if window == 0:
                raise
            first_invalid = window  # no nodes within the cutoff any more
            break
        distances = np.linalg.norm(positions - centre, axis=-1)
        is_finite = np.isfinite(positions).all() and np.isfinite(velocities).all()
        if not (is_finite and distances.max() <= bound):
            first_invalid = window
            break
        parts.append((positions, velocities))
        current = _following(current, requested, positions, velocities if supervised else None)
    if not parts:
        parts = [(np.zeros((0, *initial.positions.shape)),) * 2]
    positions, velocities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    all_times = (np.arange(count)[:, None] * requested[-1] + requested).ravel()[: len(positions)]
    return Prediction(
        times=all_times,
        positions=positions,
        velocities=velocities if supervised else None,
        time_unit=params.recipe.time_unit,
        state=initial,
        first_invalid=first_invalid,
    )


def write(path: str | os.PathLike[str], prediction: Prediction, *, template: Any = None) -> None:
    """Writes a prediction, its initial state first, by `datasets.trajectories.write`.

    `template` is what names and residues are taken from, see there.
    """
    from egno_jax.datasets import trajectories  # not needed to predict

    state = prediction.state
    velocities = None
    if prediction.velocities is not None:
        velocities = np.concatenate([state.velocities[None], prediction.velocities])
    trajectories.write(
        path,
        np.concatenate([state.positions[None], prediction.positions]),
        times=np.concatenate([[0.0], prediction.times]),
        time_unit=prediction.time_unit,
        velocities=velocities,
        numbers=state.numbers,
        cell=state.cell,
        periodic=state.periodic,
        template=template,
    )


def as_state(recipe: GraphRecipe, state: Any, time_unit: float | None = None) -> State:
    """Returns a state in the units of a recipe; arguments and errors are those of `predict`.

    `time_unit` is the recipe's unit of time in femtoseconds, for momenta of atoms; None: 1, or the
    recipe's spacing, with a warning, if the recipe counts frames.
    """
    if isinstance(state, Mapping):
        state = _state_of_arrays(recipe, state)
    elif not isinstance(state, State):
        frames = [*state] if isinstance(state, list | tuple) else [state]
        if not frames or not all(hasattr(frame, "get_positions") for frame in frames):
            raise ValueError(
                f"state: got {type(state).__name__}, expected egno_jax.recipe.State, ase.Atoms or "
                "a mapping of arrays"
            )
        state = _state_of_atoms(recipe, frames, time_unit)
    return checked_state(recipe, state)


def _state_of_atoms(recipe: GraphRecipe, frames: list[Any], time_unit: float | None) -> State:
    atoms = frames[0 if recipe.velocities == "forward_difference" else -1]
    arrays: dict[str, Any] = {
        "positions": np.stack([frame.get_positions() for frame in frames]),
        "numbers": atoms.numbers,
    }
    if atoms.has("momenta"):
        if time_unit is None and recipe.time_unit == FRAME and len(frames) == 1:
            warnings.warn(
                "state: got atoms with momenta, which are velocities per time, expected velocities "
                "per frame, as the model counts frames and not time: one frame is taken for "
                f"{recipe.spacing:g} fs, so results are wrong if it is not; give two frames, or a "
                "mapping with velocities per frame",
                stacklevel=4,
            )
        if time_unit is None:
            time_unit = recipe.spacing if recipe.time_unit == FRAME else 1.0
        arrays["velocities"] = atoms.get_velocities() * time_unit * require("ase.units", "data").fs
    if atoms.has("initial_charges"):
        arrays["charges"] = atoms.get_initial_charges()
    if atoms.pbc.any():
        arrays["cell"] = atoms.cell.array
    return _state_of_arrays(recipe, arrays, tuple(map(bool, atoms.pbc)))


def _state_of_arrays(
    recipe: GraphRecipe,
    arrays: Mapping[str, Any],
    periodic: tuple[bool, bool, bool] = (True, True, True),
) -> State:
    if unknown := {*arrays} - {"positions", "velocities", "numbers", "charges", "cell"}:
        raise ValueError(f"state: got the unknown keys {sorted(unknown)}, expected those of State")
    positions = _floats("positions", arrays.get("positions"))
    if positions.ndim not in (2, 3) or positions.shape[-1] != 3 or positions.shape[0] < 1:
        raise ValueError(
            f"state['positions']: got {[*positions.shape]}, expected [N, 3], or two frames "
            "[2, N, 3], the earlier one first"
        )
    frames = positions if positions.ndim == 3 else positions[None]
    cell = None if arrays.get("cell") is None else _floats("cell", arrays["cell"])
    if cell is not None:
        check_array("state['cell']", cell, "floating", (3, 3), {})
    periodic = periodic if cell is not None else (False, False, False)
    velocities = arrays.get("velocities")
    place = 0 if recipe.velocities == "forward_difference" else -1
    if len(frames) > 1 and (recipe.velocities != "file" or velocities is None):
        if cell is not None:
            from egno_jax.datasets import trajectories  # not needed for most states

            cells = np.broadcast_to(cell, (len(frames), 3, 3))
            frames = trajectories.unwrapped(frames[None], cells, periodic)[0][0]
        velocities = np.diff(frames, axis=0)[place] / recipe.spacing
    return State(
        positions=frames[place],
        velocities=None if velocities is None else _floats("velocities", velocities),
        numbers=arrays.get("numbers"),
        charges=arrays.get("charges"),
        cell=cell,
        periodic=periodic,
    )


def _floats(key: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype.kind == "c":
            raise ValueError("complex numbers; convert them to real ones")
        return array.astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"state[{key!r}]: got {type_name(value)} ({error}), expected an array of numbers"
        ) from error


def time_of(recipe: GraphRecipe, time: float | str | Duration) -> float:
    """Returns a requested time as a number in the recipe's unit.

    Raises:
      ValueError: it is not a time, or femtoseconds of a model that counts frames.
    """
    if not isinstance(time, str | Duration):
        try:
            return float(as_array("times", time, "integer or floating", (), {}))
        except ValueError as error:
            raise ValueError(
                f"times: got {time!r}, expected a number or a text such as '2ps'; give one list of "
                "them"
            ) from error
    duration = parse(time, "times")
    if recipe.time_unit == FEMTOSECOND:
        return convert(duration, FEMTOSECOND, recipe.spacing, "times")
    if duration.unit == FEMTOSECOND:
        raise ValueError(
            f"times: got {time}, expected frames, as the model was trained on data without times; "
            "give frames, such as 3frames, or train it with a time step"
        )
    return duration.value


def requested_times(
    params: Params, times: Sequence[float | str | Duration] | None
) -> Float[np.ndarray, "P"]:
    """Returns the times of `predict` in the recipe's unit; warns of those that were not trained.

    Raises:
      ValueError: they are not valid.
    """
    recipe = params.recipe
    if times is None:
        times = recipe.times
    if isinstance(times, str | Duration) or not np.iterable(times):
        raise ValueError(f"times: got {times!r}, expected several; put it into a list")
    found = as_window_times([time_of(recipe, time) for time in times])
    _warn_of_times(params, found)
    return found


def _warn_of_times(params: Params, times: Float[np.ndarray, "P"]) -> None:
    """Warns of times that the model was not trained on."""
    trained, unit = params.recipe.times, params.recipe.time_unit
    if not trained:
        return
    if times[-1] > trained[-1] * (1 + 1e-6):
        warnings.warn(
            f"times: got {format_time(times[-1], unit)}, expected at most "
            f"{format_time(trained[-1], unit)}, up to which the model was trained; for longer "
            "predictions use several windows (num_windows, or egno-jax rollout)",
            stacklevel=4,
        )
    is_index = params.config.temporal_grid == "index"
    if is_index and not (len(times) == len(trained) and np.allclose(times, trained)):
        warnings.warn(
            f"times: got {_listed(times, unit)}, expected exactly {_listed(trained, unit)}, which "
            "the model was trained for (temporal_grid='index'); errors are larger at other times",
            stacklevel=4,
        )


def _listed(times: Iterable[float], unit: str) -> str:
    return f"[{', '.join(format_time(time, unit) for time in times)}]"


def _window(
    params: Params, state: State, times: Float[np.ndarray, "P"]
) -> tuple[Float[np.ndarray, "P N 3"], Float[np.ndarray, "P N 3"]]:
    """Predicts one window; velocities in the recipe's unit of time."""
    graph: jraph.GraphsTuple = graph_of(params.recipe, state)
    if params.recipe.edges == "radius":  # of few sizes, so that windows share a compilation
        graph, _ = graph_lib.pad(graph)
    found = _apply(params, graph, times / params.recipe.model_time)
    count = len(state.positions)
    positions, velocities = (
        np.asarray(leaf, np.float64)[:, :count] for leaf in (found.positions, found.velocities)
    )
    return positions, velocities / params.recipe.velocity_time


def _following(
    state: State,
    times: Float[np.ndarray, "P"],
    positions: Float[np.ndarray, "P N 3"],
    velocities: Float[np.ndarray, "P N 3"] | None,
) -> State:
    """Returns the state at the end of a window."""
    if velocities is not None:
        return state._replace(positions=positions[-1], velocities=velocities[-1])
    path = np.concatenate([state.positions[None], positions])
    spacing = np.diff(times, prepend=0)[-1]
    return state._replace(positions=path[-1], velocities=(path[-1] - path[-2]) / spacing)
