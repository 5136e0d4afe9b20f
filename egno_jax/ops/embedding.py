"""The sinusoidal embedding of times, and its sum with the node features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from egno_jax.ops.linear import matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def sinusoidal_embedding(times: Float[Array, "*P"], dim: int) -> Float[Array, "*P {dim}"]:
    """Embeds times by sines and cosines of geometrically spaced frequencies.

    `[sin(t w_0), ..., sin(t w_{half-1}), cos(t w_0), ..., cos(t w_{half-1})]` with
    `half = dim // 2` and `w_k = 10000^(-k / (half - 1))`; one zero is appended if `dim` is odd.

    Args:
      times: `[...]`, times in units of the model's time scale.
      dim: size of the embedding, at least 2.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5, in the form of the EGNO
    code (sines first, `half - 1` in the exponent).
    """
    if dim < 2:
        raise ValueError(f"dim: got {dim}, expected at least 2; use at least a sine and a cosine")
    half = dim // 2
    frequencies = 10000.0 ** (-np.arange(half) / max(half - 1, 1))
    angles = times[..., None] * jnp.asarray(frequencies, times.dtype)
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, [(0, 0)] * times.ndim + [(0, dim % 2)])


def embed_times(
    weights: Mapping[str, Array],
    features: Float[Array, "*nodes F"],
    embedding: Float[Array, "P #G T"],
    graph_ids: Int[Array, "*nodes"] | None,
    *,
    precision: str = "highest",
) -> Float[Array, "P *nodes C"]:
    """Applies one linear layer to the concatenation of node features and time embeddings.

    `h[p, i] = kernel^T [features_i, embedding_p] + bias`, computed as the sum of a product per node
    and a product per time, without forming the P N concatenated rows.

    Args:
      weights: `kernel` `[F + T, C]` and `bias` `[C]`.
      features: `[N, F]`, or other axes of nodes, features of the nodes at the initial time.
      embedding: `[P, 1, T]` for times shared by all graphs, or `[P, G, T]`.
      graph_ids: `[N]`, the graph of each node; None with times shared by all graphs.
      precision: precision of the products.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, section 4.2.
    """
    num_features = features.shape[-1]
    kernel = weights["kernel"]
    per_node = matmul(features, kernel[:num_features], precision) + weights["bias"]
    per_time = matmul(embedding, kernel[num_features:], precision)
    if per_time.shape[1] == 1:
        per_time = per_time.reshape(-1, *[1] * (features.ndim - 1), per_time.shape[-1])
    else:
        per_time = jnp.take(per_time, graph_ids, axis=1, mode="clip")
    return per_time + per_node
