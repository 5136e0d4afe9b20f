"""GPU kernels of the spatial layer, in Pallas: message sums, and the two layers at each node.

XLA launches dozens of programs for the messages of one layer and their gradient, and writes the
values of every edge to memory several times. Here a program takes a block of rows, which are nodes
at one time each, and goes through their edges, one of each node after another. It gathers the
values at the other end, computes the messages, and adds them up. The gradient computes the messages
again, twice: for the edges that nodes receive, and for those that they send. No program adds to
what another one writes, so results have the same bits every time; each writes the gradients of
weights by its own rows.

**They have never run on a GPU.** They equal their specifications in Pallas' interpreter, and
compile for H100. `EGNO_JAX_KERNELS=pallas` switches them on. JAX 0.12 warns that a later version
will be without Pallas' backend for Triton, which they need; then the specifications compute all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from egno_jax.ops.kernels import cpu, library
from egno_jax.ops.kernels.accelerated import Kernel

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from egno_jax.ops.kernels.accelerated import Arguments

    Arrays = dict[str, Array]

_WIDTHS = (16, 32, 64, 128)
# The most features of an edge.
_MAX_DEPTH = 16
# Rows of a block, and warps of a program: with these the compiler keeps most values in registers.
_BLOCK = 16
_WARPS = 8
# The most programs that sum gradients of weights: two for each multiprocessor of an H100.
_MAX_PROGRAMS = 264
# How tensor cores multiply. Each factor is a sum of two numbers that they have, so that only the
# product of both small ones is missing, some 2^-22 of the whole.
_PRECISIONS = {"default": "default", "highest": jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3}


class _Part(NamedTuple):
    """A matrix that kernels read: rows of an array of weights."""

    array: str
    first: int
    size: int


class _Part(NamedTuple):
    """A matrix that kernels read: rows of an array of weights."""

    array: str
    first: int
    size: int


class _Plan(NamedTuple):
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
    parts: dict[str, _Part]

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
        return jnp.dot(x, y, precision=_PRECISIONS[self.precision])


class _Rows(NamedTuple):
    """Rows of arrays, and which of them to read or to write."""

    index: Int[Array, "R"]
    is_real: Bool[Array, "R"]


def _plan(args: Arguments, mlp: str, sizes: dict[str, int]) -> _Plan:
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
            parts[name] = _Part(f"{mlp}_0_kernel", first, size)
        first += size
    return _Plan(times, nodes, width, args["precision"], parts)


def _is_possible(args: Arguments, *widths: int) -> bool:
    times, nodes, _ = args["features"].shape
    edges, depth = args["edge_features"].shape if "edge_features" in args else (0, 0)
    # Numbers of nodes are symbols in programs that are exported. Indices have 32 bits.
    if not all(isinstance(n, int) for n in (times, nodes, edges)) or jax.config.jax_enable_x64:
        return False
    is_short = times * max(2 * max(widths) * nodes, max(depth, 3) * edges) < 2**31
    return is_short and args["precision"] in _PRECISIONS and all(x in _WIDTHS for x in widths)


def _kernel(source: Any) -> Kernel:
    def is_available() -> bool:
        return triton is not None and library.setting() == "pallas"

    return Kernel(source.fits, source.function, source.vjp, source.residuals, is_available)


# Two layers at each node


class _TwoLayers:
    """The kernels of `egno_jax.ops.feature_update` and `velocity_factor`.

    `on_cpu` is the CPU's kernel of the same function; `mlp` is the name of the weights.
    """

    def __init__(self, on_cpu: Kernel, mlp: str):
        self.on_cpu, self.mlp = on_cpu, mlp

    def fits(self, args: Arguments) -> bool:
        if not self.on_cpu.fits(args):
            return False
        plan, inputs = self._plan(args)
        widths = {plan.width, self._out_width(args), *(x.shape[1] for x in inputs.values())}
        return _is_possible(args, *(widths - {1}))

    def residuals(self, args: Arguments) -> dict[str, jax.ShapeDtypeStruct]:
        return {}

    def function(self, args: Arguments) -> tuple[Float[Array, "P N B"], Arrays]:
        plan, inputs = self._plan(args)

        def two_layers(inputs: Any, weights: Any, result: Any) -> None:
            rows = _block(plan, pl.program_id(0))
            values = self._of_block(plan, _read(inputs, rows), _matrices(plan, weights))
            _write(result, rows, values)

        operands = inputs, _weights(args, self.mlp)
        result = _call(two_layers, plan.blocks, operands, _floats(plan.rows, self._out_width(args)))
        return result.reshape(plan.times, plan.nodes, -1), {}

    def vjp(self, args: Arguments, residuals: Arrays, cotangent: Array, wanted: Any) -> Arguments:
        plan, inputs = self._plan(args)
        weights = _weights(args, self.mlp)

        def two_layers_gradient(
            inputs: Any, weights: Any, cotangent: Any, of_inputs: Any, sums: Any
        ) -> None:
            matrices = _matrices(plan, weights)

            def of_block(rows: _Rows) -> Arrays:
                function = functools.partial(self._of_block, plan)
                _, pullback = jax.vjp(function, _read(inputs, rows), matrices)
                of_values, of_matrices = pullback(_read(cotangent, rows))
                for name, values in of_values.items():
                    _write(of_inputs[name], rows, values)
                return of_matrices

            total = _sum_over_blocks(plan, of_block, matrices)
            _write_sums(plan, sums, weights, total)

        operands = inputs, weights, _as_rows(cotangent)
        results = _like(inputs), _sums_of(plan, weights)
        of_inputs, sums = _call(two_layers_gradient, plan.programs, operands, results)
        gradients = {name: x.reshape(args[name].shape) for name, x in of_inputs.items()}
        return gradients | _gradients_of_weights(sums, args, self.mlp)

    def _out_width(self, args: Arguments) -> int:
        return args[self.mlp]["linear_1"]["bias"].shape[0]

    def _plan(self, args: Arguments) -> tuple[_Plan, Arrays]:
        names = ("features", "messages") if "messages" in args else ("features",)
        inputs = {name: _as_rows(args[name]) for name in names}
        return _plan(args, self.mlp, {name: x.shape[1] for name, x in inputs.items()}), inputs

    def _of_block(self, plan: _Plan, inputs: Arrays, weights: Arrays) -> Float[Array, "R B"]:
        terms = sum(plan.product(x, weights[name]) for name, x in inputs.items())
        hidden = jax.nn.silu(terms + weights[f"{self.mlp}_0_bias"])
        last = weights[f"{self.mlp}_1_kernel"]
        result = _dot_row(hidden, last) if len(last) == 1 else plan.product(hidden, last)
        return result + weights[f"{self.mlp}_1_bias"]


def _dot_row(x: Float[Array, "R C"], row: Float[Array, "1 C"]) -> Float[Array, "R 1"]:
    return jnp.sum(x * row, axis=1, keepdims=True)


# Message sums


class _MessageSums:
    """The kernels of `egno_jax.ops.message_sums`, for edges that are sorted by their nodes.

    What the features of a node add to the first layer of phi_m is computed first: its terms as a
    receiver, then as a sender.
    """

    mlps = ("message_mlp", "position_mlp")

    def fits(self, args: Arguments) -> bool:
        if "incoming" not in args or not cpu.MESSAGE_SUMS.fits(args):
            return False
        is_narrow = args["edge_features"].shape[1] <= _MAX_DEPTH
        return is_narrow and _is_possible(args, args["features"].shape[2], self._plan(args).width)

    def residuals(self, args: Arguments) -> dict[str, jax.ShapeDtypeStruct]:
        plan = self._plan(args)
        return {"terms": _floats(plan.rows, 2 * plan.width)}

    def function(self, args: Arguments) -> tuple[tuple[Array, Array], Arrays]:
        plan, weights = self._plan(args), _weights(args, *self.mlps)
        features, positions = _as_rows(args["features"]), _as_rows(args["positions"])

        def terms_of_nodes(features: Any, weights: Any, terms: Any) -> None:
            rows = _block(plan, pl.program_id(0))
            found = _terms(plan, _read(features, rows), _matrices(plan, weights))
            for i, values in enumerate(found):
                _write(terms, rows, values, i * plan.width)

        residuals = self.residuals(args)
        residuals["terms"] = _call(
            terms_of_nodes, plan.blocks, (features, weights), residuals["terms"]
        )
        operands = args["incoming"], residuals | {"positions": positions}, _edges(args), weights
        results = _floats(plan.rows, plan.width), _floats(*positions.shape)
        sums = _call(functools.partial(_sums, plan), plan.blocks, operands, results)
        return tuple(x.reshape(plan.times, plan.nodes, -1) for x in sums), residuals

    def vjp(self, args: Arguments, residuals: Arrays, cotangents: Any, wanted: Any) -> Arguments:
        plan, weights, edges = self._plan(args), _weights(args, *self.mlps), _edges(args)
        features, positions = _as_rows(args["features"]), _as_rows(args["positions"])
        tables = residuals | {"positions": positions}
        operands = tables, edges, weights, tuple(map(_as_rows, cotangents))
        at_times = {name: _floats(plan.times * len(x), x.shape[1]) for name, x in edges.items()}
        results = _floats(plan.rows, plan.width), _like(positions), at_times
        of_terms, of_positions, of_edges, sums = _call(
            functools.partial(_received, plan),
            plan.programs,
            (args["incoming"], *operands),
            (*results, _sums_of(plan, weights)),
        )
        of_positions, sums, of_features = _call(
            functools.partial(_sent, plan),
            plan.programs,
            (of_positions, sums, of_terms, features, args["outgoing"], *operands),
            _like((of_positions, sums, features)),
            num_in_place=2,
        )
        gradients = {"edge_features": jnp.zeros_like(args["edge_features"])}
        for name, x in of_edges.items():
            gradients[name] = jnp.sum(x.reshape(plan.times, *args[name].shape), axis=0)
        return gradients | {
            "features": of_features.reshape(args["features"].shape),
            "positions": of_positions.reshape(args["positions"].shape),
            **_gradients_of_weights(sums, args, *self.mlps),
        }

    def _plan(self, args: Arguments) -> _Plan:
        depth, num = args["features"].shape[2], args["edge_features"].shape[1]
        sizes = {"of_distance": 1, "of_receivers": depth, "of_senders": depth, "of_edges": num}
        return _plan(args, self.mlps[0], sizes)


def _edges(args: Arguments) -> Arrays:
    """Returns the values of edges, without features of width 0."""
    found = {name: args[name] for name in ("edge_features", "edge_shifts") if name in args}
    return {name: x for name, x in found.items() if x.shape[1]}


def _terms(
    plan: _Plan, features: Float[Array, "R A"], weights: Arrays
) -> list[Float[Array, "R C"]]:
    """Returns what nodes add to the first layer of phi_m as receivers, and as senders."""
    return [plan.product(features, weights[name]) for name in ("of_receivers", "of_senders")]


def _messages(
    plan: _Plan,
    terms: Float[Array, "R C"],
    difference: Float[Array, "R 4"],
    edges: Arrays,
    weights: Arrays,
) -> tuple[Float[Array, "R C"], Float[Array, "R 4"]]:
    """Returns the message and the step of an edge of each row.

    `terms` are the sum of those of both ends, `difference` the receiver's position minus the
    sender's, without the shift.
    """
    if "edge_shifts" in edges:
        difference += edges["edge_shifts"]
    squared_distances = jnp.sum(difference * difference, axis=1, keepdims=True)
    hidden = terms + weights["message_mlp_0_bias"] + squared_distances * weights["of_distance"]
    if "edge_features" in edges:
        features = edges["edge_features"]
        hidden += jnp.sum(features[:, :, None] * weights["of_edges"][None], axis=1)
    hidden = plan.product(jax.nn.silu(hidden), weights["message_mlp_1_kernel"])
    messages = jax.nn.silu(hidden + weights["message_mlp_1_bias"])
    hidden = plan.product(messages, weights["position_mlp_0_kernel"])
    hidden = jax.nn.silu(hidden + weights["position_mlp_0_bias"])
    coefficients = _dot_row(hidden, weights["position_mlp_1_kernel"])
    return messages, difference * (coefficients + weights["position_mlp_1_bias"])


def _sums(
    plan: _Plan, incoming: Any, tables: Any, edges: Any, weights: Any, messages: Any, steps: Any
) -> None:
    """Adds up the messages and steps that the nodes of a block receive."""
    rows = _block(plan, pl.program_id(0))
    ends = _Ends(plan, tables, rows, is_receiver=True)

    def add(others: _Rows, edge_rows: _Rows, matrices: Arrays, total: Any) -> Any:
        found = _messages(plan, *ends.with_others(others), _read(edges, edge_rows), matrices)
        return _add(total, _where(others.is_real, found))

    start = jax.tree.map(jnp.zeros_like, ends.own)
    total = _over_edges(plan, incoming, rows, weights, add, start)
    for ref, x in zip((messages, steps), total, strict=True):
        _write(ref, rows, x)


def _received(
    plan: _Plan,
    incoming: Any,
    tables: Any,
    edges: Any,
    weights: Any,
    cotangents: Any,
    of_terms: Any,
    of_positions: Any,
    of_edges: Any,
    sums: Any,
) -> None:
    """Writes what the edges that nodes receive add to gradients, and the edges' own."""
    function = functools.partial(_messages, plan)
    zeros = jax.tree.map(jnp.zeros_like, _matrices(plan, weights))

    def of_block(rows: _Rows) -> Arrays:
        ends = _Ends(plan, tables, rows, is_receiver=True)
        of_sums = tuple(_read(ref, rows) for ref in cotangents)

        def add(others: _Rows, edge_rows: _Rows, matrices: Arrays, total: Any) -> Any:
            arguments = *ends.with_others(others), _read(edges, edge_rows), matrices
            _, pullback = jax.vjp(function, *arguments)
            *of_ends, of_values, of_matrices = pullback(_where(others.is_real, of_sums))
            for name, values in of_values.items():
                first = rows.index // plan.nodes * edges[name].shape[0]
                _write(of_edges[name], _Rows(first + edge_rows.index, edge_rows.is_real), values)
            return _add(total, (*of_ends, of_matrices))

        start = *jax.tree.map(jnp.zeros_like, ends.own), zeros
        *of_own, of_matrices = _over_edges(plan, incoming, rows, weights, add, start)
        for ref, x in zip((of_terms, of_positions), of_own, strict=True):
            _write(ref, rows, x)
        return of_matrices

    total = _sum_over_blocks(plan, of_block, zeros)
    _write_sums(plan, sums, weights, total)


