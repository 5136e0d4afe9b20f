"""A spatial layer that also convolves over neighbouring times, in the slot of EGNO's blocks."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from egno_jax import EGNOConfig, model
from egno_jax.nn import EGNNSpatialLayer, State, register_layer
from egno_jax.nn.linear import symmetric_uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig(EGNOConfig):
    """EGNO with local convolutions of features and of `[x - c, v]` over `2 reach + 1` times."""

    layer: str = "local"
    reach: int = 1


@register_layer("local")
class LocalLayer(nn.Module):
    """`x_p <- x_p + sum_d K_d x_{p + d}`, |d| <= reach, edges repeated; then the layer of EGNN."""

    config: LocalConfig

    @nn.compact
    def __call__(self, state, graph):
        """Returns the state after the local convolutions and one round of messages."""
        features = state.features + nn.leaky_relu(self._convolved("features", state.features))
        vectors = jnp.stack([state.positions, state.velocities], axis=-1)
        vectors += self._convolved("vectors", vectors)
        state = State(vectors[..., 0], vectors[..., 1], features, state.extra)
        return EGNNSpatialLayer(self.config, name="egnn_layer")(state, graph)

    def _convolved(self, name, x):
        reach, width = self.config.reach, x.shape[-1]
        shape = (2 * reach + 1, width, width)
        init = symmetric_uniform(0.1 / width)
        kernel = self.param(f"{name}_kernel", init, shape, self.config.param_dtype)
        padded = jnp.pad(x, [(reach, reach), *[(0, 0)] * (x.ndim - 1)], mode="edge")
        shifted = jnp.stack([padded[d : d + x.shape[0]] for d in range(shape[0])])
        return jnp.einsum("dp...a,dab->p...b", shifted, kernel.astype(x.dtype), precision="highest")


model.register(LocalConfig, model.ModelFamily(model.EGNO))
