"""The embedding of times, and how it joins the node features."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import ops
from tests import helpers

SEEDS = st.integers(0, 2**32 - 1)


def sines_and_cosines(time, dim):
    """The formula, one number at a time."""
    half = dim // 2
    angles = [time * 10000.0 ** (-k / max(half - 1, 1)) for k in range(half)]
    return [*map(math.sin, angles), *map(math.cos, angles), *[0.0] * (dim % 2)]


@pytest.mark.parametrize("dim", [2, 3, 4, 7, 32, 33])
def test_embedding_is_the_formula(dim):
    times = np.random.default_rng(dim).uniform(-20, 100, (4, 3))
    with helpers.using("float64"):
        found = ops.sinusoidal_embedding(jnp.asarray(times), dim)
    expected = [[sines_and_cosines(time, dim) for time in row] for row in times]
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_embedding_of_float32_times_is_close():
    times = np.arange(50, dtype=np.float32)
    found = ops.sinusoidal_embedding(jnp.asarray(times), 32)
    assert found.dtype == jnp.float32
    expected = [sines_and_cosines(time, 32) for time in times.tolist()]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_embedding_of_less_than_two_is_an_error(dim):
    with pytest.raises(ValueError, match=f"dim: got {dim}, expected at least 2"):
        ops.sinusoidal_embedding(jnp.zeros(3), dim)


@pytest.mark.parametrize("is_shared", [True, False])
@settings(max_examples=15)
@given(seed=SEEDS)
def test_embed_times_is_a_linear_layer_of_the_concatenation(is_shared, seed):
    rng = np.random.default_rng(seed)
    features, graph_ids = rng.normal(size=(6, 2)), np.array([0, 0, 1, 2, 2, 2])
    embedding = rng.normal(size=(4, 1 if is_shared else 3, 5))
    weights = {"kernel": rng.normal(size=(7, 3)), "bias": rng.normal(size=3)}
    with helpers.using("float64"):
        weights = {name: jnp.asarray(x) for name, x in weights.items()}
        found = ops.embed_times(weights, jnp.asarray(features), jnp.asarray(embedding), graph_ids)
    for p in range(4):
        for i, g in enumerate(graph_ids):
            row = np.concatenate([features[i], embedding[p, 0 if is_shared else g]])
            expected = row @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
            np.testing.assert_allclose(found[p, i], expected, atol=1e-12)
