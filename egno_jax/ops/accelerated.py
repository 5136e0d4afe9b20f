"""Functions with a specification in JAX and faster kernels on some platforms.

`accelerate` makes of a plain function one that computes the same, and lets a platform replace the
function and its reverse-mode derivative by kernels of its own. Which is taken is decided when a
program is lowered for its platform; all else that JAX does to a function (forward mode, `vmap`,
higher derivatives, other platforms, dtypes and shapes) goes through the specification, and so does
`jax.export`, whose programs must run where the kernels are not. A program that XLA splits over a
mesh of automatic axes takes the specification too: it cannot split a kernel, and would gather its
arguments on every device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from egno_jax.ops import sharding

if TYPE_CHECKING:
    from jaxtyping import Array

    Wanted = tuple[bool, ...]


class Kernel(NamedTuple):
    """What a platform offers for one function.

    Attributes:
      is_usable: takes the function's arguments, traced; says whether the kernels can compute them.
      function: takes the arguments; returns results and intermediates, in one sequence.
      vjp: takes the arguments, the intermediates, the results' cotangents, and for each argument
        that can be differentiated whether its gradient is wanted; returns the wanted gradients.
    """

    is_usable: Callable[..., bool]
    function: Callable[..., Sequence[Array]]
    vjp: Callable[[Sequence[Array], Sequence[Array], Sequence[Array], Wanted], Sequence[Array]]


def accelerate(
    name: str,
    specification: Callable[..., Sequence[Array]],
    num_differentiable: int,
    kernels: Mapping[str, Kernel],
    intermediates: Callable[..., Sequence[Array]] = lambda *args: (),
) -> Callable[..., Sequence[Array]]:
    """Returns a function that computes `specification`, by a platform's kernel where there is one.

    Args:
      name: what to call it in compiled programs.
      specification: a function of arrays that returns a sequence of arrays.
      num_differentiable: how many of its arguments, the first ones, are floating; the others are
        integers.
      kernels: by the name of a platform, such as `cpu`.
      intermediates: computes from the same arguments what is kept from the function for its
        derivative.

    Returns:
      A function of the same arguments and results.
    """

    def chosen(args: Sequence[Array], wanted: Wanted) -> list[Array]:
        return [x for x, is_wanted in zip(args, wanted, strict=False) if is_wanted]

    def of_chosen(args: Sequence[Array], wanted: Wanted) -> Callable[..., list[Array]]:
        """Returns the specification as a function of the wanted arguments alone."""

        def function(*values: Array) -> list[Array]:
            rest = iter(values)
            flags = (*wanted, *[False] * (len(args) - len(wanted)))
            full = [next(rest) if w else x for x, w in zip(args, flags, strict=True)]
            return list(specification(*full))

        return function

    def function(*args: Array) -> list[Array]:
        return [*specification(*args), *intermediates(*args)]

    def jvp(*operands: Array, sizes: tuple[int, int, int], wanted: Wanted) -> list[Array]:
        args, _, tangents = _split(operands, sizes)
        return jax.jvp(of_chosen(args, wanted), chosen(args, wanted), list(tangents))[1]

    def vjp(*operands: Array, sizes: tuple[int, int, int], wanted: Wanted) -> list[Array]:
        args, _, cotangents = _split(operands, sizes)
        pullback = jax.vjp(of_chosen(args, wanted), *chosen(args, wanted))[1]
        return list(pullback(list(cotangents)))

    function_p = _primitive(f"egno_{name}", function)
    jvp_p = _primitive(f"egno_{name}_jvp", jvp)
    vjp_p = _primitive(f"egno_{name}_vjp", vjp)
    traced = jax.jit(lambda *args: list(specification(*args)))

    def num_results(*args: Array) -> int:
        return len(jax.eval_shape(traced, *args))

    def function_jvp(args: Sequence[Array], tangents: Sequence[Array]) -> tuple[list, list]:
        outputs = function_p.bind(*args)
        results = num_results(*args)
        kept = outputs[results:]
        wanted = tuple(not isinstance(t, ad.Zero) for t in tangents[:num_differentiable])
        directions = chosen(tangents, wanted)
        sizes = (len(args), len(kept), len(directions))
        derivatives = jvp_p.bind(*args, *kept, *directions, sizes=sizes, wanted=wanted)
        # Nobody but the derivative sees the intermediates.
        return outputs, [*derivatives, *(ad.Zero(jax.typeof(x)) for x in kept)]

    def jvp_transpose(
        cotangents: Sequence[Array], *operands: Array, sizes: tuple[int, int, int], wanted: Wanted
    ) -> list[Array | None]:
        args, kept, _ = _split(operands, sizes)
        cotangents = [ad.instantiate_zeros(x) for x in cotangents]
        sizes = (len(args), len(kept), len(cotangents))
        gradients = vjp_p.bind(*args, *kept, *cotangents, sizes=sizes, wanted=wanted)
        return [None] * (len(args) + len(kept)) + list(gradients)

    ad.primitive_jvps[function_p] = function_jvp
    ad.primitive_transposes[jvp_p] = jvp_transpose

    for platform, kernel in kernels.items():

        def fast_function(*args: Array, kernel: Kernel = kernel) -> list[Array]:
            return list(kernel.function(*args)) if kernel.is_usable(*args) else function(*args)

        def fast_vjp(
            *operands: Array,
            sizes: tuple[int, int, int],
            wanted: Wanted,
            kernel: Kernel = kernel,
        ) -> list[Array]:
            args, kept, cotangents = _split(operands, sizes)
            if kernel.is_usable(*args):
                return list(kernel.vjp(args, kept, cotangents, wanted))
            return vjp(*operands, sizes=sizes, wanted=wanted)

        for primitive, slow, fast in (
            (function_p, function, fast_function),
            (vjp_p, vjp, fast_vjp),
        ):
            mlir.register_lowering(primitive, _lowering(slow, fast), platform=platform)

    def accelerated(*args: Array) -> list[Array]:
        if sharding.is_partitioned():
            return list(specification(*args))
        args = _varying_together(args)
        return function_p.bind(*args)[: num_results(*args)]

    accelerated.__name__ = name
    return jax.jit(accelerated)


def _split(
    operands: Sequence[Array], sizes: tuple[int, int, int]
) -> tuple[Sequence[Array], Sequence[Array], Sequence[Array]]:
    """Returns the arguments, the intermediates, and the tangents or cotangents."""
    first, second = sizes[0], sizes[0] + sizes[1]
    return operands[:first], operands[first:second], operands[second:]


def _varying_together(args: Sequence[Array]) -> list[Array]:
    """Makes all arguments differ over the same axes of a mesh, those of `shard_map`.

    JAX's own operations do so by themselves. It is what sums over the devices the gradient of an
    argument that is the same everywhere.
    """
    own = [jax.typeof(x).manual_axis_type.varying for x in args]
    missing = [tuple(frozenset().union(*own) - axes) for axes in own]
    return [
        jax.lax.pcast(x, names, to="varying") if names else x
        for x, names in zip(args, missing, strict=True)
    ]


def _lowering(slow: Callable[..., list[Array]], fast: Callable[..., list[Array]]) -> Callable:
    """Returns a rule that takes `fast` but for programs that leave this process."""
    slow_rule, fast_rule = (mlir.lower_fun(f, multiple_results=True) for f in (slow, fast))

    def rule(context: mlir.LoweringRuleContext, *operands: object, **params: object) -> object:
        is_exported = context.module_context.lowering_parameters.for_export
        return (slow_rule if is_exported else fast_rule)(context, *operands, **params)

    return rule


def _primitive(name: str, function: Callable[..., list[Array]]) -> Primitive:
    """Returns a primitive that computes `function`, and is differentiated and mapped as it is."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    # One object for each choice of parameters, so that JAX traces and compiles it once.
    @functools.cache
    def traced(**params: object) -> Callable[..., list[Array]]:
        return jax.jit(functools.partial(function, **params))

    @functools.cache
    def compiled(**params: object) -> Callable[..., list[Array]]:
        return jax.jit(functools.partial(primitive.bind, **params))

    def evaluate(*operands: Array, **params: object) -> list[Array]:
        with jax.disable_jit(False):  # otherwise `compiled` would come back here
            return compiled(**params)(*operands)

    def abstract(*avals: object, **params: object) -> Sequence[object]:
        return traced(**params).trace(*avals).jaxpr.out_avals

    def jvp(
        primals: Sequence[Array], tangents: Sequence[Array], **params: object
    ) -> tuple[list[Array], list[Array]]:
        tangents = tuple(ad.instantiate_zeros(x) for x in tangents)
        return jax.jvp(functools.partial(function, **params), tuple(primals), tangents)

    def batch(
        operands: Sequence[Array], axes: Sequence[int | None], **params: object
    ) -> tuple[list[Array], list[int]]:
        results = jax.vmap(functools.partial(function, **params), in_axes=tuple(axes))(*operands)
        return results, [0] * len(results)

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=True))
    return primitive
