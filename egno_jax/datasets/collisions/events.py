"""Event-driven motion of hard spheres in a cubic box, many boxes at once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.checks import as_count, as_float, check_positive
from egno_jax.datasets.argument_checks import check_states

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# More collisions than this between two frames mean that a box is jammed.
_MAX_EVENTS = 10_000


class Motion(NamedTuple):
    """Motion in frames: S boxes, T frames, N spheres.

    Attributes:
      positions, velocities: `[S, T, N, 3]`, positions relative to the box's centre.
      num_collisions: `[S, T]`, collisions since frame 0, with spheres and walls.
    """

    positions: Float[np.ndarray, "S T N 3"]
    velocities: Float[np.ndarray, "S T N 3"]
    num_collisions: Int[np.ndarray, "S T"]


def simulate(
    positions: Float[np.ndarray, "S N 3"],
    velocities: Float[np.ndarray, "S N 3"],
    *,
    radius: float,
    box: float,
    num_frames: int,
    frame_spacing: float,
) -> Motion:
    """Moves spheres of unit mass from collision to collision, in float64.

    Between collisions x(t) = x + v t. Spheres i and j meet where |x_ij + v_ij t| = 2 r; they then
    exchange the parts of their velocities along the line that joins them,

        v_i <- v_i - (v_ij . n) n,   v_j <- v_j + (v_ij . n) n,   n = x_ij / |x_ij|.

    A wall reverses one velocity component at |x| = L / 2 - r. Energy is conserved to rounding. The
    T frames are the same to the bit whichever boxes are simulated together.

    Args:
      positions: `[S, N, 3]` at frame 0, relative to the box's centre.
      velocities: `[S, N, 3]` at frame 0.
      radius: r, of each sphere.
      box: L, the length of the box's edges.
      num_frames: T, frame 0 included.
      frame_spacing: time from frame to frame.

    Raises:
      ValueError: an argument is out of range, spheres overlap, are outside or collide without end.
    """
    x, v = _check(positions, velocities, radius, box)
    as_count("num_frames", num_frames)
    check_positive("frame_spacing", frame_spacing)
    shape = (len(x), num_frames, *x.shape[1:])
    motion = Motion(np.empty(shape), np.empty(shape), np.zeros(shape[:2], np.int64))
    motion.positions[:, 0], motion.velocities[:, 0] = x, v
    for frame in range(1, num_frames):
        collisions = _advance(x, v, radius, box, frame_spacing)
        motion.positions[:, frame], motion.velocities[:, frame] = x, v
        motion.num_collisions[:, frame] = motion.num_collisions[:, frame - 1] + collisions
    return motion


def _advance(
    x: Float[np.ndarray, "S N 3"],
    v: Float[np.ndarray, "S N 3"],
    radius: float,
    box: float,
    duration: float,
) -> Int[np.ndarray, "S"]:
    """Advances `x` and `v` in place by `duration`; returns the number of collisions."""
    collisions = np.zeros(len(x), np.int64)
    moving, remaining = np.arange(len(x)), np.full(len(x), float(duration))
    for _ in range(_MAX_EVENTS):
        xs, vs = x[moving], v[moving]
        times = _event_times(xs, vs, radius, box)
        event = times.argmin(axis=1)
        until = np.take_along_axis(times, event[:, None], axis=1)[:, 0]
        is_event = until < remaining
        step = np.where(is_event, until, remaining)
        xs += step[:, None, None] * vs
        _collide(xs, vs, event, is_event)
        x[moving], v[moving] = xs, vs
        collisions[moving[is_event]] += 1
        moving, remaining = moving[is_event], (remaining - step)[is_event]
        if len(moving) == 0:
            return collisions
    raise ValueError(
        f"positions[{moving[0]}]: got more than {_MAX_EVENTS} collisions from one frame to the "
        "next, so the spheres are jammed; use fewer, smaller or slower ones"
    )


def _event_times(
    x: Float[np.ndarray, "S N 3"], v: Float[np.ndarray, "S N 3"], radius: float, box: float
) -> Float[np.ndarray, "S K"]:
    """Returns the times at which pairs i < j meet, then those at which components meet a wall."""
    rows, columns = np.triu_indices(x.shape[1], 1)
    apart, speed = x[:, rows] - x[:, columns], v[:, rows] - v[:, columns]
    approach = (apart * speed).sum(-1)
    squared_speed = (speed**2).sum(-1)
    gap = (apart**2).sum(-1) - 4 * radius**2
    discriminant = approach**2 - squared_speed * gap
    meets = (approach < 0) & (discriminant > 0)
    # gap / (sqrt - approach) is the earlier root without cancellation.
    root = np.sqrt(np.where(meets, discriminant, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = np.where(meets, gap / (root - approach), np.inf)
        walls = np.where(v != 0, (box / 2 - radius - np.sign(v) * x) / np.abs(v), np.inf)
    times = np.concatenate([pairs, walls.reshape(len(x), -1)], axis=1)
    return np.maximum(times, 0.0)


def _collide(
    x: Float[np.ndarray, "S N 3"],
    v: Float[np.ndarray, "S N 3"],
    event: Int[np.ndarray, "S"],
    is_event: Bool[np.ndarray, "S"],
) -> None:
    """Applies the event of each box, if it has one, to the velocities in place."""
    rows, columns = np.triu_indices(x.shape[1], 1)
    num_pairs = len(rows)
    boxes = np.flatnonzero(is_event & (event < num_pairs))
    i, j = rows[event[boxes]], columns[event[boxes]]
    apart = x[boxes, i] - x[boxes, j]
    normal = apart / np.sqrt((apart**2).sum(-1, keepdims=True))
    exchanged = ((v[boxes, i] - v[boxes, j]) * normal).sum(-1, keepdims=True) * normal
    v[boxes, i] -= exchanged
    v[boxes, j] += exchanged
    boxes = np.flatnonzero(is_event & (event >= num_pairs))
    sphere, component = np.divmod(event[boxes] - num_pairs, 3)
    v[boxes, sphere, component] *= -1


def check_radius(radius: float, box: float) -> None:
    """Raises ValueError unless a sphere of this radius can move in a box of this length."""
    if not 0 < 2 * as_float(radius) < as_float(box) < math.inf:
        raise ValueError(f"radius, box: got {radius} and {box}, expected 0 < 2 radius < box")


def _check(
    positions: np.ndarray, velocities: np.ndarray, radius: float, box: float
) -> list[np.ndarray]:
    """Returns float64 copies of states that spheres can have."""
    shape = ("S", "N", 3)
    x, v = check_states({"positions": (positions, shape), "velocities": (velocities, shape)})
    check_radius(radius, box)
    slack = 1e-9 * box
    rows, columns = np.triu_indices(x.shape[1], 1)
    distances = np.sqrt(((x[:, rows] - x[:, columns]) ** 2).sum(-1))
    for problem, is_wrong in (
        ("outside the box", (np.abs(x) > box / 2 - radius + slack).any(axis=(1, 2))),
        ("that overlaps another", (distances < 2 * radius - slack).any(axis=1)),
    ):
        if is_wrong.any():
            raise ValueError(
                f"positions[{np.argmax(is_wrong)}]: got a sphere of radius {radius} {problem}, "
                "expected spheres inside and apart"
            )
    return [x, v]
