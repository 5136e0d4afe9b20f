"""EGNO: maps one state to a trajectory, at any times, in one parallel pass."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from jax.sharding import PartitionSpec

from egno_jax import graph as graph_lib
from egno_jax import ops
from egno_jax.checks import check_key
from egno_jax.config import EGNOConfig
from egno_jax.families import Kind, ModelFamily, class_name, config_class, family_of, register
from egno_jax.nn import Block, State, TimeEmbedding
from egno_jax.nn.block import LayerFactory, initial_extra, layer_factory, layer_options
from egno_jax.ops import sharding
from egno_jax.params import (
    Params,
    check_config,
    check_external_vectors,
    check_feature_sizes,
    check_params,
    feature_sizes,
    weight_shapes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Array, Float, Int

__all__ = [
    "EGNO",
    "Frame",
    "Kind",
    "ModelFamily",
    "Params",
    "Trajectory",
    "apply",
    "centred_state",
    "checked_inputs",
    "class_name",
    "config_class",
    "family_of",
    "feature_sizes",
    "init",
    "initial_state",
    "register",
    "scaled_times",
    "weight_shapes",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The predicted trajectory, time first.

    Attributes:
      positions: `[P, N, 3]`, in the unit of the input positions.
      velocities: `[P, N, 3]`, the model's second vector channel. It predicts the velocity only if
        the loss supervised it (`config.velocity_weight` above 0); otherwise it is an equivariant
        latent.
      features: `[P, N, C]`, hidden features, invariant under rotations, reflections, translations.
    """

    positions: Float[Array, "P N 3"]
    velocities: Float[Array, "P N 3"]
    features: Float[Array, "P N C"]


class EGNO(nn.Module):
    """The Equivariant Graph Neural Operator as a Linen module.

    The state is repeated at all P times, and an embedding adds the time to its features. Each block
    convolves it over time, then passes messages at each time separately (`egno_jax.nn.Block`).
    Positions are relative to the mean initial position of each graph, which is added at the end.

    A graph with `edges["shifts"]` is a periodic system, which has no centre: positions are then
    relative to the initial position of each node, so that the prediction does not depend on which
    periodic image of a node is given, nor on how many cells are. Predicted positions continue from
    the given ones and are never wrapped into the cell.

    Attributes:
      config: the hyper-parameters.
      layer: the spatial layer of the blocks, see `egno_jax.nn.SpatialLayer`; None: the registered
        layer `config.layer`.

    Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024,
    arXiv:2401.11037.
    """

    config: EGNOConfig
    layer: LayerFactory | None = None

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Decodes the trajectory; see `egno_jax.apply`."""
        graph, times = checked_inputs(graph, times)
        config = self.config
        if not getattr(self.layer or layer_factory(config), "supports_layouts", False):
            graph = graph_lib.without_layout(graph)
        state, frame = initial_state(graph, config, self.layer)
        graph = in_frame(graph)
        times = jnp.asarray(times, time_dtype(times, state.positions))
        times, context, requested = _time_grid(times, config, frame.graph_ids)
        tau = times / config.time_scale
        features = time_embedding(config)(state.features[0], tau, frame.graph_ids)
        state = state.at_times(tau.shape[0])._replace(features=features)
        state = jax.tree.map(ops.shard_times, state)
        if config.scan_layers and not self.is_initializing():
            state = self._scan_blocks(state, graph, context)
        else:
            for index in range(config.num_layers):
                block = Block(config, self.layer, name=f"block_{index}")
                state = jax.tree.map(ops.shard_times, block(state, graph, context))
        if requested != slice(0, tau.shape[0]):
            state = jax.tree.map(lambda x: x[requested], state)
        return frame.trajectory(state)

    def _scan_blocks(
        self, state: State, graph: jraph.GraphsTuple, context: ops.Context | None
    ) -> State:
        """Applies the blocks as a loop over their weights, whose names stay those of the blocks."""
        block = Block(self.config, self.layer, parent=None)

        def advance(state: State, weights: Mapping[str, Any]) -> tuple[State, None]:
            after = block.apply({"params": weights}, state, graph, context)
            extra = {name: x.regroup() for name, x in after.extra.items()}
            return jax.tree.map(ops.shard_times, after._replace(extra=extra)), None

        names = (f"block_{index}" for index in range(self.config.num_layers))
        each = [self.variables["params"][name] for name in names]
        kinds = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), x) for x in each]
        for index, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(
                    f"config.scan_layers: got weights of block_{index} that differ in names, "
                    "shapes or dtypes from those of block_0, expected alike blocks; set it to False"
                )
        weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        # The first block may widen the dtype of the inputs, and a loop keeps it.
        after, _ = jax.eval_shape(advance, state, each[0])
        state = jax.tree.map(lambda x, like: x.astype(like.dtype), state, after)
        return jax.lax.scan(advance, state, weights)[0]


def time_embedding(config: EGNOConfig) -> TimeEmbedding:
    """Returns the layer that embeds nodes and times; for a module's `__call__`."""
    return TimeEmbedding(
        config.hidden_dim, config.time_embed_dim, name="embedding", **layer_options(config)
    )


