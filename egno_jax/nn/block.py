"""The block of EGNO, and the protocol and registry of its spatial layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from egno_jax import graph as graph_lib
from egno_jax import ops
from egno_jax.config import EGNOConfig
from egno_jax.nn.mean_field import MeanField
from egno_jax.nn.temporal_conv import IrrepsTemporalConv, TemporalConv, VectorTemporalConv

if TYPE_CHECKING:
    import e3nn_jax as e3nn
    from jaxtyping import Array, Float


class State(NamedTuple):
    """The state at all times; blocks map one to the next.

    With the layout `egno_jax.ops.Blocks` the axis N is two axes, `[n, G]`.

    Attributes:
      positions: `[P, N, 3]`, relative to the centre of each graph at time 0; in a graph with
        shifts, relative to each node's position at time 0.
      velocities: `[P, N, 3]`.
      features: `[P, N, C]`, invariant.
      extra: further equivariant features by name, each an `e3nn_jax.IrrepsArray` `[P, N, irreps]`;
        those that the spatial layer declares (`SpatialLayer.carries`).
    """

    positions: Float[Array, "P N 3"]
    velocities: Float[Array, "P N 3"]
    features: Float[Array, "P N C"]
    extra: Mapping[str, e3nn.IrrepsArray] = {}

    def at_times(self, num_times: int) -> State:
        """Returns the state of one time, `[1, N, ...]`, repeated at P times."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_times, *x.shape[1:])), self)


class SpatialLayer(Protocol):
    """The interface of a spatial layer: a Linen module with the field `config`.

    It updates the state at each time separately; the block does the temporal convolutions. Use
    differences of positions, so that the layer commutes with translations, and return vectors and
    `extra` that rotate with the input. `egno_jax.ops.displacements` of the edges' layout, the
    positions and `egno_jax.graph.shifts_of(graph)` are those along edges, periodic images included.

    `supports_layouts = True`, a class attribute, is optional: the layer then gets graphs with a
    layout (`egno_jax.graph.layout_of`), which it must use; `egno_jax.ops.sums_over` shows how.
    Other layers get the edges as the graph lists them.

    `carries(config)`, a static method, is optional. It returns the irreps of the features that the
    layer carries from block to block, such as `{"vectors": "16x1o + 16x1e"}`. They start as zeros,
    except for external directions (`graph.nodes["vectors"]`), and every block convolves them over
    time with `IrrepsTemporalConv`.
    """

    config: EGNOConfig

    def __call__(self, state: State, graph: jraph.GraphsTuple) -> State:
        """Returns the state after one round of messages along the edges of the model's graph."""


# Creates the module of a spatial layer: called as `factory(config, name=...)`.
LayerFactory = Callable[..., nn.Module]

_LAYERS: dict[str, LayerFactory] = {}


def register_layer(name: str, layer: LayerFactory | None = None) -> Any:
    """Makes a spatial layer available as `EGNOConfig(layer=name)`.

    `apply`, `save`, `load`, training, meshes and experiments then support it. A checkpoint holds
    only the name: import the module that registers the layer before `load`.

    Args:
      name: the name; an identifier.
      layer: the module class, or a function that creates the module: `layer(config, name=...)`.
        None returns a decorator for the class.

    Raises:
      ValueError: the name is not an identifier, or belongs to another layer.
    """
    if layer is None:
        return lambda cls: register_layer(name, cls)
    if not name.isidentifier():
        raise ValueError(f"name: got {name!r}, expected an identifier; choose such as my_layer")
    # The same class is registered again when its module is reloaded, or run as a script.
    known = _LAYERS.get(name, layer)
    if getattr(known, "__qualname__", None) != getattr(layer, "__qualname__", None):
        raise ValueError(f"name: got {name!r}, expected one that is not taken by {known}")
    if known is not layer:
        # Compiled programs are cached by config, which has only the name of the layer.
        jax.clear_caches()
    _LAYERS[name] = layer
    return layer


def layer_names() -> list[str]:
    """Returns the names of the registered spatial layers."""
    return sorted(_LAYERS)


def layer_factory(config: EGNOConfig) -> LayerFactory:
    """Returns the factory of a config's spatial layers; a ValueError if it is not registered."""
    if config.layer not in _LAYERS:
        raise ValueError(
            f"config.layer: got {config.layer!r}, expected one of {layer_names()}; for a custom "
            "layer, import the module that calls egno_jax.nn.register_layer first"
        )
    return _LAYERS[config.layer]


