"""E(n)-equivariant message passing, at every time alone.

Layout: time first, `[P, N, channels]`. All times share one set of edges, so indices are used once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from egno_jax.ops import kernels
from egno_jax.ops.accelerated import accelerate
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
    message_sum, step_sum = message_sums(
        weights["message_mlp"],
        weights["position_mlp"],
        positions,
        features,
        edge_features,
        senders,
        receivers,
        precision=precision,
    )
    count = jnp.zeros((positions.shape[1], 1), positions.dtype).at[receivers].add(1, mode="drop")
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
    precision: str = "highest",
) -> tuple[Float[Array, "P N C"], Float[Array, "P N 3"]]:
    """Sums over each node's incoming edges: its messages, and the steps that they ask for.

        m_ij = SiLU(phi_m([|r_ij|^2, h_i, h_j, e_ij])),    r_ij = x_i - x_j
        M_i = sum_j m_ij,    S_i = sum_j r_ij phi_x(m_ij)

    This is most of a layer's work. On a CPU, in float32 and for widths that are multiples of 16, it
    is one kernel (`egno_jax.ops.kernels`) that keeps what belongs to an edge in the cache and
    computes it again for the gradient; elsewhere it is `message_sums_reference`.

    Args:
      message_mlp: phi_m, as `egno_jax.ops.mlp` takes it; its first kernel has `1 + 2 A + D` rows.
      position_mlp: phi_x.
      positions: `[P, N, 3]`.
      features: `[P, N, A]`.
      edge_features: `[E, D]` or None.
      senders: `[E]`.
      receivers: `[E]`.
      precision: precision of products over channels; sums of coordinates are always exact.

    Returns:
      M `[P, N, C]` and S `[P, N, 3]`; zero where no edge comes in.
    """
    if edge_features is None:
        edge_features = jnp.zeros((senders.shape[0], 0), features.dtype)
    arrays = (features, positions, edge_features.astype(features.dtype))
    layers = _flat(message_mlp, position_mlp)
    return tuple(_message_sums(precision)(*arrays, *layers, senders, receivers))


def message_sums_reference(
    features: Float[Array, "P N A"],
    positions: Float[Array, "P N 3"],
    edge_features: Float[Array, "E D"],
    *layers_senders_receivers: Array,
    precision: str = "highest",
) -> tuple[Float[Array, "P N C"], Float[Array, "P N 3"]]:
    """Computes `message_sums` as its formula says, one array after the other: the specification.

    Args:
      features: `[P, N, A]`.
      positions: `[P, N, 3]`.
      edge_features: `[E, D]`.
      *layers_senders_receivers: kernel and bias of the two layers of phi_m and of the two of phi_x;
        senders; receivers.
      precision: precision of products over channels.

    Returns:
      M `[P, N, C]` and S `[P, N, 3]`.
    """
    *layers, senders, receivers = layers_senders_receivers
    message_mlp, position_mlp = _nested(layers)
    num_nodes = positions.shape[1]
    difference = _gather(positions, receivers) - _gather(positions, senders)
    messages = edge_messages(
        message_mlp,
        squared_norm(difference),
        features,
        edge_features,
        senders,
        receivers,
        precision=precision,
    )
    coefficients = mlp(position_mlp, messages, precision).astype(positions.dtype)
    return (
        segment_sum(messages, receivers, num_nodes),
        segment_sum(difference * coefficients, receivers, num_nodes),
    )


def feature_update(
    feature_mlp: Mapping[str, Mapping[str, Array]],
    features: Float[Array, "P N A"],
    messages: Float[Array, "P N B"],
    *,
    precision: str = "highest",
) -> Float[Array, "P N C"]:
    """Computes each node's new features, `h_i <- phi_h([h_i, M_i])`.

    As `message_sums` one kernel where there is one; elsewhere `feature_update_reference`.

    Args:
      feature_mlp: phi_h, as `egno_jax.ops.mlp` takes it.
      features: `[P, N, A]`.
      messages: `[P, N, B]`, M.
      precision: precision of products over channels.

    Returns:
      `[P, N, C]`.
    """
    (result,) = _feature_update(precision)(features, messages, *_flat(feature_mlp))
    return result


def feature_update_reference(
    features: Float[Array, "P N A"],
    messages: Float[Array, "P N B"],
    *layers: Array,
    precision: str = "highest",
) -> tuple[Float[Array, "P N C"]]:
    """Computes `feature_update` as its formula says: the specification.

    Args:
      features: `[P, N, A]`.
      messages: `[P, N, B]`.
      *layers: kernel and bias of the two layers of phi_h.
      precision: precision of products over channels.

    Returns:
      The new features `[P, N, C]`, alone in a tuple.
    """
    (feature_mlp,) = _nested(layers)
    return (mlp(feature_mlp, jnp.concatenate([features, messages], axis=-1), precision),)


def velocity_factor(
    velocity_mlp: Mapping[str, Mapping[str, Array]],
    features: Float[Array, "P N A"],
    *,
    precision: str = "highest",
) -> Float[Array, "P N 1"]:
    """Computes the factor that each node's velocity moves it by, `f_i = phi_v(h_i)`.

    As `message_sums` one kernel where there is one; elsewhere `velocity_factor_reference`.

    Args:
      velocity_mlp: phi_v, as `egno_jax.ops.mlp` takes it.
      features: `[P, N, A]`, before their update.
      precision: precision of products over channels.

    Returns:
      `[P, N, 1]`.
    """
    (result,) = _velocity_factor(precision)(features, *_flat(velocity_mlp))
    return result


def velocity_factor_reference(
    features: Float[Array, "P N A"], *layers: Array, precision: str = "highest"
) -> tuple[Float[Array, "P N 1"]]:
    """Computes `velocity_factor` as its formula says: the specification.

    Args:
      features: `[P, N, A]`.
      *layers: kernel and bias of the two layers of phi_v.
      precision: precision of products over channels.

    Returns:
      The factors `[P, N, 1]`, alone in a tuple.
    """
    (velocity_mlp,) = _nested(layers)
    return (mlp(velocity_mlp, features, precision),)


@functools.cache
def _message_sums(precision: str) -> Callable[..., Sequence[Array]]:
    reference = functools.partial(message_sums_reference, precision=precision)

    def node_terms(features: Array, positions: Array, edge_features: Array, *rest: Array) -> tuple:
        return _node_terms({"kernel": rest[0], "bias": rest[1]}, features, precision)

    return accelerate("message_sums", reference, 11, {"cpu": kernels.MESSAGE_SUMS}, node_terms)


@functools.cache
def _feature_update(precision: str) -> Callable[..., Sequence[Array]]:
    reference = functools.partial(feature_update_reference, precision=precision)

    def hidden(features: Array, messages: Array, *layers: Array) -> list[Array]:
        (feature_mlp,) = _nested(layers)
        inputs = jnp.concatenate([features, messages], axis=-1)
        return [linear(feature_mlp["linear_0"], inputs, precision)]

    return accelerate("feature_update", reference, 6, {"cpu": kernels.FEATURE_UPDATE}, hidden)


@functools.cache
def _velocity_factor(precision: str) -> Callable[..., Sequence[Array]]:
    reference = functools.partial(velocity_factor_reference, precision=precision)

    def hidden(features: Array, *layers: Array) -> list[Array]:
        (velocity_mlp,) = _nested(layers)
        return [linear(velocity_mlp["linear_0"], features, precision)]

    return accelerate("velocity_factor", reference, 5, {"cpu": kernels.VELOCITY_FACTOR}, hidden)


def _flat(*mlps: Mapping[str, Mapping[str, Array]]) -> list[Array]:
    """Returns kernel and bias of every layer of some perceptrons, in order."""
    layers = [mlp[name] for mlp in mlps for name in ("linear_0", "linear_1")]
    return [layer[name] for layer in layers for name in ("kernel", "bias")]


def _nested(arrays: Sequence[Array]) -> list[dict[str, dict[str, Array]]]:
    """Returns the perceptrons that `_flat` took apart."""
    layers = [
        {"kernel": kernel, "bias": bias}
        for kernel, bias in zip(arrays[::2], arrays[1::2], strict=True)
    ]
    return [{"linear_0": a, "linear_1": b} for a, b in zip(layers[::2], layers[1::2], strict=True)]


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
    kernel = weights["linear_0"]["kernel"]
    of_receiver, of_sender = _node_terms(weights["linear_0"], features, precision)
    hidden = _gather(of_receiver, receivers) + _gather(of_sender, senders)
    # A squared distance is geometry: its product is rounded to the dtype of the features, not it.
    wide = squared_distances * kernel[0].astype(squared_distances.dtype)
    hidden = hidden + wide.astype(hidden.dtype)
    if edge_features is not None and edge_features.shape[-1]:
        of_edge = kernel[1 + 2 * features.shape[-1] :]
        hidden = hidden + matmul(edge_features.astype(features.dtype), of_edge, precision)
    return jax.nn.silu(linear(weights["linear_1"], jax.nn.silu(hidden), precision))


def _node_terms(
    layer: Mapping[str, Array], features: Float[Array, "P N A"], precision: str
) -> tuple[Float[Array, "P N C"], Float[Array, "P N C"]]:
    """Returns what phi_m's first layer makes of h_i, its bias included, and of h_j."""
    kernel, width = layer["kernel"], features.shape[-1]
    of_receiver, of_sender = kernel[1 : 1 + width], kernel[1 + width : 1 + 2 * width]
    return (
        matmul(features, of_receiver, precision) + layer["bias"],
        matmul(features, of_sender, precision),
    )


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
