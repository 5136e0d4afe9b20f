"""Norms: values, derivatives at the delicate places, and the limit on a vector's length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import ops
from tests import helpers

SEEDS = st.integers(0, 2**32 - 1)
LIMIT = 100.0
# Compiled once for each shape.
safe_norm, squared_norm, limit_norm = map(
    jax.jit, (ops.safe_norm, ops.squared_norm, lambda v: ops.limit_norm(v, LIMIT))
)
JACOBIANS = [jax.jit(jac(lambda v: ops.limit_norm(v, LIMIT))) for jac in (jax.jacfwd, jax.jacrev)]


def random_rotation(rng):
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return matrix


@settings(max_examples=30)
@given(seed=SEEDS, scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_norms_are_those_of_numpy(seed, scale):
    vectors = scale * np.random.default_rng(seed).normal(size=(4, 5, 3))
    expected = np.linalg.norm(vectors, axis=-1, keepdims=True)
    with helpers.using("float64"):
        helpers.assert_close(safe_norm(vectors), expected, 1e-15)
        helpers.assert_close(squared_norm(vectors), expected**2, 1e-15)


def test_gradient_of_the_norm_is_the_direction_and_zero_at_zero():
    vectors = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, -4.0]], np.float32)
    gradient = jax.grad(lambda v: ops.safe_norm(v).sum())(vectors)
    np.testing.assert_allclose(gradient, [[0.0, 0.0, 0.0], [0.6, 0.0, -0.8]], rtol=1e-6)
    jacobian = jax.jacfwd(ops.safe_norm)(vectors)
    assert np.isfinite(jacobian).all()
    np.testing.assert_array_equal(jacobian[0, 0, 0], np.zeros(3))


@settings(max_examples=50)
@given(seed=SEEDS, scale=st.sampled_from([1.0, 30.0, 60.0, 100.0, 1e4]))
def test_limit_scales_long_vectors_alone(seed, scale):
    vectors = scale * np.random.default_rng(seed).normal(size=(20, 3))
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    expected = vectors * np.minimum(1.0, LIMIT / length)
    with helpers.using("float64"):
        found = np.asarray(limit_norm(vectors))
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    is_short = length[:, 0] <= LIMIT
    np.testing.assert_array_equal(found[is_short], vectors[is_short])


@settings(max_examples=30)
@given(seed=SEEDS)
def test_limit_commutes_with_rotations_and_reflections(seed):
    rng = np.random.default_rng(seed)
    vectors, matrix = 100 * rng.normal(size=(20, 3)), random_rotation(rng)
    with helpers.using("float64"):
        found = limit_norm(vectors @ matrix.T)
        expected = np.asarray(limit_norm(vectors)) @ matrix.T
    helpers.assert_close(found, expected, 1e-14)


@pytest.mark.parametrize("differentiate", JACOBIANS, ids=["jacfwd", "jacrev"])
@settings(max_examples=20)
@given(seed=SEEDS, length=st.floats(1.0, 1e4).filter(lambda x: abs(x - LIMIT) > 1e-3))
def test_derivative_of_the_limit(differentiate, seed, length):
    """The identity below the limit, the projection `(100 / |v|) (I - n n^T)` above it."""
    direction = np.random.default_rng(seed).normal(size=3)
    direction /= np.linalg.norm(direction)
    expected = np.eye(3)
    if length > LIMIT:
        expected = LIMIT / length * (np.eye(3) - np.outer(direction, direction))
    with helpers.using("float64"):
        jacobian = differentiate(length * direction)
    np.testing.assert_allclose(jacobian, expected, atol=1e-12)


def test_limit_is_continuous_where_it_begins():
    lengths = np.float32(LIMIT) * (1 + np.array([-1e-6, 0.0, 1e-6], np.float32))
    vectors = np.stack([lengths, 0 * lengths, 0 * lengths], axis=-1)
    found = ops.limit_norm(vectors, LIMIT)
    np.testing.assert_allclose(found[:, 0], LIMIT, rtol=2e-6)
    assert (np.asarray(found)[:, 0] <= LIMIT * (1 + 1e-6)).all()


def test_limit_of_zero_and_of_huge_vectors_is_finite():
    vectors = np.array([[0.0, 0.0, 0.0], [3e19, 4e19, 0.0], [1e38, 0.0, 0.0]], np.float32)
    found, pullback = jax.vjp(lambda v: ops.limit_norm(v, LIMIT), vectors)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1], [60.0, 80.0, 0.0], rtol=1e-6)
    (gradient,) = pullback(jnp.ones_like(vectors))
    assert np.isfinite(gradient[:2]).all()
    np.testing.assert_array_equal(gradient[0], np.ones(3))


def test_limit_norm_is_right_in_float16():
    vector = jnp.array([0.0, 300.0, 0.0], jnp.float16)
    np.testing.assert_allclose(ops.limit_norm(vector, 1.0), [0, 1, 0], rtol=1e-3)
