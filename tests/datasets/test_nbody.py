from __future__ import annotations

import math
import os
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import datasets
from egno_jax.datasets import nbody

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "datasets" / "nbody_charged5.npz"
SPLITS = ("train", "valid", "test")

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 6)
interactions = st.sampled_from([nbody.COULOMB, nbody.SPRINGS])
few = settings(deadline=None, max_examples=15)


def random_system(seed, num_systems=3, num_particles=4, spread=2.0):
    """Particles near the points of a grid, so that none are close; couplings of both signs."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(2.0)] * 3, indexing="ij"), -1).reshape(8, 3)
    positions = spread * np.stack(
        [rng.permutation(grid)[:num_particles] for _ in range(num_systems)]
    )
    positions += 0.3 * rng.uniform(-1, 1, positions.shape)
    velocities = 0.3 * rng.normal(size=positions.shape)
    charges = rng.choice([-1.0, 1.0], size=positions.shape[:2])
    return positions, velocities, nbody.charge_products(charges)


def rotation(rng):
    """A random orthogonal matrix, of determinant 1 or -1."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


# The simulator


@few
@given(seed=seeds, num_particles=sizes, interaction=interactions)
def test_forces_are_minus_the_gradient_of_the_energy(seed, num_particles, interaction):
    positions, velocities, couplings = random_system(seed, num_particles=num_particles)
    found = nbody.forces(positions, couplings, interaction=interaction)
    step = 1e-5
    for particle in range(num_particles):
        for axis in range(3):
            ahead, behind = positions.copy(), positions.copy()
            ahead[:, particle, axis] += step
            behind[:, particle, axis] -= step
            energies = [
                nbody.energy(x, velocities, couplings, interaction=interaction)
                for x in (ahead, behind)
            ]
            slope = (energies[0] - energies[1]) / (2 * step)
            np.testing.assert_allclose(found[:, particle, axis], -slope, atol=1e-7)


@few
@given(seed=seeds, num_particles=sizes, interaction=interactions)
def test_one_step_is_symplectic_euler(seed, num_particles, interaction):
    x, v, couplings = random_system(seed, num_particles=num_particles)
    dt = 0.01
    found = nbody.simulate(
        x, v, couplings, interaction=interaction, num_frames=1, frame_spacing=1, dt=dt
    )
    differences = x[:, :, None] - x[:, None, :]
    squares = (differences**2).sum(-1) + np.eye(num_particles)
    law = couplings / squares**1.5 if interaction is nbody.COULOMB else -couplings
    v = v + dt * (law[..., None] * differences).sum(2)
    np.testing.assert_allclose(found.velocities[:, 0], v, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.positions[:, 0], x + dt * v, rtol=1e-12, atol=1e-13)


@few
@given(seed=seeds, num_particles=sizes, interaction=interactions)
def test_momentum_is_conserved(seed, num_particles, interaction):
    x, v, couplings = random_system(seed, num_particles=num_particles)
    found = nbody.simulate(x, v, couplings, interaction=interaction, num_frames=3, frame_spacing=50)
    # Momentum that stands still though every particle's velocity changes.
    assert np.abs(found.velocities[:, -1] - v).max() > 1e-4
    expected = np.broadcast_to(nbody.momentum(v)[:, None], (*found.velocities.shape[:2], 3))
    np.testing.assert_allclose(nbody.momentum(found.velocities), expected, atol=1e-12)


