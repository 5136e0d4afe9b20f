"""E(n)-equivariant message passing, independently at each time.

Layout: time first, `[P, N, channels]`. All times share one set of edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from egno_jax.ops import kernels
from egno_jax.ops.kernels import gpu, tpu
from egno_jax.ops.layouts import Adjacency, Blocks, EdgeList, Layout
from egno_jax.ops.linear import (
    linear,
    linear_by_products,
    matmul,
    matmul_at_times,
    matmul_of_two,
    mlp,
)
from egno_jax.ops.numerics import limit_norm, squared_norm

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# The longest step of a node by the messages of one layer.
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
    edge_shifts: Float[Array, "E 3"] | None = None,
    layout: Layout | None = None,
    precision: str = "highest",
) -> tuple[Float[Array, "P N 3"], Float[Array, "P N 3"], Float[Array, "P N B"]]:
    """Updates positions by velocities and messages, and features by messages.

        m_ij = SiLU(phi_m([|r_ij|^2, h_i, h_j, e_ij])),    r_ij = x_i - x_j + s_ij
        x_i <- x_i + phi_v(h_i) v_i + limit(mean_j r_ij phi_x(m_ij))
        h_i <- phi_h([h_i, sum_j m_ij])

    Args:
      weights: `message_mlp`, `position_mlp`, `velocity_mlp` and `feature_mlp` for phi_m, phi_x,
        phi_v and phi_h, each the weights of `egno_jax.ops.mlp`.
      positions: `[P, N, 3]`.
      velocities: `[P, N, 3]`, returned unchanged.
      features: `[P, N, C]`, invariant.
      edge_features: `[E, D]`, invariant, the same at all times; or None.
      senders: `[E]`, node j of each message.
      receivers: `[E]`, node i of each message.
      edge_shifts: `[E, 3]`, s_ij of periodic images, see `displacements`; None: all are 0.
      layout: another arrangement of these edges, whose axes of nodes replace N; see
        `egno_jax.ops.layouts`. None: the edges as they are.
      precision: precision of products over channels; sums of coordinates are always exact.

    Source: Satorras et al., "E(n) Equivariant Graph Neural Networks", 2021, equations 3 to 7, in
    the variant of the EGNO code: mean over neighbours, limited step, no residual of features.
    """
    mlps = weights["message_mlp"], weights["position_mlp"]
    options = {"edge_shifts": edge_shifts, "precision": precision}
    edges = layout or EdgeList(senders, receivers, positions.shape[1])
    if isinstance(edges, EdgeList):
        names = ("senders", "receivers", "num_graphs", "incoming", "outgoing")
        options |= {name: getattr(edges, name) for name in names}
        message_sum, step_sum = message_sums(*mlps, positions, features, edge_features, **options)
    else:
        message_sum, step_sum = sums_over(
            edges, *mlps, positions, features, edge_features, **options
        )
    count = edges.in_degree(positions.dtype)
    step = limit_norm(step_sum / jnp.maximum(count, 1), MAX_STEP)
    speed = velocity_factor(weights["velocity_mlp"], features, precision=precision)
    new_features = feature_update(
        weights["feature_mlp"], features, message_sum, precision=precision
    )
    return positions + speed.astype(positions.dtype) * velocities + step, velocities, new_features


def message_sums(
    message_mlp: Mapping[str, Mapping[str, Array]],
    position_mlp: Mapping[str, Mapping[str, Array]],
    positions: Float[Array, "P N 3"],
    features: Float[Array, "P N A"],
    edge_features: Float[Array, "E D"] | None,
    senders: Int[Array, "E"],
    receivers: Int[Array, "E"],
    *,
    edge_shifts: Float[Array, "E 3"] | None = None,
    num_graphs: int = 1,
    incoming: Adjacency | None = None,
    outgoing: Adjacency | None = None,
    precision: str = "highest",
) -> tuple[Float[Array, "P N C"], Float[Array, "P N 3"]]:
    """Sums the messages and the steps of each node's incoming edges; 0 without incoming edges.

        m_ij = SiLU(phi_m([|r_ij|^2, h_i, h_j, e_ij])),    r_ij = x_i - x_j + s_ij
        M_i = sum_j m_ij,    S_i = sum_j r_ij phi_x(m_ij)

    This is most of a layer's work. On a CPU, in float32 and for widths that are multiples of 16, it
    is one kernel (`egno_jax.ops.kernels`), which keeps the values of edges in the cache and
    recomputes them for the gradient; on TPUs and GPUs it can be others (`EGNO_JAX_KERNELS=pallas`);
    elsewhere it is `message_sums_reference`. Arguments as in `egnn_layer` and `EdgeList`; the first
    kernel of `message_mlp`, phi_m, has `1 + 2 A + D` rows.
    """
    if edge_features is None:
        edge_features = jnp.zeros((senders.shape[0], 0), features.dtype)
    return _message_sums(
        message_mlp=message_mlp,
        position_mlp=position_mlp,
        positions=positions,
        features=features,
        edge_features=edge_features.astype(features.dtype),
        senders=senders,
        receivers=receivers,
        edge_shifts=None if edge_shifts is None else edge_shifts.astype(positions.dtype),
        num_graphs=num_graphs,
        incoming=incoming,
        outgoing=outgoing,
        precision=precision,
    )


def message_sums_reference(
    message_mlp: Mapping[str, Mapping[str, Array]],
    position_mlp: Mapping[str, Mapping[str, Array]],
    positions: Float[Array, "P N 3"],
    features: Float[Array, "P N A"],
    edge_features: Float[Array, "E D"] | None,
    senders: Int[Array, "E"],
    receivers: Int[Array, "E"],
    *,
    edge_shifts: Float[Array, "E 3"] | None = None,
    num_graphs: int = 1,
    incoming: Adjacency | None = None,
    outgoing: Adjacency | None = None,
    precision: str = "highest",
) -> tuple[Float[Array, "P N C"], Float[Array, "P N 3"]]:
    """Computes `message_sums` in JAX: its specification, with the same arguments and results."""
    edges = EdgeList(senders, receivers, positions.shape[1])
    arrays = message_mlp, position_mlp, positions, features, edge_features
    return sums_over(edges, *arrays, edge_shifts=edge_shifts, precision=precision)


def displacements(
    edges: Layout,
    positions: Float[Array, "P *nodes 3"],
    edge_shifts: Float[Array, "E 3"] | None = None,
) -> Float[Array, "P *edges 3"]:
    """Returns the vector from sender to receiver of every edge: `r_ij = x_i - x_j + s_ij`.

    Node i is the receiver, j the sender. The shift s_ij says which periodic image of the sender
    is meant: the one at `x_j - s_ij`. With the rows of `cell` as lattice vectors and the integers
    n_ij of a neighbour list, whose image of j is at `x_j + n_ij cell` (ASE, matscipy, vesin with i
    the receiver), `s_ij = -n_ij cell`. The reverse edge has the opposite shift, `s_ji = -s_ij`.

    Args:
      edges: the edges, in any layout; the axes of the result are those of its edges.
      positions: `[P, N, 3]`, or in the layout's axes of nodes.
      edge_shifts: `[E, 3]`, Cartesian, in the order of the graph's edges and the unit of positions;
        None: no edge crosses a periodic boundary, and nothing is computed for shifts.
    """
    difference = edges.of_receivers(positions) - edges.of_senders(positions)
    if edge_shifts is None:
        return difference
    return difference + edges.edge_features(edge_shifts.astype(difference.dtype))


def sums_over(
    edges: Layout,
    message_mlp: Mapping[str, Mapping[str, Array]],
    position_mlp: Mapping[str, Mapping[str, Array]],
    positions: Float[Array, "P *nodes 3"],
    features: Float[Array, "P *nodes A"],
    edge_features: Float[Array, "E D"] | None,
    *,
    edge_shifts: Float[Array, "E 3"] | None = None,
    precision: str = "highest",
) -> tuple[Float[Array, "P *nodes C"], Float[Array, "P *nodes 3"]]:
    """Computes `message_sums` over edges in any layout; features and shifts as in the graph."""
    difference = displacements(edges, positions, edge_shifts)
    messages = _messages(
        edges, message_mlp, squared_norm(difference), features, edge_features, precision=precision
    )
    coefficients = mlp(position_mlp, messages, precision, _affine_of(edges, messages, precision))
    coefficients = coefficients.astype(positions.dtype)
    return edges.to_receivers(messages), edges.to_receivers(difference * coefficients)


def feature_update_reference(
    feature_mlp: Mapping[str, Mapping[str, Array]],
    features: Float[Array, "P N A"],
    messages: Float[Array, "P N B"],
    *,
    precision: str = "highest",
) -> Float[Array, "P N C"]:
    """Computes each node's new features from its messages M, `h_i <- phi_h([h_i, M_i])`.

    `feature_update` is one kernel on a CPU, under the conditions of `message_sums`; elsewhere it is
    `feature_update_reference`, its specification in JAX.
    """
    first, second = feature_mlp["linear_0"], feature_mlp["linear_1"]
    hidden = matmul_of_two(features, messages, first["kernel"], precision) + first["bias"]
    return linear(second, jax.nn.silu(hidden), precision)


def velocity_factor_reference(
    velocity_mlp: Mapping[str, Mapping[str, Array]],
    features: Float[Array, "P N A"],
    *,
    precision: str = "highest",
) -> Float[Array, "P N 1"]:
    """Computes the factor of each node's velocity, `f_i = phi_v(h_i)`.

    `velocity_factor` is one kernel on a CPU, under the conditions of `message_sums`; elsewhere it
    is `velocity_factor_reference`, its specification in JAX.
    """
    return mlp(velocity_mlp, features, precision)


# For a kernel of another platform, add an entry here.
_STATIC = ["precision"]
_message_sums = kernels.accelerate(
    "message_sums",
    message_sums_reference,
    {"cpu": kernels.MESSAGE_SUMS, "tpu": tpu.MESSAGE_SUMS, "cuda": gpu.MESSAGE_SUMS},
    [*_STATIC, "num_graphs"],
    with_times=("positions", "features"),
)
feature_update = kernels.accelerate(
    "feature_update",
    feature_update_reference,
    {"cpu": kernels.FEATURE_UPDATE, "cuda": gpu.FEATURE_UPDATE},
    _STATIC,
    with_times=("features", "messages"),
)
velocity_factor = kernels.accelerate(
    "velocity_factor",
    velocity_factor_reference,
    {"cpu": kernels.VELOCITY_FACTOR, "cuda": gpu.VELOCITY_FACTOR},
    _STATIC,
    with_times=("features",),
)


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
    are gathered, e_ij once for all times. `weights` are those of phi_m, whose first kernel has
    `1 + 2 A + D` rows in the order above; other arguments as in `egnn_layer`.
    """
    edges = EdgeList(senders, receivers, features.shape[1])
    arrays = squared_distances, features, edge_features
    return _messages(edges, weights, *arrays, precision=precision)


