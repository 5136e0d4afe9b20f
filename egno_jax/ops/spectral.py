"""Convolution over time in Fourier space: by the FFT, or by the truncated DFT as matrix products.

Both compute the same, independently for each node and component:

    X_k = sum_p x_p exp(-2 pi i k p / P),    Y_k = X_k R_k for k < M, 0 above,
    y_p = 1/P sum_k a_k Re[Y_k exp(2 pi i k p / P)],

with `a_k = 1` for k = 0 and for k = P/2, and 2 otherwise. A kernel is one real array
`[2, M, C_in, C_out]`, the real and the imaginary parts of R, because many optimizers do not handle
complex weights.

Source: Li et al., "Fourier Neural Operator", 2021, for the layer; Xu et al., "Equivariant Graph
Neural Operator", 2024, section 4.1, for its use along time.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egno_jax import deprecation
from egno_jax.ops import fourier, kernels, sharding
from egno_jax.ops.fourier import num_live_modes

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Slope of the nonlinearity at negative values.
NEGATIVE_SLOPE = 0.01
# The most weights of a sum that is not a matrix product.
MAX_SHORT_SUM = 128
# Channels with fewer than this are too few for matrix products of accelerators, and for the short
# sums of a TPU.
MIN_CHANNELS = 8


class Context(NamedTuple):
    """The samples that determine the Fourier coefficients, and the times of the response.

    Attributes:
      num_times: P_c; the first P_c samples are equally spaced over one period T.
      phases: `[R]`, or `[R, N]` (or other axes of nodes) if nodes differ: `(t - t_0) / T`, the time
        of each of the R samples after the first, in periods.
    """

    num_times: int
    phases: Float[Array, "R"] | Float[Array, "R *nodes"]

    @property
    def turns(self) -> Float[Array, "R"] | Float[Array, "R N"]:
        """Deprecated name of `phases`."""
        deprecation.warn("ops.Context.turns", "ops.Context.phases")
        return self.phases


def spectral_conv(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"], precision: str = "highest"
) -> Float[Array, "P *rest B"]:
    """Convolves over the first axis, by the faster of the two methods.

    On a mesh that shards the times it is the DFT: devices exchange coefficients, not samples.

    Args:
      x: `[P, ..., C_in]`, samples at P equally spaced times.
      kernel: `[2, M, C_in, C_out]`, real and imaginary parts for each mode. Modes that the grid
        does not have (`k > P // 2`) are not used.
      precision: precision of the product over channels; that over times is always exact.
    """
    is_split = sharding.axis_size(sharding.TIME_AXIS) > 1
    if is_split or num_live_modes(x.shape[0], kernel.shape[1]) <= fourier.MAX_DFT_MODES:
        return spectral_conv_dft(x, kernel, precision)
    return spectral_conv_fft(x, kernel, precision)


def spectral_conv_fft(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"], precision: str = "highest"
) -> Float[Array, "P *rest B"]:
    """Convolves over the first axis with `rfft` and `irfft`; see `spectral_conv`.

    The transform costs O(P log P). This is the specification of `spectral_conv_dft`.
    """
    num_times = x.shape[0]
    modes = num_live_modes(num_times, kernel.shape[1])
    dtype = jnp.result_type(x.dtype, jnp.float32)
    spectrum = jnp.fft.rfft(x.astype(dtype), axis=0)[:modes]
    weights = kernel[:, :modes].astype(dtype)
    mixed = jnp.einsum(
        "m...a,mab->m...b", spectrum, weights[0] + 1j * weights[1], precision=precision
    )
    return jnp.fft.irfft(mixed, n=num_times, axis=0).astype(x.dtype)


def spectral_conv_dft(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"], precision: str = "highest"
) -> Float[Array, "P *rest B"]:
    """Convolves over the first axis with real matrix products; see `spectral_conv`.

    The transforms cost O(P M), which is faster than the FFT for few modes.
    """
    num_times, width = x.shape[0], x.shape[-1]
    _check_kernel(kernel, width)
    kernel = kernel[:, : num_live_modes(num_times, kernel.shape[1])]
    if sharding.axis_size(sharding.TIME_AXIS) > 1:  # devices exchange what is mixed
        coefficients = sharding.replicate(dft(x, kernel.shape[1]))
        mixed = sharding.replicate(mix_modes(coefficients, kernel, precision))
        return sharding.shard_times(inverse_dft(mixed, num_times)).astype(x.dtype)
    by_modes = functools.partial(_by_modes, precision=precision)
    is_long = fourier.is_symbolic(num_times) or num_times * width > MAX_SHORT_SUM
    if is_long or width >= MIN_CHANNELS:
        return by_modes(x, kernel)
    return jax.lax.platform_dependent(x, kernel, tpu=in_one_product, default=by_modes)


def _by_modes(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"], precision: str
) -> Float[Array, "P *rest B"]:
    num_times, modes = x.shape[0], kernel.shape[1]
    products = _products(dft(x, modes), kernel, precision)
    return _sum_over(_basis_of_products(num_times, modes), products, 3).astype(x.dtype)


def in_one_product(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"]
) -> Float[Array, "P *rest B"]:
    """Convolves by one matrix product over times and channels, of P A rows and P B columns.

    For TPUs, whose programs for few channels take longer to start than to run.
    """
    num_times, modes = x.shape[0], kernel.shape[1]
    to_modes, to_times = _forward_basis(num_times, modes), _basis_of_products(num_times, modes)
    basis = np.einsum("pzym,zmq->pqym", to_times, to_modes)
    dtype = jnp.result_type(x.dtype, jnp.float32)
    kernel = kernel.astype(dtype)
    # The matrix is a sum of a few arrays: another product would take longer to start.
    matrix = sum(
        basis[:, None, :, None, part, mode].astype(dtype) * kernel[part, mode].T[:, None]
        for part, mode in np.ndindex(2, modes)
        if basis[..., part, mode].any()
    )
    product = jnp.einsum("pbqa,q...a->p...b", matrix, x.astype(dtype), precision="highest")
    return product.astype(x.dtype)


def _products(
    coefficients: Float[Array, "2 M *rest A"], kernel: Float[Array, "2 M A B"], precision: str
) -> Float[Array, "2 2 M *rest B"]:
    """Multiplies the real and imaginary parts of X_k by those of R_k; all four products.

    A GPU launches programs for a matrix product of two channels alone, so it adds scaled channels.
    A TPU, for which such a product costs as much as one of 128, does so too.
    """
    kernel = kernel.astype(coefficients.dtype)
    product = functools.partial(jnp.einsum, "zm...a,ymab->zym...b", precision=precision)
    if coefficients.shape[-1] >= MIN_CHANNELS:
        return product(coefficients, kernel)
    return jax.lax.platform_dependent(coefficients, kernel, cpu=product, default=few_products)


def few_products(
    coefficients: Float[Array, "2 M *rest A"], kernel: Float[Array, "2 M A B"]
) -> Float[Array, "2 2 M *rest B"]:
    """Computes `einsum("zm...a,ymab->zym...b", ...)` as scaled channels, summed."""
    ones = [1] * (coefficients.ndim - 3)
    kernel = kernel.reshape(1, *kernel.shape[:2], *ones, *kernel.shape[2:])
    channels = (
        coefficients[:, None, ..., a, None] * kernel[..., a, :] for a in range(kernel.shape[-2])
    )
    return sum(channels)


def _basis_of_products(num_times: int, num_modes: int) -> Float[np.ndarray, "P 2 2 M"]:
    """Returns what each product contributes to each time.

    `Re Y = Re X Re R - Im X Im R` and `Im Y = Re X Im R + Im X Re R`, in `inverse_dft`.
    """
    xp = fourier.array_module(num_times)
    real, imag = _inverse_basis(num_times, num_modes)
    return xp.stack([xp.stack([real, imag]), xp.stack([imag, -real])]).transpose(3, 0, 1, 2)


def spectral_conv_at(
    x: Float[Array, "R N *rest A"],
    kernel: Float[Array, "2 M A B"],
    context: Context,
    precision: str = "highest",
) -> Float[Array, "R N *rest B"]:
    """Convolves with the Fourier coefficients of the context; the response is at any times.

    `X_k = 1/P_c sum_{p < P_c} x_p exp(-2 pi i k p / P_c)`, and at every time t of the R samples
    `y(t) = sum_k a_k Re[(X_k R_k) exp(2 pi i k (t - t_0) / T)]`. At the context times alone this is
    `spectral_conv`; the response at a time depends only on the context and on that time.

    Args:
      x: `[R, N, ..., C_in]`, samples; the first P_c are the context.
      kernel: `[2, M, C_in, C_out]`; modes that the context does not have are not used.
      context: how many samples the context has, and the times of all R.
      precision: precision of the product over channels; that over times is always exact.
    """
    modes = num_live_modes(context.num_times, kernel.shape[1])
    coefficients = sharding.replicate(_dft_of_context(x, context.num_times, modes))
    mixed = sharding.replicate(mix_modes(coefficients, kernel[:, :modes], precision))
    mode = jnp.arange(modes).reshape(-1, *[1] * context.phases.ndim)
    phases = mode * context.phases
    angles = (2 * np.pi * (phases - jnp.floor(phases))).astype(mixed.dtype)
    amplitude = jnp.asarray(fourier.amplitudes(context.num_times, modes), mixed.dtype)
    amplitude = amplitude.reshape(mode.shape)
    basis = jnp.stack([amplitude * jnp.cos(angles), -amplitude * jnp.sin(angles)])
    nodes = "nijk"[: context.phases.ndim - 1]
    product = f"zmr{nodes},zm{nodes}...->r{nodes}..."
    response = jnp.einsum(product, basis, mixed, precision="highest").astype(x.dtype)
    return sharding.shard_times(response)


def nonlinearity(response: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `LeakyReLU_0.01(response)`, the nonlinearity of convolved scalars.

    The CPU kernel has its own copy (`kernels/temporal_conv.h`), which tests compare with this one.
    """
    return jax.nn.leaky_relu(response, NEGATIVE_SLOPE)


