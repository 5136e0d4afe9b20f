"""E(n)-equivariant message passing: the layer alone, and as the spatial layer of EGNO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import jraph

from egno_jax import deprecation, ops
from egno_jax import graph as graph_lib
from egno_jax.config import EGNOConfig
from egno_jax.nn.block import Block, State, layer_options, register_layer
from egno_jax.nn.linear import MLP, as_geometry, cast, compute_dtype

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class EGNNLayer(nn.Module):
    """Passes messages between nodes at each time separately; see `egno_jax.ops.egnn_layer`.

    Positions and velocities stay in float32 or wider, whatever the dtype.

    Attributes:
      features: width C of every MLP and of the output.
      dtype, param_dtype, precision: as in `egno_jax.nn.Linear`.

    Source: Satorras et al., "E(n) Equivariant Graph Neural Networks", 2021.
    """

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    @nn.compact
    def __call__(
        self,
        positions: Float[Array, "P N 3"],
        velocities: Float[Array, "P N 3"],
        features: Float[Array, "P N A"],
        edge_features: Float[Array, "E D"] | None,
        senders: Int[Array, "E"],
        receivers: Int[Array, "E"],
        layout: ops.Layout | None = None,
        edge_shifts: Float[Array, "E 3"] | None = None,
    ) -> tuple[Float[Array, "P N 3"], Float[Array, "P N 3"], Float[Array, "P N C"]]:
        """Returns positions, velocities and features after one round of messages.

        `layout` is another arrangement of the edges, see `egno_jax.ops.layouts`; `edge_shifts` are
        those of periodic images, see `egno_jax.ops.displacements`.
        """
        in_features = features.shape[-1]
        edge_dim = 0 if edge_features is None else edge_features.shape[-1]
        weights = {
            "message_mlp": self._mlp("message_mlp", 1 + 2 * in_features + edge_dim, self.features),
            "position_mlp": self._mlp("position_mlp", self.features, 1),
            "velocity_mlp": self._mlp("velocity_mlp", in_features, 1),
            "feature_mlp": self._mlp("feature_mlp", in_features + self.features, self.features),
        }
        kernel = weights["velocity_mlp"]["linear_0"]["kernel"]
        dtype = compute_dtype(self.dtype, features, kernel)
        return ops.egnn_layer(
            cast(weights, dtype),
            as_geometry(positions),
            as_geometry(velocities),
            features.astype(dtype),
            edge_features,
            senders,
            receivers,
            edge_shifts=edge_shifts,
            layout=layout,
            precision=self.precision,
        )

    def _mlp(self, name: str, in_features: int, out_features: int) -> Any:
        mlp = MLP(self.features, out_features, param_dtype=self.param_dtype, name=name)
        return mlp.weights(in_features)


@register_layer("egnn")
class EGNNSpatialLayer(nn.Module):
    """`EGNNLayer` as the spatial layer of EGNO, `EGNOConfig(layer="egnn")`: the default."""

    config: EGNOConfig
    supports_layouts = True

    def setup(self) -> None:
        """Makes the layer; it shares this module's scope of weights."""
        self.layer = EGNNLayer(self.config.hidden_dim, **layer_options(self.config))
        nn.share_scope(self, self.layer)

    def __call__(self, state: State, graph: jraph.GraphsTuple) -> State:
        """Returns the state after one round of messages."""
        edge_features = None if graph.edges is None else graph.edges["features"]
        positions, velocities, features = self.layer(
            *state[:3],
            edge_features,
            graph.senders,
            graph.receivers,
            graph_lib.layout_of(graph),
            graph_lib.shifts_of(graph),
        )
        return State(positions, velocities, features, state.extra)


class EGNOBlock(nn.Module):
    """Deprecated: use `Block(config)(state, graph)`, with the same weights and results.

    `features` is `EGNOConfig.hidden_dim`, `precision` its `matmul_precision`; the other fields have
    the same names there.
    """

    features: int
    num_modes: int
    mean_field: bool = False
    mean_field_channels: int = 0
    vector_init: float = 0.1
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    def setup(self) -> None:
        """Makes the block; it shares this module's scope of weights."""
        deprecation.warn("egno_jax.nn.EGNOBlock", "egno_jax.nn.Block", stacklevel=2)
        config = EGNOConfig(
            hidden_dim=self.features,
            num_modes=self.num_modes,
            mean_field=self.mean_field,
            mean_field_channels=self.mean_field_channels,
            vector_init=self.vector_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            matmul_precision=self.precision,
        )
        self.block = Block(config)
        nn.share_scope(self, self.block)

    def __call__(
        self,
        positions: Float[Array, "P N 3"],
        velocities: Float[Array, "P N 3"],
        features: Float[Array, "P N C"],
        edge_features: Float[Array, "E D"] | None,
        senders: Int[Array, "E"],
        receivers: Int[Array, "E"],
        context: ops.Context | None = None,
        graph_ids: Int[Array, "N"] | None = None,
        num_graphs: int = 1,
    ) -> tuple[Float[Array, "P N 3"], Float[Array, "P N 3"], Float[Array, "P N C"]]:
        """Returns positions, velocities and features after the block; see `Block`."""
        if graph_ids is None:
            graph_ids = jnp.zeros(positions.shape[1], jnp.int32)
        graph = jraph.GraphsTuple(
            nodes={},
            edges=None if edge_features is None else {"features": edge_features},
            senders=senders,
            receivers=receivers,
            globals=None,
            n_node=jnp.bincount(graph_ids, length=num_graphs),
            n_edge=None,
        )
        return self.block(State(positions, velocities, features), graph, context)[:3]
