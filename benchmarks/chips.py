"""Published rates of the TPUs that programs are compiled for, and the least time of work on them.

    least time = max(operations * passes / peak rate, bytes / memory bandwidth)

for the operations and compulsory bytes that `benchmarks.floor` counts for the model's formulas. A
TPU multiplies bfloat16 numbers; a float32 product takes six passes at the precision "highest",
three at "high" and one at "default". Other work is not counted, so this is a lower bound. There is
none for a GPU, because XLA estimates no time to compare it with.

Sources: Google Cloud, "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs): peak compute
in bfloat16, memory and its bandwidth of a chip. The clock is that peak over the operations of the
matrix units in a cycle. The compiler's estimate for one large bfloat16 product (8192^3) is then at
88 % of the peak rate on v5e, 90 % on v5p and 70 % on v6e.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """A TPU according to its data sheet.

    Attributes:
      peak: operations a second of bfloat16 products.
      operations_per_cycle: those of all matrix units of the chip.
      bandwidth: bytes a second of the memory.
      memory: bytes.
    """

    peak: float
    operations_per_cycle: int
    bandwidth: float
    memory: float

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peak / self.operations_per_cycle


CHIPS = {
    "v5e": Chip(197e12, 4 * 2 * 128**2, 819e9, 16e9),
    "v5p": Chip(459e12, 8 * 2 * 128**2, 2765e9, 95e9),
    "v6e": Chip(918e12, 4 * 2 * 256**2, 1640e9, 32e9),
}
# Passes of bfloat16 products for the variants of `benchmarks.programs`; six for all others.
PASSES = {"ours-high": 3, "ours-default": 1, "ours-bf16": 1}


def chip_of(target: str) -> Chip | None:
    """Returns the chip of a target such as `v5e` or `v5e:4x4`; None for a GPU."""
    return CHIPS.get(target.partition(":")[0])


def least_seconds(chip: Chip, variant: str, operations: float, num_bytes: float) -> float:
    """Returns the least time of products and bytes on a chip."""
    products = operations * PASSES.get(variant, 6) / chip.peak
    return max(products, num_bytes / chip.bandwidth)
