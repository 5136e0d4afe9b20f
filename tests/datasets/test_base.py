from __future__ import annotations

import jax
import jraph
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import datasets
from egno_jax import graph as graphs
from egno_jax.datasets import nbody
from tests import helpers


def random_samples(seed, num_samples=5, num_nodes=4, num_edges=6, num_times=3):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(2, num_samples, num_nodes, 3)).astype(np.float32)
    targets = rng.normal(size=(2, num_samples, num_times, num_nodes, 3)).astype(np.float32)
    graph = jraph.GraphsTuple(
        nodes={"positions": states[0], "velocities": states[1], "features": states[0, ..., :1]},
        edges={"features": rng.normal(size=(num_samples, num_edges, 2)).astype(np.float32)},
        senders=rng.integers(num_nodes, size=(num_samples, num_edges), dtype=np.int32),
        receivers=rng.integers(num_nodes, size=(num_samples, num_edges), dtype=np.int32),
        n_node=np.full((num_samples, 1), num_nodes, np.int32),
        n_edge=np.full((num_samples, 1), num_edges, np.int32),
        globals=None,
    )
    return datasets.Samples(
        graph=graph,
        times=np.arange(1.0, num_times + 1, dtype=np.float32),
        positions=targets[0],
        velocities=targets[1],
        node_mask=rng.random((num_samples, num_nodes)) < 0.5,
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


# One batch size, since each one is compiled anew.
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), indices=st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_take_joins_the_samples_asked_for(seed, indices):
    samples = random_samples(seed)
    batch = datasets.take(samples, np.array(indices))
    expected = jraph.batch_np(
        [
            jax.tree.map(lambda leaf, i=i: leaf[i], samples.graph)._replace(
                n_node=samples.graph.n_node[i], n_edge=samples.graph.n_edge[i]
            )
            for i in indices
        ]
    )
    assert jax.tree.structure(batch.graph) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, batch.graph, expected)
    for name in ("positions", "velocities"):
        joined = np.concatenate([getattr(samples, name)[i] for i in indices], axis=1)
        np.testing.assert_array_equal(getattr(batch, name), joined)
    np.testing.assert_array_equal(
        batch.node_mask, np.concatenate([samples.node_mask[i] for i in indices])
    )
    np.testing.assert_array_equal(batch.times, samples.times)


def test_take_on_the_host_gives_the_same_arrays():
    samples, indices = random_samples(0), np.array([3, 0, 3])
    found = datasets.take(samples, indices, np)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert_equal(found, jax.device_get(datasets.take(samples, indices)))


@pytest.mark.parametrize("xp", [np, jax.numpy])
@pytest.mark.parametrize("indices", [[-1], [3], [True, False, True], [[0]], [0.0]])
def test_take_refuses_what_no_sample_has(indices, xp):
    with pytest.raises(ValueError, match="indices: got"):
        datasets.take(random_samples(0, num_samples=3), indices, xp)


def test_take_works_with_traced_indices():
    samples = random_samples(0)
    indices = np.array([3, 0, 3])
    assert_equal(jax.jit(datasets.take)(samples, indices), datasets.take(samples, indices))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_concatenate_keeps_every_sample_in_order(seed, sizes):
    parts = [random_samples(seed + k, num_samples=size) for k, size in enumerate(sizes)]
    joined = datasets.concatenate(*parts)
    assert datasets.num_samples(joined) == sum(sizes)
    first = 0
    for part in parts:
        chosen = slice(first, first + datasets.num_samples(part))
        again = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], joined)
        assert_equal(again._replace(times=joined.times), part)
        first = chosen.stop


def test_concatenate_refuses_samples_of_other_sizes():
    with pytest.raises(ValueError, match=r"positions.*\(3, 5, 3\), expected \(3, 4, 3\).*pad"):
        datasets.concatenate(random_samples(0), random_samples(1, num_nodes=5))


def test_concatenate_refuses_samples_without_the_same_fields():
    samples = random_samples(0)
    bare = samples._replace(graph=samples.graph._replace(edges=None))
    with pytest.raises(ValueError, match=r"edges.*None, expected"):
        datasets.concatenate(samples, bare)


