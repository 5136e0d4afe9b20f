"""What `accelerate` promises: a kernel where it can be used, the specification everywhere else.

The toy kernels are plain functions that return other numbers than the specification, so that a
result shows what computed it.
"""

import functools
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egno_jax.ops.kernels import Kernel, accelerate

X, Y = np.array([0.3, -1.2, 2.0], np.float32), np.array([1.5, 0.4, -0.7], np.float32)
INDEX = np.array([2, 0, 0], np.int32)
ARGS = X, Y, INDEX

# Factors of a toy kernel's results and gradients.
FORWARD, BACKWARD = 100.0, 1000.0


def nested_specification(*, weights, y, index, power=1):
    x = weights["layer"]["x"]
    return jnp.sin(x) ** power * y[index], {"sum": jnp.sum(x * y)}


def positional(function):
    """Returns a function of x, y and index, whose results are a list."""
    return lambda x, y, index: jax.tree.leaves(
        function(weights={"layer": {"x": x}}, y=y, index=index)
    )


specification = positional(nested_specification)


class Toy:
    """A toy kernel, which records how it was called.

    What it keeps is `cos(x) + shift`, and its gradients are those of the specification, times
    `cos(x)` over the array that it was given.
    """

    def __init__(self, fits=lambda args: True, shift=0.0, is_available=lambda: True):
        self.wanted, self.residuals, self.shift = [], [], shift
        self.kernel = Kernel(fits, self.function, self.vjp, self.types, is_available)

    def types(self, args):
        x = args["weights"]["layer"]["x"]
        return {"kept": jax.ShapeDtypeStruct(x.shape, x.dtype)}

    def function(self, args):
        results = jax.tree.map(lambda x: FORWARD * x, nested_specification(**args))
        return results, {"kept": jnp.cos(args["weights"]["layer"]["x"]) + self.shift}

    def vjp(self, args, residuals, cotangents, wanted):
        self.wanted.append((wanted["weights"]["layer"]["x"], wanted["y"], wanted["index"]))
        self.residuals.append({name: x.shape for name, x in residuals.items()})
        x, y, index = args["weights"]["layer"]["x"], args["y"], args["index"]
        _, pullback = jax.vjp(lambda x, y: specification(x, y, index), x, y)
        x_gradient, y_gradient = pullback([cotangents[0], cotangents[1]["sum"]])
        factor = BACKWARD * (jnp.cos(x) + self.shift) / residuals["kept"]
        return {"weights": {"layer": {"x": factor * x_gradient}}, "y": factor * y_gradient}


def make(platform="cpu", **options):
    """Returns an accelerated function and its toy kernel."""
    toy = Toy(**options)
    return positional(accelerate("toy", nested_specification, {platform: toy.kernel})), toy


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
def test_the_kernel_computes_values(transform):
    function, _ = make()
    found = transform(function)(*ARGS)
    assert_close(found, [FORWARD * r for r in specification(*ARGS)])


def test_residuals_are_for_the_derivative_alone():
    function, toy = make()
    assert len(function(*ARGS)) == 2
    jax.grad(loss(function))(*ARGS)
    assert toy.residuals == [{"kept": X.shape}]


def test_the_structure_of_arguments_and_results_is_that_of_the_specification():
    weights = types.MappingProxyType({"layer": {"x": X}})  # a mapping that is no pytree of JAX
    function = accelerate("toy", nested_specification, {"cpu": Toy().kernel})
    found = function(weights=weights, y=Y, index=INDEX)
    assert jax.tree.structure(found) == jax.tree.structure((0, {"sum": 0}))


def test_static_arguments_reach_the_kernel_and_the_specification():
    for platform, factor in (("cpu", FORWARD), ("tpu", 1.0)):
        kernels = {platform: Toy().kernel}
        function = accelerate("toy", nested_specification, kernels, static=["power"])
        for power in (1, 2):
            call = functools.partial(function, power=power)
            expected = nested_specification(
                weights={"layer": {"x": X}}, y=Y, index=INDEX, power=power
            )
            assert_close(positional(call)(*ARGS)[0], factor * expected[0])
            slope = jax.grad(linear_loss(positional(call)))(*ARGS)
            assert np.isfinite(slope).all()