def _sent(
    plan: _Plan,
    of_positions: Any,
    _: Any,
    of_terms: Any,
    features: Any,
    outgoing: Any,
    tables: Any,
    edges: Any,
    weights: Any,
    cotangents: Any,
    all_of_positions: Any,
    sums: Any,
    of_features: Any,
) -> None:
    """Adds what the edges that nodes send add to gradients, and pulls back the nodes' terms."""
    matrices = _matrices(plan, weights)
    of_nodes = {name: matrices[name] for name in ("of_receivers", "of_senders")}

    def of_block(rows: _Rows) -> Arrays:
        ends = _Ends(plan, tables, rows, is_receiver=False)

        def add(others: _Rows, edge_rows: _Rows, matrices: Arrays, total: Any) -> Any:
            values = _read(edges, edge_rows)
            function = functools.partial(_messages, plan, edges=values, weights=matrices)
            _, pullback = jax.vjp(function, *ends.with_others(others))
            return _add(total, pullback(tuple(_read(ref, others) for ref in cotangents)))

        start = jax.tree.map(jnp.zeros_like, ends.own)
        of_sent_terms, of_difference = _over_edges(plan, outgoing, rows, weights, add, start)
        _write(all_of_positions, rows, _read(of_positions, rows) - of_difference)
        _, pullback = jax.vjp(functools.partial(_terms, plan), _read(features, rows), of_nodes)
        of_values, of_matrices = pullback([_read(of_terms, rows), of_sent_terms])
        _write(of_features, rows, of_values)
        return of_matrices

    _write_sums(plan, sums, weights, _sum_over_blocks(plan, of_block, of_nodes))


