"""Recipes of graphs: how a graph is made of one state, saved with the model."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import LARGEST_NUMBER, as_array, is_positive
from egno_jax.config import check_field
from egno_jax.durations import FEMTOSECOND, FRAME

if TYPE_CHECKING:
    from jaxtyping import Float, Int

NODE_FEATURES = ("speed", "species", "charge", "scaled_number", "bond_kind")
"""Features of nodes that a recipe can request."""

EDGE_FEATURES = (
    "distance",
    "squared_distance",
    "charge_product",
    "numbers",
    "num_bonds",
    "stick",
    "orbit",
)
"""Features of edges that a recipe can request."""

_OF_BONDS = {"bond_kind", "num_bonds", "stick"}  # features that need bonds


class State(NamedTuple):
    """One frame of a system, in the units of the data.

    Attributes:
      positions: `[N, 3]`.
      velocities: `[N, 3]`, length per unit of time of the recipe; None if unknown.
      numbers: `[N]`, atomic numbers; None if unknown.
      charges: `[N]`; None if unknown.
      cell: `[3, 3]`, lattice vectors as rows; None without periodic boundaries.
      periodic: which lattice vectors are periodic.
    """

    positions: Float[np.ndarray, "N 3"]
    velocities: Float[np.ndarray, "N 3"] | None = None
    numbers: Int[np.ndarray, "N"] | None = None
    charges: Float[np.ndarray, "N"] | None = None
    cell: Float[np.ndarray, "3 3"] | None = None
    periodic: tuple[bool, bool, bool] = (False, False, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphRecipe:
    """How the graphs of a model are made of states; plain data, saved in its checkpoint.

    The graph of a state has the positions x, the velocities `velocity_time * v`, and features that
    `graph_of` computes.

    Attributes:
      length_unit: the unit of positions, `"angstrom"` or `"unknown"`.
      time_unit: the unit of times, `"fs"` or `"frame"`.
      spacing: time between two frames of the training data.
      times: `[P]`, the times that the model was trained on; they are its default.
      velocities: `"file"`: velocities stored with the data; `"difference"`: (x[t] - x[t-1]) /
        spacing, which needs the frame before the state; `"forward_difference"`: (x[t+1] - x[t]) /
        spacing, which needs the frame after it.
      velocity_time: velocities in a graph are lengths per this time.
      model_time: the model is called with times divided by this.
      edges: `"all"` pairs; the pairs within a `"radius"`; or those one or two `"bonds"` apart, see
        `egno_jax.graph.bond_edges`.
      cutoff: the radius, in the unit of positions; 0 without a radius.
      bonds: `[B, 2]`, pairs of nodes, from 0 to N - 1, each in at least one bond: the model is for
        this system of N nodes alone; empty without bonds.
      sticks: `[K, 2]`, the pairs with the edge feature `"stick"`.
      is_periodic: whether edges connect periodic images across the walls of the cell.
      node_features: of `"speed"` |v_i|, `"species"` (one column for each of `species`, 1 on nodes
        of it), `"charge"`, `"scaled_number"` Z_i / max_j Z_j, and `"bond_kind"` (one column for
        each of `egno_jax.graph.bond_kinds`).
      edge_features: of `"distance"` |r_ij|, `"squared_distance"` |r_ij|^2, `"charge_product"`,
        `"numbers"` (two columns, Z_i and Z_j), `"num_bonds"` 1 or 2, `"stick"` 1 or 0, and
        `"orbit"` (three columns, `egno_jax.graph.orbit_features`).
      numbers: `[N]`, the atomic numbers of the nodes, if they are the same in all states; states
        need none then. Empty: they differ or are unknown.
      species: the atomic numbers in the training data, increasing; empty if unknown.
      charge_unit: charges are divided by this.
      selection: which atoms of the data are nodes; empty: all. See `datasets.trajectories.read`.

    Raises:
      ValueError: a field is out of range; names it.
    """

    length_unit: str = "angstrom"
    time_unit: str = FEMTOSECOND
    spacing: float = 1.0
    times: tuple[float, ...] = ()
    velocities: str = "file"
    velocity_time: float = 1.0
    model_time: float = 1.0
    edges: str = "all"
    cutoff: float = 0.0
    bonds: tuple[tuple[int, int], ...] = ()
    sticks: tuple[tuple[int, int], ...] = ()
    is_periodic: bool = False
    node_features: tuple[str, ...] = ("speed",)
    edge_features: tuple[str, ...] = ("squared_distance",)
    numbers: tuple[int, ...] = ()
    species: tuple[int, ...] = ()
    charge_unit: float = 1.0
    selection: str = ""

    def __post_init__(self) -> None:
        choices = {
            "length_unit": ("angstrom", "unknown"),
            "time_unit": (FEMTOSECOND, FRAME),
            "velocities": ("file", "difference", "forward_difference"),
            "edges": ("all", "radius", "bonds"),
        }
        for name, known in choices.items():
            check_field(self, name, getattr(self, name) in known, f"one of {known}")
        for name in ("spacing", "velocity_time", "model_time", "charge_unit"):
            check_field(self, name, is_positive(getattr(self, name)), "a finite number above 0")
        wanted = "a finite number above 0 with edges='radius', else 0"
        is_radius = self.edges == "radius"
        is_right = is_positive(self.cutoff) if is_radius else self.cutoff == 0
        check_field(self, "cutoff", is_right, wanted)
        for name in ("spacing", "velocity_time", "model_time", "charge_unit", "cutoff"):
            object.__setattr__(self, name, float(getattr(self, name)))  # JSON knows no others
        is_right = isinstance(self.is_periodic, bool) and (is_radius or not self.is_periodic)
        check_field(self, "is_periodic", is_right, "True or False, and False without radius")
        for name in ("times", "numbers", "species", "node_features", "edge_features"):
            found = getattr(self, name)
            check_field(self, name, isinstance(found, list | tuple | np.ndarray), "a tuple")
            object.__setattr__(self, name, tuple(found))
        is_right = all(map(is_positive, self.times)) and _is_increasing(self.times)
        check_field(self, "times", is_right, "increasing finite numbers above 0")
        object.__setattr__(self, "times", tuple(map(float, self.times)))
        is_right = all(map(_is_atomic, self.species)) and _is_increasing(self.species)
        check_field(self, "species", is_right, "increasing atomic numbers")
        object.__setattr__(self, "species", tuple(map(int, self.species)))
        known = {"node_features": NODE_FEATURES, "edge_features": EDGE_FEATURES}
        for name, expected in known.items():
            found = getattr(self, name)
            is_right = all(each in expected for each in found) and len({*found}) == len(found)
            check_field(self, name, is_right, f"some of {expected}, each once")
        check_field(self, "node_features", self.node_features != (), "at least one")
        is_right = bool(self.species) or "species" not in self.node_features
        check_field(self, "species", is_right, "atomic numbers for the node feature 'species'")
        check_field(self, "selection", isinstance(self.selection, str), "a text")
        self._check_system()

    def _check_system(self) -> None:
        """Checks the fields that describe the nodes of one system."""
        check_field(self, "numbers", all(map(_is_atomic, self.numbers)), "atomic numbers")
        object.__setattr__(self, "numbers", tuple(map(int, self.numbers)))
        for name in ("bonds", "sticks"):
            check_field(self, name, _are_pairs(getattr(self, name)), "pairs of nodes [[i, j], ...]")
            object.__setattr__(self, name, tuple((int(i), int(j)) for i, j in getattr(self, name)))
        nodes = {node for bond in self.bonds for node in bond}
        is_right = bool(nodes) if self.edges == "bonds" else not nodes
        check_field(self, "bonds", is_right, "pairs of nodes with edges='bonds', else none")
        is_right = nodes == {*range(len(nodes))} and all(i != j for i, j in self.bonds)
        check_field(self, "bonds", is_right, "pairs of different nodes, each of 0 to N - 1 in one")
        is_right = {node for stick in self.sticks for node in stick} <= nodes
        check_field(self, "sticks", is_right, "pairs of the nodes of bonds")
        if nodes and self.numbers:
            is_right = len(self.numbers) == len(nodes)
            check_field(self, "numbers", is_right, f"{len(nodes)}, one for each node of bonds")
        for name in ("node_features", "edge_features"):
            is_right = bool(nodes) or not {*getattr(self, name)} & _OF_BONDS
            check_field(self, name, is_right, f"none of {sorted(_OF_BONDS)} without bonds")

    @property
    def num_nodes(self) -> int | None:
        """N, if the model is for one system of this many nodes; None if it is for any number."""
        if self.bonds:
            return 1 + max(map(max, self.bonds))
        return len(self.numbers) or None


def _are_pairs(value: Any) -> bool:
    array = np.asarray(value) if isinstance(value, list | tuple | np.ndarray) else np.zeros(())
    return array.shape == (0,) or (array.dtype.kind in "iu" and array.shape[1:] == (2,))


def _is_atomic(value: Any) -> bool:
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    return is_integer and 1 <= value <= LARGEST_NUMBER


def _is_increasing(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))


def from_record(record: Mapping[str, Any]) -> GraphRecipe:
    """Returns the recipe of `dataclasses.asdict`, as JSON holds it.

    Raises:
      ValueError: an entry is unknown or not valid; names it.
    """
    fields = [field.name for field in dataclasses.fields(GraphRecipe)]
    if not isinstance(record, Mapping) or not {*record} <= {*fields}:
        raise ValueError(
            f"recipe: got {record!r}, expected some of {fields}; was it written by a newer version "
            "of egno_jax?"
        )
    try:
        return GraphRecipe(**record)
    except TypeError as error:
        raise ValueError(f"recipe: got {record!r}, expected numbers and texts ({error})") from error


def graph_of(recipe: GraphRecipe, state: State) -> jraph.GraphsTuple:
    """Returns the graph of a state; all graphs of a model are made here.

    Args:
      recipe: the model's recipe.
      state: the state, with velocities, and with all that the features need.

    Raises:
      ValueError: something that the recipe needs is missing in the state, an atom is of a species
        that the model was not trained on, or no two nodes are within the cutoff.
    """
    state = checked_state(recipe, state)
    positions, count = state.positions, len(state.positions)
    if state.velocities is None:
        neighbour = "after" if recipe.velocities == "forward_difference" else "before"
        raise ValueError(
            "state.velocities: got None, expected [N, 3]; give a frame with velocities, or the "
            f"frame {neighbour} it for a finite difference"
        )
    velocities = state.velocities * recipe.velocity_time
    edges = _edges_of(recipe, state, positions)
    columns = {
        "speed": lambda: np.linalg.norm(velocities, axis=-1)[:, None],
        "species": lambda: _one_hot(recipe, state),
        "charge": lambda: _charges(recipe, state)[:, None],
        "scaled_number": lambda: (_numbers(state) / _numbers(state).max())[:, None],
        "bond_kind": lambda: _one_hot_kinds(recipe, count),
    }
    features = np.concatenate([columns[name]() for name in recipe.node_features], axis=1)
    edges = _with_edge_features(recipe, state, positions, velocities, edges)
    return graph_lib.build(positions, velocities, features, edges)


def checked_state(recipe: GraphRecipe, state: State) -> State:
    """Returns a state of arrays, with the atomic numbers of the recipe if it has none of its own.

    Raises:
      ValueError: an array has another shape or dtype, or the state is not of the recipe's system:
        another number of nodes, other atoms, or no periodic direction; or an atom is of a species
        that the model was not trained on.
    """
    if not isinstance(state, State):
        raise ValueError(f"state: got {type(state).__name__}, expected egno_jax.recipe.State")
    sizes: dict[str, int] = {}
    state = State(
        positions=_numbers_of("positions", state.positions, ("N", 3), sizes),
        velocities=_numbers_of("velocities", state.velocities, ("N", 3), sizes),
        numbers=_numbers_of("numbers", state.numbers, ("N",), sizes, "integer"),
        charges=_numbers_of("charges", state.charges, ("N",), sizes),
        cell=_numbers_of("cell", state.cell, (3, 3), sizes),
        periodic=state.periodic,
    )
    periodic = np.asarray(state.periodic)
    if periodic.shape != (3,) or periodic.dtype != bool:
        raise ValueError(f"state.periodic: got {state.periodic!r}, expected three bools")
    if recipe.is_periodic and state.cell is not None and not periodic.any():
        raise ValueError(
            "state.periodic: got no periodic direction, expected which lattice vectors are, as the "
            "model was trained on a periodic system; set it (of atoms: atoms.pbc)"
        )
    count = sizes["N"]
    if recipe.num_nodes not in (None, count):
        raise ValueError(
            f"state.positions: got {count} nodes, expected {recipe.num_nodes}, as the model is for "
            "one system of that many; choose the same nodes in the same order"
        )
    if recipe.species and state.numbers is not None:
        for atom in np.flatnonzero(~np.isin(state.numbers, recipe.species)):
            raise ValueError(
                f"state.numbers[{atom}]: got {state.numbers[atom]}, expected one of the atomic "
                f"numbers {[*recipe.species]} that the model was trained on"
            )
    if not recipe.numbers:
        return state
    if state.numbers is None:
        return state._replace(numbers=np.asarray(recipe.numbers))
    for atom in np.flatnonzero(np.asarray(state.numbers) != recipe.numbers):
        raise ValueError(
            f"state.numbers[{atom}]: got {state.numbers[atom]}, expected {recipe.numbers[atom]}, "
            "as the model is for one molecule; use its order of atoms"
        )
    return state


def _numbers_of(
    name: str, value: Any, shape: tuple[str | int, ...], sizes: dict[str, int], kind: str = ""
) -> np.ndarray | None:
    """Returns a field of a state as an array; floating, unless its kind is `integer`."""
    if value is None and name != "positions":
        return None
    array = as_array(f"state.{name}", value, kind or "integer or floating", shape, sizes)
    return array if kind else array.astype(np.float64)


def _edges_of(recipe: GraphRecipe, state: State, positions: np.ndarray) -> graph_lib.Edges:
    """Returns the edges of a state; across the walls of its cell they have shifts."""
    if recipe.edges == "all":
        return graph_lib.fully_connected_edges(len(positions))
    if recipe.edges == "bonds":
        return graph_lib.bond_edges(recipe.bonds, len(positions))
    if recipe.is_periodic and state.cell is None:
        raise ValueError(
            "state.cell: got None, expected lattice vectors [3, 3], as the model was trained on a "
            "periodic system"
        )
    cell = state.cell if recipe.is_periodic else None
    edges = graph_lib.radius_edges(positions, recipe.cutoff, cell, state.periodic)
    if not len(edges.senders):
        raise ValueError(
            f"cutoff: got {recipe.cutoff:g}, but no two of {len(positions)} nodes are that close; "
            "raise it, or check the unit of positions"
        )
    return edges


def _with_edge_features(
    recipe: GraphRecipe,
    state: State,
    positions: np.ndarray,
    velocities: np.ndarray,
    edges: graph_lib.Edges,
) -> graph_lib.Edges:
    # In float64, as samples of the data sets are made, and rounded by `build`.
    vectors = graph_lib.edge_vectors(positions, edges)
    squared = np.sum(vectors**2, axis=-1, keepdims=True)
    num_bonds = edges.features
    ends = np.stack([edges.receivers, edges.senders], axis=1)

    def products() -> np.ndarray:
        return np.prod(_charges(recipe, state)[ends], axis=1, keepdims=True)

    columns = {
        "distance": lambda: np.sqrt(squared),
        "squared_distance": lambda: squared,
        "charge_product": products,
        "numbers": lambda: _numbers(state)[ends],
        "num_bonds": lambda: num_bonds,
        "stick": lambda: _are_among(ends, recipe.sticks),
        "orbit": lambda: graph_lib.orbit_features(
            vectors, velocities[edges.receivers] - velocities[edges.senders], products()
        ),
    }
    features = [columns[name]() for name in recipe.edge_features]
    return graph_lib.with_features(edges._replace(features=None), *features)


def _are_among(ends: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Returns which edges `[E, 2]` connect one of the pairs, in either direction."""
    both = {*pairs, *((j, i) for i, j in pairs)}
    return np.array([(i, j) in both for i, j in ends.tolist()], bool)


def _one_hot(recipe: GraphRecipe, state: State) -> np.ndarray:
    return (_numbers(state)[:, None] == np.asarray(recipe.species)).astype(np.float64)


def _one_hot_kinds(recipe: GraphRecipe, num_nodes: int) -> np.ndarray:
    kinds = graph_lib.bond_kinds(recipe.bonds, num_nodes)
    return np.eye(kinds.max() + 1)[kinds]


def _numbers(state: State) -> np.ndarray:
    if state.numbers is None:
        raise ValueError(
            "state.numbers: got None, expected atomic numbers [N], which the model's features "
            "need; give them with the state, in an .npz file as `numbers`"
        )
    return np.asarray(state.numbers)


def _charges(recipe: GraphRecipe, state: State) -> np.ndarray:
    if state.charges is None:
        raise ValueError(
            "state.charges: got None, expected charges [N], which the model's features need; give "
            "them with the state, in an .npz file as `charges`"
        )
    return np.asarray(state.charges, np.float64) / recipe.charge_unit
