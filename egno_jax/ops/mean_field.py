"""Global message passing by virtual-node channels, independently at each time.

Layout: time first, `[P, N, channels]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp

from egno_jax.ops.linear import mlp
from egno_jax.ops.message_passing import segment_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    from egno_jax.ops.layouts import Blocks


def mean_field(
    weights: Mapping[str, Mapping[str, Array]],
    positions: Float[Array, "P N 3"],
    velocities: Float[Array, "P N 3"],
    features: Float[Array, "P N C"],
    graph_ids: Int[Array, "N"] | None,
    num_graphs: int,
    *,
    sender_weights: Mapping[str, Mapping[str, Array]] | None = None,
    layout: Blocks | None = None,
    precision: str = "highest",
) -> Float[Array, "P N 3"]:
    """Updates positions by global message passing, in O(N) time.

        x_i <- x_i + a_i (x_i - mean_j x_j) + b_i mean_j v_j,    [a_i, b_i] = phi_u(h_i)

    Means are over the nodes of a graph. Since x_i - mean_j x_j = mean_j r_ij, this is a message
    between all pairs of nodes, with a weight that depends only on the receiver.

    With `sender_weights` there are K virtual-node channels, means weighted by the senders:

        x_i <- ... + sum_k c_ik mean_j [w_jk (x_j - mean x) + u_jk v_j],
        [a_i, b_i, c_i] = phi_u(h_i),    [w_j, u_j] = phi_w(h_j)

    A node can then follow one part of its graph alone. The weights of the messages between all
    pairs have rank K, as in linear attention: the cost is P N K (C + 3), not P N^2.

    Args:
      weights: phi_u, weights of `egno_jax.ops.mlp` from C to 2 + K.
      positions: `[P, N, 3]`.
      velocities: `[P, N, 3]`.
      features: `[P, N, C]`, invariant.
      graph_ids: `[N]`, the graph of each node, from `egno_jax.graph.graph_ids`.
      num_graphs: G.
      sender_weights: phi_w, from C to 2 K; None: K = 0.
      layout: the arrangement of the nodes, if they are in blocks.
      precision: that of products over channels; means of coordinates are exact.

    Source: the weighted means correspond to the virtual nodes of Zhang et al., "Improving
    Equivariant Graph Neural Networks on Large Geometric Graphs via Virtual Nodes Learning", ICML
    2024. Here a virtual node carries vectors, not a position, and needs no initial position.
    """

    def mean(values: Float[Array, "P N B"]) -> Float[Array, "P N B"]:
        if layout is not None:
            return layout.graph_mean(values)
        means = segment_mean(values, graph_ids, num_graphs)
        return jnp.take(means, graph_ids, axis=1, mode="clip")

    factors = mlp(weights, features, precision).astype(positions.dtype)
    offsets = positions - mean(positions)
    moved = positions + factors[..., :1] * offsets + factors[..., 1:2] * mean(velocities)
    if sender_weights is None:
        return moved
    shares = mlp(sender_weights, features, precision).astype(positions.dtype)
    of_offsets, of_velocities = jnp.split(shares[..., None], 2, axis=-2)  # [P, N, K, 1] each
    vectors = of_offsets * offsets[..., None, :] + of_velocities * velocities[..., None, :]
    means = mean(vectors.reshape(*vectors.shape[:-2], -1))
    channels = means.reshape(*means.shape[:-1], *vectors.shape[-2:])
    return moved + jnp.sum(factors[..., 2:, None] * channels, axis=-2)
