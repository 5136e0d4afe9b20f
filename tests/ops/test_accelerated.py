"""What `accelerate` promises: a kernel where it can be used, the specification everywhere else.

The kernels here are plain functions that give other numbers than the specification, so that a
result says what it was computed by.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egno_jax.ops.accelerated import Kernel, accelerate

X, Y = np.array([0.3, -1.2, 2.0], np.float32), np.array([1.5, 0.4, -0.7], np.float32)
INDEX = np.array([2, 0, 0], np.int32)

# What a toy kernel multiplies its results and gradients by.
FORWARD, BACKWARD = 100.0, 1000.0


def specification(x, y, index):
    return jnp.sin(x) * y[index], jnp.sum(x * y)


def intermediates(x, y, index):
    return [jnp.cos(x)]


class Calls:
    """A toy kernel for functions like `specification`, which records how it was called."""

    def __init__(self, is_usable=lambda *args: True, only=lambda array: array):
        self.wanted, self.kept = [], []
        self.only_usable = is_usable
        self.kernel = Kernel(is_usable, self.function, self.vjp)

    def function(self, *args):
        results = [FORWARD * x for x in specification(*args)]
        return [*results, *(FORWARD * x for x in intermediates(*args))]

    def vjp(self, args, kept, cotangents, wanted):
        self.wanted.append(wanted)
        self.kept.append([x.shape for x in kept])
        *floats, index = args
        _, pullback = jax.vjp(lambda *floats: list(specification(*floats, index)), *floats)
        gradients = pullback(list(cotangents))
        return [BACKWARD * g for g, is_wanted in zip(gradients, wanted, strict=True) if is_wanted]


def make(platform="cpu", **options):
    """Returns an accelerated function and the calls of its kernel."""
    calls = Calls(**options)
    kernels = {platform: calls.kernel}
    return accelerate("toy", specification, 2, kernels, intermediates), calls


def loss(function, weight=1.0):
    return lambda *args: sum(weight * jnp.sum(jnp.sin(r)) for r in function(*args))


def linear_loss(function):
    """A loss whose cotangents do not depend on what the function returned."""
    return lambda *args: sum(jnp.sum(r) for r in function(*args))


def assert_close(found, expected, tolerance=1e-5):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"]
)
def test_the_kernel_is_what_computes_values(transform):
    function, _ = make()
    found = transform(function)(X, Y, INDEX)
    assert_close(found, [FORWARD * r for r in specification(X, Y, INDEX)])


def test_intermediates_are_for_the_derivative_alone():
    function, calls = make()
    assert len(function(X, Y, INDEX)) == 2
    jax.grad(loss(function))(X, Y, INDEX)
    assert calls.kept == [[X.shape]]


@pytest.mark.parametrize("argnums", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_gradients_are_the_kernels_and_those_that_are_wanted(transform, argnums):
    function, calls = make()
    found = transform(jax.grad(linear_loss(function), argnums))(X, Y, INDEX)
    expected = jax.grad(linear_loss(specification), argnums)(X, Y, INDEX)
    assert_close(found, [BACKWARD * g for g in expected])
    assert set(calls.wanted) == {(0 in argnums, 1 in argnums)}


def test_a_kernel_that_cannot_be_used_leaves_it_to_the_specification():
    function, calls = make(is_usable=lambda x, y, index: x.shape[0] % 2 == 0)
    assert_close(jax.jit(function)(X, Y, INDEX), specification(X, Y, INDEX))
    found = jax.grad(loss(function), (0, 1))(X, Y, INDEX)
    assert_close(found, jax.grad(loss(specification), (0, 1))(X, Y, INDEX))
    assert calls.wanted == []


def test_a_kernel_of_another_platform_is_not_used():
    function, calls = make(platform="tpu")
    assert_close(jax.jit(function)(X, Y, INDEX), specification(X, Y, INDEX))
    found = jax.grad(loss(function))(X, Y, INDEX)
    assert_close(found, jax.grad(loss(specification))(X, Y, INDEX))
    assert calls.wanted == []


# What goes through the specification wherever it is computed


def test_vmap_computes_the_specification():
    function, _ = make()
    xs, ys = np.stack([X, 2 * X]), np.stack([Y, Y + 1])
    for axes, args in (((0, None, None), (xs, Y, INDEX)), ((0, 0, None), (xs, ys, INDEX))):
        found = jax.jit(jax.vmap(function, axes))(*args)
        assert_close(found, jax.vmap(specification, axes)(*args))
    gradient = jax.vmap(jax.grad(loss(specification)), (0, None, None))(xs, Y, INDEX)
    for map_gradient in (
        jax.vmap(jax.grad(loss(function)), (0, None, None)),
        jax.grad(lambda xs, y, index: loss(jax.vmap(function, (0, None, None)))(xs, y, index)),
    ):
        assert_close(jax.jit(map_gradient)(xs, Y, INDEX), gradient)


def test_forward_mode_computes_the_specification():
    function, _ = make()
    found = jax.jacfwd(lambda x: list(function(x, Y, INDEX)))(X)
    assert_close(found, jax.jacfwd(lambda x: list(specification(x, Y, INDEX)))(X))


@pytest.mark.parametrize(
    "outer, inner",
    list(itertools.product([jax.jacfwd, jax.jacrev], repeat=2)),
    ids=lambda jac: jac.__name__,
)
def test_second_derivatives_are_those_of_the_specification(outer, inner):
    """Of cotangents that do not depend on values, which are the kernel's."""
    function, _ = make(platform="tpu")
    found = outer(inner(loss(function), (0, 1)), (0, 1))(X, Y, INDEX)
    assert_close(found, jax.hessian(loss(specification), (0, 1))(X, Y, INDEX), 1e-4)
    fast, _ = make()
    found = jax.jacfwd(jax.grad(linear_loss(fast), (0, 1)), (0, 1))(X, Y, INDEX)
    expected = jax.hessian(linear_loss(specification), (0, 1))(X, Y, INDEX)
    assert_close(found, expected, 1e-4)


