"""Convolution over time in Fourier space: by the FFT, or by the truncated DFT as matrix products.

Both compute the same thing, for each node and each component alone:

    X_k = sum_p x_p exp(-2 pi i k p / P),    Y_k = X_k R_k for k < M, 0 above,
    y_p = 1/P sum_k a_k Re[Y_k exp(2 pi i k p / P)],

with `a_k = 1` for k = 0 and for k = P/2, and 2 otherwise. A kernel is one real array
`[2, M, C_in, C_out]`, the real parts of R and then the imaginary parts, so that every optimizer is
right on it.

Source: Li et al., "Fourier Neural Operator", 2021, for the layer; Xu et al., "Equivariant Graph
Neural Operator", 2024, section 4.1, for its use along time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egno_jax.ops import kernels, sharding
from egno_jax.ops.accelerated import accelerate

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Up to so many modes the DFT is the faster: benchmarks/results/spectral-cpu.md.
_MAX_DFT_MODES = 32

# Slope of the nonlinearity at negative values.
NEGATIVE_SLOPE = 0.01


class Context(NamedTuple):
    """Which samples of a signal carry its Fourier coefficients, and where the response is read.

    Attributes:
      num_times: P_c; the first so many samples are equally spaced over one period.
      turns: `[R]`, or `[R, N]` where nodes differ: `(t - t_0) / T`, the time at which each of the R
        samples is taken, in periods after the first.
    """

    num_times: int
    turns: Float[Array, "R"] | Float[Array, "R N"]


def num_live_modes(num_times: int, num_modes: int) -> int:
    """Returns how many of `num_modes` a grid of `num_times` has: `min(M, P // 2 + 1)`."""
    return min(num_modes, num_times // 2 + 1)


def spectral_conv(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"], precision: str = "highest"
) -> Float[Array, "P *rest B"]:
    """Convolves over the first axis, by the faster of the two methods.

    Times that are split over devices meet in the DFT alone: their coefficients are summed, and no
    device sees the others' samples.

    Args:
      x: `[P, ..., C_in]`, samples at P equally spaced times.
      kernel: `[2, M, C_in, C_out]`, real and imaginary parts for each mode. Modes that the grid
        does not have (`k > P // 2`) are not used.
      precision: precision of the product over channels; that over times is always exact.

    Returns:
      `[P, ..., C_out]`.
    """
    is_split = sharding.axis_size(sharding.TIME_AXIS) > 1
    if is_split or num_live_modes(x.shape[0], kernel.shape[1]) <= _MAX_DFT_MODES:
        return spectral_conv_dft(x, kernel, precision)
    return spectral_conv_fft(x, kernel, precision)


def spectral_conv_fft(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"], precision: str = "highest"
) -> Float[Array, "P *rest B"]:
    """Convolves over the first axis with `rfft` and `irfft`; see `spectral_conv`.

    The transform itself takes O(P log P); the specification that `spectral_conv_dft` is held to.
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

    The transforms take O(P M), which is less than the FFT's work as long as few modes are kept, and
    need nothing but the M coefficients of each node and channel between them.
    """
    num_times = x.shape[0]
    modes = num_live_modes(num_times, kernel.shape[1])
    coefficients = sharding.share_whole(dft(x, modes))
    mixed = sharding.share_whole(mix_modes(coefficients, kernel[:, :modes], precision))
    return sharding.split_times(inverse_dft(mixed, num_times)).astype(x.dtype)


def spectral_conv_at(
    x: Float[Array, "R N *rest A"],
    kernel: Float[Array, "2 M A B"],
    context: Context,
    precision: str = "highest",
) -> Float[Array, "R N *rest B"]:
    """Convolves with the Fourier coefficients of the context, and reads the response at any times.

    `X_k = 1/P_c sum_{p < P_c} x_p exp(-2 pi i k p / P_c)`, and at every time t of the R samples
    `y(t) = sum_k a_k Re[(X_k R_k) exp(2 pi i k (t - t_0) / T)]`. At the context times alone this is
    `spectral_conv`; the response at a time depends on the context and on that time alone.

    Args:
      x: `[R, N, ..., C_in]`, samples; the first P_c are the context.
      kernel: `[2, M, C_in, C_out]`; modes that the context does not have are not used.
      context: how many samples the context has, and the times of all R.
      precision: precision of the product over channels; that over times is always exact.

    Returns:
      `[R, N, ..., C_out]`.
    """
    modes = num_live_modes(context.num_times, kernel.shape[1])
    coefficients = sharding.share_whole(_dft_of_context(x, context.num_times, modes))
    mixed = sharding.share_whole(mix_modes(coefficients, kernel[:, :modes], precision))
    mode = jnp.arange(modes).reshape(-1, *[1] * context.turns.ndim)
    turns = mode * context.turns
    angles = (2 * np.pi * (turns - jnp.floor(turns))).astype(mixed.dtype)
    amplitude = jnp.asarray(_amplitudes(context.num_times, modes), mixed.dtype).reshape(mode.shape)
    basis = jnp.stack([amplitude * jnp.cos(angles), -amplitude * jnp.sin(angles)])
    product = "zmr,zm...->r..." if context.turns.ndim == 1 else "zmrn,zmn...->rn..."
    response = jnp.einsum(product, basis, mixed, precision="highest").astype(x.dtype)
    return sharding.split_times(response)


def temporal_conv(
    features: Float[Array, "P N C"], kernel: Float[Array, "2 M C C"], precision: str = "highest"
) -> Float[Array, "P N C"]:
    """Convolves scalar features over time: `h <- h + LeakyReLU_0.01(spectral_conv(h, R))`.

    On a CPU, in float32, for widths that are multiples of 16 and not too many modes it is one
    kernel (`egno_jax.ops.kernels`); elsewhere `temporal_conv_reference`.

    Args:
      features: `[P, N, C]`, at P equally spaced times.
      kernel: `[2, M, C, C]`, real and imaginary parts for each mode.
      precision: precision of the product over channels.

    Returns:
      `[P, N, C]`.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, equation 7.
    """
    num_times = features.shape[0]
    modes = num_live_modes(num_times, kernel.shape[1])
    is_fit = 0 < modes <= _MAX_DFT_MODES and features.ndim == 3 and kernel.ndim == 4
    if not is_fit or sharding.is_partitioned():
        return temporal_conv_reference(features, kernel, precision=precision)[0]
    forward, inverse, mode_of = _real_basis(num_times, modes)
    (result,) = _temporal_conv(precision)(
        features,
        kernel,
        jnp.asarray(forward, features.dtype),
        jnp.asarray(inverse, features.dtype),
        jnp.asarray(mode_of),
    )
    return result


def temporal_conv_reference(
    features: Float[Array, "P *rest C"],
    kernel: Float[Array, "2 M C C"],
    *basis: Array,
    precision: str = "highest",
) -> tuple[Float[Array, "P *rest C"]]:
    """Computes `temporal_conv` as its formula says: the specification.

    Args:
      features: `[P, ..., C]`.
      kernel: `[2, M, C, C]`.
      *basis: not read.
      precision: precision of the product over channels.

    Returns:
      `[P, ..., C]`, alone in a tuple.
    """
    response = spectral_conv(features, kernel, precision)
    return (features + jax.nn.leaky_relu(response, NEGATIVE_SLOPE),)


@functools.cache
def _temporal_conv(precision: str) -> Callable[..., Sequence[Array]]:
    reference = functools.partial(temporal_conv_reference, precision=precision)
    return accelerate("temporal_conv", reference, 2, {"cpu": kernels.TEMPORAL_CONV})


def _real_basis(num_times: int, num_modes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the transforms between P times and the B real coefficients of M modes.

    Real parts and, of modes that are not their own mirror, imaginary parts in turn: `[B, P]` to the
    coefficients, `[P, B]` back, and `[B]`, the mode of each.
    """
    cosines, sines = _fourier_basis(num_times, num_modes)
    amplitudes = _amplitudes(num_times, num_modes)
    rows = [
        (mode, row)
        for mode in range(num_modes)
        for row in ((cosines[mode], -sines[mode]) if 0 < 2 * mode < num_times else (cosines[mode],))
    ]
    mode_of = np.array([mode for mode, _ in rows], np.int32)
    forward = np.stack([row for _, row in rows])
    return forward, (amplitudes[mode_of, None] * forward).T, mode_of


