"""Message passing against loops over edges, written from the formulas alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import ops
from tests import helpers

SEEDS = st.integers(0, 2**32 - 1)
# Compiled once for each shape.
egnn_layer, edge_messages = jax.jit(ops.egnn_layer), jax.jit(ops.edge_messages)
segment_sum = jax.jit(ops.segment_sum, static_argnums=2)
segment_mean = jax.jit(ops.segment_mean, static_argnums=2)
P, N, E, C, D = 2, 5, 9, 4, 3


def silu(x):
    return x * (1 + np.tanh(x / 2)) / 2


def mlp(weights, x):
    first, second = weights["linear_0"], weights["linear_1"]
    return silu(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]


def random_mlp(rng, sizes, gain=1.0):
    return {
        f"linear_{i}": {"kernel": gain * rng.normal(size=shape), "bias": rng.normal(size=shape[1])}
        for i, shape in enumerate(itertools.pairwise(sizes))
    }


def random_weights(rng, num_edge_features, gain=1.0):
    return {
        "message_mlp": random_mlp(rng, (1 + 2 * C + num_edge_features, C, C)),
        "position_mlp": random_mlp(rng, (C, C, 1), gain),
        "velocity_mlp": random_mlp(rng, (C, C, 1)),
        "feature_mlp": random_mlp(rng, (2 * C, C, C)),
    }


def random_state(rng, num_edge_features):
    """Positions, velocities, features, edge features, senders and receivers; node 0 hears none."""
    edge_features = rng.normal(size=(E, num_edge_features)) if num_edge_features else None
    senders, receivers = rng.integers(0, N, E), rng.integers(1, N, E)
    vectors = (rng.normal(size=(P, N, 3)) for _ in range(2))
    return *vectors, rng.normal(size=(P, N, C)), edge_features, senders, receivers


def message(weights, squared_distance, receiver, sender, edge_features):
    parts = [squared_distance, receiver, sender]
    if edge_features is not None:
        parts.append(edge_features)
    return silu(mlp(weights, np.concatenate(parts)))


def looped_layer(weights, x, v, h, edge_features, senders, receivers):
    """The layer's three formulas, one time, edge and node after another."""
    new_x, new_h = np.zeros_like(x), np.zeros_like(h)
    for p in range(P):
        steps, received = [[] for _ in range(N)], np.zeros((N, C))
        for e, (j, i) in enumerate(zip(senders, receivers, strict=True)):
            r = x[p, i] - x[p, j]
            e_ij = None if edge_features is None else edge_features[e]
            m = message(weights["message_mlp"], [r @ r], h[p, i], h[p, j], e_ij)
            steps[i].append(r * mlp(weights["position_mlp"], m))
            received[i] += m
        for i in range(N):
            step = np.mean(steps[i], axis=0) if steps[i] else np.zeros(3)
            step = step * min(1.0, 100.0 / max(np.linalg.norm(step), 1e-300))
            new_x[p, i] = x[p, i] + mlp(weights["velocity_mlp"], h[p, i]) * v[p, i] + step
            new_h[p, i] = mlp(weights["feature_mlp"], np.concatenate([h[p, i], received[i]]))
    return new_x, v, new_h


@pytest.mark.parametrize("num_edge_features", [0, D])
@settings(max_examples=15)
@given(seed=SEEDS, gain=st.sampled_from([1.0, 1e3]))
def test_layer_is_the_loop_over_its_formulas(num_edge_features, seed, gain):
    rng = np.random.default_rng(seed)
    weights, state = random_weights(rng, num_edge_features, gain), random_state(rng, D)
    state = state if num_edge_features else (*state[:3], None, *state[4:])
    with helpers.using("float64"):
        found = egnn_layer(weights, *state)
    for array, expected in zip(found, looped_layer(weights, *state), strict=True):
        helpers.assert_close(array, expected, 1e-11)


def test_steps_of_the_loop_reach_the_limit():
    rng = np.random.default_rng(0)
    weights, state = random_weights(rng, D, gain=1e3), random_state(rng, D)
    still = (state[0], np.zeros_like(state[1]), *state[2:])
    moved = np.linalg.norm(looped_layer(weights, *still)[0] - state[0], axis=-1)
    assert np.isclose(moved, ops.MAX_STEP).any()


