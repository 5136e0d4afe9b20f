"""Models by the names that people type, and data as a model counts their times."""

from __future__ import annotations

import dataclasses
import pathlib

import egno_jax
from egno_jax.datasets.trajectories import Recording
from egno_jax.durations import FRAME
from egno_jax.params import Params
from egno_jax.recipe import GraphRecipe


def model_of(name: str) -> Params:
    """Returns the model of a run, of a checkpoint, or of the name of a published one."""
    if not pathlib.Path(name).exists() and name not in egno_jax.published.names():
        known = ", ".join(egno_jax.published.names())
        raise ValueError(
            f"model: got {name}, which does not exist, expected the folder of a run, a checkpoint, "
            f"or one of {known}; check the name"
        )
    return egno_jax.load(name)


def load(model: str) -> Params:
    """Returns a model that has a recipe, see `model_of`."""
    params = model_of(model)
    if params.recipe is None:
        raise ValueError(f"model: got {model}, which has no recipe, expected one of egno-jax train")
    return params


def as_trained(recording: Recording, recipe: GraphRecipe | None) -> Recording:
    """Returns a recording in frames for a model that counts them, as its training did."""
    if recipe is None or recipe.time_unit != FRAME or recording.time_unit == FRAME:
        return recording
    print(f"  the model counts frames: one of the data, {recording.spacing:g} fs, is one of them")
    velocities = recording.velocities
    if velocities is not None:
        velocities = velocities * recording.spacing
    return dataclasses.replace(recording, velocities=velocities, counts_frames=True, time_step=None)
