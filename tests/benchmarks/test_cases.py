"""The cases that are measured: the paper's sizes, valid graphs, and a way through a file."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks import cases
from egno_jax import graph as graph_lib

# Graphs, nodes, edges, P, C, L, F, D of a batch; None: depends on what was drawn.
PAPER = {
    "nbody-p5": (100, 500, 2000, 5, 64, 4, 1, 2),
    "nbody-p8": (100, 500, 2000, 8, 64, 4, 1, 2),
    "mocap": (12, 372, None, 5, 128, 6, 2, 2),
    "molecules": (100, 1100, None, 8, 64, 5, 2, 5),
    "protein": (8, 6840, 8 * 855 * 20, 4, 128, 4, 2, 2),
}


def test_the_cases_are_those_of_the_paper():
    assert set(cases.CASES) == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
def test_sizes(name):
    problem = cases.make(cases.CASES[name])
    num_graphs, num_nodes, num_edges, num_times, width, num_layers, *features = PAPER[name]
    graph, case = problem.graph, problem.case
    graph_lib.validate(graph, problem.times)
    assert len(graph.n_node) == num_graphs
    assert cases.num_nodes_and_edges(problem)[0] == num_nodes
    assert num_edges in (None, len(graph.senders))
    assert problem.positions.shape == (num_times, num_nodes, 3)
    assert (case.width, case.num_layers, case.num_modes) == (width, num_layers, 2)
    assert [graph.nodes["features"].shape[1], graph.edges["features"].shape[1]] == features
    assert all(leaf.dtype in (np.float32, np.int32) for leaf in jax.tree.leaves(graph))


FIELDS = {
    "nodes": "num_nodes",
    "edges": "num_neighbours",
    "times": "num_times",
    "batch": "num_graphs",
    "width": "width",
    "modes": "num_modes",
}


@pytest.mark.parametrize("name", cases.CURVES)
def test_the_points_of_a_curve_differ_in_its_size_alone(name):
    curve = cases.CURVES[name]
    assert max(curve.values) >= 10 * min(curve.values)
    for case, value in zip(curve.cases, curve.values, strict=True):
        assert getattr(case, FIELDS[name]) in (value, (value, value))
        others = [{**vars(c), FIELDS[name]: None, "name": None} for c in (case, curve.cases[0])]
        assert others[0] == others[1]


def test_all_modes_of_the_curve_are_live():
    assert all(case.num_modes <= case.num_times // 2 + 1 for case in cases.CURVES["modes"].cases)


def test_molecules_are_of_mixed_sizes():
    sizes = cases.make(cases.CASES["molecules"]).graph.n_node
    assert set(sizes.tolist()) == {9, 10, 11, 12, 13}


def test_the_skeleton_is_one_tree():
    assert len(cases.SKELETON) == 31
    for joint in range(1, 31):
        assert 0 <= cases.SKELETON[joint] < joint
    edges = cases.make(cases.one_graph(cases.CASES["mocap"])).graph
    hops = edges.edges["features"][:, 0]
    assert (hops == 1).sum() == 2 * 30


def test_contacts_are_mutual_and_short():
    problem = cases.make(cases.one_graph(cases.CASES["protein"]))
    pairs = set(zip(problem.graph.senders.tolist(), problem.graph.receivers.tolist(), strict=True))
    assert {(b, a) for a, b in pairs} == pairs
    positions = problem.graph.nodes["positions"]
    squares = np.sum((positions[:, None] - positions[None]) ** 2, axis=-1)
    np.fill_diagonal(squares, np.inf)
    longest = max(squares[a, b] for a, b in pairs)
    assert (squares < longest * (1 - 1e-6)).sum() <= len(pairs)


def test_a_problem_survives_its_file(tmp_path):
    problem = cases.make(cases.TINY)
    cases.save(problem, tmp_path / "tiny.npz")
    loaded = cases.load(tmp_path / "tiny.npz")
    assert loaded.case == problem.case
    jax.tree.map(np.testing.assert_array_equal, loaded[1:], problem[1:])


def test_the_seed_decides():
    first, again = (cases.make(cases.TINY) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first[1:], again[1:])
