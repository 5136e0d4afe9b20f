"""Which frames samples start at: the original's random frames, and blocks that share no time.

A sample that starts at frame t knows x[t] and x[t + 1] (the velocity is their difference), and its
targets reach to x[t + window] and, for the velocity there, x[t + window + 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

WINDOW = 3000
MARGIN = 10_000
SEED = 100
SIZES = (500, 2000, 2000)
BLOCK_FRACTIONS = (0.6, 0.2, 0.2)
PARTITIONS = ("train", "valid", "test")

_ORIGINAL_FRACTIONS = (0.1, 0.05, 0.05)


class Starts(NamedTuple):
    """The frames at which the samples of each partition start.

    Attributes:
      train: `[S]`, distinct, in random order.
      valid: likewise.
      test: likewise.
    """

    train: Int[np.ndarray, "S"]
    valid: Int[np.ndarray, "S"]
    test: Int[np.ndarray, "S"]


def random_starts(
    num_frames: int,
    sizes: Sequence[int] = SIZES,
    *,
    window: int = WINDOW,
    margin: int = MARGIN,
    seed: int = SEED,
) -> Starts:
    """Draws random frames of the whole trajectory, as the original does. It leaks.

    Windows of training and test samples overlap, and a test sample may start one frame after a
    training sample: what a model remembers helps it. Use it to compare with published figures, and
    `block_starts` to know how well a model predicts.

    The random numbers are the original's: of the frames but `margin` at either end a tenth for
    training, then a twentieth each of the rest, and the first so many of each. Where a tenth or a
    twentieth is fewer than asked for, as many as asked for are drawn instead.

    Args:
      num_frames: T.
      sizes: samples to train on, to select on, to test on.
      window: frames from the given state to the last target.
      margin: frames left out at either end; the last `window` in any case.
      seed: of NumPy's legacy generator; 100 in the original.

    Returns:
      The starts, no frame twice.

    Raises:
      ValueError: the trajectory is too short; says what it has and what is needed.
    """
    sizes = _check(sizes, window)
    if margin < 0:
        raise ValueError(f"margin: got {margin}, expected 0 or more")
    # The last frame has no velocity.
    last = num_frames - 1 - max(margin, window)
    first = max(margin, 1)
    pool = np.arange(first, max(last, first))
    counts = [
        max(int(f * len(pool)), size) for f, size in zip(_ORIGINAL_FRACTIONS, sizes, strict=True)
    ]
    if sum(counts) > len(pool):
        raise ValueError(
            f"{sum(sizes)} samples need {sum(counts)} frames to start at, but of {num_frames} "
            f"frames {len(pool)} are left by a margin of {margin} at either end and a window of "
            f"{window}; take a longer trajectory, fewer samples, or a smaller margin or window"
        )
    generator = np.random.RandomState(seed)
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
    """Draws frames from three blocks of time that share none: train, then valid, then test.

    Between two blocks lies a gap of one window, so that no test sample lies within a window's time
    of a training sample. All frames that a sample touches, and the one before it, lie in its block.

    Args:
      num_frames: T.
      sizes: samples to train on, to select on, to test on.
      window: frames from the given state to the last target.
      fractions: the blocks' shares of the frames that the two gaps leave.
      seed: of the draw within the blocks.

    Returns:
      The starts, no frame twice.

    Raises:
      ValueError: a block is too short for its samples; says what it has and what is needed.
    """
    sizes = _check(sizes, window)
    fractions = np.asarray(fractions, float)
    if fractions.shape != (3,) or not (fractions > 0).all() or abs(fractions.sum() - 1) > 1e-9:
        raise ValueError(f"fractions: got {fractions.tolist()}, expected three that add up to 1")
    free = max(num_frames - 2 * window, 0)
    ends = np.rint(np.concatenate([[0], np.cumsum(fractions)]) * free).astype(int)
    generator = np.random.RandomState(seed)
    drawn = []
    for index, (name, size) in enumerate(zip(PARTITIONS, sizes, strict=True)):
        length = ends[index + 1] - ends[index]
        num_starts = max(length - window - 2, 0)
        if num_starts < size:
            least = max((s + window + 2) / f for s, f in zip(sizes, fractions, strict=True))
            raise ValueError(
                f"{name}: {size} samples asked for, but its block of {length} frames holds "
                f"{num_starts} windows of {window} frames; the trajectory has {num_frames} frames, "
                f"and about {int(np.ceil(least)) + 2 * window} are needed for "
                f"{' / '.join(map(str, sizes))} samples: take a longer one, fewer samples or a "
                "smaller window"
            )
        first = ends[index] + index * window + 1
        drawn.append(first + generator.permutation(num_starts)[:size])
    return Starts(*drawn)


def _check(sizes: Sequence[int], window: int) -> tuple[int, int, int]:
    sizes = tuple(sizes)
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"sizes: got {sizes}, expected three numbers of at least 1")
    if window < 1:
        raise ValueError(f"window: got {window}, expected at least 1")
    return sizes
