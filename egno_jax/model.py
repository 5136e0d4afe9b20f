"""EGNO: one state in, the whole trajectory out, at any times, in one parallel pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from egno_jax import graph as graph_lib
from egno_jax import ops
from egno_jax.config import EGNOConfig
from egno_jax.nn import EGNOBlock, TimeEmbedding

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = [
    "EGNO",
    "Kind",
    "Params",
    "Trajectory",
    "apply",
    "centred_state",
    "checked_inputs",
    "class_name",
    "config_class",
    "feature_sizes",
    "init",
    "register",
    "weight_shapes",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What the model predicts, time first.

    Attributes:
      positions: `[P, N, 3]`, in the unit of the input positions.
      velocities: `[P, N, 3]`, the model's second vector channel. It predicts the velocity only if
        the loss asked for it (`config.velocity_weight` above 0).
      features: `[P, N, C]`, hidden features, invariant under rotations, reflections, translations.
    """

    positions: Float[Array, "P N 3"]
    velocities: Float[Array, "P N 3"]
    features: Float[Array, "P N C"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params:
    """A model: its weights, which are pytree leaves, and its configuration, which is static.

    Attributes:
      weights: nested dict of arrays, exactly Linen's `variables["params"]`, one subtree a block.
      config: the configuration that the weights belong to.
    """

    weights: dict[str, Any]
    config: EGNOConfig = dataclasses.field(metadata={"static": True})


class Kind(NamedTuple):
    """What `init`, `apply` and the checks must know of a kind of model.

    Attributes:
      module: makes the Linen module of a config.
      weight_shapes: takes a config, F and D; returns the shape of every weight under its path.
      feature_sizes: takes parameters; returns F and D, None where any number will do.
    """

    module: Callable[[Any], nn.Module]
    weight_shapes: Callable[[Any, int, int], dict[str, tuple[int, ...]]]
    feature_sizes: Callable[[Params], tuple[int | None, int | None]]


_KINDS: dict[type, Kind] = {}


def register(config_class: type[EGNOConfig], kind: Kind) -> None:
    """Makes `init`, `apply`, `save`, `load` and the training take models of this config's class."""
    _KINDS[config_class] = kind


def config_class(names: Collection[str], recorded: str | None = None) -> type[EGNOConfig] | None:
    """Returns the registered class of the configs that a record is of; None if there is none.

    That is the one of the recorded name. A record without a name is of the smallest class that has
    all its fields, `EGNOConfig` if none has; so is one of a script, `__main__:...`, whose classes
    are called otherwise wherever else they are imported.

    Args:
      names: the names of the fields.
      recorded: what `class_name` gave when the record was written; None where it keeps none.
    """
    named = next((kind for kind in _KINDS if class_name(kind) == recorded), None)
    if named is not None or not (recorded is None or str(recorded).startswith("__main__:")):
        return named
    fields = {kind: {field.name for field in dataclasses.fields(kind)} for kind in _KINDS}
    fitting = [kind for kind in fields if fields[kind].issuperset(names)]
    return min(fitting, key=lambda kind: len(fields[kind]), default=EGNOConfig)


def class_name(kind: type) -> str:
    """Returns the name that a record keeps of a class, such as `egno_jax.config:EGNOConfig`."""
    return f"{kind.__module__}:{kind.__qualname__}"


def _kind(params: Params) -> Kind:
    return _KINDS[type(params.config)]


class EGNO(nn.Module):
    """The Equivariant Graph Neural Operator as a Linen module.

    The state is repeated at all P times and told its time by an embedding; then blocks of a
    convolution over time (`h`, and the vectors `[x - c, v]`) and message passing at each time carry
    it to the trajectory. With `config.mean_field` nodes also take a step along the mean of their
    graph. c is the mean initial position of each graph: geometry is kept relative to it, and c is
    added at the end.

    Attributes:
      config: the hyper-parameters.

    Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024,
    arXiv:2401.11037.
    """

    config: EGNOConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, times: Float[Array, "P"] | Float[Array, "P G"]
    ) -> Trajectory:
        """Decodes the trajectory; see `egno_jax.apply`."""
        graph, times = checked_inputs(graph, times)
        config = self.config
        layer_options = {
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "precision": config.matmul_precision,
        }
        num_nodes = graph.nodes["positions"].shape[0]
        graph_ids = graph_lib.graph_ids(graph.n_node, num_nodes)
        positions, velocities, centre, rest = centred_state(graph, graph_ids)
        velocities = velocities * config.velocity_scale
        times = jnp.asarray(times, time_dtype(times, positions))
        if config.temporal_grid == "context":
            times, context = _with_context(times, config, graph_ids)
        else:
            context = None
        first, num_times = (0 if context is None else context.num_times), times.shape[0]
        times, context = _equal_shares(times, context)
        tau = times / config.time_scale

        features = TimeEmbedding(
            config.hidden_dim, config.time_embed_dim, name="embedding", **layer_options
        )(graph.nodes["features"], tau, graph_ids)
        positions, velocities = (
            jnp.broadcast_to(x, (tau.shape[0], *x.shape)) for x in (positions, velocities)
        )
        positions, velocities, features = map(ops.split_times, (positions, velocities, features))
        edge_features = None if graph.edges is None else graph.edges["features"]
        for index in range(config.num_layers):
            block = EGNOBlock(
                config.hidden_dim,
                config.num_modes,
                mean_field=config.mean_field,
                mean_field_channels=config.mean_field_channels,
                vector_init=config.vector_init,
                name=f"block_{index}",
                **layer_options,
            )
            positions, velocities, features = block(
                positions,
                velocities,
                features,
                edge_features,
                graph.senders,
                graph.receivers,
                context,
                graph_ids,
                graph.n_node.shape[0],
            )
            positions, velocities, features = map(
                ops.split_times, (positions, velocities, features)
            )
        if (first, num_times) != (0, tau.shape[0]):
            positions, velocities, features = (
                x[first:num_times] for x in (positions, velocities, features)
            )
        velocities = velocities / config.velocity_scale
        return Trajectory((positions + rest) + centre, velocities, features)