def test_exported_programs_hold_the_specification():
    """They may run where there are no kernels."""
    function, calls = make()
    exported = jax.export.export(jax.jit(function))(X, Y, INDEX)
    assert_close(exported.call(X, Y, INDEX), specification(X, Y, INDEX))
    gradient = jax.jit(jax.grad(loss(function), (0, 1)))
    found = jax.export.export(gradient)(X, Y, INDEX).call(X, Y, INDEX)
    assert_close(found, jax.grad(loss(specification), (0, 1))(X, Y, INDEX))
    assert calls.wanted == []


# All else that JAX does


def test_without_jit_as_with_it():
    function, _ = make()
    with jax.disable_jit():
        found = function(X, Y, INDEX)
        gradient = jax.grad(linear_loss(function))(X, Y, INDEX)
    assert_close(found, function(X, Y, INDEX))
    assert_close(gradient, jax.grad(linear_loss(function))(X, Y, INDEX))


def test_gradients_through_scan_and_remat():
    def scanned(function):
        def step(x, _):
            result, _ = function(x, Y, INDEX)
            return jnp.tanh(result), None

        return lambda x: jnp.sum(jax.lax.scan(step, x, length=3)[0])

    function, _ = make(platform="tpu")
    expected = jax.grad(scanned(specification))(X)
    for f in (function, jax.checkpoint(function), jax.checkpoint(specification)):
        assert_close(jax.jit(jax.grad(scanned(f)))(X), expected)


def test_integers_have_no_gradient_and_harm_none():
    function, _ = make()
    gradients = jax.grad(linear_loss(function), (0, 2), allow_int=True)(X, Y, INDEX)
    assert_close(gradients[0], BACKWARD * jax.grad(linear_loss(specification))(X, Y, INDEX))
    assert gradients[1].dtype == jax.dtypes.float0
    (alone,) = jax.grad(linear_loss(function), (2,), allow_int=True)(X, Y, INDEX)
    assert alone.dtype == jax.dtypes.float0


def test_a_result_without_cotangent_counts_as_zero():
    function, _ = make()
    found = jax.grad(lambda x: function(x, Y, INDEX)[1])(X)
    assert_close(found, BACKWARD * Y)


def test_linear_transpose_and_linearize():
    function, _ = make(platform="tpu")
    value, push = jax.linearize(lambda x: list(function(x, Y, INDEX)), X)
    expected = jax.jvp(lambda x: list(specification(x, Y, INDEX)), (X,), (Y,))
    assert_close((value, push(Y)), expected)
    cotangents = [X, jnp.float32(2.0)]
    (found,) = jax.linear_transpose(push, X)(cotangents)
    _, pullback = jax.vjp(lambda x: list(specification(x, Y, INDEX)), X)
    assert_close(found, pullback(cotangents)[0])


def test_shapes_without_values():
    function, _ = make()
    shapes = jax.eval_shape(function, X, Y, INDEX)
    assert [(r.shape, r.dtype) for r in shapes] == [((3,), "float32"), ((), "float32")]


def test_traced_once_for_each_shape():
    """A model has many layers of one shape; each must not trace the specification again."""
    traces = []

    def counted(*args):
        traces.append(1)
        return specification(*args)

    function = accelerate("toy", counted, 2, {})

    def chain(x, y, index):
        for _ in range(5):
            x, _ = function(x, y, index)
        return jnp.sum(x)

    jax.jit(jax.grad(chain, (0, 1))).trace(X, Y, INDEX)
    first = len(traces)
    jax.jit(jax.grad(lambda *args: 2 * chain(*args), (0, 1))).trace(X, Y, INDEX)
    assert first <= 6
    assert len(traces) == first


def test_errors_of_the_specification_are_raised():
    function, _ = make()
    with pytest.raises(TypeError, match="shape"):
        function(X, Y[:2], INDEX)


@pytest.mark.parametrize("checks", [True, False])
def test_shard_map_sums_gradients_of_what_is_shared(checks):
    """On a mesh of one device; the program is that for many."""
    function, _ = make(platform="tpu")
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    split, shared = PartitionSpec("data"), PartitionSpec()

    def gradient(f):
        def of_shard(x, y, index):
            found = jax.grad(loss(f), (0, 1))(x, y, index)
            return found if checks else (found[0], jax.lax.psum(found[1], "data"))

        return jax.shard_map(
            of_shard,
            mesh=mesh,
            in_specs=(split, shared, split),
            out_specs=(split, shared),
            check_vma=checks,
        )

    found = jax.jit(gradient(function))
    assert_close(found(X, Y, INDEX), jax.grad(loss(specification), (0, 1))(X, Y, INDEX))
    assert "psum" in str(jax.make_jaxpr(gradient(function))(X, Y, INDEX))
    placed = jax.device_put(X, NamedSharding(mesh, split))
    assert_close(jax.jit(function)(placed, Y, INDEX), specification(X, Y, INDEX))