def test_every_platform_keeps_its_own_residuals():
    """Two kernels in one function: each is given what it kept, and not a product of the other."""
    cpu, tpu = Toy(), Toy(shift=3.0)
    kernels = {"tpu": tpu.kernel, "cpu": cpu.kernel, "cuda": tpu.kernel}
    function = positional(accelerate("toy", nested_specification, kernels))
    for transform in (lambda f: f, jax.jit):
        found = transform(jax.grad(linear_loss(function), (0, 1)))(*ARGS)
        expected = jax.grad(linear_loss(specification), (0, 1))(*ARGS)
        assert_close(found, [BACKWARD * g for g in expected])
    assert cpu.wanted and not tpu.wanted


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_program_has_no_residual_that_it_does_not_use(platform):
    """The residual is `tan(x)` on one platform and `tanh(x)` on the other."""
    toys = {name: Toy() for name in ("cpu", "tpu")}
    marks = {"cpu": jnp.tan, "tpu": jnp.tanh}

    def marked(name):
        def function(args):
            results, _ = toys[name].function(args)
            return results, {"kept": marks[name](args["weights"]["layer"]["x"])}

        return toys[name].kernel._replace(function=function)

    function = positional(
        accelerate("toy", nested_specification, {name: marked(name) for name in toys})
    )
    traced = jax.jit(jax.grad(linear_loss(function))).trace(*ARGS)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    found = set(re.findall(r"(?:stablehlo|chlo)\.(tanh?)\b", program))
    assert found == {"tan" if platform == "cpu" else "tanh"}
    if platform == "cpu":
        compiled = traced.lower().compile().as_text()
        assert "constant(nan)" not in compiled  # the check of whose residuals they are is folded


@pytest.mark.parametrize(
    "options, is_kept",
    [
        ({}, True),
        ({"platform": "tpu"}, False),
        ({"fits": lambda args: False}, False),
        ({"is_available": lambda: False}, False),
    ],
    ids=["usable", "platform", "fits", "is_available"],
)
def test_only_a_usable_kernel_computes_residuals(options, is_kept):
    """`cos(x)` is computed by the kernel alone, and is a result of a program that returns them."""
    function, _ = make(**options)
    forward = jax.jit(lambda x: jax.vjp(lambda x: function(x, Y, INDEX), x))
    assert ("stablehlo.cosine" in forward.lower(X).as_text()) == is_kept


def test_residuals_of_another_platform_make_gradients_nan():
    """As if one platform had computed the function, and another its derivative."""
    is_available = [False]
    function, _ = make(is_available=lambda: is_available[0])
    _, pullback = jax.vjp(lambda x: function(x, Y, INDEX)[1], X)
    is_available[0] = True
    (gradient,) = pullback(jnp.float32(1))
    assert jnp.isnan(gradient).all()


