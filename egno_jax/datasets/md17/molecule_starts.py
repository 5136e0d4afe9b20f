"""Initial frames of samples: the original's random frames, and blocks that share no time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from egno_jax.datasets.argument_checks import check_integer
from egno_jax.datasets.cutting import FRACTIONS, PARTITIONS, Starts, time_blocks

WINDOW = 3000
MARGIN = 10_000
SEED = 100
SIZES = (500, 2000, 2000)
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
    sizes = _check_sizes(sizes)
    check_integer("window", window)
    check_integer("margin", margin, least=0)
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
    """Draws distinct frames from three blocks of time, separated by a gap of one window.

    All frames that a sample uses, and the frame before it, are in its block. `fractions` are the
    shares of the blocks, without the two gaps; other arguments are those of `random_starts`.

    Raises:
      ValueError: a block is too short for its samples; says how long it is and what is needed.
    """
    sizes = _check_sizes(sizes)
    blocks = time_blocks(num_frames, window, fractions)
    generator = np.random.RandomState(seed)
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
    if len(sizes) != len(PARTITIONS) or min(sizes) < 1:
        raise ValueError(f"sizes: got {sizes}, expected three numbers of at least 1")
    return sizes