def _messages(
    edges: Layout,
    weights: Mapping[str, Any],
    squared_distances: Float[Array, "P *edges 1"],
    features: Float[Array, "P *nodes A"],
    edge_features: Float[Array, "E D"] | None,
    *,
    precision: str,
) -> Float[Array, "P *edges C"]:
    kernel, width = weights["linear_0"]["kernel"], features.shape[-1]
    of_receiver, of_sender = kernel[1 : 1 + width], kernel[1 + width : 1 + 2 * width]
    receiver_terms = matmul(features, of_receiver, precision) + weights["linear_0"]["bias"]
    sender_terms = matmul(features, of_sender, precision)
    hidden = edges.of_receivers(receiver_terms) + edges.of_senders(sender_terms)
    # Only the product is rounded to the dtype of the features, not the squared distance itself.
    wide = squared_distances * kernel[0].astype(squared_distances.dtype)
    hidden = hidden + wide.astype(hidden.dtype)
    if edge_features is not None and edge_features.shape[-1]:
        arranged = edges.edge_features(edge_features.astype(features.dtype))
        rows = kernel[1 + 2 * width :]
        hidden = hidden + matmul_at_times(arranged, rows, hidden.shape[0], precision)
    affine = _affine_of(edges, hidden, precision)
    return jax.nn.silu(affine(weights["linear_1"], jax.nn.silu(hidden), precision))


