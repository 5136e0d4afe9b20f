"""The temporal convolutions: special cases of one another, and equivariant on every irrep."""

import functools

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import nn, ops
from tests import helpers

SEEDS = st.integers(0, 2**32 - 1)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
IRREPS = e3nn.Irreps("4x0e + 3x0o + 2x1o + 2x1e + 1x2e + 1x2o + 2x1o + 1x0o")
P, N = 5, 3


def signed_kernel(seed, num_modes, width, dtype="float64"):
    """A kernel of both signs, as training leaves it."""
    return np.random.default_rng(seed).normal(size=(2, num_modes, width, width)).astype(dtype)


@DTYPES
@settings(max_examples=10)
@given(seed=SEEDS)
def test_scalar_conv_is_the_irreps_conv_of_even_scalars(dtype, seed):
    x = np.random.default_rng(seed).normal(size=(P, N, 4)).astype(dtype)
    kernel = signed_kernel(seed + 1, 2, 4, dtype)
    with helpers.using(dtype):
        found = nn.TemporalConv(2).apply({"params": {"kernel": kernel}}, x)
        by_irreps = nn.IrrepsTemporalConv(2).apply(
            {"params": {"kernel_0e": kernel}}, e3nn.IrrepsArray("4x0e", x)
        )
    helpers.assert_close(found, by_irreps.array, TOLERANCE[dtype])


@DTYPES
@settings(max_examples=10)
@given(seed=SEEDS)
def test_vector_conv_is_the_irreps_conv_of_odd_vectors(dtype, seed):
    vectors = np.random.default_rng(seed).normal(size=(P, N, 3, 2)).astype(dtype)
    kernel = signed_kernel(seed + 1, 3, 2, dtype)
    with helpers.using(dtype):
        found = nn.VectorTemporalConv(3).apply({"params": {"kernel": kernel}}, vectors)
        copies = np.swapaxes(vectors, -1, -2).reshape(P, N, 6)
        by_irreps = nn.IrrepsTemporalConv(3).apply(
            {"params": {"kernel_1o": kernel}}, e3nn.IrrepsArray("2x1o", copies)
        )
    expected = np.swapaxes(np.asarray(by_irreps.array).reshape(P, N, 2, 3), -1, -2)
    helpers.assert_close(found, expected, TOLERANCE[dtype])


@DTYPES
@settings(max_examples=10)
@given(seed=SEEDS)
def test_scalar_conv_is_residual_plus_leaky_relu_of_the_convolution(dtype, seed):
    x = np.random.default_rng(seed).normal(size=(P, N, 4)).astype(dtype)
    kernel = signed_kernel(seed + 1, 2, 4, dtype)
    with helpers.using(dtype):
        found = nn.TemporalConv(2).apply({"params": {"kernel": kernel}}, x)
        response = np.asarray(ops.spectral_conv_fft(x, kernel))
    expected = x + np.where(response > 0, response, 0.01 * response)
    helpers.assert_close(found, expected, TOLERANCE[dtype])


def irreps_params(seed, num_modes=2):
    """Kernels of both signs for every type of `IRREPS`."""
    return {
        f"kernel_{ir}": signed_kernel(seed + i, num_modes, mul)
        for i, (mul, ir) in enumerate(IRREPS.regroup())
    }


@pytest.fixture(scope="module")
def convolve():
    """The layer on `IRREPS`, compiled once in float64; takes and returns plain arrays."""

    @jax.jit
    def conv(params, x):
        out = nn.IrrepsTemporalConv(2).apply({"params": params}, e3nn.IrrepsArray(IRREPS, x))
        assert out.irreps == IRREPS.regroup()
        return out.array

    return conv


@functools.partial(jax.jit, static_argnums=1)
def turns(angles, parity):
    """The matrices that turn the layer's input and its output."""
    return [irreps.D_from_angles(*angles, parity) for irreps in (IRREPS, IRREPS.regroup())]


@pytest.mark.parametrize("parity", [0, 1])
@settings(max_examples=15)
@given(seed=SEEDS)
def test_irreps_conv_commutes_with_rotations_and_reflections(convolve, parity, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(P, N, IRREPS.dim))
    with helpers.using("float64"):
        params = irreps_params(seed)
        turn, turn_out = map(np.asarray, turns(rng.uniform(0, 2 * np.pi, 3), parity))
        found = convolve(params, x @ turn.T)
        expected = np.asarray(convolve(params, x)) @ turn_out.T
    assert not np.allclose(turn, np.eye(len(turn)))
    helpers.assert_close(found, expected, 1e-12)


