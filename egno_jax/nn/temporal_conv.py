"""Temporal convolutions in Fourier space: on scalars, on vectors, and on any irreps of O(3).

Each acts on every node independently and mixes channels, never the components of a vector or
tensor, so it commutes with rotations and reflections. The layers are called with

- the signal, time first: P equally spaced times, or those of the context;
- `context`: the times that carry the Fourier coefficients, see `egno_jax.ops.spectral_conv_at`.

They raise a ValueError if the signal does not have their form or the channels of their kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from egno_jax import ops
from egno_jax.nn.linear import compute_dtype

if TYPE_CHECKING:
    import e3nn_jax as e3nn
    from jaxtyping import Array, Float


class TemporalConv(nn.Module):
    """Convolves scalar features over time: `h <- h + LeakyReLU(irfft(R_k rfft(h)_k))`.

    Attributes:
      num_modes: number M of modes kept.
      dtype: dtype of the output; None follows input and weights. Fourier transform and product over
        channels are computed in float32 or wider.
      param_dtype, precision: as in `egno_jax.nn.Linear`.

    The parameter `kernel` is `[2, M, C, C]`, real and imaginary parts, initially uniform in
    `[0, 1) / C^2`.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, equation 7.
    """

    num_modes: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    @nn.compact
    def __call__(
        self, features: Float[Array, "P *rest C"], context: ops.Context | None = None
    ) -> Float[Array, "P *rest C"]:
        """Convolves over the first axis."""
        _check_signal(self, "features", features, "[P, ..., C]", features.ndim >= 2)
        width = features.shape[-1]
        init = nn.initializers.uniform(1.0 / max(width, 1) ** 2)
        kernel = self.param("kernel", init, (2, self.num_modes, width, width), self.param_dtype)
        dtype = compute_dtype(self.dtype, features, kernel)
        features = features.astype(dtype)
        if context is None:
            return ops.temporal_conv(features, kernel, self.precision)
        return features + ops.nonlinearity(
            ops.spectral_conv_at(features, kernel, context, self.precision)
        )


class VectorTemporalConv(nn.Module):
    """Convolves vector channels over time: `Z <- Z + irfft(W_k rfft(Z)_k)`, the same for x, y, z.

    There is no bias and no nonlinearity, because they would break equivariance. Everything is
    computed in float32 or wider at full precision.

    Attributes:
      num_modes: number M of modes kept.
      param_dtype: dtype of the kernel.
      init_bound: upper bound of the initial kernel; None: 0.2 / C, the original's 0.1 for its two
        channels. With 0 the layer starts as the identity.

    The parameter `kernel` is `[2, M, C, C]`, real and imaginary parts, initially uniform in
    `[0, init_bound)`.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, equation 8.
    """

    num_modes: int
    param_dtype: Any = jnp.float32
    init_bound: float | None = None

    @nn.compact
    def __call__(
        self, vectors: Float[Array, "P *rest 3 C"], context: ops.Context | None = None
    ) -> Float[Array, "P *rest 3 C"]:
        """Convolves over the first axis."""
        is_vector = vectors.ndim >= 3 and vectors.shape[-2] == 3
        _check_signal(self, "vectors", vectors, "[P, ..., 3, C]", is_vector)
        width = vectors.shape[-1]
        bound = 0.2 / max(width, 1) if self.init_bound is None else self.init_bound
        init = nn.initializers.uniform(bound)
        kernel = self.param("kernel", init, (2, self.num_modes, width, width), self.param_dtype)
        dtype = jnp.result_type(vectors.dtype, kernel.dtype, jnp.float32)
        vectors = vectors.astype(dtype)
        return vectors + _convolve(vectors, kernel, context)


class IrrepsTemporalConv(nn.Module):
    """Convolves any equivariant features over time, with one complex kernel for each irrep type.

    For each type l with parity p, of multiplicity C: `x <- x + sigma(irfft(R_k rfft(x)_k))`, where
    R_k mixes the C copies, not the `2 l + 1` components. `sigma` is LeakyReLU on even
    scalars, 0e, and the identity on everything else: an odd scalar changes sign under reflections
    and LeakyReLU is not odd. On `Cx0e` this is `TemporalConv`, on `Cx1o` `VectorTemporalConv`.

    Attributes:
      num_modes: number M of modes kept.
      param_dtype: dtype of the kernels.
      precision: precision of the product over the copies of a scalar; all other types have full
        precision, because they are geometry.

    Everything is computed and returned in float32 or wider.

    The parameters `kernel_<irrep>`, such as `kernel_1o`, are `[2, M, C, C]`, initially uniform in
    `[0, 1) / C^2` for scalars and in `[0, 0.2) / C` for other types.
    """

    num_modes: int
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    @nn.compact
    def __call__(self, x: e3nn.IrrepsArray, context: ops.Context | None = None) -> e3nn.IrrepsArray:
        """Convolves `[P, ..., irreps]` over the first axis.

        Several entries of one type, such as `2x0e + 1x1o + 3x0e`, are mixed together; the result
        has them regrouped, `5x0e + 1x1o`.
        """
        import e3nn_jax as e3nn  # see `egno_jax.nn.block.initial_extra`

        if not isinstance(x, e3nn.IrrepsArray) or x.ndim < 2:
            raise ValueError(
                f"x: got {type(x).__name__} of shape {getattr(x, 'shape', None)}, "
                "expected an e3nn_jax.IrrepsArray of shape [P, ..., irreps]; wrap an array as "
                'e3nn_jax.IrrepsArray("16x0e + 4x1o", array)'
            )
        x = x.regroup()
        dtype = jnp.result_type(x.dtype, self.param_dtype, jnp.float32)
        chunks = [
            self._convolve(irrep, x.shape[:-1], chunk, dtype, context)
            for irrep, chunk in zip(x.irreps, x.chunks, strict=True)
        ]
        return e3nn.from_chunks(x.irreps, chunks, x.shape[:-1], dtype)

    def _convolve(
        self,
        irrep: e3nn.MulIrrep,
        leading: tuple[int, ...],
        chunk: Float[Array, "P *rest C I"] | None,
        dtype: Any,
        context: ops.Context | None,
    ) -> Float[Array, "P *rest C I"]:
        mul, ir = irrep
        init = nn.initializers.uniform(1.0 / mul**2 if ir.l == 0 else 0.2 / mul)
        name, shape = f"kernel_{ir}", (2, self.num_modes, mul, mul)
        if self.has_variable("params", name):
            width = self.get_variable("params", name).shape[-1]
            if mul != width:
                raise ValueError(
                    f"x: got {mul}x{ir}, expected {width}x{ir}, the multiplicity that {name} was "
                    "made for"
                )
        kernel = self.param(name, init, shape, self.param_dtype)
        # e3nn-jax represents a chunk of zeros as None.
        chunk = jnp.zeros((*leading, mul, ir.dim)) if chunk is None else chunk
        chunk = chunk.astype(dtype)
        precision = self.precision if ir.l == 0 else "highest"
        response = _convolve(jnp.swapaxes(chunk, -1, -2), kernel, context, precision)
        if ir.is_scalar():
            response = ops.nonlinearity(response)
        return chunk + jnp.swapaxes(response, -1, -2)


def _check_signal(module: nn.Module, name: str, signal: Array, form: str, is_form: bool) -> None:
    """Raises if a signal does not have its form, or the channels of an existing kernel."""
    came = f"{name}: got shape {list(signal.shape)}, expected {form}"
    if not is_form:
        raise ValueError(f"{came}: times first, channels last")
    if module.has_variable("params", "kernel"):
        width = module.get_variable("params", "kernel").shape[-1]
        if signal.shape[-1] != width:
            raise ValueError(f"{came} with C = {width}, the channels that the kernel was made for")


def _convolve(
    x: Float[Array, "P *rest A"],
    kernel: Float[Array, "2 M A B"],
    context: ops.Context | None,
    precision: str = "highest",
) -> Float[Array, "P *rest B"]:
    if context is None:
        return ops.spectral_conv(x, kernel, precision)
    return ops.spectral_conv_at(x, kernel, context, precision)
