"""Samples of a trajectory: initial frames, at random or in blocks, and the frames to predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import as_count, as_seed
from egno_jax.datasets.argument_checks import check_choice
from egno_jax.datasets.base import Samples
from egno_jax.datasets.cutting import (
    FRACTIONS,
    PARTITIONS,
    Starts,
    cut_windows,
    samples_from_frames,
    samples_with_own_edges,
    target_offsets,
    time_blocks,
    window_frames,
)
from egno_jax.datasets.md17 import archives, molecule_trajectory
from egno_jax.datasets.md17.graphs import bond_graph
from egno_jax.datasets.md17.molecule_trajectory import Trajectory
from egno_jax.datasets.md17.molecules import MOLECULES
from egno_jax.datasets.npz import PathLike

if TYPE_CHECKING:
    from jaxtyping import Float, Int

WINDOW = 3000
MARGIN = 10_000
SEED = 100
NUM_TARGETS = 8
RADIUS = 5.0
SIZES = (500, 2000, 2000)
PUBLISHED_SIZES = dict(zip(PARTITIONS, SIZES, strict=True))
BLOCK_FRACTIONS = FRACTIONS

_ORIGINAL_FRACTIONS = (0.1, 0.05, 0.05)


def random_starts(
    num_frames: int,
    sizes: Sequence[int] = SIZES,
    *,
    window: int = WINDOW,
    margin: int = MARGIN,
    seed: int = SEED,
) -> Starts:
    """Draws distinct random frames of the whole trajectory, as the original does. This leaks.

    Windows of training and test samples overlap, and a test sample may start one frame after a
    training sample, so memory helps a model. Use it to compare with published figures, and
    `block_starts` to measure how well a model predicts.

    The random numbers are the original's: of the frames without `margin` at either end, a tenth for
    training, then a twentieth each of the rest, and the first `sizes` of each. If `sizes` are
    larger, `sizes` are drawn instead.

    Args:
      num_frames: T.
      sizes: numbers of training, validation and test samples.
      window: frames from the initial state to the last target.
      margin: frames excluded at either end; the last `window` in any case.
      seed: of NumPy's legacy generator; 100 in the original.

    Raises:
      ValueError: the trajectory is too short; says how long it is and what is needed.
    """
    num_frames, sizes = as_count("num_frames", num_frames, 0), _check_sizes(sizes)
    as_count("window", window)
    as_count("margin", margin, least=0)
    # The last frame has no velocity.
    last = num_frames - 1 - max(margin, window)
    first = max(margin, 1)
    pool = np.arange(first, max(last, first))
    counts = [
        max(int(f * len(pool)), size) for f, size in zip(_ORIGINAL_FRACTIONS, sizes, strict=True)
    ]
    if sum(counts) > len(pool):
        raise ValueError(
            f"sizes: got {sum(sizes)} samples, which need {sum(counts)} initial frames, but of "
            f"{num_frames} frames {len(pool)} are left by a margin of {margin} at either end and a "
            f"window of {window}; use a longer trajectory, fewer samples, or a smaller margin or "
            "window"
        )
    generator = np.random.RandomState(as_seed("seed", seed))
    drawn = []
    for count in counts:
        drawn.append(generator.choice(pool, size=count, replace=False))
        pool = np.setdiff1d(pool, drawn[-1])
    return Starts(*(frames[:size] for frames, size in zip(drawn, sizes, strict=True)))


def block_starts(
    num_frames: int,
    sizes: Sequence[int] = SIZES,
    *,
    window: int = WINDOW,
    fractions: Sequence[float] = BLOCK_FRACTIONS,
    seed: int = SEED,
) -> Starts:
    """Draws distinct frames from three blocks of time, separated by a gap of one window.

    All frames that a sample uses, and the frame before it, are in its block. `fractions` are the
    shares of the blocks, without the two gaps; other arguments are those of `random_starts`.

    Raises:
      ValueError: a block is too short for its samples; says how long it is and what is needed.
    """
    num_frames, sizes = as_count("num_frames", num_frames, 0), _check_sizes(sizes)
    blocks = time_blocks(num_frames, window, fractions)
    generator = np.random.RandomState(as_seed("seed", seed))
    drawn = []
    for (name, block), size in zip(blocks.items(), sizes, strict=True):
        num_starts = max(len(block) - window - 2, 0)
        if num_starts < size:
            least = max((s + window + 2) / f for s, f in zip(sizes, fractions, strict=True))
            raise ValueError(
                f"{name}: got {size} samples, expected at most {num_starts}, the windows of "
                f"{window} frames in its block of {len(block)}; the trajectory has {num_frames} "
                f"frames, and about {int(np.ceil(least)) + 2 * window} are needed for "
                f"{' / '.join(map(str, sizes))} samples: use a longer one, fewer samples or a "
                "smaller window"
            )
        drawn.append(block.start + 1 + generator.permutation(num_starts)[:size])
    return Starts(*drawn)


def _check_sizes(sizes: Sequence[int]) -> tuple[int, int, int]:
    sizes = tuple(sizes)
    if len(sizes) != len(PARTITIONS):
        raise ValueError(f"sizes: got {sizes}, expected three numbers of at least 1")
    return tuple(as_count("sizes", size) for size in sizes)


def samples(
    trajectory: Trajectory,
    starts: Int[np.ndarray, "S"],
    edges: graph_lib.Edges,
    *,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts samples out of a trajectory, all with the same edges.

    Velocities are v[t] = x[t + 1] - x[t], in Angstrom per frame. Node features are |v_i| and
    Z_i / max_j Z_j, edge features those of `edges`, then |x_i - x_j|^2 in the initial state. Times
    are in frames: set the model's `time_scale` to `window / num_targets`.

    Args:
      trajectory: T frames of the atoms that are nodes.
      starts: `[S]`, the initial frames, see `block_starts` and `random_starts`.
      edges: see `bond_graph`.
      window: frames from the initial state to the last target.
      num_targets: P targets, uniform over the window.
      dtype: the dtype of all real numbers.

    Raises:
      ValueError: a window is not in the trajectory, or the edges do not belong to its atoms.
    """
    times = target_offsets(window, num_targets)
    positions, velocities = cut_windows(trajectory.positions, starts, times)
    features = _node_features(velocities[:, 0], trajectory.numbers)
    return samples_from_frames(positions, velocities, features, edges, times, dtype=dtype)


