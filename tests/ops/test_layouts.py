"""Layouts of edges: the numbers, the derivatives and the programs of the specification."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from egno_jax import datasets, ops, rolling
from egno_jax import graph as graph_lib
from egno_jax.datasets import base
from egno_jax.ops.layouts import NOWHERE
from egno_jax.training.flat import FlatParams, flatten, unflatten
from egno_jax.training.step import Trainer, init_state, train_step
from tests import helpers
from tests.training.mesh_runs import CONFIG as RUN
from tests.training.mesh_runs import task

KINDS = ("blocks", "incidence", "list", "segments")
# The graphs of `graph_of` that each kind can arrange.
CASES = [
    (kind, graph)
    for kind in KINDS
    for graph in ("complete", "sparse", "mixed", "padded")
    if kind != "incidence" or graph in ("complete", "sparse")
]
CONFIG = egno_jax.EGNOConfig(
    num_layers=1,
    hidden_dim=8,
    num_modes=2,
    time_embed_dim=4,
    mean_field=True,
    mean_field_channels=1,
    temporal_grid="context",
    context_times=(0.0, 1.0, 2.0),
    param_dtype="float64",
)
RUN_MODEL = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, time_embed_dim=4, mean_field=True)
TIMES = np.array([1.0, 2.5])


def one_graph(rng, num_nodes, density):
    """Returns a graph whose last node has no edges, unless it is complete."""
    has_edge = ~np.eye(num_nodes, dtype=bool)
    if density < 1:
        has_edge &= rng.random(has_edge.shape) < density
        has_edge[-1], has_edge[:, -1] = False, False
    receivers, senders = np.nonzero(has_edge)
    order = np.arange(len(senders)) if density == 1 else rng.permutation(len(senders))
    edges = graph_lib.Edges(senders[order], receivers[order], rng.normal(size=(len(order), 2)))
    drawn = [rng.normal(size=(num_nodes, size)) for size in (3, 3, 2)]
    return graph_lib.build(*drawn, edges)


def first_edges(graph, number):
    features = {"features": graph.edges["features"][:number]}
    ends = {name: getattr(graph, name)[:number] for name in ("senders", "receivers")}
    return graph._replace(edges=features, n_edge=np.array([number], np.int32), **ends)


def graph_of(kind):
    rng = np.random.default_rng(7)
    if kind == "complete":
        return graph_lib.batch([one_graph(rng, 4, 1) for _ in range(3)])
    if kind == "sparse":  # as many edges each, but others
        graphs = [one_graph(rng, 9, 0.5) for _ in range(3)]
        least = min(len(graph.senders) for graph in graphs)
        return graph_lib.batch([first_edges(graph, least) for graph in graphs])
    # One node sends and receives more edges than a row of segments holds.
    graph = graph_lib.batch([one_graph(rng, size, 0.7) for size in (3, 14, 5)])
    return graph if kind == "mixed" else graph_lib.pad(graph)[0]


def function(params, positions, graph, times, num_real):
    nodes = {**graph.nodes, "positions": positions}
    found = egno_jax.apply(params, graph._replace(nodes=nodes), times)
    found = jax.tree.map(lambda leaf: leaf[:, :num_real], found)
    return jnp.sum(jnp.sin(found.positions)) + jnp.sum(found.features**2), found


gradient = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True), static_argnums=4)


@pytest.mark.parametrize(("kind", "graph"), CASES)
def test_values_and_gradients_are_those_of_the_specification(kind, graph):
    with jax.enable_x64(True):
        num_real, graph = (None if graph != "padded" else 22), graph_of(graph)
        params = helpers.random_params(np.random.default_rng(0), CONFIG)
        times = np.tile(TIMES[:, None], (1, len(graph.n_node))) + np.arange(len(graph.n_node)) / 8
        expected = gradient(params, graph.nodes["positions"], graph, times, num_real)
        prepared = graph_lib.prepare(graph, kind)
        assert graph_lib.layout_of(prepared) is not None
        found = gradient(params, graph.nodes["positions"], prepared, times, num_real)
        helpers.assert_trees_close(found, expected, 1e-12)


@pytest.mark.slow
def test_branches_for_tpus_compute_the_specification(monkeypatch):
    """Values, gradients and their derivatives of a model, in all layouts."""
    config = dataclasses.replace(RUN_MODEL, hidden_dim=128, param_dtype="float64")
    times = np.array([1.0, 2.0, 3.0])
    with jax.enable_x64(True):
        graph = graph_of("sparse")
        params = helpers.random_params(np.random.default_rng(0), config)
        primals = params, graph.nodes["positions"]

        def derivatives(graph):
            def of(*given):
                return jax.grad(function, (0, 1), has_aux=True)(*given, graph, times, None)

            return jax.jit(lambda: jax.jvp(of, primals, jax.tree.map(np.cos, primals)))()

        expected = derivatives(graph)
        jax.clear_caches()  # of what is traced with other branches
        helpers.use_tpu_branches(monkeypatch)
        for kind in ("none", *KINDS):
            helpers.assert_trees_close(derivatives(graph_lib.prepare(graph, kind)), expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_other_derivatives_and_maps_are_those_of_the_specification(kind):
    """Forward mode, reverse over reverse, and `vmap` over states and over layouts."""
    with jax.enable_x64(True):
        graph = graph_of("sparse" if kind == "incidence" else "mixed")
        layout = graph_lib.layout_of(graph_lib.prepare(graph, kind))
        specification = ops.EdgeList(graph.senders, graph.receivers, len(graph.nodes["positions"]))
        rng = np.random.default_rng(1)
        values, tangent = (rng.normal(size=(2, len(graph.nodes["positions"]), 3)) for _ in range(2))

        def sums(values, edges):
            is_blocks = isinstance(edges, ops.Blocks)
            x = edges.to_blocks(values) if is_blocks else values
            found = edges.to_receivers(jnp.sin(edges.of_senders(x)) * edges.of_receivers(x))
            return edges.to_nodes(found) if is_blocks else found

        def of(edges):
            def squared(x):
                return jnp.sum(sums(x, edges) ** 2)

            each = jax.vmap(lambda x: sums(x, edges))(jnp.stack([values, tangent]))
            stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), edges)
            both = jax.vmap(lambda x, e: jax.grad(lambda x: jnp.sum(sums(x, e) ** 2))(x))
            by_layout = None
            if not isinstance(edges, ops.EdgeList):
                by_layout = both(jnp.stack([values, tangent]), stacked)
            else:
                by_layout = jnp.stack([jax.grad(squared)(x) for x in (values, tangent)])
            hessian = jax.grad(lambda x: jnp.vdot(jax.grad(squared)(x), tangent))(values)
            return (
                jax.jvp(lambda x: sums(x, edges), (values,), (tangent,)),
                each,
                by_layout,
                hessian,
            )

        helpers.assert_trees_close(of(layout), of(specification), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_no_scatter_and_but_with_segments_no_gather(kind):
    """But with blocks the means of graphs, at the beginning and the end, scatter and gather."""
    graph = graph_lib.prepare(graph_of("complete"), kind)

    def count(num_layers):
        config = egno_jax.EGNOConfig(num_layers=num_layers, hidden_dim=8, time_embed_dim=4)
        params = helpers.random_params(np.random.default_rng(0), config)

        def loss(params):
            return function(params, graph.nodes["positions"], graph, TIMES, None)[0]

        text = jax.jit(jax.grad(loss)).lower(params).as_text()
        return [len(re.findall(rf'stablehlo.{name}"?\(', text)) for name in ("scatter", "gather")]

    one, two = count(1), count(2)
    assert one[0] == two[0]
    if kind != "segments":
        assert one == two
    if kind == "blocks":
        assert one == [0, 0]


@pytest.mark.parametrize(("kind", "is_full"), [("complete", True), ("mixed", False)])
def test_means_of_blocks_are_those_of_graphs(kind, is_full):
    graph = graph_of(kind)
    layout = graph_lib.layout_of(graph_lib.prepare(graph, "blocks"))
    assert layout.is_full == is_full
    n_node = np.asarray(graph.n_node)
    values = np.random.default_rng(0).normal(size=(n_node.sum(), 3))
    with jax.enable_x64(True):
        found = layout.graph_mean(layout.to_blocks(values[None]))[0, 0]
        expected = ops.graph_mean(values, np.repeat(np.arange(len(n_node)), n_node), n_node)
        helpers.assert_close(found, expected, 1e-14)


@pytest.mark.parametrize("channels", [3, 64, 130])
@pytest.mark.parametrize("dtype", [np.int32, np.int8])
def test_rows_of_tpus_gather_and_add_up_as_the_specification(monkeypatch, dtype, channels):
    rng = np.random.default_rng(channels)
    times, nodes = 3, 50  # more rows than an int8 counts
    # Gathers clip these indices; sums leave out all that count from neither end.
    nowhere = min(NOWHERE, np.iinfo(dtype).max)
    indices = np.array([49, 0, 0, 2, -1, -51, 50, nowhere], dtype)
    edges = ops.EdgeList(indices, indices, nodes)
    of_nodes, of_edges = (rng.normal(size=(times, n, channels)) for n in (nodes, len(indices)))

    def both(of_nodes, of_edges):
        return edges.of_senders(of_nodes), edges.to_receivers(of_edges)

    with jax.enable_x64(True):
        expected, pullback = jax.vjp(both, of_nodes, of_edges)
        gradients = pullback((of_edges, of_nodes))
        np.testing.assert_array_equal(expected[0], of_nodes[:, np.clip(indices, 0, nodes - 1)])
        total = np.zeros_like(of_nodes)
        np.add.at(total, (slice(None), indices[:5]), of_edges[:, :5])
        np.testing.assert_allclose(expected[1], total, atol=1e-14)
        helpers.use_tpu_branches(monkeypatch)
        found, pullback = jax.vjp(both, of_nodes, of_edges)
        helpers.assert_trees_close(
            (found, pullback((of_edges, of_nodes))), (expected, gradients), 1e-14
        )


def test_a_layout_is_chosen_by_size_and_density(monkeypatch):
    monkeypatch.delenv("EGNO_JAX_LAYOUT", raising=False)

    def kind_of(graph, kind):
        return type(graph_lib.layout_of(graph_lib.prepare(graph, kind)))

    complete, mixed = graph_of("complete"), graph_of("mixed")
    rng = np.random.default_rng(0)
    sparse = one_graph(rng, 40, 0.1)
    assert kind_of(complete, "auto") is (
        type(None) if jax.default_backend() == "cpu" else ops.Blocks
    )
    for platform in ("gpu", "tpu"):
        assert kind_of(complete, platform) is ops.Blocks
    for small in (sparse, graph_of("sparse")):
        assert kind_of(small, "gpu") is type(None)
        assert kind_of(small, "tpu") is ops.Incidence
    assert kind_of(one_graph(rng, 70, 0.1), "tpu") is type(None)
    assert kind_of(one_graph(rng, 70, 0.1), "incidence") is ops.Incidence
    with monkeypatch.context() as patch:
        patch.setenv("EGNO_JAX_KERNELS", "pallas")
        assert kind_of(one_graph(rng, 70, 0.1), "tpu") is ops.EdgeList
        for graph in (complete, mixed, sparse):
            assert kind_of(graph, "gpu") is ops.EdgeList
        assert graph_lib.layout_of(graph_lib.prepare(complete, "list")).num_graphs == 3
        assert graph_lib.layout_of(graph_lib.prepare(mixed, "list")).num_graphs == 1
    with pytest.raises(ValueError, match="graphs differ in their numbers of nodes or edges"):
        graph_lib.prepare(mixed, "incidence")
    assert kind_of(graph_lib.prepare(mixed, "blocks"), "none") is type(None)
    twice = mixed._replace(
        senders=np.repeat(mixed.senders, 2),
        receivers=np.repeat(mixed.receivers, 2),
        edges={"features": np.repeat(mixed.edges["features"], 2, axis=0)},
        n_edge=2 * mixed.n_edge,
    )
    assert kind_of(twice, "tpu") is type(None)
    assert kind_of(twice, "segments") is ops.Segments
    with pytest.raises(ValueError, match="edge 1 connects the same nodes"):
        graph_lib.prepare(twice, "blocks")
    with pytest.raises(ValueError, match="kind: got 'dense', expected one of"):
        graph_lib.prepare(mixed, "dense")
    monkeypatch.setenv("EGNO_JAX_LAYOUT", "rows")
    with pytest.raises(ValueError, match="EGNO_JAX_LAYOUT: got 'rows'"):
        egno_jax.graph.prepare(mixed)


@pytest.mark.parametrize("layer", ["egnn", "vector"])
@pytest.mark.parametrize("kind", ["list", "segments"])
def test_the_edges_are_those_of_the_layout(layer, kind):
    graph = graph_of("sparse")
    others = graph._replace(senders=graph.receivers, receivers=graph.senders)
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=16, time_embed_dim=4, layer=layer)
    params = egno_jax.init(jax.random.key(0), config, graph, TIMES)
    layout = graph_lib.layout_of(graph_lib.prepare(others, kind))
    found = helpers.apply(params, graph_lib.with_layout(graph, layout), TIMES)
    helpers.assert_trees_close(found, helpers.apply(params, others, TIMES), 1e-5)


def test_a_layout_of_other_edges_is_refused_and_batches_leave_it_out():
    graph = graph_lib.prepare(graph_of("mixed"), "blocks")
    shorter = graph._replace(senders=graph.senders[:-1], receivers=graph.receivers[:-1])
    with pytest.raises(ValueError, match=r"the layout of \d+ edges, expected .*prepare again"):
        graph_lib.layout_of(shorter)
    graph_lib.validate(graph)
    for other in (graph_lib.batch([graph, graph]), graph_lib.pad(graph)[0]):
        assert graph_lib.layout_of(other) is None
    assert all(graph_lib.layout_of(part) is None for part in graph_lib.unbatch(graph))


def test_apply_prepares_a_graph_that_it_can_read(monkeypatch):
    graph = graph_of("complete")
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, time_embed_dim=4)
    params = helpers.random_params(np.random.default_rng(0), config)
    expected = helpers.apply(params, graph, TIMES)
    seen = []
    sums_over = ops.Blocks.to_receivers

    def noted(self, values):
        seen.append(values.shape)
        return sums_over(self, values)

    monkeypatch.setattr(ops.Blocks, "to_receivers", noted)
    monkeypatch.setenv("EGNO_JAX_LAYOUT", "blocks")
    others = {"mass": np.ones(12, np.float32)}  # the model does not use it
    graph = graph._replace(nodes={**graph.nodes, **others})
    found = egno_jax.apply(params, graph, TIMES)
    assert [shape[1:4] for shape in seen] == [(4, 3, 3), (4, 3, 3)]
    helpers.assert_trees_close(found, expected, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_with_a_layout_are_the_same(kind, monkeypatch):
    graph = graph_of("complete")
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, time_embed_dim=4, velocity_weight=1.0)
    params = helpers.random_params(np.random.default_rng(0), config)

    def rolled(kind):
        monkeypatch.setenv("EGNO_JAX_LAYOUT", kind)
        next_graph = rolling.refresh(speed_column=0, squared_distance_column=0)
        graph_with_columns = graph._replace(
            nodes={
                **graph.nodes,
                "features": np.linalg.norm(graph.nodes["velocities"], axis=1, keepdims=True)
                * np.ones((1, 2), np.float32),
            },
            edges={"features": distances(graph)},
        )
        return rolling.rollout(params, graph_with_columns, TIMES, 2, next_graph=next_graph)

    helpers.assert_trees_close(rolled(kind), rolled("none"), 1e-5)


def distances(graph):
    x = graph.nodes["positions"]
    squared = np.sum((x[graph.receivers] - x[graph.senders]) ** 2, axis=1, keepdims=True)
    return np.concatenate([squared, squared], axis=1)


def test_training_and_evaluation_with_a_layout_are_the_same(monkeypatch):
    params, train, valid = task()
    config = dataclasses.replace(RUN, num_steps=20)

    def run(kind):
        monkeypatch.setenv("EGNO_JAX_LAYOUT", kind)
        trainer = Trainer(train, valid, config)
        state, metrics = trainer.advance(trainer.place(init_state(params, config)), 0, 20)
        return metrics.loss, trainer.evaluate(unflatten(state.params))

    expected = run("none")
    for kind in KINDS:
        helpers.assert_trees_close(run(kind), expected, 1e-5)


@pytest.mark.parametrize("kind", ["blocks", "list", "segments"])
def test_edges_may_be_in_any_order_and_must_be_between_nodes(monkeypatch, kind):
    graph = graph_of("complete")
    order = np.random.default_rng(0).permutation(len(graph.senders))
    mixed = graph._replace(
        senders=graph.senders[order],
        receivers=graph.receivers[order],
        edges=jax.tree.map(lambda x: x[order], graph.edges),
    )
    params = helpers.random_params(np.random.default_rng(0), RUN_MODEL)
    expected = egno_jax.apply(params, graph, TIMES)
    monkeypatch.setenv("EGNO_JAX_LAYOUT", kind)
    helpers.assert_trees_close(egno_jax.apply(params, mixed, TIMES), expected, 1e-5)
    without_nodes = mixed._replace(nodes=None)
    assert graph_lib.layout_of(graph_lib.prepare(without_nodes, kind)) is not None
    for wrong in (len(graph.nodes["positions"]), -1):
        senders = np.where(np.arange(len(order)) == 0, wrong, graph.senders)
        with pytest.raises(ValueError, match=r"graph\.senders: got indices from"):
            graph_lib.prepare(graph._replace(senders=senders), kind)
        assert graph_lib.prepared(graph._replace(senders=senders)).globals is graph.globals


def assert_lists_its_edges(layout):
    """Asserts that a list has each edge once at its receiver, and once at its sender."""
    ends = np.stack([layout.receivers, layout.senders])
    for adjacency, (own, others) in ((layout.incoming, ends), (layout.outgoing, ends[::-1])):
        assert {x.dtype for x in jax.tree.leaves(adjacency)} == {np.dtype("int32")}
        assert sorted(adjacency.edges) == list(range(layout.num_edges))
        np.testing.assert_array_equal(others[adjacency.edges], adjacency.others)
        for node, (start, count) in enumerate(zip(adjacency.starts, adjacency.counts, strict=True)):
            edges = adjacency.edges[start : start + count]
            np.testing.assert_array_equal(edges, np.flatnonzero(own == node))


def test_samples_of_one_size_have_a_layout_for_each_batch(monkeypatch):
    _, samples, _ = task()
    for kind in KINDS:
        monkeypatch.setenv("EGNO_JAX_LAYOUT", kind)
        prepared = base.prepared(samples)
        for xp in (np, jnp):
            batch = base.take(prepared, np.array([2, 0, 5]), xp)
            found = graph_lib.layout_of(batch.graph)
            direct = graph_lib.layout_of(graph_lib.prepare(batch.graph, kind))
            assert getattr(found, "num_graphs", 3) == getattr(direct, "num_graphs", 3) == 3
            if kind == "list":
                counted = dataclasses.replace(found, incoming=None)
                for layout in (found, direct, counted):
                    np.testing.assert_array_equal(layout.in_degree(float), direct.in_degree(float))
                assert_lists_its_edges(found)
            features = batch.graph.edges["features"]
            x = batch.graph.nodes["positions"][None]
            sums = []
            for layout in (found, direct):
                is_blocks = kind == "blocks"
                y = layout.to_blocks(x) if is_blocks else x
                total = layout.to_receivers(
                    layout.of_senders(y)
                    * jnp.sum(layout.edge_features(features), -1)[None, ..., None]
                )
                sums.append(layout.to_nodes(total) if is_blocks else total)
            helpers.assert_close(*sums, 1e-6)


def test_repeated_edges_of_samples_are_refused_in_blocks():
    _, samples, _ = task()
    graph = samples.graph
    senders, receivers = np.array(graph.senders), np.array(graph.receivers)
    senders[3, 1], receivers[3, 1] = senders[3, 0], receivers[3, 0]
    twice = graph._replace(senders=senders, receivers=receivers)
    with pytest.raises(ValueError, match="connects the same nodes"):
        graph_lib.stacked_layout(twice, samples.node_mask, "blocks")
    assert graph_lib.stacked_layout(twice, samples.node_mask, "segments") is not None
    assert graph_lib.stacked_layout(twice, samples.node_mask, "gpu") is None
    found = graph_lib.stacked_layout(twice, samples.node_mask, "tpu")
    assert isinstance(found, ops.Incidence)


def test_nodes_that_count_nowhere_are_nodes_of_the_graph(monkeypatch):
    """A node mask is for losses; the centre of a graph is that of all its nodes."""
    params = helpers.random_params(np.random.default_rng(0), RUN_MODEL)
    samples = masked_samples([1])
    batches = {}
    for kind in ("none", "blocks"):
        monkeypatch.setenv("EGNO_JAX_LAYOUT", kind)
        batches[kind] = base.take(base.prepared(samples), np.arange(2))
    assert isinstance(graph_lib.layout_of(batches["blocks"].graph), ops.Blocks)
    monkeypatch.setenv("EGNO_JAX_LAYOUT", "none")
    none, blocks = (helpers.apply(params, batch.graph, TIMES) for batch in batches.values())
    helpers.assert_trees_close(blocks, none, 1e-5)


def masked_samples(parts):
    """Returns two samples of graphs of 4 nodes in parts, whose first node counts in no loss."""
    rng = np.random.default_rng(0)
    graphs = [graph_lib.batch([one_graph(rng, 4, 1) for _ in parts]) for _ in range(2)]
    num_nodes = len(graphs[0].nodes["positions"])
    mask = np.arange(num_nodes) > 0
    targets = np.zeros((2, len(TIMES), num_nodes, 3))
    return datasets.stack(graphs, TIMES, targets, node_mask=[mask, mask])


def test_samples_of_several_graphs_are_refused_in_blocks():
    samples = masked_samples([1, 2])
    with pytest.raises(ValueError, match="a sample has several graphs, expected one, and padding"):
        graph_lib.stacked_layout(samples.graph, samples.node_mask, "blocks")
    assert graph_lib.stacked_layout(samples.graph, samples.node_mask, "gpu") is None
    found = graph_lib.stacked_layout(samples.graph, samples.node_mask, "tpu")
    assert isinstance(found, ops.Incidence) and found.num_nodes == 8
    many = masked_samples([1] * 17)  # 68 nodes each
    assert graph_lib.stacked_layout(many.graph, many.node_mask, "tpu") is None


def test_graphs_with_self_loops_are_arranged_otherwise_than_by_blocks():
    rng = np.random.default_rng(0)
    graph = one_graph(rng, 4, 1)
    edges = graph_lib.Edges(
        np.append(graph.senders, np.arange(4)),
        np.append(graph.receivers, np.arange(4)),
        rng.normal(size=(16, 2)),
    )
    nodes = [graph.nodes[name] for name in ("positions", "velocities", "features")]
    graph = graph_lib.build(*nodes, edges)
    params = helpers.random_params(np.random.default_rng(0), RUN_MODEL)
    with pytest.raises(ValueError, match=r"kind: got 'blocks', but edge 12 connects a node with"):
        graph_lib.prepare(graph, "blocks")
    prepared = graph_lib.prepare(graph, "tpu")
    assert isinstance(graph_lib.layout_of(prepared), ops.Incidence)
    found, expected = (helpers.apply(params, each, TIMES) for each in (prepared, graph))
    helpers.assert_trees_close(found, expected, 1e-5)


def test_prepared_graphs_are_stacked_without_their_layouts():
    rng = np.random.default_rng(0)
    graphs = [graph_lib.prepare(one_graph(rng, size, 1), "blocks") for size in (4, 5)]
    targets = [np.zeros((len(TIMES), size, 3)) for size in (4, 5)]
    assert graph_lib.layout_of(datasets.stack(graphs, TIMES, targets).graph) is None


def test_flat_weights_take_the_steps_of_the_tree(monkeypatch):
    params, train, _ = task()

    def after(kind):
        monkeypatch.setenv("EGNO_JAX_LAYOUT", kind)
        step = jax.jit(lambda state: train_step(state, train, RUN))  # traced anew
        state = init_state(params, RUN)
        for _ in range(5):
            state, metrics = step(state)
        is_flat = isinstance(flatten(params), FlatParams)
        assert is_flat == (kind == "tpu")
        return state.params, state.ema, state.opt_state, metrics

    helpers.assert_trees_close(after("tpu"), after("none"), 1e-5)


def test_memory_maps_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("EGNO_JAX_LAYOUT", "blocks")
    _, samples, _ = task()
    senders = np.memmap(tmp_path / "senders", np.int32, "w+", shape=samples.graph.senders.shape)
    senders[:] = samples.graph.senders
    mapped = samples._replace(graph=samples.graph._replace(senders=senders))
    assert base.prepared(mapped) is mapped
    assert graph_lib.layout_of(base.prepared(samples).graph) is not None


def test_places_without_an_edge_stay_out_of_range():
    layout = graph_lib.layout_of(graph_lib.prepare(graph_of("mixed"), "segments"))
    assert (np.asarray(layout.edges) >= NOWHERE).any()
    joined = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), layout).joined(22)
    assert ((joined.edges >= NOWHERE) == np.concatenate([layout.edges >= NOWHERE] * 2)).all()
    assert joined.num_edges == 2 * layout.num_edges
