"""A spatial layer that carries vectors and pseudo-vectors: `EGNOConfig(layer="vector")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from egno_jax import graph as graph_lib
from egno_jax import ops
from egno_jax.config import EGNOConfig
from egno_jax.nn.block import State, layer_options, register_layer
from egno_jax.nn.linear import MLP, Linear, cast, compute_dtype

if TYPE_CHECKING:
    import e3nn_jax as e3nn
    from jaxtyping import Array, Float

# Initial size of what products of vectors, and vectors, add to the state.
_PRODUCT_SCALE = 0.3
_STEP_SCALE = 0.1


@register_layer("vector")
class VectorLayer(nn.Module):
    """Passes messages between nodes that carry K vectors V and K pseudo-vectors A.

    With the sums M, S, U of `egno_jax.ops.vector_sums`, whose vectors are `V + w v`, over d
    incoming edges, and with linear maps P, Q, ... of the K channels:

        x_i <- x_i + S_i / d,    V_i <- V_i + P U_i / d^q
        h_i <- h_i + phi_h(LN([h_i, M_i / d^q, QW_i . RW_i, BB_i . CB_i]))
        A_i <- A_i + g(h_i) D (EW_i x FW_i),    V_i <- V_i + g'(h_i) G (HW_i x BB_i)
        x_i <- x_i + phi_v(h_i) v_i + sum_k phi_k(h_i) V_ik,    v_i <- v_i + w' V_i

    Products of vectors are in the update of nodes, of which there are fewer than edges, and have
    bounded factors, without which training diverges at high rates: W = V / sqrt(1 + mean_k |V_k|^2)
    and B likewise of A. With `config.symmetry = "SO(3)"` the products `QW_i . BB_i`, which
    reflections change, are among the inputs of phi_h too, so that the layer tells an image from its
    mirror image.

    A subclass, registered under a name of its own, can change the options.

    Attributes:
      config: the hyper-parameters; `config.num_vectors` is K.
      pseudovectors: whether it carries A; without, the products with A are left out.
      residual: whether h_i is added to its update.
      aggregation: q is 0 with `sum`, 1/2 with `sqrt`, 1 with `mean`.
    """

    config: EGNOConfig
    pseudovectors: bool = True
    residual: bool = True
    aggregation: str = "sqrt"

    supports_layouts = True

    @classmethod
    def carries(cls, config: EGNOConfig) -> dict[str, str]:
        """Returns the irreps that the layer carries from block to block."""
        num = config.num_vectors
        return {"vectors": f"{num}x1o + {num}x1e" if cls.pseudovectors else f"{num}x1o"}

    @nn.compact
    def __call__(self, state: State, graph: jraph.GraphsTuple) -> State:
        """Returns the state after one round of messages."""
        config = self.config
        x, v, h, extra = state
        parts = extra["vectors"].array
        parts = parts.reshape(*parts.shape[:-1], 1 + self.pseudovectors, config.num_vectors, 3)
        vectors, *pseudo = jnp.moveaxis(jnp.swapaxes(parts, -1, -2), -3, 0)
        options = layer_options(config)
        h = h.astype(compute_dtype(config.dtype, h))
        messages, steps, of_edges = self._sums(state, vectors, graph)
        x = x + steps
        vectors = vectors + self._mix("messages_to_vectors", of_edges, config.num_vectors)
        dots, vectors, pseudo = self._products(h, vectors, *pseudo)
        inputs = ops.standardized(jnp.concatenate([h, messages, dots.astype(h.dtype)], axis=-1))
        update = MLP(config.hidden_dim, config.hidden_dim, name="feature_mlp", **options)(inputs)
        h = h + update if self.residual else update
        factors = MLP(config.hidden_dim, 1 + config.num_vectors, name="step_mlp", **options)(h)
        factors = _STEP_SCALE * factors.astype(x.dtype)
        x = x + factors[..., :1] * v + jnp.sum(factors[..., None, 1:] * vectors, axis=-1)
        v = v + self._mix("vectors_to_velocity", vectors, 1, _STEP_SCALE)[..., 0]
        return State(x, v, h, {"vectors": _joined(extra["vectors"], vectors, *pseudo)})

    def _sums(
        self, state: State, vectors: Float[Array, "P N 3 K"], graph: jraph.GraphsTuple
    ) -> ops.VectorSums:
        """Returns the sums over edges, divided by powers of their number."""
        config, (x, v, h, _) = self.config, state
        edge_features = None if graph.edges is None else graph.edges["features"]
        edge_dim = 0 if edge_features is None else edge_features.shape[-1]
        width, num = config.hidden_dim, config.num_vectors
        layers = {
            "input": self._weights(
                "message_input", 2 * h.shape[-1] + 1 + 3 * num + edge_dim, width
            ),
            "message": self._weights("message_output", width, width),
            "gates": self._weights("message_gates", width, 2 * num),
            "step": self._weights("message_step", width, 1),
        }
        dtype = compute_dtype(config.dtype, h, layers["message"]["kernel"])
        layout = graph_lib.layout_of(graph)
        messages, steps, of_edges = ops.vector_sums(
            cast(layers, dtype),
            x,
            vectors + self._mix("velocity_to_vectors", v[..., None], num),
            h.astype(dtype),
            edge_features,
            graph.senders,
            graph.receivers,
            edge_shifts=graph_lib.shifts_of(graph),
            layout=layout,
            precision=config.matmul_precision,
        )
        edges = layout or ops.EdgeList(graph.senders, graph.receivers, x.shape[1])
        degree = jnp.maximum(edges.in_degree(x.dtype), 1)
        scale = degree ** -{"sum": 0.0, "sqrt": 0.5, "mean": 1.0}[self.aggregation]
        return ops.VectorSums(
            messages * scale.astype(dtype), steps / degree, of_edges * scale[..., None]
        )

    def _products(
        self,
        h: Float[Array, "P N C"],
        vectors: Float[Array, "P N 3 K"],
        pseudo: Float[Array, "P N 3 K"] | None = None,
    ) -> tuple[Float[Array, "P N B"], Float[Array, "P N 3 K"], list[Float[Array, "P N 3 K"]]]:
        """Returns the dot products, and the vectors and pseudo-vectors with cross products."""
        num = self.config.num_vectors
        mixed = self._mix("vectors_in", _bounded(vectors), (2 if pseudo is None else 5) * num)
        left, right, *factors = jnp.split(mixed, mixed.shape[-1] // num, axis=-1)
        if pseudo is None:
            return jnp.sum(left * right, axis=-2), vectors, []
        mixed = self._mix("pseudo_in", _bounded(pseudo), 2 * num)
        pseudo_left, pseudo_right = jnp.split(mixed, 2, axis=-1)
        pairs = [(left, right), (pseudo_left, pseudo_right)]
        if self.config.symmetry == "SO(3)":
            pairs.append((left, pseudo_left))
        dots = jnp.concatenate([jnp.sum(a * b, axis=-2) for a, b in pairs], axis=-1)
        gates = Linear(2 * num, name="product_gates", **layer_options(self.config))(h)
        gates = jax.nn.sigmoid(gates).astype(vectors.dtype)[..., None, :]
        to_pseudo, to_vectors = jnp.split(gates, 2, axis=-1)
        first, second, third = factors
        crossed = jnp.cross(first, second, axis=-2), jnp.cross(third, pseudo_left, axis=-2)
        pseudo = pseudo + to_pseudo * self._mix("to_pseudo", crossed[0], num, _PRODUCT_SCALE)
        vectors = vectors + to_vectors * self._mix("to_vectors", crossed[1], num, _PRODUCT_SCALE)
        return dots, vectors, [pseudo]

    def _weights(self, name: str, rows: int, columns: int) -> dict[str, Array]:
        return Linear(columns, param_dtype=self.config.param_dtype, name=name).weights(rows)

    def _mix(
        self, name: str, vectors: Float[Array, "P N 3 A"], num: int, scale: float = 1.0
    ) -> Float[Array, "P N 3 B"]:
        """Multiplies channels of vectors by a matrix, the same for x, y and z, exactly."""
        init = nn.initializers.normal(scale / vectors.shape[-1] ** 0.5)
        mix = nn.Dense(
            num,
            use_bias=False,
            kernel_init=init,
            param_dtype=self.config.param_dtype,
            precision="highest",
            name=name,
        )
        return mix(vectors)


def _bounded(vectors: Float[Array, "P N 3 K"]) -> Float[Array, "P N 3 K"]:
    """Divides vectors by sqrt(1 + their mean square)."""
    square = jnp.mean(jnp.sum(vectors**2, axis=-2, keepdims=True), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(1.0 + square)


def _joined(like: e3nn.IrrepsArray, *parts: Float[Array, "P N 3 K"]) -> e3nn.IrrepsArray:
    """Returns vectors, and pseudo-vectors, as features of these irreps."""
    size = parts[0].shape[-2] * parts[0].shape[-1]
    arrays = [jnp.swapaxes(part, -1, -2).reshape(*part.shape[:-2], size) for part in parts]
    return type(like)(like.irreps, jnp.concatenate(arrays, axis=-1))
