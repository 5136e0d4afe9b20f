"""Arrangements of edges: how values go from nodes to edges and are summed at nodes again.

The formula of message passing is written once, for any of these (`egno_jax.ops.message_passing`):

- `EdgeList`: the edges as a graph lists them; gathers and scatters. The specification. It can have
  the edges of each node, `Adjacency`, for the kernels of GPUs.
- `Blocks`: all pairs of nodes of each small graph, with a mask. No gathers, no scatters. The nodes
  are `[n, G]`, node i of graph g, so that compilers can lay out the graphs of a batch along lanes.
- `Incidence`: the edges of small graphs of one size; products with incidence matrices. No gathers,
  no scatters.
- `Segments`: edges sorted by receiver in rows of equal length. Gathers, in the derivative too, and
  no scatters.

`egno_jax.graph.prepare` makes them. They contain indices, no values, so they hold as
long as senders and receivers do.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

# Index of a place without node or edge: out of range, also after a small offset is added.
NOWHERE = 1 << 30


class Layout(Protocol):
    """The interface of an arrangement; `*nodes` and `*edges` are its axes of nodes and edges."""

    def of_receivers(self, values: Float[Array, "P *nodes C"]) -> Float[Array, "P *edges C"]:
        """Returns the value of each edge's receiver; axes may have length 1 and be broadcast."""

    def of_senders(self, values: Float[Array, "P *nodes C"]) -> Float[Array, "P *edges C"]:
        """Returns the value of each edge's sender; axes may have length 1 and be broadcast."""

    def to_receivers(self, values: Float[Array, "P *edges C"]) -> Float[Array, "P *nodes C"]:
        """Sums the values of each node's incoming edges, in float32 or wider; 0 without edges."""

    def edge_features(self, features: Float[Array, "E D"]) -> Float[Array, "*edges D"]:
        """Returns features of the edges of the graph as this arrangement has them."""

    def in_degree(self, dtype: Any) -> Float[Array, "*nodes 1"]:
        """Returns the number of incoming edges of each node."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("starts", "counts", "edges", "others"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Adjacency:
    """The edges of each node in one direction: those that it receives, or those that it sends.

    Attributes:
      starts, counts: `[N]`; the edges of node i are at `starts[i]` and the next `counts[i]` places.
      edges: `[E]`, which of the graph's edges is at each place, in the order of the nodes; each
        edge once.
      others: `[E]`, the node at the other end of that edge.
    """

    starts: Int[Array, "N"]
    counts: Int[Array, "N"]
    edges: Int[Array, "E"]
    others: Int[Array, "E"]

    def joined(self, num_nodes: int) -> Adjacency:
        """Returns that of the batch of samples that this one stacks along a leading axis."""
        num_edges = self.edges.shape[1]
        return Adjacency(
            starts=(self.starts + _offsets(num_edges, self.starts)).reshape(-1),
            counts=self.counts.reshape(-1),
            edges=(self.edges + _offsets(num_edges, self.edges)).reshape(-1),
            others=(self.others + _offsets(num_nodes, self.others)).reshape(-1),
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("senders", "receivers", "incoming", "outgoing"),
    meta_fields=("num_nodes", "num_graphs"),
)
@dataclasses.dataclass(frozen=True)
class EdgeList:
    """The edges in the order of the graph; nodes are `[N]`, edges `[E]`.

    Attributes:
      senders, receivers: `[E]`.
      num_nodes: N.
      num_graphs: G, where these are known to be the nodes and edges of G graphs of equal size, one
        after another, and no edge connects two of them; else 1. The kernel for TPUs then needs room
        for one graph only.
      incoming, outgoing: the edges that each node receives and sends, for the kernel for GPUs; None
        where nobody has sorted them.
    """

    senders: Int[Array, "E"]
    receivers: Int[Array, "E"]
    num_nodes: int
    num_graphs: int = 1
    incoming: Adjacency | None = None
    outgoing: Adjacency | None = None

    @property
    def num_edges(self) -> int:
        """E, the number of edges that the layout is for."""
        return self.senders.shape[-1]

    def of_receivers(self, values: Float[Array, "P N C"]) -> Float[Array, "P E C"]:
        """See `Layout`."""
        return _take_at(values, self.receivers)

    def of_senders(self, values: Float[Array, "P N C"]) -> Float[Array, "P E C"]:
        """See `Layout`."""
        return _take_at(values, self.senders)

    def to_receivers(self, values: Float[Array, "P E C"]) -> Float[Array, "P N C"]:
        """See `Layout`."""
        dtype = jnp.result_type(values.dtype, jnp.float32)
        return _add_at(values.astype(dtype), self.receivers, self.num_nodes).astype(values.dtype)

    def edge_features(self, features: Float[Array, "E D"]) -> Float[Array, "E D"]:
        """See `Layout`."""
        return features

    def in_degree(self, dtype: Any) -> Float[Array, "N 1"]:
        """See `Layout`."""
        if self.incoming is not None:
            return self.incoming.counts[:, None].astype(dtype)
        return jnp.zeros((self.num_nodes, 1), dtype).at[self.receivers].add(1, mode="drop")

    def joined(self, num_nodes: int) -> EdgeList:
        """Returns the layout of the batch of samples that this one stacks along a leading axis."""
        samples = self.senders.shape[0]
        ends = ((x + _offsets(num_nodes, x)).reshape(-1) for x in (self.senders, self.receivers))
        sorted_edges = (x and x.joined(num_nodes) for x in (self.incoming, self.outgoing))
        return EdgeList(*ends, samples * num_nodes, samples, *sorted_edges)


def _take_at(values: Float[Array, "P N C"], indices: Int[Array, "E"]) -> Float[Array, "P E C"]:
    """Returns the values of nodes; indices out of range are clipped."""

    def take(values: Array, indices: Array) -> Array:
        return jnp.take(values, indices, axis=1, mode="clip")

    return jax.lax.platform_dependent(values, indices, tpu=_take_rows, default=take)


def _add_at(
    values: Float[Array, "P E C"], indices: Int[Array, "E"], nodes: int
) -> Float[Array, "P N C"]:
    """Sums values at nodes; those at indices out of range are left out."""

    def add(values: Array, indices: Array) -> Array:
        total = jnp.zeros((values.shape[0], nodes, values.shape[2]), values.dtype)
        return total.at[:, indices].add(values, mode="drop")

    add_rows = functools.partial(_add_rows, nodes=nodes)
    return jax.lax.platform_dependent(values, indices, tpu=add_rows, default=add)


# A TPU gathers and adds up rows of a matrix several times as fast as parts of other arrays, unless
# they are longer than this. It pads rows to 128 channels.
_LONGEST_ROW = 4096
_LANES = 128


def _take_rows(values: Float[Array, "P N C"], indices: Int[Array, "E"]) -> Float[Array, "P E C"]:
    times, nodes, channels = values.shape
    width = _times_of_row(times, channels)
    places = _in_rows(jnp.clip(indices, 0, nodes - 1), times // width, nodes)
    found = jnp.take(_rows(values, width), places, axis=0, mode="clip")
    found = _from_rows(found, (times, indices.shape[0], channels), width)
    # Without the barrier XLA computes with the edges of all times in one axis, which can be slow.
    return jax.lax.optimization_barrier(found)


def _add_rows(
    values: Float[Array, "P E C"], indices: Int[Array, "E"], nodes: int
) -> Float[Array, "P N C"]:
    times, _, channels = values.shape
    width = _times_of_row(times, channels)
    indices = jnp.where(indices < 0, indices + nodes, indices)
    indices = jnp.where((indices >= 0) & (indices < nodes), indices, jnp.int32(NOWHERE))
    total = jnp.zeros((times // width * nodes, width * channels), values.dtype)
    places = _in_rows(indices, times // width, nodes)
    total = total.at[places].add(_rows(values, width), mode="drop")
    return _from_rows(total, (times, nodes, channels), width)


def _times_of_row(times: int, channels: int) -> int:
    """Returns how many times are in a row: as many as fit, if one does not fill a row."""
    if not isinstance(times, int):  # a symbol, in a program for any sizes
        return times
    most = 1 if channels >= _LANES else max(1, _LONGEST_ROW // max(channels, 1))
    return max((k for k in range(1, min(times, most) + 1) if times % k == 0), default=1)


def _in_rows(indices: Int[Array, "E"], groups: int, number: int) -> Int[Array, "A"]:
    """Returns the rows of nodes in all groups of times: `g N + i`."""
    return (indices + number * jnp.arange(groups, dtype=jnp.int32)[:, None]).reshape(-1)


def _rows(values: Float[Array, "P A C"], width: int) -> Float[Array, "R L"]:
    """Returns values with a row for each node or edge in each group of `width` times."""
    times, number, channels = values.shape
    groups = times // width
    values = values.reshape(groups, width, number, channels)
    return jnp.swapaxes(values, 1, 2).reshape(groups * number, width * channels)


def _from_rows(
    rows: Float[Array, "R L"], shape: tuple[int, int, int], width: int
) -> Float[Array, "P A C"]:
    """Returns rows as values of a shape; the inverse of `_rows`."""
    times, number, channels = shape
    values = rows.reshape(times // width, number, width, channels)
    return jnp.swapaxes(values, 1, 2).reshape(shape)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("edges", "nodes", "places", "is_node"),
    meta_fields=("num_edges", "is_full"),
)
@dataclasses.dataclass(frozen=True)
class Blocks:
    """All pairs of n nodes of each of G graphs; nodes are `[n, G]`, edges `[n, n - 1, G]`.

    The first axis of edges is the receiver, the second all other nodes in their order, the senders.

    Attributes:
      edges: `[G, n, n - 1]`, which of the graph's edges each pair is, counted from the first edge
        of the batch; `NOWHERE` for pairs without an edge. None: every graph is complete, with its
        edges sorted by receiver, then sender.
      nodes: `[G, n]`, which of the N nodes each place holds, or `NOWHERE`; None: all G graphs have
        n nodes, in order.
      places: `[N]`, the place `g n + i` of each node; None as above.
      is_node: `[G, n]`, whether a place holds a node of the graph; means leave the others out.
      num_edges: E, the number of edges that the layout is for.
      is_full: whether all places are known to hold nodes; then means need no mask.
    """

    edges: Int[Array, "G n m"] | None
    nodes: Int[Array, "G n"] | None
    places: Int[Array, "N"] | None
    is_node: Bool[Array, "G n"]
    num_edges: int
    is_full: bool = False

    def of_receivers(self, values: Float[Array, "P n G C"]) -> Float[Array, "P n 1 G C"]:
        """See `Layout`."""
        return values[:, :, None]

    def of_senders(self, values: Float[Array, "P n G C"]) -> Float[Array, "P n m G C"]:
        """See `Layout`."""
        size = values.shape[1]
        is_after = np.arange(size - 1) >= np.arange(size)[:, None]  # sender after receiver
        return jnp.where(is_after[..., None, None], values[:, None, 1:], values[:, None, :-1])

    def to_receivers(self, values: Float[Array, "P n m G C"]) -> Float[Array, "P n G C"]:
        """See `Layout`."""
        if self.edges is not None:
            values = jnp.where(self._is_edge(), values, 0)
        dtype = jnp.result_type(values.dtype, jnp.float32)
        return jnp.sum(values, axis=2, dtype=dtype).astype(values.dtype)

    def edge_features(self, features: Float[Array, "E D"]) -> Float[Array, "n m G D"]:
        """See `Layout`."""
        if self.edges is not None:
            features = jnp.take(features, self.edges, axis=0, mode="fill", fill_value=0)
        graphs, size = self.is_node.shape
        return jnp.moveaxis(features.reshape(graphs, size, size - 1, features.shape[-1]), 0, 2)

    def in_degree(self, dtype: Any) -> Float[Array, "n G 1"]:
        """See `Layout`."""
        if self.edges is not None:
            return jnp.sum(self._is_edge(), axis=1, dtype=dtype)
        graphs, size = self.is_node.shape
        return jnp.full((size, graphs, 1), size - 1, dtype)

    def to_blocks(self, values: Float[Array, "P N C"]) -> Float[Array, "P n G C"]:
        """Arranges values of nodes; places without a node hold zeros."""
        graphs, size = self.is_node.shape
        if self.nodes is not None:
            values = _gather(values, (self.nodes.reshape(-1),), (self.places,))
        return jnp.swapaxes(values.reshape(-1, graphs, size, values.shape[-1]), 1, 2)

    def to_nodes(self, values: Float[Array, "P n G C"]) -> Float[Array, "P N C"]:
        """Returns values to the order of the nodes in the graph; the inverse of `to_blocks`."""
        flat = jnp.swapaxes(values, 1, 2).reshape(values.shape[0], -1, values.shape[-1])
        if self.nodes is None:
            return flat
        return _gather(flat, (self.places,), (self.nodes.reshape(-1),))

    def graph_mean(self, values: Float[Array, "P n G C"]) -> Float[Array, "P 1 G C"]:
        """Averages the values of each graph's nodes."""
        if self.is_full:
            return jnp.sum(values / values.shape[1], axis=1, keepdims=True)
        mask = self.is_node.T[..., None]
        count = jnp.maximum(jnp.sum(mask, axis=0, dtype=values.dtype), 1)
        return jnp.sum(jnp.where(mask, values / count, 0), axis=1, keepdims=True)

    def joined(self, num_nodes: int) -> Blocks:
        """Returns the layout of the batch of samples that this one stacks along a leading axis."""
        samples = self.is_node.shape[0]
        edges = self.edges
        if edges is not None:
            edges = edges + _offsets(self.num_edges, edges)
        return dataclasses.replace(self, edges=edges, num_edges=samples * self.num_edges)

    def _is_edge(self) -> Bool[Array, "n m G 1"]:
        return jnp.moveaxis(self.edges < NOWHERE, 0, -1)[..., None]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("senders", "receivers"),
    meta_fields=("num_nodes", "num_edges"),
)
@dataclasses.dataclass(frozen=True)
class Incidence:
    """The edges of G graphs of n nodes and e edges; nodes are `[G n]`, edges `[G, e]`.

    Values go from nodes to edges, and are summed at nodes, by products with the incidence matrices
    of each graph: `[e, n]`, 1 where the node is the sender, or the receiver, of the edge. They are
    for TPUs, which multiply by up to 128 nodes at once, but gather and scatter row after row. A
    value that is not finite reaches all edges of its graph. A batch of samples has a matrix for
    each sample, whatever graphs are in it.

    Attributes:
      senders, receivers: `[G, e]`, counted from the first node of the graph.
      num_nodes: n.
      num_edges: E, the number of edges that the layout is for.
    """

    senders: Int[Array, "G e"]
    receivers: Int[Array, "G e"]
    num_nodes: int
    num_edges: int

    def of_receivers(self, values: Float[Array, "P N C"]) -> Float[Array, "P G e C"]:
        """See `Layout`."""
        return self._of(self.receivers, values)

    def of_senders(self, values: Float[Array, "P N C"]) -> Float[Array, "P G e C"]:
        """See `Layout`."""
        return self._of(self.senders, values)

    def to_receivers(self, values: Float[Array, "P G e C"]) -> Float[Array, "P N C"]:
        """See `Layout`."""
        dtype = jnp.result_type(values.dtype, jnp.float32)
        matrix = self._matrix(self.receivers, dtype)
        sums = _exact_einsum("gen,pgec->pgnc", matrix, values.astype(dtype))
        return sums.reshape(sums.shape[0], -1, sums.shape[-1]).astype(values.dtype)

    def edge_features(self, features: Float[Array, "E D"]) -> Float[Array, "G e D"]:
        """See `Layout`."""
        return features.reshape(*self.senders.shape, features.shape[-1])

    def in_degree(self, dtype: Any) -> Float[Array, "N 1"]:
        """See `Layout`."""
        return jnp.sum(self._matrix(self.receivers, dtype), axis=1).reshape(-1, 1)

    def joined(self, num_nodes: int) -> Incidence:
        """Returns the layout of the batch of samples that this one stacks along a leading axis."""
        return dataclasses.replace(self, num_edges=self.senders.shape[0] * self.num_edges)

    def _of(
        self, places: Int[Array, "G e"], values: Float[Array, "P N C"]
    ) -> Float[Array, "P G e C"]:
        of_graphs = values.reshape(values.shape[0], -1, self.num_nodes, values.shape[-1])
        return _exact_einsum("gen,pgnc->pgec", self._matrix(places, values.dtype), of_graphs)

    def _matrix(self, places: Int[Array, "G e"], dtype: Any) -> Float[Array, "G e n"]:
        return (places[..., None] == np.arange(self.num_nodes)).astype(dtype)


