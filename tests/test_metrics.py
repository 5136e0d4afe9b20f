"""Metrics: plain NumPy means, and padding that leaks neither into values nor into gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egno_jax import metrics

SETTINGS = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
METRICS = (metrics.f_mse, metrics.a_mse, metrics.mse_per_time)


def trajectories(rng, num_times, num_nodes):
    """Draws a prediction and a target `[P, N, 3]`."""
    return rng.normal(size=(2, num_times, num_nodes, 3)).astype(np.float32)


def padded(rng, array, num_nodes, garbage):
    """Inserts rows of garbage at random places of the node axis; returns the array and the mask."""
    mask = rng.permutation(np.arange(num_nodes) < array.shape[1])
    result = np.full((array.shape[0], num_nodes, 3), garbage, np.float32)
    result[:, mask] = array
    return result, mask


@jax.jit
def all_metrics_with_gradient(predicted, target, node_mask=None):
    """Returns the values of all metrics, and the gradient of their weighted sum."""

    def weighted_sum(predicted):
        values = jnp.stack([jnp.sum(metric(predicted, target, node_mask)) for metric in METRICS])
        return values @ jnp.array([1.0, 2.0, 3.0]), values

    gradient, values = jax.grad(weighted_sum, has_aux=True)(predicted)
    return values, gradient


class TestMeans:
    @given(seed=SEEDS, shape=st.sampled_from([(1, 1), (4, 5)]))
    @SETTINGS
    def test_match_numpy(self, seed, shape):
        predicted, target = trajectories(np.random.default_rng(seed), *shape)
        squares = (predicted.astype(np.float64) - target) ** 2
        expected = (squares[-1].mean(), squares.mean(), squares.mean(axis=(1, 2)))
        for metric, value in zip(METRICS, expected, strict=True):
            np.testing.assert_allclose(metric(predicted, target), value, rtol=1e-5)
            everything = np.ones(shape[1], bool)
            jitted = jax.jit(metric)(predicted, target, everything)
            np.testing.assert_allclose(jitted, value, rtol=1e-5)

    @given(
        seed=SEEDS,
        num_nodes=st.sampled_from([1, 6]),
        extra=st.sampled_from([1, 3]),
        garbage=st.sampled_from([0.0, 1e30, np.inf, np.nan]),
    )
    @SETTINGS
    def test_padding_changes_no_value_and_no_gradient(self, seed, num_nodes, extra, garbage):
        rng = np.random.default_rng(seed)
        predicted, target = trajectories(rng, 4, num_nodes)
        seed_of_mask = rng.integers(2**32)
        wide, mask = padded(
            np.random.default_rng(seed_of_mask), predicted, num_nodes + extra, garbage
        )
        wide_target, _ = padded(
            np.random.default_rng(seed_of_mask), target, num_nodes + extra, -garbage
        )
        values, gradient = all_metrics_with_gradient(wide, wide_target, mask)
        expected, expected_gradient = all_metrics_with_gradient(predicted, target)
        np.testing.assert_allclose(values, expected, rtol=1e-5)
        np.testing.assert_array_equal(gradient[:, ~mask], 0.0)
        np.testing.assert_allclose(gradient[:, mask], expected_gradient, rtol=1e-5)

    @given(seed=SEEDS)
    @SETTINGS
    def test_order_of_nodes_and_rotation_do_not_matter(self, seed):
        rng = np.random.default_rng(seed)
        predicted, target = trajectories(rng, 3, 6)
        mask = rng.random(6) < 0.6
        order = rng.permutation(6)
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
        for metric in METRICS:
            expected = metric(predicted, target, mask)
            permuted = metric(predicted[:, order], target[:, order], mask[order])
            np.testing.assert_allclose(permuted, expected, rtol=1e-5)
            turned = metric(predicted @ rotation, target @ rotation, mask)
            np.testing.assert_allclose(turned, expected, rtol=1e-4)

    def test_without_real_nodes_value_and_gradient_are_zero(self):
        predicted, target = trajectories(np.random.default_rng(0), 2, 3)
        nobody = np.zeros(3, bool)
        assert metrics.a_mse(predicted, target, nobody) == 0.0
        np.testing.assert_array_equal(jax.grad(metrics.a_mse)(predicted, target, nobody), 0.0)

    def test_bfloat16_is_summed_in_float32(self):
        predicted = jnp.full((1, 1000, 3), 1.0, jnp.bfloat16)
        error = metrics.a_mse(predicted, np.zeros((1, 1000, 3), np.float32))
        assert error.dtype == jnp.float32
        assert error == 1.0


class TestErrorSums:
    @given(seed=SEEDS, sizes=st.permutations([1, 1, 2, 5]))
    @SETTINGS
    def test_uneven_batches_add_up_to_the_whole(self, seed, sizes):
        rng = np.random.default_rng(seed)
        batches = [trajectories(rng, 3, size) for size in sizes]
        masks = [rng.random(size) < 0.7 for size in sizes]
        sums, add = metrics.ErrorSums.zero(3), jax.jit(metrics.ErrorSums.add)
        for (predicted, target), mask in zip(batches, masks, strict=True):
            sums = add(sums, predicted, target, mask)
        whole = (*np.concatenate(batches, axis=2), np.concatenate(masks))

        errors = sums.finalize()

        assert sums.num_nodes == sum(mask.sum() for mask in masks)
        np.testing.assert_allclose(errors.f_mse, metrics.f_mse(*whole), rtol=1e-5)
        np.testing.assert_allclose(errors.a_mse, metrics.a_mse(*whole), rtol=1e-5)
        np.testing.assert_allclose(errors.per_time, metrics.mse_per_time(*whole), rtol=1e-5)

    def test_merge_is_the_sum_of_both_and_scans(self):
        batches = trajectories(np.random.default_rng(0), 4, 10).reshape(2, 4, 5, 2, 3)
        batches = np.moveaxis(batches, 2, 0)  # five batches of a pair of [P, 2, 3]

        def step(sums, pair):
            return sums.add(pair[0], pair[1]), None

        scanned, _ = jax.lax.scan(step, metrics.ErrorSums.zero(4), batches)
        parts = [metrics.squared_errors(*pair) for pair in batches]
        left = parts[0].merge(parts[1])
        right = parts[2].merge(parts[3]).merge(parts[4])
        for one, other in zip(scanned, left.merge(right), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        assert scanned.num_nodes == 10

    def test_nothing_is_zero(self):
        errors = metrics.ErrorSums.zero(2).finalize()
        assert errors.f_mse == errors.a_mse == 0.0
        np.testing.assert_array_equal(errors.per_time, [0.0, 0.0])


class TestMean:
    @given(seed=SEEDS, sizes=st.permutations([1, 0, 2, 5]))
    @SETTINGS
    def test_uneven_batches_weigh_every_value_the_same(self, seed, sizes):
        rng = np.random.default_rng(seed)
        batches = [(rng.normal(size=size), rng.random(size)) for size in sizes]
        means = [metrics.Mean(np.sum(x * w), np.sum(w)) for x, w in batches]
        values, weights = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        expected = np.average(values, weights=weights)
        merged = means[0].merge(means[1]).merge(means[2].merge(means[3]))
        leaf_by_leaf = jax.tree.map(lambda *leaves: sum(leaves), *means)
        np.testing.assert_allclose(merged.finalize(), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(leaf_by_leaf.finalize(), expected, rtol=1e-4, atol=1e-6)

    def test_without_weight_value_and_gradient_are_zero(self):
        mean = metrics.Mean(jnp.array([0.0, 6.0]), jnp.array([0, 4]))
        np.testing.assert_array_equal(mean.finalize(), [0.0, 1.5])
        gradient = jax.grad(lambda total: jnp.sum(mean._replace(total=total).finalize()))
        np.testing.assert_array_equal(gradient(mean.total), [0.0, 0.25])


class TestErrors:
    @pytest.mark.parametrize(
        ("predicted", "target", "mask", "message"),
        [
            ((5, 3), (5, 3), None, r"predicted: got \[5, 3\], expected \[P, N, 3\]"),
            ((2, 5, 2), (2, 5, 2), None, r"predicted: got \[2, 5, 2\], expected \[P, N, 3\]"),
            ((0, 5, 3), (0, 5, 3), None, r"predicted: got \[0, 5, 3\].*P >= 1"),
            ((2, 5, 3), (1, 5, 3), None, r"target: got \[1, 5, 3\].*\[2, 5, 3\]"),
            ((2, 5, 3), (2, 5, 3), np.ones(4, bool), r"node_mask: got bool \[4\].*N = 5"),
            ((2, 5, 3), (2, 5, 3), np.ones(5), r"node_mask: got float32 \[5\], expected boolean"),
            ((2, 5, 3), (2, 5, 3), np.ones((2, 5), bool), r"node_mask: got bool \[2, 5\]"),
        ],
    )
    @pytest.mark.parametrize("metric", METRICS)
    def test_shapes_are_named(self, metric, predicted, target, mask, message):
        with pytest.raises(ValueError, match=message):
            metric(np.zeros(predicted), np.zeros(target), mask)

    def test_shapes_are_named_inside_jit(self):
        arrays = np.zeros((2, 5, 3)), np.zeros((2, 5, 3)), np.ones(4, bool)
        with pytest.raises(ValueError, match=r"expected boolean \[N\] with N = 5;"):
            jax.jit(METRICS[0])(*arrays)

    def test_time_grids_do_not_mix(self):
        with pytest.raises(ValueError, match="other: got P = 3 times, expected P = 2"):
            metrics.ErrorSums.zero(2).merge(metrics.ErrorSums.zero(3))