def init(
    key: Array,
    config: EGNOConfig,
    graph: jraph.GraphsTuple,
    times: Float[Array, "P"] | Float[Array, "P G"],
) -> Params:
    """Makes the weights of a model for graphs that look like `graph`.

    Args:
      key: a random key.
      config: the hyper-parameters.
      graph: an example; the sizes of its node and edge features are read, its values are not used.
      times: an example, `[P]` or `[P, G]`.

    Returns:
      The parameters; the same key gives the same bits.

    Raises:
      ValueError: a field of the graph or of the times has a wrong shape, dtype or key.
    """
    check_config(config)
    graph, times = checked_inputs(graph, times)
    return Params(weights=_init_weights(key, config, graph, times), config=config)


@functools.partial(jax.jit, static_argnames="config")
def _init_weights(key: Array, config: EGNOConfig, graph: jraph.GraphsTuple, times: Array) -> Any:
    return _KINDS[type(config)].module(config).init(key, graph, times)["params"]


def apply(
    params: Params,
    graph: jraph.GraphsTuple,
    times: Float[Array, "P"] | Float[Array, "P G"],
) -> Trajectory:
    """Decodes the trajectory of a state at the requested times, all of them in one pass.

    Pure: `jit`, `vmap`, `grad`, `remat` and sharding work on it. Equivariant: rotating, reflecting
    or translating the graph's positions (and turning its velocities along) does the same to the
    result. Values are not looked at; `egno_jax.graph.validate` checks them.

    Args:
      params: the model, from `init`, `load` or `from_torch_state_dict`.
      graph: one state or a batch of states: nodes `positions` `[N, 3]`, `velocities` `[N, 3]` and
        `features` `[N, F]`, edges `features` `[E, D]` or None.
      times: `[P]`, or `[P, G]` where graphs ask for different times, an array or a list; strictly
        increasing along P, in the unit of `config.time_scale`.

    Returns:
      The trajectory, P times of N nodes.

    Raises:
      ValueError: a field of the graph or of the times has a wrong shape, dtype or key, or the
        feature sizes differ from those that the weights were made for.
    """
    check_params(params)
    graph, times = checked_inputs(graph, times)
    check_feature_sizes(params, graph)
    module = _kind(params).module(params.config)
    return module.apply({"params": params.weights}, graph, times)


def checked_inputs(graph: Any, times: Any) -> tuple[jraph.GraphsTuple, Array]:
    """Checks the inputs of a model and returns them as JAX's arrays, in the dtypes it computes in.

    Args:
      graph: what should be a graph as `apply` takes it.
      times: what should be its times, an array or a list.

    Raises:
      ValueError: a field of the graph or of the times has a wrong shape, dtype or key.
    """
    if times is None:
        raise ValueError("times: got None, expected an array [P] or [P, G]")
    times = graph_lib.as_times(times)
    graph_lib.check_structure(graph, times)
    return jax.tree.map(jnp.asarray, (graph, times))


