"""Kernels for the operations that XLA leaves far from the machine's limit."""

from egno_jax.ops.kernels.library import KernelError, Status, load
from egno_jax.ops.kernels.message_passing import MESSAGE_SUMS, NODE_UPDATE

__all__ = ["MESSAGE_SUMS", "NODE_UPDATE", "KernelError", "Status", "load"]
