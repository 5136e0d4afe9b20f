"""The TPU kernel of message sums, in Pallas: no message leaves the chip.

XLA writes the values of every edge at every time to memory, several times in each direction. This
kernel reads and writes values of nodes, and the gradients of the features and shifts of edges. The
tables of one graph at a time are in the vector memory. From them the kernel gathers a block of
edges, computes the messages, and adds them to the tables of sums. For the gradient it computes the
messages again.

A table is `[T G, n S, L]`, for G graphs of n nodes and T groups of times. A node has S rows, one
for each time, so one access moves all of them. The L lanes of a row are as many slots of C lanes
as fill 128, for other times. Coordinates are in the first three lanes of a slot.

**It has never run on a TPU.** It equals its specification in Pallas' interpreter, and compiles for
TPU v5e, v5p and v6e. `EGNO_JAX_KERNELS=pallas` switches it on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
    Sums = tuple[Float[Array, "A R L"], Float[Array, "A R L"]]

_LANES = 128
_SUBLANES = 8
# Rows of a block of edges; edges of an iteration of the loops over them, and of a sum.
_BLOCK = 1024
_UNROLL = 16
_GROUP = 4
# Widths above need too much room for products. The vector memory is that of a v5p, in bytes; v5e
# and v6e have twice as much. A block needs so much of it for every 128 lanes.
_MAX_WIDTH = 256
_VECTOR_MEMORY = 64 * 2**20
_FOR_BLOCK = 20 * 2**20
# Tables of the gradient: five inputs, and three results, each while the last one is written.
_NUM_TABLES = 5 + 2 * 3
# What moving an edge costs, in rows of its values, by the compiler's estimates.
_EDGE = 2


class _Plan(NamedTuple):
    """How arguments are divided.

    Attributes:
      graphs: G, graphs of equal size.
      nodes: n, nodes of each.
      width: C, lanes of a time.
      groups: T, groups of times.
      rows: S, rows of a node in a group.
      precision: that of products of matrices.
    """

    graphs: int
    nodes: int
    width: int
    groups: int
    rows: int
    precision: str

    @property
    def slots(self) -> int:
        """The times of a row."""
        return max(1, _LANES // self.width)

    @property
    def lanes(self) -> int:
        """The lanes of a row."""
        return self.slots * self.width

    @property
    def height(self) -> int:
        """The nodes of a table: those of the graph, and one or more for edges without a node."""
        return (self.nodes // _SUBLANES + 1) * _SUBLANES

    @property
    def edges(self) -> int:
        """The edges of a block."""
        return _BLOCK // self.rows

    @property
    def room(self) -> int:
        """The bytes that the gradient needs of the vector memory."""
        tables = _NUM_TABLES * 4 * self.rows * self.height * self.lanes
        return tables + _FOR_BLOCK * -(-self.lanes // _LANES)


def _plan(args: Arguments) -> _Plan:
    """Returns the plan with the least work, of those that have enough room if one has."""
    times, nodes = args["positions"].shape[:2]
    graphs, width = args["num_graphs"], args["message_mlp"]["linear_0"]["kernel"].shape[1]
    needed = -(-times // max(1, _LANES // width))
    # Mosaic moves a part of a tile to an unknown place only if it has no further lanes.
    sizes = (1, 2, 4, 8) if width <= _LANES else (1, 8)
    plans = [
        _Plan(graphs, nodes // graphs, width, -(-needed // rows), rows, args["precision"])
        for rows in sizes
    ]
    fitting = [plan for plan in plans if plan.room <= _VECTOR_MEMORY]
    return min(fitting or plans[:1], key=lambda plan: plan.groups * (plan.rows + _EDGE))


def _fits(args: Arguments) -> bool:
    if not cpu.MESSAGE_SUMS.fits(args):
        return False
    # Numbers of nodes are symbols in programs that are exported. Mosaic has no products of
    # precision `high` in older versions of JAX, and no indices of 64 bits.
    sizes = *args["positions"].shape, *args["senders"].shape
    if not all(isinstance(n, int) for n in sizes) or jax.config.jax_enable_x64:
        return False
    is_divisible = all(n % args["num_graphs"] == 0 for n in (sizes[1], sizes[-1]))
    if not is_divisible or args["precision"] not in ("default", "highest"):
        return False
    plan = _plan(args)
    fills_rows = _LANES % plan.width == 0 or plan.width % _LANES == 0
    return fills_rows and plan.width <= _MAX_WIDTH and plan.room <= _VECTOR_MEMORY


def _function(args: Arguments) -> tuple[tuple[Array, Array], Arrays]:
    plan = _plan(args)
    sums = _sums(plan, _indices(plan, args), _operands(plan, args))
    times = args["positions"].shape[0]
    messages, steps = (_from_table(plan, table)[:times] for table in sums)
    return (messages, steps[..., :3]), {}


def _vjp(args: Arguments, residuals: Arrays, cotangents: Any, wanted: Any) -> Arguments:
    others = ("senders", "receivers", "incoming", "outgoing", "precision", "num_graphs")
    rest = {name: x for name, x in args.items() if name in others}
    floating = {name: x for name, x in args.items() if name not in rest}
    # XLA removes the sums themselves, which nothing reads.
    _, pullback = jax.vjp(lambda floats: _function(floats | rest)[0], floating)
    return pullback(cotangents)[0]


MESSAGE_SUMS = Kernel(_fits, _function, _vjp, is_available=lambda: library.setting() == "pallas")


# From arguments to operands, and back.


def _indices(plan: _Plan, args: Arguments) -> Indices:
    """Returns the first row of the nodes of each edge, in blocks.

    As in the specification, gathers clip indices to the nodes, here of the graph, and sums do not:
    they go to the row of no node.
    """
    graphs, nodes = plan.graphs, plan.nodes
    senders, receivers = args["senders"], args["receivers"]
    from_zero = jnp.where(receivers < 0, receivers + graphs * nodes, receivers)
    first = nodes * np.arange(graphs, dtype=np.int32)[:, None]

    def blocks(of_graphs: Array, filling: int) -> Array:
        missing = -of_graphs.shape[1] % plan.edges
        filled = jnp.pad(of_graphs, ((0, 0), (0, missing)), constant_values=filling)
        return (plan.rows * filled).astype(jnp.int32).reshape(-1, 1, plan.edges)

    def clipped(indices: Array) -> Array:
        return jnp.clip(indices.reshape(graphs, -1) - first, 0, nodes - 1)

    targets = from_zero.reshape(graphs, -1) - first
    targets = jnp.where((targets >= 0) & (targets < nodes), targets, nodes)
    return blocks(clipped(senders), 0), blocks(clipped(receivers), 0), blocks(targets, nodes)


def _operands(plan: _Plan, args: Arguments) -> Operands:
    first, second = (args["message_mlp"][f"linear_{i}"] for i in range(2))
    step_first, step_second = (args["position_mlp"][f"linear_{i}"] for i in range(2))
    features, depth = args["features"], args["features"].shape[2]
    of_distance, of_receivers, of_senders, of_edges = jnp.split(
        first["kernel"], (1, 1 + depth, 1 + 2 * depth)
    )
    product = functools.partial(jnp.matmul, precision=plan.precision)
    in_each_slot = functools.partial(jnp.kron, jnp.eye(plan.slots, dtype=features.dtype))
    repeated = functools.partial(jnp.tile, reps=(1, plan.slots))
    tables = {
        "receivers": _table(plan, product(features, of_receivers) + first["bias"]),
        "senders": _table(plan, product(features, of_senders)),
        "positions": _table(plan, args["positions"]),
    }
    weights = {
        "of_distance": in_each_slot(of_distance),
        "message": in_each_slot(second["kernel"]),
        "message_bias": repeated(second["bias"][None]),
        "step_0": in_each_slot(step_first["kernel"]),
        "step_0_bias": repeated(step_first["bias"][None]),
        "step_1": in_each_slot(step_second["kernel"].T),
        "step_1_bias": jnp.broadcast_to(step_second["bias"], (1, plan.lanes)),
    }
    edges = {}
    if of_edges.shape[0]:
        weights["of_edges"] = repeated(of_edges)
        edges["features"] = _columns(plan, args["edge_features"])
    if "edge_shifts" in args:
        edges["shifts"] = _columns(plan, args["edge_shifts"])
    return tables, edges, weights


def _columns(plan: _Plan, x: Float[Array, "E D"]) -> Float[Array, "D F"]:
    """Returns values of edges along lanes, one for each row, with zeros up to whole blocks."""
    x = x.T.reshape(x.shape[1], plan.graphs, -1)
    x = jnp.pad(x, [(0, -x.shape[0] % _SUBLANES), (0, 0), (0, -x.shape[2] % plan.edges)])
    # XLA would repeat values in an array that a TPU pads to 128 lanes. This product is exact, but
    # a value that is not finite reaches other edges.
    places = np.arange(_LANES) // plan.rows == np.arange(_LANES // plan.rows)[:, None]
    lanes = x.reshape(x.shape[0], -1, len(places))
    repeated = jnp.einsum("dbk,kl->dbl", lanes, places.astype(np.float32), precision="highest")
    return repeated.reshape(x.shape[0], -1)


def _table(plan: _Plan, x: Float[Array, "P N A"]) -> Float[Array, "A R L"]:
    """Returns the table of values of nodes, with zeros for what is missing."""
    x = x.reshape(x.shape[0], plan.graphs, plan.nodes, -1)
    times = plan.groups * plan.rows * plan.slots
    shape = times, plan.graphs, plan.height, plan.width
    x = jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, shape, strict=True)])
    x = x.reshape(plan.groups, plan.slots, plan.rows, *shape[1:]).transpose(0, 3, 4, 2, 1, 5)
    return x.reshape(plan.groups * plan.graphs, -1, plan.lanes)


def _from_table(plan: _Plan, table: Float[Array, "A R L"]) -> Float[Array, "P N C"]:
    shape = plan.groups, plan.graphs, plan.height, plan.rows, plan.slots, plan.width
    x = table.reshape(shape)[:, :, : plan.nodes].transpose(0, 4, 3, 1, 2, 5)
    return x.reshape(-1, plan.graphs * plan.nodes, plan.width)


# The kernels, called for each group of times and, within it, each graph and block of its edges.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(plan: _Plan, indices: Indices, operands: Operands) -> Sums:
    tables, edges, weights = operands
    (sums,) = _call(
        plan,
        _sums_kernel,
        [(_index, indices), (_input_table, tables), (_edges, edges), (_replicated, weights)],
        [(_table_of_results, (tables["receivers"],) * 2)],
        num_values=2,
    )
    return sums


def _keep(plan: _Plan, indices: Indices, operands: Operands) -> tuple[Sums, Any]:
    return _sums(plan, indices, operands), (indices, operands)


def _pull_back(plan: _Plan, kept: Any, cotangents: Sums) -> tuple[None, Operands]:
    indices, (tables, edges, weights) = kept
    at_times = jax.tree.map(lambda x: jnp.broadcast_to(x, (plan.groups, *x.shape)), edges)
    of_tables, of_edges, of_weights = _call(
        plan,
        _gradient_kernel,
        [
            (_index, indices),
            (_input_table, tables),
            (_edges, edges),
            (_replicated, weights),
            (_input_table, cotangents),
        ],
        [(_table_of_results, tables), (_edges_at_times, at_times), (_replicated, weights)],
        num_values=4,
    )
    return None, (of_tables, jax.tree.map(lambda x: jnp.sum(x, axis=0), of_edges), of_weights)


_sums.defvjp(_keep, _pull_back)


def _index(plan: _Plan, x: Array) -> pl.BlockSpec:
    blocks = x.shape[0] // plan.graphs
    return pl.BlockSpec(
        (1, 1, plan.edges), lambda t, g, b: (g * blocks + b, 0, 0), memory_space=pltpu.SMEM
    )


def _table_of_results(plan: _Plan, x: Array, **options: Any) -> pl.BlockSpec:
    shape = (1, *x.shape[1:])
    return pl.BlockSpec(shape, lambda t, g, b: (t * plan.graphs + g, 0, 0), **options)


def _input_table(plan: _Plan, x: Array) -> pl.BlockSpec:
    once = pl.Buffered(1)  # the next one is read when it is needed: rarely
    return _table_of_results(plan, x, pipeline_mode=once)


def _edges(plan: _Plan, x: Array) -> pl.BlockSpec:
    blocks = x.shape[1] // _BLOCK // plan.graphs
    return pl.BlockSpec((x.shape[0], _BLOCK), lambda t, g, b: (0, g * blocks + b))


def _edges_at_times(plan: _Plan, x: Array) -> pl.BlockSpec:
    blocks = x.shape[2] // _BLOCK // plan.graphs
    return pl.BlockSpec((1, x.shape[1], _BLOCK), lambda t, g, b: (t, 0, g * blocks + b))


def _replicated(plan: _Plan, x: Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda t, g, b: (0, 0))


def _call(
    plan: _Plan,
    kernel: Callable[..., None],
    inputs: Sequence[tuple[Callable[[_Plan, Array], pl.BlockSpec], Any]],
    results: Sequence[tuple[Callable[[_Plan, Array], pl.BlockSpec], Any]],
    num_values: int,
) -> list[Any]:
    """Calls a kernel.

    Args:
      plan: how arguments are divided.
      kernel: takes the plan, and references to inputs, results and values.
      inputs: trees of arrays, and how each is divided into blocks.
      results: trees of arrays like the results, likewise.
      num_values: number of arrays `[K S, L]`, for values of a block of edges.
    """
    blocks = inputs[0][1][0].shape[0] // plan.graphs
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid=(plan.groups, plan.graphs, blocks),
        in_specs=[jax.tree.map(functools.partial(spec, plan), tree) for spec, tree in inputs],
        out_specs=[jax.tree.map(functools.partial(spec, plan), tree) for spec, tree in results],
        out_shape=[jax.eval_shape(lambda x: x, tree) for _, tree in results],
        scratch_shapes=[pltpu.VMEM((_BLOCK, plan.lanes), jnp.float32)] * num_values,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",) * 3, vmem_limit_bytes=plan.room
        ),
        name=f"egno_{kernel.__name__.strip('_')}",
    )(*(tree for _, tree in inputs))


def _sums_kernel(
    plan: _Plan,
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
    _gather(plan, indices, tables, terms, differences)
    arguments = jax.tree.map(lambda ref: ref[...], (terms, differences, edges, weights))
    terms[...], differences[...] = _messages(plan, *arguments)
    messages_of_nodes, steps_of_nodes = sums
    targets = indices[2]

    @_for_groups_of_edges(plan)
    def _(group: list[Array]) -> None:
        rows = _rows(plan, targets, group)
        _add(messages_of_nodes, rows, _values(plan, terms, group))
        _add(steps_of_nodes, rows, _values(plan, differences, group))


def _gradient_kernel(
    plan: _Plan,
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
    _clear(of_weights, once=True)
    _gather(plan, indices, tables, terms, differences)
    senders, receivers, targets = indices

    @_for_groups_of_edges(plan)
    def _(group: list[Array]) -> None:
        for edge, row in zip(group, _rows(plan, targets, group), strict=True):
            for table, values in zip(cotangents, of_results, strict=True):
                values[_of_edge(plan, edge), :] = table[0, row, :]

    arguments = jax.tree.map(lambda ref: ref[...], (terms, differences, edges, weights))
    _, pullback = jax.vjp(functools.partial(_messages, plan), *arguments)
    gradients = pullback(tuple(values[...] for values in of_results))
    terms[...], differences[...] = gradients[:2]
    for name, gradient in gradients[2].items():
        of_edges[name][0] = gradient
    for name, gradient in gradients[3].items():
        of_weights[name][...] += gradient

    @_for_groups_of_edges(plan)
    def _(group: list[Array]) -> None:
        from_rows, to_rows = (_rows(plan, x, group) for x in (senders, receivers))
        of_terms, of_differences = (_values(plan, x, group) for x in (terms, differences))
        _add(of_tables["receivers"], to_rows, of_terms)
        _add(of_tables["senders"], from_rows, of_terms)
        _add(of_tables["positions"], to_rows, of_differences)
        _add(of_tables["positions"], from_rows, [-x for x in of_differences])


def _messages(
    plan: _Plan,
    terms: Float[Array, "K L"],
    differences: Float[Array, "K L"],
    edges: Arrays,
    weights: Arrays,
) -> tuple[Float[Array, "K L"], Float[Array, "K L"]]:
    """Returns the messages and the steps of a block of edges.

    Args:
      plan: how arguments are divided.
      terms: what receiver and sender add to the first layer of phi_m.
      differences: the receiver's position minus the sender's, without shifts.
      edges: features and shifts, along lanes.
      weights: see `_operands`.
    """
    slots, width = plan.slots, plan.width
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, plan.lanes), 1)
    place, slot_of_lane = jax.lax.rem(lane, width), jax.lax.div(lane, width)
    product = functools.partial(jnp.dot, precision=plan.precision)
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


def _clear(refs: Any, *, once: bool = False) -> None:
    """Sets all values to zero at the first block of a table; with `once`, at the first of all."""
    is_first = pl.program_id(2) == 0
    if once:
        is_first &= (pl.program_id(0) == 0) & (pl.program_id(1) == 0)

    @pl.when(is_first)
    def _() -> None:
        for ref in jax.tree.leaves(refs):
            ref[...] = jnp.zeros_like(ref)


def _gather(plan: _Plan, indices: Any, tables: Any, terms: Any, differences: Any) -> None:
    """Fills in the sum of both terms and the difference of positions of each edge."""
    senders, receivers, _ = indices

    @_for_groups_of_edges(plan)
    def _(group: list[Array]) -> None:
        ends = (_rows(plan, x, group) for x in (senders, receivers))
        for edge, sender, receiver in zip(group, *ends, strict=True):
            of_receiver, of_sender = tables["receivers"][0, receiver], tables["senders"][0, sender]
            terms[_of_edge(plan, edge), :] = of_receiver + of_sender
            positions = tables["positions"]
            difference = positions[0, receiver] - positions[0, sender]
            differences[_of_edge(plan, edge), :] = difference


def _for_groups_of_edges(plan: _Plan) -> Callable[[Callable[[list[Array]], None]], None]:
    """Calls the decorated function with each group of `_GROUP` edges of a block."""

    def call(function: Callable[[list[Array]], None]) -> None:
        def iteration(i: Array, _: None) -> None:
            # Older versions of Mosaic cannot unroll a part of a loop.
            for first in range(0, _UNROLL, _GROUP):
                function([i * _UNROLL + first + k for k in range(_GROUP)])

        jax.lax.fori_loop(0, plan.edges // _UNROLL, iteration, None)

    return call


def _rows(plan: _Plan, indices: Any, group: Sequence[Array]) -> list[pl.Slice]:
    """Returns the rows of a table that `indices` have for each edge of a group."""
    return [pl.ds(pl.multiple_of(indices[0, 0, edge], plan.rows), plan.rows) for edge in group]


def _of_edge(plan: _Plan, edge: Array) -> pl.Slice:
    return pl.ds(pl.multiple_of(edge * plan.rows, plan.rows), plan.rows)


def _values(plan: _Plan, values: Any, group: Sequence[Array]) -> list[Float[Array, "S L"]]:
    return [values[_of_edge(plan, edge), :] for edge in group]


def _add(table: Any, rows: Sequence[pl.Slice], values: Sequence[Float[Array, "S L"]]) -> None:
    """Adds values to rows of a table, in order; rows may repeat.

    All rows are read before any is written: a read after a write waits for it.
    """
    sums = [table[0, row, :] for row in rows]
    for k, (row, value) in enumerate(zip(rows, values, strict=True)):
        for earlier in range(k):
            sums[k] = jnp.where(rows[earlier].start == row.start, sums[earlier], sums[k])
        sums[k] += value
    for row, total in zip(rows, sums, strict=True):
        table[0, row, :] = total