@pytest.mark.parametrize("interaction", [nbody.COULOMB, nbody.SPRINGS])
def test_the_drift_of_the_energy_falls_with_the_step(interaction):
    x, v, couplings = random_system(7, num_systems=8)
    if interaction is nbody.SPRINGS:
        couplings = np.abs(couplings)
    before = nbody.energy(x, v, couplings, interaction=interaction)
    drifts = []
    for num_steps in (50, 100, 200):
        found = nbody.simulate(
            x,
            v,
            couplings,
            interaction=interaction,
            num_frames=1,
            frame_spacing=num_steps,
            dt=1.0 / num_steps,
        )
        after = nbody.energy(
            found.positions[:, 0], found.velocities[:, 0], couplings, interaction=interaction
        )
        drifts.append(np.abs(after - before).mean())
    # A method of first order: half the step, half the drift.
    np.testing.assert_allclose(np.divide(drifts[:2], drifts[1:]), 2.0, rtol=0.15)
    assert drifts[-1] < 0.01 * np.abs(before).mean()


@few
@given(seed=seeds, stiffness=st.floats(0.1, 4.0))
def test_two_springs_follow_the_analytic_oscillator(seed, stiffness):
    rng = np.random.default_rng(seed)
    x, v = rng.normal(size=(2, 1, 2, 3))
    dt, num_frames, spacing = 1e-3, 5, 100
    couplings = stiffness * np.ones((1, 2, 2))
    found = nbody.simulate(
        x,
        v,
        couplings,
        interaction=nbody.SPRINGS,
        num_frames=num_frames,
        frame_spacing=spacing,
        dt=dt,
    )
    # x_1 - x_2 oscillates with the reduced mass 1/2, the centre moves uniformly.
    time = dt * spacing * np.arange(1, num_frames + 1)[:, None]
    frequency = math.sqrt(2 * stiffness)
    apart, moving_apart = x[0, 0] - x[0, 1], v[0, 0] - v[0, 1]
    difference = apart * np.cos(frequency * time) + moving_apart / frequency * np.sin(
        frequency * time
    )
    centre = x[0].mean(0) + time * v[0].mean(0)
    expected = np.stack([centre + difference / 2, centre - difference / 2], axis=1)
    np.testing.assert_allclose(found.positions[0], expected, atol=20 * dt)


def test_two_charges_conserve_the_sum_of_the_analytic_energy():
    x = np.array([[[0.5, 0, 0], [-0.5, 0, 0]]])
    found = nbody.simulate(
        x, np.zeros_like(x), np.ones((1, 2, 2)), num_frames=1, frame_spacing=2000
    )
    # Two charges released from rest at distance 1: v^2 = 1 - 1/r for each.
    r = np.linalg.norm(found.positions[0, 0, 0] - found.positions[0, 0, 1])
    assert r > 2
    np.testing.assert_allclose((found.velocities[0, 0] ** 2).sum(-1), 1 - 1 / r, rtol=3e-3)
    np.testing.assert_array_less(0, found.velocities[0, 0, 0, 0])


@few
@given(seed=seeds, num_particles=sizes, interaction=interactions)
def test_simulations_turn_reflect_and_move_with_their_start(seed, num_particles, interaction):
    x, v, couplings = random_system(seed, num_particles=num_particles)
    rng = np.random.default_rng(seed)
    turn, shift = rotation(rng), rng.normal(size=3)
    order = rng.permutation(num_particles)

    def run(x, v, couplings):
        return nbody.simulate(
            x, v, couplings, interaction=interaction, num_frames=2, frame_spacing=50, dt=0.005
        )

    plain = run(x, v, couplings)
    turned = run(x @ turn + shift, v @ turn, couplings)
    np.testing.assert_allclose(turned.positions, plain.positions @ turn + shift, atol=1e-8)
    np.testing.assert_allclose(turned.velocities, plain.velocities @ turn, atol=1e-8)
    permuted = run(x[:, order], v[:, order], couplings[:, order][:, :, order])
    np.testing.assert_allclose(permuted.positions, plain.positions[:, :, order], atol=1e-8)


