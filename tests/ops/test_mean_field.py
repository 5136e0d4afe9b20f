"""Global message passing against loops over nodes, written from the formula alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import ops
from tests import helpers
from tests.ops.test_message_passing import mlp, random_mlp

P, C, K = 2, 4, 3
GRAPH_IDS = np.array([0, 0, 0, 2, 2], np.int32)  # graph 1 is empty
N, NUM_GRAPHS = len(GRAPH_IDS), 3


WITH_AND_WITHOUT_CHANNELS = pytest.mark.parametrize("channels", [0, K])


def random_inputs(channels):
    """The perceptrons of receivers and senders, positions, velocities and features."""
    rng = np.random.default_rng(0)
    weights = random_mlp(rng, (C, C, 2 + channels))
    senders = random_mlp(rng, (C, C, 2 * channels)) if channels else None
    return weights, senders, *(rng.normal(size=(P, N, size)) for size in (3, 3, C))


@jax.jit
def mean_field(weights, senders, x, v, h):
    return ops.mean_field(weights, x, v, h, GRAPH_IDS, NUM_GRAPHS, sender_weights=senders)


def looped(weights, senders, x, v, h):
    moved = np.array(x)
    for p in range(P):
        for i in range(N):
            mates = [j for j in range(N) if GRAPH_IDS[j] == GRAPH_IDS[i]]
            middle = sum(x[p, j] for j in mates) / len(mates)
            a, b, *c = mlp(weights, h[p, i])
            for j in mates:
                message = a * (x[p, i] - x[p, j]) + b * v[p, j]
                shares = [] if senders is None else mlp(senders, h[p, j])
                for k, factor in enumerate(c):
                    w, u = shares[k], shares[k + len(c)]
                    message += factor * (w * (x[p, j] - middle) + u * v[p, j])
                moved[p, i] += message / len(mates)
    return moved


@WITH_AND_WITHOUT_CHANNELS
def test_is_a_message_from_every_node_of_the_graph(channels):
    inputs = random_inputs(channels)
    with helpers.using("float64"):
        found = mean_field(*inputs)
    np.testing.assert_allclose(found, looped(*inputs), rtol=1e-12)


@WITH_AND_WITHOUT_CHANNELS
def test_geometry_stays_in_float32_with_features_in_bfloat16(channels):
    weights, senders, x, v, h = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32), random_inputs(channels)
    )
    exact = mean_field(weights, senders, x, v, h)
    weights, senders, h = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (weights, senders, h))
    found = mean_field(weights, senders, x, v, h)
    assert found.dtype == jnp.float32
    helpers.assert_close(found, exact, 0.05)


@WITH_AND_WITHOUT_CHANNELS
def test_gradients_are_finite_with_an_empty_graph(channels):
    def loss(inputs):
        return jnp.sum(mean_field(*inputs) ** 2)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(random_inputs(channels))):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0