def radius_samples(
    trajectory: Trajectory,
    starts: Int[np.ndarray, "S"],
    *,
    radius: float = RADIUS,
    num_edges: int | None = None,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts samples out of a trajectory, each with the radius graph of its initial state.

    Edge features are [Z_i, Z_j, |x_i - x_j|^2]; everything else is as in `samples`. Atoms closer
    than `radius`, in Angstrom, are connected. Edges are padded to one number, `num_edges`, by
    default N (N - 1), so that all partitions have one size, and each sample has one more node, of
    zeros, that `node_mask` leaves out. Needs vesin, of the extra `data`.

    Raises:
      ValueError: a window is not in the trajectory, a wrong radius, or more than `num_edges` edges.
    """
    times, numbers = target_offsets(window, num_targets), trajectory.numbers
    positions, velocities = cut_windows(trajectory.positions, starts, times)
    if num_edges is None:
        num_edges = max(len(numbers) * (len(numbers) - 1), 1)
    edges = []
    for x in positions[:, 0]:
        found = graph_lib.radius_edges(x, radius)
        squared = graph_lib.squared_distances(x, found)
        columns = (numbers[found.receivers], numbers[found.senders], squared)
        edges.append(graph_lib.with_features(found, *columns))
    features = _node_features(velocities[:, 0], numbers)
    return samples_with_own_edges(
        positions, velocities, features, edges, times, num_edges=num_edges, dtype=dtype
    )


def reverse_time(
    trajectory: Trajectory, starts: Int[np.ndarray, "S"], *, window: int = WINDOW
) -> tuple[Trajectory, Int[np.ndarray, "S"]]:
    """Reverses a trajectory; returns it, and the initial frames in it of the windows of `starts`.

    Newton's equations and a Nose-Hoover chain are reversible, so these are new samples of the same
    task. They use the frames of their windows and the one before it, for the velocity at the last
    target; `block_starts` leaves room for it, and a window that starts at frame 0 is a
    `ValueError`.
    """
    starts = np.asarray(starts)
    if starts.size and starts.min() < 1:
        raise ValueError("starts: got frame 0, expected at least 1 to reverse a window")
    backwards = trajectory._replace(positions=trajectory.positions[::-1])
    return backwards, len(trajectory.positions) - 1 - window - starts


def paths(
    trajectory: Trajectory,
    starts: Int[np.ndarray, "S"],
    *,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    frames_per_target: int = 6,
) -> Float[np.ndarray, "S T N 3"]:
    """Returns the positions from initial states to the last target, for pictures.

    The shape is `[S, P K + 1, N, 3]`, the initial state first, target p (from 1) at `p K`, with K =
    `frames_per_target`. Raises `ValueError` if a window is not in the trajectory.
    """
    offsets = target_offsets(window, num_targets)
    frames = window_frames(len(trajectory.positions), starts, offsets)
    steps = num_targets * frames_per_target
    return trajectory.positions[frames[:, :1] + window * np.arange(steps + 1) // steps]


def _node_features(velocities: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns [|v_i|, Z_i / max_j Z_j] of states `[..., N, 3]`."""
    speeds = np.linalg.norm(velocities, axis=-1)
    charges = np.broadcast_to(numbers / numbers.max(), speeds.shape)
    return np.stack([speeds, charges], axis=-1)


def load(
    molecule: str,
    partition: str,
    *,
    split: Literal["blocks", "random"] = "blocks",
    num_samples: int | None = None,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    archive: Literal["md", "md17"] = "md",
    dtype: np.typing.DTypeLike = np.float32,
    data_dir: PathLike | None = None,
) -> Samples:
    """Loads one partition of a molecule's samples: heavy atoms, the original's graph and sizes.

    For other choices call its parts: `load_trajectory`, `heavy_atoms`, `block_starts` or
    `random_starts`, `bond_graph` and `samples`, or `radius_samples`. Set the model's `time_scale`
    to `window / num_targets`, 375. Needs the extra `data`.

    Args:
      molecule: its name.
      partition: "train", "valid" or "test".
      split: "blocks", which share no time, or "random", the original's, which leaks.
      num_samples: at most 500, 2000 and 2000, the defaults.
      window: frames from the initial state to the last target.
      num_targets: P targets, uniform over the window.
      archive: "md" for `md/<molecule>.npz`, "md17" for the original archive.
      dtype: the dtype of all real numbers.
      data_dir: the folder of both; `$EGNO_DATA_DIR`, else the cache, if None.

    Raises:
      ValueError: an argument is out of range, or the file is missing, damaged or too short.
    """
    check_choice("partition", partition, PARTITIONS)
    check_choice("split", split, ("blocks", "random"))
    if num_samples is not None:
        as_count("num_samples", num_samples, most=PUBLISHED_SIZES[partition])
    trajectory = load_trajectory(molecule, archive=archive, data_dir=data_dir)
    trajectory = molecule_trajectory.heavy_atoms(trajectory)
    draw = block_starts if split == "blocks" else random_starts
    starts = getattr(draw(len(trajectory.positions), window=window), partition)[:num_samples]
    edges = bond_graph(trajectory)
    return samples(trajectory, starts, edges, window=window, num_targets=num_targets, dtype=dtype)


def load_trajectory(
    molecule: str, *, archive: Literal["md", "md17"] = "md", data_dir: PathLike | None = None
) -> Trajectory:
    """Loads a molecule's trajectory with all its atoms; arguments and errors are those of `load`.

    An archive of "md17" is checked to be that of the molecule.
    """
    path = archives.path_of(molecule, archive=archive, data_dir=data_dir)
    try:
        trajectory = molecule_trajectory.read(path)
    except FileNotFoundError as error:
        verb = "generate" if archive == "md" else "download"
        is_known = molecule in MOLECULES
        what = f"--molecule {molecule}" if is_known else f"--smiles SMILES --name {molecule}"
        raise ValueError(
            f"{path} is not there; make it with `python -m egno_jax.datasets.md17 {verb} {what}`, "
            "or choose another folder with data_dir or EGNO_DATA_DIR"
        ) from error
    if archive == "md17":
        archives.check_original(path, trajectory, molecule)
    return trajectory
