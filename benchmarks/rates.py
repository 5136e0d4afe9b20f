"""Rates of matrix products, copies and SiLU: functions that all peers share.

This module needs only NumPy, because `benchmarks.peer_pina` may have a different interpreter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# The least seconds of a group of calls; the best group counts.
_GROUP_SECONDS = 2e-3
_LEAST_GROUPS = 5
_MOST_SECONDS = 0.06
# In blocks of this size, the operands of a product stay in the cache.
_BLOCK_ROWS, _BLOCK_COLUMNS = 2048, 8192
# Numbers of elements for SiLU; the best size counts.
SILU_SIZES = tuple(2**power for power in (14, 16, 18, 20, 22))

Wait = Callable[[Any], Any]


def best_seconds(call: Callable[[], Any], wait: Wait = lambda result: result) -> float:
    """Returns the least seconds of a call, in groups long enough for the clock.

    Args:
      call: the function.
      wait: waits for a result of `call`; each group waits for its last.
    """
    wait(call())
    group = 1
    while (seconds := _group(call, wait, group)) < _GROUP_SECONDS:
        group = max(2 * group, int(1.2 * group * _GROUP_SECONDS / seconds))
    best, spent, groups = seconds, seconds, 1
    while groups < _LEAST_GROUPS or spent < _MOST_SECONDS:
        if spent > 10 * _MOST_SECONDS:
            break
        seconds = _group(call, wait, group)
        best, spent, groups = min(best, seconds), spent + seconds, groups + 1
    return best / group


def _group(call: Callable[[], Any], wait: Wait, size: int) -> float:
    started = time.perf_counter()
    for _ in range(size):
        result = call()
    wait(result)
    return time.perf_counter() - started


def operands(
    kind: str, rows: int, inner: int, columns: int
) -> tuple[np.ndarray, np.ndarray, bool, bool]:
    """Returns the factors of a product, and whether the first and the second are transposed.

    Args:
      kind: `forward`, `X W`; `input_gradient`, `dY W^T`; `weight_gradient`, `X^T dY`.
      rows: of X `[rows, inner]` and dY `[rows, columns]`.
      inner: of X and of W `[inner, columns]`.
      columns: of W and dY.
    """
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    if kind == "forward":
        return draw(rows, inner), draw(inner, columns), False, False
    if kind == "input_gradient":
        return draw(rows, columns), draw(inner, columns), False, True
    return draw(rows, inner), draw(rows, columns), True, False


def matmul_seconds(
    shape: Sequence[Any],
    make: Callable[[np.ndarray, np.ndarray, bool, bool], tuple[Callable[[], Any], Wait]],
) -> float:
    """Returns the least seconds of a product, at once or in blocks that stay in the cache.

    Args:
      shape: kind, rows, inner and columns, the arguments of `operands`.
      make: returns a function that multiplies two factors, and one that waits for the result.
    """
    kind, rows, inner, columns = shape
    block = (min(rows, _BLOCK_ROWS), min(columns, _BLOCK_COLUMNS))
    best = best_seconds(*make(*operands(kind, *(rows, inner, columns))))
    if block == (rows, columns):
        return best
    share = (rows / block[0]) * (columns / block[1])
    return min(best, share * best_seconds(*make(*operands(kind, block[0], inner, block[1]))))


def numpy_matmul(
    a: np.ndarray, b: np.ndarray, is_a_transposed: bool, is_b_transposed: bool
) -> tuple[Callable[[], Any], Wait]:
    """Returns NumPy's product of two factors, for `matmul_seconds`."""
    a, b = (a.T if is_a_transposed else a), (b.T if is_b_transposed else b)
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    return lambda: np.matmul(a, b, out=out), lambda result: result


def numpy_copy_rate(num_bytes: int) -> float:
    """Returns the bytes a second that NumPy copies, reads and writes."""
    source = np.ones(max(num_bytes // 8, 1), np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: np.copyto(target, source))