def initial_extra(
    layer: LayerFactory,
    config: EGNOConfig,
    shape: tuple[int, ...],
    dtype: Any,
    vectors: Float[Array, "*nodes K 3"] | None = None,
) -> dict[str, e3nn.IrrepsArray]:
    """Returns the features that a layer declares, `[P, N, irreps]`, at the start.

    They are zeros, and the external `vectors` are the first of the vectors, `1o`, that it carries.

    Raises:
      ValueError: the layer carries fewer vectors, or none.
    """
    carries = getattr(layer, "carries", lambda config: {})(config)
    extra = {}
    if carries:
        # Its import takes as long as that of everything else, and most models do not need it.
        import e3nn_jax as e3nn

        extra = {
            name: e3nn.zeros(e3nn.Irreps(irreps).regroup(), shape, dtype)
            for name, irreps in carries.items()
        }
    if vectors is None:
        return extra
    num = vectors.shape[-2]
    for name, x in extra.items():
        for (copies, irrep), place in zip(x.irreps, x.irreps.slices(), strict=True):
            if str(irrep) == "1o" and copies >= num:
                flat = vectors.astype(dtype).reshape(*vectors.shape[:-2], 3 * num)
                array = x.array.at[..., place.start : place.start + 3 * num].set(flat)
                return extra | {name: type(x)(x.irreps, array)}
    raise ValueError(
        f"graph.nodes['vectors']: got {num} external vectors, expected no more than the layer "
        f'{config.layer!r} carries, {carries or "none"}; choose EGNOConfig(layer="vector") with '
        f"num_vectors of {num} or more, or leave them out"
    )


class Block(nn.Module):
    """One block of EGNO: temporal convolutions, global message passing, the spatial layer.

    Temporal convolutions act on all parts of the state: `TemporalConv` on features,
    `VectorTemporalConv` on positions and velocities together, `IrrepsTemporalConv` on each of
    `extra`. `config.mean_field` adds global message passing before the spatial layer.

    Attributes:
      config: the hyper-parameters.
      layer: the spatial layer; None: the registered layer `config.layer`.

    Source: Xu et al., "Equivariant Graph Neural Operator", 2024, figure 1.
    """

    config: EGNOConfig
    layer: LayerFactory | None = None

    @nn.compact
    def __call__(
        self, state: State, graph: jraph.GraphsTuple, context: ops.Context | None = None
    ) -> State:
        """Returns the state after the block.

        `context` describes the times that carry the Fourier coefficients; None: all, equally
        spaced.
        """
        config = self.config
        state = self._convolve_over_time(state, context)
        if config.mean_field:
            state = move_along_mean(config, state, graph, name="mean_field")
        layer = self.layer or layer_factory(config)
        name = f"{config.layer}_layer" if self.layer is None else "spatial_layer"
        updated = layer(config, name=name)(state, graph)
        _check_update(name, state, updated, config.hidden_dim)
        return updated

    def _convolve_over_time(self, state: State, context: ops.Context | None) -> State:
        config = self.config
        modes, dtype, precision = config.num_modes, config.param_dtype, config.matmul_precision
        scalar_conv = TemporalConv(modes, name="temporal_conv", **layer_options(config))
        vector_conv = VectorTemporalConv(
            modes, dtype, config.vector_init, name="vector_temporal_conv"
        )
        vectors = jnp.stack([state.positions, state.velocities], axis=-1)
        vectors = vector_conv(vectors, context)
        extra = {
            name: IrrepsTemporalConv(modes, dtype, precision, name=f"temporal_conv_{name}")(
                x, context
            )
            for name, x in state.extra.items()
        }
        features = scalar_conv(state.features, context)
        return State(vectors[..., 0], vectors[..., 1], features, extra)


def layer_options(config: EGNOConfig) -> dict[str, Any]:
    """Returns the dtypes and the precision of a config as keywords of this package's layers."""
    precision = config.matmul_precision
    return {"dtype": config.dtype, "param_dtype": config.param_dtype, "precision": precision}


def move_along_mean(config: EGNOConfig, state: State, graph: jraph.GraphsTuple, name: str) -> State:
    """Applies `MeanField` to a state; for a module's `__call__`."""
    mean_field = MeanField(
        config.hidden_dim, config.mean_field_channels, name=name, **layer_options(config)
    )
    layout = graph_lib.layout_of(graph)
    if isinstance(layout, ops.Blocks):
        return state._replace(positions=mean_field(*state[:3], layout=layout))
    graph_ids = graph_lib.graph_ids(graph.n_node, state.positions.shape[1])
    positions = mean_field(*state[:3], graph_ids, graph.n_node.shape[0])
    return state._replace(positions=positions)


def _check_update(name: str, before: State, after: Any, width: int) -> None:
    """Raises a ValueError if a spatial layer did not return a state of the same shapes."""
    if not isinstance(after, State):
        raise ValueError(
            f"{name}: got {type(after).__name__}, expected egno_jax.nn.State; return "
            "state._replace(...)"
        )
    shape = before.positions.shape
    expected = {"positions": shape, "velocities": shape, "features": (*shape[:-1], width)}
    found = {field: getattr(after, field).shape for field in expected}
    expected |= {key: (*shape[:-1], x.irreps) for key, x in before.extra.items()}
    found |= {key: (*x.shape[:-1], x.irreps.regroup()) for key, x in after.extra.items()}
    for field in expected | found:
        if found.get(field) != expected.get(field):
            raise ValueError(
                f"{name}: got {field} of shape {found.get(field)}, expected {expected.get(field)}"
                "; keep the shape of every part of the state"
            )
