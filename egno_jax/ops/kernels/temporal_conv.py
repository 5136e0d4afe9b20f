"""The CPU kernel of temporal convolutions: when it can be used, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from egno_jax.ops.accelerated import Kernel
from egno_jax.ops.kernels.arguments import fits, floats, pick

if TYPE_CHECKING:
    from jaxtyping import Array


class _TemporalConv:
    """Calls for `egno_jax.ops.temporal_conv`; its arguments, then basis and modes."""

    @staticmethod
    def is_usable(*args: Array) -> bool:
        features, kernel, _, _, mode_of = args
        if features.ndim != 3 or kernel.ndim != 4:
            return False
        times, _, width = features.shape
        (coefficients,) = mode_of.shape
        shapes = [
            *(features.shape, (2, kernel.shape[1], width, width)),
            *((coefficients, times), (times, coefficients)),
        ]
        return fits(args[:-1], shapes, (width,))

    @staticmethod
    def function(*args: Array) -> Sequence[Array]:
        return jax.ffi.ffi_call("egno_temporal_conv", floats(args[0].shape))(*args)

    @staticmethod
    def vjp(
        args: Sequence[Array],
        intermediates: Sequence[Array],
        cotangents: Sequence[Array],
        wanted: tuple[bool, ...],
    ) -> Sequence[Array]:
        results = floats(args[0].shape, args[1].shape)
        gradients = jax.ffi.ffi_call("egno_temporal_conv_vjp", results)(*args, *cotangents)
        return pick(gradients, wanted)


TEMPORAL_CONV = Kernel(_TemporalConv.is_usable, _TemporalConv.function, _TemporalConv.vjp)
