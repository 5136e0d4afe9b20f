"""The CPU kernels of message passing: when they can be used, and how they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from egno_jax.ops.accelerated import Kernel
from egno_jax.ops.kernels import library

if TYPE_CHECKING:
    from jaxtyping import Array

# A kernel's vectors have at most so many numbers, and it has no tails.
_LANES = 16


def _fits(arrays: Sequence[Array], widths: Sequence[int]) -> bool:
    """Says whether there is something to do, in float32 and in whole vectors."""
    return (
        all(array.dtype == jnp.float32 for array in arrays)
        and all(width > 0 and width % _LANES == 0 for width in widths)
        and all(size > 0 for size in arrays[0].shape)
        and library.load().is_loaded
    )


def _floats(*shapes: Sequence[int]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for shape in shapes]


def _with_int32(args: Sequence[Array]) -> list[Array]:
    *floats, senders, receivers = args
    return [*floats, senders.astype(jnp.int32), receivers.astype(jnp.int32)]


class _MessageSums:
    """Calls for `egno_jax.ops.message_sums`; the arguments are those of its reference."""

    # The place of the edge features among the arguments.
    edge_features = 2

    @staticmethod
    def is_usable(*args: Array) -> bool:
        features, positions, _, kernel_1, _, kernel_2, *_, senders, _ = args
        depth, width = features.shape[-1], kernel_1.shape[-1]
        square = (width, width)
        return (
            senders.shape[0] > 0
            and positions.shape == (*features.shape[:2], 3)
            and [x.shape for x in args[5:-2:2]] == [square, square, (width, 1)]
            and kernel_2.shape == square
            and _fits(args[:-2], (depth, width))
        )

    @staticmethod
    def function(*args: Array) -> Sequence[Array]:
        times_and_nodes, width = args[0].shape[:2], args[3].shape[-1]
        terms = (*times_and_nodes, width)
        results = _floats(terms, (*times_and_nodes, 3), terms, terms)
        return jax.ffi.ffi_call("egno_message_sums", results)(*_with_int32(args))

    @classmethod
    def vjp(
        cls,
        args: Sequence[Array],
        intermediates: Sequence[Array],
        cotangents: Sequence[Array],
        wanted: tuple[bool, ...],
    ) -> Sequence[Array]:
        results = _floats(*(x.shape for x in args[:-2]))
        # The kernel has the gradient of edge features time by time, or, with no time, not at all.
        num_times = args[0].shape[0] if wanted[cls.edge_features] else 0
        results[cls.edge_features] = _floats((num_times, *args[cls.edge_features].shape))[0]
        call = jax.ffi.ffi_call("egno_message_sums_vjp", results)
        gradients = list(call(*_with_int32(args), *intermediates, *cotangents))
        gradients[cls.edge_features] = jnp.sum(gradients[cls.edge_features], axis=0)
        return _pick(gradients, wanted)


class _NodeUpdate:
    """Calls for `egno_jax.ops.node_update`; the arguments are those of its reference."""

    @staticmethod
    def is_usable(*args: Array) -> bool:
        features, messages, *layers = args
        widths = [features.shape[-1], messages.shape[-1], *(x.shape[-1] for x in layers[:-2])]
        return layers[-2].shape[-1] == 1 and _fits(args, widths)

    @staticmethod
    def function(*args: Array) -> Sequence[Array]:
        times_and_nodes = args[0].shape[:2]
        _, _, kernel_1, _, kernel_2, _, kernel_3, *_ = args
        widths = (kernel_2.shape[1], 1, kernel_1.shape[1], kernel_3.shape[1])
        results = _floats(*((*times_and_nodes, width) for width in widths))
        return jax.ffi.ffi_call("egno_node_update", results)(*args)

    @staticmethod
    def vjp(
        args: Sequence[Array],
        intermediates: Sequence[Array],
        cotangents: Sequence[Array],
        wanted: tuple[bool, ...],
    ) -> Sequence[Array]:
        results = _floats(*(x.shape for x in args))
        call = jax.ffi.ffi_call("egno_node_update_vjp", results)
        return _pick(call(*args, *intermediates, *cotangents), wanted)


def _pick(gradients: Sequence[Array], wanted: tuple[bool, ...]) -> list[Array]:
    return [gradient for gradient, is_wanted in zip(gradients, wanted, strict=True) if is_wanted]


MESSAGE_SUMS = Kernel(_MessageSums.is_usable, _MessageSums.function, _MessageSums.vjp)
NODE_UPDATE = Kernel(_NodeUpdate.is_usable, _NodeUpdate.function, _NodeUpdate.vjp)
