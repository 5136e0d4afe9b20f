"""Recipes of graphs: how a graph is made of one state, saved with the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import check_array
from egno_jax.config import check_field
from egno_jax.durations import FEMTOSECOND, FRAME

if TYPE_CHECKING:
    from jaxtyping import Float, Int

NODE_FEATURES = ("speed", "species", "charge")
"""Features of nodes that a recipe can request."""

EDGE_FEATURES = ("distance", "squared_distance", "charge_product")
"""Features of edges that a recipe can request."""


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
        spacing, which needs the frame before the state.
      velocity_time: velocities in a graph are lengths per this time.
      edges: `"all"` pairs, or the pairs within a `"radius"`.
      cutoff: the radius, in the unit of positions; 0 with `"all"`.
      is_periodic: whether edges connect periodic images across the walls of the cell.
      node_features: of `"speed"` |v_i|, `"species"` (one column for each of `species`, 1 on nodes
        of it) and `"charge"`.
      edge_features: of `"distance"` |r_ij|, `"squared_distance"` |r_ij|^2 and `"charge_product"`.
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
    edges: str = "all"
    cutoff: float = 0.0
    is_periodic: bool = False
    node_features: tuple[str, ...] = ("speed",)
    edge_features: tuple[str, ...] = ("squared_distance",)
    species: tuple[int, ...] = ()
    charge_unit: float = 1.0
    selection: str = ""

    def __post_init__(self) -> None:
        choices = {
            "length_unit": ("angstrom", "unknown"),
            "time_unit": (FEMTOSECOND, FRAME),
            "velocities": ("file", "difference"),
            "edges": ("all", "radius"),
        }
        for name, known in choices.items():
            check_field(self, name, getattr(self, name) in known, f"one of {known}")
        for name in ("spacing", "velocity_time", "charge_unit"):
            check_field(self, name, _is_positive(getattr(self, name)), "a finite number above 0")
        wanted = "a finite number above 0 with edges='radius', else 0"
        is_radius = self.edges == "radius"
        is_right = _is_positive(self.cutoff) if is_radius else self.cutoff == 0
        check_field(self, "cutoff", is_right, wanted)
        check_field(self, "is_periodic", not self.is_periodic or is_radius, "False with all pairs")
        for name, kind in (("times", float), ("species", int)):
            values = tuple(kind(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            is_right = all(map(_is_positive, values)) and list(values) == sorted({*values})
            check_field(self, name, is_right, "increasing finite numbers above 0")
        known = {"node_features": NODE_FEATURES, "edge_features": EDGE_FEATURES}
        for name, expected in known.items():
            object.__setattr__(self, name, tuple(getattr(self, name)))
            is_right = {*getattr(self, name)} <= {*expected}
            check_field(self, name, is_right, f"some of {expected}")
        check_field(self, "node_features", self.node_features != (), "at least one")
        check_field(self, "selection", isinstance(self.selection, str), "a text")


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


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
    count = len(state.positions)
    if state.velocities is None:
        raise ValueError(
            "state.velocities: got None, expected [N, 3]; give a frame with velocities, or the "
            "frame before it for a finite difference"
        )
    positions = np.asarray(state.positions, np.float64)
    check_array("state.positions", positions, "floating", ("N", 3), {"N": count})
    velocities = np.asarray(state.velocities, np.float64) * recipe.velocity_time
    edges = _edges_of(recipe, state, positions)
    columns = {
        "speed": lambda: np.linalg.norm(velocities, axis=-1)[:, None],
        "species": lambda: _one_hot(recipe, state),
        "charge": lambda: _charges(recipe, state)[:, None],
    }
    features = np.concatenate([columns[name]() for name in recipe.node_features], axis=1)
    edges = _with_edge_features(recipe, state, positions, edges)
    return graph_lib.build(positions, velocities, features, edges)


def _edges_of(recipe: GraphRecipe, state: State, positions: np.ndarray) -> graph_lib.Edges:
    """Returns the edges of a state; across the walls of its cell they have shifts."""
    if recipe.edges == "all":
        return graph_lib.fully_connected_edges(len(positions))
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
    recipe: GraphRecipe, state: State, positions: np.ndarray, edges: graph_lib.Edges
) -> graph_lib.Edges:
    squared = graph_lib.squared_distances(positions, edges)
    columns = {
        "distance": lambda: np.sqrt(squared),
        "squared_distance": lambda: squared,
        "charge_product": lambda: np.prod(
            _charges(recipe, state)[np.stack([edges.receivers, edges.senders])], axis=0
        ),
    }
    return graph_lib.with_features(edges, *(columns[name]() for name in recipe.edge_features))


def _one_hot(recipe: GraphRecipe, state: State) -> np.ndarray:
    if state.numbers is None:
        raise ValueError(
            "state.numbers: got None, expected atomic numbers [N], which the model's features need"
        )
    numbers, species = np.asarray(state.numbers), np.asarray(recipe.species)
    for atom in np.flatnonzero(~np.isin(numbers, species)):
        raise ValueError(
            f"state.numbers[{atom}]: got {numbers[atom]}, expected one of the atomic numbers "
            f"{[*recipe.species]} that the model was trained on"
        )
    return (numbers[:, None] == species).astype(np.float64)


def _charges(recipe: GraphRecipe, state: State) -> np.ndarray:
    if state.charges is None:
        raise ValueError(
            "state.charges: got None, expected charges [N], which the model's features need"
        )
    return np.asarray(state.charges, np.float64) / recipe.charge_unit
