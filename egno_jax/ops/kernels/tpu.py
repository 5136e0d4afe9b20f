"""The TPU kernel of message sums, in Pallas: no message leaves the chip.

XLA writes the values of every edge at every time to memory, several times in each direction. This
kernel reads and writes values of nodes, and the gradients of the features and shifts of edges. Its
tables are in the vector memory, one row of times after another; from them it gathers a block of
edges, computes the messages, and adds them to the tables of sums. For the gradient it computes the
messages again.

A table is `[T, R, L]`. Its rows are nodes; the L lanes are as many times as fill 128 of them, side
by side in slots of C lanes. Coordinates are in the first three lanes of a slot.

**It has never run on a TPU.** It equals its specification in Pallas' interpreter, and compiles for
TPU v5e, v5p and v6e. `EGNO_JAX_KERNELS=pallas` switches it on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from egno_jax.ops.kernels import cpu, library
from egno_jax.ops.kernels.accelerated import Kernel

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    from egno_jax.ops.kernels.accelerated import Arguments

    Arrays = dict[str, Array]
    # The rows of senders and receivers, and the rows to add to.
    Indices = tuple[Int[Array, "B 1 K"], Int[Array, "B 1 K"], Int[Array, "B 1 K"]]
    # Tables; features and shifts of edges; weights.
    Operands = tuple[Arrays, Arrays, Arrays]
    Sums = tuple[Float[Array, "T R L"], Float[Array, "T R L"]]

_LANES = 128
_SUBLANES = 8
# The edges of a block, and of one turn of the loops over them.
_BLOCK = 256
_UNROLL = 8
# Widths above need too much room for products. Of the vector memory, in bytes, tables get so much
# that a v5p has enough, which has the least.
_MAX_WIDTH = 256
_VECTOR_MEMORY = 100 * 2**20
_FOR_TABLES = 56 * 2**20
# Tables of the gradient: five inputs, and three results, each while the last one is written.
_NUM_TABLES = 5 + 2 * 3


def _fits(args: Arguments) -> bool:
    if not cpu.MESSAGE_SUMS.fits(args):
        return False
    width, nodes = _width(args), args["features"].shape[1]
    # Numbers of nodes are symbols in programs that are exported. Mosaic has no products of
    # precision `high` in older versions of JAX, and no indices of 64 bits.
    is_known = isinstance(nodes, int) and args["precision"] in ("default", "highest")
    if not is_known or jax.config.jax_enable_x64 or width > _MAX_WIDTH:
        return False
    table = 4 * _num_rows(nodes) * max(width, _LANES)
    fills_rows = _LANES % width == 0 or width % _LANES == 0
    return fills_rows and _NUM_TABLES * table <= _FOR_TABLES


def _function(args: Arguments) -> tuple[tuple[Array, Array], Arrays]:
    times, nodes = args["positions"].shape[:2]
    sums = _sums(args["precision"], _indices(args), _operands(args))
    messages, steps = (_from_table(table, _width(args))[:times, :nodes] for table in sums)
    return (messages, steps[..., :3]), {}


def _vjp(args: Arguments, residuals: Arrays, cotangents: Any, wanted: Any) -> Arguments:
    rest = {name: args[name] for name in ("senders", "receivers", "precision")}
    floating = {name: x for name, x in args.items() if name not in rest}
    # XLA removes the sums themselves, which nothing reads.
    _, pullback = jax.vjp(lambda floats: _function(floats | rest)[0], floating)
    return pullback(cotangents)[0]


MESSAGE_SUMS = Kernel(_fits, _function, _vjp, is_available=lambda: library.setting() == "pallas")


# From arguments to operands, and back.


def _width(args: Arguments) -> int:
    return args["message_mlp"]["linear_0"]["kernel"].shape[1]


def _num_slots(width: int) -> int:
    return max(1, _LANES // width)


def _num_rows(num_nodes: int) -> int:
    """Returns the rows of a table: the nodes, and at least one that is no node."""
    return (num_nodes // _SUBLANES + 1) * _SUBLANES


def _indices(args: Arguments) -> Indices:
    """Returns indices in blocks; as in the specification, gathers clip them and sums do not."""
    nodes = args["positions"].shape[1]
    senders, receivers = args["senders"], args["receivers"]
    from_zero = jnp.where(receivers < 0, receivers + nodes, receivers)
    is_node = (from_zero >= 0) & (from_zero < nodes)

    def blocks(indices: Array, filling: int) -> Array:
        missing = (0, -indices.shape[0] % _BLOCK)
        filled = jnp.pad(indices, missing, constant_values=filling)
        return filled.astype(jnp.int32).reshape(-1, 1, _BLOCK)

    return (
        blocks(jnp.clip(senders, 0, nodes - 1), 0),
        blocks(jnp.clip(receivers, 0, nodes - 1), 0),
        blocks(jnp.where(is_node, from_zero, nodes), nodes),
    )


def _operands(args: Arguments) -> Operands:
    first, second = (args["message_mlp"][f"linear_{i}"] for i in range(2))
    step_first, step_second = (args["position_mlp"][f"linear_{i}"] for i in range(2))
    features, width = args["features"], _width(args)
    slots, depth = _num_slots(width), features.shape[2]
    of_distance, of_receivers, of_senders, of_edges = jnp.split(
        first["kernel"], (1, 1 + depth, 1 + 2 * depth)
    )
    product = functools.partial(jnp.matmul, precision=args["precision"])
    in_each_slot = functools.partial(jnp.kron, jnp.eye(slots, dtype=features.dtype))
    repeated = functools.partial(jnp.tile, reps=(1, slots))
    tables = {
        "receivers": _table(product(features, of_receivers) + first["bias"], width),
        "senders": _table(product(features, of_senders), width),
        "positions": _table(args["positions"], width),
    }
    weights = {
        "of_distance": in_each_slot(of_distance),
        "message": in_each_slot(second["kernel"]),
        "message_bias": repeated(second["bias"][None]),
        "step_0": in_each_slot(step_first["kernel"]),
        "step_0_bias": repeated(step_first["bias"][None]),
        "step_1": in_each_slot(step_second["kernel"].T),
        "step_1_bias": jnp.broadcast_to(step_second["bias"], (1, slots * width)),
    }
    edges = {}
    if of_edges.shape[0]:
        weights["of_edges"] = repeated(of_edges)
        edges["features"] = _columns(args["edge_features"])
    if "edge_shifts" in args:
        edges["shifts"] = _columns(args["edge_shifts"])
    return tables, edges, weights


def _columns(x: Float[Array, "E D"]) -> Float[Array, "D E"]:
    """Returns values of edges along lanes, with zeros up to whole tiles and blocks."""
    return jnp.pad(x, [(0, -x.shape[0] % _BLOCK), (0, -x.shape[1] % _SUBLANES)]).T


def _table(x: Float[Array, "P N A"], width: int) -> Float[Array, "T R L"]:
    """Returns the table of values of nodes, with zeros for what is missing."""
    slots = _num_slots(width)
    shape = -(-x.shape[0] // slots) * slots, _num_rows(x.shape[1]), width
    x = jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, shape, strict=True)])
    rows = x.reshape(-1, slots, *shape[1:]).swapaxes(1, 2)
    return rows.reshape(-1, shape[1], slots * width)


def _from_table(table: Float[Array, "T R L"], width: int) -> Float[Array, "P R C"]:
    slots = table.reshape(*table.shape[:2], -1, width).swapaxes(1, 2)
    return slots.reshape(-1, table.shape[1], width)


# The kernels, called for each row of times and, within it, each block of edges.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(precision: str, indices: Indices, operands: Operands) -> Sums:
    tables, edges, weights = operands
    (sums,) = _call(
        functools.partial(_sums_kernel, precision),
        [(_index, indices), (_input_table, tables), (_edges, edges), (_whole, weights)],
        [(_table_of_results, (tables["receivers"],) * 2)],
        num_values=2,
    )
    return sums


def _keep(precision: str, indices: Indices, operands: Operands) -> tuple[Sums, Any]:
    return _sums(precision, indices, operands), (indices, operands)


def _pull_back(precision: str, kept: Any, cotangents: Sums) -> tuple[None, Operands]:
    indices, (tables, edges, weights) = kept
    num_rows = tables["receivers"].shape[0]
    at_times = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_rows, *x.shape)), edges)
    of_tables, of_edges, of_weights = _call(
        functools.partial(_gradient_kernel, precision),
        [
            (_index, indices),
            (_input_table, tables),
            (_edges, edges),
            (_whole, weights),
            (_input_table, cotangents),
        ],
        [(_table_of_results, tables), (_edges_at_times, at_times), (_whole, weights)],
        num_values=4,
    )
    return None, (of_tables, jax.tree.map(lambda x: jnp.sum(x, axis=0), of_edges), of_weights)


_sums.defvjp(_keep, _pull_back)


def _index(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, _BLOCK), lambda t, b: (b, 0, 0), memory_space=pltpu.SMEM)


def _input_table(x: Array) -> pl.BlockSpec:
    once = pl.Buffered(1)  # the next row is read when it is needed: rarely
    return pl.BlockSpec((1, *x.shape[1:]), lambda t, b: (t, 0, 0), pipeline_mode=once)


def _table_of_results(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, *x.shape[1:]), lambda t, b: (t, 0, 0))


def _edges(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((x.shape[0], _BLOCK), lambda t, b: (0, b))


def _edges_at_times(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, x.shape[1], _BLOCK), lambda t, b: (t, 0, b))


def _whole(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda t, b: (0, 0))


def _call(
    kernel: Callable[..., None],
    inputs: Sequence[tuple[Callable[[Array], pl.BlockSpec], Any]],
    results: Sequence[tuple[Callable[[Array], pl.BlockSpec], Any]],
    num_values: int,
) -> list[Any]:
    """Calls a kernel.

    Args:
      kernel: takes references to inputs, results and values.
      inputs: trees of arrays, and how each is divided into blocks.
      results: trees of arrays like the results, likewise.
      num_values: number of arrays `[K, L]`, for values of a block of edges.
    """
    indices, tables = inputs[0][1], inputs[1][1]
    num_rows, _, lanes = tables["receivers"].shape
    return pl.pallas_call(
        kernel,
        grid=(num_rows, indices[0].shape[0]),
        in_specs=[jax.tree.map(spec, tree) for spec, tree in inputs],
        out_specs=[jax.tree.map(spec, tree) for spec, tree in results],
        out_shape=[jax.eval_shape(lambda x: x, tree) for _, tree in results],
        scratch_shapes=[pltpu.VMEM((_BLOCK, lanes), jnp.float32)] * num_values,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=_VECTOR_MEMORY
        ),
        name=f"egno_{kernel.func.__name__.strip('_')}",
    )(*(tree for _, tree in inputs))


def _sums_kernel(
    precision: str,
    indices: Any,
    tables: Any,
    edges: Any,
    weights: Any,
    sums: Any,
    terms: Any,
    differences: Any,
) -> None:
    """Adds the messages and steps of a block of edges to `sums`."""
    _clear(sums)
    _gather(indices, tables, terms, differences)
    arguments = jax.tree.map(lambda ref: ref[...], (terms, differences, edges, weights))
    terms[...], differences[...] = _messages(*arguments, precision)
    messages_of_nodes, steps_of_nodes = sums
    targets = indices[2]

    @_for_each_edge
    def _(edge: Array) -> None:
        _add(messages_of_nodes, targets[0, 0, edge], _row(terms, edge))
        _add(steps_of_nodes, targets[0, 0, edge], _row(differences, edge))


def _gradient_kernel(
    precision: str,
    indices: Any,
    tables: Any,
    edges: Any,
    weights: Any,
    cotangents: Any,
    of_tables: Any,
    of_edges: Any,
    of_weights: Any,
    terms: Any,
    differences: Any,
    *of_results: Any,
) -> None:
    """Adds what a block of edges contributes to the gradients; stores those of its own values."""
    _clear(of_tables)
    _clear(of_weights, in_row=0)
    _gather(indices, tables, terms, differences)
    senders, receivers, targets = indices

    @_for_each_edge
    def _(edge: Array) -> None:
        for table, values in zip(cotangents, of_results, strict=True):
            values[pl.ds(edge, 1), :] = table[0, pl.ds(targets[0, 0, edge], 1), :]

    arguments = jax.tree.map(lambda ref: ref[...], (terms, differences, edges, weights))
    _, pullback = jax.vjp(functools.partial(_messages, precision=precision), *arguments)
    gradients = pullback(tuple(values[...] for values in of_results))
    terms[...], differences[...] = gradients[:2]
    for name, gradient in gradients[2].items():
        of_edges[name][0] = gradient
    for name, gradient in gradients[3].items():
        of_weights[name][...] += gradient

    @_for_each_edge
    def _(edge: Array) -> None:
        sender, receiver = senders[0, 0, edge], receivers[0, 0, edge]
        _add(of_tables["receivers"], receiver, _row(terms, edge))
        _add(of_tables["senders"], sender, _row(terms, edge))
        _add(of_tables["positions"], receiver, _row(differences, edge))
        _add(of_tables["positions"], sender, -_row(differences, edge))


def _messages(
    terms: Float[Array, "K L"],
    differences: Float[Array, "K L"],
    edges: Arrays,
    weights: Arrays,
    precision: str,
) -> tuple[Float[Array, "K L"], Float[Array, "K L"]]:
    """Returns the messages and the steps of a block of edges.

    Args:
      terms: what receiver and sender add to the first layer of phi_m.
      differences: the receiver's position minus the sender's, without shifts.
      edges: features and shifts, along lanes.
      weights: see `_operands`.
      precision: that of products of matrices.
    """
    slots, lanes = weights["of_distance"].shape[0], terms.shape[1]
    width = lanes // slots
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1)
    place, slot_of_lane = jax.lax.rem(lane, width), jax.lax.div(lane, width)
    product = functools.partial(jnp.dot, precision=precision)
    if "shifts" in edges:
        shifts = edges["shifts"].T
        for axis in range(3):
            differences += jnp.where(place == axis, shifts[:, axis : axis + 1], 0)
    hidden = terms
    for slot in range(slots):
        r = differences[:, slot * width : slot * width + 3]
        squared_distances = jnp.sum(r * r, axis=1, keepdims=True)
        hidden += squared_distances * weights["of_distance"][slot : slot + 1]
    if "features" in edges:
        features = edges["features"].T
        for i in range(weights["of_edges"].shape[0]):
            hidden += features[:, i : i + 1] * weights["of_edges"][i : i + 1]
    hidden = product(jax.nn.silu(hidden), weights["message"]) + weights["message_bias"]
    messages = jax.nn.silu(hidden)
    hidden = jax.nn.silu(product(messages, weights["step_0"]) + weights["step_0_bias"])
    coefficients = weights["step_1_bias"]
    for slot in range(slots):
        of_slot = jnp.sum(hidden * weights["step_1"][slot : slot + 1], axis=1, keepdims=True)
        coefficients += jnp.where(slot_of_lane == slot, of_slot, 0)
    return messages, differences * coefficients


def _clear(refs: Any, in_row: int | None = None) -> None:
    """Sets all values to zero at the first block of a row of times; without `in_row`, of each."""
    is_first = pl.program_id(1) == 0
    if in_row is not None:
        is_first &= pl.program_id(0) == in_row

    @pl.when(is_first)
    def _() -> None:
        for ref in jax.tree.leaves(refs):
            ref[...] = jnp.zeros_like(ref)


def _gather(indices: Any, tables: Any, terms: Any, differences: Any) -> None:
    """Fills in the sum of both terms and the difference of positions of each edge."""
    senders, receivers, _ = indices

    @_for_each_edge
    def _(edge: Array) -> None:
        sender, receiver = (pl.ds(x[0, 0, edge], 1) for x in (senders, receivers))
        of_receiver, of_sender = tables["receivers"][0, receiver], tables["senders"][0, sender]
        terms[pl.ds(edge, 1), :] = of_receiver + of_sender
        positions = tables["positions"]
        differences[pl.ds(edge, 1), :] = positions[0, receiver] - positions[0, sender]


def _for_each_edge(function: Callable[[Array], None]) -> None:
    def turn(first: Array, _: None) -> None:
        # Older versions of Mosaic cannot unroll a part of a loop.
        for edge in range(_UNROLL):
            function(first * _UNROLL + edge)

    jax.lax.fori_loop(0, _BLOCK // _UNROLL, turn, None)


def _row(values: Any, edge: Array) -> Float[Array, "1 L"]:
    return values[pl.ds(edge, 1), :]


def _add(table: Any, row: Array, values: Float[Array, "1 L"]) -> None:
    table[0, pl.ds(row, 1), :] += values
