"""The baselines as Linen modules.

All but `LinearMotion` compute with positions relative to the mean of each graph, as EGNO does.

Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024, section
5.1 names the methods; where ours differs from theirs, its docstring says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax import model, ops
from egno_jax.baselines.config import BaselineConfig
from egno_jax.model import Params, Trajectory
from egno_jax.nn import MLP, EGNNLayer, Linear, MeanField, TimeEmbedding

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class _State(NamedTuple):
    """The given state as the modules use it.

    Attributes:
      positions: `[1, N, 3]`, relative to the graph's centre.
      velocities: `[1, N, 3]`, in the model's unit: `config.velocity_scale` times those given.
      features: `[N, F]`.
      edges: edge features `[E, D]` or None, senders `[E]`, receivers `[E]`.
      graph_ids: `[N]`.
      num_graphs: G.
      centre: `[N, 3]`, what positions are relative to.
    """

    positions: Float[Array, "1 N 3"]
    velocities: Float[Array, "1 N 3"]
    features: Float[Array, "N F"]
    edges: tuple[Float[Array, "E D"] | None, Int[Array, "E"], Int[Array, "E"]]
    graph_ids: Int[Array, "N"]
    num_graphs: int
    centre: Float[Array, "N 3"]


def _state(graph: jraph.GraphsTuple, config: BaselineConfig) -> _State:
    graph_ids = graph_lib.graph_ids(graph.n_node, graph.nodes["positions"].shape[0])
    positions, velocities, centre, rest = model.centred_state(graph, graph_ids)
    edge_features = None if graph.edges is None else graph.edges["features"]
    return _State(
        positions=positions[None],
        velocities=velocities[None] * config.velocity_scale,
        features=graph.nodes["features"],
        edges=(edge_features, graph.senders, graph.receivers),
        graph_ids=graph_ids,
        num_graphs=graph.n_node.shape[0],
        centre=centre + rest,
    )


def _options(config: BaselineConfig) -> dict[str, Any]:
    return {
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "precision": config.matmul_precision,
    }


def _layers(config: BaselineConfig, state: _State) -> list[Callable[..., tuple[Array, ...]]]:
    """Returns the layers, from positions, velocities and features to the same; for `__call__`."""
    options = _options(config)

    def layer(index: int, positions: Array, *rest: Array) -> tuple[Array, ...]:
        if config.mean_field:
            sizes = config.hidden_dim, config.mean_field_channels
            mean_field = MeanField(*sizes, name=f"mean_field_{index}", **options)
            positions = mean_field(positions, *rest, state.graph_ids, state.num_graphs)
        egnn_layer = EGNNLayer(config.hidden_dim, name=f"layer_{index}", **options)
        return egnn_layer(positions, *rest, *state.edges)

    return [functools.partial(layer, index) for index in range(config.num_layers)]


def _check_one_time(times: Array, method: str) -> None:
    if times.shape[0] != 1:
        raise ValueError(
            f"times: got {times.shape[0]}, expected 1: {method} carries a state to one later state"
        )


def _scaled(times: Array, graph: jraph.GraphsTuple, config: BaselineConfig) -> Array:
    dtype = model.time_dtype(times, graph.nodes["positions"])
    return jnp.asarray(times, dtype) / config.time_scale


class LinearMotion(nn.Module):
    """Every node goes straight on: x + v t / s with one learned number s, the unit of time.

    Equivariant; the features that it returns are the given ones. s starts as `time_scale`.

    Attributes:
      config: the hyper-parameters.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, times: Float[Array, "P"] | Float[Array, "P G"]
    ) -> Trajectory:
        """Decodes the trajectory; see `egno_jax.apply`."""
        graph, times = model.checked_inputs(graph, times)
        log_speed = self.param("log_speed", nn.initializers.zeros, (), self.config.param_dtype)
        nodes = graph.nodes
        times = _scaled(times, graph, self.config)
        if times.ndim == 2:
            graph_ids = graph_lib.graph_ids(graph.n_node, nodes["positions"].shape[0])
            times = jnp.take(times, graph_ids, axis=1, mode="clip")
        else:
            times = times[:, None]
        velocities = jnp.exp(log_speed) * nodes["velocities"]
        positions = nodes["positions"] + times[..., None] * velocities
        steady = jnp.broadcast_to(nodes["velocities"], positions.shape)
        shape = (times.shape[0], *nodes["features"].shape)
        return Trajectory(positions, steady, jnp.broadcast_to(nodes["features"], shape))


