"""Global message passing: every node receives means over its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from egno_jax import ops
from egno_jax.nn.linear import MLP, as_geometry, cast, compute_dtype

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class MeanField(nn.Module):
    """Gives every node global context in O(N) time; see `egno_jax.ops.mean_field`.

    Its factors are initially 0, so it changes nothing before training.

    Attributes:
      features: width of the perceptrons.
      channels: number K of virtual-node channels, means weighted by the senders.
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
          graph_ids: `[N]`, the graph of each node; None: all belong to one graph.
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
            as_geometry(positions),
            as_geometry(velocities),
            features.astype(dtype),
            graph_ids,
            num_graphs,
            sender_weights=None if sender_weights is None else cast(sender_weights, dtype),
            precision=self.precision,
        )
