"""From a recording to samples: a recipe, the initial frames of each partition, and their graphs."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.checks import as_count, check_array
from egno_jax.datasets.base import Samples
from egno_jax.datasets.cutting import FRACTIONS, PARTITIONS, target_offsets, time_blocks
from egno_jax.datasets.stacking import stack
from egno_jax.datasets.trajectories.recording import Recording, state_at, velocities_by
from egno_jax.durations import FRAME
from egno_jax.recipe import GraphRecipe, graph_of

if TYPE_CHECKING:
    from jaxtyping import Int

# Up to this many nodes all pairs are connected, unless the system is periodic.
_ALL_PAIRS = 32
CUTOFF = 5.0
_FEWEST_RECORDINGS = 5
# Frames of a window unless it is chosen, and windows that a recording alone must have room for.
_USUAL_WINDOW = 10
_MIN_WINDOWS = 12


class Partitions(NamedTuple):
    """Recording and initial frame `[S, 2]` of the samples of each partition."""

    train: Int[np.ndarray, "S 2"]
    valid: Int[np.ndarray, "S 2"]
    test: Int[np.ndarray, "S 2"]


def usual_window(recording: Recording) -> int:
    """Returns a number of frames for windows: ten, or fewer if recordings are too short.

    Recordings that are split as a whole (see `partition`) need room for one window each, with a
    frame before and after it for differences; others for a dozen.
    """
    num_samples, num_frames = recording.positions.shape[:2]
    is_whole = num_samples >= _FEWEST_RECORDINGS
    room = num_frames - 2 if is_whole else num_frames // _MIN_WINDOWS
    return min(_USUAL_WINDOW, max(room, 1))


def make_recipe(
    recording: Recording,
    *,
    window: int,
    num_targets: int,
    cutoff: float | None = None,
    velocities: str | None = None,
) -> GraphRecipe:
    """Returns the recipe for a recording: what its data have is used.

    Nodes have their speed, their species if there are several, and their charge if there are any.

    Args:
      recording: the training data.
      window: frames from the initial state to the last target.
      num_targets: P targets, equally spaced, so `window` is a multiple of it.
      cutoff: connects the pairs within it; None: all pairs of up to 32 atoms without a cell, else
        those within 5 Angstrom.
      velocities: a rule of the recipe; None: `"file"` if the files have velocities.

    Raises:
      ValueError: targets are not equally spaced, or a cutoff or time step is needed.
    """
    as_count("window", window)
    if window % as_count("num_targets", num_targets, most=window):
        raise ValueError(
            f"num_targets: got {num_targets} in a window of {window} frames, expected a divisor of "
            f"{window}, so that targets are equally spaced"
        )
    num_nodes = recording.positions.shape[2]
    is_periodic = recording.cells is not None
    if cutoff is None and (is_periodic or num_nodes > _ALL_PAIRS):
        if recording.length_unit != "angstrom":
            raise ValueError(
                f"cutoff: got None, expected a length, as all pairs of {num_nodes} nodes are many "
                "and the unit of positions is not known"
            )
        cutoff = CUTOFF
    rule = _velocity_rule(recording, velocities)
    species = () if recording.numbers is None else tuple(np.unique(recording.numbers).tolist())
    has_charges = recording.charges is not None and bool(np.any(recording.charges))
    nodes = ("speed", *["species"] * (len(species) > 1), *["charge"] * has_charges)
    edges = ("distance", "squared_distance", *["charge_product"] * has_charges)
    offsets = target_offsets(window, num_targets)
    return GraphRecipe(
        length_unit=recording.length_unit,
        time_unit=recording.time_unit,
        spacing=recording.spacing,
        times=tuple((recording.spacing * offsets).tolist()),
        velocities=rule,
        velocity_time=recording.spacing * window / num_targets,
        edges="all" if cutoff is None else "radius",
        cutoff=0.0 if cutoff is None else float(cutoff),
        is_periodic=is_periodic and cutoff is not None,
        node_features=nodes,
        edge_features=edges,
        species=species,
        charge_unit=float(np.abs(recording.charges).max()) if has_charges else 1.0,
        selection=recording.selection,
    )


def _velocity_rule(recording: Recording, velocities: str | None) -> str:
    rule = velocities or ("difference" if recording.velocities is None else "file")
    if rule != "file":
        return rule
    velocities_by(recording, rule)
    if recording.time_step is None and recording.length_unit == "angstrom":
        raise ValueError(
            f"time_step: got None, expected the time between frames: {recording.source} has "
            "velocities but no times; give it, or use finite differences"
        )
    return rule


def starts_of(
    recording: Recording, recipe: GraphRecipe, *, stride: int = 1, frames: range | None = None
) -> Int[np.ndarray, "S 2"]:
    """Returns recording and initial frame of all windows that cross no gap, `stride` apart.

    Args:
      recording: the data.
      recipe: its times must be multiples of the recording's spacing.
      stride: frames from one window to the next.
      frames: the frames that a window may use, the one before or after it for a difference too;
        None: all.

    Raises:
      ValueError: the stride or the frames are not valid, or the recipe's times do not fit the data.
    """
    as_count("stride", stride)
    num_samples, num_frames = recording.positions.shape[:2]
    first, last = _reach(recording, recipe)
    frames = range(num_frames) if frames is None else frames
    is_within = frames.step == 1 and frames.start >= 0 and frames.stop <= num_frames
    if len(frames) and not is_within:
        raise ValueError(
            f"frames: got {frames}, expected frames in a row, within range({num_frames})"
        )
    candidates = np.arange(frames.start + first, frames.stop - last, stride)
    segments = recording.segments
    is_whole = segments[candidates - first] == segments[candidates + last]
    kept = candidates[is_whole]
    samples = np.repeat(np.arange(num_samples), len(kept))
    return np.stack([samples, np.tile(kept, num_samples)], axis=1)


def _reach(recording: Recording, recipe: GraphRecipe) -> tuple[int, int]:
    """Returns how many frames a window needs before and after its initial frame."""
    after = int(_offsets(recording, recipe)[-1]) + (recipe.velocities == "forward_difference")
    return int(recipe.velocities == "difference"), after


def _offsets(recording: Recording, recipe: GraphRecipe) -> Int[np.ndarray, "P"]:
    """Returns the frames from an initial state to the recipe's times."""
    if recording.time_unit != recipe.time_unit:
        advice = "give the time between frames"
        if recipe.time_unit == FRAME:
            advice = "set time_step=None in the recording, with velocities per frame"
        raise ValueError(
            f"time_step: got data with times in {recording.time_unit}, expected times in "
            f"{recipe.time_unit}, as the model was trained with; {advice}"
        )
    if not recipe.times:
        raise ValueError("recipe.times: got none, expected those of a window's targets")
    frames = np.asarray(recipe.times) / recording.spacing
    offsets = np.rint(frames).astype(int)
    if np.abs(frames - offsets).max(initial=0) > 1e-3 or offsets[0] < 1:
        raise ValueError(
            f"{recording.source}: got frames {recording.spacing:g} {recording.time_unit} apart, "
            f"expected a divisor of the model's times {[*recipe.times]}"
        )
    return offsets


