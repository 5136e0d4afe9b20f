"""Functions with a specification in JAX and faster kernels on some platforms.

`accelerate` returns a function that computes its specification, a plain function of keyword
arguments. A platform can replace the function and its reverse-mode derivative with kernels. The
choice is made when a program is lowered for a platform. The specification computes the rest:

- other platforms, dtypes and shapes;
- forward mode, `vmap` and higher derivatives;
- `jax.export`, because exported programs may run where there are no kernels;
- programs that XLA partitions over a mesh of automatic axes, because XLA cannot split a kernel,
  except functions of each time alone where the mesh splits nothing but times.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from egno_jax.ops import sharding

if TYPE_CHECKING:
    from jaxtyping import Array

    Arguments = dict[str, Any]  # by name: arrays, nested dicts of arrays, static values
    Wanted = tuple[bool, ...]

# Marks the residuals that the platform itself has computed.
_IS_FILLED = "is_filled"


class Kernel(NamedTuple):
    """An implementation of one function for one platform.

    Attributes:
      fits: returns whether the kernel can compute arguments of these shapes and dtypes.
      function: returns the results, in the structure of the specification's, and the residuals.
      vjp: is called with the arguments, the residuals, the cotangents of the results, and a bool
        for each argument (whether its gradient is wanted); returns the gradients by the names of
        the arguments. Entries that are not wanted are ignored and may be left out.
      residuals: returns name and `jax.ShapeDtypeStruct` of what `function` keeps for `vjp`.
      is_available: returns whether the kernel can be used in this process, always the same; called
        when a program is lowered for the platform.
    """

    fits: Callable[[Arguments], bool]
    function: Callable[[Arguments], tuple[Any, dict[str, Array]]]
    vjp: Callable[[Arguments, dict[str, Array], Any, Any], Arguments]
    residuals: Callable[[Arguments], dict[str, jax.ShapeDtypeStruct]] = lambda args: {}
    is_available: Callable[[], bool] = lambda: True

    @classmethod
    def of(cls, source: Any, is_available: Callable[[], bool]) -> Kernel:
        """Returns the kernel that has the methods of an object; `residuals` may be missing."""
        kept = {"residuals": source.residuals} if hasattr(source, "residuals") else {}
        return cls(source.fits, source.function, source.vjp, is_available=is_available, **kept)

    def is_usable(self, args: Arguments) -> bool:
        """Returns whether the kernel computes these arguments in this process."""
        return self.fits(args) and self.is_available()


def accelerate(
    name: str,
    specification: Callable[..., Any],
    kernels: Mapping[str, Kernel],
    static: Sequence[str] = (),
    with_times: Sequence[str] = (),
) -> Callable[..., Any]:
    """Returns a function that computes `specification`, by a platform's kernel where it can.

    Floating arguments are differentiable, others are not.

    Args:
      name: the function's name, also in compiled programs.
      specification: a function of arrays and nested mappings of arrays, by name; returns a pytree
        of arrays. An argument that is None is left out: its default must be None.
      kernels: by platform, such as `"cpu"`.
      static: names of arguments that are not arrays, such as a precision.
      with_times: names of the arguments whose first axis is that of times, if all times are
        independent and the results have them first; else none.
    """
    function = _Accelerated(name, specification, kernels, tuple(static))
    signature = inspect.signature(specification)

    def compiled(**args: Any) -> Any:
        if not sharding.is_partitioned():
            return function(**args)
        fixed = {name: args.pop(name) for name in static}
        if not _is_mapped(args, with_times):
            return specification(**args, **fixed)
        return sharding.map_times(functools.partial(function, **fixed), args, with_times)

    compiled.__name__ = name
    compiled = jax.jit(compiled, static_argnames=tuple(static))

    @functools.wraps(specification)
    def accelerated(*args: Any, **named: Any) -> Any:
        bound = signature.bind(*args, **named)
        bound.apply_defaults()
        given = {name: x for name, x in bound.arguments.items() if x is not None}
        return compiled(**_plain(given))

    accelerated.__name__ = accelerated.__qualname__ = name
    return accelerated


def _is_mapped(args: Arguments, with_times: Sequence[str]) -> bool:
    """Returns whether each device of the current mesh can compute its own times."""
    shapes = [args[name].shape for name in with_times]
    have_times = all(len(shape) > 2 and shape[0] == shapes[0][0] for shape in shapes)
    if not shapes or not have_times or not sharding.splits_only_times(shapes[0][0]):
        return False
    # XLA refuses a mesh within the one of a `shard_map` that checks what varies.
    return not _varying_axes(jax.tree.leaves(args))


class _Call(NamedTuple):
    """The parameters of a call: the structure of its arguments, and the static ones."""

    structure: Any
    static: tuple[tuple[str, Any], ...]

    def arguments(self, leaves: Sequence[Array]) -> Arguments:
        return self.structure.unflatten(leaves) | dict(self.static)


class _Accelerated:
    """The primitives of one accelerated function.

    Their operands are the leaves of the arguments. The primitives of derivatives have two kinds of
    further operands: the slots, which are each platform's residuals, and the tangents or
    cotangents. The function returns its results and the slots. A program that is lowered for one
    platform has constants in the slots of the others, and never reads them.
    """

    def __init__(
        self,
        name: str,
        specification: Callable[..., Any],
        kernels: Mapping[str, Kernel],
        static: tuple[str, ...],
    ):
        self._specification, self._kernels, self._static = specification, dict(kernels), static
        self._traced = jax.jit(specification, static_argnames=static)
        self._function_p = _primitive(f"egno_{name}", self._function)
        self._jvp_p = _primitive(f"egno_{name}_jvp", self._jvp)
        self._vjp_p = _primitive(f"egno_{name}_vjp", self._vjp)
        ad.primitive_jvps[self._function_p] = self._function_jvp
        ad.primitive_transposes[self._jvp_p] = self._jvp_transpose
        for platform in self._kernels:
            for primitive, slow, fast in (
                (self._function_p, self._function, self._fast_function),
                (self._vjp_p, self._vjp, self._fast_vjp),
            ):
                rule = _lowering(slow, functools.partial(fast, platform))
                mlir.register_lowering(primitive, rule, platform=platform)

    def __call__(self, **args: Any) -> Any:
        static = tuple((name, args.pop(name)) for name in self._static)
        leaves, structure = jax.tree.flatten(args)
        call = _Call(structure, static)
        outputs = self._function_p.bind(*_varying_together(leaves), call=call)
        results = self._result_structure(call.arguments(leaves))
        return results.unflatten(outputs[: results.num_leaves])

    # The specification. `_function`, `_jvp` and `_vjp` are what the primitives mean.

    def _function(self, *leaves: Array, call: _Call) -> list[Array]:
        args = call.arguments(leaves)
        return jax.tree.leaves((self._specification(**args), self._empty_slots(args, leaves)))

    def _jvp(self, *operands: Array, call: _Call, wanted: Wanted) -> list[Array]:
        leaves, _, tangents = self._split(operands, call)
        function = self._of_wanted(leaves, call, wanted)
        return jax.jvp(function, _choose(leaves, wanted), list(tangents))[1]

    def _vjp(self, *operands: Array, call: _Call, wanted: Wanted) -> list[Array]:
        leaves, _, cotangents = self._split(operands, call)
        function = self._of_wanted(leaves, call, wanted)
        return list(jax.vjp(function, *_choose(leaves, wanted))[1](list(cotangents)))

    def _of_wanted(
        self, leaves: Sequence[Array], call: _Call, wanted: Wanted
    ) -> Callable[..., list[Array]]:
        """Returns the specification as a function of the wanted leaves."""

        def function(*values: Array) -> list[Array]:
            rest = iter(values)
            full = [next(rest) if w else x for x, w in zip(leaves, wanted, strict=True)]
            return jax.tree.leaves(self._specification(**call.arguments(full)))

        return function

    # The kernels of a platform.

    def _fast_function(self, platform: str, *leaves: Array, call: _Call) -> list[Array]:
        args, kernel = call.arguments(leaves), self._kernels[platform]
        if not kernel.is_usable(args):
            return self._function(*leaves, call=call)
        results, residuals = kernel.function(args)
        slots = self._empty_slots(args, leaves)
        if residuals:
            slots[platform] = {**residuals, _IS_FILLED: jnp.array(True)}
        return jax.tree.leaves((results, slots))

    def _fast_vjp(
        self, platform: str, *operands: Array, call: _Call, wanted: Wanted
    ) -> list[Array]:
        leaves, slots, cotangents = self._split(operands, call)
        args, kernel = call.arguments(leaves), self._kernels[platform]
        if not kernel.is_usable(args):
            return self._vjp(*operands, call=call, wanted=wanted)
        residuals = slots[platform]
        is_filled = residuals.pop(_IS_FILLED, None)
        wanted = call.structure.unflatten(wanted)
        cotangents = self._result_structure(args).unflatten(cotangents)
        gradients = kernel.vjp(args, residuals, cotangents, wanted)
        by_path = dict(jax.tree_util.tree_leaves_with_path(gradients))
        paths = [path for path, w in jax.tree_util.tree_leaves_with_path(wanted) if w]
        if is_filled is None:
            return [by_path[path] for path in paths]
        # Another platform may have computed the function, in a separate program: NaN, not a
        # wrong gradient. Within one program XLA removes the choice.
        return [jnp.where(is_filled, by_path[path], jnp.nan) for path in paths]

    # Reverse mode is the transpose of a forward mode that is linear in its tangents.

    def _function_jvp(
        self, leaves: Sequence[Array], tangents: Sequence[Array], *, call: _Call
    ) -> tuple[list, list]:
        outputs = self._function_p.bind(*leaves, call=call)
        slots = outputs[self._result_structure(call.arguments(leaves)).num_leaves :]
        wanted = tuple(
            jnp.issubdtype(x.dtype, jnp.inexact) and not isinstance(tangent, ad.Zero)
            for x, tangent in zip(leaves, tangents, strict=True)
        )
        directions = _choose(tangents, wanted)
        derivatives = self._jvp_p.bind(*leaves, *slots, *directions, call=call, wanted=wanted)
        # Only the derivative reads the slots.
        return outputs, [*derivatives, *(ad.Zero(jax.typeof(x).to_tangent_aval()) for x in slots)]

    def _jvp_transpose(
        self, cotangents: Sequence[Array], *operands: Array, call: _Call, wanted: Wanted
    ) -> list[Array | None]:
        known = operands[: len(operands) - sum(wanted)]
        cotangents = [ad.instantiate_zeros(x) for x in cotangents]
        gradients = self._vjp_p.bind(*known, *cotangents, call=call, wanted=wanted)
        return [None] * len(known) + list(gradients)

    # Operands and their structure.

    def _result_structure(self, args: Arguments) -> Any:
        return jax.tree.structure(jax.eval_shape(self._traced, **args))

    def _slot_types(self, args: Arguments) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        def types(kernel: Kernel) -> dict[str, jax.ShapeDtypeStruct]:
            kept = kernel.residuals(args) if kernel.fits(args) else {}
            return {**kept, _IS_FILLED: jax.ShapeDtypeStruct((), bool)} if kept else {}

        return {platform: types(kernel) for platform, kernel in self._kernels.items()}

    def _empty_slots(self, args: Arguments, leaves: Sequence[Array]) -> dict[str, dict[str, Array]]:
        def zeros(kind: jax.ShapeDtypeStruct) -> Array:
            return _varying(jnp.zeros(kind.shape, kind.dtype), _varying_axes(leaves))

        return jax.tree.map(zeros, self._slot_types(args))

    def _split(
        self, operands: Sequence[Array], call: _Call
    ) -> tuple[Sequence[Array], dict[str, dict[str, Array]], Sequence[Array]]:
        """Returns the leaves of the arguments, the slots, and the tangents or cotangents."""
        first = call.structure.num_leaves
        leaves = operands[:first]
        slots = jax.tree.structure(self._slot_types(call.arguments(leaves)))
        second = first + slots.num_leaves
        return leaves, slots.unflatten(operands[first:second]), operands[second:]


def _choose(values: Sequence[Array], wanted: Wanted) -> list[Array]:
    return [x for x, is_wanted in zip(values, wanted, strict=True) if is_wanted]


def _plain(tree: Any) -> Any:
    """Returns a tree with mappings of any type as dicts."""
    if isinstance(tree, Mapping):
        return {name: _plain(value) for name, value in tree.items()}
    return tree


def _varying_axes(values: Sequence[Array]) -> frozenset[str]:
    """Returns the axes of `shard_map` along which any of the values differs between devices."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in values))


def _varying(x: Array, axes: frozenset[str]) -> Array:
    missing = tuple(axes - _varying_axes([x]))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _varying_together(values: Sequence[Array]) -> list[Array]:
    """Makes all values vary over the same axes of `shard_map`, as JAX's operations do.

    The transpose of this sums, over devices, the gradient of a value that all devices share.
    """
    axes = _varying_axes(values)
    return [_varying(x, axes) for x in values]


def _lowering(slow: Callable[..., list[Array]], fast: Callable[..., list[Array]]) -> Callable:
    """Returns a lowering rule: `slow` for programs that leave this process, `fast` for others."""
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
        with jax.disable_jit(False):  # otherwise `compiled` would call this function again
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
