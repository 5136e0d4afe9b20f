"""Samples of different sizes, padded to a few sizes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import as_count
from egno_jax.datasets.base import (
    Samples,
    check_structure,
    concatenate,
    num_samples,
    with_own_times,
)

if TYPE_CHECKING:
    from jaxtyping import Int


class Buckets(NamedTuple):
    """Samples of different sizes, each padded to the size of its bucket, from `bucketed`.

    `egno_jax.training.fit` and `evaluate` accept them in place of `Samples`.

    Attributes:
      samples: the samples of each bucket, of one size; all buckets have the same times, or
        samples their own.
      origins: for each bucket, the indices of its samples in the input.
    """

    samples: tuple[Samples, ...]
    origins: tuple[Int[np.ndarray, "S"], ...]


def choose_buckets(sizes: Int[np.ndarray, "S 2"], num_buckets: int) -> list[Int[np.ndarray, "B"]]:
    """Divides graphs into buckets with the least padding.

    Graphs are sorted by nodes, then edges, and cut into consecutive buckets; dynamic programming
    finds the cut with the fewest padded rows, nodes and edges together. If graphs with more nodes
    have no fewer edges, no other division is better.

    Args:
      sizes: `[S, 2]`, nodes and edges of each graph.
      num_buckets: the largest number of buckets.

    Returns:
      The indices of the graphs in each bucket, smallest bucket first.

    Raises:
      ValueError: there are no graphs, or no buckets.
    """
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes):
        raise ValueError(f"sizes: got shape {sizes.shape}, expected [S, 2] with S >= 1")
    as_count("num_buckets", num_buckets)
    kinds, kind_of, counts = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    kind_of, num_kinds = kind_of.reshape(-1), len(kinds)
    # rows[i, j]: rows of a bucket of the kinds i to j, padded.
    rows = np.full((num_kinds, num_kinds), np.inf)
    for first in range(num_kinds):
        largest = np.maximum.accumulate(kinds[first:], axis=0).sum(axis=1)
        rows[first, first:] = largest * np.cumsum(counts[first:])
    # least[j]: rows of the kinds before j with k buckets; starts[k][j]: where the last one begins.
    least = np.full(num_kinds + 1, np.inf)
    least[0] = 0
    starts = []
    for _ in range(min(num_buckets, num_kinds)):
        total = least[:-1, None] + rows
        starts.append(total.argmin(axis=0))
        least = np.concatenate([[np.inf], total.min(axis=0)])
    buckets, end = [], num_kinds
    for start_of in reversed(starts):
        start = int(start_of[end - 1])
        buckets.append(np.flatnonzero((kind_of >= start) & (kind_of < end)))
        end = start
    return buckets[::-1]


def bucketed(parts: Sequence[Samples], num_buckets: int = 4) -> Buckets:
    """Pads samples of different sizes to a few sizes; returns the buckets, smallest first.

    Args:
      parts: samples without padding, of one size in each part, with as many times and the same
        features.
      num_buckets: the largest number of sizes; see `choose_buckets`.

    Raises:
      ValueError: there are no samples, a part is padded already, or parts do not match.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("parts: got none, expected at least one sample")
    for index, part in enumerate(parts):
        try:
            check_structure(part)
        except ValueError as error:
            raise ValueError(f"parts[{index}].{error}") from error
        if not num_samples(part):
            raise ValueError(f"parts[{index}]: got no samples, expected at least one")
        if not np.asarray(part.node_mask).all():
            raise ValueError(
                f"parts[{index}]: got padded samples, expected samples without padding"
            )
        if _arrays(part) != _arrays(parts[0]):
            raise ValueError(
                f"parts[{index}]: got arrays {_arrays(part)}, expected those of parts[0], "
                f"{_arrays(parts[0])}; give all parts the same features and targets"
            )
    counts = [num_samples(part) for part in parts]
    sizes = np.repeat([_size(part) for part in parts], counts, axis=0)
    owner = np.repeat(np.arange(len(parts)), counts)
    origins = choose_buckets(sizes, num_buckets)
    samples = []
    for origin in origins:
        members = [parts[index] for index in np.unique(owner[origin])]
        if len(sizes_of := {_size(part) for part in members}) > 1:
            members = [padded(part, *size_of_all(sizes_of)) for part in members]
        samples.append(concatenate(*members))
    if len({bucket.positions.shape[1] for bucket in samples}) > 1:
        numbers = [part.positions.shape[1] for part in parts]
        raise ValueError(f"times: got {numbers} of them in the parts, expected equally many")
    if any(not np.array_equal(bucket.times, samples[0].times) for bucket in samples[1:]):
        samples = [with_own_times(bucket) for bucket in samples]
    return Buckets(tuple(samples), tuple(origins))


def by_size(data: Samples | Buckets) -> tuple[Samples, ...]:
    """Returns the samples of each size."""
    return data.samples if isinstance(data, Buckets) else (data,)


def padding_share(data: Samples | Buckets) -> float:
    """Returns the share of padding nodes among all nodes, from 0 to 1."""
    masks = [np.asarray(samples.node_mask) for samples in by_size(data)]
    return 1.0 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)


def _arrays(samples: Samples) -> dict[str, list[int]]:
    """Returns the features of nodes and edges by name with their sizes, and whether velocities."""
    graph = samples.graph
    found = {f"nodes.{name}": [*np.shape(x)[2:]] for name, x in graph.nodes.items()}
    found |= {f"edges.{name}": [*np.shape(x)[2:]] for name, x in (graph.edges or {}).items()}
    return found if samples.velocities is None else {**found, "velocities": [3]}


def _size(samples: Samples) -> tuple[int, int]:
    return samples.positions.shape[2], samples.graph.senders.shape[1]


def size_of_all(sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
    """Returns the nodes and edges that graphs of these sizes can all be padded to."""
    num_edges = max(edges for _, edges in sizes)
    # Padding edges need a padding node.
    return max(nodes + (edges < num_edges) for nodes, edges in sizes), num_edges


def padded(samples: Samples, num_nodes: int, num_edges: int) -> Samples:
    """Pads each sample to this many nodes and edges, with one graph more."""
    num_graphs = samples.graph.n_node.shape[1] + 1
    sizes = {"num_nodes": num_nodes, "num_edges": num_edges, "num_graphs": num_graphs}

    def padded_graph(index: int) -> tuple[jraph.GraphsTuple, np.ndarray]:
        graph = jax.tree.map(lambda leaf: np.asarray(leaf)[index], samples.graph)
        return graph_lib.pad(graph, **sizes)

    targets = (samples.positions, samples.velocities)
    positions, velocities = jax.tree.map(lambda x: graph_lib.pad_nodes(x, num_nodes), targets)
    graphs = map(padded_graph, range(num_samples(samples)))
    graph, node_mask = jax.tree.map(lambda *leaves: np.stack(leaves), *graphs)
    return Samples(graph, samples.times, positions, velocities, node_mask)
