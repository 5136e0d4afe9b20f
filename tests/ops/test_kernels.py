"""The CPU kernels equal their specifications, which compute everything that they cannot."""

import functools
import os
import re
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax import ops
from egno_jax.ops import kernels, vector_messages
from egno_jax.ops.kernels import library
from tests import helpers

needs_kernels = pytest.mark.skipif(
    not kernels.load().is_loaded, reason=f"no kernels: {kernels.load().reason}"
)


def normal(rng, *shape):
    scale = shape[0] ** -0.5 if len(shape) == 2 else 1.0
    return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)


def mlp(rng, in_width, width, out_width):
    sizes = ((in_width, width), (width, out_width))
    return {
        f"linear_{i}": {"kernel": normal(rng, *size), "bias": normal(rng, size[1])}
        for i, size in enumerate(sizes)
    }


def arguments(rng, times, nodes, edges, depth, width, edge_dim):
    """Returns, by the name of a function, its floating arguments and its indices."""
    senders, receivers = (
        jnp.asarray(rng.integers(-1, nodes + 1, edges), jnp.int32) for _ in range(2)
    )
    features = normal(rng, times, nodes, depth)
    sums = {
        "message_mlp": mlp(rng, 1 + 2 * depth + edge_dim, width, width),
        "position_mlp": mlp(rng, width, width, 1),
        "positions": normal(rng, times, nodes, 3),
        "features": features,
        "edge_features": normal(rng, edges, edge_dim),
    }
    shifted = sums | {"edge_shifts": normal(rng, edges, 3)}
    update = {
        "feature_mlp": mlp(rng, depth + width, width, width),
        "features": features,
        "messages": normal(rng, times, nodes, width),
    }
    factor = {"velocity_mlp": mlp(rng, depth, width, 1), "features": features}
    kernel = normal(rng, 2, edge_dim + 1, width, width) / width
    num_vectors = min(depth, 16)

    def layer(rows, columns):
        return {"kernel": normal(rng, rows, columns), "bias": normal(rng, columns)}

    vectors = sums | {
        "vectors": normal(rng, times, nodes, 3, num_vectors),
        "layers": {
            "input": layer(2 * depth + 1 + 3 * num_vectors + edge_dim, width),
            "message": layer(width, width),
            "gates": layer(width, 2 * num_vectors),
            "step": layer(width, 1),
        },
    }
    del vectors["message_mlp"], vectors["position_mlp"]
    shifted_vectors = vectors | {"edge_shifts": shifted["edge_shifts"]}
    conv = {"features": normal(rng, times, nodes, width), "kernel": kernel}
    return {
        "message_sums": (sums, {"senders": senders, "receivers": receivers}),
        "message_sums with shifts": (shifted, {"senders": senders, "receivers": receivers}),
        "feature_update": (update, {}),
        "velocity_factor": (factor, {}),
        "temporal_conv": (conv, {}),
        "vector_sums": (vectors, {"senders": senders, "receivers": receivers}),
        "vector_sums with shifts": (shifted_vectors, {"senders": senders, "receivers": receivers}),
    }


NAMES = (
    "message_sums",
    "message_sums with shifts",
    "feature_update",
    "velocity_factor",
    "temporal_conv",
    "vector_sums",
    "vector_sums with shifts",
)
# times, nodes, edges, width of the input, width, edge features (modes of the kernel: one more)
SIZES = [(5, 30, 200, 32, 32, 2), (1, 3, 7, 16, 48, 0), (8, 10, 333, 80, 64, 3)]


def reference_of(name):
    """Returns the specification of the function of this name."""
    name = name.partition(" ")[0]
    return vector_sums_reference if name == "vector_sums" else getattr(ops, f"{name}_reference")


def vector_sums_reference(**arguments):
    specification = vector_messages._vector_sums_reference
    with mock.patch.object(vector_messages, "_vector_sums", specification):
        return ops.vector_sums(**arguments)


def function_of_floats(function, indices):
    return lambda floats: jax.tree.leaves(function(**floats, **indices))


@functools.cache
def compiled(name, sizes):
    """Returns arguments and cotangents, and the program of values and gradients."""
    rng = np.random.default_rng(0)
    floats, indices = arguments(rng, *sizes)[name]
    function = function_of_floats(getattr(ops, name.partition(" ")[0]), indices)
    shapes = jax.eval_shape(function, floats)
    cotangents = [normal(rng, *x.shape) for x in shapes]

    def values_and_gradients(floats, cotangents):
        results, pullback = jax.vjp(function, floats)
        return results, pullback(cotangents)[0]

    program = jax.jit(values_and_gradients).lower(floats, cotangents).compile()
    return floats, indices, cotangents, program


def worst(found, expected):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    return max(helpers.relative_error(a, b) for a, b in zip(found, expected, strict=True))


