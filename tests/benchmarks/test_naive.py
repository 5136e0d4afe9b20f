"""The plain peer computes what the library computes, gradients included."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from benchmarks import cases, naive, peer_jax


def test_naive_equals_egno_jax():
    case = dataclasses.replace(cases.TINY, edges="bonds", num_nodes=(8, 11), num_edge_features=3)
    problem = cases.make(case)
    params = egno_jax.init(jax.random.key(1), cases.config_of(case), problem.graph, problem.times)

    @jax.jit
    def outputs_and_gradients(params):
        def loss(params, apply):
            trajectory = apply(params, problem.graph, problem.times)
            return jnp.mean((trajectory.positions - problem.positions) ** 2), trajectory

        return [
            jax.value_and_grad(lambda p, f=apply: loss(p, f), has_aux=True)(params)
            for apply in (egno_jax.apply, naive.apply)
        ]

    ours, plain = (jax.tree.leaves(tree) for tree in outputs_and_gradients(params))
    for a, b in zip(ours, plain, strict=True):
        # A bias whose gradient cancels over all rows keeps the rounding of their sum.
        np.testing.assert_allclose(a, b, atol=1e-5 * max(float(jnp.abs(a).max()), 1e-2))


def test_a_difference_is_noticed(monkeypatch):
    problem = cases.make(cases.TINY)

    def apply(scale):
        return lambda params, graph, times: egno_jax.Trajectory(
            jnp.asarray(scale * problem.positions), jnp.ones((5, 18, 3)), jnp.ones((5, 18, 16))
        )

    monkeypatch.setattr(egno_jax, "apply", apply(1.0))
    monkeypatch.setattr(naive, "apply", apply(1 + 1e-6))
    assert 0 < peer_jax.check_agreement(None, problem) < 1e-5
    monkeypatch.setattr(naive, "apply", apply(1 + 1e-3))
    with pytest.raises(ValueError, match=r"naive.apply: got a difference of .* on tiny"):
        peer_jax.check_agreement(None, problem)