@few
@given(seed=seeds, num_particles=sizes, interaction=interactions)
def test_time_reversed_frames_are_found_by_simulating_back(seed, num_particles, interaction):
    x, v, couplings = random_system(seed, num_particles=num_particles)
    law = {"interaction": interaction, "dt": 0.005}
    forward = nbody.simulate(x, v, couplings, num_frames=4, frame_spacing=25, **law)
    backward = nbody.reverse_time(forward, **law)
    found = nbody.simulate(
        backward.positions[:, 0],
        backward.velocities[:, 0],
        couplings,
        num_frames=3,
        frame_spacing=25,
        **law,
    )
    np.testing.assert_allclose(found.positions, backward.positions[:, 1:], atol=1e-8)
    np.testing.assert_allclose(found.velocities, backward.velocities[:, 1:], atol=1e-8)
    np.testing.assert_array_equal(backward.positions[:, ::-1], forward.positions)


@pytest.mark.parametrize("interaction", [nbody.COULOMB, nbody.SPRINGS])
def test_a_particle_alone_moves_along_a_line(interaction):
    x, v, couplings = random_system(0, num_particles=1)
    assert not nbody.forces(x, couplings, interaction=interaction).any()
    options = {"interaction": interaction, "num_frames": 3, "frame_spacing": 2, "dt": 0.01}
    found = nbody.simulate(x, v, couplings, **options)
    for frame in range(3):
        np.testing.assert_allclose(found.positions[:, frame], x + 0.02 * (frame + 1) * v)
        np.testing.assert_array_equal(found.velocities[:, frame], v)
    energies = nbody.energy(x, v, couplings, interaction=interaction)
    np.testing.assert_allclose(energies, (v**2).sum((1, 2)) / 2)


def test_systems_do_not_depend_on_their_company(monkeypatch):
    x, v, couplings = random_system(3, num_systems=7)
    together = nbody.simulate(x, v, couplings, num_frames=2, frame_spacing=40)
    monkeypatch.setattr(nbody.simulation, "_CHUNK", 3)
    chunked = nbody.simulate(x, v, couplings, num_frames=2, frame_spacing=40)
    alone = nbody.simulate(x[4:5], v[4:5], couplings[4:5], num_frames=2, frame_spacing=40)
    for a, b, c in zip(together, chunked, alone, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[4:5], c)


def test_frames_do_not_depend_on_how_many_are_kept():
    x, v, couplings = random_system(4)
    sparse = nbody.simulate(x, v, couplings, num_frames=2, frame_spacing=30)
    dense = nbody.simulate(x, v, couplings, num_frames=6, frame_spacing=10)
    np.testing.assert_array_equal(sparse.positions, dense.positions[:, 2::3])
    np.testing.assert_array_equal(sparse.velocities, dense.velocities[:, 2::3])


def test_forces_are_clipped_in_each_component():
    x = np.array([[[0.0, 0, 0], [0.03, 0.04, 0]]])
    plain = nbody.forces(x, -np.ones((1, 2, 2)), max_force=math.inf)
    np.testing.assert_allclose(plain[0, 0], [240, 320, 0])
    clipped = nbody.forces(x, -np.ones((1, 2, 2)), max_force=250)
    np.testing.assert_allclose(clipped[0], [[240, 250, 0], [-240, -250, 0]])
    found = nbody.simulate(
        x, 0 * x, -np.ones((1, 2, 2)), num_frames=1, frame_spacing=1, max_force=250
    )
    np.testing.assert_allclose(found.velocities[0, 0], nbody.DT * clipped[0])


