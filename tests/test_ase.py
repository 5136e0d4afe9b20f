"""Models as dynamics of ASE, against rollouts of the same model."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax import graph as graph_lib

ase = pytest.importorskip("ase")
pytest.importorskip("vesin")
pytest.importorskip("ase.optimize.optimize")
from ase import units  # noqa: E402
from ase.build import bulk  # noqa: E402
from ase.constraints import FixAtoms  # noqa: E402
from ase.io import read  # noqa: E402
from ase.md.velocitydistribution import force_temperature  # noqa: E402

from egno_jax.ase import WindowDynamics  # noqa: E402
from egno_jax.recipe import GraphRecipe  # noqa: E402
from egno_jax.recipe import graph_of as recipe_graph_of  # noqa: E402

TIMES = np.array([2.0, 4.0, 8.0], np.float32)


def copper():
    atoms = bulk("Cu", cubic=True).repeat(2)
    rng = np.random.default_rng(0)
    atoms.set_momenta(rng.normal(size=(32, 3)))
    return atoms


def graph_of(atoms):
    edges = graph_lib.radius_edges(atoms.positions, 3.0, atoms.cell, atoms.pbc)
    edges = graph_lib.with_features(edges, graph_lib.squared_distances(atoms.positions, edges))
    return graph_lib.from_atoms(atoms, edges)


@functools.cache
def model():
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, num_modes=2, time_embed_dim=4)
    return egno_jax.init(jax.random.key(0), config, graph_of(copper()), TIMES)


apply = jax.jit(egno_jax.apply)


def windows(count, thermostat=lambda atoms: None):
    """Returns positions of windows chained by hand, `[W P, N, 3]`, and the atoms at the end."""
    atoms, found = copper(), []
    for index in range(count):
        if index:
            thermostat(atoms)
        start = atoms.get_positions()
        path = np.asarray(apply(model(), graph_of(atoms), TIMES).positions, float)
        found.append(path)
        atoms.positions = path[-1]
        atoms.set_velocities((path[-1] - path[-2]) / (4 * units.fs))
        assert index or np.abs(path[-1] - start).max() > 1e-3
    return np.concatenate(found), atoms


def test_steps_are_the_predicted_times_and_observers_see_them(tmp_path):
    atoms, seen = copper(), []
    name = str(tmp_path / "copper.traj")
    dynamics = WindowDynamics(atoms, model(), TIMES, graph_of, trajectory=name)
    dynamics.attach(lambda: seen.append(dynamics.get_time() / units.fs), interval=3)
    assert dynamics.run(6)
    expected, end = windows(2)
    frames = read(name, index=":")
    assert len(frames) == 7  # the initial state, then each time
    found = np.stack([frame.positions for frame in frames[1:]])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(atoms.get_velocities(), end.get_velocities(), atol=1e-3)
    assert frames[0].pbc.all()
    np.testing.assert_allclose(seen, [0, 8, 16])
    assert dynamics.nsteps == 6
    dynamics.run(1)
    assert dynamics.get_time() / units.fs == pytest.approx(18)


def test_a_thermostat_acts_between_windows():
    calls = []

    def thermostat(atoms):
        force_temperature(atoms, 300)
        calls.append(atoms.get_temperature())

    atoms = copper()
    dynamics = WindowDynamics(atoms, model(), TIMES, graph_of, thermostat=thermostat)
    dynamics.run(6)
    assert calls == [pytest.approx(300)]
    expected, _ = windows(2, lambda atoms: force_temperature(atoms, 300))
    np.testing.assert_allclose(atoms.positions, expected[-1], atol=1e-4)


def test_supervised_velocities_are_those_of_the_model():
    atoms = copper()
    dynamics = WindowDynamics(atoms, model(), TIMES, graph_of, supervised_velocities=True)
    dynamics.run(1)
    expected = apply(model(), graph_of(copper()), TIMES).velocities[0]
    np.testing.assert_allclose(atoms.get_velocities() * units.fs, expected, rtol=1e-4, atol=1e-6)


def test_the_recipe_of_a_model_makes_its_graphs():
    atoms = copper()
    recipe = GraphRecipe(edges="radius", cutoff=3.0, is_periodic=True)
    graph = recipe_graph_of(recipe, egno_jax.predicting.as_state(recipe, atoms))
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, num_modes=2, time_embed_dim=4)
    params = egno_jax.init(jax.random.key(0), config, graph, TIMES)
    expected = apply(params, graph, TIMES).positions
    WindowDynamics(atoms, dataclasses.replace(params, recipe=recipe), TIMES).run(3)
    np.testing.assert_allclose(atoms.positions, expected[-1], atol=1e-4)
    with pytest.raises(ValueError, match="graph_of: got None with a model without a recipe"):
        WindowDynamics(copper(), params, TIMES)


def with_recipe(**fields):
    """Returns a model with a recipe whose unit of time is not that of its model."""
    recipe = GraphRecipe(
        edges="radius", cutoff=3.0, is_periodic=True, velocity_time=4.0, model_time=2.0, **fields
    )
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, num_modes=2, time_embed_dim=4)
    graph = recipe_graph_of(recipe, egno_jax.predicting.as_state(recipe, copper(), 1.0))
    params = egno_jax.init(jax.random.key(0), config, graph, TIMES)
    return dataclasses.replace(params, recipe=recipe)


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("unit", ["fs", "frame"])
def test_times_and_velocities_are_those_of_predict(unit, supervised):
    params = with_recipe(time_unit=unit, times=(4.0, 6.0))
    weight = 1.0 if supervised else 0.0
    params = dataclasses.replace(
        params, config=dataclasses.replace(params.config, velocity_weight=weight)
    )
    length = {"fs": 1.0, "frame": 5.0}[unit] * units.fs
    state = {"positions": copper().positions, "velocities": copper().get_velocities() * length}
    state |= {"numbers": copper().numbers, "cell": copper().cell.array}
    expected = egno_jax.predict(params, state, num_windows=2)
    for times in (None, [4, 6], [f"4{unit}", f"6{unit}"]):
        atoms, seen = copper(), []
        time_unit = None if unit == "fs" else length
        dynamics = WindowDynamics(atoms, params, times, time_unit=time_unit)
        dynamics.attach(lambda atoms=atoms, seen=seen: seen.append(atoms.positions.copy()))
        dynamics.run(4)
        np.testing.assert_allclose(seen[1:], expected.positions, atol=1e-4)
        assert dynamics.get_time() == pytest.approx(12 * length)
        if supervised:
            found = atoms.get_velocities() * length
            np.testing.assert_allclose(found, expected.velocities[-1], rtol=1e-4, atol=1e-5)


def test_units_that_the_recipe_has_are_refused(tmp_path):
    in_fs, in_frames = with_recipe(), with_recipe(time_unit="frame")
    with pytest.raises(ValueError, match=r"time_unit: got None .* counts frames, .*pass it"):
        WindowDynamics(copper(), in_frames, TIMES)
    for params, name in ((in_fs, "time_unit"), (in_fs, "velocity_unit")):
        with pytest.raises(ValueError, match=f"{name}: got 2.0 with the recipe .*leave it out"):
            WindowDynamics(copper(), params, TIMES, **{name: 2.0})
    with pytest.raises(ValueError, match=r"velocity_unit: got .* with the recipe"):
        WindowDynamics(copper(), in_frames, TIMES, time_unit=1.0, velocity_unit=2.0)
    with pytest.raises(ValueError, match=r"times: got \[\]"):
        WindowDynamics(copper(), in_fs, trajectory=tmp_path / "none.traj")
    assert not any(tmp_path.iterdir())
    with pytest.warns(UserWarning, match=r"times: got \[3 fs\], expected exactly \[4 fs\]"):
        WindowDynamics(copper(), with_recipe(times=(4.0,)), ["3fs"])


def test_what_is_suspicious_is_said():
    recipe = GraphRecipe(time_unit="frame", times=(1.0,))
    with pytest.warns(UserWarning, match="one frame is taken for 1 fs"):
        egno_jax.predicting.as_state(recipe, copper())
    atoms = copper()
    atoms.set_constraint(FixAtoms([0]))
    with pytest.warns(UserWarning, match="got constraints, which predictions do not keep"):
        WindowDynamics(atoms, model(), TIMES, graph_of)


def test_wrong_inputs_are_refused():
    for name in ("time_unit", "velocity_unit"):
        for unit in (0.0, -1.0, np.nan):
            with pytest.raises(ValueError, match=f"{name}: got .*expected a finite number above 0"):
                WindowDynamics(copper(), model(), TIMES, graph_of, **{name: unit})
    with pytest.raises(ValueError, match=r"times: got .*increasing"):
        WindowDynamics(copper(), model(), [1.0, 1.0], graph_of)
    with pytest.raises(ValueError, match="atoms: got no momenta"):
        WindowDynamics(bulk("Cu"), model(), TIMES, graph_of)
    other = WindowDynamics(copper(), model(), TIMES, lambda atoms: graph_of(atoms.repeat(2)))
    with pytest.raises(ValueError, match="graph_of: got 256 nodes, expected 32"):
        other.run(1)
    lost = WindowDynamics(copper(), model(), TIMES, graph_of)
    graph = graph_of(copper())
    far = graph._replace(nodes={**graph.nodes, "velocities": graph.nodes["velocities"] * np.nan})
    lost.graph_of = lambda atoms: far
    with pytest.raises(FloatingPointError, match="window 0: got positions that are not finite"):
        lost.run(1)
