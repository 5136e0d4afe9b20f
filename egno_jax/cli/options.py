"""Options that commands share, and what they print of data."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from egno_jax.datasets import trajectories
from egno_jax.datasets.trajectories import Recording
from egno_jax.durations import FEMTOSECOND, FRAME, convert, format_time, parse
from egno_jax.predicting import time_of
from egno_jax.recipe import GraphRecipe

_MOST_TIMES = 100_000  # of one range: more is a slip of the pen, and would fill the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How files are read.

    Attributes:
      time_step: time between frames, such as 2fs; replaces that of the files.
      selection: which atoms: `heavy`, or a selection in MDAnalysis' language.
      guess: what MDAnalysis should guess, such as `bonds`.
      accept: kinds of suspicions that you know to be harmless, such as `step`; `all` for every one.
      imports: modules to import before options are read, such as one that registers your own layer.
    """

    time_step: str | None = None
    selection: str = ""
    guess: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()


def read(
    paths: Sequence[pathlib.Path], options: DataOptions, recipe: GraphRecipe | None = None
) -> Recording:
    """Reads and checks files, for a model if there is one, and prints what was read and accepted.

    If the files have no times, and the model counts in femtoseconds, the time between frames is
    that of its training. For a model that counts frames, they are counted.
    """
    selection = "" if recipe is None else recipe.selection
    recording = trajectories.read(
        *paths,
        selection=options.selection or selection,
        time_step=options.time_step,
        to_guess=options.guess or None,
    )
    timed = recording
    if recording.time_step is None and recipe is not None and recipe.time_unit == FEMTOSECOND:
        note = f"no times: frames are taken to be {recipe.spacing:g} fs apart, as in training"
        notes = (note,) if recording.positions.shape[1] > 1 else ()
        timed = dataclasses.replace(
            recording, time_step=recipe.spacing, notes=(*recording.notes, *notes)
        )
    print(describe(timed))
    if recording.cells is not None and recipe is not None and not recipe.is_periodic:
        print("  the data are periodic, and the model is not: no edge crosses a wall of the cell")
    for suspicion in trajectories.check(recording, options.accept):
        print(f"  accepted [{suspicion.kind}]: {suspicion.text}")
    return timed if recipe is None else _as_trained(timed, recipe)


def _as_trained(recording: Recording, recipe: GraphRecipe) -> Recording:
    """Returns a recording in frames for a model that counts them, as its training did."""
    if recipe.time_unit != FRAME or recording.time_unit == FRAME:
        return recording
    print(f"  the model counts frames: one of the data, {recording.spacing:g} fs, is one of them")
    velocities = recording.velocities
    if velocities is not None:
        velocities = velocities * recording.spacing
    return dataclasses.replace(recording, velocities=velocities, counts_frames=True, time_step=None)


def describe(recording: Recording) -> str:
    """Returns what a recording holds, in a few lines."""
    samples, frames, nodes, _ = recording.positions.shape
    lines = [f"{recording.source}: {samples} recording(s) of {frames} frame(s) of {nodes} nodes"]
    if recording.numbers is not None:
        numbers, counts = np.unique(recording.numbers, return_counts=True)
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        lines.append("atomic numbers: " + ", ".join(f"{z} ({n} atoms)" for z, n in pairs))
    if recording.cells is not None:
        lengths = np.linalg.norm(recording.cells[0], axis=1)
        lines.append("periodic cell of lengths " + ", ".join(f"{x:.4g}" for x in lengths) + " Å")
    known = "as stored in the file" if recording.velocities is not None else "finite differences"
    lines.append(f"velocities: {known}")
    if recording.time_step is None:
        lines.append("no times: frames are counted; --time-step gives the time between them")
    return "\n  ".join([*lines, *recording.notes])


def frames_in(text: str, recording: Recording, name: str) -> int:
    """Returns a duration as a number of frames of a recording, which must be whole.

    Raises:
      ValueError: it is not a whole number of frames.
    """
    found = convert(parse(text, name), FRAME, recording.time_step, name)
    frames = round(found)
    if frames < 1 or abs(found - frames) > 1e-6 * max(found, 1):
        raise ValueError(
            f"{name}: got {text}, which is {found:g} frames, expected a whole number of frames"
        )
    return frames


def request(texts: Sequence[str], recipe: GraphRecipe) -> list[float] | None:
    """Returns requested times in the recipe's unit; `a:b:c` are the times from a to b, c apart."""
    times: list[float] = []
    for text in texts:
        ends = [time_of(recipe, end) for end in text.split(":")]
        if len(ends) == 3:
            count = np.floor((ends[1] - ends[0]) / ends[2] + 1e-9) + 1
            if count > _MOST_TIMES:
                raise ValueError(
                    f"times: got {text}, which is {count:g} times, expected at most {_MOST_TIMES}; "
                    "give a longer STEP"
                )
            if count < 1:
                raise ValueError(
                    f"times: got {text}, which is no time, expected START:STOP:STEP with STOP at "
                    "START or after it"
                )
            times += [ends[0] + index * ends[2] for index in range(int(count))]
        elif len(ends) == 1:
            times += ends
        else:
            raise ValueError(
                f"times: got {text}, expected a time, or START:STOP:STEP, such as 4fs:20fs:4fs"
            )
    return times or None


def describe_recipe(recipe: GraphRecipe) -> str:
    """Returns the recipe in a few lines."""
    edges = {
        "all": "all pairs",
        "radius": f"pairs within {recipe.cutoff:g}",
        "bonds": f"pairs one or two of {len(recipe.bonds)} bonds apart",
    }[recipe.edges]
    edges += ", also across the walls of the cell" if recipe.is_periodic else ""
    rule = {
        "file": "stored in the file",
        "difference": "finite differences",
        "forward_difference": "finite differences to the next frame",
    }[recipe.velocities]
    unit = recipe.time_unit
    targets = f"{len(recipe.times)} target{'' if len(recipe.times) == 1 else 's'}"
    return (
        f"window: {format_time(recipe.times[-1], unit)}, {targets}, so "
        f"time_scale is {format_time(recipe.times[0], unit)}\n  edges: {edges}\n  "
        f"velocities: {rule}\n  node features: {', '.join(recipe.node_features)}; edge features: "
        f"{', '.join(recipe.edge_features)}"
    )