def response_of(convolve, irrep, seed, factor):
    """What the layer adds to copies of one type, scaled by a factor, all others zero."""
    x = np.zeros((P, N, IRREPS.dim))
    where = [s for (_, ir), s in zip(IRREPS, IRREPS.slices(), strict=True) if ir == irrep]
    for s in where:
        x[..., s] = factor * np.random.default_rng(seed).normal(size=(P, N, s.stop - s.start))
    grouped = IRREPS.regroup()
    out = next(s for (_, ir), s in zip(grouped, grouped.slices(), strict=True) if ir == irrep)
    with helpers.using("float64"):
        found = np.asarray(convolve(irreps_params(seed), x))[..., out]
        return found - np.concatenate([x[..., s] for s in where], axis=-1)


@pytest.mark.parametrize("irrep", ["0o", "1o", "1e", "2e", "2o"])
@settings(max_examples=5)
@given(seed=SEEDS, factor=st.floats(-2, 2))
def test_response_of_all_but_even_scalars_is_linear(convolve, irrep, seed, factor):
    found = response_of(convolve, irrep, seed, factor)
    expected = factor * response_of(convolve, irrep, seed, 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(response_of(convolve, irrep, seed, 1.0)).max() > 1e-3


def test_response_of_even_scalars_is_not_odd_and_that_of_odd_scalars_is(convolve):
    """Under a reflection odd scalars change sign, and what the layer adds with them."""
    plus, minus = (response_of(convolve, "0e", 0, sign) for sign in (1, -1))
    assert np.abs(plus + minus).max() > 0.1
    plus, minus = (response_of(convolve, "0o", 0, sign) for sign in (1, -1))
    np.testing.assert_array_equal(plus, -minus)


def test_several_chunks_of_one_type_are_mixed_together():
    x = np.random.default_rng(0).normal(size=(P, N, 8)).astype(np.float32)
    split = e3nn.IrrepsArray("2x0e + 1x1o + 3x0e", x)
    joined = e3nn.IrrepsArray(
        "5x0e + 1x1o", np.concatenate([x[..., :2], x[..., 5:], x[..., 2:5]], -1)
    )
    conv = nn.IrrepsTemporalConv(2)
    params = conv.init(jax.random.key(0), split)
    assert params["params"]["kernel_0e"].shape == (2, 2, 5, 5)
    assert params["params"]["kernel_1o"].shape == (2, 2, 1, 1)
    found, expected = conv.apply(params, split), conv.apply(params, joined)
    assert str(found.irreps) == "5x0e+1x1o"
    np.testing.assert_array_equal(found.array, expected.array)


@pytest.mark.parametrize(
    "x",
    [np.zeros((5, 3, 4)), e3nn.IrrepsArray("4x0e", np.zeros(4)), None],
    ids=["array", "no time axis", "None"],
)
def test_irreps_conv_says_what_it_wants(x):
    with pytest.raises(ValueError, match=r"^x: got .* expected an e3nn_jax.IrrepsArray of shape"):
        nn.IrrepsTemporalConv(2).init(jax.random.key(0), x)


def assert_uniform(values, low, high):
    """Asserts that values fill [low, high] evenly, by their bounds, mean and spread."""
    values, width = np.asarray(values).ravel(), high - low
    assert low <= values.min() < low + 0.02 * width
    assert high - 0.02 * width < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 0.02 * width
    assert abs(values.std() - width / 12**0.5) < 0.02 * width


def test_kernels_start_uniform():
    key = jax.random.key(0)
    scalar = nn.TemporalConv(3).init(key, jnp.zeros((P, 32)))["params"]["kernel"]
    assert scalar.shape == (2, 3, 32, 32)
    assert_uniform(scalar, 0.0, 1 / 32**2)
    vector = nn.VectorTemporalConv(2000).init(key, jnp.zeros((P, 3, 2)))["params"]["kernel"]
    assert vector.shape == (2, 2000, 2, 2)
    assert_uniform(vector, 0.0, 0.1)
    for part in scalar, vector:
        assert not np.array_equal(part[0], part[1])
    x = e3nn.IrrepsArray("32x0e + 32x0o + 32x1o", jnp.zeros((P, 160)))
    kernels = nn.IrrepsTemporalConv(3).init(key, x)["params"]
    for name, high in (("0e", 1 / 32**2), ("0o", 1 / 32**2), ("1o", 0.2 / 32)):
        assert_uniform(kernels[f"kernel_{name}"], 0.0, high)


def test_dtypes_of_the_convolutions():
    """Scalars are computed in `dtype`; vectors in float32 or wider in any case."""
    half = jnp.ones((P, N, 3, 2), jnp.bfloat16)
    conv = nn.TemporalConv(2, dtype="bfloat16", param_dtype=jnp.bfloat16)
    out, variables = helpers.init_layer(conv, half.astype(jnp.float32))
    assert out.dtype == variables["params"]["kernel"].dtype == jnp.bfloat16
    out, variables = helpers.init_layer(nn.VectorTemporalConv(2, param_dtype=jnp.bfloat16), half)
    assert variables["params"]["kernel"].dtype == jnp.bfloat16
    assert out.dtype == jnp.float32


def test_chunks_of_zeros_may_be_none():
    """e3nn-jax keeps None for them; parameters and results are those of an array of zeros."""
    scalars = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 3, 1)), jnp.float32)
    sparse = e3nn.from_chunks("3x0e + 2x1o", [scalars, None], (6, 2), jnp.float32)
    dense = e3nn.IrrepsArray(sparse.irreps, sparse.array)
    layer = nn.IrrepsTemporalConv(num_modes=2)
    found, variables = layer.init_with_output(jax.random.key(0), sparse)
    expected, expected_variables = layer.init_with_output(jax.random.key(0), dense)
    np.testing.assert_array_equal(found.array, expected.array)
    assert jax.tree.structure(variables) == jax.tree.structure(expected_variables)


