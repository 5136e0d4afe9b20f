"""Products over channels, and the two-layer perceptron."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import ops
from egno_jax.ops.linear import linear_by_products, matmul_at_times, matmul_of_two
from tests import helpers


def test_mlp_is_linear_silu_linear():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5))
    kernels = [rng.normal(size=(5, 6)), rng.normal(size=(6, 2))]
    biases = [rng.normal(size=6), rng.normal(size=2)]
    hidden = x @ kernels[0] + biases[0]
    expected = (hidden / (1 + np.exp(-hidden))) @ kernels[1] + biases[1]
    with helpers.using("float64"):
        layers = zip(kernels, biases, strict=True)
        weights = {f"linear_{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(layers)}
        helpers.assert_close(ops.mlp(weights, jnp.asarray(x)), expected, 1e-14)
        helpers.assert_close(ops.linear(weights["linear_0"], jnp.asarray(x)), hidden, 1e-14)


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_matmul_keeps_the_dtype_and_asks_for_the_precision(precision):
    x, kernel = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
    assert ops.matmul(x, kernel, precision).dtype == jnp.bfloat16
    traced = jax.make_jaxpr(lambda x: ops.matmul(x, kernel, precision))(x)
    asked_for = [e.params["precision"] for e in traced.eqns if "precision" in e.params]
    assert asked_for == [(jax.lax.Precision(precision),) * 2]


def weights_and_values(out_width):
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(5, out_width)), "bias": rng.normal(size=out_width)}
    return weights, rng.normal(size=(2, 3, 4, 5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_column_is_a_sum_in_float32(dtype):
    weights, x = weights_and_values(1)
    x, kernel = (jnp.asarray(each, dtype) for each in (x, weights["kernel"]))
    found = ops.matmul(x, kernel, "default")
    assert found.dtype == x.dtype
    wide = np.float64(x.astype(jnp.float32)) @ np.float64(kernel.astype(jnp.float32))
    helpers.assert_close(found.astype(jnp.float32), wide, 1e-6 if dtype == "float32" else 4e-3)
    assert "dot_general" not in jax.jit(ops.matmul).lower(x, kernel).as_text()


@pytest.mark.parametrize("out_width", [1, 6, 9])
@pytest.mark.parametrize("on_tpu", [False, True])
def test_derivatives_by_products_are_those_of_the_linear_layer(monkeypatch, out_width, on_tpu):
    if on_tpu:
        helpers.use_tpu_branches(monkeypatch)
    weights, x = weights_and_values(out_width)
    _, of_x = weights_and_values(out_width + 1)
    of_weights = jax.tree.map(np.cos, weights)
    with jax.enable_x64(True):
        results = []
        for function in (ops.linear, linear_by_products):
            value, tangent = jax.jvp(function, (weights, x), (of_weights, of_x))
            of_values = jax.jvp(lambda x, f=function: f(weights, x), (x,), (of_x,))[1]
            biases = (weights["bias"],), (of_weights["bias"],)
            of_bias = jax.jvp(lambda b, f=function: f(weights | {"bias": b}, x), *biases)[1]
            gradient = jax.grad(lambda *given, f=function: jnp.sum(jnp.sin(f(*given))), (0, 1))
            twice = jax.jvp(gradient, (weights, x), (of_weights, of_x))[1]
            each = jax.vmap(gradient, (None, 0))(weights, x)
            tangents = tangent, of_values, of_bias
            results.append((value, tangents, gradient(weights, x), twice, each))
        helpers.assert_trees_close(*results, 1e-13)


@pytest.mark.parametrize("on_tpu", [False, True])
@pytest.mark.parametrize("in_width", [0, 1, 5])
def test_a_single_column_has_its_bias_at_any_width(monkeypatch, in_width, on_tpu):
    if on_tpu:
        helpers.use_tpu_branches(monkeypatch)
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(in_width, 1)), "bias": rng.normal(size=1)}
    x = rng.normal(size=(3, in_width))
    with jax.enable_x64(True), jax.debug_nans(True):
        for function in (ops.linear, linear_by_products):
            found = function(weights, x), jax.grad(lambda w, f=function: f(w, x).sum())(weights)
            gradient = {"kernel": x.sum(axis=0)[:, None], "bias": np.full(1, 3.0)}
            expected = x @ weights["kernel"] + weights["bias"], gradient
            helpers.assert_trees_close(found, expected, 1e-14)


@pytest.mark.parametrize("on_tpu", [False, True])
def test_the_product_of_two_is_that_of_their_concatenation(monkeypatch, on_tpu):
    if on_tpu:
        helpers.use_tpu_branches(monkeypatch)

    def of_two(first, second, kernel):
        return matmul_of_two(first, second, kernel, "highest")

    def of_all(first, second, kernel):
        return jnp.concatenate([first, second], axis=-1) @ kernel

    assert_same_derivatives(of_two, of_all, (3, 4, 2), (3, 4, 5), (7, 6))


@pytest.mark.parametrize("on_tpu", [False, True])
@pytest.mark.parametrize("out_width", [6, 128])
def test_the_product_at_all_times_is_one_repeated(monkeypatch, on_tpu, out_width):
    if on_tpu:
        helpers.use_tpu_branches(monkeypatch)

    def at_times(x, kernel):
        return matmul_at_times(x, kernel, 3, "highest")

    def repeated(x, kernel):
        return jnp.stack([x @ kernel] * 3)

    assert_same_derivatives(at_times, repeated, (4, 5), (5, out_width))


def assert_same_derivatives(function, like, *shapes):
    rng = np.random.default_rng(0)
    given, tangents = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))

    def derivatives(function):
        def loss(*given):
            return jnp.sum(jnp.sin(function(*given) * jnp.arange(3).reshape(-1, 1, 1)))

        gradient = jax.grad(loss, tuple(range(len(given))))
        alone = [
            jax.jvp(lambda x, i=i: function(*given[:i], x, *given[i + 1 :]), (x,), (dx,))
            for i, (x, dx) in enumerate(zip(given, tangents, strict=True))
        ]
        each = jax.vmap(gradient)(*jax.tree.map(lambda *pair: np.stack(pair), given, tangents))
        return function(*given), alone, jax.jvp(gradient, given, tangents), each

    with jax.enable_x64(True):
        helpers.assert_trees_close(derivatives(function), derivatives(like), 1e-13)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_tpu_sums_gradients_of_biases_by_products(platform):
    weights, x = weights_and_values(1)

    def loss(weights, x):
        return jnp.sum(jnp.sin(linear_by_products(weights, x)))

    traced = jax.jit(jax.grad(loss)).trace(weights, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) == (platform == "tpu")


def test_a_single_column_of_another_width_is_refused():
    for x, kernel in (((2, 5), (1, 1)), ((2, 1), (4, 1))):
        with pytest.raises(TypeError, match="contracting dimension"):
            ops.matmul(jnp.ones(x), jnp.ones(kernel))


def test_a_wider_bias_has_a_wider_result_and_derivative():
    weights, x = weights_and_values(6)
    with jax.enable_x64(True):
        weights = {"kernel": np.float32(weights["kernel"]), "bias": weights["bias"]}
        found = jax.jvp(lambda x: linear_by_products(weights, x), *[(np.float32(x),)] * 2)
        column = {"kernel": weights["kernel"][:, :1], "bias": weights["bias"][:1]}
        found += (ops.linear(column, np.float32(x)),)
    assert {each.dtype for each in found} == {np.dtype("float64")}