# Products with zeros and ones are exact only if values are not rounded to fewer bits.
_exact_einsum = functools.partial(jnp.einsum, precision="highest")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("edges", "senders", "receivers", "rows", "out_edges", "out_rows"),
    meta_fields=("num_edges",),
)
@dataclasses.dataclass(frozen=True)
class Segments:
    """Edges in R rows of k, each row of one receiver; nodes are `[N]`, edges `[R, k]`.

    A node with d incoming edges has ceil(d / k) rows. Sums add up within rows, then over the rows
    of a node. The derivative of a gather by senders sums, likewise, the edges that a node sends.

    Attributes:
      edges: `[R, k]`, which of the graph's edges, or `NOWHERE`.
      senders: `[R, k]`, the sender of each edge, or `NOWHERE`.
      receivers: `[R]`, the receiver of each row, or `NOWHERE`.
      rows: `[N, q]`, the rows of each receiver, or `NOWHERE`.
      out_edges: `[R', k]`, the edges, as `r k + place`, that a node sends, in rows of one sender.
      out_rows: `[N, q']`, the rows of `out_edges` of each sender.
      num_edges: E, the number of edges that the layout is for.
    """

    edges: Int[Array, "R k"]
    senders: Int[Array, "R k"]
    receivers: Int[Array, "R"]
    rows: Int[Array, "N q"]
    out_edges: Int[Array, "S k"]
    out_rows: Int[Array, "N s"]
    num_edges: int

    def of_receivers(self, values: Float[Array, "P N C"]) -> Float[Array, "P R 1 C"]:
        """See `Layout`."""
        return _gather(values, (self.receivers,), (self.rows,))[:, :, None]

    def of_senders(self, values: Float[Array, "P N C"]) -> Float[Array, "P R k C"]:
        """See `Layout`."""
        found = _gather(values, (self.senders.reshape(-1),), (self.out_edges, self.out_rows))
        return found.reshape(values.shape[0], *self.senders.shape, values.shape[-1])

    def to_receivers(self, values: Float[Array, "P R k C"]) -> Float[Array, "P N C"]:
        """See `Layout`."""
        dtype = jnp.result_type(values.dtype, jnp.float32)
        is_edge = (self.edges < NOWHERE)[..., None]
        sums = jnp.sum(jnp.where(is_edge, values, 0), axis=2, dtype=dtype)
        return _gather(sums, (self.rows,), (self.receivers,)).astype(values.dtype)

    def edge_features(self, features: Float[Array, "E D"]) -> Float[Array, "R k D"]:
        """See `Layout`."""
        return jnp.take(features, self.edges, axis=0, mode="fill", fill_value=0)

    def in_degree(self, dtype: Any) -> Float[Array, "N 1"]:
        """See `Layout`."""
        ones = jnp.sum(self.edges < NOWHERE, axis=1, dtype=dtype)[None, :, None]
        return _gather(ones, (self.rows,), (self.receivers,))[0]

    def joined(self, num_nodes: int) -> Segments:
        """Returns the layout of the batch of samples that this one stacks along a leading axis."""
        samples, num_rows, length = self.edges.shape
        steps = {
            "edges": self.num_edges,
            "senders": num_nodes,
            "receivers": num_nodes,
            "rows": num_rows,
            "out_edges": num_rows * length,
            "out_rows": self.out_edges.shape[1],
        }
        tables = {}
        for name, step in steps.items():
            table = getattr(self, name)
            table = table + _offsets(step, table)
            tables[name] = table.reshape(-1, *table.shape[2:])
        return Segments(**tables, num_edges=samples * self.num_edges)