def test_simulate_leaves_its_arguments_alone():
    state = random_system(5)
    copies = [array.copy() for array in state]
    nbody.simulate(*state, num_frames=1, frame_spacing=5)
    for array, copy in zip(state, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# The canonical data set


def assert_canonical(found, expected, *, num_close):
    """The criterion for another implementation: rounding alone, amplified by close encounters."""
    errors = np.stack([np.abs(a - b) for a, b in zip(found, expected, strict=True)])
    assert errors[:, :, :6].max() <= 1e-12
    worst = errors.max((0, 2, 3, 4))
    assert (worst <= 1e-8).sum() >= num_close
    assert worst.max() <= 1e-3


@pytest.mark.parametrize("split", SPLITS)
def test_canonical_numbers(split):
    with np.load(FIXTURE) as fixture:
        expected = {k.removeprefix(f"{split}_"): v for k, v in fixture.items() if split in k}
    states = nbody.canonical_states(split, num_simulations=2)
    np.testing.assert_array_equal(states.positions, expected["initial_positions"])
    np.testing.assert_array_equal(states.velocities, expected["initial_velocities"])
    np.testing.assert_array_equal(states.charges, expected["charges"])
    found = nbody.canonical(split, num_simulations=2)
    assert_canonical(found[:2], (expected["positions"], expected["velocities"]), num_close=1)
    np.testing.assert_array_equal(found.couplings, nbody.charge_products(states.charges))


@pytest.mark.skipif("EGNO_DATA_DIR" not in os.environ, reason="EGNO_DATA_DIR is not set")
def test_numbers_of_the_original_code():
    with np.load(pathlib.Path(os.environ["EGNO_DATA_DIR"]) / "nbody_check.npz") as file:
        check = dict(file)
    found, expected = [], []
    for split in SPLITS:
        states = nbody.canonical_states(split, num_simulations=8)
        np.testing.assert_array_equal(states.charges, check[f"{split}_charges"][..., 0])
        found.append(nbody.canonical(split, num_simulations=8)[:2])
        expected.append([check[f"{split}_{key}"].swapaxes(2, 3) for key in ("loc", "vel")])
    join = [[np.concatenate(field) for field in zip(*x, strict=True)] for x in (found, expected)]
    assert_canonical(*join, num_close=20)


def test_canonical_states_are_one_stream():
    few = nbody.canonical_states("valid", num_simulations=1)
    more = nbody.canonical_states("valid", num_simulations=5)
    for a, b in zip(few, more, strict=True):
        np.testing.assert_array_equal(a, b[:1])
    train = nbody.canonical_states("train", num_simulations=10000)
    assert np.abs(train.positions - few.positions).max((1, 2)).min() > 0
    assert set(np.unique(more.charges)) == {-1.0, 1.0}
    np.testing.assert_allclose(np.linalg.norm(more.velocities, axis=-1), 0.5, rtol=1e-14)


def test_more_simulations_begin_with_the_fewer():
    few = nbody.canonical("train", num_simulations=2)
    more = nbody.canonical("train", num_simulations=5)
    for a, b in zip(few, more, strict=True):
        np.testing.assert_array_equal(a, b[:2])


def test_load_cuts_the_canonical_simulations(tmp_path):
    found = nbody.load("train", num_samples=3, cache_dir=tmp_path)
    expected = nbody.samples(nbody.canonical("train", num_simulations=3))
    assert datasets.num_samples(found) == 3
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.graph.edges["features"], expected.graph.edges["features"])


def test_load_reads_what_it_kept(tmp_path, monkeypatch):
    first = nbody.load_trajectories("train", num_simulations=2, cache_dir=tmp_path)
    monkeypatch.setattr(nbody.charged5, "canonical", None)
    again = nbody.load_trajectories("train", num_simulations=2, cache_dir=tmp_path)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_load_does_not_trust_another_simulator(tmp_path, monkeypatch):
    old = nbody.load_trajectories("train", num_simulations=2, cache_dir=tmp_path)
    monkeypatch.setattr(nbody.charged5, "_SIMULATOR_VERSION", 0)
    monkeypatch.setattr(
        nbody.charged5,
        "canonical",
        lambda *_, **__: old._replace(positions=old.positions + 1),
    )
    with pytest.warns(UserWarning, match="simulator_version=1, expected 0"):
        new = nbody.load_trajectories("train", num_simulations=2, cache_dir=tmp_path)
    np.testing.assert_array_equal(new.positions, old.positions + 1)


