"""Graphs: builders against brute force, round trips, padding, and the messages of every check."""

from __future__ import annotations

import itertools
import re
import sys

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import graph as graphs

SETTINGS = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def random_edges(rng, num_nodes, edge_dim):
    """Draws any directed edges, possibly none."""
    senders, receivers = rng.integers(num_nodes, size=(2, rng.integers(3 * num_nodes)))
    features = None if edge_dim is None else rng.normal(size=(len(senders), edge_dim))
    return graphs.Edges(senders, receivers, features)


def random_graph(rng, num_nodes=5, edge_dim=2, feature_dim=3):
    """Draws a graph of one size, with random edges."""
    return graphs.build(
        rng.normal(size=(num_nodes, 3)),
        rng.normal(size=(num_nodes, 3)),
        rng.normal(size=(num_nodes, feature_dim)),
        random_edges(rng, num_nodes, edge_dim),
    )


def example_batch():
    """Returns a batch of two graphs, 4 nodes with 12 edges and 3 with 6, D = 1 and F = 2."""
    rng = np.random.default_rng(0)
    parts = []
    for num_nodes in (4, 3):
        edges = graphs.fully_connected_edges(num_nodes)
        edges = graphs.with_features(edges, np.ones(len(edges.senders)))
        vectors = rng.normal(size=(2, num_nodes, 3))
        parts.append(graphs.build(*vectors, rng.normal(size=(num_nodes, 2)), edges))
    return graphs.batch(parts)