class _Ends:
    """The terms and positions of a block of rows, at one end of their edges."""

    def __init__(self, plan: _Plan, tables: Any, rows: _Rows, *, is_receiver: bool):
        self._width, self._tables, self._is_receiver = plan.width, tables, is_receiver
        self.own = self._of(rows, is_receiver)

    def with_others(self, others: _Rows) -> tuple[Float[Array, "R C"], Float[Array, "R 4"]]:
        """Returns the sum of terms, and the receiver's position minus the sender's."""
        (terms, own), (of_others, other) = self.own, self._of(others, not self._is_receiver)
        return terms + of_others, own - other if self._is_receiver else other - own

    def _of(self, rows: _Rows, is_receiver: bool) -> tuple[Array, Array]:
        first = 0 if is_receiver else self._width
        terms = _read(self._tables["terms"], rows, first, self._width)
        return terms, _read(self._tables["positions"], rows)


def _over_edges(
    plan: _Plan,
    adjacency: Any,
    rows: _Rows,
    weights: Any,
    function: Callable[[_Rows, _Rows, Arrays, Any], Any],
    start: Any,
) -> Any:
    """Carries a value through calls of a function with an edge of each row, while any has one.

    It is called with the rows at the other end, the rows of the edges, the matrices, and the value.
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
        # Always 0, which the compiler does not know: it would keep all matrices in shared memory
        # during the loop, where there is no room for them.
        zero = jax.lax.shift_right_logical(k, 30)
        matrices = _matrices(plan, weights, zero)
        others = _Rows(rows.index - node + other, is_edge)
        return function(others, _Rows(edge, is_edge), matrices, value)

    return jax.lax.fori_loop(0, jnp.max(count), step, start)


def _where(is_real: Bool[Array, "R"], tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(is_real[:, None], x, 0), tree)


def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)


# Rows: of a block, of all blocks of a program, in memory. In registers sizes are powers of two.


def _block(plan: _Plan, number: Int[Array, ""]) -> _Rows:
    index = number * _BLOCK + jnp.arange(_BLOCK)
    return _Rows(index, index < plan.rows)


def _sum_over_blocks(plan: _Plan, function: Callable[[_Rows], Arrays], like: Arrays) -> Arrays:
    """Returns the sum of a function of the blocks of this program."""
    first = plan.repeats * pl.program_id(0)
    if plan.repeats == 1:
        return function(_block(plan, first))

    def step(k: Array, total: Arrays) -> Arrays:
        return _add(total, function(_block(plan, first + k)))

    return jax.lax.fori_loop(0, plan.repeats, step, jax.tree.map(jnp.zeros_like, like))


def _all_rows(size: int, first: int | Int[Array, ""]) -> _Rows:
    index = jnp.arange(pl.next_power_of_2(size))
    return _Rows(first + index, index < size)


def _place(rows: _Rows, first: int, columns: int) -> tuple[Any, Bool[Array, "R A"]]:
    """Returns indices of values, and which of them are real."""
    column = jnp.arange(pl.next_power_of_2(columns))
    return (rows.index[:, None], first + column[None]), rows.is_real[:, None] & (column < columns)


def _read(refs: Any, rows: _Rows, first: int = 0, columns: int | None = None) -> Any:
    """Reads columns of rows, of each array; what is not real is 0."""

    def read(ref: Any) -> Array:
        place, is_real = _place(rows, first, columns or ref.shape[1])
        return triton.load(ref.at[place], mask=is_real, other=0.0)

    return jax.tree.map(read, refs)


def _write(ref: Any, rows: _Rows, values: Float[Array, "R A"], first: int = 0) -> None:
    """Writes values to rows of an array, at as many columns as there are from the first."""
    place, is_real = _place(rows, first, min(values.shape[1], ref.shape[1]))
    triton.store(ref.at[place], values, mask=is_real)


# Weights: arrays of two axes, where a bias is a row and a single output another.


def _weights(args: Arguments, *mlps: str) -> Arrays:
    return {
        f"{mlp}_{i}_{name}": x.reshape(-1, x.shape[-1] if x.shape[-1] > 1 else len(x))
        for mlp in mlps
        for i in range(2)
        for name, x in args[mlp][f"linear_{i}"].items()
    }


def _parts(plan: _Plan, weights: Any) -> dict[str, _Part]:
    """Returns the matrices that kernels read: parts of first layers, and whole arrays."""
    split = {part.array for part in plan.parts.values()}
    whole = {name: _Part(name, 0, x.shape[0]) for name, x in weights.items() if name not in split}
    return plan.parts | whole


def _matrices(plan: _Plan, weights: Any, first: int | Int[Array, ""] = 0) -> Arrays:
    """Reads matrices from their first row on, with rows of zeros up to a power of two."""
    return {
        name: _read(weights[part.array], _all_rows(part.size, part.first + first))
        for name, part in _parts(plan, weights).items()
    }


def _sums_of(plan: _Plan, weights: Arrays) -> jax.ShapeDtypeStruct:
    """Returns the type of gradients of weights: for each program the rows of all arrays."""
    rows = sum(len(x) for x in weights.values())
    return _floats(plan.programs * rows, max(x.shape[1] for x in weights.values()))


def _write_sums(plan: _Plan, sums: Any, weights: Any, gradients: Arrays) -> None:
    """Writes gradients of matrices, some or all, to the rows of this program."""
    firsts = _first_rows(weights)
    first = pl.program_id(0) * sum(ref.shape[0] for ref in weights.values())
    for name, gradient in gradients.items():
        part = _parts(plan, weights)[name]
        _write(sums, _all_rows(part.size, first + firsts[part.array] + part.first), gradient)


def _gradients_of_weights(sums: Float[Array, "S A"], args: Arguments, *mlps: str) -> dict[str, Any]:
    weights = _weights(args, *mlps)
    firsts, num_rows = _first_rows(weights), sum(len(x) for x in weights.values())
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


def _first_rows(weights: Any) -> dict[str, int]:
    """Returns where the rows of each array begin, one array after another."""
    firsts, row = {}, 0
    for name in sorted(weights):
        firsts[name], row = row, row + weights[name].shape[0]
    return firsts


# Calls


def _as_rows(x: Float[Array, "P N A"]) -> Float[Array, "M A"]:
    return x.reshape(-1, x.shape[2])


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _like(tree: Any) -> Any:
    return jax.tree.map(lambda x: _floats(*x.shape), tree)


def _call(
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
    return pl.pallas_call(
        kernel,
        grid=(num_programs,),
        out_shape=results,
        input_output_aliases={i: i for i in range(num_in_place)},
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        name=f"egno_{name}",
    )(*operands)


MESSAGE_SUMS = _kernel(_MessageSums())
FEATURE_UPDATE = _kernel(_TwoLayers(cpu.FEATURE_UPDATE, "feature_mlp"))
VELOCITY_FACTOR = _kernel(_TwoLayers(cpu.VELOCITY_FACTOR, "velocity_mlp"))
