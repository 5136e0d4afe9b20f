"""The sizes that are measured: the paper's four experiments, and curves along one size each.

`make` draws the inputs of a case from a seed, so every peer computes on the same numbers. Their
shapes and scales are plausible, their physics is not; no time depends on the values.

Source of the sizes: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML
2024, and its public code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jraph
import numpy as np

import egno_jax
from egno_jax import graph as graph_lib
from egno_jax.model import weight_shapes

if TYPE_CHECKING:
    from jaxtyping import Float

# Each joint's parent in the 31-joint skeleton of the CMU motion capture data: the pelvis, two legs
# of five joints, the spine up to the head, two arms of seven joints.
SKELETON = (
    *(-1, 0, 1, 2, 3, 4, 0, 6, 7, 8, 9),
    *(0, 11, 12, 13, 14, 15),
    *(13, 17, 18, 19, 20, 21, 20, 13, 24, 25, 26, 27, 28, 27),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and its batch.

    Attributes:
      name: the case's name on the command line and in the results.
      edges: how nodes are connected, a key of `EDGES`.
      num_graphs: number G of graphs in the batch.
      num_nodes: least and greatest number of nodes of a graph; graphs cycle through the range.
      num_times: P.
      width: C.
      num_layers: L.
      num_node_features: F.
      num_edge_features: D.
      num_neighbours: mean number of edges that a node receives; used only by `"contacts"`.
      num_modes: M.
      time_embed_dim: size of the time embedding.
      seed: of the inputs.
    """

    name: str
    edges: str
    num_graphs: int
    num_nodes: tuple[int, int]
    num_times: int
    width: int
    num_layers: int
    num_node_features: int
    num_edge_features: int
    num_neighbours: int = 0
    num_modes: int = 2
    time_embed_dim: int = 32
    seed: int = 0


class Problem(NamedTuple):
    """The inputs of a case, and the positions that its loss compares with; NumPy arrays.

    Attributes:
      case: the case.
      graph: the batch, not padded.
      times: `[P]`, 1 to P.
      positions: `[P, N, 3]`, the targets.
    """

    case: Case
    graph: jraph.GraphsTuple
    times: Float[np.ndarray, "P"]
    positions: Float[np.ndarray, "P N 3"]


# name, edges, G, nodes of a graph, P, C, L, F, D
_NBODY = Case("nbody-p5", "complete", 100, (5, 5), 5, 64, 4, 1, 2)
CASES = {
    case.name: case
    for case in (
        _NBODY,
        dataclasses.replace(_NBODY, name="nbody-p8", num_times=8),
        Case("mocap", "skeleton", 12, (31, 31), 5, 128, 6, 2, 2),
        Case("molecules", "bonds", 100, (9, 13), 8, 64, 5, 2, 5),
        Case("protein", "contacts", 8, (855, 855), 4, 128, 4, 2, 2, num_neighbours=20),
    )
}

# One small case, for smoke runs and tests.
TINY = dataclasses.replace(
    _NBODY, name="tiny", num_graphs=4, num_nodes=(4, 5), width=16, num_layers=1
)

_CONTACTS = Case("contacts", "contacts", 1, (500, 500), 4, 64, 2, 1, 2, num_neighbours=16)


class Curve(NamedTuple):
    """Cases that differ in one size.

    Attributes:
      size: the size, with its letter.
      values: the sizes.
      cases: a case for each.
      limit: the greatest log-log exponent of time over size that the goals allow, or None.
    """

    size: str
    values: tuple[int, ...]
    cases: tuple[Case, ...]
    limit: float | None


def _curve(
    base: Case,
    field: str,
    values: tuple[int, ...],
    size: str,
    *,
    limit: float | None = None,
) -> Curve:
    def case(value: int) -> Case:
        changed = (value, value) if field == "num_nodes" else value
        name = f"{field.removeprefix('num_')}-{value}"
        return dataclasses.replace(base, name=name, **{field: changed})

    return Curve(size, values, tuple(map(case, values)), limit)


_NODES = "N, nodes of one graph with 16 neighbours each"
_NEIGHBOURS = "E / N, neighbours of each of 500 nodes"
_LONG = dataclasses.replace(_NBODY, num_times=64)
CURVES = {
    "nodes": _curve(_CONTACTS, "num_nodes", (125, 300, 700, 1500), _NODES, limit=1.05),
    "edges": _curve(_CONTACTS, "num_neighbours", (4, 12, 28, 64), _NEIGHBOURS, limit=1.05),
    "times": _curve(_NBODY, "num_times", (4, 12, 28, 64), "P, times", limit=1.05),
    "batch": _curve(_NBODY, "num_graphs", (25, 70, 160, 400), "G, graphs of 5 nodes", limit=1.05),
    "width": _curve(_NBODY, "width", (16, 48, 96, 192), "C, width"),
    "modes": _curve(_LONG, "num_modes", (2, 8, 16, 32), "M, modes at P = 64"),
}


def one_graph(case: Case) -> Case:
    """Returns the case with only one graph, the smallest, to warm up a process."""
    least = case.num_nodes[0]
    return dataclasses.replace(case, num_graphs=1, num_nodes=(least, least))


