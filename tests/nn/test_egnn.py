"""Message passing and the block as layers that work alone, in Linen and in NNX."""

import flax.linen
import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from egno_jax import EGNOConfig, nn, ops
from tests import helpers

P, N, E, C, D = 3, 4, 7, 6, 2


def random_inputs(num_edge_features=D, dtype="float32"):
    """Positions, velocities, features, edge features, senders, receivers."""
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=(P, N, 3)).astype(dtype) for _ in range(2)]
    features = rng.normal(size=(P, N, C)).astype(dtype)
    edge_features = rng.normal(size=(E, num_edge_features)).astype(dtype)
    senders, receivers = rng.integers(0, N, (2, E))
    return *vectors, features, edge_features if num_edge_features else None, senders, receivers


@pytest.mark.parametrize("num_edge_features", [0, D])
def test_layer_is_that_of_ops_and_has_four_perceptrons(num_edge_features):
    inputs = random_inputs(num_edge_features)
    found, variables = helpers.init_layer(nn.EGNNLayer(8), *inputs)
    weights = variables["params"]
    kernels = {name: mlp["linear_0"]["kernel"].shape for name, mlp in weights.items()}
    assert kernels == {
        "message_mlp": (1 + 2 * C + num_edge_features, 8),
        "position_mlp": (8, 8),
        "velocity_mlp": (C, 8),
        "feature_mlp": (C + 8, 8),
    }
    assert weights["position_mlp"]["linear_1"]["kernel"].shape == (8, 1)
    assert [x.shape for x in found] == [(P, N, 3), (P, N, 3), (P, N, 8)]
    for array, expected in zip(found, ops.egnn_layer(weights, *inputs), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-6)


def graph_of(edge_features, senders, receivers, n_node=(N,)):
    return jraph.GraphsTuple(
        nodes={},
        edges={"features": edge_features},
        senders=senders,
        receivers=receivers,
        globals=None,
        n_node=np.array(n_node),
        n_edge=None,
    )


def test_layer_in_bfloat16_keeps_geometry_in_float32():
    inputs = random_inputs()
    exact, variables = helpers.init_layer(nn.EGNNLayer(C), *inputs)
    found = nn.EGNNLayer(C, dtype="bfloat16").apply(variables, *inputs)
    assert [x.dtype for x in found] == [jnp.float32, jnp.float32, jnp.bfloat16]
    for array, expected in zip(found, exact, strict=True):
        helpers.assert_close(array.astype(jnp.float32), expected, 0.05)


def test_block_is_its_three_layers_one_after_another():
    positions, velocities, features, *edges = random_inputs()
    config = EGNOConfig(hidden_dim=C, num_modes=2)
    state, graph = nn.State(positions, velocities, features), graph_of(*edges)
    found, variables = helpers.init_layer(nn.Block(config), state, graph)
    weights = variables["params"]
    assert set(weights) == {"temporal_conv", "vector_temporal_conv", "egnn_layer"}
    features = nn.TemporalConv(2).apply({"params": weights["temporal_conv"]}, features)
    vectors = nn.VectorTemporalConv(2).apply(
        {"params": weights["vector_temporal_conv"]}, np.stack([positions, velocities], axis=-1)
    )
    assert np.abs(vectors[..., 0] - positions).max() > 1e-3
    layer = nn.EGNNLayer(C).bind({"params": weights["egnn_layer"]})
    expected = layer(vectors[..., 0], vectors[..., 1], features, *edges)
    for array, other in zip(found[:3], expected, strict=True):
        np.testing.assert_allclose(array, other, atol=1e-6)


@pytest.mark.parametrize("channels", [0, 3])
def test_mean_field_starts_at_zero_is_that_of_ops_and_takes_all_nodes_for_one_graph(channels):
    positions, velocities, features, *_ = random_inputs()
    inputs = positions, velocities, features
    layer = nn.MeanField(8, channels)
    found, variables = helpers.init_layer(layer, *inputs)
    np.testing.assert_array_equal(found, positions)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables)
    found = layer.apply(variables, *inputs)
    weights, senders = (variables["params"].get(name) for name in ("mlp", "sender_mlp"))
    assert weights["linear_0"]["kernel"].shape == (C, 8)
    assert weights["linear_1"]["kernel"].shape == (8, 2 + channels)
    assert (senders is None) == (channels == 0)
    options = {"sender_weights": senders}
    expected = ops.mean_field(weights, *inputs, np.zeros(N, np.int32), 1, **options)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    apart = layer.apply(variables, *inputs, np.arange(N), N)
    alone = ops.mean_field(weights, *inputs, np.arange(N), N, **options)
    np.testing.assert_allclose(apart, alone, atol=1e-6)
    assert np.abs(apart - found).max() > 1e-3


def test_block_moves_along_the_mean_field_before_it_passes_messages():
    positions, velocities, features, *edges = random_inputs()
    block = nn.Block(EGNOConfig(hidden_dim=C, num_modes=2, mean_field=True, mean_field_channels=2))
    ids = np.array([0, 0, 1, 1])
    inputs = nn.State(positions, velocities, features), graph_of(*edges, n_node=(2, 2))
    _, variables = helpers.init_layer(block, *inputs)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: np.float32(leaf + 0.1 * rng.normal(size=leaf.shape)), variables
    )
    found = jax.jit(block.apply)(variables, *inputs)
    weights = variables["params"]
    features = nn.TemporalConv(2).apply({"params": weights["temporal_conv"]}, features)
    vectors = nn.VectorTemporalConv(2).apply(
        {"params": weights["vector_temporal_conv"]}, np.stack([positions, velocities], axis=-1)
    )
    moved = nn.MeanField(C, 2).apply(
        {"params": weights["mean_field"]}, vectors[..., 0], vectors[..., 1], features, ids, 2
    )
    layer = nn.EGNNLayer(C).bind({"params": weights["egnn_layer"]})
    expected = layer(moved, vectors[..., 1], features, *edges)
    for array, other in zip(found[:3], expected, strict=True):
        np.testing.assert_allclose(array, other, atol=1e-6)


def test_layers_work_in_a_linen_module_of_the_reader():
    class Smoother(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            x = nn.TemporalConv(num_modes=2, name="conv")(x)
            return nn.Linear(1, name="read")(x)

    out, variables = Smoother().init_with_output(jax.random.key(0), jnp.ones((P, N, C)))
    assert out.shape == (P, N, 1)
    assert variables["params"]["conv"]["kernel"].shape == (2, 2, C, C)


def test_layers_work_in_an_nnx_module_of_the_reader():
    x = np.random.default_rng(0).normal(size=(P, N, C)).astype(np.float32)

    class Smoother(nnx.Module):
        def __init__(self, rngs):
            self.conv = bridge.ToNNX(nn.TemporalConv(num_modes=2), rngs=rngs).lazy_init(x)

        def __call__(self, x):
            return self.conv(x)

    smoother = Smoother(nnx.Rngs(0))
    kernel = smoother.conv.kernel[...]
    assert kernel.shape == (2, 2, C, C)
    expected = nn.TemporalConv(2).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(smoother, x), expected, atol=1e-6)
    gradient = nnx.grad(lambda m: jnp.sum(m(x) ** 2))(smoother)
    assert np.abs(gradient["conv"]["kernel"][...]).max() > 0
