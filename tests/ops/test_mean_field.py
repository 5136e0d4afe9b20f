"""The mean field against loops over nodes, written from the formula alone."""

import jax
import jax.numpy as jnp
import numpy as np

from egno_jax import ops
from tests import helpers
from tests.ops.test_message_passing import mlp, random_mlp

P, C = 2, 4
GRAPH_IDS = np.array([0, 0, 0, 2, 2])  # graph 1 is empty
N, NUM_GRAPHS = len(GRAPH_IDS), 3


def random_inputs():
    """The perceptron, positions, velocities and features."""
    rng = np.random.default_rng(0)
    weights = random_mlp(rng, (C, C, 2))
    return weights, *(rng.normal(size=(P, N, size)) for size in (3, 3, C))


def looped(weights, x, v, h):
    moved = np.empty_like(x)
    for p in range(P):
        for i in range(N):
            mates = [j for j in range(N) if GRAPH_IDS[j] == GRAPH_IDS[i]]
            a, b = mlp(weights, h[p, i])
            from_all = sum(x[p, i] - x[p, j] for j in mates) / len(mates)
            drift = sum(v[p, j] for j in mates) / len(mates)
            moved[p, i] = x[p, i] + a * from_all + b * drift
    return moved


def test_is_a_message_from_every_node_of_the_graph():
    inputs = random_inputs()
    with helpers.using("float64"):
        found = ops.mean_field(*inputs, GRAPH_IDS, NUM_GRAPHS)
    np.testing.assert_allclose(found, looped(*inputs), rtol=1e-12)


def test_geometry_stays_in_float32_with_features_in_bfloat16():
    weights, x, v, h = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), random_inputs())
    exact = ops.mean_field(weights, x, v, h, GRAPH_IDS, NUM_GRAPHS)
    weights, h = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (weights, h))
    found = ops.mean_field(weights, x, v, h, GRAPH_IDS, NUM_GRAPHS)
    assert found.dtype == jnp.float32
    helpers.assert_close(found, exact, 0.05)


def test_gradients_are_finite_with_an_empty_graph():
    def loss(inputs):
        return jnp.sum(ops.mean_field(*inputs, GRAPH_IDS, NUM_GRAPHS) ** 2)

    for leaf in jax.tree.leaves(jax.grad(loss)(random_inputs())):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
