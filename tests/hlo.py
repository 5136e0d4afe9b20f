"""What a compiled program sends between devices, read from its HLO."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_BYTES = {"f32": 4, "f64": 8, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "s64": 8, "u64": 8}
_KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_LINE = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


class Collective(NamedTuple):
    """An array that takes part in a collective operation, with its shape on one device."""

    kind: str
    shape: tuple[int, ...]
    num_bytes: int


def collectives(text: str) -> list[Collective]:
    """Returns the arrays of all collective operations; XLA may join several in one operation."""
    return [
        Collective(
            kind,
            shape := tuple(int(n) for n in sizes.split(",") if n),
            _BYTES[dtype] * math.prod(shape),
        )
        for types, kind in _LINE.findall(text)
        for dtype, sizes in _ARRAY.findall(types)
    ]
