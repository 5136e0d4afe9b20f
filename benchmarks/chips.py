"""Published rates of the accelerators that programs are compiled for, and the least time of work.

    least time = max(operations * passes / peak rate, bytes / memory bandwidth)

for the operations and compulsory bytes that `benchmarks.floor` counts for the model's formulas.
A TPU multiplies bfloat16 numbers; a float32 product takes six passes at the precision "highest",
three at "high" and one at "default". Other work is not counted, so this is a lower bound.

Sources: Google Cloud, "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs), peak compute
and memory bandwidth of a chip; NVIDIA, "H100 Tensor Core GPU Datasheet", SXM.
"""

from __future__ import annotations

from typing import NamedTuple


class Accelerator(NamedTuple):
    """An accelerator according to its data sheet.

    Attributes:
      name: its name.
      clock: cycles a second: the peak rate over the operations of the matrix units in a cycle; None
        if the compiler estimates no cycles.
      peak: operations a second of bfloat16 products.
      float32: operations a second of float32 products; None: in passes of bfloat16.
      bandwidth: bytes a second of the memory.
      memory: bytes.
    """

    name: str
    clock: float | None
    peak: float
    float32: float | None
    bandwidth: float
    memory: float


ACCELERATORS = {
    "v5e": Accelerator("TPU v5e", 1.5e9, 197e12, None, 819e9, 16e9),
    "v5p": Accelerator("TPU v5p", 1.75e9, 459e12, None, 2765e9, 95e9),
    "v6e": Accelerator("TPU v6e", 1.75e9, 918e12, None, 1640e9, 32e9),
    "h100": Accelerator("NVIDIA H100 SXM", None, 989e12, 67e12, 3350e9, 80e9),
}
# Passes of bfloat16 products for the products of each variant of `benchmarks.programs`.
PASSES = {"ours-high": 3, "ours-default": 1, "ours-bf16": 1}


def accelerator_of(target: str) -> Accelerator:
    """Returns the accelerator of a target such as `v5e:4x4`."""
    return ACCELERATORS[target.partition(":")[0]]


def least_seconds(target: str, variant: str, operations: float, num_bytes: float) -> float:
    """Returns the least time of products and bytes on one device of a target."""
    chip = accelerator_of(target)
    passes = PASSES.get(variant, 6)
    rate = chip.peak / passes
    if passes == 6 and chip.float32 is not None:
        rate = chip.float32
    return max(operations / rate, num_bytes / chip.bandwidth)
