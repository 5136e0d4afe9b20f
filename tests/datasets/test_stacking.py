"""Samples of custom graphs: every graph and target is where `take` finds it, padded or not."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import datasets
from egno_jax import graph as graphs
from tests import helpers

TIMES = [0.5, 1.0, 2.5]


def own_data(seed, sizes, num_graphs=1):
    """Draws graphs of these numbers of nodes, each with a target of its own."""
    rng = np.random.default_rng(seed)
    states = []
    for size in sizes:
        parts = np.diff([0, *sorted(rng.integers(0, size + 1, num_graphs - 1)), size])
        states.append(helpers.random_graph(rng, parts, num_edges=int(rng.integers(1, 9))))
    targets, velocities = (
        [rng.normal(size=(len(TIMES), size, 3)) for size in sizes] for _ in range(2)
    )
    return states, targets, velocities


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_every_sample_is_there_as_it_was(seed, sizes):
    states, targets, velocities = own_data(seed, sizes)
    samples = datasets.stack(states, TIMES, targets, velocities)
    datasets.validate(samples)
    assert datasets.num_samples(samples) == len(sizes)
    np.testing.assert_array_equal(samples.times, np.asarray(TIMES, np.float32))
    np.testing.assert_array_equal(samples.node_mask.sum(axis=1), sizes)
    for index, (size, state) in enumerate(zip(sizes, states, strict=True)):
        graph = jax.tree.map(lambda leaf, i=index: leaf[i], samples.graph)
        # Padding is a separate graph after the given one.
        jax.tree.map(np.testing.assert_array_equal, graphs.unbatch(graph)[0], state)
        assert samples.node_mask[index, :size].all()
        for found, given_ in ((samples.positions, targets), (samples.velocities, velocities)):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found[index, :, :size], np.float32(given_[index]))


def test_graphs_of_one_size_are_not_padded():
    states, targets, _ = own_data(0, [4, 4, 4])
    states = [states[0]] * 3
    samples = datasets.stack(states, np.asarray(TIMES), np.stack(targets))
    assert samples.node_mask.all()
    assert samples.velocities is None
    jax.tree.map(
        lambda leaf, one: np.testing.assert_array_equal(leaf, np.stack([one] * 3)),
        samples.graph,
        states[0],
    )


def test_masks_of_ones_own_are_kept_and_padding_never_counts():
    states, targets, _ = own_data(1, [3, 5], num_graphs=2)
    masks = [[True, False, True], np.arange(5) < 4]
    samples = datasets.stack(states, TIMES, targets, node_mask=masks)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(samples.node_mask[index, : len(mask)], mask)
        assert not samples.node_mask[index, len(mask) :].any()


def test_single_samples_go_into_buckets():
    states, targets, _ = own_data(2, [2, 6, 2, 5])
    parts = [
        datasets.stack([state], TIMES, [target])
        for state, target in zip(states, targets, strict=True)
    ]
    buckets = datasets.bucketed(parts, 2)
    for samples, origin in zip(buckets.samples, buckets.origins, strict=True):
        datasets.validate(samples)
        assert samples.velocities is None
        for row, index in enumerate(origin):
            size = len(states[index].nodes["positions"])
            found = samples.positions[row, :, :size]
            np.testing.assert_array_equal(found, np.float32(targets[index]))


BAD = {
    "no graphs": (lambda s, t: ([], TIMES, []), "graphs: got none"),
    "no graph": (
        lambda s, t: ([*s, None], TIMES, t),
        r"graphs\[2\]: graph: got .*, expected a jraph",
    ),
    "other features": (
        lambda s, t: ([s[0], s[1]._replace(edges=None)], TIMES, t),
        r"graphs\[1\].edges\['features'\]: got no array, expected",
    ),
    "times of each graph": (
        lambda s, t: (s, np.ones((3, 2)), t),
        r"times: got .*\[3, 2\], expected .*\[P\]",
    ),
    "words for times": (lambda s, t: (s, ["now"], t), "times: got .*integer or floating"),
    "too few targets": (
        lambda s, t: (s, TIMES, t[:1]),
        "positions: got 1, expected 2 arrays, one for each graph",
    ),
    "no targets": (lambda s, t: (s, TIMES, None), "positions: got NoneType, expected 2 arrays"),
    "targets of other times": (
        lambda s, t: (s, TIMES[:2], t),
        r"positions\[0\]: got float32 \[3, 3, 3\], expected floating \[P, N, 3\] with P = 2, N = 3",
    ),
    "targets of another graph": (
        lambda s, t: (s, TIMES, t[::-1]),
        r"positions\[0\]: .*axis 1 must have length 3",
    ),
    "velocities in a plane": (
        lambda s, t: (s, TIMES, t, [t[0], t[1][..., :2]]),
        r"velocities\[1\]: .*axis 2 must have length 3",
    ),
    "a mask of numbers": (
        lambda s, t: (s, TIMES, t, None, [np.ones(3), np.ones(4)]),
        r"node_mask\[0\]: got .*, expected boolean \[N\]",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_what_does_not_go_together_is_named(change, message):
    states, targets, _ = own_data(3, [3, 4])
    with pytest.raises(ValueError, match=message):
        datasets.stack(*change(states, targets))