@pytest.mark.parametrize("num_edge_features", [0, D])
@settings(max_examples=15)
@given(seed=SEEDS)
def test_messages_are_those_of_the_concatenation(num_edge_features, seed):
    rng = np.random.default_rng(seed)
    weights = random_weights(rng, num_edge_features)["message_mlp"]
    _, _, h, _, senders, receivers = random_state(rng, 0)
    squared_distances = rng.uniform(0, 9, (P, E, 1))
    edge_features = rng.normal(size=(E, num_edge_features)) if num_edge_features else None
    with helpers.using("float64"):
        found = edge_messages(weights, squared_distances, h, edge_features, senders, receivers)
    for p in range(P):
        for e in range(E):
            e_ij = None if edge_features is None else edge_features[e]
            i, j = receivers[e], senders[e]
            expected = message(weights, squared_distances[p, e], h[p, i], h[p, j], e_ij)
            np.testing.assert_allclose(found[p, e], expected, atol=1e-12)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_segment_sum_and_mean_are_loops_over_edges(seed):
    rng = np.random.default_rng(seed)
    values, receivers = rng.normal(size=(P, E, 3)), rng.integers(1, N, E)
    total, count = np.zeros((P, N, 3)), np.zeros(N)
    for e, i in enumerate(receivers):
        total[:, i] += values[:, e]
        count[i] += 1
    with helpers.using("float64"):
        found_sum = segment_sum(values, receivers, N)
        found_mean = segment_mean(values, receivers, N)
    np.testing.assert_allclose(found_sum, total, atol=1e-14)
    np.testing.assert_allclose(found_mean, total / np.maximum(count, 1)[:, None], atol=1e-14)
    np.testing.assert_array_equal(found_mean[:, count == 0], 0)


def test_segment_sum_of_bfloat16_adds_in_float32():
    """A thousand ones and their sum: bfloat16 cannot count past 256."""
    values = jnp.ones((1, 1000, 1), jnp.bfloat16)
    total = ops.segment_sum(values, jnp.zeros(1000, jnp.int32), 1)
    assert total.dtype == jnp.bfloat16
    assert total[0, 0, 0] == 1000


def test_no_edges_give_zero_sums_and_means():
    nobody = jnp.zeros(0, jnp.int32)
    for aggregate in (ops.segment_sum, ops.segment_mean):
        np.testing.assert_array_equal(aggregate(jnp.zeros((P, 0, 3)), nobody, N), 0.0)


def test_graph_mean_is_that_of_each_graph_and_zero_of_an_empty_one():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    n_node = np.array([2, 0, 4, 0])
    found = ops.graph_mean(values, np.repeat(np.arange(4), n_node), n_node)
    np.testing.assert_allclose(found[0], values[:2].mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[2], values[2:].mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[np.array([1, 3])], 0.0)


def test_layer_without_neighbours_moves_along_velocities_alone():
    rng = np.random.default_rng(1)
    weights = random_weights(rng, 0)
    x, v, h, *_ = random_state(rng, 0)
    nobody = np.zeros(0, np.int32)
    with helpers.using("float64"):
        new_x, new_v, _ = egnn_layer(weights, x, v, h, None, nobody, nobody)
    np.testing.assert_allclose(new_x, x + mlp(weights["velocity_mlp"], h) * v, atol=1e-13)
    np.testing.assert_array_equal(new_v, v)


@pytest.mark.parametrize("differentiate", [jax.jacfwd, jax.jacrev])
def test_derivatives_of_the_layer_are_finite_where_nodes_coincide(differentiate):
    rng = np.random.default_rng(2)
    weights = random_weights(rng, 0)
    x, v, h, _, senders, receivers = random_state(rng, 0)
    x = np.zeros_like(x)
    with helpers.using("float64"):
        jacobian = jax.jit(differentiate(ops.egnn_layer, argnums=1))(
            weights, x, v, h, None, senders, receivers
        )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jacobian))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_means_over_many_values_are_right_in_narrow_dtypes(dtype):
    """A count kept in bfloat16 stops at 256, a sum of ones likewise."""
    ones, zeros = jnp.ones((5000, 1), dtype), jnp.zeros(5000, jnp.int32)
    assert ops.segment_mean(ones[None], zeros, 1)[0, 0, 0] == 1
    assert ops.graph_mean(ones, zeros, jnp.array([5000]))[0, 0] == 1


def test_a_squared_distance_is_not_rounded_to_the_dtype_of_the_features():
    """In float16 the square of 300 is infinite; its product with a small weight is not."""
    weights = {
        "linear_0": {"kernel": jnp.full((5, 1), 1e-3, "float16"), "bias": jnp.zeros(1, "float16")},
        "linear_1": {"kernel": jnp.ones((1, 1), "float16"), "bias": jnp.zeros(1, "float16")},
    }
    features, edge = jnp.zeros((1, 2, 2), "float16"), jnp.zeros(1, jnp.int32)
    messages = ops.edge_messages(
        weights, jnp.full((1, 1, 1), 90_000.0), features, None, edge, edge + 1
    )
    np.testing.assert_allclose(messages, 90.0, rtol=1e-2)
