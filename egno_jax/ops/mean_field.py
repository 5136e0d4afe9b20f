"""What a node takes from the mean of its graph, at every time alone.

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


def mean_field(
    weights: Mapping[str, Mapping[str, Array]],
    positions: Float[Array, "P N 3"],
    velocities: Float[Array, "P N 3"],
    features: Float[Array, "P N C"],
    graph_ids: Int[Array, "N"],
    num_graphs: int,
    *,
    precision: str = "highest",
) -> Float[Array, "P N 3"]:
    """Moves every node along what its whole graph does: from its middle, and with its drift.

        x_i <- x_i + a_i (x_i - mean_j x_j) + b_i mean_j v_j,    [a_i, b_i] = phi_u(h_i)

    Means are over the nodes of a graph. Since x_i - mean_j x_j = mean_j r_ij, this is a message
    from every node to every other whose weight the receiver alone decides: the reach of a complete
    graph at the cost of its nodes. It turns and moves with its input as a message does.

    Args:
      weights: phi_u, as `egno_jax.ops.mlp` takes it, from C to 2.
      positions: `[P, N, 3]`.
      velocities: `[P, N, 3]`.
      features: `[P, N, C]`, invariant.
      graph_ids: `[N]`, the graph of each node, as `egno_jax.graph.graph_ids` gives it.
      num_graphs: G.
      precision: precision of products over channels; means of coordinates are always exact.

    Returns:
      The new positions, `[P, N, 3]`.
    """
    factors = mlp(weights, features, precision).astype(positions.dtype)
    middle, drift = (
        jnp.take(segment_mean(x, graph_ids, num_graphs), graph_ids, axis=1, mode="clip")
        for x in (positions, velocities)
    )
    return positions + factors[..., :1] * (positions - middle) + factors[..., 1:] * drift
