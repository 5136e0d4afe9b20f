"""Warnings before a training that cannot go well, and none before one that can."""

import warnings

import numpy as np
import pytest

from egno_jax import EGNOConfig
from egno_jax.datasets import nbody
from egno_jax.training import advice


@pytest.fixture(scope="module")
def samples():
    return nbody.samples(nbody.canonical("test", num_simulations=2))


def scaled(samples, factor):
    nodes = samples.graph.nodes
    nodes = {**nodes, "positions": nodes["positions"] * np.float32(factor)}
    return samples._replace(graph=samples.graph._replace(nodes=nodes))


def test_usual_data_give_no_warning(samples):
    far = scaled(samples, 1.0)
    far.graph.nodes["positions"] += 1e6  # the origin does not matter
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advice.warn_of_data(EGNOConfig(num_modes=3), samples)
        advice.warn_of_data(EGNOConfig(num_modes=3), far)


def test_large_positions_are_to_be_rescaled(samples):
    with pytest.warns(UserWarning, match=r"from the mean of their sample.*rescale"):
        advice.warn_of_data(EGNOConfig(), scaled(samples, 1e6))
    assert advice.spread(scaled(samples, 10)) == pytest.approx(10 * advice.spread(samples))


@pytest.mark.parametrize("num_modes", [4, 5])
def test_modes_without_training_are_named(samples, num_modes):
    with pytest.warns(UserWarning, match=rf"got {num_modes}, but 5 times have only 3 Fourier"):
        advice.warn_of_data(EGNOConfig(num_modes=num_modes), samples)
    config = EGNOConfig(num_modes=4, temporal_grid="context", context_times=(1.0, 2.0))
    with pytest.warns(UserWarning, match="but 2 times have only 2"):
        advice.warn_of_data(config, samples)
