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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from egno_jax.ops.kernels import cpu, library
from egno_jax.ops.kernels.accelerated import Kernel
from egno_jax.ops.kernels.rows import (
    PRECISIONS,
    Plan,
    Rows,
    added,
    as_rows,
    block,
    call,
    floats,
    gradients_of_weights,
    is_available,
    like,
    matrices_of,
    over_edges,
    parts_of,
    plan_of,
    read,
    sums_like,
    weights_of,
    write,
    write_sums,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    from egno_jax.ops.kernels.accelerated import Arguments

    Arrays = dict[str, Array]

_WIDTHS = (16, 32, 64, 128)
# The parts of the first layer of phi_m that multiply features of nodes.
_OF_NODES = ("of_receivers", "of_senders")
# The row of no value.
_NOWHERE = 1 << 30
# The most features of an edge.
_MAX_DEPTH = 16


def _is_possible(args: Arguments, *widths: int) -> bool:
    times, nodes, _ = args["features"].shape
    edges, depth = args["edge_features"].shape if "edge_features" in args else (0, 0)
    # Numbers of nodes are symbols in programs that are exported. Indices have 32 bits.
    if not all(isinstance(n, int) for n in (times, nodes, edges)):
        return False
    is_short = times * max(2 * max(widths) * nodes, max(depth, 3) * edges) < 2**31
    return is_short and args["precision"] in PRECISIONS and all(x in _WIDTHS for x in widths)


def _is_used() -> bool:
    is_narrow = not jax.config.jax_enable_x64
    return is_available() and is_narrow and library.setting() == "pallas"


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

    def function(self, args: Arguments) -> tuple[Float[Array, "P N B"], Arrays]:
        plan, inputs = self._plan(args)

        def two_layers(inputs: Any, weights: Any, result: Any) -> None:
            rows = block(plan, pl.program_id(0))
            matrices = matrices_of(plan, weights, parts_of(plan, weights))
            values = self._of_block(plan, read(inputs, rows), matrices)
            write(result, rows, values)

        operands = inputs, weights_of(args, self.mlp)
        result = call(two_layers, plan.blocks, operands, floats(plan.rows, self._out_width(args)))
        return result.reshape(plan.times, plan.nodes, -1), {}

    def vjp(self, args: Arguments, residuals: Arrays, cotangent: Array, wanted: Any) -> Arguments:
        plan, inputs = self._plan(args)
        weights = weights_of(args, self.mlp)

        def two_layers_gradient(
            inputs: Any, weights: Any, cotangent: Any, of_inputs: Any, sums: Any
        ) -> None:
            def of_block(rows: Rows, matrices: Arrays) -> Arrays:
                function = functools.partial(self._of_block, plan)
                _, pullback = jax.vjp(function, read(inputs, rows), matrices)
                of_values, of_matrices = pullback(read(cotangent, rows))
                for name, values in of_values.items():
                    write(of_inputs[name], rows, values)
                return of_matrices

            write_sums(plan, sums, weights, parts_of(plan, weights), of_block)

        operands = inputs, weights, as_rows(cotangent)
        results = like(inputs), sums_like(plan, weights)
        of_inputs, sums = call(two_layers_gradient, plan.programs, operands, results)
        gradients = {name: x.reshape(args[name].shape) for name, x in of_inputs.items()}
        return gradients | gradients_of_weights(sums, args, self.mlp)

    def _out_width(self, args: Arguments) -> int:
        return args[self.mlp]["linear_1"]["bias"].shape[0]

    def _plan(self, args: Arguments) -> tuple[Plan, Arrays]:
        names = ("features", "messages") if "messages" in args else ("features",)
        inputs = {name: as_rows(args[name]) for name in names}
        return plan_of(args, self.mlp, {name: x.shape[1] for name, x in inputs.items()}), inputs

    def _of_block(self, plan: Plan, inputs: Arrays, weights: Arrays) -> Float[Array, "R B"]:
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
        if not cpu.MESSAGE_SUMS.fits(args) or not self._is_sorted(args):
            return False
        is_narrow = args["edge_features"].shape[1] <= _MAX_DEPTH
        return is_narrow and _is_possible(args, args["features"].shape[2], self._plan(args).width)

    def _is_sorted(self, args: Arguments) -> bool:
        """Returns whether there are the edges of each node, in both directions."""
        tables = [args[name] for name in ("incoming", "outgoing") if name in args]
        of_nodes = [x.shape for table in tables for x in (table.starts, table.counts)]
        of_edges = [x.shape for table in tables for x in (table.others, table.edges)]
        is_right = set(of_nodes) <= {args["features"].shape[1:2]}
        return len(tables) == 2 and is_right and set(of_edges) <= {args["senders"].shape}

    def residuals(self, args: Arguments) -> dict[str, jax.ShapeDtypeStruct]:
        plan = self._plan(args)
        return {"terms": floats(plan.rows, 2 * plan.width)}

    def function(self, args: Arguments) -> tuple[tuple[Array, Array], Arrays]:
        plan, weights = self._plan(args), weights_of(args, *self.mlps)
        features, positions = as_rows(args["features"]), as_rows(args["positions"])

        def terms_of_nodes(features: Any, weights: Any, terms: Any) -> None:
            rows = block(plan, pl.program_id(0))
            found = _terms(plan, read(features, rows), matrices_of(plan, weights, _OF_NODES))
            for i, values in enumerate(found):
                write(terms, rows, values, i * plan.width)

        residuals = self.residuals(args)
        residuals["terms"] = call(
            terms_of_nodes, plan.blocks, (features, weights), residuals["terms"]
        )
        operands = args["incoming"], residuals | {"positions": positions}, _edges(args), weights
        results = floats(plan.rows, plan.width), floats(*positions.shape)
        sums = call(functools.partial(_sums, plan), plan.blocks, operands, results)
        return tuple(x.reshape(plan.times, plan.nodes, -1) for x in sums), residuals

    def vjp(self, args: Arguments, residuals: Arrays, cotangents: Any, wanted: Any) -> Arguments:
        plan, weights, edges = self._plan(args), weights_of(args, *self.mlps), _edges(args)
        features, positions = as_rows(args["features"]), as_rows(args["positions"])
        tables = residuals | {"positions": positions}
        operands = tables, edges, weights, tuple(map(as_rows, cotangents))
        at_times = {name: floats(plan.times * len(x), x.shape[1]) for name, x in edges.items()}
        results = floats(plan.rows, plan.width), like(positions), at_times
        of_terms, of_positions, of_edges, sums = call(
            functools.partial(_received, plan),
            plan.programs,
            (args["incoming"], *operands),
            (*results, sums_like(plan, weights)),
        )
        of_positions, sums, of_features = call(
            functools.partial(_sent, plan),
            plan.programs,
            (of_positions, sums, of_terms, features, args["outgoing"], *operands),
            like((of_positions, sums, features)),
            num_in_place=2,
        )
        gradients = {"edge_features": jnp.zeros_like(args["edge_features"])}
        for name, x in of_edges.items():
            gradients[name] = jnp.sum(x.reshape(plan.times, *args[name].shape), axis=0)
        return gradients | {
            "features": of_features.reshape(args["features"].shape),
            "positions": of_positions.reshape(args["positions"].shape),
            **gradients_of_weights(sums, args, *self.mlps),
        }

    def _plan(self, args: Arguments) -> Plan:
        depth, num = args["features"].shape[2], args["edge_features"].shape[1]
        sizes = {"of_distance": 1, "of_receivers": depth, "of_senders": depth, "of_edges": num}
        return plan_of(args, self.mlps[0], sizes)


def _edges(args: Arguments) -> Arrays:
    """Returns the values of edges, without features of width 0."""
    found = {name: args[name] for name in ("edge_features", "edge_shifts") if name in args}
    return {name: x for name, x in found.items() if x.shape[1]}


def _of_edges(plan: Plan, weights: Any) -> list[str]:
    """Returns the names of the matrices that multiply values of edges."""
    return [name for name in parts_of(plan, weights) if name not in _OF_NODES]


def _terms(plan: Plan, features: Float[Array, "R A"], weights: Arrays) -> list[Float[Array, "R C"]]:
    """Returns what nodes add to the first layer of phi_m as receivers, and as senders."""
    return [plan.product(features, weights[name]) for name in _OF_NODES]


def _messages(
    plan: Plan,
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
    plan: Plan, incoming: Any, tables: Any, edges: Any, weights: Any, messages: Any, steps: Any
) -> None:
    """Adds up the messages and steps that the nodes of a block receive."""
    rows = block(plan, pl.program_id(0))
    ends = _Ends(plan, tables, rows, is_receiver=True)

    def add(others: Rows, edge_rows: Rows, matrices: Arrays, total: Any) -> Any:
        found = _messages(plan, *ends.with_others(others), read(edges, edge_rows), matrices)
        return added(total, _where(others.is_real, found))

    start = jax.tree.map(jnp.zeros_like, ends.own)
    total = over_edges(plan, incoming, rows, weights, _of_edges(plan, weights), add, start)
    for ref, x in zip((messages, steps), total, strict=True):
        write(ref, rows, x)


def _received(
    plan: Plan,
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

    def of_block(rows: Rows, matrices: Arrays) -> Arrays:
        ends = _Ends(plan, tables, rows, is_receiver=True)
        of_sums = tuple(read(ref, rows) for ref in cotangents)

        def add(others: Rows, edge_rows: Rows, matrices: Arrays, total: Any) -> Any:
            arguments = *ends.with_others(others), read(edges, edge_rows), matrices
            _, pullback = jax.vjp(function, *arguments)
            *of_ends, of_values, of_matrices = pullback(_where(others.is_real, of_sums))
            for name, values in of_values.items():
                first = rows.index // plan.nodes * edges[name].shape[0]
                # Pallas' interpreter writes masked values too, as they were: not to another edge.
                place = jnp.where(edge_rows.is_real, first + edge_rows.index, _NOWHERE)
                write(of_edges[name], Rows(place, edge_rows.is_real), values)
            return added(total, (*of_ends, of_matrices))

        start = jax.tree.map(jnp.zeros_like, (*ends.own, matrices))
        *of_own, of_matrices = over_edges(
            plan, incoming, rows, weights, _of_edges(plan, weights), add, start
        )
        for ref, x in zip((of_terms, of_positions), of_own, strict=True):
            write(ref, rows, x)
        return of_matrices

    write_sums(plan, sums, weights, _of_edges(plan, weights), of_block)


def _sent(
    plan: Plan,
    of_positions: Any,
    sums_so_far: Any,
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

    def of_block(rows: Rows, matrices: Arrays) -> Arrays:
        ends = _Ends(plan, tables, rows, is_receiver=False)

        def add(others: Rows, edge_rows: Rows, matrices: Arrays, total: Any) -> Any:
            values = read(edges, edge_rows)
            function = functools.partial(_messages, plan, edges=values, weights=matrices)
            _, pullback = jax.vjp(function, *ends.with_others(others))
            return added(total, pullback(tuple(read(ref, others) for ref in cotangents)))

        start = jax.tree.map(jnp.zeros_like, ends.own)
        of_sent_terms, of_difference = over_edges(
            plan, outgoing, rows, weights, _of_edges(plan, weights), add, start
        )
        write(all_of_positions, rows, read(of_positions, rows) - of_difference)
        _, pullback = jax.vjp(functools.partial(_terms, plan), read(features, rows), matrices)
        of_values, of_matrices = pullback([read(of_terms, rows), of_sent_terms])
        write(of_features, rows, of_values)
        return of_matrices

    write_sums(plan, sums, weights, _OF_NODES, of_block)


class _Ends:
    """The terms and positions of a block of rows, at one end of their edges."""

    def __init__(self, plan: Plan, tables: Any, rows: Rows, *, is_receiver: bool):
        self._width, self._tables, self._is_receiver = plan.width, tables, is_receiver
        self.own = self._of(rows, is_receiver)

    def with_others(self, others: Rows) -> tuple[Float[Array, "R C"], Float[Array, "R 4"]]:
        """Returns the sum of terms, and the receiver's position minus the sender's.

        Both are 0 for a row without another edge, whose own values need not be finite.
        """
        (terms, own), (of_others, other) = self.own, self._of(others, not self._is_receiver)
        difference = own - other if self._is_receiver else other - own
        return _where(others.is_real, (terms + of_others, difference))

    def _of(self, rows: Rows, is_receiver: bool) -> tuple[Array, Array]:
        first = 0 if is_receiver else self._width
        terms = read(self._tables["terms"], rows, first, self._width)
        return terms, read(self._tables["positions"], rows)


def _where(is_real: Bool[Array, "R"], tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.where(is_real[:, None], x, 0), tree)


MESSAGE_SUMS = Kernel.of(_MessageSums(), _is_used)
FEATURE_UPDATE = Kernel.of(_TwoLayers(cpu.FEATURE_UPDATE, "feature_mlp"), _is_used)
VELOCITY_FACTOR = Kernel.of(_TwoLayers(cpu.VELOCITY_FACTOR, "velocity_mlp"), _is_used)
