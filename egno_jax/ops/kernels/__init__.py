"""Kernels for the operations that XLA leaves far from the machine's limit."""

from egno_jax.ops.kernels.library import KernelError, Status, load
from egno_jax.ops.kernels.message_passing import (
    FEATURE_UPDATE,
    MESSAGE_SUMS,
    VELOCITY_FACTOR,
)
from egno_jax.ops.kernels.temporal_conv import TEMPORAL_CONV

__all__ = [
    "FEATURE_UPDATE",
    "MESSAGE_SUMS",
    "TEMPORAL_CONV",
    "VELOCITY_FACTOR",
    "KernelError",
    "Status",
    "load",
]
