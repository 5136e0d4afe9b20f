"""`egno-jax predict`, `rollout` and `evaluate`: a trained model on files."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import numpy as np

from egno_jax import predicting
from egno_jax.checks import as_count, check_bound
from egno_jax.cli.loading import check_free_file, load
from egno_jax.cli.making import errors_of, report
from egno_jax.cli.options import DataOptions, read, request
from egno_jax.datasets import trajectories
from egno_jax.datasets.trajectories import Recording
from egno_jax.durations import FRAME, format_time
from egno_jax.extras import require
from egno_jax.params import Params
from egno_jax.recipe import GraphRecipe, State

_conf = require("tyro", "cli").conf


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateOptions(DataOptions):
    """Which state to start from, and where the result goes.

    Attributes:
      times: 10fs 20fs, or START:STOP:STEP; by default those that the model was trained on.
      frame: the initial frame; -1 is the last one.
      recording: which of several recordings.
      out: the file: .extxyz, .xyz, .traj, .pdb, .xtc, .dcd, .trr, .gro or .npz.
      overwrite: whether to replace the file.
    """

    times: tuple[str, ...] = ()
    frame: int = -1
    recording: int = 0
    out: pathlib.Path = pathlib.Path("predicted.extxyz")
    overwrite: bool = False


def predict(
    model: _conf.Positional[str],
    state: _conf.Positional[tuple[pathlib.Path, ...]],
    options: Annotated[StateOptions, _conf.arg(name="")] = StateOptions(),
) -> None:
    """Predicts the motion after a state, and writes it to a file.

    Args:
      model: the folder of a run or of a model.
      state: a file that holds the state, or a topology and a trajectory.
      options: the state, the times and the file.
    """
    _predict(model, state, options, num_windows=1, bound=np.inf)


def rollout(
    model: _conf.Positional[str],
    state: _conf.Positional[tuple[pathlib.Path, ...]],
    windows: int = 10,
    bound: float = 10.0,
    options: Annotated[StateOptions, _conf.arg(name="")] = StateOptions(),
) -> None:
    """Predicts many windows in a row, each from the end of the one before it.

    Args:
      model: the folder of a run or of a model.
      state: a file that holds the state, or a topology and a trajectory.
      windows: how many windows.
      bound: stops where a node is farther from the centre than this many times the initial size;
        a single node has none, and no bound.
      options: the state, the times of a window and the file.
    """
    as_count("windows", windows)
    _predict(model, state, options, num_windows=windows, bound=bound)


def _predict(
    model: str,
    paths: tuple[pathlib.Path, ...],
    options: StateOptions,
    *,
    num_windows: int,
    bound: float,
) -> None:
    _check_out(options, paths)
    check_bound(bound)
    params = load(model)
    recipe = params.recipe
    recording = read(paths, options, recipe)
    state = _state(recording, params, options)
    size = np.linalg.norm(state.positions - state.positions.mean(axis=0), axis=-1).max()
    times = request(options.times, recipe)
    found = predicting.predict(
        params, state, times, num_windows=num_windows, bound=bound * size if size else np.inf
    )
    if found.first_invalid is not None:
        reasons = "is not finite, out of bounds, or starts from a state without edges"
        print(f"window {found.first_invalid} {reasons}; it is left out")
    if not len(found.times):
        raise ValueError("prediction: got no valid window; raise --bound, or train for longer")
    predicting.write(options.out, found, template=recording.template)
    last = format_time(float(found.times[-1]), found.time_unit)
    if found.time_unit == FRAME and options.out.suffix.lower() != ".npz":
        print("  the model counts frames: in the file a frame is 1 fs, for velocities too")
    frames = f"{len(found.times)} predicted frame{'' if len(found.times) == 1 else 's'}"
    print(f"{options.out}: the initial state and {frames}, to {last}")


def _check_out(options: StateOptions, paths: tuple[pathlib.Path, ...]) -> None:
    """Checks the file of the result, before any time is spent on it."""
    out = options.out
    if out.suffix.lower() not in trajectories.SUFFIXES:
        suffixes = " ".join(trajectories.SUFFIXES)
        raise ValueError(f"out: got {out}, expected a file that ends in one of {suffixes}; add one")
    if out.resolve() in {path.resolve() for path in paths}:
        raise ValueError(
            f"out: got {out}, which is a file of the initial state, expected another one; choose "
            "another name, or your data would be lost"
        )
    check_free_file(out, options.overwrite)


def _state(recording: Recording, params: Params, options: StateOptions) -> State:
    """Returns the initial state, in the unit of the recipe."""
    recipe, (samples, frames) = params.recipe, recording.positions.shape[:2]
    if not -frames <= options.frame < frames:
        raise ValueError(
            f"frame: got {options.frame}, expected one of 0 to {frames - 1}; count from 0, or back "
            "from -1, the last"
        )
    if not 0 <= options.recording < samples:
        raise ValueError(
            f"recording: got {options.recording}, expected one of 0 to {samples - 1}; count from 0"
        )
    rule = _velocity_rule(recording, recipe)
    if rule != "file" and frames < 2 and recording.velocities is not None:
        print("  one frame: its stored velocities are used, and not finite differences")
        rule = "file"
    if rule != "file" and not np.isclose(recording.spacing, recipe.spacing, rtol=1e-3):
        print(
            f"  frames are {format_time(recording.spacing, recording.time_unit)} apart, and "
            f"{format_time(recipe.spacing, recipe.time_unit)} in training: finite differences are "
            "less like the velocities that the model knows"
        )
    velocities = trajectories.velocities_by(recording, rule)
    frame = options.frame % frames
    if rule == "difference" and frame == 0 and frames > 1:
        raise ValueError(
            f"frame: got {options.frame}, the first one, expected one of 1 to {frames - 1}, as "
            "velocities are differences from the frame before; choose another"
        )
    if rule == "forward_difference" and 0 < frame == frames - 1:
        frame -= 1
        print(
            f"  the model's velocities are differences to the next frame: the initial state is "
            f"frame {frame}"
        )
    return trajectories.state_at(recording, velocities, options.recording, frame)


def _velocity_rule(recording: Recording, recipe: GraphRecipe) -> str:
    """Returns where velocities come from: as the model's do, if the recording has them."""
    if recipe.velocities != "file" or recording.velocities is not None:
        return recipe.velocities
    print(
        f"  {recording.source} has no velocities, which the model was trained with: finite "
        "differences are used"
    )
    return "difference"


def evaluate(
    model: _conf.Positional[str],
    data: _conf.Positional[tuple[pathlib.Path, ...]],
    options: Annotated[DataOptions, _conf.arg(name="")] = DataOptions(),  # noqa: B008
) -> None:
    """Reports the errors of a model on all windows of a trajectory.

    Args:
      model: the folder of a run or of a model.
      data: a file, or a topology and its trajectories.
      options: how the files are read.
    """
    params = load(model)
    recording = read(data, options, params.recipe)
    rule = _velocity_rule(recording, params.recipe)
    recipe = dataclasses.replace(params.recipe, velocities=rule)
    starts = trajectories.starts_of(recording, recipe)
    if not len(starts):
        raise ValueError(
            f"data: got {recording.positions.shape[1]} frames, too few for a window of the model"
        )
    samples = trajectories.samples_at(recording, recipe, starts)
    print(f"  {len(starts)} windows")
    print(report(params.recipe, errors_of(params, samples)))
