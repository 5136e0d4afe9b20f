"""Global message passing: every node follows means over its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from egno_jax import ops
from egno_jax.nn.linear import MLP, as_geometry, cast, compute_dtype

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    from egno_jax.ops.layouts import Blocks


class MeanField(nn.Module):
    """Moves every node by global message passing; see `egno_jax.ops.mean_field`.

    Its factors are 0 at the start, so a model with it starts equal to one without. Positions and
    velocities stay in float32 or wider, whatever the dtype.

    Attributes:
      features: width of the perceptrons.
      channels: number K of virtual-node channels, in addition to the plain mean.
      dtype, param_dtype, precision: as in `egno_jax.nn.Linear`.
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
        layout: Blocks | None = None,
    ) -> Float[Array, "P N 3"]:
        """Returns the positions after the step; `graph_ids` None means one graph.

        With a `layout` the axes of nodes are those of its blocks.
        """
        if graph_ids is None and layout is None:
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
            sender_weights=cast(sender_weights, dtype),
            layout=layout,
            precision=self.precision,
        )
