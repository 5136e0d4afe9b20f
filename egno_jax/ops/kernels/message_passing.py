"""The CPU kernels of message passing: when they can be used, and how they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from egno_jax.ops.accelerated import Kernel
from egno_jax.ops.kernels.arguments import fits, floats, pick

if TYPE_CHECKING:
    from jaxtyping import Array

# Other integers go through the specification.
_INDICES = {jnp.dtype("int32"), jnp.dtype("int64")}


def _with_int32(args: Sequence[Array]) -> list[Array]:
    """Returns the arguments with narrow indices; what is out of range stays so, on its side."""
    *reals, senders, receivers = args
    num_nodes = args[0].shape[1]

    def narrow(indices: Array) -> Array:
        if indices.dtype == jnp.int32:
            return indices
        return jnp.clip(indices, -num_nodes - 1, num_nodes).astype(jnp.int32)

    return [*reals, narrow(senders), narrow(receivers)]


class _MessageSums:
    """Calls for `egno_jax.ops.message_sums`; the arguments are those of its reference."""

    # The place of the edge features among the arguments.
    edge_features = 2

    @staticmethod
    def is_usable(*args: Array) -> bool:
        features, _, edge_features, kernel_1, *_, senders, receivers = args
        if features.ndim != 3 or edge_features.ndim != 2:
            return False
        times, nodes, depth = features.shape
        edges, edge_dim = edge_features.shape
        width = kernel_1.shape[-1]
        square, row = (width, width), (width,)
        shapes = [
            *(features.shape, (times, nodes, 3), edge_features.shape),
            *((1 + 2 * depth + edge_dim, width), row, square, row),
            *(square, row, (width, 1), (1,)),
        ]
        return (
            edges > 0
            and senders.shape == receivers.shape == (edges,)
            and {senders.dtype, receivers.dtype} <= _INDICES
            and fits(args[:-2], shapes, (depth, width))
        )

    @staticmethod
    def function(*args: Array) -> Sequence[Array]:
        times_and_nodes, width = args[0].shape[:2], args[3].shape[-1]
        terms = (*times_and_nodes, width)
        results = floats(terms, (*times_and_nodes, 3), terms, terms)
        return jax.ffi.ffi_call("egno_message_sums", results)(*_with_int32(args))

    @classmethod
    def vjp(
        cls,
        args: Sequence[Array],
        intermediates: Sequence[Array],
        cotangents: Sequence[Array],
        wanted: tuple[bool, ...],
    ) -> Sequence[Array]:
        results = floats(*(x.shape for x in args[:-2]))
        # The kernel has the gradient of edge features time by time, or, with no time, not at all.
        num_times = args[0].shape[0] if wanted[cls.edge_features] else 0
        results[cls.edge_features] = floats((num_times, *args[cls.edge_features].shape))[0]
        call = jax.ffi.ffi_call("egno_message_sums_vjp", results)
        gradients = list(call(*_with_int32(args), *intermediates, *cotangents))
        gradients[cls.edge_features] = jnp.sum(gradients[cls.edge_features], axis=0)
        return pick(gradients, wanted)


class _TwoLayers:
    """Calls for `egno_jax.ops.feature_update` and `velocity_factor`, two layers at every node.

    Attributes:
      name: of the kernel.
      num_inputs: how many arrays of node features come before the layers.
    """

    def __init__(self, name: str, num_inputs: int):
        self.name = name
        self.num_inputs = num_inputs

    def is_usable(self, *args: Array) -> bool:
        *inputs, kernel_1, _, kernel_2, _ = args
        if any(x.ndim != 3 for x in inputs):
            return False
        depths = [x.shape[-1] for x in inputs]
        width, out_width = kernel_1.shape[-1], kernel_2.shape[-1]
        shapes = [
            *((*inputs[0].shape[:2], depth) for depth in depths),
            *((sum(depths), width), (width,), (width, out_width), (out_width,)),
        ]
        if len(inputs) == 1:  # one number a node
            return out_width == 1 and fits(args, shapes, [*depths, width])
        return fits(args, shapes, [*depths, width, out_width])

    def function(self, *args: Array) -> Sequence[Array]:
        times_and_nodes = args[0].shape[:2]
        kernel_1, kernel_2 = args[self.num_inputs], args[self.num_inputs + 2]
        widths = (kernel_2.shape[-1], kernel_1.shape[-1])
        results = floats(*((*times_and_nodes, width) for width in widths))
        return jax.ffi.ffi_call(self.name, results)(*args)

    def vjp(
        self,
        args: Sequence[Array],
        intermediates: Sequence[Array],
        cotangents: Sequence[Array],
        wanted: tuple[bool, ...],
    ) -> Sequence[Array]:
        results = floats(*(x.shape for x in args))
        call = jax.ffi.ffi_call(f"{self.name}_vjp", results)
        return pick(call(*args, *intermediates, *cotangents), wanted)

    def kernel(self) -> Kernel:
        return Kernel(self.is_usable, self.function, self.vjp)


MESSAGE_SUMS = Kernel(_MessageSums.is_usable, _MessageSums.function, _MessageSums.vjp)
FEATURE_UPDATE = _TwoLayers("egno_feature_update", num_inputs=2).kernel()
VELOCITY_FACTOR = _TwoLayers("egno_velocity_factor", num_inputs=1).kernel()
