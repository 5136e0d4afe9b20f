"""Linear layers and perceptrons: their shapes, how they start, what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import nn, ops
from tests import helpers


def assert_fills(values, bound):
    """Asserts that values fill [-bound, bound] evenly."""
    values = np.asarray(values).ravel()
    assert 0.95 * bound < values.max() <= bound
    assert -bound <= values.min() < -0.95 * bound
    assert abs(values.mean()) < 0.1 * bound
    assert abs(values.std() - bound / 3**0.5) < 0.1 * bound


@pytest.mark.parametrize("in_features", [1, 4, 100])
def test_linear_starts_within_one_over_the_root_of_its_inputs(in_features):
    x = jnp.ones((2, in_features))
    params = nn.Linear(1000).init(jax.random.key(in_features), x)["params"]
    assert params["kernel"].shape == (in_features, 1000)
    assert params["bias"].shape == (1000,)
    for leaf in params.values():
        assert_fills(leaf, in_features**-0.5)


def test_linear_is_a_product_and_a_bias():
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    found, variables = helpers.init_layer(nn.Linear(3), x)
    params = jax.tree.map(np.asarray, variables["params"])
    np.testing.assert_allclose(found, x @ params["kernel"] + params["bias"], atol=1e-5)


def test_mlp_has_two_linear_layers_and_is_that_of_ops():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    found, variables = helpers.init_layer(nn.MLP(hidden=8, features=3), x)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    assert shapes == {
        "linear_0": {"kernel": (6, 8), "bias": (8,)},
        "linear_1": {"kernel": (8, 3), "bias": (3,)},
    }
    np.testing.assert_array_equal(found, ops.mlp(variables["params"], x))


@pytest.mark.parametrize("layer", [nn.Linear, lambda *sizes, **kw: nn.MLP(8, *sizes, **kw)])
def test_dtypes_of_weights_and_output(layer):
    x = jnp.ones((2, 4))
    out, variables = helpers.init_layer(layer(3, dtype="bfloat16"), x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out, variables = helpers.init_layer(layer(3, param_dtype="bfloat16"), x)
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