def assert_graphs_equal(actual, expected):
    """Compares every array of two graphs, dtypes included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def pairs_of(edges):
    """Returns the edges as a list of (receiver, sender)."""
    return list(zip(edges.receivers.tolist(), edges.senders.tolist(), strict=True))


class TestEdges:
    @given(num_nodes=st.integers(1, 12))
    @SETTINGS
    def test_fully_connected_is_every_ordered_pair(self, num_nodes):
        edges = graphs.fully_connected_edges(num_nodes)
        expected = [(i, j) for i in range(num_nodes) for j in range(num_nodes) if i != j]
        assert pairs_of(edges) == expected
        assert edges.senders.dtype == edges.receivers.dtype == np.int32

    @given(seed=SEEDS, num_nodes=st.integers(2, 12))
    @SETTINGS
    def test_bond_edges_are_powers_of_the_adjacency_matrix(self, seed, num_nodes):
        rng = np.random.default_rng(seed)
        upper = np.triu(rng.random((num_nodes, num_nodes)) < 0.25, 1)
        adjacency = (upper | upper.T).astype(int)
        hops = adjacency + 2 * ((adjacency @ adjacency > 0) & (adjacency == 0))
        np.fill_diagonal(hops, 0)

        bonds = rng.permuted(rng.permutation(np.argwhere(upper)), axis=1)
        edges = graphs.bond_edges(bonds, num_nodes)

        assert pairs_of(edges) == list(map(tuple, np.argwhere(hops).tolist()))
        np.testing.assert_array_equal(edges.features, hops[hops > 0][:, None])
        assert edges.features.dtype == np.float32
        both_ways = np.concatenate([bonds, bonds[:, ::-1]])
        for one, other in zip(graphs.bond_edges(both_ways, num_nodes), edges, strict=True):
            np.testing.assert_array_equal(one, other)

    @given(seed=SEEDS, num_nodes=st.integers(1, 6))
    @SETTINGS
    def test_kinds_of_a_tree_are_what_its_symmetries_exchange(self, seed, num_nodes):
        rng = np.random.default_rng(seed)
        order = rng.permutation(num_nodes)
        bonds = [[order[i], order[rng.integers(i)]] for i in range(1, num_nodes)]
        bonds = np.reshape(bonds, (-1, 2)).astype(int)
        adjacency = np.zeros((num_nodes, num_nodes), int)
        adjacency[tuple(bonds.T)] = 1
        adjacency += adjacency.T
        alike = np.eye(num_nodes, dtype=bool)
        for moved in itertools.permutations(range(num_nodes)):
            if np.array_equal(adjacency[np.ix_(moved, moved)], adjacency):
                alike[np.arange(num_nodes), moved] = True
        kinds = graphs.bond_kinds(bonds, num_nodes)
        np.testing.assert_array_equal(kinds[:, None] == kinds, alike)
        assert {*kinds.tolist()} == {*range(kinds.max() + 1)}

    def test_bonds_in_a_ring_are_alike(self):
        ring_with_a_tail = [[0, 1], [1, 2], [2, 3], [3, 0], [0, 4]]
        kinds = graphs.bond_kinds(ring_with_a_tail, 5)
        assert kinds[1] == kinds[3] and len({*kinds.tolist()}) == 4

    @given(seed=SEEDS, num_nodes=st.integers(1, 30), cutoff=st.floats(0.1, 3.0))
    @SETTINGS
    def test_radius_edges_match_brute_force(self, seed, num_nodes, cutoff):
        pytest.importorskip("vesin")
        positions = np.random.default_rng(seed).normal(size=(num_nodes, 3)).astype(np.float32)
        distances = np.linalg.norm(positions[:, None] - positions.astype(float), axis=-1)
        expected = np.argwhere((distances < cutoff) & ~np.eye(num_nodes, dtype=bool))

        edges = graphs.radius_edges(positions, cutoff)
        bonds = graphs.bonds_within(positions, cutoff)

        assert pairs_of(edges) == list(map(tuple, expected.tolist()))
        assert edges.senders.dtype == edges.receivers.dtype == np.int32
        np.testing.assert_array_equal(bonds, expected[expected[:, 0] < expected[:, 1]])

    def test_radius_edges_turn_and_move_with_the_system(self):
        pytest.importorskip("vesin")
        rng = np.random.default_rng(0)
        positions = rng.normal(size=(40, 3))
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned = positions @ rotation + 100.0
        expected = pairs_of(graphs.radius_edges(positions, 1.0))
        assert expected
        assert pairs_of(graphs.radius_edges(turned, 1.0)) == expected

    @given(seed=SEEDS, num_nodes=st.integers(1, 8), edge_dim=st.sampled_from([None, 1, 2]))
    @SETTINGS
    def test_columns_are_appended_in_order(self, seed, num_nodes, edge_dim):
        rng = np.random.default_rng(seed)
        edges = random_edges(rng, num_nodes, edge_dim)
        positions = rng.normal(size=(num_nodes, 3)).astype(np.float32)
        charges = rng.choice([-1, 1], size=num_nodes)
        products = charges[edges.senders] * charges[edges.receivers]

        squares = graphs.squared_distances(positions, edges)
        features = graphs.with_features(edges, products, squares).features

        for edge, (receiver, sender) in enumerate(pairs_of(edges)):
            old = [] if edge_dim is None else edges.features[edge]
            square = np.linalg.norm(positions[receiver] - positions[sender]) ** 2
            expected = [*old, charges[sender] * charges[receiver], square]
            np.testing.assert_allclose(features[edge], expected, rtol=1e-5, atol=1e-6)
        assert features.shape == (len(edges.senders), (edge_dim or 0) + 2)

    def test_edges_without_columns_stay_without_features(self):
        assert graphs.with_features(graphs.fully_connected_edges(3)).features is None

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: graphs.fully_connected_edges(0), "num_nodes: got 0, expected an integer >= 1"),
            (lambda: graphs.fully_connected_edges(2.0), "num_nodes: got 2.0, expected an integer"),
            (lambda: graphs.bond_edges([[0, 1]], 2.0), "num_nodes: got 2.0, expected an integer"),
            (lambda: graphs.bond_kinds([[0, 1]], 2.0), "num_nodes: got 2.0, expected an integer"),
            (
                lambda: graphs.bond_edges([[0, 3]], 3),
                r"bonds\[0\]: got \[0, 3\].*nodes from 0 to 2",
            ),
            (lambda: graphs.bond_edges([[0, 1], [-1, 2]], 3), r"bonds\[1\]: got \[-1, 2\]"),
            (
                lambda: graphs.bond_edges([[0, 1], [2, 2]], 3),
                r"bonds\[1\]: got \[2, 2\], expected two diff",
            ),
            (lambda: graphs.bond_edges([[0, 1, 2]], 3), r"bonds: got int64 \[1, 3\].*\[B, 2\]"),
            (lambda: graphs.bond_edges([[0.0, 1.0]], 3), "bonds: got float64.*expected integer"),
            (
                lambda: graphs.radius_edges(np.zeros((2, 2)), 1.0),
                r"positions: got float64 \[2, 2\]",
            ),
            (lambda: graphs.radius_edges([[0, np.nan, 0]], 1.0), r"positions: got nan at \[0, 1\]"),
            (lambda: graphs.radius_edges(np.zeros((2, 3)), 0.0), "cutoff: got 0.0, expected"),
            (
                lambda: graphs.with_features(graphs.fully_connected_edges(3), np.ones(3)),
                r"columns\[0\]: got \[3\], expected \[E\] or \[E, k\] with E = 6",
            ),
        ],
    )
    def test_bad_input_is_named(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_missing_neighbour_list_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "vesin", None)
        with pytest.raises(ImportError, match=r'vesin.*pip install "egno_jax\[data\]"'):
            graphs.radius_edges(np.zeros((2, 3)), 1.0)


class TestBuild:
    @given(seed=SEEDS, num_nodes=st.integers(1, 8), edge_dim=st.sampled_from([None, 0, 1, 3]))
    @SETTINGS
    def test_arrays_arrive_where_they_belong(self, seed, num_nodes, edge_dim):
        rng = np.random.default_rng(seed)
        edges = random_edges(rng, num_nodes, edge_dim)
        positions, velocities = rng.normal(size=(2, num_nodes, 3))
        features = rng.integers(5, size=(num_nodes, 2))

        graph = graphs.build(positions, velocities, features, edges)

        for name, expected in zip(
            ("positions", "velocities", "features"), (positions, velocities, features), strict=True
        ):
            np.testing.assert_array_equal(graph.nodes[name], expected.astype(np.float32))
            assert graph.nodes[name].dtype == np.float32
        assert pairs_of(graph) == pairs_of(edges)
        assert graph.n_node.tolist() == [num_nodes]
        assert graph.n_edge.tolist() == [len(edges.senders)]
        for field in ("senders", "receivers", "n_node", "n_edge"):
            assert getattr(graph, field).dtype == np.int32
        if edge_dim is None:
            assert graph.edges is None
        else:
            expected = edges.features.astype(np.float32)
            np.testing.assert_array_equal(graph.edges["features"], expected)

    def test_float64_survives_in_x64_mode(self):
        with jax.enable_x64(True):
            graph = random_graph(np.random.default_rng(0))
        assert graph.nodes["positions"].dtype == np.float64

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"velocities": np.zeros((2, 3))}, r"nodes\['velocities'\]: .*\[2, 3\].*N = 3"),
            ({"features": np.zeros(3)}, r"nodes\['features'\]: .*\[3\].*floating \[N, F\]"),
            ({"positions": 1.0}, r"nodes\['positions'\]:.*\[N, 3\].*rank 0"),
            ({"positions": np.full((3, 3), 1j)}, r"nodes\['positions'\].*complex"),
            (
                {"edges": graphs.fully_connected_edges(4)},
                r"senders\[2\]: got 3, expected a node, 0 to 2",
            ),
        ],
    )
    def test_bad_arrays_are_named(self, change, message):
        arguments = {
            "positions": np.ones((3, 3)),
            "velocities": np.zeros((3, 3)),
            "features": np.zeros((3, 1)),
            "edges": graphs.fully_connected_edges(3),
        }
        graphs.build(**arguments)
        with pytest.raises(ValueError, match=message):
            graphs.build(**(arguments | change))


class TestFromAtoms:
    def atoms(self):
        ase = pytest.importorskip("ase")
        atoms = ase.Atoms("OCH", positions=[[0, 0, 0], [1.2, 0, 0], [1.7, 0.9, 0]])
        # 1000 m/s is 0.01 Angstrom per femtosecond.
        speed = 1000.0 * ase.units.m / ase.units.s
        atoms.set_velocities([[speed, 0, 0], [0, -2 * speed, 0], [0, 0, 0]])
        return atoms

    def test_units_and_default_features(self):
        atoms = self.atoms()
        graph = graphs.from_atoms(atoms, graphs.fully_connected_edges(3))
        velocities = [[0.01, 0, 0], [0, -0.02, 0], [0, 0, 0]]
        np.testing.assert_allclose(graph.nodes["positions"], atoms.positions, rtol=1e-6)
        np.testing.assert_allclose(graph.nodes["velocities"], velocities, rtol=1e-5, atol=1e-9)
        features = [[0.01, 1.0], [0.02, 6 / 8], [0.0, 1 / 8]]
        np.testing.assert_allclose(graph.nodes["features"], features, rtol=1e-5, atol=1e-9)

    def test_own_features_and_edges_are_kept(self):
        atoms = self.atoms()
        edges = graphs.bond_edges(graphs.bonds_within(atoms.positions, 1.6), len(atoms))
        graph = graphs.from_atoms(atoms, edges, features=[[7.0], [8.0], [9.0]])
        np.testing.assert_array_equal(graph.nodes["features"], [[7.0], [8.0], [9.0]])
        assert pairs_of(graph) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
        np.testing.assert_array_equal(graph.edges["features"][:, 0], [1, 2, 1, 1, 2, 1])

    def test_bad_atoms_are_named(self):
        edges = graphs.fully_connected_edges(3)
        atoms = self.atoms()
        atoms.pbc = [True, False, False]
        with pytest.raises(ValueError, match=r"edges.shifts: .*\[True, False, False\].*unwrap"):
            graphs.from_atoms(atoms, edges)
        atoms = self.atoms()
        del atoms.arrays["momenta"]
        with pytest.raises(ValueError, match="atoms: got no momenta"):
            graphs.from_atoms(atoms, edges)
        with pytest.raises(ValueError, match=r"atoms: got list, expected ase.Atoms"):
            graphs.from_atoms([], edges)


class TestBatch:
    @given(seed=SEEDS, sizes=SIZES, edge_dim=st.sampled_from([None, 2]))
    @SETTINGS
    def test_unbatch_undoes_batch(self, seed, sizes, edge_dim):
        rng = np.random.default_rng(seed)
        parts = [random_graph(rng, size, edge_dim) for size in sizes]
        joined = graphs.batch(parts)
        graphs.validate(joined)
        assert joined.n_node.tolist() == sizes

        before = jax.tree.map(np.copy, joined)
        split = graphs.unbatch(joined)

        assert_graphs_equal(joined, before)  # jraph.unbatch_np alone changes its argument
        for actual, expected in zip(split, parts, strict=True):
            assert_graphs_equal(actual, expected)

    @given(seed=SEEDS, sizes=SIZES, edge_dim=st.sampled_from([None, 2]))
    @SETTINGS
    def test_batching_is_associative_and_permutes_with_its_graphs(self, seed, sizes, edge_dim):
        rng = np.random.default_rng(seed)
        parts = [random_graph(rng, size, edge_dim) for size in sizes]
        cut = rng.integers(1, len(parts) + 1)
        halves = [graphs.batch(half) for half in (parts[:cut], parts[cut:]) if half]
        assert_graphs_equal(graphs.batch(halves), graphs.batch(parts))

        order = rng.permutation(len(parts))
        permuted = graphs.unbatch(graphs.batch([parts[index] for index in order]))
        for actual, index in zip(permuted, order, strict=True):
            assert_graphs_equal(actual, parts[index])

    def test_jax_arrays_and_extra_arrays_travel(self):
        graph = jax.tree.map(jnp.asarray, random_graph(np.random.default_rng(0)))
        graph.nodes["charges"] = jnp.arange(5.0)
        joined = graphs.batch([graph, graph])
        np.testing.assert_array_equal(joined.nodes["charges"], [*range(5), *range(5)])
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(joined))

    def test_bad_graphs_are_named(self):
        rng = np.random.default_rng(0)
        graph = random_graph(rng)
        with pytest.raises(ValueError, match="graphs: got none"):
            graphs.batch([])
        with pytest.raises(ValueError, match=r"graphs\[1\]: graph: got .*jraph.GraphsTuple"):
            graphs.batch([graph, None])
        other = random_graph(rng, feature_dim=4)
        with pytest.raises(ValueError, match=r"graphs\[2\].nodes\['features'\].*\[4\].*\[3\]"):
            graphs.batch([graph, graph, other])
        bare = random_graph(rng, edge_dim=None)
        with pytest.raises(
            ValueError, match=r"graphs\[1\].edges\['features'\]: got no array, expected \[2\]"
        ):
            graphs.batch([graph, bare])
        with pytest.raises(
            ValueError, match=r"graphs\[1\].edges\['features'\]: got \[2\], expected no array"
        ):
            graphs.batch([bare, graph])
        other = random_graph(rng, edge_dim=1)
        with pytest.raises(ValueError, match=r"graphs\[1\].edges\['features'\].*\[1\].*\[2\]"):
            graphs.batch([graph, other])

    def test_unbatch_does_not_judge_values_but_does_indices(self):
        graph = example_batch()
        graph.nodes["positions"][5] = np.nan
        assert np.isnan(graphs.unbatch(graph)[1].nodes["positions"][1]).all()
        with pytest.raises(ValueError, match=r"graph\.n_edge: got a sum of 17"):
            graphs.unbatch(graph._replace(n_edge=graph.n_edge - np.array([1, 0])))


class TestPad:
    @given(
        seed=SEEDS,
        sizes=SIZES,
        edge_dim=st.sampled_from([None, 2]),
        extra=st.none() | st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(1, 3)),
    )
    @SETTINGS
    def test_real_part_is_kept_and_the_rest_is_inert(self, seed, sizes, edge_dim, extra):
        rng = np.random.default_rng(seed)
        parts = [random_graph(rng, size, edge_dim) for size in sizes]
        graph = graphs.batch(parts)
        old = {"num_nodes": sum(sizes), "num_edges": len(graph.senders), "num_graphs": len(sizes)}
        wanted = (
            {}
            if extra is None
            else {k: n + m for (k, n), m in zip(old.items(), extra, strict=True)}
        )

        padded, mask = graphs.pad(graph, **wanted)

        graphs.validate(padded)
        new = (len(mask), len(padded.senders), len(padded.n_node))
        if wanted:
            assert new == tuple(wanted.values())
        assert mask.dtype == bool
        assert mask.sum() == sum(sizes)
        assert mask[: sum(sizes)].all()
        for actual, expected in zip(graphs.unbatch(padded), parts, strict=False):
            assert_graphs_equal(actual, expected)
        num_edges = old["num_edges"]
        assert not mask[padded.senders[num_edges:]].any()
        assert not mask[padded.receivers[num_edges:]].any()
        for leaf in jax.tree.leaves((padded.nodes, padded.edges)):
            assert leaf.dtype == np.float32
        for leaf in jax.tree.leaves(padded.nodes):
            assert not leaf[~mask].any()
        for leaf in jax.tree.leaves(padded.edges):
            assert not leaf[num_edges:].any()

    def test_sorted_receivers_stay_sorted(self):
        padded, _ = graphs.pad(example_batch(), num_nodes=10, num_edges=32)
        assert (np.diff(padded.receivers) >= 0).all()
        assert set(padded.receivers[18:]) == {7, 8, 9}

    def test_ladder_is_short_and_wastes_at_most_a_third(self):
        rungs = [graphs.ladder_size(size) for size in range(1, 4097)]
        expected = sorted({1, 2} | {2**k for k in range(13)} | {3 * 2**k for k in range(11)})
        assert sorted(set(rungs)) == expected
        for size, rung in enumerate(rungs, start=1):
            assert rung == min(step for step in expected if step >= size)
        for num_nodes in range(2, 4096):
            assert 3 * num_nodes >= 2 * graphs.ladder_size(num_nodes + 1)
        for low, ratio in [(3, 2), (5, 3), (100, 7), (17, 200)]:
            steps = {graphs.ladder_size(size) for size in range(low, low * ratio + 1)}
            assert len(steps) <= 2 * np.log2(ratio) + 2

    def test_a_graph_that_fills_its_size_needs_no_padding_node(self):
        graph = example_batch()
        padded, mask = graphs.pad(graph, num_nodes=7, num_edges=18, num_graphs=3)
        assert mask.all()
        assert padded.n_node.tolist() == [4, 3, 0]

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"num_nodes": 5}, "num_nodes: got 5, expected at least 8,.*add 3"),
            ({"num_nodes": 7, "num_edges": 19}, "num_nodes: got 7, expected at least 8"),
            ({"num_edges": 11}, "num_edges: got 11, expected at least 18"),
            ({"num_graphs": 2}, "num_graphs: got 2, expected at least 3"),
            ({"num_nodes": 9.0}, "num_nodes: got 9.0, expected an integer"),
            ({"num_edges": "9"}, "num_edges: got '9', expected an integer"),
            ({"num_graphs": True}, "num_graphs: got True, expected an integer"),
        ],
    )
    def test_wrong_sizes_are_named(self, sizes, message):
        with pytest.raises(ValueError, match=message):
            graphs.pad(example_batch(), **sizes)

    def test_targets_and_times_are_padded_too(self):
        target = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
        padded = graphs.pad_nodes(target, 12)
        np.testing.assert_array_equal(padded[:, :7], target)
        assert padded.shape == (4, 12, 3)
        assert padded.dtype == np.float32
        assert not padded[:, 7:].any()
        assert graphs.pad_nodes(np.ones(7, bool), 12, axis=0).sum() == 7
        times = graphs.pad_times([[1, 2], [3, 5]], 4)
        np.testing.assert_array_equal(times, [[1, 2, 2, 2], [3, 5, 5, 5]])
        graphs.validate(graphs.pad(example_batch(), num_graphs=4)[0], times)
        with pytest.raises(ValueError, match="num_nodes: got 6, expected at least 7"):
            graphs.pad_nodes(target, 6)
        with pytest.raises(ValueError, match=r"array: got \[7\], expected an axis -2"):
            graphs.pad_nodes(np.ones(7), 12)
        with pytest.raises(ValueError, match=r"times: got \[2\], expected \[P, G\]"):
            graphs.pad_times([1, 2], 4)
        with pytest.raises(ValueError, match="num_graphs: got 1, expected at least 2"):
            graphs.pad_times([[1, 2]], 1)


class TestGraphIds:
    @given(cuts=st.lists(st.integers(0, 12), min_size=4, max_size=4))
    @SETTINGS
    def test_matches_numpy_eagerly_and_jitted(self, cuts):
        n_node = np.diff(sorted([0, *cuts, 12])).astype(np.int32)
        expected = np.repeat(np.arange(5), n_node)
        for function in (graphs.graph_ids, jax.jit(graphs.graph_ids, static_argnums=1)):
            ids = function(n_node, 12)
            assert ids.dtype == jnp.int32
            np.testing.assert_array_equal(ids, expected)


def with_node(name, array):
    """Returns a change that replaces one node array."""
    return lambda graph: graph._replace(nodes=graph.nodes | {name: array})


def without_node(name):
    """Returns a change that drops one node array."""
    return lambda graph: graph._replace(
        nodes={key: array for key, array in graph.nodes.items() if key != name}
    )


def with_field(name, array):
    """Returns a change that replaces one field."""
    return lambda graph: graph._replace(**{name: array})


def with_value(name, place, value):
    """Returns a change that sets one value of one array, `name` as `nodes/positions`."""

    def change(graph):
        field, _, key = name.partition("/")
        array = getattr(graph, field)[key] if key else getattr(graph, field)
        array = array.copy()
        array[place] = value
        return (
            with_node(key, array)(graph)
            if field == "nodes"
            else graph._replace(**{field: {key: array} if key else array})
        )

    return change


# What check_structure finds, in the example batch with G = 2, N = 7, E = 18.
STRUCTURE = {
    "not a graph": (lambda graph: graph.nodes, "graph: got dict, expected a jraph.GraphsTuple"),
    "nodes no dictionary": (
        with_field("nodes", np.zeros((7, 3), np.float32)),
        "graph.nodes: got array, expected a dictionary.*positions",
    ),
    "no positions": (without_node("positions"), r"graph.nodes: got the keys.*add \['positions'\]"),
    "no velocities": (
        without_node("velocities"),
        r"graph.nodes: got the keys.*add \['velocities'\]",
    ),
    "no features": (without_node("features"), r"graph.nodes: got the keys.*add \['features'\]"),
    "positions a list": (
        with_node("positions", [[0.0, 0.0, 0.0]]),
        r"graph.nodes\['positions'\]: got list, expected an array",
    ),
    "positions integer": (
        with_node("positions", np.zeros((7, 3), np.int32)),
        r"graph.nodes\['positions'\]: got int32 \[7, 3\], expected floating \[N, 3\]",
    ),
    "positions of rank 3": (
        with_node("positions", np.zeros((2, 7, 3), np.float32)),
        r"graph.nodes\['positions'\].*rank 3 must be 2",
    ),
    "positions in a plane": (
        with_node("positions", np.zeros((7, 2), np.float32)),
        r"graph.nodes\['positions'\].*axis 1 must have length 3",
    ),
    "velocities too short": (
        with_node("velocities", np.zeros((6, 3), np.float32)),
        r"graph.nodes\['velocities'\]: got float32 \[6, 3\].*with N = 7",
    ),
    "features without axis": (
        with_node("features", np.zeros(7, np.float32)),
        r"graph.nodes\['features'\]: .*floating \[N, F\].*rank 1",
    ),
    "features integer": (
        with_node("features", np.zeros((7, 2), np.int32)),
        r"graph.nodes\['features'\]: got int32.*floating.*astype",
    ),
    "extra array too long": (
        with_node("charges", np.zeros(8, np.float32)),
        r"graph.nodes\['charges'\]: got \[8\], expected \[N, ...\] with N = 7",
    ),
    "edges no dictionary": (
        with_field("edges", np.zeros((18, 1), np.float32)),
        "graph.edges: got array, expected None or a dictionary",
    ),
    "edges without features": (
        with_field("edges", {"hops": np.zeros((18, 1), np.float32)}),
        r"graph.edges: got the keys \['hops'\].*add \['features'\]",
    ),
    "edge features too short": (
        with_field("edges", {"features": np.zeros((17, 1), np.float32)}),
        r"graph.edges\['features'\]: got float32 \[17, 1\].*with E = 18",
    ),
    "edge features without axis": (
        with_field("edges", {"features": np.zeros(18, np.float32)}),
        r"graph.edges\['features'\]: .*floating \[E, D\]",
    ),
    "senders floating": (
        with_field("senders", np.zeros(18, np.float32)),
        r"graph.senders: got float32 \[18\], expected integer \[E\]",
    ),
    "receivers too short": (
        with_field("receivers", np.zeros(17, np.int32)),
        r"graph.receivers: got int32 \[17\].*with E = 18",
    ),
    "no receivers": (with_field("receivers", None), "graph.receivers: got None.*expected an array"),
    "n_node floating": (
        with_field("n_node", np.array([4.0, 3.0], np.float32)),
        r"graph.n_node: got float32 \[2\], expected integer \[G\]",
    ),
    "n_edge of other length": (
        with_field("n_edge", np.array([18], np.int32)),
        r"graph.n_edge: got int32 \[1\].*with G = 2",
    ),
    "no graph": (
        lambda graph: graph._replace(n_node=np.zeros(0, np.int32), n_edge=np.zeros(0, np.int32)),
        "graph.n_node: got length 0",
    ),
    "globals of other length": (
        with_field("globals", np.zeros((3, 1), np.float32)),
        r"graph.globals: got \[3, 1\], expected \[G, ...\] with G = 2",
    ),
}
TIMES_STRUCTURE = {
    "a number": (np.float32(1.0), r"times: .*integer or floating \[P\].*rank 0"),
    "boolean": (np.array([False, True]), "times: got bool .*integer or floating"),
    "no time": (np.zeros(0, np.float32), "times: got P = 0"),
    "no time for each graph": (np.zeros((0, 2), np.float32), "times: got P = 0"),
    "wrong G": (np.ones((5, 3), np.float32), r"times: got float32 \[5, 3\].*\[P, G\] with G = 2"),
    "rank 3": (np.ones((5, 2, 1), np.float32), r"times: .*rank 3"),
}
# What only validate finds.
VALUES = {
    "NaN position": (
        with_value("nodes/positions", (3, 1), np.nan),
        r"graph.nodes\['positions'\]: got nan at \[3, 1\] and 0 more",
    ),
    "infinite velocity": (
        with_value("nodes/velocities", slice(5, 7), np.inf),
        r"graph.nodes\['velocities'\]: got inf at \[5, 0\] and 5 more",
    ),
    "NaN feature": (
        with_value("nodes/features", (6, 0), np.nan),
        r"graph.nodes\['features'\].*nan at \[6, 0\]",
    ),
    "infinite in float32": (
        with_node("positions", np.full((7, 3), 1e39)),
        r"graph.nodes\['positions'\].*inf at \[0, 0\] and 20 more such values \(as float32\)",
    ),
    "NaN edge feature": (
        with_value("edges/features", (17, 0), np.nan),
        r"graph.edges\['features'\].*nan at \[17, 0\]",
    ),
    "sender out of range": (
        with_value("senders", 4, 7),
        r"graph.senders\[4\]: got 7, expected a node, 0 to 6",
    ),
    "negative receiver": (
        with_value("receivers", 0, -1),
        r"graph.receivers\[0\]: got -1, expected a node",
    ),
    "edge between graphs": (
        with_value("senders", 2, 5),
        r"graph.senders\[2\]: got node 5 of graph 1, expected one of graph 0",
    ),
    "negative n_node": (
        with_field("n_node", np.array([8, -1], np.int32)),
        r"graph.n_node\[1\]: got -1",
    ),
    "negative n_edge": (
        with_field("n_edge", np.array([-1, 19], np.int32)),
        r"graph.n_edge\[0\]: got -1",
    ),
    "n_node too small": (
        with_field("n_node", np.array([4, 2], np.int32)),
        "graph.n_node: got a sum of 6, expected 7, the nodes",
    ),
    "n_edge too large": (
        with_field("n_edge", np.array([12, 7], np.int32)),
        "graph.n_edge: got a sum of 19, expected 18, the edges",
    ),
    "edges counted to the wrong graph": (
        with_field("n_edge", np.array([11, 7], np.int32)),
        "graph.n_edge: got edge 11 in graph 1, expected it in graph 0",
    ),
}
TIMES_VALUES = {
    "NaN": (np.array([1.0, np.nan]), r"times: got nan at \[1\]"),
    "falling": (
        np.array([1.0, 2.0, 1.5], np.float32),
        r"times: got times\[1\] = 2.0 and times\[2\] = 1.5.*increase strictly along P",
    ),
    "repeated": (np.array([1, 1]), r"got times\[0\] = 1 and times\[1\] = 1"),
    "falling in one graph": (
        np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0]], np.float32),
        r"got times\[1, 1\] = 3.0 and times\[2, 1\] = 2.0",
    ),
    "equal in float32": (np.array([1.0, 1.0 + 1e-12]), r"times\[1\] = 1.0 \(as float32\)"),
}


def cases(table):
    """Makes one parameter set of each entry, with its name as id."""
    return pytest.mark.parametrize(("change", "message"), table.values(), ids=table.keys())


class TestBuildRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"edges": None}, "edges: got NoneType, expected egno_jax.graph.Edges"),
            ({"edges": ([0], [1])}, "edges: got tuple, expected egno_jax.graph.Edges"),
            ({"features": None}, r"features: got None .*, expected an array of numbers"),
            (
                {"positions": [["x", "y", "z"]]},
                "positions: got <U1 .*, expected an array of numbers",
            ),
            ({"velocities": [[1.0], [1.0, 2.0]]}, "velocities: .*expected an array of numbers"),
            (
                {"edges": graphs.Edges(np.array([0]), np.array([1]), [None])},
                "edges.features: got object .*, expected an array of numbers",
            ),
        ],
    )
    def test_arguments_are_named(self, change, message):
        arrays = {"positions": np.eye(3)[:2], "velocities": np.eye(3)[:2], "features": np.eye(2)}
        arguments = {**arrays, "edges": graphs.fully_connected_edges(2), **change}
        with pytest.raises(ValueError, match=message):
            graphs.build(**arguments)


class TestChecks:
    def test_good_graphs_pass(self):
        graph = example_batch()
        for good in (graph, graph._replace(edges=None), graphs.pad(graph)[0]):
            num_graphs = len(good.n_node)
            for times in (
                np.array([0, 1, 2]),
                jnp.array([0.5]),
                np.arange(2.0 * num_graphs).reshape(2, -1),
            ):
                graphs.validate(good, times)
                jax.eval_shape(graphs.check_structure, good, times)

    @cases(STRUCTURE)
    def test_structure(self, change, message):
        graph = change(example_batch())
        for check in (graphs.check_structure, graphs.validate):
            with pytest.raises(ValueError, match=message):
                check(graph)

    @cases(TIMES_STRUCTURE)
    def test_structure_of_times(self, change, message):
        for check in (graphs.check_structure, graphs.validate):
            with pytest.raises(ValueError, match=message):
                check(example_batch(), change)

    @pytest.mark.parametrize("transform", [jax.jit, lambda f: lambda g, t: jax.eval_shape(f, g, t)])
    def test_tracers_raise_the_same_message(self, transform):
        check = transform(graphs.check_structure)
        graph, times = example_batch(), np.arange(3)
        check(graph, times)
        tables = [(change(graph), times, message) for change, message in STRUCTURE.values()]
        tables += [(graph, bad, message) for bad, message in TIMES_STRUCTURE.values()]
        for bad_graph, bad_times, _ in tables:
            with pytest.raises(ValueError, match="expected") as eager:
                graphs.check_structure(bad_graph, bad_times)
            with pytest.raises(ValueError, match="expected") as traced:
                check(bad_graph, bad_times)
            assert str(traced.value) == str(eager.value)

    @pytest.mark.parametrize(
        ("times", "message"),
        [
            (["now", "later"], r"times: got a list .* expected numbers \[P\] or \[P, G\]"),
            ([[1.0, 2.0], [3.0]], r"times: got a list .* expected numbers \[P\] or \[P, G\]"),
            ([], "times: got P = 0"),
            ((True, False), "times: got bool .*integer or floating"),
            (([1.0, 2.0, 3.0],), r"times: got float32 \[1, 3\].*\[P, G\] with G = 2"),
            (2.0, "times: got float, expected an array"),
        ],
    )
    def test_structure_of_times_in_lists(self, times, message):
        for check in (graphs.check_structure, graphs.validate):
            with pytest.raises(ValueError, match=message):
                check(example_batch(), times)

    @pytest.mark.parametrize(
        "times",
        [
            np.array([2**32 + 1, 2**32 + 2]),
            [2**32 + 1, 2**32 + 2],
            [np.int64(2**32 + 1)],
            np.array([1, 2**63], np.uint64),
            [2**100],
        ],
    )
    def test_integer_times_that_do_not_fit_are_refused(self, times):
        for check in (graphs.as_times, lambda x: graphs.validate(example_batch(), x)):
            with pytest.raises(ValueError, match=r"times: got .*(int32|too large)"):
                check(times)

    def test_lists_of_times_are_checked_as_arrays_are(self):
        graphs.validate(example_batch(), [1, 2])
        graphs.validate(example_batch(), ([1.0, 2.0], [3.0, 2.5]))
        with pytest.raises(ValueError, match=r"got times\[0\] = 2.0 and times\[1\] = 1.0"):
            graphs.validate(example_batch(), (2.0, 1.0))

    def test_a_stack_is_what_its_graphs_are(self):
        """Each fault of a graph is one of a stack that holds it, under the same name."""

        def stacked(graph):
            return jax.tree.map(lambda leaf: np.stack([leaf] * 3), graph)

        graph = example_batch()
        graphs.check_stacked_structure(stacked(graph))
        graphs.check_stacked_structure(stacked(graph._replace(edges=None)))
        for change, message in STRUCTURE.values():
            with pytest.raises(ValueError, match=re.split(r":|\.\*", message)[0]):
                graphs.check_stacked_structure(stacked(change(graph)))
        short = stacked(graph)
        short.nodes["velocities"] = short.nodes["velocities"][:2]
        expected = r"'velocities'\]: got float32 \[2,.*floating \[S, N, 3\] with S = 3, N = 7"
        with pytest.raises(ValueError, match=expected):
            graphs.check_stacked_structure(short)
        with pytest.raises(ValueError, match=r"graph.n_node: .*expected integer \[S, G\]"):
            graphs.check_stacked_structure(graph)

    def test_structure_reads_no_value(self):
        for change, _ in VALUES.values():
            graphs.check_structure(change(example_batch()))
        for times, _ in TIMES_VALUES.values():
            graphs.check_structure(example_batch(), times)

    @pytest.mark.filterwarnings("ignore:overflow encountered in cast")
    @cases(VALUES)
    def test_values(self, change, message):
        with pytest.raises(ValueError, match=message):
            graphs.validate(change(example_batch()))
        with pytest.raises(ValueError, match=message):
            graphs.validate(jax.tree.map(jnp.asarray, change(example_batch())))

    @cases(TIMES_VALUES)
    def test_values_of_times(self, change, message):
        with pytest.raises(ValueError, match=message):
            graphs.validate(example_batch(), change)

    def test_validate_refuses_tracers(self):
        with pytest.raises(ValueError, match=r"got tracers.*call validate outside jit"):
            jax.jit(graphs.validate)(example_batch())

    def test_checks_leave_a_valid_jraph_graph_of_any_origin_alone(self):
        node, edge = np.ones((2, 3), np.float64), np.array([0, 1])
        graph = jraph.GraphsTuple(
            nodes={"positions": node, "velocities": node, "features": node},
            edges=None,
            senders=edge,
            receivers=edge[::-1],
            n_node=np.array([2]),
            n_edge=np.array([2]),
            globals=None,
        )
        graphs.validate(graph, np.array([1, 2]))


@pytest.mark.parametrize("named", [True, False])
def test_globals_stay_with_their_graphs(named):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, 2)).astype(np.float32) for _ in range(3)]

    def tree(array):
        return {"charge": array, "others": {"label": array[:, 0] > 0}} if named else array

    parts = [
        random_graph(rng, size)._replace(globals=tree(array))
        for size, array in zip((3, 5, 4), arrays, strict=True)
    ]
    together = graphs.batch(parts)
    assert_graphs_equal(together.globals, tree(np.concatenate(arrays)))
    for found, part in zip(graphs.unbatch(together), parts, strict=True):
        assert_graphs_equal(found.globals, part.globals)
    padded, _ = graphs.pad(together, num_graphs=5)
    expected = tree(np.concatenate([*arrays, np.zeros((2, 2), np.float32)]))
    assert_graphs_equal(padded.globals, expected)
    # A layout is added to globals with names; others have no place for it.
    prepared = graphs.prepare(parts[1], "tpu")
    assert (graphs.layout_of(prepared) is not None) == named
    assert_graphs_equal(graphs.without_layout(prepared), parts[1])
    if not named:
        with pytest.raises(ValueError, match=r"graph.globals: got array, expected None or a dict"):
            graphs.prepare(together, "segments")
