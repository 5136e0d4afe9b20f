"""Profile of a compiled program by kind of operation.

`jax.profiler.trace` writes `plugins/profile/<date>/<host>.trace.json.gz`, events in the format of
Chrome's tracing. Instructions of the program are found by their names in its text, which also lists
the contents of fusions. An event's own time is its duration without that of the events inside it,
such as the body of a loop.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

_STEPS = 5
_MOST_OPS = 20
# The kind of a fusion is the first of these that it contains.
_KINDS = ("custom-call", "dot", "convolution", "scatter", "gather", "reduce", "sort")
_MOVES = {"copy", "transpose", "bitcast", "reshape", "broadcast", "slice", "concatenate", "pad"}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")


def profile(repeat: Callable[[int], None], text: str) -> dict[str, Any]:
    """Runs a program a few times under the profiler.

    Args:
      repeat: runs the program a number of times.
      text: the program, as `jax.stages.Compiled.as_text` returns it.

    Returns:
      `step_seconds`, the wall time of one run; by kind the seconds and number of operations,
      summed over threads; and the slowest operations.
    """
    repeat(1)
    with tempfile.TemporaryDirectory() as directory:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(directory, profiler_options=options):
            started = time.perf_counter()
            repeat(_STEPS)
            seconds = (time.perf_counter() - started) / _STEPS
        (path,) = Path(directory).glob("plugins/profile/*/*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {"step_seconds": seconds, **by_kind(own_times(events, kinds(text)), kinds(text))}


def kinds(text: str) -> dict[str, str]:
    """Returns the kind of every instruction of a compiled program.

    The kind of a fusion is the first of `_KINDS` that it contains; else `copy` if it only moves
    data, else `elementwise`. The kind of a custom call is its target.
    """
    found: dict[str, tuple[str, str]] = {}
    bodies: dict[str, set[str]] = {}
    body: set[str] = set()
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            body = bodies.setdefault(match[1], set())
        elif match := _INSTRUCTION.match(line):
            name, opcode = match.groups()
            found[name] = (opcode, line)
            body.add(opcode)
    return {name: _kind(opcode, line, bodies) for name, (opcode, line) in found.items()}


def _kind(opcode: str, line: str, bodies: dict[str, set[str]]) -> str:
    if opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', line)
        return f"custom call {target[1]}" if target else "custom call"
    if opcode in ("while", "conditional", "call"):
        return opcode
    called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
    inside = bodies.get(called[1], {opcode}) if called and opcode == "fusion" else {opcode}
    for kind in _KINDS:
        if kind in inside or (kind == "reduce" and "reduce-window" in inside):
            return kind
    moves_alone = not inside - _MOVES - {"parameter", "constant", "tuple", "get-tuple-element"}
    return "copy" if moves_alone else "elementwise"


def own_times(
    events: Iterable[dict[str, Any]], known: dict[str, str]
) -> dict[str, tuple[float, int]]:
    """Returns own seconds, summed over threads, and number of runs of each known instruction."""
    threads: dict[Any, list[tuple[float, float, str]]] = {}
    for event in events:
        name = event.get("args", {}).get("hlo_op", event.get("name"))
        if event.get("ph") == "X" and name in known:
            span = (event["ts"], -event["dur"], name)
            threads.setdefault((event["pid"], event["tid"]), []).append(span)
    totals: dict[str, tuple[float, int]] = {}
    for spans in threads.values():
        for name, microseconds in _own(sorted(spans)):
            seconds, count = totals.get(name, (0.0, 0))
            totals[name] = (seconds + microseconds * 1e-6, count + 1)
    return totals


def _own(spans: list[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """Returns name and own duration of the spans of one thread, sorted by their starts."""
    own: list[list[Any]] = []
    around: list[tuple[float, int]] = []
    for start, minus_duration, name in spans:
        while around and around[-1][0] <= start:
            around.pop()
        if around:
            own[around[-1][1]][1] += minus_duration
        around.append((start - minus_duration, len(own)))
        own.append([name, -minus_duration])
    return [(name, duration) for name, duration in own]


def by_kind(totals: dict[str, tuple[float, int]], known: dict[str, str]) -> dict[str, Any]:
    """Returns seconds and numbers of operations of one step by kind, and the slowest operations."""
    grouped: dict[str, dict[str, float]] = {}
    for name, (seconds, count) in totals.items():
        group = grouped.setdefault(known[name], {"seconds": 0.0, "count": 0})
        group["seconds"] += seconds / _STEPS
        group["count"] += count / _STEPS
    slowest = sorted(totals, key=lambda name: -totals[name][0])[:_MOST_OPS]
    return {
        "kinds": dict(sorted(grouped.items(), key=lambda item: -item[1]["seconds"])),
        "ops": [
            {"name": name, "kind": known[name], "seconds": totals[name][0] / _STEPS}
            for name in slowest
        ],
    }
