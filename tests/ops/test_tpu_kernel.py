"""The TPU kernel equals its specification, in Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from egno_jax import ops
from egno_jax.ops.kernels import tpu
from tests.ops import on_meshes
from tests.ops.test_kernels import arguments, function_of_floats, normal, worst

NAMES = ("message_sums", "message_sums with shifts")
# times, nodes, edges, width of the input, width, edge features
SIZES = [(5, 30, 300, 32, 32, 2), (1, 3, 7, 16, 64, 0), (3, 10, 33, 80, 128, 3)]
IN_GROUPS = (9, 12, 70, 16, 128, 1)  # the times do not fit in the rows of one node
OF_TWO_TILES = (8, 6, 40, 16, 256, 1)
KERNEL = tpu.MESSAGE_SUMS


def drawn(name, sizes, num_graphs=1):
    """Returns floating arguments, and the rest of the arguments."""
    floats, indices = arguments(np.random.default_rng(0), *sizes)[name]
    size = sizes[1] // num_graphs
    first = size * np.repeat(np.arange(num_graphs), sizes[2] // num_graphs)
    local = {name: np.asarray(x) % size + first for name, x in indices.items()}
    chosen = indices if num_graphs == 1 else local
    return floats, chosen | {"precision": "highest", "num_graphs": num_graphs}


@pytest.mark.parametrize(
    ("name", "sizes", "num_graphs"),
    [
        *((NAMES[0], sizes, 1) for sizes in (*SIZES, OF_TWO_TILES)),
        (NAMES[1], SIZES[2], 1),
        (NAMES[1], SIZES[0], 3),
        (NAMES[0], IN_GROUPS, 2),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_specification(monkeypatch, name, sizes, num_graphs):
    interpreted = functools.partial(pl.pallas_call, interpret=True)
    monkeypatch.setattr(pl, "pallas_call", interpreted)
    monkeypatch.setattr(tpu, "_BLOCK", 128)  # several blocks
    monkeypatch.setattr(tpu, "_UNROLL", tpu._GROUP)
    floats, rest = drawn(name, sizes, num_graphs)
    blocks = tpu._indices(tpu._plan(floats | rest), floats | rest)[0]
    assert len(blocks) > num_graphs or sizes[2] < 10
    found, residuals = KERNEL.function(floats | rest)
    rng = np.random.default_rng(1)
    cotangents = tuple(normal(rng, *x.shape) for x in found)
    gradients = KERNEL.vjp(floats | rest, residuals, cotangents, None)
    with jax.enable_x64(True):
        wide, wide_cotangents = jax.tree.map(lambda x: x.astype(jnp.float64), (floats, cotangents))
        reference = function_of_floats(ops.message_sums_reference, rest)
        results, pullback = jax.vjp(jax.jit(reference), wide)
        (expected,) = pullback(list(wide_cotangents))
    assert worst(found, results) < 2e-6
    assert jax.tree.structure(gradients) == jax.tree.structure(floats)
    assert worst(gradients, expected) < 2e-5


def test_edges_out_of_range_are_clipped_at_their_sender_and_dropped_at_their_receiver():
    floats, rest = drawn("message_sums", (1, 12, 6, 16, 128, 1))
    indices = {
        "senders": jnp.array([-99, 0, 5, 6, 11, 99]),
        "receivers": jnp.array([-99, -12, 99, 6, -1, 12]),
    }
    args = floats | rest | indices
    for num_graphs, senders, gathered, targets in (
        (1, [0, 0, 5, 6, 11, 11], [0, 0, 11, 6, 0, 11], [12, 0, 12, 6, 11, 12]),
        (2, [0, 0, 5, 0, 5, 5], [0, 0, 5, 0, 0, 5], [6, 0, 6, 0, 5, 6]),
    ):
        args["num_graphs"] = num_graphs
        plan = tpu._plan(args)
        found = tpu._indices(plan, args)
        real = 6 // num_graphs
        for indices, expected in zip(found, (senders, gathered, targets), strict=True):
            assert np.ravel(indices[:, 0, :real]).tolist() == expected


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        (SIZES[0], True),
        ((4, 6840, 9, 128, 128, 2), True),  # the benchmarks' eight proteins
        ((1, 30, 9, 256, 256, 2), True),
        ((4, 20_000, 9, 64, 64, 2), False),  # tables larger than the vector memory
        ((1, 3, 7, 16, 48, 0), False),  # rows that are not full
    ],
    ids=str,
)
def test_it_is_for_tables_on_the_chip_and_full_rows(sizes, fits):
    floats, rest = drawn("message_sums", (1, 3, 7, *sizes[3:]))
    floats |= {
        name: jax.ShapeDtypeStruct((*sizes[:2], floats[name].shape[2]), jnp.float32)
        for name in ("positions", "features")
    }
    assert KERNEL.fits(floats | rest) == fits


def has_kernels(loss, floats):
    """Returns whether a loss and its gradient have both kernels on a TPU, or else neither."""
    traced = jax.jit(jax.value_and_grad(loss)).trace(floats)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    found = {name in text for name in ("egno_sums_kernel", "egno_gradient_kernel")}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize(
    ("setting", "precision", "is_wide", "is_used"),
    [
        ("pallas", "highest", False, True),
        ("pallas", "default", False, True),
        ("pallas", "high", False, False),
        ("pallas", "highest", True, False),
        ("auto", "highest", False, False),
    ],
)
def test_it_is_used_on_request(monkeypatch, setting, precision, is_wide, is_used):
    monkeypatch.setenv("EGNO_JAX_KERNELS", setting)
    floats, rest = drawn("message_sums", SIZES[0])

    def loss(floats):
        return sum(
            jnp.sum(x) for x in ops.message_sums(**floats, **rest | {"precision": precision})
        )

    with jax.enable_x64(is_wide):
        assert has_kernels(loss, floats) == is_used


def test_it_is_used_on_meshes():
    assert on_meshes.uses(__name__) == ["True", "True", "True"]
