"""EGNO with a learned local convolution over time beside the spectral one, made of its layers."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from egno_jax import EGNOConfig, Params, model
from egno_jax import graph as graph_lib
from egno_jax.model import Trajectory
from egno_jax.nn import EGNOBlock, TimeEmbedding

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig(EGNOConfig):
    """EGNO's hyper-parameters, and the width of its local convolutions.

    Attributes:
      reach: times before and after each one that its local convolution sees.
    """

    reach: int = 1


class LocalConv(nn.Module):
    """Convolves over neighbouring times: `sum_d K_d x_{p + d}`, `|d| <= reach`, not periodic.

    Before the first time and behind the last the signal stays as it is there. Channels alone are
    mixed, so that vectors turn with their input.

    Attributes:
      reach: D.
      scale: the kernel starts uniform in `[-1, 1) scale / C`.

    The parameter `kernel` is `[2 D + 1, C, C]`.
    """

    reach: int
    scale: float = 0.1

    @nn.compact
    def __call__(self, x: Float[Array, "P *rest C"]) -> Float[Array, "P *rest C"]:
        """Convolves over the first axis."""
        width, count = x.shape[-1], 2 * self.reach + 1

        def init(key: Array, shape: tuple[int, ...]) -> Array:
            bound = self.scale / width
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = self.param("kernel", init, (count, width, width)).astype(x.dtype)
        padding = [(self.reach, self.reach), *[(0, 0)] * (x.ndim - 1)]
        padded = jnp.pad(x, padding, mode="edge")
        shifted = (padded[d : d + x.shape[0]] for d in range(count))
        return sum(
            jnp.matmul(part, tap, precision="highest")
            for part, tap in zip(shifted, kernel, strict=True)
        )


class LocalEGNO(nn.Module):
    """EGNO whose blocks begin with local convolutions of features and of `[x - c, v]`.

    Attributes:
      config: the hyper-parameters.
    """

    config: LocalConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P"]) -> Trajectory:
        """Decodes the trajectory at equally spaced times; see `egno_jax.apply`."""
        config = self.config
        graph_ids = graph_lib.graph_ids(graph.n_node, graph.nodes["positions"].shape[0])
        positions, velocities, centre, rest = model.centred_state(graph, graph_ids)
        tau = jnp.asarray(times, positions.dtype) / config.time_scale
        features = TimeEmbedding(config.hidden_dim, config.time_embed_dim, name="embedding")(
            graph.nodes["features"], tau, graph_ids
        )
        positions, velocities = (
            jnp.broadcast_to(x, (tau.shape[0], *x.shape)) for x in (positions, velocities)
        )
        for index in range(config.num_layers):
            local = LocalConv(config.reach, name=f"local_conv_{index}")(features)
            features = features + nn.leaky_relu(local)
            vectors = jnp.stack([positions, velocities], axis=-1)
            vectors += LocalConv(config.reach, name=f"local_vector_conv_{index}")(vectors)
            positions, velocities, features = EGNOBlock(
                config.hidden_dim, config.num_modes, name=f"block_{index}"
            )(
                vectors[..., 0],
                vectors[..., 1],
                features,
                graph.edges["features"],
                graph.senders,
                graph.receivers,
            )
        return Trajectory((positions + rest) + centre, velocities, features)


@functools.lru_cache
def _weight_shapes(
    config: LocalConfig, num_node_features: int, num_edge_features: int
) -> dict[str, tuple[int, ...]]:
    plain = EGNOConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(EGNOConfig)}
    )
    shapes = model.weight_shapes(plain, num_node_features, num_edge_features)
    count = 2 * config.reach + 1
    for index in range(config.num_layers):
        shapes[f"local_conv_{index}/kernel"] = (count, config.hidden_dim, config.hidden_dim)
        shapes[f"local_vector_conv_{index}/kernel"] = (count, 2, 2)
    return shapes


def _feature_sizes(params: Params) -> tuple[int, int]:
    return model.feature_sizes(params)


model.register(LocalConfig, model.Kind(LocalEGNO, _weight_shapes, _feature_sizes))