def temporal_conv_reference(
    features: Float[Array, "P *rest C"], kernel: Float[Array, "2 M C C"], precision: str = "highest"
) -> Float[Array, "P *rest C"]:
    """Convolves scalar features over time: `h <- h + LeakyReLU_0.01(spectral_conv(h, R))`.

    On a CPU, in float32, for `[P, N, C]` with widths that are multiples of 16 and at most 32 modes,
    `temporal_conv` is one kernel (`egno_jax.ops.kernels`); elsewhere it is
    `temporal_conv_reference`, its specification in JAX. Arguments as in `spectral_conv`.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, equation 7.
    """
    response = spectral_conv(features, kernel, precision)
    return features + nonlinearity(response)


temporal_conv = kernels.accelerate(
    "temporal_conv", temporal_conv_reference, {"cpu": kernels.TEMPORAL_CONV}, static=["precision"]
)


def dft(x: Float[Array, "P *rest C"], num_modes: int) -> Float[Array, "2 M *rest C"]:
    """Returns the first Fourier coefficients over the first axis, real and imaginary parts.

    `X_k = sum_p x_p exp(-2 pi i k p / P)` for `k < num_modes`; computed in float32 or wider.
    """
    return _sum_over(_forward_basis(x.shape[0], num_modes), x)