def test_vectors_of_irreps_are_computed_in_float32_like_the_vector_convolution():
    array = jnp.ones((4, 2, 6), jnp.bfloat16)
    layer = nn.IrrepsTemporalConv(num_modes=2)
    found, _ = layer.init_with_output(jax.random.key(0), e3nn.IrrepsArray("2x1o", array))
    assert found.array.dtype == jnp.float32


def test_a_kernel_of_other_channels_is_named():
    with pytest.raises(ValueError, match=r"kernel: got shape .*, expected \[2, M, 4, C_out\]"):
        ops.spectral_conv_dft(jnp.ones((5, 3, 4)), jnp.ones((2, 2, 6, 6)))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            nn.TemporalConv(2),
            (P,),
            r"features: got shape \[5\], expected \[P, ..., C\]: times first",
        ),
        (nn.TemporalConv(2), (P, N), r"features: got shape \[5, 3\].* with C = 4, the channels"),
        (nn.VectorTemporalConv(2), (P, 7, 4), r"vectors: got shape \[5, 7, 4\].*\[P, ..., 3, C\]:"),
        (nn.VectorTemporalConv(2), (3, 4), r"vectors: got shape \[3, 4\], expected"),
        (nn.VectorTemporalConv(2), (P, N, 3, 2), "vectors: .* with C = 4, the channels"),
    ],
)
def test_a_signal_of_another_form_is_named(layer, shape, message):
    variables = {"params": {"kernel": signed_kernel(0, 2, 4, "float32")}}
    with pytest.raises(ValueError, match=message):
        layer.apply(variables, jnp.ones(shape))
    if "with C" not in message:
        with pytest.raises(ValueError, match=message):
            layer.init(jax.random.key(0), jnp.ones(shape))


@pytest.mark.parametrize(
    ("irreps", "message"),
    [
        ("5x0e + 2x1o", "x: got 5x0e, expected 3x0e, the multiplicity that kernel_0e"),
        ("3x0e + 1x1o", "x: got 1x1o, expected 2x1o, the multiplicity that kernel_1o"),
    ],
)
def test_other_multiplicities_of_irreps_are_named(irreps, message):
    layer = nn.IrrepsTemporalConv(num_modes=2)

    def signal(irreps):
        return e3nn.IrrepsArray(irreps, jnp.ones((5, 2, e3nn.Irreps(irreps).dim)))

    _, variables = layer.init_with_output(jax.random.key(0), signal("3x0e + 2x1o"))
    layer.apply(variables, signal("1x0e + 2x0e + 2x1o"))
    with pytest.raises(ValueError, match=message):
        layer.apply(variables, signal(irreps))


@pytest.mark.parametrize(("init_bound", "largest"), [(None, 0.1), (0.3, 0.3), (0.0, 0.0)])
def test_the_vector_kernel_starts_below_its_bound(init_bound, largest):
    vectors = np.random.default_rng(0).normal(size=(4, 5, 3, 2)).astype(np.float32)
    layer = nn.VectorTemporalConv(num_modes=2, init_bound=init_bound)
    found, variables = layer.init_with_output(jax.random.key(0), vectors)
    kernel = variables["params"]["kernel"]
    assert 0 <= kernel.min() and 0.5 * largest <= kernel.max() <= largest
    if largest == 0:
        np.testing.assert_array_equal(found, vectors)
