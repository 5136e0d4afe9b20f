"""Messages between nodes that carry vectors, independently at each time.

The K vectors of a node are `[P, N, 3, K]`: products over channels are matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from egno_jax.ops import kernels
from egno_jax.ops.layouts import EdgeList, Layout
from egno_jax.ops.linear import linear, matmul
from egno_jax.ops.message_passing import displacements

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# Added to the variance in `standardized`; the kernel has its own copy.
EPSILON = 1e-5


class VectorSums(NamedTuple):
    """What a node gets from its incoming edges.

    Attributes:
      messages: `[P, N, C]`, invariant.
      steps: `[P, N, 3]`, along the differences of positions.
      vectors: `[P, N, 3, K]`.
    """

    messages: Float[Array, "P *nodes C"]
    steps: Float[Array, "P *nodes 3"]
    vectors: Float[Array, "P *nodes 3 K"]


def standardized(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Returns x with mean 0 and variance 1 over its last axis; computed in float32 or wider."""
    wide = x.astype(jnp.result_type(x.dtype, jnp.float32))
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(variance + EPSILON)).astype(x.dtype)


def vector_sums(
    layers: Mapping[str, Any],
    positions: Float[Array, "P *nodes 3"],
    vectors: Float[Array, "P *nodes 3 K"],
    features: Float[Array, "P *nodes A"],
    edge_features: Float[Array, "E D"] | None,
    senders: Int[Array, "E"],
    receivers: Int[Array, "E"],
    *,
    edge_shifts: Float[Array, "E 3"] | None = None,
    layout: Layout | None = None,
    precision: str = "highest",
) -> VectorSums:
    """Sums the messages of each node's incoming edges; 0 without incoming edges.

        m_ij = LN(SiLU(phi_m([h_i, h_j, |r_ij|^2, |V_i - V_j|^2, r_ij V_i, r_ij V_j, e_ij])))
        [a, b] = A m_ij + a_0,    f = k m_ij + f_0,    r_ij = x_i - x_j + s_ij
        M_i = sum_j m_ij,    S_i = sum_j f r_ij,    U_i = sum_j a r_ij + b (V_i - V_j)

    with a norm, two products, a and b for each of the K vectors V. LN is `standardized`. On a CPU,
    in float32 and for C and K that are multiples of 16, it is one kernel (`egno_jax.ops.kernels`).

    Args:
      layers: the weights. `input` is the first layer of phi_m, whose kernel has
        `2 A + 1 + 3 K + D` rows in the order above; `message` its second; `gates` are A and a_0,
        `step` k and f_0.
      positions: `[P, N, 3]`.
      vectors: `[P, N, 3, K]`.
      features: `[P, N, A]`, invariant.
      edge_features: `[E, D]`, invariant; or None.
      senders: `[E]`, node j of each message.
      receivers: `[E]`, node i of each message.
      edge_shifts: `[E, 3]`, s_ij of periodic images, see `egno_jax.ops.displacements`; or None.
      layout: another arrangement of these edges, as in `egno_jax.ops.egnn_layer`.
      precision: precision of products over channels; sums of coordinates are always exact.
    """
    kernel, bias = layers["input"]["kernel"], layers["input"]["bias"]
    depth, num_vectors = features.shape[-1], vectors.shape[-1]
    ends = [depth, 2 * depth, 2 * depth + 1, 2 * depth + 1 + 3 * num_vectors]
    of_receivers, of_senders, of_distance, of_invariants, of_edge = jnp.split(kernel, ends)
    if edge_features is None:
        edge_features = jnp.zeros((senders.shape[0], 0), features.dtype)
    arrays = {
        "layers": {
            **{name: layers[name] for name in ("gates", "message", "step")},
            **{"of_distance": of_distance[0], "of_edge": of_edge, "of_invariants": of_invariants},
        },
        "positions": positions,
        "node_vectors": vectors,
        "features": matmul(features, of_receivers, precision) + bias,
        "features_of_senders": matmul(features, of_senders, precision),
        "edge_features": edge_features.astype(features.dtype),
        "edge_shifts": edge_shifts,
        "precision": precision,
    }
    edges = layout or EdgeList(senders, receivers, positions.shape[1])
    if isinstance(edges, EdgeList):
        return _vector_sums(**arrays, senders=edges.senders, receivers=edges.receivers)
    return _sums_over(edges, **arrays)