def test_samples_of_other_times_keep_them():
    samples = random_samples(0)
    later = samples._replace(times=samples.times + 1)
    joined = datasets.concatenate(samples, later, samples)
    datasets.validate(joined)
    assert joined.times.shape == (15, 3)
    indices = np.array([2, 7, 14])
    batch = datasets.take(joined, indices)
    np.testing.assert_array_equal(batch.times, np.array([[1, 2, 1], [2, 3, 2], [3, 4, 3]]))
    assert_equal(datasets.take(joined, indices, np), jax.device_get(batch))
    expected = datasets.take(samples, indices % 5)
    assert_equal(batch._replace(times=expected.times), expected)
    kept = datasets.at_times(batch, np.array([[0, 0, 1], [1, 2, 2]]))
    np.testing.assert_array_equal(kept.times, np.array([[1, 2, 2], [2, 4, 3]]))
    with pytest.raises(ValueError, match=r"times: got \(3,\), expected \(2,\)"):
        datasets.concatenate(random_samples(0, num_times=2), samples)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_indices_of_a_batch_do_not_overflow(dtype):
    """100 samples of 5 nodes have indices that no 8 bits hold."""
    samples = nbody.samples(nbody.canonical("train", num_simulations=2), target_frames=(40,))
    narrow = samples.graph._replace(
        senders=samples.graph.senders.astype(dtype), receivers=samples.graph.receivers.astype(dtype)
    )
    indices = np.arange(100) % 2
    found = datasets.take(samples._replace(graph=narrow), indices).graph
    expected = datasets.take(samples, indices).graph
    np.testing.assert_array_equal(found.senders, expected.senders)
    np.testing.assert_array_equal(found.receivers, expected.receivers)
    assert found.senders.max() == 499


def with_array(field, change):
    return lambda samples: samples._replace(**{field: change(getattr(samples, field))})