def dft(x: Float[Array, "P *rest C"], num_modes: int) -> Float[Array, "2 M *rest C"]:
    """Returns the first Fourier coefficients over the first axis, real parts and imaginary parts.

    `X_k = sum_p x_p exp(-2 pi i k p / P)` for `k < num_modes`; computed in float32 or wider.
    """
    cosines, sines = _fourier_basis(x.shape[0], num_modes)
    return _product_over_times(np.stack([cosines, -sines]), x)


def _product_over_times(
    basis: Float[np.ndarray, "2 M P"], x: Float[Array, "P *rest C"]
) -> Float[Array, "2 M *rest C"]:
    dtype = jnp.result_type(x.dtype, jnp.float32)
    return jnp.einsum(
        "zmp,p...->zm...", jnp.asarray(basis, dtype), x.astype(dtype), precision="highest"
    )


def _dft_of_context(
    x: Float[Array, "R *rest C"], num_times: int, num_modes: int
) -> Float[Array, "2 M *rest C"]:
    """Returns `dft` of the first P samples; the others weigh nothing."""
    if sharding.axis_size(sharding.TIME_AXIS) == 1:
        return dft(x[:num_times], num_modes)
    # A slice of times that are split would send them from device to device.
    cosines, sines = _fourier_basis(num_times, num_modes)
    basis = np.zeros((2, num_modes, x.shape[0]))
    basis[..., :num_times] = cosines, -sines
    return _product_over_times(basis, x)


