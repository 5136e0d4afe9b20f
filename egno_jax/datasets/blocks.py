"""Split of a trajectory into three blocks of time that share no frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from egno_jax.datasets.argument_checks import check_integer

if TYPE_CHECKING:
    from jaxtyping import Int

FRACTIONS = (0.6, 0.2, 0.2)


class Starts(NamedTuple):
    """The initial frames `[S]` of the samples of each partition, distinct."""

    train: Int[np.ndarray, "S"]
    valid: Int[np.ndarray, "S"]
    test: Int[np.ndarray, "S"]


PARTITIONS = Starts._fields


def time_blocks(
    num_frames: int, window: int, fractions: Sequence[float] = FRACTIONS
) -> dict[str, range]:
    """Returns the frames of each partition, of `num_frames`: train, then valid, then test.

    A gap of one window separates two blocks, so no test sample lies within a window's time of a
    training sample. A sample that starts at frame t needs the frames t to t + window + 1: its last
    velocity is x[t + window + 1] - x[t + window]. `fractions` are the shares without the two gaps.
    Raises `ValueError` if an argument is out of range.
    """
    check_integer("window", window)
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-9:
        raise ValueError(f"fractions: got {[*fractions]}, expected three that add up to 1")
    free = max(num_frames - 2 * window, 0)
    ends = np.rint(np.concatenate([[0], np.cumsum(shares)]) * free).astype(int).tolist()
    return {
        name: range(ends[i] + i * window, ends[i + 1] + i * window)
        for i, name in enumerate(PARTITIONS)
    }
