"""E(n)-equivariant message passing, at every time alone.

Layout: time first, `[P, N, channels]`. All times share one set of edges, so indices are used once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from egno_jax.ops.linear import linear, matmul, mlp
from egno_jax.ops.numerics import limit_norm, squared_norm

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# The longest step that one layer moves a node by along its messages.
MAX_STEP = 100.0


def egnn_layer(
    weights: Mapping[str, Any],
    positions: Float[Array, "P N 3"],
    velocities: Float[Array, "P N 3"],
    features: Float[Array, "P N C"],
    edge_features: Float[Array, "E D"] | None,
    senders: Int[Array, "E"],
    receivers: Int[Array, "E"],
    *,
    precision: str = "highest",
) -> tuple[Float[Array, "P N 3"], Float[Array, "P N 3"], Float[Array, "P N B"]]:
    """Moves every node along its velocity and its messages, and updates its features.

        m_ij = SiLU(phi_m([|r_ij|^2, h_i, h_j, e_ij])),    r_ij = x_i - x_j
        x_i <- x_i + phi_v(h_i) v_i + limit(mean_j r_ij phi_x(m_ij))
        h_i <- phi_h([h_i, sum_j m_ij])

    Args:
      weights: `message_mlp`, `position_mlp`, `velocity_mlp` and `feature_mlp` for phi_m, phi_x,
        phi_v and phi_h, each as `egno_jax.ops.mlp` takes it.
      positions: `[P, N, 3]`.
      velocities: `[P, N, 3]`.
      features: `[P, N, C]`, invariant.
      edge_features: `[E, D]`, invariant, the same at all times; or None.
      senders: `[E]`, node j of each message.
      receivers: `[E]`, node i of each message.
      precision: precision of products over channels; sums of coordinates are always exact.

    Returns:
      The new positions `[P, N, 3]`, the velocities as they came, the new features `[P, N, C_out]`.

    Source: Satorras et al., "E(n) Equivariant Graph Neural Networks", 2021, equations 3 to 7; the
    variant of the EGNO code: mean over neighbours, a limit on the step, no residual of features.
    """
    num_nodes = positions.shape[1]
    difference = _gather(positions, receivers) - _gather(positions, senders)
    messages = edge_messages(
        weights["message_mlp"],
        squared_norm(difference),
        features,
        edge_features,
        senders,
        receivers,
        precision=precision,
    )
    coefficients = mlp(weights["position_mlp"], messages, precision).astype(positions.dtype)
    step = limit_norm(segment_mean(difference * coefficients, receivers, num_nodes), MAX_STEP)
    speed = mlp(weights["velocity_mlp"], features, precision).astype(positions.dtype)
    received = segment_sum(messages, receivers, num_nodes)
    new_features = mlp(
        weights["feature_mlp"], jnp.concatenate([features, received], axis=-1), precision
    )
    return positions + speed * velocities + step, velocities, new_features


def edge_messages(
    weights: Mapping[str, Any],
    squared_distances: Float[Array, "P E 1"],
    features: Float[Array, "P N A"],
    edge_features: Float[Array, "E D"] | None,
    senders: Int[Array, "E"],
    receivers: Int[Array, "E"],
    *,
    precision: str = "highest",
) -> Float[Array, "P E C"]:
    """Computes the invariant message of every edge: `SiLU(phi_m([|r|^2, h_i, h_j, e_ij]))`.

    The first linear layer is split by its inputs: h_i and h_j are multiplied per node before they
    are gathered, e_ij once for all times, and the concatenation is never formed.

    Args:
      weights: the weights of phi_m; its first kernel has `1 + 2 C + D` rows in the order above.
      squared_distances: `[P, E, 1]`.
      features: `[P, N, C]`.
      edge_features: `[E, D]` or None.
      senders: `[E]`.
      receivers: `[E]`.
      precision: precision of products over channels.

    Returns:
      `[P, E, C_out]`.
    """
    width = features.shape[-1]
    kernel, bias = weights["linear_0"]["kernel"], weights["linear_0"]["bias"]
    of_distance, of_receiver, of_sender, of_edge = jnp.split(
        kernel, [1, 1 + width, 1 + 2 * width], axis=0
    )
    hidden = _gather(matmul(features, of_receiver, precision) + bias, receivers)
    hidden = hidden + _gather(matmul(features, of_sender, precision), senders)
    # A squared distance is geometry: its product is rounded to the dtype of the features, not it.
    wide = squared_distances * of_distance.astype(squared_distances.dtype)
    hidden = hidden + wide.astype(hidden.dtype)
    if edge_features is not None:
        hidden = hidden + matmul(edge_features.astype(features.dtype), of_edge, precision)
    return jax.nn.silu(linear(weights["linear_1"], jax.nn.silu(hidden), precision))


def segment_sum(
    values: Float[Array, "P E C"], receivers: Int[Array, "E"], num_nodes: int
) -> Float[Array, "P N C"]:
    """Sums the values of each node's incoming edges, at every time; zero where there are none.

    Adds in float32 or wider and returns the dtype of the values.
    """
    dtype = jnp.result_type(values.dtype, jnp.float32)
    total = jnp.zeros((values.shape[0], num_nodes, values.shape[2]), dtype)
    return total.at[:, receivers].add(values.astype(dtype), mode="drop").astype(values.dtype)


def segment_mean(
    values: Float[Array, "P E C"], receivers: Int[Array, "E"], num_nodes: int
) -> Float[Array, "P N C"]:
    """Averages each node's incoming edges at every time; zero where there are none."""
    dtype = jnp.result_type(values.dtype, jnp.float32)
    count = jnp.zeros((num_nodes, 1), dtype).at[receivers].add(1, mode="drop")
    total = segment_sum(values.astype(dtype), receivers, num_nodes)
    return (total / jnp.maximum(count, 1)).astype(values.dtype)


def graph_mean(
    values: Float[Array, "N C"], graph_ids: Int[Array, "N"], n_node: Int[Array, "G"]
) -> Float[Array, "G C"]:
    """Averages the values of each graph's nodes; zero for a graph without nodes."""
    dtype = jnp.result_type(values.dtype, jnp.float32)
    total = jax.ops.segment_sum(values.astype(dtype), graph_ids, n_node.shape[0])
    return (total / jnp.maximum(n_node, 1)[:, None].astype(dtype)).astype(values.dtype)


def _gather(values: Float[Array, "P N C"], indices: Int[Array, "E"]) -> Float[Array, "P E C"]:
    return jnp.take(values, indices, axis=1, mode="clip")
