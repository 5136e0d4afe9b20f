"""The CPU kernels give what their specifications give, and stand back where they cannot compute."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import ops
from egno_jax.ops import kernels, message_passing, spectral

needs_kernels = pytest.mark.skipif(
    not kernels.load().is_loaded, reason=f"no kernels: {kernels.load().reason}"
)


def normal(rng, *shape):
    scale = shape[0] ** -0.5 if len(shape) == 2 else 1.0
    return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)


def message_sums(rng, times, nodes, edges, depth, width, edge_dim):
    senders, receivers = (
        jnp.asarray(rng.integers(-1, nodes + 1, edges), jnp.int32) for _ in range(2)
    )
    layers = [(1 + 2 * depth + edge_dim, width), (width, width), (width, width), (width, 1)]
    arrays = [normal(rng, times, nodes, depth), normal(rng, times, nodes, 3)]
    arrays += [normal(rng, edges, edge_dim)]
    arrays += [normal(rng, *shape) for layer in layers for shape in (layer, layer[1:])]
    return (*arrays, senders, receivers), len(arrays)


def feature_update(rng, times, nodes, edges, depth, width, edge_dim):
    arrays = [normal(rng, times, nodes, size) for size in (depth, width)]
    for layer in ((depth + width, width), (width, width)):
        arrays += [normal(rng, *layer), normal(rng, *layer[1:])]
    return tuple(arrays), len(arrays)


def velocity_factor(rng, times, nodes, edges, depth, width, edge_dim):
    arrays = [normal(rng, times, nodes, depth)]
    for layer in ((depth, width), (width, 1)):
        arrays += [normal(rng, *layer), normal(rng, *layer[1:])]
    return tuple(arrays), len(arrays)


def temporal_conv(rng, times, nodes, edges, depth, width, num_modes):
    live = ops.num_live_modes(times, num_modes + 1)
    forward, inverse, mode_of = spectral._real_basis(times, live)
    arrays = normal(rng, times, nodes, width), normal(rng, 2, num_modes + 1, width, width) / width
    basis = jnp.asarray(forward, jnp.float32), jnp.asarray(inverse, jnp.float32)
    return (*arrays, *basis, jnp.asarray(mode_of)), 2


FUNCTIONS = {
    "message_sums": (
        message_sums,
        message_passing._message_sums("highest"),
        ops.message_sums_reference,
    ),
    "feature_update": (
        feature_update,
        message_passing._feature_update("highest"),
        ops.feature_update_reference,
    ),
    "velocity_factor": (
        velocity_factor,
        message_passing._velocity_factor("highest"),
        ops.velocity_factor_reference,
    ),
    "temporal_conv": (
        temporal_conv,
        spectral._temporal_conv("highest"),
        ops.temporal_conv_reference,
    ),
}
# times, nodes, edges, width of the input, width, edge features (or modes but one)
SIZES = [(5, 30, 200, 32, 32, 2), (1, 3, 7, 16, 48, 0), (8, 10, 333, 80, 64, 3)]


def worst(found, expected):
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if b.size]
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


@needs_kernels
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_the_specification(name, sizes):
    make, fast, specification = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    args, num_floats = make(rng, *sizes)
    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64) if x.dtype == jnp.float32 else x for x in args]
        results, pullback = jax.vjp(
            lambda *x: specification(*x, *wide[num_floats:]), *wide[:num_floats]
        )
        cotangents = [jnp.asarray(rng.normal(size=x.shape)) for x in results]
        expected = pullback(type(results)(cotangents))
    found, pullback = jax.vjp(
        jax.jit(lambda *x: tuple(fast(*x, *args[num_floats:]))), *args[:num_floats]
    )
    assert worst(found, results) < 2e-6
    gradients = pullback(tuple(x.astype(jnp.float32) for x in cotangents))
    assert worst(gradients, expected) < 2e-5


@needs_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_in_whole_vectors_runs_in_the_kernel_and_else_the_specification(name):
    make, fast, _ = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    for sizes, is_fast in ((SIZES[0], True), ((5, 6, 9, 8, 8, 2), False)):
        args, _ = make(rng, *sizes)
        program = jax.jit(fast).lower(*args).compile().as_text()
        assert (f'"egno_{name}"' in program) == is_fast
    half = [
        x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in make(rng, *SIZES[0])[0]
    ]
    assert f'"egno_{name}"' not in jax.jit(fast).lower(*half).compile().as_text()


@needs_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_arguments_give_the_same_bits(name):
    make, fast, _ = FUNCTIONS[name]
    args, num_floats = make(np.random.default_rng(2), *SIZES[2])

    @jax.jit
    def both(*floats):
        results, pullback = jax.vjp(lambda *x: tuple(fast(*x, *args[num_floats:])), *floats)
        return results, pullback(results)

    first, second = (jax.tree.leaves(both(*args[:num_floats])) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


@needs_kernels
def test_an_input_that_is_not_a_number_stays_so():
    args, _ = message_sums(np.random.default_rng(3), *SIZES[0])
    args = (args[0].at[0, 0, 0].set(jnp.nan), *args[1:-2], args[-1] * 0 + 1, args[-1] * 0)
    messages, _ = message_passing._message_sums("highest")(*args)
    assert jnp.isnan(messages[0, 0]).all()
    assert jnp.isfinite(messages[1:]).all()


PROGRAM = """
import jax, jax.numpy as jnp
from egno_jax import ops
from egno_jax.ops import kernels
layers = [{"kernel": jnp.ones((16, size)), "bias": jnp.ones(size)} for size in (16, 1)]
mlp = {"linear_0": layers[0], "linear_1": layers[1]}
print(float(ops.velocity_factor(mlp, jnp.ones((1, 1, 16)))[0, 0, 0]), kernels.load())
"""


def run(tmp_path, **settings):
    environment = {**os.environ, "EGNO_CACHE_DIR": str(tmp_path / "a cache"), **settings}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_without_a_compiler_the_specification_computes(tmp_path):
    result = run(tmp_path, EGNO_JAX_KERNELS="auto", CXX=str(tmp_path / "no compiler"))
    assert result.returncode == 0
    assert result.stdout.startswith("273.0 Status(is_loaded=False")
    assert "without its CPU kernels" in result.stderr


def test_kernels_that_are_required_and_missing_are_an_error(tmp_path):
    result = run(tmp_path, EGNO_JAX_KERNELS="require", CXX=str(tmp_path / "no compiler"))
    assert result.returncode != 0
    assert "EGNO_JAX_KERNELS is require" in result.stderr


def test_kernels_can_be_switched_off_and_other_words_are_refused(tmp_path):
    result = run(tmp_path, EGNO_JAX_KERNELS="off")
    assert "EGNO_JAX_KERNELS is off" in result.stdout
    result = run(tmp_path, EGNO_JAX_KERNELS="yes")
    assert "got 'yes', expected auto, off or require" in result.stderr
