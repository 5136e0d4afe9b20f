"""Periodic cells: edges to images, and models that do not depend on which image is given."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import graph as graph_lib
from egno_jax import ops, rolling, testing
from egno_jax.baselines import BaselineConfig
from egno_jax.datasets import base, cutting
from tests import helpers

pytest.importorskip("vesin")

TIMES = np.array([1.0, 2.0, 3.0], np.float32)
SMALL = {"num_layers": 1, "hidden_dim": 16, "num_modes": 2, "time_embed_dim": 8}
CONFIG = egno_jax.EGNOConfig(**SMALL, mean_field=True, mean_field_channels=1)
CUTOFF = 3.1
# A skewed cell, narrower than two cutoffs.
SKEWED = np.array([[4.0, 0.0, 0.0], [1.9, 3.6, 0.0], [-1.2, 1.4, 4.2]])


def copper(repeats=2):
    """Returns positions, velocities `[N, 3]` and the cell of a warm crystal, 4 atoms a cube."""
    rng, lattice = np.random.default_rng(0), 3.61
    corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    cells = np.stack(np.meshgrid(*[range(repeats)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    positions = lattice * (cells + corners).reshape(-1, 3)
    positions += 0.05 * rng.normal(size=positions.shape)
    return positions, 0.02 * rng.normal(size=positions.shape), lattice * repeats * np.eye(3)


def crystal(positions, velocities, cell, cutoff=CUTOFF, **options):
    """Returns the graph of a crystal: speeds, and squared distances."""
    edges = graph_lib.radius_edges(positions, cutoff, cell, **options)
    edges = graph_lib.with_features(edges, graph_lib.squared_distances(positions, edges))
    speeds = np.linalg.norm(velocities, axis=1, keepdims=True)
    return graph_lib.build(positions, velocities, speeds, edges)


def vectors_of(edges, positions):
    """Returns r_ij of each edge, with its ends, in an order that only they determine."""
    vectors = positions[edges.receivers] - positions[edges.senders]
    vectors = vectors if edges.shifts is None else vectors + edges.shifts
    rows = np.column_stack([edges.receivers, edges.senders, np.round(vectors, 9) + 0.0])
    return rows[np.lexsort(rows.T[::-1])]


def images_by_hand(positions, cutoff, cell, pbc=(True, True, True)):
    """Returns the same, from loops over images."""
    ranges = [range(-8, 9) if periodic else range(1) for periodic in pbc]
    shifts = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3) @ cell
    vectors = positions[:, None, None] - positions[None, :, None] + shifts
    squares = np.sum(vectors**2, axis=-1)
    i, j, s = np.nonzero((squares < cutoff**2) & (squares > 1e-12))
    rows = np.column_stack([i, j, np.round(vectors[i, j, s], 9) + 0.0])
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize("pbc", [True, (True, False, True), (False, False, True)], ids=str)
def test_every_image_within_the_cutoff_is_an_edge(pbc):
    rng = np.random.default_rng(1)
    positions = rng.uniform(-4, 4, (7, 3))
    edges = graph_lib.radius_edges(positions, 4.7, SKEWED, pbc)
    expected = images_by_hand(positions, 4.7, SKEWED, np.broadcast_to(pbc, 3))
    np.testing.assert_allclose(vectors_of(edges, positions), expected, atol=1e-8)
    assert (edges.receivers == edges.senders).any()  # a node is a neighbour of its own images


def test_a_crystal_has_all_bonds():
    positions, _, cell = copper()
    assert len(graph_lib.radius_edges(positions, CUTOFF).senders) == 216
    assert len(graph_lib.radius_edges(positions, CUTOFF, cell).senders) == 384
    assert graph_lib.radius_edges(positions, CUTOFF, cell, pbc=False).shifts is None


@pytest.mark.parametrize("distance", [1e3, 1e7, 1e12])
@pytest.mark.parametrize("is_slab", [False, True])
def test_nodes_may_be_far_apart(distance, is_slab):
    """As after a rollout that diverged; each of five pairs is near itself alone."""
    places = distance * np.arange(5.0)[:, None] * np.array([float(not is_slab), 1, 1])
    positions = np.concatenate([places, places + 0.25 * np.eye(3)[0]])
    cell = {"cell": np.diag([10.0, 1.0, 1.0]), "pbc": (True, False, False)} if is_slab else {}
    edges = graph_lib.radius_edges(positions, 1.0, **cell)
    pairs = np.arange(10).reshape(2, 5)
    expected = np.stack([pairs.ravel(), pairs[::-1].ravel()])
    np.testing.assert_array_equal([edges.receivers, edges.senders], expected)


@pytest.mark.parametrize("shear", [0, 5])
def test_minimum_images_are_the_nearest_ones(shear):
    """Also where lattice vectors are far longer than the same lattice needs."""
    cell = SKEWED + shear * np.outer([0.0, 1.0, 0.0], SKEWED[0])
    positions = np.random.default_rng(2).uniform(-4, 4, (6, 3))
    edges = graph_lib.fully_connected_edges(6)
    edges = graph_lib.minimum_images(edges, positions, cell)
    found = graph_lib.squared_distances(positions, edges)[:, 0]
    rows = images_by_hand(positions, 9.0, SKEWED)
    for index, (i, j) in enumerate(zip(edges.receivers, edges.senders, strict=True)):
        near = rows[(rows[:, 0] == i) & (rows[:, 1] == j), 2:]
        assert found[index] == pytest.approx((near**2).sum(-1).min(), abs=1e-5)


def test_cells_are_read_as_ase_and_mdanalysis_do():
    ase_cell = pytest.importorskip("ase.cell")
    mdamath = pytest.importorskip("MDAnalysis.lib.mdamath")
    sizes = np.array([7.0, 8.0, 9.0, 80.0, 75.0, 110.0], np.float32)
    expected = ase_cell.Cell.fromcellpar(sizes)
    np.testing.assert_allclose(graph_lib.cell_matrix(expected), expected)
    for known in (expected, mdamath.triclinic_vectors(sizes)):
        np.testing.assert_allclose(graph_lib.cell_matrix(sizes), known, atol=1e-5)
    np.testing.assert_array_equal(graph_lib.cell_matrix([1, 2, 3]), np.diag([1.0, 2, 3]))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: graph_lib.cell_matrix(np.ones((2, 3))), r"^cell: got .*\[3, 3\]"),
        (lambda x: graph_lib.radius_edges(x, 1.0, np.ones((3, 3))), r"^cell: got .*independent"),
        (lambda x: graph_lib.radius_edges(x, 1.0, np.full((3, 3), np.nan)), r"^cell: .*finite"),
    ],
)
def test_wrong_cells_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.zeros((2, 3)))


def test_wrong_shifts_are_refused():
    graph = crystal(*copper(1))
    for bad in (graph.edges["shifts"][:, :2], graph.edges["shifts"][:-1]):
        with pytest.raises(ValueError, match=r"graph.edges\['shifts'\]: got .*\[\d+, "):
            graph_lib.check_structure(graph._replace(edges={**graph.edges, "shifts": bad}))
    nan = graph.edges["shifts"] * np.nan
    with pytest.raises(ValueError, match=r"graph.edges\['shifts'\]"):
        graph_lib.validate(graph._replace(edges={**graph.edges, "shifts": nan}))


def test_periodic_atoms_need_shifts():
    ase = pytest.importorskip("ase")
    positions, velocities, cell = copper()
    atoms = ase.Atoms("Cu32", positions, cell=cell, pbc=True, momenta=velocities)
    with pytest.raises(ValueError, match=r"^edges.shifts: got None, .*radius_edges"):
        graph_lib.from_atoms(atoms, graph_lib.radius_edges(positions, CUTOFF))
    edges = graph_lib.radius_edges(atoms.positions, CUTOFF, atoms.cell, atoms.pbc)
    graph = graph_lib.from_atoms(atoms, edges)
    assert graph.edges["features"].shape == (384, 0)
    assert graph.edges["shifts"].shape == (384, 3)


@functools.cache
def model(dtype="float32", num_layers=1):
    config = dataclasses.replace(CONFIG, param_dtype=dtype, num_layers=num_layers)
    return helpers.random_params(np.random.default_rng(3), config, 1, 1)


def test_lattice_vectors_move_atoms_and_nothing_else():
    positions, velocities, cell = copper()
    plain = helpers.apply(model(num_layers=3), crystal(positions, velocities, cell), TIMES)
    moves = np.random.default_rng(4).integers(-2, 3, positions.shape) @ cell
    moved = helpers.apply(model(num_layers=3), crystal(positions + moves, velocities, cell), TIMES)
    # Displacements themselves agree, not only the positions, which are much larger.
    found, expected = moved.positions - (positions + moves), plain.positions - positions
    assert np.abs(expected).max() > 0.01
    assert np.abs(found - expected).max() < 1e-5
    helpers.assert_close(moved.velocities, plain.velocities, 1e-5)
    helpers.assert_close(moved.features, plain.features, 1e-5)


def test_a_supercell_moves_as_its_cell():
    positions, velocities, cell = copper(1)
    cells = np.stack(np.meshgrid(*[range(2)] * 3, indexing="ij"), -1).reshape(-1, 1, 3) @ cell
    plain = helpers.apply(model(num_layers=3), crystal(positions, velocities, cell), TIMES)
    repeated = (cells + positions).reshape(-1, 3)
    graph = crystal(repeated, np.tile(velocities, (8, 1)), 2 * cell)
    found = helpers.apply(model(num_layers=3), graph, TIMES)
    expected = np.tile(plain.positions - positions, (1, 8, 1))
    assert np.abs(found.positions - repeated - expected).max() < 1e-5
    helpers.assert_close(found.features, np.tile(plain.features, (1, 8, 1)), 1e-5)


@pytest.mark.parametrize(
    "config",
    [BaselineConfig(**SMALL, method=method) for method in ("linear", "mpnn", "egnn", "egnn-r")],
    ids=lambda config: config.method,
)
def test_baselines_do_not_depend_on_the_image(config):
    testing.check_images(config)


def test_the_test_kit_checks_periodic_models():
    graph = testing.random_graph(np.random.default_rng(5), with_shifts=True)
    found = testing.check_all(CONFIG, graph=graph)
    assert found["check_images"] < 1e-4


def test_the_kit_finds_layers_that_ignore_shifts():
    def layer(config, name):
        del config
        return _Ignores(name=name)

    assert testing.check_images("egnn") < 1e-4
    with pytest.raises(AssertionError, match="in other images"):
        testing.check_images(layer)


class _Ignores(egno_jax.nn.EGNNLayer):
    features: int = 16

    def __call__(self, state, graph):
        parts = (*state[:3], graph.edges["features"], graph.senders, graph.receivers)
        return egno_jax.nn.State(*super().__call__(*parts), state.extra)


def complete(rng, num_nodes=5):
    """Returns all pairs in a cell, each with its nearest image: what blocks can hold."""
    positions, velocities = rng.uniform(0, 5, (num_nodes, 3)), rng.normal(size=(num_nodes, 3))
    edges = graph_lib.fully_connected_edges(num_nodes)
    edges = graph_lib.minimum_images(edges, positions, 5 * np.eye(3))
    edges = graph_lib.with_features(edges, graph_lib.squared_distances(positions, edges))
    return graph_lib.build(positions, velocities, np.ones((num_nodes, 1)), edges)


def loss(params, positions, shifts, graph):
    nodes = {**graph.nodes, "positions": positions}
    graph = graph._replace(nodes=nodes, edges={**graph.edges, "shifts": shifts})
    found = egno_jax.apply(params, graph, TIMES)
    return jnp.sum(jnp.sin(found.positions)) + jnp.sum(found.features**2)


gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


@pytest.mark.parametrize("kind", ["blocks", "incidence", "segments"])
def test_layouts_have_the_values_and_gradients_of_edges(kind):
    with jax.enable_x64(True):
        rng = np.random.default_rng(6)
        graphs = [complete(rng), complete(rng, 3)]
        if kind == "segments":
            graphs = [crystal(*copper(1)), crystal(*copper())]
        if kind == "incidence":
            graphs = [crystal(*copper(1))] * 2
        graph = graph_lib.batch(graphs)
        state = graph.nodes["positions"], graph.edges["shifts"]
        expected = gradients(model("float64"), *state, graph)
        prepared = graph_lib.prepare(graph, kind)
        assert graph_lib.layout_of(prepared) is not None
        helpers.assert_trees_close(gradients(model("float64"), *state, prepared), expected, 1e-10)


def test_several_images_of_a_pair_do_not_fit_blocks(monkeypatch):
    positions, velocities, cell = copper(1)
    small = crystal(positions, velocities, cell)
    # One atom, whose edges are all to its own images, is no padding.
    primitive = crystal(positions[:1], velocities[:1], 3.61 / 2 * (1 - np.eye(3)))
    assert len(primitive.senders) == 12
    monkeypatch.setenv("EGNO_JAX_LAYOUT", "gpu")
    for graph in (small, primitive):
        with pytest.raises(ValueError, match=r"connects (the same nodes|a node with itself)"):
            graph_lib.prepare(graph, "blocks")
        assert graph_lib.layout_of(graph_lib.prepare(graph)) is None
    assert graph_lib.layout_of(graph_lib.prepare(complete(np.random.default_rng(7)))) is not None


def test_strain_has_the_right_derivative():
    """Positions and shifts scale together; by finite differences in float64."""
    with jax.enable_x64(True):
        graph, params = crystal(*copper(1)), model("float64")
        positions, shifts = graph.nodes["positions"], graph.edges["shifts"]
        _, (_, by_positions, by_shifts) = gradients(params, positions, shifts, graph)
        strain = np.random.default_rng(8).normal(size=(3, 3))
        exact = np.sum(by_positions * (positions @ strain)) + np.sum(by_shifts * (shifts @ strain))

        def at(step):
            deform = np.eye(3) + step * strain
            return jax.jit(loss)(params, positions @ deform, shifts @ deform, graph)

        numeric = (at(1e-5) - at(-1e-5)) / 2e-5
        assert abs(exact - numeric) < 1e-6 * abs(numeric)


def test_padding_and_batches_keep_shifts():
    graphs = [crystal(*copper(1)), complete(np.random.default_rng(9))]
    batch = graph_lib.batch(graphs)
    for graph, part in zip(graphs, graph_lib.unbatch(batch), strict=True):
        np.testing.assert_array_equal(part.edges["shifts"], graph.edges["shifts"])
    padded, mask = graph_lib.pad(batch)
    found, expected = (helpers.apply(model(), g, TIMES).positions for g in (padded, batch))
    helpers.assert_close(found[:, mask], expected, 1e-6)
    with pytest.raises(ValueError, match=r"edges\['shifts'\]: got no array"):
        graph_lib.batch([graphs[0], graphs[1]._replace(edges={"features": np.ones((20, 1))})])


def test_samples_have_shifts_of_the_initial_state():
    positions, velocities, cell = copper(1)
    frames = np.tile(positions, (3, 4, 1, 1)) + np.arange(4)[:, None, None] * velocities
    states = np.tile(velocities, (3, 4, 1, 1))
    edges = graph_lib.radius_edges(positions, CUTOFF, cell)
    samples = cutting.samples_from_frames(
        frames, states, np.ones((3, 4, 1)), edges, np.arange(1, 4)
    )
    own = edges._replace(features=graph_lib.squared_distances(positions, edges))
    other = cutting.samples_with_own_edges(
        frames, states, np.ones((3, 4, 1)), [own] * 3, np.arange(1, 4), num_edges=60
    )
    for batch in (base.take(samples, np.arange(2)), base.take(other, np.arange(2))):
        rolling.check_columns(batch.graph, speed_column=None)
        real = np.asarray(batch.graph.senders) != batch.graph.n_node[0]
        assert np.abs(batch.graph.edges["shifts"]).max() == pytest.approx(3.61)
        lengths = np.sqrt(batch.graph.edges["features"][real, 0])
        assert np.all((lengths == 0) | ((lengths > 2.2) & (lengths < CUTOFF)))
    base.validate(samples)
    base.validate(other)


def test_moving_a_state_recomputes_distances_through_the_boundary():
    positions, velocities, cell = copper()
    graph = crystal(positions, velocities, cell)
    noisy = positions + 0.1 * np.random.default_rng(10).normal(size=positions.shape)
    found = rolling.with_state(graph, noisy, velocities)
    edges = graph_lib.Edges(graph.senders, graph.receivers, None, graph.edges["shifts"])
    expected = graph_lib.squared_distances(noisy, edges)
    helpers.assert_close(found.edges["features"], expected, 1e-5)
    np.testing.assert_array_equal(found.edges["shifts"], graph.edges["shifts"])


@pytest.mark.parametrize("cell", ["cube", "skewed"])
def test_rollouts_rebuild_edges_to_images(cell):
    """Each window has the edges of `radius_edges`, although positions leave the cell."""
    if cell == "cube":
        positions, velocities, cell = copper()
        radius, pbc = CUTOFF, True
    else:
        rng = np.random.default_rng(11)
        positions, velocities = rng.uniform(0, 4, (4, 3)), 2 * rng.normal(size=(4, 3))
        cell, radius, pbc = SKEWED, 3.3, (True, False, True)
    graph = crystal(positions, velocities, cell, radius, pbc=pbc)
    padded, mask = graph_lib.pad(graph, num_edges=2 * len(graph.senders))
    following = rolling.radius_graph(radius, mask, cell=cell, pbc=pbc, velocity_unit=1.0)
    # The baseline `linear` moves atoms far, in and out of each other's reach.
    params = egno_jax.init(jax.random.key(0), BaselineConfig(method="linear"), padded, TIMES)
    for _ in range(2):
        found = egno_jax.apply(params, padded, TIMES)
        path = jnp.concatenate([padded.nodes["positions"][None], found.positions])
        state = rolling.State(found.positions[-1], None, path, jnp.arange(4.0))
        padded = jax.jit(following)(padded, state)
        assert not padded.globals["overflow"].any()
        real = np.asarray(padded.receivers) < len(positions)
        edges = graph_lib.Edges(
            np.asarray(padded.senders)[real],
            np.asarray(padded.receivers)[real],
            None,
            np.asarray(padded.edges["shifts"])[real],
        )
        now = np.asarray(padded.nodes["positions"])[: len(positions)]
        expected = images_by_hand(now, radius, cell, np.broadcast_to(pbc, 3))
        np.testing.assert_allclose(
            np.sort(vectors_of(edges, now), 0), np.sort(expected, 0), atol=1e-4
        )
        squares = graph_lib.squared_distances(now, edges)
        helpers.assert_close(np.asarray(padded.edges["features"])[real], squares, 1e-5)


def test_rollouts_run_through_the_boundary():
    graph = crystal(*copper())
    padded, mask = graph_lib.pad(graph, num_edges=600)
    following = rolling.radius_graph(CUTOFF, mask, cell=copper()[2], velocity_unit=1.0)

    def roll(graph, following):
        return egno_jax.rollout(
            model(), graph, TIMES, 2, next_graph=following, supervised_velocities=False
        )

    found = jax.jit(lambda graph: roll(graph, following))(padded)
    assert np.isfinite(found.positions[:, mask]).all()
    without = rolling.radius_graph(CUTOFF, mask, velocity_unit=1.0)
    with pytest.raises(ValueError, match=r"^cell: got None, expected the periodic cell"):
        roll(padded, without)
    plain, mask = graph_lib.pad(crystal(*copper()[:2], None), num_edges=600)
    with pytest.raises(ValueError, match=r"^cell: got a cell, expected None"):
        roll(plain, rolling.radius_graph(CUTOFF, mask, cell=copper()[2], velocity_unit=1.0))


def test_without_shifts_nothing_is_computed_for_them():
    rng = np.random.default_rng(12)
    graph = testing.random_graph(rng)
    layer = ops.EdgeList(graph.senders, graph.receivers, 8)
    program = jax.make_jaxpr(ops.displacements)(layer, graph.nodes["positions"][None])
    names = [equation.primitive.name for equation in program.eqns]
    assert "add" not in names
    assert program.eqns[-1].primitive.name == "sub"


@pytest.mark.parametrize(
    "cell",
    [[10, 10, 10, 60, 60, 150], [10, -10, 10, 90, 90, 90], [1, 1, 1, 90, 90, 180], ["a"] * 3],
)
def test_cells_that_cannot_be_are_refused(cell):
    with pytest.raises(ValueError, match="cell: got"):
        graph_lib.cell_matrix(cell)


@pytest.mark.parametrize("pbc", ["FFF", None, [True, False]])
def test_periodic_directions_are_bools(pbc):
    with pytest.raises(ValueError, match=r"pbc: got .*expected one bool, or three"):
        graph_lib.radius_edges(np.zeros((2, 3)), 2.0, 4 * np.eye(3), pbc)
