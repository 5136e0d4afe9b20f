"""The small interface that every data set shares: stacked samples, and batches taken from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import check_array, type_name

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class Batch(NamedTuple):
    """One batch of graphs and the motion that followed.

    P times, N nodes and E edges of all graphs of the batch together, G graphs.

    Attributes:
      graph: the states at time 0, as `egno_jax.apply` takes them.
      times: `[P]`, the times of the targets after the state, or `[P, G]` where graphs differ.
      positions: `[P, N, 3]`, the positions at those times.
      velocities: `[P, N, 3]`, the velocities at those times; None where they are not known.
      node_mask: `[N]`, False on nodes that only pad.
    """

    graph: jraph.GraphsTuple
    times: Float[Array, "P"] | Float[Array, "P G"]
    positions: Float[Array, "P N 3"]
    velocities: Float[Array, "P N 3"] | None
    node_mask: Bool[Array, "N"]


class Samples(NamedTuple):
    """S samples of one size, stacked along a leading axis.

    Graphs of different sizes are padded to one size first (`egno_jax.graph.pad`), `g` is then 2:
    the graph and its padding; otherwise `g` is 1.

    Attributes:
      graph: a `GraphsTuple` whose every leaf has a leading axis S: positions `[S, N, 3]`, senders
        `[S, E]` (counted within the sample), n_node `[S, g]`, and so on.
      times: `[P]`, the times of the targets after the state, the same for all samples.
      positions: `[S, P, N, 3]`, the positions at those times.
      velocities: `[S, P, N, 3]`, the velocities at those times; None where they are not known, and
        then a model can be trained on positions alone (`config.velocity_weight` 0).
      node_mask: `[S, N]`, False on nodes that only pad.
    """

    graph: jraph.GraphsTuple
    times: Float[Array, "P"]
    positions: Float[Array, "S P N 3"]
    velocities: Float[Array, "S P N 3"] | None
    node_mask: Bool[Array, "S N"]


def num_samples(samples: Samples) -> int:
    """Returns S, the number of samples."""
    return samples.positions.shape[0]


def concatenate(first: Samples, *others: Samples) -> Samples:
    """Joins data sets of one kind, sample after sample.

    Args:
      first: the samples to begin with.
      *others: the samples to follow, of the same sizes N, E, P and at the same times.

    Returns:
      All samples, as NumPy arrays, in the order given.

    Raises:
      ValueError: if the fields, their sizes or their times differ.
    """
    for other in others:
        if not np.array_equal(first.times, other.times):
            raise ValueError(f"times are {other.times}, expected {first.times} as in the first")
        shapes, expected = (_shapes_by_field(samples) for samples in (other, first))
        if shapes != expected:
            fields = [k for k in {**expected, **shapes} if expected.get(k) != shapes.get(k)]
            raise ValueError(
                "samples do not fit together: "
                + ", ".join(f"{k} is {shapes.get(k)}, expected {expected.get(k)}" for k in fields)
                + "; pad graphs of different sizes to one size first (egno_jax.graph.pad)"
            )
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), first, *others)
    return joined._replace(times=np.asarray(first.times))


def _shapes_by_field(samples: Samples) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each field without the sample axis, as `{".graph.senders": (E,)}`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(samples._replace(times=None))
    return {jax.tree_util.keystr(path): leaf.shape[1:] for path, leaf in leaves}


def take(samples: Samples, indices: Int[Array, "B"]) -> Batch:
    """Gathers samples and joins them into one batch; works inside `jit` with traced indices.

    Args:
      samples: the stacked samples.
      indices: `[B]`, which samples, each in `[0, S)`.

    Returns:
      A batch of B samples, nodes in the order of `indices`.
    """
    return _gather(samples, lambda leaf: jnp.take(leaf, indices, axis=0, mode="clip"), jnp)


def take_on_host(samples: Samples, indices: Int[np.ndarray, "B"]) -> Batch:
    """Does what `take` does with NumPy; of memory maps only the samples taken are read."""
    return _gather(samples, lambda leaf: leaf[indices], np)


def _gather(samples: Samples, rows: Callable[[Any], Any], xp: Any) -> Batch:
    """Joins the samples that `rows` takes from each leaf; `xp` is `numpy` or `jax.numpy`."""
    graph, targets, mask = jax.tree.map(
        rows, (samples.graph, (samples.positions, samples.velocities), samples.node_mask)
    )
    positions, velocities = jax.tree.map(
        lambda leaf: _join(xp.moveaxis(leaf, 1, 0), axis=1), targets
    )
    batch_size, nodes_per_sample = mask.shape
    offset = nodes_per_sample * xp.arange(batch_size, dtype=xp.int32)[:, None]
    graph = graph._replace(
        senders=graph.senders.astype(xp.int32) + offset,
        receivers=graph.receivers.astype(xp.int32) + offset,
    )
    return Batch(
        graph=jax.tree.map(_join, graph),
        times=samples.times,
        positions=positions,
        velocities=velocities,
        node_mask=_join(mask),
    )


def at_times(batch: Batch, indices: Int[Array, "Q B"]) -> Batch:
    """Keeps some of the times of a batch, in each of its samples others; works inside `jit`.

    Args:
      batch: B samples of one size at P times, as `take` gives them.
      indices: `[Q, B]`, which of the P times, increasing along Q.

    Returns:
      The same states with Q targets; its times are `[Q, G]`.
    """
    num_kept, num_samples = indices.shape
    graphs_per_sample = batch.graph.n_node.shape[0] // num_samples

    def keep(values: Float[Array, "P N 3"]) -> Float[Array, "Q N 3"]:
        by_sample = values.reshape(values.shape[0], num_samples, -1)
        kept = jnp.take_along_axis(by_sample, indices[..., None], axis=0)
        return kept.reshape(num_kept, -1, 3)

    times = jnp.repeat(jnp.asarray(batch.times)[indices], graphs_per_sample, axis=1)
    positions, velocities = jax.tree.map(keep, (batch.positions, batch.velocities))
    return batch._replace(times=times, positions=positions, velocities=velocities)


def validate(samples: Samples) -> None:
    """Checks samples in full, on the host; what training and evaluation call first.

    Args:
      samples: the samples.

    Raises:
      ValueError: they are none, a field has a wrong shape or dtype or does not go with the others,
        a graph is not valid (`egno_jax.graph.validate`), or a target of a real node is not finite;
        names the field.
    """
    check_structure(samples)
    total = num_samples(samples)
    if total == 0:
        raise ValueError("samples: got none, expected at least one")
    batch = take(samples, np.arange(total))
    graph_lib.validate(batch.graph, batch.times)
    for field in ("positions", "velocities"):
        targets = getattr(batch, field)
        if targets is None:
            continue
        is_finite = np.isfinite(targets).all(axis=(0, 2))
        if not is_finite[np.asarray(batch.node_mask)].all():
            raise ValueError(f"{field}: got NaN or infinite targets, expected finite ones")


def check_structure(samples: Samples) -> None:
    """Checks that the fields of samples go together: keys, shapes and dtypes, never values.

    Args:
      samples: what should be samples.

    Raises:
      ValueError: they are not; names the field, what came and what was expected.
    """
    if not isinstance(samples, Samples):
        raise ValueError(
            f"samples must be egno_jax.datasets.Samples, came {type_name(samples)}; "
            "egno_jax.datasets.stack makes them of graphs and targets"
        )
    graph_lib.check_stacked_structure(samples.graph)
    num_graphs, num_nodes, _ = samples.graph.nodes["positions"].shape
    sizes = {"S": num_graphs, "N": num_nodes}
    check_array("node_mask", samples.node_mask, "boolean", ("S", "N"), sizes)
    check_array("times", samples.times, "integer or floating", ("P",), sizes)
    for field in ("positions", "velocities"):
        targets = getattr(samples, field)
        if field == "positions" or targets is not None:
            check_array(field, targets, "floating", ("S", "P", "N", 3), sizes)


def _join(leaf: Array, axis: int = 0) -> Array:
    """Merges the sample axis at `axis` with the axis behind it."""
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])