def test_published_sizes():
    assert nbody.PUBLISHED_SIZES == {"train": 3000, "valid": 2000, "test": 2000}
    assert nbody.SPLIT_SIZES == {"train": 10000, "valid": 2000, "test": 2000}


# Samples


def random_trajectories(seed, num_systems=3, num_frames=6, num_particles=4):
    rng = np.random.default_rng(seed)
    positions, velocities = rng.normal(size=(2, num_systems, num_frames, num_particles, 3))
    couplings = rng.normal(size=(num_systems, num_particles, num_particles))
    return nbody.Trajectories(positions, velocities, couplings + couplings.swapaxes(1, 2))


@few
@given(seed=seeds, num_particles=sizes, frames=st.sets(st.integers(0, 5), min_size=2))
def test_samples_hold_the_state_and_the_targets(seed, num_particles, frames):
    trajectories = random_trajectories(seed, num_particles=num_particles)
    start, *targets = sorted(frames)
    found = nbody.samples(trajectories, start=start, target_frames=targets, dtype=np.float64)
    x, v = (field[:, start] for field in trajectories[:2])
    nodes = found.graph.nodes
    np.testing.assert_array_equal(nodes["positions"], x)
    np.testing.assert_array_equal(nodes["velocities"], v)
    np.testing.assert_allclose(nodes["features"], np.linalg.norm(v, axis=-1)[..., None])
    np.testing.assert_array_equal(found.positions, trajectories.positions[:, targets])
    np.testing.assert_array_equal(found.velocities, trajectories.velocities[:, targets])
    np.testing.assert_array_equal(found.times, np.array(targets) - start)
    assert found.node_mask.shape == (3, num_particles) and found.node_mask.all()

    expected = [(i, j) for i in range(num_particles) for j in range(num_particles) if i != j]
    for s in range(3):
        graph = found.graph
        pairs = list(zip(graph.receivers[s].tolist(), graph.senders[s].tolist(), strict=True))
        assert pairs == expected
        for (i, j), (coupling, square) in zip(pairs, graph.edges["features"][s], strict=True):
            assert coupling == trajectories.couplings[s, i, j]
            np.testing.assert_allclose(square, ((x[s, i] - x[s, j]) ** 2).sum())
    np.testing.assert_array_equal(found.graph.n_node, np.full((3, 1), num_particles))
    np.testing.assert_array_equal(found.graph.n_edge, np.full((3, 1), len(expected)))


def test_samples_are_single_precision_and_int32_by_default():
    found = nbody.samples(random_trajectories(0, num_frames=41))
    assert found.times.tolist() == [2, 4, 6, 8, 10]
    assert {leaf.dtype for leaf in (*found.graph.nodes.values(), *found[1:4])} == {
        np.dtype(np.float32)
    }
    assert found.graph.edges["features"].dtype == np.float32
    integers = (found.graph.senders, found.graph.receivers, found.graph.n_node, found.graph.n_edge)
    assert {leaf.dtype for leaf in integers} == {np.dtype(np.int32)}


def test_reversed_samples_use_the_window_alone():
    trajectories = nbody.canonical("train", num_simulations=3)
    forward = nbody.samples(trajectories, dtype=np.float64)
    backward = nbody.reversed_samples(trajectories, dtype=np.float64)
    np.testing.assert_array_equal(backward.times, forward.times)
    x = backward.graph.nodes["positions"]
    np.testing.assert_array_equal(x, trajectories.positions[:, 40])
    np.testing.assert_array_equal(
        backward.positions, trajectories.positions[:, [38, 36, 34, 32, 30]]
    )
    # The discrete velocities of both directions differ by one step of the force.
    np.testing.assert_allclose(
        backward.velocities, -trajectories.velocities[:, [38, 36, 34, 32, 30]], atol=0.1
    )
    again = nbody.simulate(
        x,
        backward.graph.nodes["velocities"],
        trajectories.couplings,
        num_frames=5,
        frame_spacing=200,
    )
    np.testing.assert_allclose(again.positions, backward.positions, atol=1e-7)
    np.testing.assert_allclose(again.velocities, backward.velocities, atol=1e-6)
    window = trajectories._replace(
        positions=np.full_like(trajectories.positions, np.nan),
        velocities=np.full_like(trajectories.velocities, np.nan),
    )
    for field in (0, 1):
        window[field][:, 30:41] = trajectories[field][:, 30:41]
    np.testing.assert_array_equal(
        nbody.reversed_samples(window, dtype=np.float64).positions, backward.positions
    )
    assert datasets.num_samples(datasets.concatenate(forward, backward)) == 6


