"""Buckets: the least padding there is, and nothing lost or counted twice."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from egno_jax import datasets, graph
from egno_jax.datasets import Samples, bucketed, choose_buckets, padding_share


def swarm(num_bodies, num_samples, seed=0, num_times=2):
    """Returns samples of bodies that all see each other and drift; no data set, but like one."""
    rng = np.random.default_rng([seed, num_bodies])
    positions, velocities = rng.normal(size=(2, num_samples, num_bodies, 3)).astype(np.float32)
    times = np.arange(1, num_times + 1, dtype=np.float32)
    edges = graph.fully_connected_edges(num_bodies)
    graphs = [
        graph.build(
            positions=positions[i],
            velocities=velocities[i],
            features=np.ones((num_bodies, 1), np.float32),
            edges=edges,
        )
        for i in range(num_samples)
    ]
    steps = times[:, None, None]
    return Samples(
        graph=jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, graphs)),
        times=times,
        positions=positions[:, None] + 0.3 * steps * velocities[:, None],
        velocities=np.repeat(velocities[:, None], num_times, axis=1),
        node_mask=np.ones((num_samples, num_bodies), bool),
    )


def rows_of(sizes, buckets):
    return sum(len(bucket) * sizes[bucket].max(axis=0).sum() for bucket in buckets)


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 7])
def test_no_cut_pads_less(num_buckets):
    rng = np.random.default_rng(num_buckets)
    nodes = rng.integers(2, 9, 12)
    sizes = np.stack([nodes, nodes * (nodes - 1)], axis=1)
    found = choose_buckets(sizes, num_buckets)
    assert sorted(np.concatenate(found)) == list(range(12))
    kinds = np.unique(nodes)
    assert len(found) == min(num_buckets, len(kinds))
    cuts = itertools.combinations(kinds[1:], len(found) - 1)
    divisions = (
        [np.flatnonzero(np.digitize(nodes, cut) == i) for i in range(len(found))] for cut in cuts
    )
    assert rows_of(sizes, found) == min(rows_of(sizes, division) for division in divisions)


def test_every_sample_is_in_one_bucket_as_it_was():
    parts = [swarm(bodies, 2) for bodies in (5, 3, 4, 8)]
    buckets = bucketed(parts, num_buckets=2)
    assert [part.positions.shape[2] for part in buckets.samples] == [5, 8]
    assert [origin.tolist() for origin in buckets.origins] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    for part, origin in zip(buckets.samples, buckets.origins, strict=True):
        datasets.validate(part)
        for index, source in enumerate(origin):
            given, place = parts[source // 2], source % 2
            real = part.node_mask[index]
            np.testing.assert_array_equal(part.positions[index][:, real], given.positions[place])
            nodes = part.graph.nodes["velocities"][index]
            np.testing.assert_array_equal(nodes[real], given.graph.nodes["velocities"][place])
            assert part.graph.n_node[index, 0] == given.positions.shape[2]
    assert padding_share(buckets) == pytest.approx(1 - (2 * (3 + 4 + 5) + 16) / (6 * 5 + 16))
    assert padding_share(parts[0]) == 0


def test_more_buckets_waste_less():
    parts = [swarm(bodies, 1) for bodies in range(3, 11)]
    waste = [padding_share(bucketed(parts, number)) for number in (1, 2, 4, 8)]
    assert waste == sorted(waste, reverse=True) and waste[0] > 0.3 and waste[-1] == 0


def test_buckets_whose_times_differ_keep_them():
    first, second = swarm(3, 2), swarm(5, 1)
    found = bucketed([first, second._replace(times=second.times + 1)], 2)
    for bucket, expected in zip(found.samples, ([[1, 2]] * 2, [[2, 3]]), strict=True):
        np.testing.assert_array_equal(bucket.times, np.array(expected))


def test_what_does_not_fit_is_named():
    part = swarm(3, 2)
    padded = part._replace(node_mask=np.zeros_like(part.node_mask))
    for parts, message in (
        ([], "parts: got none"),
        ([part, padded], r"parts\[1\]: got padded"),
        ([part, swarm(5, 1, num_times=3)], r"times: got \[2, 3\] of them"),
    ):
        with pytest.raises(ValueError, match=message):
            bucketed(parts, 2)
    with pytest.raises(ValueError, match="num_buckets: got 0"):
        bucketed([part], 0)
    with pytest.raises(ValueError, match=r"sizes: got shape \(3,\)"):
        choose_buckets(np.arange(3), 2)


def test_parts_with_other_features_are_refused_also_in_buckets_of_their_own():
    parts = [swarm(3, 4), swarm(9, 4)]
    wider = parts[1].graph.nodes | {"features": np.ones((4, 9, 5), np.float32)}
    other = parts[1]._replace(graph=parts[1].graph._replace(nodes=wider))
    for wrong in (other, parts[1]._replace(velocities=None)):
        with pytest.raises(ValueError, match=r"parts\[1\]: got arrays .*expected those"):
            datasets.bucketed([parts[0], wrong], 2)