def _sum_over(
    basis: Float[np.ndarray, "*out *axes"], x: Float[Array, "*axes *rest"], num_axes: int = 1
) -> Float[Array, "*out *rest"]:
    """Sums over the first `num_axes` axes of x, weighted by the basis; in float32 or wider.

    It is a matrix product on a CPU, for many weights, where devices share the times, and for few
    channels on a TPU, which rearranges them fast. A GPU would launch several programs for a product
    and one for a sum of scaled arrays.
    """
    x = x.astype(jnp.result_type(x.dtype, jnp.float32))

    def product(x: Float[Array, "*axes *rest"]) -> Float[Array, "*out *rest"]:
        return jnp.tensordot(jnp.asarray(basis, x.dtype), x, num_axes, precision="highest")

    def scaled(x: Float[Array, "*axes *rest"]) -> Float[Array, "*out *rest"]:
        weights = jnp.asarray(basis, x.dtype).reshape(*basis.shape, *[1] * (x.ndim - num_axes))
        return jnp.sum(weights * x, axis=tuple(range(basis.ndim - num_axes, basis.ndim)))

    is_long = fourier.is_symbolic(basis.size) or basis.size > MAX_SHORT_SUM
    is_split = sharding.axis_size(sharding.TIME_AXIS) > 1
    if is_long or is_split:
        return product(x)
    short = functools.partial(short_sum, basis, num_axes=num_axes)
    on_tpu = short if x.shape[-1] >= MIN_CHANNELS else product
    return jax.lax.platform_dependent(x, cpu=product, tpu=on_tpu, default=scaled)


