"""Models as steps of JAX MD, between steps of its own simulations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import graph as graph_lib
from egno_jax import rolling
from egno_jax.jax_md import window

TIMES = np.array([1.0, 2.0, 4.0], np.float32)
CELL = 4.0
UNIT = {"velocity_unit": 0.5, "time_unit": 2.0}


def system():
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, CELL, (6, 3))
    edges = graph_lib.fully_connected_edges(6)
    edges = graph_lib.minimum_images(edges, positions, CELL * np.eye(3))
    edges = graph_lib.with_features(edges, graph_lib.squared_distances(positions, edges))
    velocities = 0.1 * rng.normal(size=(6, 3))
    speeds = np.linalg.norm(velocities, axis=1, keepdims=True)
    graph = graph_lib.build(positions, velocities, speeds, edges)
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, num_modes=2, time_embed_dim=4)
    return graph, egno_jax.init(jax.random.key(0), config, graph, TIMES)


def test_a_window_is_a_step_of_a_simulation():
    simulate = pytest.importorskip("jax_md.simulate")
    space = pytest.importorskip("jax_md.space")
    graph, params = system()
    displacement, shift = space.periodic(CELL, wrapped=False)
    del displacement

    def force(position, **_):
        return -0.1 * position

    init, step = simulate.nve(lambda position, **_: 0.05 * jnp.sum(position**2), shift, dt=0.01)
    state = init(jax.random.key(1), jnp.asarray(graph.nodes["positions"]), kT=0.1, mass=2.0)
    before = state

    def graph_of(state):
        velocities = state.momentum / state.mass / UNIT["velocity_unit"]
        return rolling.with_state(graph, state.position, velocities)

    options = {"force_fn": force, "shift_fn": shift, **UNIT}
    init_fn, apply_fn = window(params, TIMES, graph_of, **options)
    state = jax.jit(apply_fn)(init_fn(state))
    found = egno_jax.apply(params, graph_of(before), TIMES)
    assert type(state) is type(before)
    np.testing.assert_allclose(state.position, found.positions[-1], atol=1e-5)
    velocity = (found.positions[-1] - found.positions[-2]) / (2 * UNIT["time_unit"])
    np.testing.assert_allclose(state.momentum, state.mass * velocity, atol=1e-5)
    np.testing.assert_allclose(state.force, force(state.position), atol=1e-6)
    # The simulation continues from it, and the model from the simulation.
    state = jax.jit(lambda state: apply_fn(step(state)))(state)
    assert np.isfinite(state.position).all()
    supervised = window(params, TIMES, graph_of, supervised_velocities=True, **options)[1](before)
    expected = found.velocities[-1] * UNIT["velocity_unit"]
    np.testing.assert_allclose(supervised.momentum / before.mass, expected, atol=1e-5)


def test_wrong_inputs_are_refused():
    graph, params = system()
    with pytest.raises(ValueError, match=r"times: got .*increasing"):
        window(params, [2.0, 1.0], lambda state: graph)
    with pytest.raises(ValueError, match=r"state: got float without \['position'"):
        window(params, TIMES, lambda state: graph)[0](1.0)
    for name in ("time_unit", "velocity_unit"):
        for unit in (0.0, -1.0, np.nan, np.inf, None):
            with pytest.raises(ValueError, match=f"{name}: got {unit}, expected a finite"):
                window(params, TIMES, lambda state: graph, **{name: unit})