def inverse_dft(
    coefficients: Float[Array, "2 M *rest C"], num_times: int
) -> Float[Array, "P *rest C"]:
    """Returns the real signal of P times that has these first coefficients and zeros above.

    `y_p = 1/P sum_k a_k Re[Y_k exp(2 pi i k p / P)]`, as `irfft` defines it.
    """
    num_modes = coefficients.shape[1]
    cosines, sines = _fourier_basis(num_times, num_modes)
    amplitude = _amplitudes(num_times, num_modes)[:, None]
    basis = jnp.asarray(np.stack([amplitude * cosines, -amplitude * sines]), coefficients.dtype)
    return jnp.einsum("zmp,zm...->p...", basis, coefficients, precision="highest")


def mix_modes(
    coefficients: Float[Array, "2 M *rest A"],
    kernel: Float[Array, "2 M A B"],
    precision: str = "highest",
) -> Float[Array, "2 M *rest B"]:
    """Multiplies each mode by its complex matrix: `Y_k = X_k R_k`.

    In real arithmetic one product: `[Re Y, Im Y] = [Re X, Im X] [[Re R, Im R], [-Im R, Re R]]`.
    """
    if kernel.ndim != 4 or kernel.shape[2] != coefficients.shape[-1]:
        raise ValueError(
            f"kernel: got shape {list(kernel.shape)}, expected [2, M, {coefficients.shape[-1]}, "
            "C_out] for a signal of so many channels"
        )
    real, imag = kernel.astype(coefficients.dtype)
    rows = [jnp.concatenate([real, imag], axis=-1), jnp.concatenate([-imag, real], axis=-1)]
    mixed = jnp.einsum(
        "m...a,mab->m...b",
        jnp.concatenate([coefficients[0], coefficients[1]], axis=-1),
        jnp.concatenate(rows, axis=-2),
        precision=precision,
    )
    return jnp.stack(jnp.split(mixed, 2, axis=-1))


def _amplitudes(num_times: int, num_modes: int) -> np.ndarray:
    """Returns `a_k / P`, `[M]`: modes other than the first and P/2 stand for their mirrors too."""
    mode = np.arange(num_modes)
    is_its_own_mirror = (mode == 0) | (2 * mode == num_times)
    return np.where(is_its_own_mirror, 1.0, 2.0) / num_times


def _fourier_basis(num_times: int, num_modes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cos and sin of `2 pi k p / P`, each `[M, P]` in float64; phases reduced exactly."""
    turns = np.outer(np.arange(num_modes), np.arange(num_times)) % num_times / num_times
    return np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