@pytest.mark.parametrize("cut", [nbody.samples, nbody.reversed_samples])
def test_scaled_samples_are_those_of_a_scaled_simulation(cut):
    """A simulation of scaled states, in steps as much longer, passes through scaled frames."""
    trajectories = nbody.canonical("train", num_simulations=3)
    factors = np.array([0.5, 1.0, 1.7])
    frames = (33, 35, 37, 39, 41)  # the first frame of a simulation is one after its initial state
    plain = cut(trajectories, start=31, target_frames=frames, dtype=np.float64)
    found = nbody.scaled_samples(plain, factors)
    datasets.validate(found)
    np.testing.assert_allclose(found.times, plain.times * factors[:, None] ** 1.5, rtol=1e-14)
    for index, factor in enumerate(factors):
        again = nbody.simulate(
            factor * trajectories.positions[[index], 30],
            factor**-0.5 * trajectories.velocities[[index], 30],
            trajectories.couplings[[index]],
            num_frames=11,
            dt=factor**1.5 * nbody.DT,
            max_force=nbody.MAX_FORCE / factor**2,
        )
        again = cut(
            again,
            start=0,
            target_frames=[2, 4, 6, 8, 10],
            dtype=np.float64,
            **({"dt": factor**1.5 * nbody.DT} if cut is nbody.reversed_samples else {}),
        )
        expected = jax.tree.map(lambda leaf: leaf[0], again._replace(times=found.times[[index]]))
        one = jax.tree.map(lambda leaf, index=index: leaf[index], found)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), one, expected
        )


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1.0, 2.0], r"factors: got .* \[2\], expected .*S = 3"),
        ([1.0, 0.0, 2.0], r"factors: got 0\.0, expected finite numbers above 0"),
        ([1.0, np.nan, 2.0], r"factors: got nan, expected"),
    ],
)
def test_factors_that_make_no_sense(factors, message):
    samples = nbody.samples(nbody.canonical("train", num_simulations=3))
    with pytest.raises(ValueError, match=message):
        nbody.scaled_samples(samples, factors)


def test_reversed_samples_of_uneven_frames_have_their_own_times():
    found = nbody.reversed_samples(random_trajectories(1), start=0, target_frames=[1, 5])
    assert found.times.tolist() == [4, 5]


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((3, 4))}, r"positions.* \[3, 4\].* \[S, N, 3\]"),
        (
            {"velocities": np.zeros((3, 4, 2))},
            r"velocities.* \[3, 4, 2\]",
        ),
        ({"couplings": np.zeros((3, 4))}, r"couplings.* \[3, 4\]"),
        ({"couplings": np.arange(48.0).reshape(3, 4, 4)}, "couplings: got an asymmetric"),
        ({"velocities": np.full((3, 4, 3), np.nan)}, r"velocities\[0, 0, 0\]: got nan"),
        ({"positions": np.zeros((3, 4, 3))}, "overflows"),
        ({"dt": 0.0}, r"dt, max_force: got 0\.0"),
        ({"max_force": -1.0}, r"max_force: got .* -1\.0"),
        ({"num_frames": 0}, "num_frames: got 0"),
        ({"frame_spacing": 1.5}, r"frame_spacing: got 1\.5"),
    ],
)
def test_simulate_refuses(change, message):
    names = ("positions", "velocities", "couplings")
    arguments = dict(zip(names, random_system(0), strict=True), num_frames=1, frame_spacing=2)
    with pytest.raises(ValueError, match=message):
        nbody.simulate(**{**arguments, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 4, "target_frames": [3, 5]}, "increase from start"),
        ({"start": 0, "target_frames": [2, 2]}, "increase from start"),
        ({"start": 0, "target_frames": [6]}, "from 0 to 5"),
        ({"start": -1, "target_frames": [2]}, "from 0 to 5"),
        ({"start": 0, "target_frames": []}, "expected integers .*at least one target"),
        ({"start": 0, "target_frames": [1.5]}, "expected integers .*at least one target"),
        ({"start": 0, "target_frames": [1], "dtype": np.int32}, "dtype: got int32"),
    ],
)
def test_samples_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        nbody.samples(random_trajectories(0), **arguments)