def _offsets(step: int, table: Int[Array, "S ..."]) -> Int[np.ndarray, "S ..."]:
    """Returns what to add to the indices of each sample of a batch: `s step`."""
    return step * np.arange(table.shape[0], dtype=np.int32).reshape(-1, *[1] * (table.ndim - 1))


# A linear map and its transpose, each a chain of gathers: a primitive, because the transpose that
# JAX derives of a gather is a scatter.

Tables = tuple[Any, ...]


def _gather(
    values: Float[Array, "P A C"], tables: Tables, transposed: Tables
) -> Float[Array, "P B C"]:
    """Applies a chain of tables to axis 1; `transposed` are those of the transposed map.

    A table `[B]` takes the places of axis 1, a table `[B, q]` the sums of q of them; places out of
    range are zeros.
    """
    options = {"num_tables": len(tables), "num_batch_axes": 0}
    return _gather_p.bind(values, *tables, *transposed, **options)


def _apply_tables(values: Array, *tables: Array, num_tables: int, num_batch_axes: int = 0) -> Array:
    if num_batch_axes:
        inner = functools.partial(
            _apply_tables, num_tables=num_tables, num_batch_axes=num_batch_axes - 1
        )
        return jax.vmap(inner)(values, *tables)
    times, _, channels = values.shape
    width = times or 1  # all in one row
    rows = _rows(values, width)
    for table in tables[:num_tables]:
        zero = jnp.zeros((1, rows.shape[1]), rows.dtype)
        found = jnp.take(jnp.concatenate([rows, zero]), table.reshape(-1), axis=0, mode="clip")
        if table.ndim == 2:
            found = found.reshape(*table.shape, rows.shape[1])
            dtype = jnp.result_type(rows.dtype, jnp.float32)
            found = jnp.sum(found, axis=1, dtype=dtype).astype(rows.dtype)
        rows = found
    return _from_rows(rows, (times, rows.shape[0], channels), width)