def make(case: Case) -> Problem:
    """Draws the inputs of a case; the same seed gives the same numbers."""
    rng = np.random.default_rng(case.seed)
    least, most = case.num_nodes
    sizes = least + np.arange(case.num_graphs) % (most - least + 1)
    graph = graph_lib.batch([_one_graph(case, int(size), rng) for size in sizes])
    times = np.arange(1, case.num_times + 1, dtype=np.float32)
    start, velocity = graph.nodes["positions"], graph.nodes["velocities"]
    targets = start + 0.1 * times[:, None, None] * velocity
    targets = targets + 0.1 * rng.normal(size=targets.shape)
    return Problem(case, graph, times, targets.astype(np.float32))


def _one_graph(case: Case, num_nodes: int, rng: np.random.Generator) -> jraph.GraphsTuple:
    """Draws one graph, with nodes about one unit of length apart."""
    positions = rng.normal(size=(num_nodes, 3)) * num_nodes ** (1 / 3)
    velocities = rng.normal(size=(num_nodes, 3))
    edges = EDGES[case.edges](case, positions, rng)
    speed = np.linalg.norm(velocities, axis=1, keepdims=True)
    others = rng.normal(size=(num_nodes, case.num_node_features - 1))
    known = 1 + (0 if edges.features is None else edges.features.shape[1])
    drawn = rng.normal(size=(len(edges.senders), case.num_edge_features - known))
    edges = graph_lib.with_features(edges, drawn, graph_lib.squared_distances(positions, edges))
    arrays = (positions, velocities, np.concatenate([speed, others], axis=1))
    edges = edges._replace(features=np.asarray(edges.features, np.float32))
    return graph_lib.build(*(array.astype(np.float32) for array in arrays), edges)


def _skeleton(case: Case, positions: np.ndarray, rng: np.random.Generator) -> graph_lib.Edges:
    """Connects the joints of a body that are one or two bones apart."""
    bonds = [(parent, joint) for joint, parent in enumerate(SKELETON) if parent >= 0]
    return graph_lib.bond_edges(bonds, len(positions))


def _bonds(case: Case, positions: np.ndarray, rng: np.random.Generator) -> graph_lib.Edges:
    """Connects the atoms of a ring of six with side chains, one and two bonds apart."""
    num_atoms = len(positions)
    ring = [(atom, (atom + 1) % 6) for atom in range(6)]
    chains = [(int(rng.integers(max(0, atom - 5), atom)), atom) for atom in range(6, num_atoms)]
    return graph_lib.bond_edges(ring + chains, num_atoms)


def _contacts(case: Case, positions: np.ndarray, rng: np.random.Generator) -> graph_lib.Edges:
    """Connects the closest pairs, so that each node has `num_neighbours` on average."""
    num_nodes = len(positions)
    first, second = np.triu_indices(num_nodes, k=1)
    distances = np.sum((positions[first] - positions[second]) ** 2, axis=-1)
    num_pairs = min(num_nodes * case.num_neighbours // 2, len(distances))
    nearest = np.argpartition(distances, num_pairs - 1)[:num_pairs]
    pairs = np.stack([first[nearest], second[nearest]])
    receivers, senders = np.concatenate([pairs, pairs[::-1]], axis=1)
    order = np.lexsort((senders, receivers))
    return graph_lib.Edges(senders[order].astype(np.int32), receivers[order].astype(np.int32))


EDGES: dict[str, Callable[[Case, np.ndarray, np.random.Generator], graph_lib.Edges]] = {
    "complete": lambda case, positions, rng: graph_lib.fully_connected_edges(len(positions)),
    "skeleton": _skeleton,
    "bonds": _bonds,
    "contacts": _contacts,
}


# Files, to hand a problem to a worker, which may be another interpreter.


def save(problem: Problem, path: Path) -> None:
    """Writes a problem as one `.npz` file that needs nothing but NumPy to be read."""
    graph = problem.graph
    np.savez(
        path,
        **{name: getattr(graph, name) for name in ("senders", "receivers", "n_node", "n_edge")},
        **graph.nodes,
        edge_features=graph.edges["features"],
        times=problem.times,
        targets=problem.positions,
        **{f"case_{key}": value for key, value in dataclasses.asdict(problem.case).items()},
    )


def load(path: Path) -> Problem:
    """Reads what `save` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    graph = jraph.GraphsTuple(
        nodes={name: arrays[name] for name in ("positions", "velocities", "features")},
        edges={"features": arrays["edge_features"]},
        globals=None,
        **{name: arrays[name] for name in ("senders", "receivers", "n_node", "n_edge")},
    )
    fields = {
        field.name: arrays[f"case_{field.name}"].tolist() for field in dataclasses.fields(Case)
    }
    case = Case(**{**fields, "num_nodes": tuple(fields["num_nodes"])})
    return Problem(case, graph, arrays["times"], arrays["targets"])


def num_nodes_and_edges(problem: Problem) -> tuple[int, int]:
    """Returns N and E of the whole batch."""
    return len(problem.graph.nodes["positions"]), len(problem.graph.senders)


def config_of(case: Case, **changes: Any) -> egno_jax.EGNOConfig:
    """Returns the configuration of a case's model, with some fields changed."""
    sizes = {
        "num_layers": case.num_layers,
        "hidden_dim": case.width,
        "num_modes": case.num_modes,
        "time_embed_dim": case.time_embed_dim,
    }
    return egno_jax.EGNOConfig(**{**sizes, **changes})


def num_weights(case: Case) -> int:
    """Returns the number of real parameters of our model of a case."""
    shapes = weight_shapes(config_of(case), case.num_node_features, case.num_edge_features)
    return sum(math.prod(shape) for shape in shapes.values())