def test_samples_refuse_the_layout_of_the_original_files():
    trajectories = random_trajectories(0, num_particles=5)
    swapped = trajectories._replace(positions=trajectories.positions.swapaxes(2, 3))
    with pytest.raises(ValueError, match=r"\[3, 6, 3, 5\].* \[S, T, N, 3\]"):
        nbody.samples(swapped)
    with pytest.raises(ValueError, match=r"trajectories.couplings.* \[1, 5, 5\]"):
        nbody.samples(trajectories._replace(couplings=trajectories.couplings[:1]))


@pytest.mark.parametrize(
    ("split", "size", "message"),
    [
        ("val", 3, "split: got 'val', expected one of"),
        (
            "valid",
            2001,
            "number of valid simulations: got 2001, expected an integer from 1 to 2000",
        ),
        ("train", 0, "got 0, expected an integer"),
        ("train", 2.5, r"got 2\.5, expected an integer"),
    ],
)
def test_load_refuses(tmp_path, split, size, message):
    with pytest.raises(ValueError, match=message):
        nbody.load(split, num_samples=size, cache_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_orbits_are_constants_of_two_charges_alone():
    """Energy and angular momentum stay, and nothing changes in a frame that moves and turns."""
    couplings = np.broadcast_to([[0.0, -1.0], [-1.0, 0.0]], (8, 2, 2))
    rng = np.random.default_rng(0)
    positions = np.stack([np.zeros((8, 3)), rng.normal(size=(8, 3)) + 2], axis=1)
    velocities = 0.3 * rng.normal(size=(8, 2, 3))
    found = nbody.simulate(positions, velocities, couplings, num_frames=10, frame_spacing=100)

    def orbits(frame, turn=1.0, drift=0.0):
        x, v, c = found
        moved = nbody.Trajectories(
            np.dot(x[:, frame:], turn) + 5, np.dot(v[:, frame:], turn) + drift, c
        )
        start = nbody.samples(moved, start=0, target_frames=[1], dtype=np.float64)
        features = nbody.with_orbits(start).graph.edges["features"]
        assert features.shape == (8, 2, 5)
        return features[..., 2:]

    np.testing.assert_allclose(orbits(8)[..., 1:], orbits(0)[..., 1:], rtol=0.02, atol=0.005)
    assert np.abs(orbits(8) - orbits(0))[..., 0].max() > 0.1
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    np.testing.assert_allclose(orbits(0, turn, drift=[1.0, 2.0, 3.0]), orbits(0), atol=1e-9)


def test_orbits_come_last():
    once = nbody.with_orbits(nbody.samples(nbody.canonical("test", num_simulations=2)))
    for change in (nbody.with_orbits, lambda each: nbody.scaled_samples(each, np.ones(2))):
        with pytest.raises(ValueError, match="got 5 columns, expected the two"):
            change(once)
