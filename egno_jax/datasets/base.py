"""The interface that all data sets share: stacked samples, and batches taken from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from numpy.typing import ArrayLike

from egno_jax import graph as graph_lib
from egno_jax.checks import as_jax_sees, check_array, shape_text, type_name

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Batch(NamedTuple):
    """One batch of G graphs with N nodes in total, and their targets at P times.

    Attributes:
      graph: the initial states, an input of `egno_jax.apply`.
      times: `[P]`, from the initial state to the targets, or `[P, G]` where graphs differ.
      positions, velocities: targets `[P, N, 3]`; velocities are None if unknown.
      node_mask: `[N]`, False on padding nodes.
    """

    graph: jraph.GraphsTuple
    times: Float[Array, "P"] | Float[Array, "P G"]
    positions: Float[Array, "P N 3"]
    velocities: Float[Array, "P N 3"] | None
    node_mask: Bool[Array, "N"]


class Samples(NamedTuple):
    """S samples of one size, stacked along a leading axis.

    Attributes:
      graph: leaves have a leading axis S: positions `[S, N, 3]`, senders `[S, E]` (counted within
        the sample), n_node `[S, g]`; g is 1, or 2 after `egno_jax.graph.pad`.
      times: `[P]`, from the initial state to the targets, or `[S, P]` where samples differ.
      positions: `[S, P, N, 3]`, targets.
      velocities: likewise; None if unknown, and then a model can be trained on positions alone.
      node_mask: `[S, N]`, False on padding nodes.
    """

    graph: jraph.GraphsTuple
    times: Float[Array, "P"] | Float[Array, "S P"]
    positions: Float[Array, "S P N 3"]
    velocities: Float[Array, "S P N 3"] | None
    node_mask: Bool[Array, "S N"]


def num_samples(samples: Samples) -> int:
    """Returns S, the number of samples."""
    return samples.positions.shape[0]


def concatenate(first: Samples, *others: Samples) -> Samples:
    """Joins samples of the same sizes N, E, P, as NumPy arrays in their order.

    Times are `[P]` if they are the same for all samples, and `[S, P]` otherwise.

    Raises:
      ValueError: the fields or their sizes differ.
    """
    for other in others:
        shapes, expected = (_shapes_by_field(samples) for samples in (other, first))
        if shapes != expected:
            fields = [k for k in {**expected, **shapes} if expected.get(k) != shapes.get(k)]
            raise ValueError(
                ", ".join(f"{k}: got {shapes.get(k)}, expected {expected.get(k)}" for k in fields)
                + "; pad graphs of different sizes to one size first (egno_jax.graph.pad)"
            )
    parts = [first, *others]
    is_one_grid = all(np.array_equal(part.times, first.times) for part in parts)
    if np.ndim(first.times) == 1 and is_one_grid:
        times, parts = np.asarray(first.times), [part._replace(times=None) for part in parts]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)._replace(times=times)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *map(with_own_times, parts))


def with_own_times(samples: Samples) -> Samples:
    """Returns samples whose times are `[S, P]`."""
    shape = num_samples(samples), np.shape(samples.times)[-1]
    return samples._replace(times=np.broadcast_to(samples.times, shape))


def _shapes_by_field(samples: Samples) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each field without the sample axis, as `{".graph.senders": (E,)}`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(with_own_times(samples))
    return {jax.tree_util.keystr(path): leaf.shape[1:] for path, leaf in leaves}


def with_vectors(samples: Samples, vectors: Float[ArrayLike, "*S *N K 3"]) -> Samples:
    """Adds external directions, `graph.nodes["vectors"]`, to samples; see `egno_jax.apply`.

    Args:
      samples: S samples.
      vectors: `[K, 3]`, the same for all nodes; `[S, 1, K, 3]`, one set for each sample; or
        `[S, N, K, 3]`.

    Raises:
      ValueError: the vectors do not have one of these shapes.
    """
    positions = samples.graph.nodes["positions"]
    vectors = np.asarray(vectors, positions.dtype)
    shape = (*positions.shape[:2], *vectors.shape[-2:])
    try:
        arranged = np.broadcast_to(vectors, shape)
    except ValueError:
        arranged = None
    if vectors.ndim < 2 or shape[-1] != 3 or arranged is None:
        sizes = " and ".join(f"{letter} = {n}" for letter, n in zip("SN", shape, strict=False))
        raise ValueError(
            f"vectors: got shape {list(vectors.shape)}, expected [K, 3], [S, 1, K, 3] or "
            f"[S, N, K, 3] with {sizes}"
        )
    nodes = {**samples.graph.nodes, "vectors": np.ascontiguousarray(arranged)}
    return samples._replace(graph=samples.graph._replace(nodes=nodes))


def take(samples: Samples, indices: Int[Array, "B"], xp: Any = jnp) -> Batch:
    """Gathers samples into one batch; works inside `jit` with traced indices.

    Args:
      samples: the stacked samples.
      indices: `[B]`, each in `[0, S)`; nodes of the batch are in this order.
      xp: `jax.numpy`, or `numpy` to gather on the host.

    Raises:
      ValueError: outside `jit`, indices are not integers `[B]` from 0 to S - 1.
    """
    if not isinstance(indices, jax.core.Tracer):
        indices = _checked_indices(samples, indices)

    def rows(leaf: Any) -> Any:
        if xp is np:  # of a memory map, indexing reads no more than the rows
            return np.asanyarray(leaf)[indices]
        return jnp.take(leaf, indices, 0, mode="clip")

    graph, targets, mask = jax.tree.map(
        rows, (samples.graph, (samples.positions, samples.velocities), samples.node_mask)
    )
    positions, velocities = jax.tree.map(
        lambda leaf: _join(xp.moveaxis(leaf, 1, 0), axis=1), targets
    )
    batch_size, nodes_per_sample = mask.shape
    offset = nodes_per_sample * xp.arange(batch_size, dtype=xp.int32)[:, None]
    layout, graph = graph_lib.layout_of(graph), graph_lib.without_layout(graph)
    graph = graph._replace(
        senders=graph.senders.astype(xp.int32) + offset,
        receivers=graph.receivers.astype(xp.int32) + offset,
    )
    graph = jax.tree.map(_join, graph)
    if layout is not None:
        graph = graph_lib.with_layout(graph, layout.joined(nodes_per_sample))
    times = samples.times
    if np.ndim(times) == 2:
        times = xp.repeat(rows(times).T, samples.graph.n_node.shape[1], axis=1)
    return Batch(
        graph=graph,
        times=times,
        positions=positions,
        velocities=velocities,
        node_mask=_join(mask),
    )


def _checked_indices(samples: Samples, indices: Any) -> Int[np.ndarray, "B"]:
    indices, total = np.asarray(indices), num_samples(samples)
    check_array("indices", indices, "integer", ("B",), {})
    for wrong in indices[(indices < 0) | (indices >= total)]:
        raise ValueError(f"indices: got {wrong}, expected from 0 to {total - 1}; count from 0")
    return indices


def prepared(samples: Samples) -> Samples:
    """Returns samples whose batches have the layout of `egno_jax.graph.prepare`, if there is one.

    Memory maps are left as they are, because the indices of all samples would be read.
    """
    if isinstance(samples.graph.senders, np.memmap):
        return samples
    layout = graph_lib.stacked_layout(samples.graph, samples.node_mask)
    if layout is None:
        return samples
    return samples._replace(graph=graph_lib.with_layout(samples.graph, layout))


def at_times(batch: Batch, indices: Int[Array, "Q B"]) -> Batch:
    """Selects times of a batch, different ones in each sample; works inside `jit`.

    Args:
      batch: B samples of one size at P times, from `take`.
      indices: `[Q, B]`, which of the P times, increasing along Q.

    Returns:
      The same initial states with Q targets; times are `[Q, G]`.

    Raises:
      ValueError: indices are not integers `[Q, B]`, or the batch is not of B samples of one size.
    """
    indices = jnp.asarray(indices)
    check_array("indices", indices, "integer", ("Q", "B"), {})
    for size in (len(batch.graph.n_node), len(batch.node_mask)):
        if not indices.size or size % indices.shape[1]:
            raise ValueError(
                f"indices: got {shape_text(indices)}, expected [Q, B] for the B samples of a batch "
                f"of {len(batch.graph.n_node)} graphs and {len(batch.node_mask)} nodes"
            )
    num_kept, num_samples = indices.shape
    graphs_per_sample = batch.graph.n_node.shape[0] // num_samples

    def keep(values: Float[Array, "P N 3"]) -> Float[Array, "Q N 3"]:
        by_sample = values.reshape(values.shape[0], num_samples, -1)
        kept = jnp.take_along_axis(by_sample, indices[..., None], axis=0)
        return kept.reshape(num_kept, -1, 3)

    indices_of_graphs = jnp.repeat(indices, graphs_per_sample, axis=1)
    times = jnp.asarray(batch.times)
    times = jnp.take_along_axis(times.reshape(len(times), -1), indices_of_graphs, axis=0)
    positions, velocities = jax.tree.map(keep, (batch.positions, batch.velocities))
    return batch._replace(times=times, positions=positions, velocities=velocities)


def validate(samples: Samples) -> None:
    """Checks samples in full, on the host; training and evaluation call it first.

    Raises:
      ValueError: there are no samples, one has no real node, a shape or dtype is wrong, a graph is
        not valid (`egno_jax.graph.validate`), or a target of a real node is not finite; names the
        field.
    """
    check_structure(samples)
    total = num_samples(samples)
    if total == 0:
        raise ValueError("samples: got none, expected at least one")
    if not (is_real := np.asarray(samples.node_mask).any(axis=1)).all():
        raise ValueError(
            f"node_mask: got no real node in sample {np.flatnonzero(~is_real)[0]}, expected one or "
            "more in each; leave such samples out"
        )
    batch = take(samples, np.arange(total), np)
    graph_lib.validate(batch.graph, batch.times)
    for field in ("positions", "velocities"):
        targets = getattr(batch, field)
        if targets is None:
            continue
        if not np.isfinite(as_jax_sees(targets)).all(axis=(0, 2))[batch.node_mask].all():
            raise ValueError(f"{field}: got NaN or infinite targets, expected finite ones")


def check_structure(samples: Samples) -> None:
    """Checks keys, shapes and dtypes of samples, not their values.

    Raises `ValueError` with the name of a field that does not match.
    """
    if not isinstance(samples, Samples):
        raise ValueError(
            f"samples: got {type_name(samples)}, expected egno_jax.datasets.Samples; "
            "egno_jax.datasets.stack makes them of graphs and targets"
        )
    graph_lib.check_stacked_structure(samples.graph)
    num_graphs, num_nodes, _ = samples.graph.nodes["positions"].shape
    sizes = {"S": num_graphs, "N": num_nodes}
    check_array("node_mask", samples.node_mask, "boolean", ("S", "N"), sizes)
    shape = ("P",) if np.ndim(samples.times) == 1 else ("S", "P")
    check_array("times", samples.times, "integer or floating", shape, sizes)
    for field in ("positions", "velocities"):
        targets = getattr(samples, field)
        if field == "positions" or targets is not None:
            check_array(field, targets, "floating", ("S", "P", "N", 3), sizes)


def _join(leaf: Array, axis: int = 0) -> Array:
    """Merges the sample axis at `axis` with the next axis."""
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])
