"""JAX MD: a model as a step of a simulation, state in, state out.

    init_fn, apply_fn = egno_jax.jax_md.window(params, times, graph_of)
    state = init_fn(state)            # any state of jax_md.simulate with momenta
    state = jax.jit(apply_fn)(state)  # one window later

Needs the extra `jax-md`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import jraph

from egno_jax import graph as graph_lib
from egno_jax.checks import as_window_times, check_positive
from egno_jax.model import Params, apply, check_params

if TYPE_CHECKING:
    from jaxtyping import Array, ArrayLike, Float

__all__ = ["window"]


def window(
    params: Params,
    times: Float[ArrayLike, "P"],
    graph_of: Callable[[Any], jraph.GraphsTuple],
    *,
    force_fn: Callable[[Array], Array] | None = None,
    shift_fn: Callable[[Array, Array], Array] | None = None,
    supervised_velocities: bool | None = None,
    time_unit: float = 1.0,
    velocity_unit: float = 1.0,
) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Returns `init_fn` and `apply_fn`, as the simulations of JAX MD do; both are pure.

    `apply_fn(state)` predicts a window and returns the state at its last time: the same dataclass
    with new position and momentum, so that `jax.lax.scan`, thermostats and steps of JAX MD can
    follow. It works inside `jit`. `init_fn(state)` checks a state and returns it.

    Args:
      params: the model.
      times: `[P]`, of a window, increasing and above 0, in the unit of the model.
      graph_of: called with the state; returns its graph, whose first nodes are the particles:
        `egno_jax.rolling.with_state` of a fixed graph, `state.position` and `state.velocity`, or
        `egno_jax.rolling.radius_graph` for edges that change.
      force_fn: forces at positions, of the energy in the simulation; None: `state.force` is kept,
        which is right if only this function moves the state.
      shift_fn: moves positions by a displacement, from `jax_md.space`; None adds, so that positions
        are unwrapped. Positions must be real, not fractional, coordinates.
      supervised_velocities: whether momenta are those that the model predicts; otherwise they come
        from the difference of the last two positions. By default, whether
        `params.config.velocity_weight` is above 0.
      time_unit: the unit of `times` in that of the simulation.
      velocity_unit: the unit of the graph's velocities in that of the simulation.

    Raises:
      ValueError: times or units are not valid, or the state has no position, momentum or mass.
    """
    check_params(params)
    times = jnp.asarray(as_window_times(times))
    check_positive("time_unit", time_unit)
    check_positive("velocity_unit", velocity_unit)
    if supervised_velocities is None:
        supervised_velocities = params.predicts_velocities

    def apply_fn(state: Any) -> Any:
        graph = graph_of(_checked_state(state))
        count = state.position.shape[0]
        found = apply(params, graph_lib.prepared(graph), times)
        path = jnp.concatenate([graph.nodes["positions"][None, :count], found.positions[:, :count]])
        moved = (path[-1] - path[0]).astype(state.position.dtype)
        if supervised_velocities:
            velocity = found.velocities[-1, :count] * velocity_unit
        else:
            velocity = (path[-1] - path[-2]) / (jnp.diff(times, prepend=0)[-1] * time_unit)
        position = state.position + moved if shift_fn is None else shift_fn(state.position, moved)
        momentum = (state.mass * velocity).astype(state.momentum.dtype)
        changes = {} if force_fn is None else {"force": force_fn(position)}
        return dataclasses.replace(state, position=position, momentum=momentum, **changes)

    return _checked_state, apply_fn


def _checked_state(state: Any) -> Any:
    missing = [key for key in ("position", "momentum", "mass") if not hasattr(state, key)]
    if missing:
        raise ValueError(
            f"state: got {type(state).__name__} without {missing}, expected a state of "
            "jax_md.simulate, such as NVEState"
        )
    return state
