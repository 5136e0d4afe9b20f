"""E(n)-equivariant message passing, the mean field, and the block that EGNO stacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from egno_jax import ops
from egno_jax.nn.linear import MLP, cast, compute_dtype
from egno_jax.nn.temporal_conv import TemporalConv, VectorTemporalConv

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class EGNNLayer(nn.Module):
    """Passes messages between nodes at every time alone; see `egno_jax.ops.egnn_layer`.

    Attributes:
      features: width C of every MLP and of the output.
      dtype: dtype of messages and features; None follows inputs and weights. Positions and
        velocities stay in float32 or wider.
      param_dtype: dtype of the weights.
      precision: precision of products over channels.

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
    ) -> tuple[Float[Array, "P N 3"], Float[Array, "P N 3"], Float[Array, "P N C"]]:
        """Returns positions, velocities and features after one round of messages.

        Args:
          positions: `[P, N, 3]`.
          velocities: `[P, N, 3]`.
          features: `[P, N, A]`.
          edge_features: `[E, D]` or None.
          senders: `[E]`.
          receivers: `[E]`.
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
            _geometry(positions),
            _geometry(velocities),
            features.astype(dtype),
            edge_features,
            senders,
            receivers,
            precision=self.precision,
        )

    def _mlp(self, name: str, in_features: int, out_features: int) -> Any:
        mlp = MLP(self.features, out_features, param_dtype=self.param_dtype, name=name)
        return mlp.weights(in_features)


class MeanField(nn.Module):
    """Moves every node along what its whole graph does; see `egno_jax.ops.mean_field`.

    Its factors are 0 at the start: a model with a mean field begins as the same without.

    Attributes:
      features: width of the perceptrons.
      channels: number K of means that senders weigh, beside the plain one.
      dtype: dtype of the perceptrons; None follows features and weights. Positions and velocities
        stay in float32 or wider.
      param_dtype: dtype of the weights.
      precision: precision of products over channels.
    """

    features: int
    channels: int = 0
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    @nn.compact
    def __call__(
        self,
        positions: Float[Array, "P N 3"],
        velocities: Float[Array, "P N 3"],
        features: Float[Array, "P N A"],
        graph_ids: Int[Array, "N"] | None = None,
        num_graphs: int = 1,
    ) -> Float[Array, "P N 3"]:
        """Returns the positions after the step.

        Args:
          positions: `[P, N, 3]`.
          velocities: `[P, N, 3]`.
          features: `[P, N, A]`.
          graph_ids: `[N]`, the graph of each node; None: all are of one graph.
          num_graphs: G.
        """
        if graph_ids is None:
            graph_ids = jnp.zeros(positions.shape[1], jnp.int32)
        options = {"param_dtype": self.param_dtype}
        mlp = MLP(self.features, 2 + self.channels, starts_at_zero=True, name="mlp", **options)
        weights, sender_weights = mlp.weights(features.shape[-1]), None
        if self.channels:
            sender_mlp = MLP(self.features, 2 * self.channels, name="sender_mlp", **options)
            sender_weights = sender_mlp.weights(features.shape[-1])
        dtype = compute_dtype(self.dtype, features, weights["linear_0"]["kernel"])
        return ops.mean_field(
            cast(weights, dtype),
            _geometry(positions),
            _geometry(velocities),
            features.astype(dtype),
            graph_ids,
            num_graphs,
            sender_weights=None if sender_weights is None else cast(sender_weights, dtype),
            precision=self.precision,
        )


class EGNOBlock(nn.Module):
    """One block of EGNO: scalar and vector temporal convolutions, then message passing.

    Attributes:
      features: width C.
      num_modes: number M of modes of the convolutions.
      mean_field: whether nodes move along the mean of their graph before they pass messages.
      mean_field_channels: number of its channels; see `MeanField`.
      vector_init: bound of the vector kernel's start; see `VectorTemporalConv`.
      dtype: dtype of messages and features; None follows inputs and weights.
      param_dtype: dtype of the weights.
      precision: precision of products over channels.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, figure 1.
    """

    features: int
    num_modes: int
    mean_field: bool = False
    mean_field_channels: int = 0
    vector_init: float = 0.1
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    @nn.compact
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
        """Returns positions, velocities and features after the block.

        Args:
          positions: `[P, N, 3]`, relative to the centre of each graph at time 0.
          velocities: `[P, N, 3]`.
          features: `[P, N, C]`.
          edge_features: `[E, D]` or None.
          senders: `[E]`.
          receivers: `[E]`.
          context: which times carry the Fourier coefficients; None: all, equally spaced.
          graph_ids: `[N]`, the graph of each node; None: all are of one graph. Read by the mean
            field alone.
          num_graphs: G.
        """
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        features = TemporalConv(
            self.num_modes, precision=self.precision, name="temporal_conv", **options
        )(features, context)
        vectors = VectorTemporalConv(
            self.num_modes,
            param_dtype=self.param_dtype,
            init_bound=self.vector_init,
            name="vector_temporal_conv",
        )(jnp.stack([positions, velocities], axis=-1), context)
        positions, velocities = vectors[..., 0], vectors[..., 1]
        if self.mean_field:
            mean_field = MeanField(
                self.features,
                self.mean_field_channels,
                precision=self.precision,
                name="mean_field",
                **options,
            )
            positions = mean_field(positions, velocities, features, graph_ids, num_graphs)
        return EGNNLayer(self.features, precision=self.precision, name="egnn_layer", **options)(
            positions, velocities, features, edge_features, senders, receivers
        )


def _geometry(vectors: Float[Array, "P N 3"]) -> Float[Array, "P N 3"]:
    """Returns positions or velocities in float32 or wider, as all geometry is computed."""
    return vectors.astype(jnp.result_type(vectors.dtype, jnp.float32))