def centred_state(
    graph: jraph.GraphsTuple, graph_ids: Int[Array, "N"]
) -> tuple[Float[Array, "N 3"], Float[Array, "N 3"], Float[Array, "N 3"], Float[Array, "N 3"]]:
    """Returns positions relative to their graph's centre, velocities, the centre, and its rest.

    The centre is `centre + rest`. Far from the origin a mean is only as good as its rounding, so
    the mean of what is left after subtracting it is subtracted too.
    """
    positions, velocities = graph.nodes["positions"], graph.nodes["velocities"]
    dtype = jnp.result_type(positions.dtype, velocities.dtype, jnp.float32)
    positions, velocities = positions.astype(dtype), velocities.astype(dtype)

    def mean_of_graph(x: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
        mean = ops.graph_mean(x, graph_ids, graph.n_node)
        return jnp.take(mean, graph_ids, axis=0, mode="clip")

    centre = mean_of_graph(positions)
    relative = positions - centre
    rest = mean_of_graph(relative)
    return relative - rest, velocities, centre, rest


def time_dtype(times: Array, positions: Array) -> Any:
    """Returns the dtype that times are computed in: their own if it is the wider floating one."""
    if jnp.issubdtype(times.dtype, jnp.floating):
        return jnp.result_type(times.dtype, positions.dtype)
    return positions.dtype


def _with_context(
    times: Float[Array, "P"] | Float[Array, "P G"],
    config: EGNOConfig,
    graph_ids: Int[Array, "N"],
) -> tuple[Float[Array, "R"] | Float[Array, "R G"], ops.Context]:
    """Puts the context times before those that are asked, and says where in the period all are."""
    first, last = config.context_times[0], config.context_times[-1]
    num_context = len(config.context_times)
    period = (last - first) * num_context / (num_context - 1)
    context_times = jnp.asarray(config.context_times, times.dtype)
    context_times = context_times.reshape(-1, *[1] * (times.ndim - 1))
    context_times = jnp.broadcast_to(context_times, (num_context, *times.shape[1:]))
    times = jnp.concatenate([context_times, times])
    turns = (times - first) / period
    if times.ndim == 2:
        turns = jnp.take(turns, graph_ids, axis=1, mode="clip")
    return times, ops.Context(num_context, turns)


def _equal_shares(
    times: Float[Array, "R"] | Float[Array, "R G"], context: ops.Context | None
) -> tuple[Float[Array, "R"] | Float[Array, "R G"], ops.Context | None]:
    """Adds times, where a mesh splits them, until every device has equally many.

    Those that are added give nothing to the Fourier coefficients and are cut off at the end.
    """
    num_times = times.shape[0]
    num_added = ops.num_missing_times(num_times)
    if num_added == 0:
        return times, context
    if context is None:
        turns = jnp.arange(num_times + num_added, dtype=times.dtype) / num_times
        return ops.pad_times(times, num_added), ops.Context(num_times, turns)
    turns = ops.pad_times(context.turns, num_added)
    return ops.pad_times(times, num_added), context._replace(turns=turns)


def weight_shapes(
    config: EGNOConfig, num_node_features: int, num_edge_features: int
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight that `init` makes, under its path such as `a/b/kernel`.

    Args:
      config: the hyper-parameters.
      num_node_features: F.
      num_edge_features: D, 0 without edge features.
    """
    width, modes = config.hidden_dim, config.num_modes
    shapes = _linear_shapes("embedding/linear", num_node_features + config.time_embed_dim, width)
    mlp_sizes = {
        "message_mlp": (1 + 2 * width + num_edge_features, width),
        "position_mlp": (width, 1),
        "velocity_mlp": (width, 1),
        "feature_mlp": (2 * width, width),
    }
    for block in (f"block_{index}" for index in range(config.num_layers)):
        shapes[f"{block}/temporal_conv/kernel"] = (2, modes, width, width)
        shapes[f"{block}/vector_temporal_conv/kernel"] = (2, modes, 2, 2)
        for mlp, (rows, columns) in mlp_sizes.items():
            shapes |= _linear_shapes(f"{block}/egnn_layer/{mlp}/linear_0", rows, width)
            shapes |= _linear_shapes(f"{block}/egnn_layer/{mlp}/linear_1", width, columns)
        if config.mean_field:
            shapes |= _linear_shapes(f"{block}/mean_field/mlp/linear_0", width, width)
            channels = config.mean_field_channels
            shapes |= _linear_shapes(f"{block}/mean_field/mlp/linear_1", width, 2 + channels)
            if channels:
                senders = f"{block}/mean_field/sender_mlp"
                shapes |= _linear_shapes(f"{senders}/linear_0", width, width)
                shapes |= _linear_shapes(f"{senders}/linear_1", width, 2 * channels)
    return shapes


def feature_sizes(params: Params) -> tuple[int, int]:
    """Returns F and D, the numbers of node and of edge features that the weights were made for."""
    config, weights = params.config, params.weights
    message_mlp = weights["block_0"]["egnn_layer"]["message_mlp"]
    input_rows = weights["embedding"]["linear"]["kernel"].shape[0]
    message_rows = message_mlp["linear_0"]["kernel"].shape[0]
    for name, rows, least in (
        ("time_embed_dim", input_rows, config.time_embed_dim),
        ("hidden_dim", message_rows, 1 + 2 * config.hidden_dim),
    ):
        if rows < least:
            raise ValueError(
                f"params.weights: an input layer has {rows} rows, expected at least {least} with "
                f"config.{name}={getattr(config, name)}"
            )
    return input_rows - config.time_embed_dim, message_rows - 1 - 2 * config.hidden_dim


def check_params(params: Params) -> None:
    """Checks that these are parameters that JAX can compute with; see `check_weights`.

    Args:
      params: anything.

    Raises:
      ValueError: they are not; names the weight, its shape and the one expected. Or a dtype is
        float64 and JAX's x64 mode is off.
    """
    if isinstance(params, Params):
        check_config(params.config)
    check_weights(params)


def check_weights(params: Params) -> None:
    """Checks that these are parameters, and their weights the tree that their config describes.

    Args:
      params: anything, in any dtype.

    Raises:
      ValueError: they are not; names the weight, its shape and the one expected.
    """
    if not isinstance(params, Params):
        raise ValueError(
            f"params: got {type(params).__name__}, expected egno_jax.Params; egno_jax.init makes "
            "them from a config, and those of a Linen module are "
            'Params(weights=variables["params"], config=config)'
        )
    try:
        kind = _kind(params)
        expected = kind.weight_shapes(params.config, *kind.feature_sizes(params))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"params.weights: not those of {type(params.config).__name__} ({error!r}); expected "
            'the tree that egno_jax.init makes, variables["params"] of the Linen module'
        ) from error
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params.weights)
    }
    for path in sorted(found.keys() | expected.keys()):
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"params.weights: {path} has shape {found.get(path)}, expected "
                f"{expected.get(path)} by params.config"
            )


def check_config(config: EGNOConfig) -> None:
    """Checks that this is a configuration, and that JAX can compute in its dtypes.

    Raises:
      ValueError: it is not, or a dtype is float64 and JAX's x64 mode is off.
    """
    if type(config) not in _KINDS:
        raise ValueError(f"config: got {type(config).__name__}, expected egno_jax.EGNOConfig")
    for name in ("dtype", "param_dtype"):
        dtype = getattr(config, name)
        if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"config.{name}: got {dtype!r}, which JAX would round to 32 bits; call "
                'jax.config.update("jax_enable_x64", True) first'
            )


def _linear_shapes(path: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{path}/kernel": (rows, columns), f"{path}/bias": (columns,)}


def check_feature_sizes(params: Params, graph: jraph.GraphsTuple) -> None:
    """Checks that the graph's feature sizes are those that the weights were made for.

    Args:
      params: the model.
      graph: one state, a batch, or a stack of them.

    Raises:
      ValueError: they are not; names the feature and both sizes.
    """
    expected_sizes = _kind(params).feature_sizes(params)
    for (key, each), found, expected in zip(
        (("nodes", "a node"), ("edges", "an edge")),
        graph_feature_sizes(graph),
        expected_sizes,
        strict=True,
    ):
        if expected is not None and found != expected:
            message = (
                f"graph.{key}['features']: got {found} features {each}, expected {expected}, the "
                "number that the params were made for"
            )
            if key == "nodes" and type(params.config) is EGNOConfig:
                # The only size that a converted checkpoint does not tell.
                message += (
                    f" with config.time_embed_dim={params.config.time_embed_dim} (their sum is "
                    f"{expected + params.config.time_embed_dim} in the weights; of a converted "
                    "checkpoint check time_embed_dim too)"
                )
            raise ValueError(message)


def graph_feature_sizes(graph: jraph.GraphsTuple) -> tuple[int, int]:
    """Returns F and D of a graph, D = 0 without edge features."""
    edge_features = 0 if graph.edges is None else graph.edges["features"].shape[-1]
    return graph.nodes["features"].shape[-1], edge_features


register(EGNOConfig, Kind(EGNO, weight_shapes, feature_sizes))