def partition(recording: Recording, recipe: GraphRecipe, *, stride: int = 1) -> Partitions:
    """Splits a recording into samples for training, validation and test.

    Five or more recordings are split as a whole: 60, 20 and 20 percent of them. Otherwise the
    frames are split into blocks of time with these shares, a gap of one window between them (see
    `egno_jax.datasets.protein.block_starts`).

    Raises:
      ValueError: a partition has no window; says how many frames there are.
    """
    num_samples, num_frames = recording.positions.shape[:2]
    window = int(_offsets(recording, recipe)[-1])
    if num_samples >= _FEWEST_RECORDINGS:
        found = starts_of(recording, recipe, stride=stride)
        ends = [0, *(math.floor(share * num_samples) for share in (0.6, 0.8)), num_samples]
        parts = [found[(found[:, 0] >= a) & (found[:, 0] < b)] for a, b in itertools.pairwise(ends)]
    else:
        blocks = time_blocks(num_frames, window, FRACTIONS).values()
        parts = [starts_of(recording, recipe, stride=stride, frames=block) for block in blocks]
    for name, part in zip(PARTITIONS, parts, strict=True):
        if not len(part):
            needed = 1 + sum(_reach(recording, recipe))
            more = f"about {math.ceil(needed / FRACTIONS[-1]) + 2 * window}"
            if num_samples >= _FEWEST_RECORDINGS:  # which are not cut into blocks of time
                more = f"{needed} in each recording"
            raise ValueError(
                f"window: got {window} frames, but the {name} part of {num_samples} x {num_frames} "
                f"frames has no {needed} frames in a row; use a smaller window, or more frames "
                f"({more})"
            )
    return Partitions(*parts)


def samples_at(
    recording: Recording, recipe: GraphRecipe, starts: Int[np.ndarray, "S 2"]
) -> Samples:
    """Returns the samples of windows: graphs by the recipe, and targets at its times.

    Target velocities are by the rule of the recipe too, in the unit of the graphs.

    Raises:
      ValueError: a window is not within the recording, or a graph cannot be made
        (`egno_jax.recipe.graph_of`).
    """
    first, last = _reach(recording, recipe)
    num_samples, num_frames = recording.positions.shape[:2]
    starts = np.asarray(starts)
    check_array("starts", starts, "integer", ("S", 2), {})
    least, most = np.array([0, first]), np.array([num_samples - 1, num_frames - 1 - last])
    for index in np.flatnonzero(((starts < least) | (starts > most)).any(axis=1)):
        raise ValueError(
            f"starts[{index}]: got {starts[index].tolist()}, expected a recording of 0 to "
            f"{most[0]} and a frame of {first} to {most[1]}; use starts_of"
        )
    velocities = velocities_by(recording, recipe.velocities)
    offsets = _offsets(recording, recipe)
    graphs = [
        graph_of(recipe, state_at(recording, velocities, sample, frame)) for sample, frame in starts
    ]
    frames = starts[:, 1, None] + offsets
    targets = recording.positions[starts[:, :1], frames]
    if recording.images is not None:  # of the image in which the initial state is
        targets = targets + recording.images[starts[:, 0], starts[:, 1]][:, None]
    speeds = velocities[starts[:, :1], frames] * recipe.velocity_time
    return stack(graphs, np.asarray(recipe.times) / recipe.model_time, targets, speeds)
