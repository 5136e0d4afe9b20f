"""A plain implementation of EGNO: concatenate, multiply, `segment_sum`.

It has the same weights and returns the same numbers as `egno_jax.apply`, with `jax.numpy` only, and
shows the gain of the library's layouts. It supports only times `[P]`, shared by all graphs, and the
index grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jraph

from egno_jax import Params, Trajectory

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_MAX_STEP = 100.0


def apply(params: Params, graph: jraph.GraphsTuple, times: Float[Array, "P"]) -> Trajectory:
    """Decodes the trajectory of a batch with edge features, as `egno_jax.apply` does."""
    config, weights = params.config, params.weights
    with jax.default_matmul_precision(config.matmul_precision):
        num_nodes, num_graphs = graph.nodes["positions"].shape[0], graph.n_node.shape[0]
        graph_ids = jnp.repeat(jnp.arange(num_graphs), graph.n_node, total_repeat_length=num_nodes)
        totals = jax.ops.segment_sum(graph.nodes["positions"], graph_ids, num_graphs)
        centre = (totals / jnp.maximum(graph.n_node, 1)[:, None])[graph_ids]
        state = (graph.nodes["positions"] - centre, graph.nodes["velocities"])
        x, v = (jnp.broadcast_to(a, (times.shape[0], *a.shape)) for a in state)
        h = _embed(weights["embedding"]["linear"], graph, times / config.time_scale, config)
        for index in range(config.num_layers):
            block = weights[f"block_{index}"]
            h = h + jax.nn.leaky_relu(_convolve(h, block["temporal_conv"]["kernel"]), 0.01)
            z = jnp.stack([x, v], axis=-1)
            z = z + _convolve(z, block["vector_temporal_conv"]["kernel"])
            x, v = z[..., 0], z[..., 1]
            x, h = jax.vmap(_egnn_layer, in_axes=(None, 0, 0, 0, None))(
                block["egnn_layer"], x, v, h, graph
            )
        return Trajectory(x + centre, v, h)


def _embed(
    weights: Mapping[str, Array], graph: jraph.GraphsTuple, tau: Float[Array, "P"], config: Any
) -> Float[Array, "P N C"]:
    """Concatenates node features and time embedding at every time, and applies a linear layer."""
    half = config.time_embed_dim // 2
    frequencies = 10000.0 ** (-jnp.arange(half) / max(half - 1, 1))
    angles = tau[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    embedding = jnp.pad(embedding, [(0, 0), (0, config.time_embed_dim % 2)])
    features = graph.nodes["features"]
    shape = (tau.shape[0], features.shape[0])
    repeated = [
        jnp.broadcast_to(features, (*shape, features.shape[1])),
        jnp.broadcast_to(embedding[:, None], (*shape, config.time_embed_dim)),
    ]
    return _linear(weights, jnp.concatenate(repeated, axis=-1))


def _convolve(
    x: Float[Array, "P *rest A"], kernel: Float[Array, "2 M A B"]
) -> Float[Array, "P *rest B"]:
    """Convolves over time: `irfft(R_k rfft(x)_k)`."""
    num_times = x.shape[0]
    modes = min(kernel.shape[1], num_times // 2 + 1)
    spectrum = jnp.fft.rfft(x, axis=0)[:modes]
    mixed = jnp.einsum("m...a,mab->m...b", spectrum, kernel[0, :modes] + 1j * kernel[1, :modes])
    return jnp.fft.irfft(mixed, n=num_times, axis=0)


def _egnn_layer(
    weights: Mapping[str, Any],
    x: Float[Array, "N 3"],
    v: Float[Array, "N 3"],
    h: Float[Array, "N C"],
    graph: jraph.GraphsTuple,
) -> tuple[Float[Array, "N 3"], Float[Array, "N C"]]:
    """Passes messages at one time; the formulas of `egno_jax.ops.egnn_layer`."""
    senders, receivers, num_nodes = graph.senders, graph.receivers, x.shape[0]
    r = x[receivers] - x[senders]
    squared = jnp.sum(r**2, axis=-1, keepdims=True)
    inputs = jnp.concatenate([squared, h[receivers], h[senders], graph.edges["features"]], axis=-1)
    m = jax.nn.silu(_mlp(weights["message_mlp"], inputs))
    count = jax.ops.segment_sum(jnp.ones_like(squared), receivers, num_nodes)
    pull = jax.ops.segment_sum(r * _mlp(weights["position_mlp"], m), receivers, num_nodes)
    pull = _limit(pull / jnp.maximum(count, 1))
    received = jax.ops.segment_sum(m, receivers, num_nodes)
    moved = x + _mlp(weights["velocity_mlp"], h) * v + pull
    return moved, _mlp(weights["feature_mlp"], jnp.concatenate([h, received], axis=-1))


def _limit(vectors: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
    """Scales vectors longer than 100 down to length 100."""
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True) / _MAX_STEP**2
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1.0))


def _mlp(weights: Mapping[str, Any], x: Float[Array, "... A"]) -> Float[Array, "... B"]:
    return _linear(weights["linear_1"], jax.nn.silu(_linear(weights["linear_0"], x)))


def _linear(weights: Mapping[str, Array], x: Float[Array, "... A"]) -> Float[Array, "... B"]:
    return x @ weights["kernel"] + weights["bias"]