def short_sum(
    basis: Float[np.ndarray, "*out *axes"], x: Float[Array, "*axes *rest"], num_axes: int = 1
) -> Float[Array, "*out *rest"]:
    """Computes `tensordot(basis, x, num_axes)` as one scaled slice of x after another, summed.

    For TPUs, which would rearrange all of x for a product over its first axes. The derivative of
    this form would be slow there, so it has another one, whose transpose is again a sum of scaled
    slices.
    """
    rest = x.shape[num_axes:]
    out = basis.shape[: basis.ndim - num_axes]
    rows = basis.reshape(math.prod(out), -1, *[1] * len(rest)).astype(x.dtype)

    @jax.custom_jvp
    def by_slices(x: Float[Array, "A *rest"]) -> Float[Array, "B *rest"]:
        return sum(rows[:, i] * x[i] for i in range(len(x)))

    @by_slices.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (x,), (tangent,) = primals, tangents
        return by_slices(x), jnp.stack([jnp.sum(row * tangent, axis=0) for row in rows])

    return by_slices(x.reshape(rows.shape[1], *rest)).reshape(*out, *rest)


def _dft_of_context(
    x: Float[Array, "R *rest C"], num_times: int, num_modes: int
) -> Float[Array, "2 M *rest C"]:
    """Returns `dft` of the first P samples."""
    if sharding.axis_size(sharding.TIME_AXIS) == 1:
        return dft(x[:num_times], num_modes)
    # A slice of sharded times would move samples between devices; weights of zero do not.
    basis = np.zeros((2, num_modes, x.shape[0]))
    basis[..., :num_times] = _forward_basis(num_times, num_modes)
    return _sum_over(basis, x)


def inverse_dft(
    coefficients: Float[Array, "2 M *rest C"], num_times: int
) -> Float[Array, "P *rest C"]:
    """Returns the real signal of P times with these first coefficients; the others are zero.

    `y_p = 1/P sum_k a_k Re[Y_k exp(2 pi i k p / P)]`, as `irfft` defines it.
    """
    basis = _inverse_basis(num_times, coefficients.shape[1])
    return _sum_over(basis.transpose(2, 0, 1), coefficients, 2)


def _forward_basis(num_times: int, num_modes: int) -> Float[np.ndarray, "2 M P"]:
    """Returns what each time contributes to the real and imaginary parts of each mode."""
    cosines, sines = fourier.basis(num_times, num_modes)
    return fourier.array_module(num_times).stack([cosines, -sines])


def _inverse_basis(num_times: int, num_modes: int) -> Float[np.ndarray, "2 M P"]:
    """Returns what the real and imaginary parts of each mode contribute to each time."""
    cosines, sines = fourier.basis(num_times, num_modes)
    amplitude = fourier.amplitudes(num_times, num_modes)[:, None]
    return fourier.array_module(num_times).stack([amplitude * cosines, -amplitude * sines])


def mix_modes(
    coefficients: Float[Array, "2 M *rest A"],
    kernel: Float[Array, "2 M A B"],
    precision: str = "highest",
) -> Float[Array, "2 M *rest B"]:
    """Multiplies each mode by its complex matrix: `Y_k = X_k R_k`.

    In real arithmetic one product: `[Re Y, Im Y] = [Re X, Im X] [[Re R, Im R], [-Im R, Re R]]`.
    """
    _check_kernel(kernel, coefficients.shape[-1])
    real, imag = kernel.astype(coefficients.dtype)
    rows = [jnp.concatenate([real, imag], axis=-1), jnp.concatenate([-imag, real], axis=-1)]
    mixed = jnp.einsum(
        "m...a,mab->m...b",
        jnp.concatenate([coefficients[0], coefficients[1]], axis=-1),
        jnp.concatenate(rows, axis=-2),
        precision=precision,
    )
    return jnp.stack(jnp.split(mixed, 2, axis=-1))


def _check_kernel(kernel: Array, width: int) -> None:
    if kernel.ndim != 4 or kernel.shape[2] != width:
        raise ValueError(
            f"kernel: got shape {list(kernel.shape)}, expected [2, M, {width}, C_out]; C_in must "
            "be the number of channels of the signal"
        )