@needs_kernels
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_specification(name, sizes):
    floats, indices, cotangents, program = compiled(name, sizes)
    with jax.enable_x64(True):
        wide, wide_cotangents = jax.tree.map(lambda x: x.astype(jnp.float64), (floats, cotangents))
        function = reference_of(name)
        reference = function_of_floats(function, indices)
        results, pullback = jax.vjp(jax.jit(reference), wide)
        (expected,) = pullback(wide_cotangents)
    found, gradients = program(floats, cotangents)
    assert jax.tree.structure(gradients) == jax.tree.structure(floats)
    assert worst(found, results) < 2e-6
    assert worst(gradients, expected) < 2e-5


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_are_used_for_float32_in_whole_vectors_and_not_else(name):
    *_, program = compiled(name, SIZES[0])
    calls = re.findall(r'custom_call_target="(\w+)"', program.as_text())
    function_name = name.partition(" ")[0]
    assert sorted(calls) == [f"egno_{function_name}", f"egno_{function_name}_vjp"]
    # Each gradient is the kernel's result itself: nothing checks or sums it at run time.
    assert "constant(nan)" not in program.as_text()
    narrow = arguments(np.random.default_rng(1), 5, 6, 9, 8, 8, 2)[name]
    floats, indices = compiled(name, SIZES[0])[:2]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), floats), indices
    for floats, indices in (narrow, half):
        function = function_of_floats(getattr(ops, function_name), indices)
        assert "egno_" not in jax.jit(function).lower(floats).as_text()


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_bits(name):
    floats, _, cotangents, program = compiled(name, SIZES[2])
    first, second = (jax.tree.leaves(program(floats, cotangents)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


@needs_kernels
def test_an_input_that_is_not_a_number_stays_so():
    floats, indices = arguments(np.random.default_rng(3), *SIZES[0])["message_sums"]
    floats["features"] = floats["features"].at[0, 0, 0].set(jnp.nan)
    senders, receivers = indices["senders"] * 0 + 1, indices["receivers"] * 0
    messages, _ = ops.message_sums(**floats, senders=senders, receivers=receivers)
    assert jnp.isnan(messages[0, 0]).all()
    assert jnp.isfinite(messages[1:]).all()


@needs_kernels
def test_wide_indices_out_of_range_stay_so():
    """A node that int32 cannot count is no node."""
    floats, indices = arguments(np.random.default_rng(4), *SIZES[0])["message_sums"]
    expected = ops.message_sums(**floats, **indices)
    with jax.enable_x64(True):
        wide = {name: x.astype(jnp.int64) for name, x in indices.items()}
        shift = {"senders": 0, "receivers": 2**32 - 5}
        far = {name: jnp.where(x >= 30, x + shift[name], x) for name, x in wide.items()}
        program = jax.jit(ops.message_sums).lower(**floats, **far).compile()
        assert '"egno_message_sums"' in program.as_text()
        found = program(**floats, **far)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


PROGRAM = """
import jax.numpy as jnp
from egno_jax import ops
layers = [{"kernel": jnp.ones((16, size)), "bias": jnp.ones(size)} for size in (16, 1)]
mlp = {"linear_0": layers[0], "linear_1": layers[1]}
print(float(ops.velocity_factor(mlp, jnp.ones((1, 1, 16)))[0, 0, 0]), ops.kernels.load())
"""


def test_without_a_compiler_the_specification_computes(tmp_path):
    settings = {
        "EGNO_CACHE_DIR": str(tmp_path / "a cache"),
        "EGNO_JAX_KERNELS": "auto",
        "CXX": str(tmp_path / "no compiler"),
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0
    assert result.stdout.startswith("273.0 Status(is_loaded=False")
    assert "without its CPU kernels" in result.stderr


@needs_kernels
def test_programs_that_jax_keeps_are_compiled_once(tmp_path):
    settings = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    outputs, kept = [], []
    for _ in range(2):
        run = {"env": os.environ | settings, "capture_output": True, "text": True, "check": True}
        outputs.append(subprocess.run([sys.executable, "-c", PROGRAM], **run).stdout)
        kept.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("*velocity*-cache")})
    assert kept[0] and kept[0] == kept[1]
    assert outputs[0] == outputs[1] and outputs[0].startswith("273.0 Status(is_loaded=True")


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Returns `load` as in a new process, without kernels in the cache and without a compiler."""
    monkeypatch.setattr(library, "_load", library._load.__wrapped__)
    monkeypatch.setenv("EGNO_CACHE_DIR", str(tmp_path / "a cache"))
    monkeypatch.setenv("CXX", str(tmp_path / "no compiler"))

    def with_setting(value):
        monkeypatch.setenv("EGNO_JAX_KERNELS", value)
        return kernels.load()

    return with_setting


def test_kernels_that_are_required_and_missing_are_an_error(load):
    with pytest.raises(kernels.KernelError, match="EGNO_JAX_KERNELS"):
        load("require")
    if jax.default_backend() == "cpu":  # whoever needs them first sees it
        floats, _ = arguments(np.random.default_rng(5), 1, 2, 3, 16, 16, 0)["feature_update"]
        with pytest.raises(kernels.KernelError, match="EGNO_JAX_KERNELS"):
            ops.feature_update(**floats)


def test_kernels_can_be_switched_off(load):
    assert load("off") == kernels.Status(False, "EGNO_JAX_KERNELS is off")


def test_unknown_settings_are_refused(load):
    with pytest.raises(ValueError, match="got 'yes', expected auto, off, require, pallas"):
        load("yes")
