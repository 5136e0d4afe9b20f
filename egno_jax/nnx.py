"""The model and its layers as Flax NNX modules, with the weights of `egno_jax.nn`.

    model = egno_jax.nnx.EGNO.create(config, graph, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    trajectory = model(graph, times)
    egno_jax.save("my_model", model.params)
    model = egno_jax.nnx.EGNO(egno_jax.load("my_model"))

Every weight is an `nnx.Param` with the name that it has in Linen, for example
`model.block_0.temporal_conv.kernel`. It is made when a module is constructed, and `nnx.jit`,
`nnx.grad`, `nnx.split` and `nnx.state` see it as that of any module. The Linen layers compute the
calls: both are always equal, and registered spatial layers (`egno_jax.nn.register_layer`) work in
both. `Layer` converts any other Linen layer.

All layers take the options `dtype`, `param_dtype` and `precision` of `egno_jax.nn.Linear` where the
Linen layer has them, and their calls have the arguments of the Linen layer's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import jraph
from flax import nnx

from egno_jax import nn
from egno_jax.config import EGNOConfig
from egno_jax.model import Trajectory, apply, checked_inputs, init, initial_state
from egno_jax.params import Params, check_params

if TYPE_CHECKING:
    from jaxtyping import Array, Float

__all__ = [
    "EGNO",
    "MLP",
    "Block",
    "EGNNLayer",
    "IrrepsTemporalConv",
    "Layer",
    "Linear",
    "MeanField",
    "TemporalConv",
    "TimeEmbedding",
    "VectorTemporalConv",
]


class _Weights(nnx.Module):
    """A module whose variables are the weights of a Linen module, as nested attributes."""

    def _set_weights(self, weights: dict[str, Any]) -> None:
        for name, value in weights.items():
            setattr(self, name, _as_node(value))

    def _weights(self) -> dict[str, Any]:
        return nnx.to_pure_dict(nnx.state(self, nnx.Variable))


def _as_node(value: Any) -> Any:
    if isinstance(value, dict):
        return nnx.Dict({name: _as_node(each) for name, each in value.items()})
    return nnx.Param(value)


class EGNO(_Weights):
    """A model as an NNX module, of any registered family and layer; see `egno_jax.apply`.

    Attributes:
      config: the hyper-parameters.
      recipe: how its graphs are made of states, see `egno_jax.GraphRecipe`; or None.

    Raises:
      ValueError: these are not valid parameters.
    """

    def __init__(self, params: Params) -> None:
        check_params(params)
        self.config, self.recipe = params.config, params.recipe
        self._set_weights(params.weights)

    @classmethod
    def create(cls, config: EGNOConfig, graph: jraph.GraphsTuple, *, rngs: nnx.Rngs) -> EGNO:
        """Returns a model with new weights, those of `egno_jax.init` with the key `rngs.params()`.

        Only the feature sizes of `graph` matter.
        """
        return cls(init(rngs.params(), config, graph, jnp.ones(1)))

    @property
    def params(self) -> Params:
        """The model as parameters for the functions of `egno_jax`."""
        return Params(self._weights(), self.config, self.recipe)

    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Decodes the trajectory; see `egno_jax.apply`."""
        return apply(self.params, graph, times)


