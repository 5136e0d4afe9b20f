"""The GPU kernels equal their specifications, in Pallas' interpreter."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from jax.experimental import pallas as pl

from benchmarks.programs import abstract_gpu
from egno_jax import graph as graph_lib
from egno_jax import ops
from egno_jax.ops.kernels import gpu, rows
from tests.ops import on_meshes
from tests.ops.test_kernels import arguments, function_of_floats, normal, worst

KERNELS = {
    "message_sums": (gpu.MESSAGE_SUMS, ops.message_sums, ops.message_sums_reference),
    "message_sums with shifts": (gpu.MESSAGE_SUMS, ops.message_sums, ops.message_sums_reference),
    "feature_update": (gpu.FEATURE_UPDATE, ops.feature_update, ops.feature_update_reference),
    "velocity_factor": (gpu.VELOCITY_FACTOR, ops.velocity_factor, ops.velocity_factor_reference),
}
# times, nodes, edges, width of the input, width, edge features
SIZES = [(5, 30, 300, 32, 32, 2), (1, 3, 7, 16, 64, 0), (3, 10, 33, 64, 128, 3)]


def drawn(name, sizes):
    """Returns floating arguments, and the rest."""
    floats, indices = arguments(np.random.default_rng(0), *sizes)[name]
    rest = {"precision": "highest"}
    if indices:
        senders, receivers = (
            np.clip(indices[name], 0, sizes[1] - 1) for name in ("senders", "receivers")
        )
        rest |= {"senders": senders, "receivers": receivers, "num_graphs": 1}
        incoming, outgoing = sorted_edges(rest, sizes[1])
        rest |= {"incoming": incoming, "outgoing": outgoing}
    return floats, rest


def sorted_edges(args, num_nodes):
    """Returns the edges that nodes receive, and those that they send."""
    ends = args["receivers"], args["senders"]
    counts = np.array([num_nodes]), np.array([len(ends[0])])
    graph = jraph.GraphsTuple({}, {}, *ends, None, *counts)
    layout = graph_lib.layout_of(graph_lib.prepare(graph, "list"))
    return layout.incoming, layout.outgoing


@jax.custom_vjp
def on_tensor_cores(x, y):
    """Multiplies as they do with `TF32_TF32_F32_X3`: with factors of 11 bits, three times."""

    def high(x):
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) & ~0x1FFF
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    product = functools.partial(jnp.dot, precision="highest")
    (x, x_rest), (y, y_rest) = ((high(z), high(z - high(z))) for z in (x, y))
    return product(x_rest, y) + product(x, y_rest) + product(x, y)


on_tensor_cores.defvjp(
    lambda x, y: (on_tensor_cores(x, y), (x, y)),
    lambda kept, z: (on_tensor_cores(z, kept[1].T), on_tensor_cores(kept[0].T, z)),
)


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    monkeypatch.setattr(rows.Plan, "product", lambda self, x, y: on_tensor_cores(x, y))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("programs", [rows._MAX_PROGRAMS, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_values_and_gradients_are_those_of_the_specification(monkeypatch, name, sizes, programs):
    monkeypatch.setattr(rows, "_MAX_PROGRAMS", programs)
    kernel, _, specification = KERNELS[name]
    floats, rest = drawn(name, sizes)
    assert kernel.fits(floats | rest)
    found, residuals = kernel.function(floats | rest)
    assert {k: v.shape for k, v in residuals.items()} == {
        k: v.shape for k, v in kernel.residuals(floats | rest).items()
    }
    rng = np.random.default_rng(1)
    cotangents = jax.tree.map(lambda x: normal(rng, *x.shape), found)
    gradients = kernel.vjp(floats | rest, residuals, cotangents, None)
    with jax.enable_x64(True):
        wide, wide_cotangents = jax.tree.map(lambda x: x.astype(jnp.float64), (floats, cotangents))
        results, pullback = jax.vjp(jax.jit(function_of_floats(specification, rest)), wide)
        (expected,) = pullback(jax.tree.leaves(wide_cotangents))
    assert worst(found, results) < 2e-6
    assert jax.tree.structure(gradients) == jax.tree.structure(floats)
    assert worst(gradients, expected) < 2e-5


@pytest.mark.parametrize(
    ("name", "sizes", "changes", "fits"),
    [
        ("message_sums", SIZES[0], {}, True),
        ("message_sums", (1, 3, 7, 128, 128, 16), {}, True),
        ("message_sums", SIZES[0], {"precision": "default"}, True),
        ("message_sums", SIZES[0], {"precision": "high"}, False),
        ("message_sums", (1, 3, 7, 32, 256, 0), {}, False),  # too wide
        ("message_sums", (1, 3, 7, 48, 64, 0), {}, False),  # no power of two
        ("message_sums", (1, 3, 7, 32, 32, 17), {}, False),  # too many features of an edge
        ("feature_update", (1, 3, 7, 16, 64, 0), {}, True),
        ("feature_update", (1, 3, 7, 48, 64, 0), {}, False),
        ("velocity_factor", (1, 3, 7, 48, 64, 0), {}, False),
    ],
    ids=str,
)
def test_they_are_for_widths_that_are_powers_of_two(name, sizes, changes, fits):
    floats, rest = drawn(name, sizes)
    assert KERNELS[name][0].fits(floats | rest | changes) == fits


def test_they_are_for_arrays_with_indices_of_32_bits_and_for_sorted_edges():
    floats, rest = drawn("message_sums", SIZES[0])
    args = floats | rest
    kernel = gpu.MESSAGE_SUMS
    for num_nodes, fits in ((2**31 // 320 - 1, True), (2**31 // 320 + 1, False)):
        large = {
            name: jax.ShapeDtypeStruct((5, num_nodes, args[name].shape[2]), jnp.float32)
            for name in ("positions", "features")
        }
        of_nodes = jax.ShapeDtypeStruct((num_nodes,), jnp.int32)
        large |= {
            name: dataclasses.replace(args[name], starts=of_nodes, counts=of_nodes)
            for name in ("incoming", "outgoing")
        }
        assert kernel.fits(args | large) == fits
    for missing in ("incoming", "outgoing"):
        assert not kernel.fits({name: x for name, x in args.items() if name != missing})
    of_others = drawn("message_sums", SIZES[1])[1]
    assert not kernel.fits(args | {"incoming": of_others["incoming"]})


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e19])
def test_nodes_without_edges_may_have_any_values(value):
    floats, rest = drawn("message_sums", (1, 8, 12, 16, 16, 1))
    args = floats | rest | {name: rest[name] // 2 for name in ("senders", "receivers")}
    args |= dict(zip(("incoming", "outgoing"), sorted_edges(args, 8), strict=True))
    args["positions"] = args["positions"].at[:, 7].set(value)
    results, residuals = gpu.MESSAGE_SUMS.function(args)
    cotangents = jax.tree.map(jnp.ones_like, results)
    gradients = gpu.MESSAGE_SUMS.vjp(args, residuals, cotangents, None)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((results, gradients)))


def has_kernels(loss, floats, of_function="egno_sums", of_gradient="egno_sent"):
    """Returns whether a loss and its gradient have both kernels on a GPU, or else neither."""
    is_on_mesh = not jax.sharding.get_abstract_mesh().empty
    with contextlib.nullcontext() if is_on_mesh else abstract_gpu("h100"):
        traced = jax.jit(jax.value_and_grad(loss)).trace(floats)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    found = {kernel in text for kernel in (of_function, of_gradient)}
    assert len(found) == 1
    return found.pop()


def is_lowered(name, setting, monkeypatch):
    """Returns whether a function and its gradient have the kernels on a GPU, or else neither."""
    monkeypatch.setenv("EGNO_JAX_KERNELS", setting)
    floats, rest = drawn(name, SIZES[0])
    function = KERNELS[name][1]

    def loss(floats):
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(function(**floats, **rest)))

    if "sums" in name:
        return has_kernels(loss, floats)
    return has_kernels(loss, floats, '"egno_two_layers"', "egno_two_layers_gradient")


@pytest.mark.parametrize("name", ["message_sums", "feature_update", "velocity_factor"])
@pytest.mark.parametrize("setting", ["pallas", "auto"])
def test_they_are_used_on_request(monkeypatch, name, setting):
    assert is_lowered(name, setting, monkeypatch) == (setting == "pallas")


def test_they_have_indices_of_32_bits(monkeypatch):
    with jax.enable_x64(True):
        assert not is_lowered("message_sums", "pallas", monkeypatch)


def test_without_the_backend_the_specification_computes(monkeypatch):
    monkeypatch.setattr(rows, "triton", None)
    assert not is_lowered("message_sums", "pallas", monkeypatch)


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="Pallas asks which GPU a mesh has: these are of CPUs"
)
def test_they_are_used_on_meshes():
    assert on_meshes.uses(__name__) == ["True", "True", "True"]