class MPNN(nn.Module):
    """Message passing on coordinates as if they were features; knows no rotation.

        h_i = Linear([f_i, x_i - c, v_i])
        h_i <- h_i + phi_h([h_i, sum_j SiLU(phi_m([h_i, h_j, e_ij]))])
        x_i + psi_x(h_i), psi_v(h_i)

    Translations it does commute with. Predicts one later state.

    Attributes:
      config: the hyper-parameters.

    Source: Gilmer et al., "Neural Message Passing for Quantum Chemistry", 2017.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, times: Float[Array, "P"] | Float[Array, "P G"]
    ) -> Trajectory:
        """Predicts the state at the one time asked; see `egno_jax.apply`."""
        graph, times = model.checked_inputs(graph, times)
        _check_one_time(times, "MPNN")
        width, options = self.config.hidden_dim, _options(self.config)
        state = _state(graph, self.config)
        edge_features, senders, receivers = state.edges
        inputs = jnp.concatenate([state.features, state.positions[0], state.velocities[0]], axis=-1)
        features = Linear(width, name="embedding", **options)(inputs)
        for index in range(self.config.num_layers):
            ends = [jnp.take(features, ids, axis=0, mode="clip") for ids in (receivers, senders)]
            if edge_features is not None:
                ends.append(edge_features.astype(features.dtype))
            message_mlp = MLP(width, width, name=f"message_mlp_{index}", **options)
            messages = nn.silu(message_mlp(jnp.concatenate(ends, axis=-1)))
            sums = ops.segment_sum(messages[None], receivers, features.shape[0])[0]
            feature_mlp = MLP(width, width, name=f"feature_mlp_{index}", **options)
            features = features + feature_mlp(
                jnp.concatenate([features, sums.astype(features.dtype)], axis=-1)
            )
        step, velocities = (
            MLP(width, 3, name=name, **options)(features).astype(state.positions.dtype)
            for name in ("position_head", "velocity_head")
        )
        positions = state.positions + step[None] + state.centre
        velocities = velocities[None] / self.config.velocity_scale
        return Trajectory(positions, velocities, features[None])


class EGNN(nn.Module):
    """E(n)-equivariant message passing from the given state to one later state.

    Attributes:
      config: the hyper-parameters.

    Source: Satorras et al., "E(n) Equivariant Graph Neural Networks", 2021.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, times: Float[Array, "P"] | Float[Array, "P G"]
    ) -> Trajectory:
        """Predicts the state at the one time asked; see `egno_jax.apply`."""
        graph, times = model.checked_inputs(graph, times)
        _check_one_time(times, "EGNN")
        *_, last = _states_of_layers(self.config, _state(graph, self.config))
        return last


class EGNNSequential(nn.Module):
    """EGNN-S: the trajectory is read off successive layers, P times of equal numbers of layers.

    Time p = 1 ... P is what stands behind layer ceil(p L / P).

    Attributes:
      config: the hyper-parameters.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, times: Float[Array, "P"] | Float[Array, "P G"]
    ) -> Trajectory:
        """Reads the trajectory off the layers; see `egno_jax.apply`."""
        graph, times = model.checked_inputs(graph, times)
        num_asked, num_layers = times.shape[0], self.config.num_layers
        if num_asked > num_layers:
            raise ValueError(
                f"times: got {num_asked}, expected at most {num_layers}: EGNN-S predicts a time a "
                "layer, so config.num_layers must be at least their number"
            )
        states = _states_of_layers(self.config, _state(graph, self.config))
        read = [states[-(-p * num_layers // num_asked) - 1] for p in range(1, num_asked + 1)]
        return jax.tree.map(lambda *slices: jnp.concatenate(slices), *read)


def _states_of_layers(config: BaselineConfig, state: _State) -> list[Trajectory]:
    """Returns what stands behind each of the layers, `[1, N, ...]`; for a module's `__call__`."""
    embedding = Linear(config.hidden_dim, name="embedding", **_options(config))
    features = embedding(state.features)[None]
    positions, velocities, states = state.positions, state.velocities, []
    for layer in _layers(config, state):
        positions, velocities, features = layer(positions, velocities, features)
        given = velocities / config.velocity_scale
        states.append(Trajectory(positions + state.centre, given, features))
    return states


