"""Blocks of rows in kernels for GPUs, in Pallas with Triton.

A program takes the rows of a block, of arrays `[M, C]`, and weights as matrices. In registers the
sizes of arrays are powers of two, in memory they are not: what is not there is read as 0 and not
written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from egno_jax.ops.kernels.accelerated import Arguments

    Arrays = dict[str, Array]

# Rows of a block, and warps of a program: with these the compiler keeps most values in registers.
_BLOCK = 16
_WARPS = 8
# The most programs that sum gradients of weights: two for each multiprocessor of an H100.
_MAX_PROGRAMS = 264
# How tensor cores multiply. For `highest`, each factor is a sum of two numbers that they have, so
# that only the product of both small ones is missing, some 2^-22 of the whole.
PRECISIONS = {"default": "default", "highest": jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3}


class Part(NamedTuple):
    """A matrix that kernels read: rows of an array of weights."""

    array: str
    first: int
    size: int


class Plan(NamedTuple):
    """How rows are divided among programs, and the first layers of weights.

    Attributes:
      times: P.
      nodes: N; a row is a node at one time.
      width: C, of hidden layers.
      precision: that of products of matrices.
      parts: of a first layer, those that multiply one of its inputs each.
    """

    times: int
    nodes: int
    width: int
    precision: str
    parts: dict[str, Part]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.times * self.nodes

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.rows // _BLOCK)

    @property
    def repeats(self) -> int:
        """The blocks of each program that sums gradients of weights."""
        return -(-self.blocks // _MAX_PROGRAMS)

    @property
    def programs(self) -> int:
        """The number of programs that sum gradients of weights."""
        return -(-self.blocks // self.repeats)

    def product(self, x: Float[Array, "R A"], y: Float[Array, "A B"]) -> Float[Array, "R B"]:
        """Multiplies matrices."""
        return jnp.dot(x, y, precision=PRECISIONS[self.precision])


class Rows(NamedTuple):
    """Rows of arrays, and which of them to read or to write."""

    index: Int[Array, "R"]
    is_real: Bool[Array, "R"]


def plan_of(args: Arguments, mlp: str, sizes: dict[str, int]) -> Plan:
    """Returns the plan of a kernel.

    Args:
      args: the arguments of the function.
      mlp: the name of the weights whose first layer has parts.
      sizes: the number of rows of each of them, in order.
    """
    times, nodes, _ = args["features"].shape
    width = args[mlp]["linear_0"]["bias"].shape[0]
    parts, first = {}, 0
    for name, size in sizes.items():
        if size:
            parts[name] = Part(f"{mlp}_0_kernel", first, size)
        first += size
    return Plan(times, nodes, width, args["precision"], parts)


def over_edges(
    plan: Plan,
    adjacency: Any,
    rows: Rows,
    weights: Any,
    names: Sequence[str],
    function: Callable[[Rows, Rows, Arrays, Any], Any],
    start: Any,
) -> Any:
    """Carries a value through calls of a function with an edge of each row, while any has one.

    It is called with the rows at the other end, the rows of the edges, the matrices of these names,
    and the value.
    """
    node = jax.lax.rem(rows.index, plan.nodes)
    first, count = (
        triton.load(ref.at[node], mask=rows.is_real, other=0)
        for ref in (adjacency.starts, adjacency.counts)
    )

    def step(k: Array, value: Any) -> Any:
        is_edge = k < count
        other, edge = (
            triton.load(ref.at[first + k], mask=is_edge, other=0)
            for ref in (adjacency.others, adjacency.edges)
        )
        others = Rows(rows.index - node + other, is_edge)
        matrices = matrices_of(plan, weights, names, k)
        return function(others, Rows(edge, is_edge), matrices, value)

    return jax.lax.fori_loop(0, jnp.max(count), step, start)


def added(first: Any, second: Any) -> Any:
    """Adds two trees of arrays."""
    return jax.tree.map(jnp.add, first, second)


# Rows


def block(plan: Plan, number: Int[Array, ""]) -> Rows:
    """Returns the rows of a block."""
    index = number * _BLOCK + jnp.arange(_BLOCK)
    return Rows(index, index < plan.rows)


def _all_rows(size: int, first: int | Int[Array, ""]) -> Rows:
    index = jnp.arange(pl.next_power_of_2(size))
    return Rows(first + index, index < size)


def _place(rows: Rows, first: int, columns: int) -> tuple[Any, Bool[Array, "R A"]]:
    """Returns indices of values, and which of them are real."""
    column = jnp.arange(pl.next_power_of_2(columns))
    return (rows.index[:, None], first + column[None]), rows.is_real[:, None] & (column < columns)


def read(refs: Any, rows: Rows, first: int = 0, columns: int | None = None) -> Any:
    """Reads columns of rows, of each array of a tree."""

    def read_one(ref: Any) -> Array:
        place, is_real = _place(rows, first, columns or ref.shape[1])
        return triton.load(ref.at[place], mask=is_real, other=0.0)

    return jax.tree.map(read_one, refs)


def write(ref: Any, rows: Rows, values: Float[Array, "R A"], first: int = 0) -> None:
    """Writes values to rows of an array, at as many columns as there are from the first."""
    place, is_real = _place(rows, first, min(values.shape[1], ref.shape[1]))
    triton.store(ref.at[place], values, mask=is_real)


# Weights


def weights_of(args: Arguments, *mlps: str) -> Arrays:
    """Returns weights as arrays of two axes, where a bias is a row, and a single output another."""
    return {
        f"{mlp}_{i}_{name}": x.reshape(-1, x.shape[-1] if x.shape[-1] > 1 else len(x))
        for mlp in mlps
        for i in range(2)
        for name, x in args[mlp][f"linear_{i}"].items()
    }


def parts_of(plan: Plan, weights: Any) -> dict[str, Part]:
    """Returns the matrices that kernels read: parts of first layers, and whole arrays."""
    split = {part.array for part in plan.parts.values()}
    whole = {name: Part(name, 0, x.shape[0]) for name, x in weights.items() if name not in split}
    return plan.parts | whole


def matrices_of(
    plan: Plan, weights: Any, names: Sequence[str], iteration: int | Array = 0
) -> Arrays:
    """Reads matrices, with rows of zeros up to a power of two, in an iteration of a loop."""
    # Always 0, which the compiler does not know: during the loop it would keep the matrices in
    # shared memory, where there is no room for all of them.
    zero = jax.lax.shift_right_logical(iteration, 30)
    parts = parts_of(plan, weights)

    def matrix(part: Part) -> Array:
        return read(weights[part.array], _all_rows(part.size, part.first + zero))

    return {name: matrix(parts[name]) for name in names}


def sums_like(plan: Plan, weights: Arrays) -> jax.ShapeDtypeStruct:
    """Returns the type of gradients of weights: for each program the rows of all arrays."""
    _, num_rows = _first_rows(weights)
    return floats(plan.programs * num_rows, max(x.shape[1] for x in weights.values()))


def write_sums(
    plan: Plan,
    sums: Any,
    weights: Any,
    names: Sequence[str],
    of_block: Callable[[Rows, Arrays], Arrays],
) -> None:
    """Writes the gradients of some matrices, added up over the blocks of this program.

    `of_block` returns those of the rows of a block, given these matrices.
    """
    program, parts = pl.program_id(0), parts_of(plan, weights)

    def add(k: Array, total: Arrays) -> Arrays:
        matrices = matrices_of(plan, weights, names, k)
        return added(total, of_block(block(plan, plan.repeats * program + k), matrices))

    start = jax.tree.map(jnp.zeros_like, matrices_of(plan, weights, names))
    total = jax.lax.fori_loop(0, plan.repeats, add, start)
    firsts, num_rows = _first_rows(weights)
    for name, gradient in total.items():
        part = parts[name]
        first = program * num_rows + firsts[part.array] + part.first
        write(sums, _all_rows(part.size, first), gradient)


def gradients_of_weights(sums: Float[Array, "S A"], args: Arguments, *mlps: str) -> dict[str, Any]:
    """Returns the gradients of the weights from what `write_sums` has written."""
    weights = weights_of(args, *mlps)
    firsts, num_rows = _first_rows(weights)
    total = jnp.sum(sums.reshape(-1, num_rows, sums.shape[1]), axis=0)

    def gradient(path: str, x: Array) -> Array:
        rows, columns = weights[path].shape
        return total[firsts[path] : firsts[path] + rows, :columns].reshape(x.shape)

    return {
        mlp: {
            f"linear_{i}": {
                name: gradient(f"{mlp}_{i}_{name}", x)
                for name, x in args[mlp][f"linear_{i}"].items()
            }
            for i in range(2)
        }
        for mlp in mlps
    }


def _first_rows(weights: Any) -> tuple[dict[str, int], int]:
    """Returns where the rows of each array begin, one array after another, and their number."""
    firsts, row = {}, 0
    for name in sorted(weights):
        firsts[name], row = row, row + weights[name].shape[0]
    return firsts, row


# Calls


def is_available() -> bool:
    """Returns whether JAX has what the kernels need."""
    return triton is not None


def as_rows(x: Float[Array, "P N A"]) -> Float[Array, "M A"]:
    """Returns values of nodes at all times as rows."""
    return x.reshape(-1, x.shape[2])


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Returns the type of an array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def like(tree: Any) -> Any:
    """Returns the types of arrays."""
    return jax.tree.map(lambda x: floats(*x.shape), tree)


def call(
    kernel: Callable[..., None],
    num_programs: int,
    operands: tuple[Any, ...],
    results: Any,
    num_in_place: int = 0,
) -> Any:
    """Calls a kernel with references to trees of operands and results.

    The first `num_in_place` operands, arrays, become the first results.
    """
    name = getattr(kernel, "func", kernel).__name__.strip("_")
    # Within `shard_map`, what differs between devices; all operands do, if one does.
    varying = jax.typeof(jax.tree.leaves(operands)[0]).manual_axis_type
    results = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying), results
    )
    return pl.pallas_call(
        kernel,
        grid=(num_programs,),
        out_shape=results,
        input_output_aliases={i: i for i in range(num_in_place)},
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        name=f"egno_{name}",
    )(*operands)