# Of 5 samples, 3 times, 4 nodes.
FAULTS = {
    "no samples": (
        lambda samples: None,
        "samples: got NoneType, expected .*Samples; .*stack makes",
    ),
    "a batch": (lambda samples: datasets.take(samples, np.arange(2)), "samples: got Batch"),
    "fewer targets than graphs": (
        with_array("positions", lambda x: x[:2]),
        r"positions: got .*\[S, P, N, 3\] with S = 5, P = 3, N = 4; axis 0 must have length 5",
    ),
    "targets of other times": (
        with_array("positions", lambda x: x[:, :2]),
        "positions: .* axis 1 must have length 3",
    ),
    "targets of other nodes": (
        with_array("velocities", lambda x: x[:, :, :3]),
        "velocities: .* axis 2 must have length 4",
    ),
    "targets in a plane": (
        with_array("positions", lambda x: x[..., :2]),
        "positions: .* axis 3 must have length 3",
    ),
    "targets without times": (
        with_array("positions", lambda x: x[:, 0]),
        "positions: .* rank 3 must be 4",
    ),
    "integer targets": (
        with_array("positions", lambda x: x.astype(np.int32)),
        "positions: got int32 .*, expected floating",
    ),
    "no targets": (
        with_array("positions", lambda x: None),
        "positions: got NoneType, expected an array",
    ),
    "no mask": (
        with_array("node_mask", lambda x: None),
        "node_mask: got NoneType, expected an array",
    ),
    "a mask of numbers": (
        with_array("node_mask", lambda x: x.astype(np.float32)),
        r"node_mask: got .*, expected boolean \[S, N\]",
    ),
    "a mask of other nodes": (
        with_array("node_mask", lambda x: x[:, :3]),
        "node_mask: .* axis 1 must have length 4",
    ),
    "a list of times": (
        with_array("times", lambda x: x.tolist()),
        "times: got list, expected an array",
    ),
    "more times than targets": (
        with_array("times", lambda x: np.arange(1.0, 5.0)),
        "positions: .* with S = 5, P = 4, .* axis 1 must have length 4",
    ),
    "times of other samples": (
        with_array("times", lambda x: np.tile(x, (4, 1))),
        r"times: got .* \[4, 3\], expected .*S = 5",
    ),
    "a graph without samples": (
        with_array("graph", lambda g: jax.tree.map(lambda leaf: leaf[0], g)),
        r"graph.n_node: got .*, expected integer \[S, G\]",
    ),
    "edges of other samples": (
        with_array("graph", lambda g: g._replace(senders=g.senders[:3])),
        r"graph.senders: got int32 \[3, 6\], expected integer \[S, E\] with S = 5",
    ),
    "times of one sample that fall": (
        with_array("times", lambda x: np.concatenate([np.tile(x, (4, 1)), [x[::-1]]])),
        "times: .* increase strictly",
    ),
    "times that fall": (with_array("times", lambda x: x[::-1]), "times: .* increase strictly"),
    "infinite velocities": (
        with_array("velocities", lambda x: np.full_like(x, np.inf)),
        "velocities: got NaN or infinite",
    ),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_fields_that_do_not_go_together_are_named(change, message):
    samples = random_samples(0)
    datasets.validate(samples)
    with pytest.raises(ValueError, match=message):
        datasets.validate(change(samples))


def test_samples_without_velocities_are_the_others_without_them():
    full, indices = random_samples(0), np.array([2, 0])
    bare = full._replace(velocities=None)
    datasets.validate(bare)
    batch = datasets.take(full, indices)
    assert_equal(datasets.take(bare, indices), batch._replace(velocities=None))
    kept = np.array([[0, 1], [2, 2]])
    expected = datasets.at_times(batch, kept)._replace(velocities=None)
    assert_equal(datasets.at_times(datasets.take(bare, indices), kept), expected)
    joined = datasets.concatenate(full, full)._replace(velocities=None)
    assert_equal(datasets.concatenate(bare, bare), joined)
    with pytest.raises(ValueError, match=r"velocities: got None, expected \(3, 4, 3\)"):
        datasets.concatenate(full, bare)


def frames(seed, num_samples=3, num_times=2, num_nodes=4):
    """Random positions and velocities, initial state first, and speeds."""
    rng = np.random.default_rng(seed)
    positions, velocities = rng.normal(size=(2, num_samples, 1 + num_times, num_nodes, 3))
    return positions, velocities, np.linalg.norm(velocities[:, 0], axis=-1)[..., None]


def test_samples_with_own_edges_are_those_of_shared_edges_padded():
    positions, velocities, speeds = frames(0)
    edges, times = graphs.fully_connected_edges(4), np.array([1, 3])
    shared = datasets.samples_from_frames(positions, velocities, speeds, edges, times)
    datasets.validate(shared)
    own = [graphs.with_features(edges, graphs.squared_distances(x, edges)) for x in positions[:, 0]]
    padded = datasets.samples_with_own_edges(
        positions, velocities, speeds, own, times, num_edges=15
    )
    datasets.validate(padded)
    for sample in range(3):
        found, expected = (
            jax.tree.map(lambda x, i=sample: x[i], part.graph) for part in (padded, shared)
        )
        found = graphs.unbatch(found)[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
        targets = padded.positions[sample][:, padded.node_mask[sample]]
        np.testing.assert_array_equal(targets, shared.positions[sample])
    # Padding edges connect the padding node to itself.
    assert (padded.graph.senders[:, 12:] == 4).all() and (padded.graph.receivers[:, 12:] == 4).all()


def test_arrays_that_are_not_samples_are_refused():
    positions, velocities, speeds = frames(1)
    edges, times = graphs.fully_connected_edges(5), np.array([1, 3])
    with pytest.raises(ValueError, match="edges: got nodes 0 to 4, expected 0 to 3"):
        datasets.samples_from_frames(positions, velocities, speeds, edges, times)
    edges = graphs.fully_connected_edges(4)
    with pytest.raises(ValueError, match="dtype: got int32"):
        datasets.samples_from_frames(positions, velocities, speeds, edges, times, dtype=np.int32)
    own = [edges._replace(features=np.ones((12, 1)))] * 3
    with pytest.raises(ValueError, match="num_edges: got 11, expected at least 12"):
        datasets.samples_with_own_edges(positions, velocities, speeds, own, times, num_edges=11)


def test_external_vectors_are_given_to_every_node():
    samples = datasets.nbody.samples(datasets.nbody.canonical("test", num_simulations=3))
    for shape in ((2, 3), (3, 1, 2, 3), (3, 5, 2, 3)):
        vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        found = datasets.with_vectors(samples, vectors).graph.nodes["vectors"]
        np.testing.assert_array_equal(found, np.broadcast_to(vectors, (3, 5, 2, 3)))
    datasets.validate(datasets.with_vectors(samples, [[0, 0, 1]]))
    for shape in ((3,), (1, 2), (2, 1, 2, 3), (4, 2, 3)):
        with pytest.raises(ValueError, match=r"vectors: got shape .* with S = 3 and N = 5"):
            datasets.with_vectors(samples, np.zeros(shape))


@pytest.mark.parametrize("kind", ["none", "tpu"])
def test_batches_of_samples_keep_the_globals_of_graphs(monkeypatch, kind):
    monkeypatch.setenv("EGNO_JAX_LAYOUT", kind)
    rng = np.random.default_rng(0)
    charges = [np.full((1, 2), index, np.float32) for index in (1, 2, 3)]
    parts = [
        helpers.random_graph(rng, [size])._replace(globals={"charge": charge})
        for size, charge in zip((3, 5, 4), charges, strict=True)
    ]
    targets = [np.zeros((1, size, 3), np.float32) for size in (3, 5, 4)]
    samples = datasets.base.prepared(datasets.stack(parts, [1.0], targets))
    batch = datasets.take(samples, np.array([2, 0]))
    assert (graphs.layout_of(batch.graph) is None) == (kind == "none")
    found = batch.graph.globals["charge"]
    np.testing.assert_array_equal(found, [[3, 3], [0, 0], [1, 1], [0, 0]])
