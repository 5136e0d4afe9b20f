"""Kernels for the operations that XLA compiles to far from a machine's limit.

`accelerate` joins a function in JAX and its kernels; `cpu` calls the kernels of the CPU, which
`library` compiles from the C++ in this folder; `tpu` and `gpu` have kernels in Pallas, those for
GPUs with what `rows` has for blocks of rows.
"""

from egno_jax.ops.kernels.accelerated import Kernel, accelerate
from egno_jax.ops.kernels.cpu import (
    FEATURE_UPDATE,
    MESSAGE_SUMS,
    TEMPORAL_CONV,
    VECTOR_SUMS,
    VELOCITY_FACTOR,
)
from egno_jax.ops.kernels.library import KernelError, Status, load

__all__ = [
    "FEATURE_UPDATE",
    "MESSAGE_SUMS",
    "TEMPORAL_CONV",
    "VECTOR_SUMS",
    "VELOCITY_FACTOR",
    "Kernel",
    "KernelError",
    "Status",
    "accelerate",
    "load",
]
