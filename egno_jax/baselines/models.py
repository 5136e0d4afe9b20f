"""The baselines as Linen modules.

All but `LinearMotion` compute with positions relative to the mean of each graph (in a graph with
shifts, to each node's initial position), as EGNO does, and those of E(n)-equivariant layers take
any registered spatial layer (`config.layer`).

Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024, section
5.1 names the methods; docstrings describe the differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from egno_jax import graph as graph_lib
from egno_jax import model, ops
from egno_jax.baselines.config import BaselineConfig, has_independent_times, num_times
from egno_jax.model import Frame, Trajectory
from egno_jax.nn import MLP, Linear, State
from egno_jax.nn.block import layer_factory, layer_options, move_along_mean

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def _after_layers(config: BaselineConfig, state: State, graph: jraph.GraphsTuple) -> list[State]:
    """Returns the state after each spatial layer, with global message passing before if configured.

    For a module's `__call__`.
    """
    states, graph = [], model.in_frame(graph)
    for index in range(config.num_layers):
        if config.mean_field:
            state = move_along_mean(config, state, graph, name=f"mean_field_{index}")
        state = layer_factory(config)(config, name=f"layer_{index}")(state, graph)
        states.append(state)
    return states


def _check_one_time(times: Array, method: str) -> None:
    if times.shape[0] != 1:
        raise ValueError(
            f"times: got {times.shape[0]}, expected 1: {method} predicts one later state; request "
            "one time, or use a method that predicts several"
        )


def _checked_inputs(graph: jraph.GraphsTuple, times: Any) -> tuple[jraph.GraphsTuple, Array]:
    """Checks the inputs as EGNO does; baselines use the edges as the graph lists them."""
    return model.checked_inputs(graph_lib.without_layout(graph), times)


class LinearMotion(nn.Module):
    """Uniform motion, x + v t / s with one learned number s, the unit of time.

    Equivariant; returns the initial features. s starts as `time_scale`.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Decodes the trajectory; see `egno_jax.apply`."""
        graph, times = _checked_inputs(graph, times)
        log_speed = self.param("log_speed", nn.initializers.zeros, (), self.config.param_dtype)
        nodes = graph.nodes
        times = model.scaled_times(graph, times, self.config)
        if times.ndim == 2:
            num_nodes = nodes["positions"].shape[0]
            times = jnp.repeat(times, graph.n_node, axis=1, total_repeat_length=num_nodes)
        else:
            times = times[:, None]
        velocities = jnp.exp(log_speed) * nodes["velocities"]
        positions = nodes["positions"] + times[..., None] * velocities
        steady = jnp.broadcast_to(nodes["velocities"], positions.shape)
        shape = (times.shape[0], *nodes["features"].shape)
        return Trajectory(positions, steady, jnp.broadcast_to(nodes["features"], shape))


class MPNN(nn.Module):
    """Message passing on coordinates as if they were features; not rotation-equivariant.

        h_i = Linear([f_i, x_i - c, v_i])
        h_i <- h_i + phi_h([h_i, sum_j SiLU(phi_m([h_i, h_j, e_ij]))])
        x_i + psi_x(h_i), psi_v(h_i)

    It commutes with translations. Predicts one later state. In a graph with shifts x_i - c is 0,
    and the geometry enters by the edge features alone.

    Source: Gilmer et al., "Neural Message Passing for Quantum Chemistry", 2017.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Predicts the state at the one requested time; see `egno_jax.apply`."""
        graph, times = _checked_inputs(graph, times)
        _check_one_time(times, "MPNN")
        width, options = self.config.hidden_dim, layer_options(self.config)
        state, frame = model.initial_state(graph, self.config)
        inputs = [state.features, state.positions, state.velocities]
        features = Linear(width, name="embedding", **options)(jnp.concatenate(inputs, axis=-1)[0])
        for index in range(self.config.num_layers):
            indices = (graph.receivers, graph.senders)
            ends = [jnp.take(features, ids, axis=0, mode="clip") for ids in indices]
            if graph.edges is not None:
                ends.append(graph.edges["features"].astype(features.dtype))
            message_mlp = MLP(width, width, name=f"message_mlp_{index}", **options)
            messages = nn.silu(message_mlp(jnp.concatenate(ends, axis=-1)))
            sums = ops.segment_sum(messages[None], graph.receivers, features.shape[0])[0]
            feature_mlp = MLP(width, width, name=f"feature_mlp_{index}", **options)
            features = features + feature_mlp(
                jnp.concatenate([features, sums.astype(features.dtype)], axis=-1)
            )
        step, velocities = (
            MLP(width, 3, name=name, **options)(features).astype(state.positions.dtype)[None]
            for name in ("position_head", "velocity_head")
        )
        return frame.trajectory(State(state.positions + step, velocities, features[None]))


class EGNN(nn.Module):
    """E(n)-equivariant message passing from the initial state to one later state.

    Source: Satorras et al., "E(n) Equivariant Graph Neural Networks", 2021.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Predicts the state at the one requested time; see `egno_jax.apply`."""
        graph, times = _checked_inputs(graph, times)
        _check_one_time(times, "EGNN")
        states, frame = _states_of_layers(self.config, graph)
        return frame.trajectory(states[-1])


class EGNNSequential(nn.Module):
    """EGNN-S: successive layers predict the successive times, equally many layers for each.

    Time p = 1 ... P is the state after layer ceil(p L / P).
    """

    config: BaselineConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Reads the trajectory off the layers; see `egno_jax.apply`."""
        graph, times = _checked_inputs(graph, times)
        num_requested, num_layers = times.shape[0], self.config.num_layers
        if not isinstance(num_requested, int):
            raise ValueError(
                f"times: got {num_requested} times, expected a fixed number for EGNN-S; export it "
                "with jax.export.export(jax.jit(egno_jax.apply))(params, graph, times)"
            )
        if num_requested > num_layers:
            raise ValueError(
                f"times: got {num_requested}, expected at most {num_layers}: EGNN-S predicts one "
                "time a layer; set config.num_layers to their number or more"
            )
        states, frame = _states_of_layers(self.config, graph)
        last = [-(-p * num_layers // num_requested) - 1 for p in range(1, num_requested + 1)]
        read = [states[index] for index in last]
        return frame.trajectory(jax.tree.map(lambda *slices: jnp.concatenate(slices), *read))


def _states_of_layers(
    config: BaselineConfig, graph: jraph.GraphsTuple
) -> tuple[list[State], Frame]:
    """Returns the state after each of the layers, `[1, N, ...]`; for a module's `__call__`."""
    state, frame = model.initial_state(graph, config)
    embedding = Linear(config.hidden_dim, name="embedding", **layer_options(config))
    return _after_layers(config, state._replace(features=embedding(state.features)), graph), frame


class EGNNRoll(nn.Module):
    """EGNN-R: one network predicts each time from the previous one; it is rolled out P times.

    EGNO's time embedding gives it the length of its step, so steps may be unequal. Node and edge
    features stay those of the initial state. It is trained through the full rollout, which is
    easier for it than the paper's training on single steps.
    """

    config: BaselineConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Rolls the step out; see `egno_jax.apply`."""
        graph, times = _checked_inputs(graph, times)
        state, frame = model.initial_state(graph, self.config)
        tau = model.scaled_times(graph, times, self.config)
        take_steps = nn.scan(
            _EGNNStep,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast, nn.broadcast),
        )
        carry = (state.positions, state.velocities)
        _, states = take_steps(self.config, name="step")(
            carry, jnp.diff(tau, axis=0, prepend=0), graph, frame.graph_ids
        )
        return frame.trajectory(State(*(x[:, 0] for x in states)))


class _EGNNStep(nn.Module):
    """One step of EGNN-R, as `nn.scan` calls it; each begins with fresh features."""

    config: BaselineConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, Array],
        step: Float[Array, "*G"],
        graph: jraph.GraphsTuple,
        graph_ids: Array,
    ) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        state, _ = model.initial_state(graph, self.config)
        features = model.time_embedding(self.config)(graph.nodes["features"], step[None], graph_ids)
        state = State(*carry, features, state.extra)
        state = _after_layers(self.config, state, graph)[-1]
        return state[:2], state[:3]


class EGNOWithoutConvolutions(nn.Module):
    """EGNO without its temporal convolutions: every time is decoded independently."""

    config: BaselineConfig

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, times: Float[Array, "P *G"]) -> Trajectory:
        """Decodes the trajectory; see `egno_jax.apply`."""
        graph, times = _checked_inputs(graph, times)
        config = self.config
        state, frame = model.initial_state(graph, config)
        tau = model.scaled_times(graph, times, config)
        features = model.time_embedding(config)(graph.nodes["features"], tau, frame.graph_ids)
        state = state.at_times(tau.shape[0])._replace(features=features)
        return frame.trajectory(_after_layers(config, state, graph)[-1])


_MODULES = {
    "linear": LinearMotion,
    "mpnn": MPNN,
    "egnn": EGNN,
    "egnn-r": EGNNRoll,
    "egnn-s": EGNNSequential,
    "egno-no-conv": EGNOWithoutConvolutions,
}


model.register(
    BaselineConfig,
    model.ModelFamily(lambda x: _MODULES[x.method](x), num_times, has_independent_times),
)