def _affine_of(edges: Layout, values: Array, precision: str) -> Callable[..., Array]:
    """Returns the linear layer of values of edges."""
    # XLA would write factors in bfloat16 to memory, which takes longer than the sums.
    is_narrow = precision == "default" or values.dtype == jnp.bfloat16
    return linear_by_products if isinstance(edges, Blocks) and not is_narrow else linear


def segment_sum(
    values: Float[Array, "P E C"], receivers: Int[Array, "E"], num_nodes: int
) -> Float[Array, "P N C"]:
    """Sums the values of each node's incoming edges at each time; zero if it has none.

    Adds in float32 or wider and returns the dtype of the values.
    """
    return EdgeList(receivers, receivers, num_nodes).to_receivers(values)


def segment_mean(
    values: Float[Array, "P E C"], receivers: Int[Array, "E"], num_nodes: int
) -> Float[Array, "P N C"]:
    """Averages the values of each node's incoming edges at each time; zero if it has none."""
    dtype = jnp.result_type(values.dtype, jnp.float32)
    edges = EdgeList(receivers, receivers, num_nodes)
    total = edges.to_receivers(values.astype(dtype))
    return (total / jnp.maximum(edges.in_degree(dtype), 1)).astype(values.dtype)


def graph_mean(
    values: Float[Array, "N C"], graph_ids: Int[Array, "N"], n_node: Int[Array, "G"]
) -> Float[Array, "G C"]:
    """Averages the values of each graph's nodes; zero for a graph without nodes."""
    dtype = jnp.result_type(values.dtype, jnp.float32)
    total = jax.ops.segment_sum(values.astype(dtype), graph_ids, n_node.shape[0])
    return (total / jnp.maximum(n_node, 1)[:, None].astype(dtype)).astype(values.dtype)
