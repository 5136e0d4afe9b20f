"""The data set of spheres: initial states, the cache, and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from egno_jax.checks import as_count, as_float, as_seed, check_positive
from egno_jax.datasets import cache
from egno_jax.datasets.argument_checks import check_choice, check_frames
from egno_jax.datasets.base import Samples
from egno_jax.datasets.collisions.events import Motion, check_radius, simulate
from egno_jax.datasets.cutting import samples_from_frames
from egno_jax.datasets.npz import PathLike
from egno_jax.graph import Edges

if TYPE_CHECKING:
    from jaxtyping import Float

NUM_SPHERES = 5
RADIUS = 0.25
BOX = 2.0
SPEED = 1.0
NUM_FRAMES = 65
FRAME_SPACING = 1 / 32
SPLIT_SEEDS = {"train": 0, "valid": 1, "test": 2}

_SIMULATION = {
    "radius": RADIUS,
    "box": BOX,
    "num_frames": NUM_FRAMES,
    "frame_spacing": FRAME_SPACING,
}
_VERSION = 1
_MAX_DRAWS = 1000  # of a hundred placements each
_WALLS = np.concatenate([np.eye(3), -np.eye(3)]) / 2


def load(
    split: str,
    *,
    num_samples: int,
    start: int = 0,
    target_frames: Sequence[int] = tuple(range(4, NUM_FRAMES, 4)),
    dtype: np.typing.DTypeLike = np.float32,
    cache_dir: PathLike | None = None,
) -> Samples:
    """Loads samples of five spheres in a box; see `samples` for what they hold.

    Frames are 1/32 of a time unit apart, and there are 65: two time units, in which a sphere hits
    a wall or another sphere about four times.

    `split` is "train", "valid" or "test"; `cache_dir` is the cache, else `$EGNO_CACHE_DIR`, else
    `~/.cache/egno_jax`. Other arguments, and errors, are those of `samples`.
    """
    motion = load_motion(split, num_boxes=num_samples, cache_dir=cache_dir)
    return samples(motion, box=BOX, start=start, target_frames=target_frames, dtype=dtype)


def load_motion(split: str, *, num_boxes: int, cache_dir: PathLike | None = None) -> Motion:
    """Loads 65 frames of the first boxes of a split from the cache; arguments as for `load`."""
    check_choice("split", split, SPLIT_SEEDS)
    num_boxes = as_count("number of boxes", num_boxes)
    drawn = {"split": split, "num_boxes": num_boxes, "num_spheres": NUM_SPHERES, "speed": SPEED}

    def build() -> dict[str, np.ndarray]:
        states = draw_states(SPLIT_SEEDS[split], num_boxes)
        return simulate(*states, **_SIMULATION)._asdict()

    settings = {"version": _VERSION, **drawn, **_SIMULATION}
    name = f"collisions_{split}_{num_boxes}"
    return Motion(**cache.load_or_build(name, settings, build, directory=cache_dir))


def draw_states(
    seed: int,
    num_boxes: int,
    *,
    num_spheres: int = NUM_SPHERES,
    radius: float = RADIUS,
    box: float = BOX,
    speed: float = SPEED,
) -> tuple[Float[np.ndarray, "S N 3"], Float[np.ndarray, "S N 3"]]:
    """Draws positions and velocities `[S, N, 3]`: uniform without overlap, of uniform direction.

    Box s does not depend on the number of boxes. All velocities have the length `speed`. Raises
    `ValueError` if no placement without overlap was found, the seed is not from 0 to 2^32 - 1, or
    another argument is out of range.
    """
    seed = as_seed("seed", seed)
    num_boxes = as_count("num_boxes", num_boxes)
    num_spheres = as_count("num_spheres", num_spheres)
    check_radius(radius, box)
    if not 0 <= as_float(speed) < math.inf:
        raise ValueError(f"speed: got {speed}, expected a finite number of at least 0")
    drawn = [
        _draw(np.random.default_rng([seed, index]), num_spheres, radius, box)
        for index in range(num_boxes)
    ]
    positions, directions = (np.stack(field) for field in zip(*drawn, strict=True))
    return positions, speed * directions


def _draw(
    rng: np.random.Generator, num_spheres: int, radius: float, box: float
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.triu_indices(num_spheres, 1)
    room = box / 2 - radius
    for _ in range(_MAX_DRAWS):
        tries = rng.uniform(-room, room, (100, num_spheres, 3))
        squared_distances = ((tries[:, rows] - tries[:, columns]) ** 2).sum(-1)
        fits = np.flatnonzero((squared_distances > 4 * radius**2).all(axis=1))
        if len(fits):
            directions = rng.normal(size=(num_spheres, 3))
            lengths = np.sqrt((directions**2).sum(-1, keepdims=True))
            return tries[fits[0]], directions / lengths
    raise ValueError(
        f"num_spheres: got {num_spheres}, for which no placement of spheres of radius {radius} in "
        f"a box of {box} was found; use fewer or smaller ones"
    )


def samples(
    motion: Motion,
    *,
    box: float,
    start: int = 0,
    target_frames: Sequence[int],
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts one sample out of each box.

    The walls are six more nodes after the spheres, at rest at the centres of the faces: the box
    rotates and moves with its contents, and the model stays equivariant. `node_mask` leaves them
    out of every error. Node features are `[|v_i|, is a wall]`. Each sphere receives from all other
    spheres and from all walls; edge features are `[sender is a wall, |x_i - x_j|^2]` in the initial
    state. There are N + 6 nodes, and times are `target_frames - start`, in frames.

    Args:
      motion: S boxes.
      box: the length of the box's edges.
      start: the initial frame.
      target_frames: `[P]`, the frames to predict, increasing and after `start`.
      dtype: the dtype of all real numbers.

    Raises:
      ValueError: frames do not exist or do not increase, or spheres are outside the box.
    """
    _check_box(box, motion.positions)
    num_boxes, num_frames, num_spheres, _ = motion.positions.shape
    frames = check_frames(start, target_frames, num_frames)
    walls = np.broadcast_to(box * _WALLS, (num_boxes, len(frames), *_WALLS.shape))
    positions = np.concatenate([motion.positions[:, frames], walls], axis=2).astype(dtype)
    velocities = np.concatenate([motion.velocities[:, frames], 0 * walls], axis=2).astype(dtype)
    is_wall = np.arange(positions.shape[2]) >= num_spheres
    speeds = np.sqrt((velocities[:, 0] ** 2).sum(-1))
    features = np.stack([speeds, np.broadcast_to(is_wall, speeds.shape)], axis=-1)
    receivers, senders = np.nonzero(~np.eye(len(is_wall), dtype=bool) & ~is_wall[:, None])
    edges = Edges(senders, receivers, is_wall[senders, None])
    times = frames[1:] - frames[0]
    return samples_from_frames(
        positions, velocities, features, edges, times, node_mask=~is_wall, dtype=dtype
    )


def _check_box(box: float, positions: Float[np.ndarray, "S T N 3"]) -> None:
    """Raises ValueError unless a box is a positive number and holds the centres of all spheres."""
    check_positive("box", box)
    farthest = np.abs(positions).max(initial=0)
    if not farthest < box / 2:
        raise ValueError(
            f"box: got {box}, expected more than {2 * farthest}: a sphere is {farthest} from the "
            "centre; use the box of the simulation"
        )