@pytest.mark.parametrize("argnums", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_gradients_are_the_kernels_and_those_that_are_wanted(transform, argnums):
    function, toy = make()
    found = transform(jax.grad(linear_loss(function), argnums))(*ARGS)
    expected = jax.grad(linear_loss(specification), argnums)(*ARGS)
    assert_close(found, [BACKWARD * g for g in expected])
    assert set(toy.wanted) == {(0 in argnums, 1 in argnums, False)}


def test_a_kernel_that_cannot_be_used_leaves_it_to_the_specification():
    function, toy = make(fits=lambda args: args["y"].shape[0] % 2 == 0)
    assert_close(jax.jit(function)(*ARGS), specification(*ARGS))
    found = jax.grad(loss(function), (0, 1))(*ARGS)
    assert_close(found, jax.grad(loss(specification), (0, 1))(*ARGS))
    assert toy.wanted == []


def test_a_kernel_of_another_platform_is_not_used():
    function, toy = make(platform="tpu")
    assert_close(jax.jit(function)(*ARGS), specification(*ARGS))
    found = jax.grad(loss(function))(*ARGS)
    assert_close(found, jax.grad(loss(specification))(*ARGS))
    assert toy.wanted == []


# Computed by the specification on every platform


@functools.cache
def hessian(make_loss):
    return jax.jit(jax.hessian(make_loss(specification), (0, 1)))


def test_vmap_computes_the_specification():
    function, _ = make()
    xs, ys = np.stack([X, 2 * X]), np.stack([Y, Y + 1])
    for axes, args in (((0, None, None), (xs, Y, INDEX)), ((0, 0, None), (xs, ys, INDEX))):
        found = jax.jit(jax.vmap(function, axes))(*args)
        assert_close(found, jax.jit(jax.vmap(specification, axes))(*args))
    gradient = jax.jit(jax.vmap(jax.grad(loss(specification)), (0, None, None)))(xs, Y, INDEX)
    for map_gradient in (
        jax.vmap(jax.grad(loss(function)), (0, None, None)),
        jax.grad(lambda xs, y, index: loss(jax.vmap(function, (0, None, None)))(xs, y, index)),
    ):
        assert_close(jax.jit(map_gradient)(xs, Y, INDEX), gradient)


def test_forward_mode_computes_the_specification():
    function, _ = make()
    found = jax.jit(jax.jacfwd(function))(*ARGS)
    assert_close(found, jax.jit(jax.jacfwd(specification))(*ARGS))


@pytest.mark.parametrize(
    "outer, inner",
    list(itertools.product([jax.jacfwd, jax.jacrev], repeat=2)),
    ids=lambda jac: jac.__name__,
)
def test_second_derivatives_are_those_of_the_specification(outer, inner):
    function, _ = make(platform="tpu")
    found = jax.jit(outer(inner(loss(function), (0, 1)), (0, 1)))(*ARGS)
    assert_close(found, hessian(loss)(*ARGS), 1e-4)


def test_second_derivatives_of_a_kernel_are_those_of_the_specification():
    """Of cotangents that do not depend on values, which are the kernel's."""
    function, _ = make()
    found = jax.jit(jax.jacfwd(jax.grad(linear_loss(function), (0, 1)), (0, 1)))(*ARGS)
    assert_close(found, hessian(linear_loss)(*ARGS), 1e-4)


def test_exported_programs_hold_the_specification():
    """They may run where there are no kernels."""
    function, toy = make()
    exported = jax.export.export(jax.jit(function))(*ARGS)
    assert_close(exported.call(*ARGS), specification(*ARGS))
    gradient = jax.jit(jax.grad(loss(function), (0, 1)))
    found = jax.export.export(gradient)(*ARGS).call(*ARGS)
    assert_close(found, jax.grad(loss(specification), (0, 1))(*ARGS))
    assert toy.wanted == []


# Other transformations of JAX


def test_without_jit_as_with_it():
    function, _ = make()
    with jax.disable_jit():
        found = function(*ARGS)
        gradient = jax.grad(linear_loss(function))(*ARGS)
    assert_close(found, function(*ARGS))
    assert_close(gradient, jax.grad(linear_loss(function))(*ARGS))


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


def test_integers_have_no_gradient():
    function, _ = make()
    gradients = jax.grad(linear_loss(function), (0, 2), allow_int=True)(*ARGS)
    assert_close(gradients[0], BACKWARD * jax.grad(linear_loss(specification))(*ARGS))
    assert gradients[1].dtype == jax.dtypes.float0
    (alone,) = jax.grad(linear_loss(function), (2,), allow_int=True)(*ARGS)
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

    @functools.wraps(nested_specification)
    def counted(**args):
        traces.append(1)
        return nested_specification(**args)

    function = positional(accelerate("toy", counted, {"tpu": Toy().kernel}))

    def chain(x, y, index):
        for _ in range(5):
            x, _ = function(x, y, index)
        return jnp.sum(x)

    jax.jit(jax.grad(chain, (0, 1))).trace(*ARGS)
    first = len(traces)
    jax.jit(jax.grad(lambda *args: 2 * chain(*args), (0, 1))).trace(*ARGS)
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
    assert_close(found(*ARGS), jax.grad(loss(specification), (0, 1))(*ARGS))
    assert "psum" in str(jax.make_jaxpr(gradient(function))(*ARGS))
    placed = jax.device_put(X, NamedSharding(mesh, split))
    assert_close(jax.jit(function)(placed, Y, INDEX), specification(*ARGS))