class EGNNRoll(nn.Module):
    """EGNN-R: one network takes the step from each time to the next, and is rolled out P times.

    It is told the length of its step by EGNO's time embedding, and so takes unequal ones too. Node
    and edge features stay those of the given state. Trained through the whole rollout, which is
    kinder to it than the paper's training on single steps.

    Attributes:
      config: the hyper-parameters.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, times: Float[Array, "P"] | Float[Array, "P G"]
    ) -> Trajectory:
        """Rolls the step out; see `egno_jax.apply`."""
        graph, times = model.checked_inputs(graph, times)
        state = _state(graph, self.config)
        steps = jnp.diff(_scaled(times, graph, self.config), axis=0, prepend=0)
        take_steps = nn.scan(
            _EGNNStep,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast),
        )
        _, (positions, velocities, features) = take_steps(self.config, name="step")(
            (state.positions, state.velocities), steps, state
        )
        velocities = velocities[:, 0] / self.config.velocity_scale
        return Trajectory(positions[:, 0] + state.centre, velocities, features[:, 0])


class _EGNNStep(nn.Module):
    """One step of EGNN-R, as `nn.scan` takes it."""

    config: BaselineConfig

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Array], step: Float[Array, ""] | Float[Array, "G"], state: _State
    ) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        positions, velocities = carry
        embedding = TimeEmbedding(
            self.config.hidden_dim,
            self.config.time_embed_dim,
            name="embedding",
            **_options(self.config),
        )
        features = embedding(state.features, step[None], state.graph_ids)
        for layer in _layers(self.config, state):
            positions, velocities, features = layer(positions, velocities, features)
        return (positions, velocities), (positions, velocities, features)


class EGNOWithoutConvolutions(nn.Module):
    """EGNO without its temporal convolutions: every time is decoded alone.

    Attributes:
      config: the hyper-parameters.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(
        self, graph: jraph.GraphsTuple, times: Float[Array, "P"] | Float[Array, "P G"]
    ) -> Trajectory:
        """Decodes the trajectory; see `egno_jax.apply`."""
        graph, times = model.checked_inputs(graph, times)
        config = self.config
        state = _state(graph, self.config)
        tau = _scaled(times, graph, config)
        features = TimeEmbedding(
            config.hidden_dim, config.time_embed_dim, name="embedding", **_options(config)
        )(state.features, tau, state.graph_ids)
        positions, velocities = (
            jnp.broadcast_to(x, (tau.shape[0], *x.shape[1:]))
            for x in (state.positions, state.velocities)
        )
        for layer in _layers(config, state):
            positions, velocities, features = layer(positions, velocities, features)
        velocities = velocities / config.velocity_scale
        return Trajectory(positions + state.centre, velocities, features)


_MODULES = {
    "linear": LinearMotion,
    "mpnn": MPNN,
    "egnn": EGNN,
    "egnn-r": EGNNRoll,
    "egnn-s": EGNNSequential,
    "egno-no-conv": EGNOWithoutConvolutions,
}


def _module(config: BaselineConfig) -> nn.Module:
    return _MODULES[config.method](config)


def _feature_sizes(params: Params) -> tuple[int | None, int | None]:
    """Returns F and D, read off the layers that take them in."""
    config, weights = params.config, params.weights
    width = config.hidden_dim
    if config.method == "linear":
        return None, None
    if config.method == "mpnn":
        first, embedding = weights["message_mlp_0"], weights["embedding"]
        return _rows(embedding) - 6, _rows(first["linear_0"]) - 2 * width
    if config.method == "egnn-r":
        weights = weights["step"]
    first = weights["layer_0"]["message_mlp"]["linear_0"]
    if config.method in ("egnn", "egnn-s"):
        return _rows(weights["embedding"]), _rows(first) - 1 - 2 * width
    num_node_features = _rows(weights["embedding"]["linear"]) - config.time_embed_dim
    return num_node_features, _rows(first) - 1 - 2 * width


def _rows(linear: dict[str, Array]) -> int:
    return linear["kernel"].shape[0]


@functools.lru_cache
def _weight_shapes(
    config: BaselineConfig, num_node_features: int | None, num_edge_features: int | None
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight that `init` makes, under its path."""
    sizes = (num_node_features or 0, num_edge_features or 0)
    if min(sizes) < 0:
        raise KeyError("an input layer has too few rows")
    edges = graph_lib.fully_connected_edges(2)
    features = {"features": np.zeros((2, sizes[1]), np.float32)} if sizes[1] else None
    example = jraph.GraphsTuple(
        nodes={
            "positions": np.zeros((2, 3), np.float32),
            "velocities": np.zeros((2, 3), np.float32),
            "features": np.zeros((2, sizes[0]), np.float32),
        },
        edges=features,
        senders=edges.senders,
        receivers=edges.receivers,
        globals=None,
        n_node=np.array([2], np.int32),
        n_edge=np.array([2], np.int32),
    )
    times = np.ones(1, np.float32)
    made = jax.eval_shape(_module(config).init, jax.random.key(0), example, times)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(made["params"])
    }


model.register(BaselineConfig, model.Kind(_module, _weight_shapes, _feature_sizes))
