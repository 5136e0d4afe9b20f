"""Models by the names that people type, and places for new ones."""

from __future__ import annotations

import pathlib

import egno_jax
from egno_jax.params import Params


def check_free(out: pathlib.Path, overwrite: bool) -> None:
    """Raises a ValueError if something is at the place of a result and may not be replaced."""
    if out.exists() and not overwrite:
        raise ValueError(f"out: got {out}, which exists; choose another, or pass --overwrite")


def check_free_file(out: pathlib.Path, overwrite: bool) -> None:
    """Raises a ValueError if no file can be written there, as of a folder, or see `check_free`."""
    if out.is_dir():
        raise ValueError(f"out: got {out}, which is a folder, expected a file; name one in it")
    check_free(out, overwrite)


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