class Layer(_Weights):
    """A Linen layer as an NNX module; base of the layers below.

    Its weights are those of `layer.init` with the key `rngs.params()`.

    Args:
      layer: the Linen layer.
      inputs: examples of its inputs; only shapes and dtypes matter.
      rngs: the random numbers.
    """

    def __init__(self, layer: linen.Module, *inputs: Any, rngs: nnx.Rngs) -> None:
        self._layer = layer
        self._set_weights(jax.jit(layer.init)(rngs.params(), *inputs).get("params", {}))

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Computes the Linen layer with these weights."""
        return self._layer.apply({"params": self._weights()}, *inputs, **named)


class Linear(Layer):
    """`egno_jax.nn.Linear` from A to B features."""

    def __init__(
        self, in_features: int, out_features: int, *, rngs: nnx.Rngs, **options: Any
    ) -> None:
        super().__init__(nn.Linear(out_features, **options), jnp.zeros((1, in_features)), rngs=rngs)


class MLP(Layer):
    """`egno_jax.nn.MLP` from A to B features by way of `hidden`."""

    def __init__(
        self, in_features: int, hidden: int, out_features: int, *, rngs: nnx.Rngs, **options: Any
    ) -> None:
        layer = nn.MLP(hidden, out_features, **options)
        super().__init__(layer, jnp.zeros((1, in_features)), rngs=rngs)


class TimeEmbedding(Layer):
    """`egno_jax.nn.TimeEmbedding` of F node features, to `out_features`."""

    def __init__(
        self, in_features: int, out_features: int, dim: int, *, rngs: nnx.Rngs, **options: Any
    ) -> None:
        layer = nn.TimeEmbedding(out_features, dim, **options)
        super().__init__(layer, jnp.zeros((1, in_features)), jnp.ones(1), rngs=rngs)


class TemporalConv(Layer):
    """`egno_jax.nn.TemporalConv` of C features."""

    def __init__(self, features: int, num_modes: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        layer = nn.TemporalConv(num_modes, **options)
        super().__init__(layer, jnp.zeros((1, 1, features)), rngs=rngs)


class VectorTemporalConv(Layer):
    """`egno_jax.nn.VectorTemporalConv` of C vector channels."""

    def __init__(self, channels: int, num_modes: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        layer = nn.VectorTemporalConv(num_modes, **options)
        super().__init__(layer, jnp.zeros((1, 1, 3, channels)), rngs=rngs)


class IrrepsTemporalConv(Layer):
    """`egno_jax.nn.IrrepsTemporalConv` of irreps such as `"16x0e + 4x1o"`."""

    def __init__(self, irreps: Any, num_modes: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        import e3nn_jax as e3nn  # see `egno_jax.nn.block.initial_extra`

        layer = nn.IrrepsTemporalConv(num_modes, **options)
        super().__init__(layer, e3nn.zeros(e3nn.Irreps(irreps), (1, 1)), rngs=rngs)


class EGNNLayer(Layer):
    """`egno_jax.nn.EGNNLayer` of A node features and D edge features, to `out_features`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        edge_features: int = 0,
        *,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        vectors, features = jnp.zeros((1, 1, 3)), jnp.zeros((1, 1, in_features))
        edges = jnp.zeros((1, edge_features)) if edge_features else None
        ends = jnp.zeros(1, jnp.int32)
        layer = nn.EGNNLayer(out_features, **options)
        super().__init__(layer, vectors, vectors, features, edges, ends, ends, rngs=rngs)


class MeanField(Layer):
    """`egno_jax.nn.MeanField` of A node features, with perceptrons of width `hidden`."""

    def __init__(
        self, in_features: int, hidden: int, channels: int = 0, *, rngs: nnx.Rngs, **options: Any
    ) -> None:
        vectors, features = jnp.zeros((1, 1, 3)), jnp.zeros((1, 1, in_features))
        layer = nn.MeanField(hidden, channels, **options)
        super().__init__(layer, vectors, vectors, features, rngs=rngs)


class Block(Layer):
    """`egno_jax.nn.Block` of a config, for graphs with the feature sizes of `graph`."""

    def __init__(self, config: EGNOConfig, graph: jraph.GraphsTuple, *, rngs: nnx.Rngs) -> None:
        graph, _ = checked_inputs(graph, jnp.ones(1))
        state, _ = initial_state(graph, config)
        features = jnp.zeros((*state.features.shape[:-1], config.hidden_dim))
        super().__init__(nn.Block(config), state._replace(features=features), graph, rngs=rngs)