def init(
    key: Array, config: EGNOConfig, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]
) -> Params:
    """Returns initial weights of a model for graphs with the feature sizes of `graph`.

    The same key gives the same bits.

    Args:
      key: a random key, such as `jax.random.key(0)`.
      config: the hyper-parameters; `config.time_scale` is in the unit of the times.
      graph: one state or a batch of states, as in `apply`. Only its feature sizes matter, not its
        values.
      times: `[P]` or `[P, G]`; any times will do.

    Returns:
      The weights, and the configuration with the number of external vectors of `graph`.

    Raises:
      ValueError: a field of the graph or of the times has a wrong shape, dtype or key; or `key` is
        no random key.
    """
    check_config(config)
    check_key(key)
    graph, times = checked_inputs(graph, times)
    if "vectors" in graph.nodes:
        num = graph.nodes["vectors"].shape[1]
        config = dataclasses.replace(config, num_external_vectors=num)
    return Params(weights=_init_weights(key, config, graph, times), config=config)


@functools.partial(jax.jit, static_argnames="config")
def _init_weights(key: Array, config: EGNOConfig, graph: jraph.GraphsTuple, times: Array) -> Any:
    return family_of(config).module(config).init(key, graph, times)["params"]


def apply(params: Params, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
    """Decodes the trajectory of a state at the requested times, all of them in one pass.

    Pure: `jit`, `vmap`, `grad`, `remat` and sharding work on it. On a mesh of explicit axes the
    nodes of the result are sharded as those of the graph. Equivariant: rotating, reflecting or
    translating the graph's positions (and rotating its velocities too) does the same to the result.
    Values are not checked; use `egno_jax.graph.validate`.

    Args:
      params: the model, from `init`, `load` or `from_torch_state_dict`.
      graph: one state or a batch of states: nodes `positions` `[N, 3]`, `velocities` `[N, 3]` and
        `features` `[N, F]`, edges `features` `[E, D]` or None; in a periodic system also edges
        `shifts` `[E, 3]`, see `egno_jax.ops.displacements`. Train and predict with shifts, or both
        without. For layers that carry vectors also nodes `vectors` `[N, K, 3]`: external
        directions, such as a field or "up", which rotate with the system.
      times: `[P]`, or `[P, G]` if graphs have different times, an array or a list; strictly
        increasing along P. They are in your unit of time, such as frames, counted from the initial
        state; the model divides them by `config.time_scale`, which is in the same unit.

    Returns:
      A `Trajectory` with `positions` `[P, N, 3]` in the unit of the input positions, `velocities`
      `[P, N, 3]` in the unit of the input velocities (a velocity only if training supervised it,
      `config.velocity_weight` above 0), and `features` `[P, N, C]`, the hidden features.

    Raises:
      ValueError: a field of the graph or of the times has a wrong shape, dtype or key, or the
        feature sizes differ from those that the weights were made for.
    """
    check_params(params)
    graph, times = checked_inputs(graph_lib.prepared(graph), times)
    check_feature_sizes(params, graph)
    mesh = sharding.explicit_mesh((params.weights, graph, times))
    if mesh is None:
        return _apply_checked(params, graph, times)
    nodes = jax.typeof(graph.nodes["positions"]).sharding.spec[:1]
    result = jax.NamedSharding(mesh, PartitionSpec(None, *nodes))
    function = jax.sharding.auto_axes(_apply_checked, axes=mesh.explicit_axes, out_sharding=result)
    return function(params, graph, times)


def _apply_checked(params: Params, graph: jraph.GraphsTuple, times: Array) -> Trajectory:
    module = family_of(params.config).module(params.config)
    return module.apply({"params": params.weights}, graph, times)


def checked_inputs(graph: Any, times: Any) -> tuple[jraph.GraphsTuple, Array]:
    """Checks the inputs of a model and returns them as JAX arrays.

    Args:
      graph: the graph, as in `apply`.
      times: the times, an array or a list.

    Raises:
      ValueError: a field of the graph or of the times has a wrong shape, dtype or key.
    """
    if times is None:
        raise ValueError("times: got None, expected an array [P] or [P, G]")
    times = graph_lib.as_times(times)
    graph_lib.check_structure(graph, times)
    return jax.tree.map(jnp.asarray, (graph, times))


class Frame(NamedTuple):
    """The frame and units that the model computes in, and the conversion back.

    Attributes:
      graph_ids: `[N]`, the graph of each node; with blocks, `[n, G]`.
      centre: `[N, 3]`, the mean initial position of each node's graph; with blocks, `[1, G, 3]`.
        In a graph with shifts, the initial position of each node.
      centre_residual: `[N, 3]`, the mean of the positions after subtracting `centre`; the exact
        centre is the sum of both.
      velocity_scale: `config.velocity_scale`.
      blocks: the arrangement of the nodes in the model; None: that of the graph.
    """

    graph_ids: Int[Array, "*nodes"]
    centre: Float[Array, "N 3"]
    centre_residual: Float[Array, "N 3"]
    velocity_scale: float
    blocks: ops.Blocks | None = None

    def trajectory(self, state: State) -> Trajectory:
        """Returns a state as a trajectory, with the origin and the units of the input."""
        parts = (
            (state.positions + self.centre_residual) + self.centre,
            state.velocities / self.velocity_scale,
            state.features,
        )
        if self.blocks is not None:
            parts = [self.blocks.to_nodes(part) for part in parts]
        return Trajectory(*parts)


def initial_state(
    graph: jraph.GraphsTuple, config: EGNOConfig, layer: LayerFactory | None = None
) -> tuple[State, Frame]:
    """Returns the state at one time, `[1, N, ...]`, with the features of the graph, and its frame.

    `layer` is the spatial layer, whose `extra` starts as `initial_extra`; None: the registered one.
    Layers are called with `in_frame(graph)`.
    """
    check_external_vectors(config, graph)
    graph_ids = graph_lib.graph_ids(graph.n_node, graph.nodes["positions"].shape[0])
    blocks = graph_lib.layout_of(graph)
    if isinstance(blocks, ops.Blocks):
        names = ("positions", "velocities", "features")  # a graph may have other arrays
        nodes = {name: blocks.to_blocks(graph.nodes[name][None])[0] for name in names}
        if "vectors" in graph.nodes:
            flat = graph.nodes["vectors"].reshape(1, -1, 3 * config.num_external_vectors)
            arranged = blocks.to_blocks(flat)[0]
            nodes["vectors"] = arranged.reshape(*arranged.shape[:-1], -1, 3)
        graph = graph._replace(nodes=nodes)
        graph_ids = blocks.to_blocks(graph_ids[None, :, None])[0, ..., 0]
    else:
        blocks = None
    positions, velocities, centre, residual = centred_state(graph, graph_ids, blocks)
    shape = (1, *graph_ids.shape)
    layer, vectors = layer or layer_factory(config), graph.nodes.get("vectors")
    extra = initial_extra(layer, config, shape, positions.dtype, vectors)
    parts = positions, velocities * config.velocity_scale, graph.nodes["features"]
    frame = Frame(graph_ids, centre, residual, config.velocity_scale, blocks)
    return State(*(part[None] for part in parts), extra), frame


def in_frame(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """Returns the graph with the shifts that fit the positions of `initial_state`.

    In a graph with shifts these positions are relative to each node's initial position x0, so the
    shift of an edge becomes `x0_i - x0_j + s_ij`. Other graphs are returned as they are.
    """
    shifts = graph_lib.shifts_of(graph)
    if shifts is None:
        return graph
    positions = graph.nodes["positions"]
    positions = positions.astype(jnp.result_type(positions.dtype, jnp.float32))
    edges = ops.EdgeList(graph.senders, graph.receivers, positions.shape[0])
    vectors = ops.displacements(edges, positions[None], shifts)[0]
    return graph._replace(edges={**graph.edges, "shifts": vectors})


def centred_state(
    graph: jraph.GraphsTuple, graph_ids: Int[Array, "N"], blocks: ops.Blocks | None = None
) -> tuple[Float[Array, "N 3"], Float[Array, "N 3"], Float[Array, "N 3"], Float[Array, "N 3"]]:
    """Returns positions relative to their graph's centre, velocities, the centre, and its residual.

    The centre is `centre + residual`: far from the origin the mean is rounded, so the mean of the
    differences is also subtracted. With `blocks` the nodes of the graph are arranged in them. In a
    graph with shifts the centre is each node's own position, and positions relative to it are 0.
    """
    positions, velocities = graph.nodes["positions"], graph.nodes["velocities"]
    dtype = jnp.result_type(positions.dtype, velocities.dtype, jnp.float32)
    positions, velocities = positions.astype(dtype), velocities.astype(dtype)
    if graph_lib.shifts_of(graph) is not None:
        zeros = jnp.zeros_like(positions)
        return zeros, velocities, positions, zeros

    def mean_of_graph(x: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
        if blocks is not None:
            return blocks.graph_mean(x[None])[0]
        mean = ops.graph_mean(x, graph_ids, graph.n_node)
        return jnp.take(mean, graph_ids, axis=0, mode="clip")

    centre = mean_of_graph(positions)
    relative = positions - centre
    residual = mean_of_graph(relative)
    return relative - residual, velocities, centre, residual


def time_dtype(times: Array, positions: Array) -> Any:
    """Returns the dtype of times in the model: that of positions, or the wider floating one."""
    if jnp.issubdtype(times.dtype, jnp.floating):
        return jnp.result_type(times.dtype, positions.dtype)
    return positions.dtype


def scaled_times(
    graph: jraph.GraphsTuple, times: Array, config: EGNOConfig
) -> Float[Array, "P *G"]:
    """Returns tau = times / config.time_scale, in the dtype of `time_dtype`."""
    return jnp.asarray(times, time_dtype(times, graph.nodes["positions"])) / config.time_scale


def _time_grid(
    times: Float[Array, "P *G"], config: EGNOConfig, graph_ids: Int[Array, "N"]
) -> tuple[Float[Array, "R *G"], ops.Context | None, slice]:
    """Returns the times to compute, their context, and the slice of the requested ones."""
    context, first = None, 0
    if config.temporal_grid == "context":
        times, context = _with_context(times, config, graph_ids)
        first = context.num_times
    num_times = times.shape[0]
    return *_equal_shares(times, context), slice(first, num_times)


def _with_context(
    times: Float[Array, "P *G"], config: EGNOConfig, graph_ids: Int[Array, "N"]
) -> tuple[Float[Array, "R *G"], ops.Context]:
    """Puts the context times before the requested ones; returns the phases of all of them."""
    first, last = config.context_times[0], config.context_times[-1]
    num_context = len(config.context_times)
    period = (last - first) * num_context / (num_context - 1)
    context_times = jnp.asarray(config.context_times, times.dtype)
    context_times = context_times.reshape(-1, *[1] * (times.ndim - 1))
    context_times = jnp.broadcast_to(context_times, (num_context, *times.shape[1:]))
    times = jnp.concatenate([context_times, times])
    phases = (times - first) / period
    if times.ndim == 2:
        phases = jnp.take(phases, graph_ids, axis=1, mode="clip")
    return times, ops.Context(num_context, phases)


def _equal_shares(
    times: Float[Array, "R *G"], context: ops.Context | None
) -> tuple[Float[Array, "R *G"], ops.Context | None]:
    """Adds times until every device of a mesh that shards them has equally many.

    The added times contribute nothing to the Fourier coefficients and are removed at the end.
    """
    num_times = times.shape[0]
    num_added = ops.num_missing_times(num_times)
    if num_added == 0:
        return times, context
    if context is None:
        phases = jnp.arange(num_times + num_added, dtype=times.dtype) / num_times
        return ops.pad_times(times, num_added), ops.Context(num_times, phases)
    phases = ops.pad_times(context.phases, num_added)
    return ops.pad_times(times, num_added), context._replace(phases=phases)


register(EGNOConfig, ModelFamily(EGNO))
