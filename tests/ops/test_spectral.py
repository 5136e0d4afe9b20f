"""The convolution over time: both methods against NumPy's FFT, and what makes it a convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import ops
from egno_jax.ops import fourier, spectral
from tests import helpers

spectral_conv_fft = jax.jit(ops.spectral_conv_fft)
spectral_conv_dft = jax.jit(ops.spectral_conv_dft)
dft = jax.jit(ops.dft, static_argnums=1)
inverse_dft = jax.jit(ops.inverse_dft, static_argnums=1)
METHODS = pytest.mark.parametrize(
    "method", [spectral_conv_fft, spectral_conv_dft], ids=["fft", "dft"]
)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
TOLERANCE = {"float32": 2e-6, "float64": 1e-14}

SEEDS = st.integers(0, 2**32 - 1)
# Numbers of times and of modes: odd, even, one, and fewer times than the modes need.
SIZES = st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (5, 2), (5, 5), (7, 3), (8, 5), (8, 9)])
FEW_SIZES = st.sampled_from([(1, 3), (5, 2), (8, 9)])


def draw(seed, num_times, num_modes, width, rest=(4, 3), dtype="float64"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_times, *rest, width[0]))
    kernel = rng.normal(size=(2, num_modes, *width))
    return x.astype(dtype), kernel.astype(dtype)


def numpy_conv(x, kernel):
    """The definition: `irfft_P(rfft(x)_k R_k)`, modes above M dropped, missing modes unused."""
    num_times = x.shape[0]
    spectrum = np.fft.rfft(x, axis=0)
    product = np.zeros((*spectrum.shape[:-1], kernel.shape[-1]), complex)
    for k in range(min(len(spectrum), kernel.shape[1])):
        product[k] = spectrum[k] @ (kernel[0, k] + 1j * kernel[1, k])
    return np.fft.irfft(product, n=num_times, axis=0)


@METHODS
@DTYPES
@settings(max_examples=40)
@given(data=st.data(), seed=SEEDS)
def test_conv_is_that_of_numpy(method, dtype, data, seed):
    sizes = data.draw(SIZES if dtype == "float64" else FEW_SIZES)
    x, kernel = draw(seed, *sizes, (2, 3), dtype=dtype)
    with helpers.using(dtype):
        found = method(x, kernel)
    assert found.dtype == dtype
    expected = numpy_conv(x.astype(np.float64), kernel.astype(np.float64))
    helpers.assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("sizes", [(1, 2), (5, 2), (8, 5)])
def test_gradients_of_both_methods_are_equal(sizes):
    x, kernel = draw(0, *sizes, (2, 2))
    weight = np.random.default_rng(1).normal(size=x.shape)

    def gradients(method):
        def loss(x, kernel):
            return jnp.sum(weight * jnp.square(method(x, kernel)))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)

    with helpers.using("float64"):
        by_fft, by_dft = gradients(spectral_conv_fft), gradients(spectral_conv_dft)
    helpers.assert_trees_close(by_dft, by_fft, 1e-13)


@METHODS
@settings(max_examples=15)
@given(seed=SEEDS, sizes=SIZES, factor=st.floats(-3, 3))
def test_conv_is_linear(method, seed, sizes, factor):
    x, kernel = draw(seed, *sizes, (2, 3))
    y, _ = draw(seed + 1, *sizes, (2, 3))
    with helpers.using("float64"):
        found = method(x + factor * y, kernel)
        expected = method(x, kernel) + factor * method(y, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@METHODS
@settings(max_examples=15)
@given(seed=SEEDS, sizes=SIZES, shift=st.integers(0, 8))
def test_conv_commutes_with_cyclic_shifts_in_time(method, seed, sizes, shift):
    """At P = 2 M - 2 the last mode is real and its imaginary part unused, as in irfft."""
    x, kernel = draw(seed, *sizes, (2, 3))
    with helpers.using("float64"):
        found = method(np.roll(x, shift, axis=0), kernel)
        expected = np.roll(method(x, kernel), shift, axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@METHODS
@settings(max_examples=15)
@given(seed=SEEDS, sizes=SIZES)
def test_constant_mode_alone_is_the_mean_over_time(method, seed, sizes):
    x, kernel = draw(seed, *sizes, (2, 3))
    kernel[:, 1:] = 0
    with helpers.using("float64"):
        found = method(x, kernel)
    expected = np.broadcast_to(x.mean(0) @ kernel[0, 0], found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-13)


@METHODS
@pytest.mark.parametrize("num_times", [1, 2, 7, 8])
def test_modes_that_the_grid_lacks_are_unused(method, num_times):
    live = ops.num_live_modes(num_times, 9)
    assert live == min(9, len(np.fft.rfftfreq(num_times)))
    x, kernel = draw(0, num_times, 9, (2, 2))
    with helpers.using("float64"):
        gradient = jax.jit(jax.grad(lambda kernel: jnp.sum(method(x, kernel) ** 2)))(kernel)
        np.testing.assert_allclose(method(x, kernel), method(x, kernel[:, :live]), atol=1e-14)
    assert np.abs(gradient[0, :live]).min() > 0
    np.testing.assert_array_equal(gradient[:, live:], 0)


@METHODS
def test_identity_kernel_of_all_modes_is_the_identity(method):
    for num_times in (1, 2, 5, 6):
        x, kernel = draw(3, num_times, num_times // 2 + 1, (2, 2))
        kernel[0], kernel[1] = np.eye(2), 0
        with helpers.using("float64"):
            np.testing.assert_allclose(method(x, kernel), x, atol=1e-14)


@pytest.mark.parametrize(("num_times", "num_modes"), [(6, 3), (70, 32), (70, 33), (71, 40)])
def test_choice_between_methods_does_not_change_the_result(num_times, num_modes):
    x, kernel = draw(1, num_times, num_modes, (2, 2), rest=(3,))
    with helpers.using("float64"):
        helpers.assert_close(ops.spectral_conv(x, kernel), numpy_conv(x, kernel), 1e-14)


@settings(max_examples=15)
@given(seed=SEEDS, num_times=st.sampled_from([1, 2, 5, 8]))
def test_dft_is_the_start_of_rfft_and_is_inverted(seed, num_times):
    x, _ = draw(seed, num_times, 1, (2, 2))
    modes = num_times // 2 + 1
    with helpers.using("float64"):
        coefficients = dft(x, modes)
        back = inverse_dft(coefficients, num_times)
    real, imag = np.asarray(coefficients)
    np.testing.assert_allclose(real + 1j * imag, np.fft.rfft(x, axis=0), atol=1e-13)
    np.testing.assert_allclose(back, x, atol=1e-13)


def test_mix_modes_is_the_complex_product():
    rng = np.random.default_rng(0)
    coefficients, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 5, 2))
    with helpers.using("float64"):
        real, imag = np.asarray(ops.mix_modes(coefficients, kernel))
    expected = np.einsum(
        "mna,mab->mnb", coefficients[0] + 1j * coefficients[1], kernel[0] + 1j * kernel[1]
    )
    np.testing.assert_allclose(real + 1j * imag, expected, atol=1e-13)


@METHODS
def test_conv_of_bfloat16_transforms_in_float32(method):
    x, kernel = draw(0, 8, 5, (4, 4), dtype="float32")
    kernel[0], kernel[1] = np.eye(4), 0
    half = jnp.asarray(x, jnp.bfloat16)
    found = method(half, kernel)
    assert found.dtype == jnp.bfloat16
    # Nothing but the last rounding is lost: the identity returns the bits that came.
    np.testing.assert_array_equal(found, half)


@pytest.mark.parametrize(("num_times", "num_modes"), [(1, 1), (2, 2), (5, 2), (8, 4)])
def test_short_sums_of_tpus_are_the_product(num_times, num_modes):
    cosines, sines = fourier.basis(num_times, num_modes)
    to_modes = np.stack([cosines, -sines])
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for basis, num_axes in ((to_modes, 1), (to_modes.transpose(2, 0, 1), 2)):
            x, tangent = rng.normal(size=(2, *basis.shape[-num_axes:], 4, 3))
            short = functools.partial(spectral.short_sum, basis, num_axes=num_axes)
            product = functools.partial(jnp.tensordot, basis, axes=num_axes)
            found, derivative = jax.jvp(short, (x,), (tangent,))
            pairs = [(found, product(x)), (derivative, product(tangent))]
            pairs.append((jax.vmap(short, -1, -1)(x), product(x)))
            pairs.append([jax.vjp(each, x)[1](found)[0] for each in (short, product)])
            for one, other in pairs:
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("num_times", "num_modes"), [(1, 1), (5, 2), (8, 3), (8, 9)])
def test_one_product_over_times_and_channels_is_the_convolution(num_times, num_modes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_times, 4, 3, 2))
    live = fourier.num_live_modes(num_times, num_modes)
    kernel = rng.normal(size=(2, num_modes, 2, 3))
    with jax.enable_x64(True):
        found, expected = (
            jax.vjp(function, jnp.asarray(x), jnp.asarray(kernel))
            for function in (
                lambda x, kernel: spectral.in_one_product(x, kernel[:, :live]),
                ops.spectral_conv_fft,
            )
        )
        helpers.assert_close(found[0], expected[0], 1e-13)
        cotangent = rng.normal(size=expected[0].shape)
        helpers.assert_trees_close(found[1](cotangent), expected[1](cotangent), 1e-13)


def test_products_of_few_channels_are_those_of_all():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 5, 2)), rng.normal(size=(2, 3, 2, 3))
    with jax.enable_x64(True):
        found = spectral.few_products(jnp.asarray(x), jnp.asarray(kernel))
    expected = np.einsum("zm...a,ymab->zym...b", x, kernel)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("platform", "is_product"), [("cpu", True), ("cuda", False)])
def test_two_channels_are_no_matrix_products_on_a_gpu(platform, is_product):
    x, kernel = jnp.ones((2, 3, 4, 5, 2)), jnp.ones((2, 3, 2, 2))
    traced = jax.jit(lambda *given: spectral._products(*given, "highest")).trace(x, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) == is_product
