"""Products over channels, and the two-layer perceptron."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import ops
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
