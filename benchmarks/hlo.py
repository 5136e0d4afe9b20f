"""The compiler's figures of a compiled program, read from its HLO.

A program is a set of computations. The entry is executed once; the body of a loop as often as the
loop's trip count says, or a condition that compares with a constant, as that of `lax.scan` does
(once, if there is neither); a computation within a fusion as often as the fusion. Every branch of a
conditional counts.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc][0-9]+)\[([0-9,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LOOP = re.compile(r"^.* while\(.*$", re.M)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LESS_THAN = re.compile(r"ROOT .* compare\(.*?%([\w.\-]+)\), direction=LT")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = re.compile(r"%\w*?(egno_[a-z]+_kernel)[\w.]* = .* custom-call\(")
# The greatest 64-bit integer stands for an unknown number of cycles.
_UNKNOWN_CYCLES = 1 << 60
# Operations that call computations whose operations are launched one by one.
_CONTROL = {"while", "call", "conditional", "async-start"}
# Operations that are launched as a kernel each. Copies and scalar arithmetic are not counted.
_LAUNCHED = {"fusion", "custom-call", "dot", "convolution", "reduce", "reduce-window"}
_LAUNCHED |= {"gather", "scatter", "sort"}
# Custom calls that compute nothing.
_FREE = ('custom_call_target="AllocateBuffer"', 'custom_call_target="Sharding"')


class Collective(NamedTuple):
    """An array that takes part in a collective operation, with its shape on one device."""

    kind: str
    shape: tuple[int, ...]
    num_bytes: int


class Line(NamedTuple):
    """An operation of a program.

    Attributes:
      operation: such as `fusion`.
      text: its line.
      count: number of executions.
      is_inner: whether it is part of a fusion.
    """

    operation: str
    text: str
    count: int
    is_inner: bool


def figures(compiled: Any) -> dict[str, Any]:
    """Returns the compiler's figures of a program for one device; nothing is measured.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` returns.

    Returns:
      `launches`: kernels launched in one execution;
      `cycles`: the sum of the estimates of all operations, on TPU only; None elsewhere;
      `without_estimate`: launches on TPU whose cycles the compiler does not estimate;
      `kernels`: executions of each Pallas kernel of this library, by its name;
      `gathers`, `scatters`: number of executions of these operations;
      `collectives`: by kind, `count` (operations) and `bytes` (of their results on one device);
      `accessed_bytes`: what all operations read and write, as XLA's cost analysis counts it; None
        with loops that it would count once, because it does not know how often they run;
      `temporary_bytes`, `argument_bytes`, `output_bytes`: memory of one device.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    is_counted = all(_TRIPS.search(loop) for loop in _LOOP.findall(text))
    cost = compiled.cost_analysis() if is_counted else None
    return {
        **figures_of_text(text),
        "accessed_bytes": (cost or {}).get("bytes accessed"),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


def figures_of_text(text: str) -> dict[str, Any]:
    """Returns the figures of `figures` that are in the HLO."""
    lines = list(operations(text))
    launched = [line for line in lines if is_launched(line)]
    outer = [line for line in lines if not line.is_inner]
    estimates = {line: cycles for line in outer if (cycles := _estimate(line)) is not None}
    counts, kernels = collections.Counter(), collections.Counter()
    for line in lines:
        counts[line.operation] += line.count
        if found := _KERNEL.search(line.text):
            kernels[found[1]] += line.count
    return {
        "launches": sum(line.count for line in launched),
        "cycles": sum(line.count * n for line, n in estimates.items()) if estimates else None,
        "without_estimate": sum(line.count for line in launched if line not in estimates)
        if estimates
        else None,
        "kernels": dict(kernels),
        "gathers": counts["gather"],
        "scatters": counts["scatter"],
        "collectives": _totals(lines),
    }


def is_launched(line: Line) -> bool:
    """Returns whether an operation is a kernel of its own."""
    is_free = any(target in line.text for target in _FREE)
    return not line.is_inner and line.operation in _LAUNCHED and not is_free


def operations(text: str) -> Iterator[Line]:
    """Yields the operations of a program, each once, with the number of its executions."""
    computations, entry = _computations(text)
    counts, inner = collections.Counter(), set()
    _count(computations, entry, 1, False, counts, inner)
    for name, count in counts.items():
        for operation, line in computations[name]:
            yield Line(operation, line, count, name in inner)


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
    """Returns the operations of each computation with their lines, and the entry's name."""
    found: dict[str, list[tuple[str, str]]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            found[name] = []
            entry = name if header[1] else entry
        elif name and (operation := _OPERATION.match(line)):
            found[name].append((operation[1], line))
    return found, entry


def _count(
    computations: dict[str, list[tuple[str, str]]],
    name: str,
    times: int,
    is_inner: bool,
    counts: collections.Counter[str],
    inner: set[str],
) -> None:
    """Adds the executions of a computation, and of those that it calls."""
    counts[name] += times
    if is_inner:
        inner.add(name)
    for operation, line in computations[name]:
        trips = _trips(computations, line) if operation == "while" else 1
        for several, one in _CALLED.findall(line):
            for called in (several or one).split(","):
                called = called.strip().removeprefix("%")
                if called in computations:
                    is_part = is_inner or operation not in _CONTROL
                    _count(computations, called, times * trips, is_part, counts, inner)


def _trips(computations: dict[str, list[tuple[str, str]]], loop: str) -> int:
    """Returns how often a loop is executed; 1 if its line and its condition do not say it.

    A condition `i < n` is taken to count from 0 in steps of 1, as those of `lax.scan` do.
    """
    if found := _TRIPS.search(loop):
        return int(found[1])
    condition = computations.get(found[1], []) if (found := _CONDITION.search(loop)) else []
    lines = [line for _, line in condition]
    for name in (found[1] for line in lines if (found := _LESS_THAN.search(line))):
        constant = re.compile(rf"%{re.escape(name)} = .* constant\((\d+)\)")
        for line in lines:
            if found := constant.search(line):
                return int(found[1])
    return 1


def _estimate(line: Line) -> int | None:
    found = _CYCLES.search(line.text)
    return int(found[1]) if found and int(found[1]) < _UNKNOWN_CYCLES else None


# Collectives


def collectives(text: str) -> list[Collective]:
    """Returns the arrays of all collective operations; XLA may join several in one operation."""
    return [found for line in text.splitlines() for found in _collectives_of(line)]


def _collectives_of(line: str) -> list[Collective]:
    """Returns the results of an operation, if it is a collective one."""
    match = _COLLECTIVE.search(line)
    if match is None:
        return []
    types, kind, is_started = match.groups()
    arrays = _ARRAY.findall(types)
    if is_started and kind != "all-reduce":  # its type is that of operands and results, and others
        arrays = arrays[1:2] if kind == "collective-permute" else arrays[len(arrays) // 2 :]
    shapes = [(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in arrays]
    return [Collective(kind, shape, _size(dtype) * math.prod(shape)) for dtype, shape in shapes]


def _size(dtype: str) -> int:
    return _BYTES.get(dtype) or int(dtype[1:]) // 8


def _totals(lines: list[Line]) -> dict[str, dict[str, int]]:
    """Returns the number of collective operations by kind, and their bytes."""
    totals: dict[str, dict[str, int]] = {}
    for line in lines:
        found = _collectives_of(line.text)
        if found:
            total = totals.setdefault(found[0].kind, {"count": 0, "bytes": 0})
            total["count"] += line.count
            total["bytes"] += line.count * sum(each.num_bytes for each in found)
    return totals
