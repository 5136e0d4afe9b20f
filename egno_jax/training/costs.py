"""Costs of a run that its records report: time, compilations and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass
class Cost:
    """Cost of a chunk, filled in when it has ended: its time, and XLA's compilations meanwhile."""

    seconds: float = 0.0
    num_compiles: int = 0
    compile_seconds: float = 0.0


@contextlib.contextmanager
def watch(trace: Path | None = None) -> Iterator[Cost]:
    """Measures the cost of the block; results must be fetched within it.

    `trace` is a folder for its trace, which TensorBoard and https://ui.perfetto.dev show.
    """
    compiles, cost = _compiles(), Cost()
    num_before, started = len(compiles), time.perf_counter()
    with contextlib.ExitStack() as stack:
        if trace is not None:
            trace.mkdir(parents=True, exist_ok=True)
            stack.enter_context(jax.profiler.trace(str(trace), create_perfetto_trace=True))
        yield cost
    cost.seconds = time.perf_counter() - started
    cost.num_compiles = len(compiles) - num_before
    cost.compile_seconds = sum(compiles[num_before:])


def memory_bytes() -> int:
    """Returns the most memory in use so far.

    That of the first device of this process where the backend reports it, as on GPU and TPU; else
    the resident memory of the process, its programs included; 0 where neither is known.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@functools.cache
def _compiles() -> list[float]:
    """Returns a list that grows by the seconds of every compilation from now on."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == _COMPILED:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds
