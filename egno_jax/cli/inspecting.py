"""`egno-jax inspect`: what files hold, and what training would make of them."""

from __future__ import annotations

import pathlib
from typing import Annotated

from egno_jax.cli import making
from egno_jax.cli.options import describe, frames_in
from egno_jax.datasets import trajectories
from egno_jax.extras import require

_conf = require("tyro", "cli").conf


def inspect(
    data: _conf.Positional[tuple[pathlib.Path, ...]],
    options: Annotated[making.WindowOptions, _conf.arg(name="")] = making.WindowOptions(),  # noqa: B008
) -> None:
    """Reports what is in a trajectory, what a window would be, and what looks wrong.

    Args:
      data: a file, or a topology and its trajectories.
      options: how the files are read, and what windows would be.
    """
    recording = trajectories.read(
        *data,
        selection=options.selection,
        time_step=options.time_step,
        to_guess=options.guess or None,
    )
    print(describe(recording))
    for suspicion in trajectories.check(recording, (*options.accept, "all")):
        print(f"  suspicious [{suspicion.kind}]: {suspicion.text}")
    if recording.positions.shape[1] < 2:
        print("  one frame: a state to predict from; training needs more")
        return
    recipe = making.recipe_for(recording, options)
    print(making.describe_windows(recipe, is_usual=options.window is None))
    stride = frames_in(options.stride, recording, "stride")
    for name, part in trajectories.partition(recording, recipe, stride=stride)._asdict().items():
        print(f"  {name}: {len(part)} windows")