def _sums_over(
    edges: Layout,
    layers: Mapping[str, Any],
    positions: Float[Array, "P *nodes 3"],
    node_vectors: Float[Array, "P *nodes 3 K"],
    features: Float[Array, "P *nodes C"],
    features_of_senders: Float[Array, "P *nodes C"],
    edge_features: Float[Array, "E D"],
    edge_shifts: Float[Array, "E 3"] | None,
    *,
    precision: str,
) -> VectorSums:
    """Computes `vector_sums` over edges in any layout.

    `features` are the terms of receivers in the first layer, its bias included.
    """
    shape = node_vectors.shape[-2:]
    r = displacements(edges, positions, edge_shifts)[..., None]
    flat = node_vectors.reshape(*node_vectors.shape[:-2], math.prod(shape))
    receiver, sender = (
        x.reshape(*x.shape[:-1], *shape) for x in (edges.of_receivers(flat), edges.of_senders(flat))
    )
    difference = receiver - sender
    products = (jnp.square(difference), r * receiver, r * sender)
    invariants = jnp.concatenate([jnp.sum(x, axis=-2) for x in products], axis=-1)
    wide = jnp.sum(jnp.square(r), axis=-2) * layers["of_distance"].astype(r.dtype)
    wide = wide + matmul(invariants, layers["of_invariants"].astype(r.dtype), precision)
    hidden = edges.of_receivers(features) + edges.of_senders(features_of_senders)
    hidden = hidden + wide.astype(features.dtype)
    if edge_features.shape[-1]:
        of_edges = edges.edge_features(edge_features)
        hidden = hidden + matmul(of_edges, layers["of_edge"], precision)
    messages = jax.nn.silu(linear(layers["message"], jax.nn.silu(hidden), precision))
    messages = standardized(messages)
    factors = linear(layers["step"], messages, precision).astype(r.dtype)
    gates = linear(layers["gates"], messages, precision).astype(r.dtype)[..., None, :]
    of_r, of_difference = jnp.split(gates, 2, axis=-1)
    found = of_r * r + of_difference * difference
    sums = edges.to_receivers(found.reshape(*found.shape[:-2], math.prod(shape)))
    return VectorSums(
        edges.to_receivers(messages),
        edges.to_receivers(r[..., 0] * factors),
        sums.reshape(*sums.shape[:-1], *shape),
    )


def _vector_sums_reference(
    layers: Mapping[str, Any],
    positions: Float[Array, "P N 3"],
    node_vectors: Float[Array, "P N 3 K"],
    features: Float[Array, "P N C"],
    features_of_senders: Float[Array, "P N C"],
    edge_features: Float[Array, "E D"],
    senders: Int[Array, "E"],
    receivers: Int[Array, "E"],
    edge_shifts: Float[Array, "E 3"] | None = None,
    *,
    precision: str,
) -> VectorSums:
    """Computes `_sums_over` the edges as they are: the specification of the kernel."""
    edges = EdgeList(senders, receivers, positions.shape[1])
    of_nodes = positions, node_vectors, features, features_of_senders
    return _sums_over(edges, layers, *of_nodes, edge_features, edge_shifts, precision=precision)


_vector_sums = kernels.accelerate(
    "vector_sums",
    _vector_sums_reference,
    {"cpu": kernels.VECTOR_SUMS},
    ["precision"],
    with_times=("positions", "node_vectors", "features", "features_of_senders"),
)
