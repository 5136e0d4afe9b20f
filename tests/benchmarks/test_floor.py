"""The floor counts what XLA counts for the same products, and adds what it should."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cases, floor, rates

CASE = cases.CASES["nbody-p5"]


def flops(function, *shapes):
    """Counts the floating-point operations of a function of arrays as XLA does."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arrays).compile().cost_analysis()["flops"]


def test_a_product_counts_what_xla_counts_with_its_gradients():
    product = floor.Product("phi_x", 40, 16, 24, 1, 1, 1, 1)
    assert product.operations == flops(jnp.matmul, (40, 16), (16, 24))
    gradients = [
        flops(lambda g, w: g @ w.T, (40, 24), (16, 24)),
        flops(lambda x, g: x.T @ g, (40, 16), (40, 24)),
    ]
    assert floor.operations([product]) == {
        "inference": product.operations,
        "step": product.operations + sum(gradients),
    }


def test_operations_of_the_5_body_step_by_hand():
    p, n, e, c, layers = 5, 500, 2000, 64, 4
    per_layer = 2 * p * e * (2 * c * c + 2 * c) + 2 * e * 2 * c
    per_layer += 2 * p * n * (2 * c * c + (c * c + c))
    phi_h = 2 * p * n * 3 * c * c
    # Modes 0 and 1: three rows of the basis; one real and one complex product.
    convolution = sum(
        2 * rows * (2 * 3 * p * w + w * w + 4 * w * w) for rows, w in ((n, c), (3 * n, 2))
    )
    embedding = 2 * n * c + 2 * p * 32 * c
    total = layers * (per_layer + phi_h + convolution) + embedding
    found = floor.operations(floor.products(CASE, n, e))
    assert found["inference"] == total
    # Three times the forward pass, without what has no gradient or is not seen.
    constants = sum(2 * rows * 2 * 3 * p * w for rows, w in ((n, c), (3 * n, 2)))
    missing = layers * (2 * e * 2 * c + constants) + embedding + 3 * phi_h
    assert found["step"] == 3 * total - missing


@given(st.integers(1, 20), st.integers(1, 12))
def test_a_convolution_has_a_basis_of_as_many_rows_as_free_numbers(num_times, num_modes):
    case = dataclasses.replace(CASE, num_times=num_times, num_modes=num_modes)
    forward = floor._convolution("c", case, 10, 4)[0]
    spectrum = np.fft.rfft(np.eye(num_times))[:, :num_modes]
    rows = np.concatenate([spectrum.real, spectrum.imag], axis=1)
    assert forward.rows == (np.abs(rows).max(axis=0) > 1e-9).sum()


def test_activations_are_counted_per_edge_and_node():
    found = floor.activations(CASE, 500, 2000)
    assert found["inference"] == 4 * 5 * 64 * (3 * 2000 + 2 * 500)
    assert found["step"] == found["step derivative"] == found["inference"] - 5 * 64 * 500


def test_bytes_hold_no_edge_activation():
    few = floor.compulsory_bytes(CASE, 500, 2000, 0)
    wide = floor.compulsory_bytes(dataclasses.replace(CASE, width=128), 500, 2000, 0)
    # Doubling the width adds as many bytes as the nodes have more columns, for any number of edges.
    assert wide["inference"] - few["inference"] == 4 * (4 * 2 * 5 * 500 * 64)
    assert wide["step"] - few["step"] == 4 * (4 * 5 * 5 * 500 * 64)


def test_the_floor_is_the_sum_of_its_parts():
    found = floor.products(CASE, 500, 2000)
    known = floor.Rates({shape: 1e-3 for shape in floor.shapes(found)}, 1e9, 1e9, 1e9)
    entry = floor.entry(CASE, 500, 2000, 1000, known)
    for workload in ("inference", "step"):
        parts = entry[workload]["parts"].values()
        assert entry[workload]["seconds"] == pytest.approx(sum(p["seconds"] for p in parts))
    # Four layers: one product a layer with all three uses, seven in all for a forward product.
    assert entry["step"]["parts"]["phi_m, second layer"]["seconds"] == pytest.approx(12e-3)
    assert entry["inference"]["parts"]["phi_m, second layer"]["seconds"] == pytest.approx(4e-3)
    assert "SiLU, derivative" not in entry["inference"]["parts"]


def test_more_speed_means_less_time():
    found = floor.products(CASE, 500, 2000)
    slow = floor.Rates({shape: 2e-3 for shape in floor.shapes(found)}, 1e9, 1e9, 1e9)
    fast = floor.Rates({shape: 1e-3 for shape in floor.shapes(found)}, 2e9, 2e9, 2e9)
    slow, fast = (floor.entry(CASE, 500, 2000, 1000, known) for known in (slow, fast))
    for workload in ("inference", "step"):
        assert slow[workload]["seconds"] == pytest.approx(2 * fast[workload]["seconds"])


@pytest.mark.parametrize("kind", ["forward", "input_gradient", "weight_gradient"])
def test_the_products_that_are_timed_are_those_that_are_counted(kind):
    a, b, is_a_transposed, is_b_transposed = rates.operands(kind, 6, 3, 4)
    call, _ = rates.numpy_matmul(a, b, is_a_transposed, is_b_transposed)
    shape = {"forward": (6, 4), "input_gradient": (6, 3), "weight_gradient": (3, 4)}[kind]
    assert call().shape == shape
    inner = a.shape[0] if is_a_transposed else a.shape[1]
    assert math.prod(shape) * inner == 6 * 3 * 4


def test_large_products_are_also_timed_in_blocks(monkeypatch):
    seen = []

    def make(a, b, *_):
        seen.append(a.shape)
        return lambda: None, lambda _: None

    monkeypatch.setattr(rates, "best_seconds", lambda call, wait: 1.0 if len(seen) == 1 else 0.25)
    assert rates.matmul_seconds(("forward", 3 * 2048, 2, 2), make) == 0.75
    assert seen == [(3 * 2048, 2), (2048, 2)]