def _jvp(primals: Any, tangents: Any, **options: int) -> tuple[Any, Any]:
    tables = primals[1:]
    tangent = tangents[0]
    if not isinstance(tangent, ad.Zero):
        tangent = _gather_p.bind(tangent, *tables, **options)
    found = _gather_p.bind(*primals, **options)
    if isinstance(tangent, ad.Zero):
        tangent = ad.Zero(jax.typeof(found).to_tangent_aval())
    return found, tangent


def _transpose(
    cotangent: Any, values: Any, *tables: Any, num_tables: int, num_batch_axes: int
) -> list[Any]:
    swapped = (*tables[num_tables:], *tables[:num_tables])
    options = {"num_tables": len(tables) - num_tables, "num_batch_axes": num_batch_axes}
    gradient = _gather_p.bind(ad.instantiate_zeros(cotangent), *swapped, **options)
    return [gradient] + [None] * len(tables)


def _batch(operands: Any, axes: Any, *, num_tables: int, num_batch_axes: int) -> tuple[Array, int]:
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    batched = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    )
    options = {"num_tables": num_tables, "num_batch_axes": num_batch_axes + 1}
    return _gather_p.bind(*batched, **options), 0


def _abstract(*avals: Any, **options: int) -> Any:
    return jax.jit(functools.partial(_apply_tables, **options)).trace(*avals).jaxpr.out_avals[0]


_gather_p = Primitive("egno_gather")
_gather_p.def_impl(jax.jit(_apply_tables, static_argnames=("num_tables", "num_batch_axes")))
_gather_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_gather_p] = _jvp
ad.primitive_transposes[_gather_p] = _transpose
batching.primitive_batchers[_gather_p] = _batch
mlir.register_lowering(_gather_p, mlir.lower_fun(_apply_tables, multiple_results=False))
