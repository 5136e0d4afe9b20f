"""A peer in its own process, which works only on request.

    python -m benchmarks.worker egno_jax

reads requests from standard input and answers on standard output, one JSON object a line:

    {"op": "load", "slot": "a", "path": "nbody-p5.npz", "workload": "step"}
    {"compile_seconds": 3.1, "num_parameters": 145832, "notes": []}
    {"op": "time", "slot": "a", "calls": 10}
    {"seconds": 0.0831}

so peers never compete for the machine. A failed operation answers `{"error": ...}`. This file and
`benchmarks.peer_pina` need only NumPy and the peer's own packages, so that the interpreter may be a
different one.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

# The module of each peer; all except `pina` are variants of one.
MODULES = {
    "egno_jax": "benchmarks.peer_jax",
    "egno_jax-bf16": "benchmarks.peer_jax",
    "egno_jax-tf32": "benchmarks.peer_jax",
    "naive": "benchmarks.peer_jax",
    "pina": "benchmarks.peer_pina",
}


class Loaded(NamedTuple):
    """A workload with its inputs on the device.

    Attributes:
      compile: compiles it, without running it; None if there is nothing to compile.
      call: runs it a number of times, waits for the results and returns the seconds of one.
      num_parameters: number of the model's real parameters.
      notes: for example differences of the peer.
    """

    compile: Callable[[], None] | None
    call: Callable[[int], float]
    num_parameters: int
    notes: tuple[str, ...] = ()


class Peer(Protocol):
    """The interface of a peer, which its module's `make(name)` returns."""

    def info(self) -> dict[str, Any]:
        """Returns device, versions and threads."""

    def load(self, path: Path, workload: str) -> Loaded:
        """Prepares a workload, `step` or `inference`, of the problem in a file."""

    def device_memory(self, *, reset: bool) -> dict[str, int] | None:
        """Returns `used` and `peak` bytes of an accelerator, or None without one.

        With `reset`, the peak is counted from now on, if the device supports that.
        """


def operations(peer: Peer) -> dict[str, Callable[..., dict[str, Any]]]:
    """Returns the operations of a worker by name; peers may add their own in `extra`."""
    slots: dict[str, Loaded] = {}

    def load(slot: str, path: str, workload: str) -> dict[str, Any]:
        loaded = slots[slot] = peer.load(Path(path), workload)
        return {
            "compile_seconds": compiled(loaded),
            "num_parameters": loaded.num_parameters,
            "notes": list(loaded.notes),
        }

    def run(slot: str, calls: int) -> dict[str, Any]:
        return {"seconds": slots[slot].call(calls)}

    def drop() -> dict[str, Any]:
        slots.clear()
        gc.collect()
        return {}

    def memory(path: str, warm_up: str, workload: str) -> dict[str, Any]:
        return peak_memory(peer, Path(path), Path(warm_up), workload)

    shared = {"info": peer.info, "load": load, "time": run, "drop": drop, "memory": memory}
    return {**shared, **getattr(peer, "extra", dict)()}


def compiled(loaded: Loaded) -> float | None:
    """Compiles a workload and returns the seconds that it took."""
    if loaded.compile is None:
        return None
    started = time.perf_counter()
    loaded.compile()
    return time.perf_counter() - started


def num_threads() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def timed(repeat: Callable[[int], None]) -> Callable[[int], float]:
    """Returns a function of a number of times that returns the seconds of one."""

    def call(times: int) -> float:
        started = time.perf_counter()
        repeat(times)
        return (time.perf_counter() - started) / times

    return call


# Memory


def peak_memory(peer: Peer, path: Path, warm_up: Path, workload: str) -> dict[str, Any]:
    """Measures the peak memory of a workload; call it once in a fresh process.

    The process first runs the workload on one graph, the problem `warm_up`; `base` is its memory
    after that, with imports and the set-up of allocators and threads. `peak` is the maximum over
    everything later, including compilation for the new sizes, above `base`. `run` is the memory of
    the compiled workload, which limits the size of a batch.

    Returns:
      `peak`, `run` and `base` in bytes, and `of`: `"host"` or `"device"`.
    """
    once = peer.load(warm_up, workload)
    compiled(once)
    once.call(2)
    del once
    base = _used(peer)
    loaded = peer.load(path, workload)
    compiled(loaded)
    compile_peak = _peak(peer)
    before = _used(peer)
    loaded.call(2)
    run_peak = _peak(peer)
    return {
        "peak": max(compile_peak, run_peak) - base,
        "run": run_peak - before,
        "base": base,
        "of": "host" if peer.device_memory(reset=False) is None else "device",
    }


def _used(peer: Peer) -> int:
    """Returns the bytes in use, and resets the peak."""
    gc.collect()
    memory = peer.device_memory(reset=True)
    if memory is not None:
        return memory["used"]
    _return_free_memory()
    _reset_peak_rss()
    return _status("VmRSS")


def _peak(peer: Peer) -> int:
    memory = peer.device_memory(reset=False)
    return _status("VmHWM") if memory is None else memory["peak"]


def _return_free_memory() -> None:
    """Returns memory that glibc keeps for later use to the system."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass


def _reset_peak_rss() -> None:
    """Sets the peak resident size to the present one, if the system permits it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _status(key: str) -> int:
    """Returns a size of this process in bytes, as Linux reports it.

    The peak of `getrusage` may be that of the parent, because it survives `exec`.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}; peak memory needs Linux")


# The protocol


def serve(table: dict[str, Callable[..., dict[str, Any]]], requests: TextIO, out: TextIO) -> None:
    """Answers requests until there are no more."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = table[request.pop("op")](**request)
        except Exception:
            answer = {"error": traceback.format_exc()}
        out.write(json.dumps(answer) + "\n")
        out.flush()


def main() -> None:
    """Serves the peer that the command line names."""
    # Output of libraries must not mix with the answers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name = sys.argv[1]
    try:
        peer = importlib.import_module(MODULES[name]).make(name)
    except ImportError as error:
        out.write(json.dumps({"missing": str(error)}) + "\n")
        return
    out.write(json.dumps({"ready": name}) + "\n")
    out.flush()
    serve(operations(peer), sys.stdin, out)


if __name__ == "__main__":
    main()
