"""Graphs on the host: edges, building, batching, padding, and validation.

A graph is a `jraph.GraphsTuple` that holds one graph or a batch of several:

    nodes = {"positions": [N, 3], "velocities": [N, 3], "features": [N, F]},
    edges = {"features": [E, D]} or None,  senders, receivers: [E],  n_node, n_edge: [G].

A message from sender j to receiver i uses r_ij = x_i - x_j. In a periodic system edges also have
`"shifts": [E, 3]`, Cartesian, and r_ij = x_i - x_j + s_ij (`egno_jax.ops.displacements`).
What makes, changes or reads the values of a graph is NumPy and runs on the host; what only looks at
its structure, times or layout (`graph_ids`, `shifts_of`, `layout_of`, `as_times`,
`check_structure`) runs inside `jit` too.
"""

from egno_jax.graph.batching import (
    batch,
    graph_ids,
    ladder_size,
    pad,
    pad_nodes,
    pad_times,
    unbatch,
)
from egno_jax.graph.building import build, from_atoms
from egno_jax.graph.edges import (
    Edges,
    bond_edges,
    bond_kinds,
    bonds_within,
    cell_matrix,
    edge_vectors,
    fully_connected_edges,
    minimum_images,
    orbit_features,
    periodic_cell,
    radius_edges,
    shifts_of,
    squared_distances,
    with_features,
)
from egno_jax.graph.prepare import (
    is_for_accelerator,
    is_readable,
    layout_of,
    named_globals,
    prepare,
    prepared,
    stacked_layout,
    with_layout,
    without_layout,
)
from egno_jax.graph.validation import (
    as_times,
    check_alike,
    check_stacked_structure,
    check_structure,
    validate,
)

__all__ = [
    "Edges",
    "as_times",
    "batch",
    "bond_edges",
    "bond_kinds",
    "bonds_within",
    "build",
    "cell_matrix",
    "check_alike",
    "check_stacked_structure",
    "check_structure",
    "edge_vectors",
    "from_atoms",
    "fully_connected_edges",
    "graph_ids",
    "is_for_accelerator",
    "is_readable",
    "ladder_size",
    "layout_of",
    "minimum_images",
    "named_globals",
    "orbit_features",
    "pad",
    "pad_nodes",
    "pad_times",
    "periodic_cell",
    "prepare",
    "prepared",
    "radius_edges",
    "shifts_of",
    "squared_distances",
    "stacked_layout",
    "unbatch",
    "validate",
    "with_features",
    "with_layout",
    "without_layout",
]
