"""Which frames samples start at: three blocks of time, in order, that share no frame.

A sample that starts at frame t knows x[t] and x[t + 1] (the velocity is their difference), and its
targets reach to x[t + window] and, for the velocity there, x[t + window + 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int

WINDOW = 15
FRACTIONS = (0.6, 0.2, 0.2)


class Starts(NamedTuple):
    """The frames at which the samples of each partition start.

    Attributes:
      train: `[S]`, in order.
      valid: likewise.
      test: likewise.
    """

    train: Int[np.ndarray, "S"]
    valid: Int[np.ndarray, "S"]
    test: Int[np.ndarray, "S"]


def block_starts(
    num_frames: int,
    *,
    window: int = WINDOW,
    stride: int = 1,
    fractions: Sequence[float] = FRACTIONS,
) -> Starts:
    """Cuts the time into a block to train on, one to select on and one to test on, in this order.

    All frames that a sample touches lie in its block, and between two blocks lies a gap of one
    window. The original cuts at the same fractions without a gap.

    Args:
      num_frames: T.
      window: frames from the given state to the last target.
      stride: frames from one sample to the next; 1 takes all windows.
      fractions: the blocks' shares of the frames that the two gaps leave.

    Returns:
      The starts.

    Raises:
      ValueError: a block is too short for one window; says what it has and what is needed.
    """
    for name, value in (("window", window), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-9:
        raise ValueError(f"fractions: got {list(fractions)}, expected three that add up to 1")
    free = max(num_frames - 2 * window, 0)
    ends = np.rint(np.concatenate([[0], np.cumsum(shares)]) * free).astype(int)
    starts = []
    for index, name in enumerate(Starts._fields):
        first, end = (ends[index : index + 2] + index * window).tolist()
        if end - first < window + 2:
            raise ValueError(
                f"{name}: its block of {end - first} of {num_frames} frames is too short for a "
                f"window of {window}, which takes {window + 2}; take a longer trajectory or a "
                "smaller window"
            )
        starts.append(np.arange(first, end - window - 1, stride))
    return Starts(*starts)
