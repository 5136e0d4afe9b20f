"""Embedding of node features and requested times into hidden features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from egno_jax import ops
from egno_jax.nn.linear import Linear, cast, compute_dtype

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class TimeEmbedding(nn.Module):
    """Concatenates node features and sinusoidal time embeddings, and applies a linear layer.

    Attributes:
      features: size C of the output.
      dim: size T of the time embedding; sines are computed in float32 or wider.
      dtype, param_dtype, precision: as in `egno_jax.nn.Linear`.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, section 4.2.
    """

    features: int
    dim: int = 32
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    @nn.compact
    def __call__(
        self,
        node_features: Float[Array, "N F"],
        times: Float[Array, "P *G"],
        graph_ids: Int[Array, "N"] | None = None,
    ) -> Float[Array, "P N C"]:
        """Embeds the nodes at every time.

        Args:
          node_features: `[N, F]`.
          times: `[P]`, or `[P, G]` if graphs have different times; in the unit of the time scale.
          graph_ids: `[N]`, the graph of each node; required with times `[P, G]`.
        """
        if times.ndim == 2 and graph_ids is None:
            raise ValueError(
                f"graph_ids: got None with times of shape {list(times.shape)}; expected [N], the "
                "graph of each node (egno_jax.graph.graph_ids), or times of shape [P]"
            )
        times = times.astype(jnp.result_type(times.dtype, jnp.float32))
        embedding = ops.sinusoidal_embedding(times.reshape(times.shape[0], -1), self.dim)
        linear = Linear(self.features, param_dtype=self.param_dtype, name="linear")
        weights = linear.weights(node_features.shape[-1] + self.dim)
        dtype = compute_dtype(self.dtype, node_features, weights["kernel"])
        return ops.embed_times(
            cast(weights, dtype),
            node_features.astype(dtype),
            embedding.astype(dtype),
            graph_ids,
            precision=self.precision,
        )
