"""Graphs built from arrays and from ASE Atoms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jraph
import numpy as np

from egno_jax.checks import as_floating, type_name
from egno_jax.extras import require
from egno_jax.graph.batching import with_int32_indices
from egno_jax.graph.edges import Edges
from egno_jax.graph.validation import validate

if TYPE_CHECKING:
    import ase
    from numpy.typing import ArrayLike


def build(
    positions: ArrayLike, velocities: ArrayLike, features: ArrayLike, edges: Edges
) -> jraph.GraphsTuple:
    """Builds one graph from arrays and validates it.

    Integers and booleans become floating; float64 becomes float32 unless JAX's x64 mode is on.

    Velocities may have any unit, if it is the same in all graphs of a model: the model learns how
    far a velocity carries. Their unit matters where velocities meet times: `velocity_unit` of
    `egno_jax.rolling.refresh` is the ratio of the two; the baseline `linear` starts as if
    velocities were positions per `time_scale`; and a rollout can only continue with predicted
    velocities if targets and inputs have one unit.

    Args:
      positions: `[N, 3]`; in a periodic system, unwrapped.
      velocities: `[N, 3]`, in any unit that is the same for all graphs.
      features: `[N, F]`, invariant under rotation, for example the speed.
      edges: of this graph, from a function of this module or `Edges` of custom arrays.

    Raises:
      ValueError: if an argument is not an array of numbers, or `validate` rejects the graph.
    """
    if not isinstance(edges, Edges):
        raise ValueError(
            f"edges: got {type_name(edges)}, expected egno_jax.graph.Edges; make them with a "
            "function of this module, or with Edges(senders, receivers, features)"
        )
    nodes = {"positions": positions, "velocities": velocities, "features": features}
    edge_features = None
    if edges.features is not None:
        edge_features = {"features": as_floating(edges.features, "edges.features")}
    graph = jraph.GraphsTuple(
        nodes={name: as_floating(array, name) for name, array in nodes.items()},
        edges=edge_features,
        senders=np.asarray(edges.senders),
        receivers=np.asarray(edges.receivers),
        n_node=np.asarray([np.shape(positions)[0] if np.ndim(positions) else 0]),
        n_edge=np.asarray([np.size(edges.senders)]),
        globals=None,
    )
    validate(graph)
    return with_int32_indices(graph)


def from_atoms(
    atoms: ase.Atoms, edges: Edges, *, features: ArrayLike | None = None
) -> jraph.GraphsTuple:
    """Builds one graph from ASE Atoms, for example with `radius_edges(atoms.positions, 5.0)`.

    Args:
      atoms: with momenta and without periodic boundaries: unwrap the positions, then set
        `atoms.pbc = False`.
      edges: of these atoms, from a function of this module.
      features: `[N, F]`; by default [|v_i|, Z_i / max_j Z_j], with v in Angstrom per femtosecond.
        The second depends on the heaviest element: pass custom features if molecules differ.

    Returns:
      A `GraphsTuple` with positions in Angstrom and velocities in Angstrom per femtosecond (ASE's
      unit of time is 10.18 fs).

    Raises:
      ValueError: if `atoms` are not ASE Atoms, are periodic or have no momenta, or if `validate`
        rejects the graph.
      ImportError: if ASE, of the extra `data`, is not installed.
    """
    if not isinstance(atoms, require("ase", "data").Atoms):
        raise ValueError(
            f"atoms: got {type(atoms).__name__}, expected ase.Atoms; for arrays use build"
        )
    if atoms.pbc.any():
        raise ValueError(
            f"atoms.pbc: got {atoms.pbc.tolist()}, expected no periodic boundary, as the model has "
            "no periodic cell; unwrap the positions, then set atoms.pbc = False"
        )
    if not atoms.has("momenta"):
        raise ValueError(
            "atoms: got no momenta, expected velocities; use atoms.set_velocities, with zeros if "
            "they are at rest"
        )
    velocities = atoms.get_velocities() * require("ase.units", "data").fs
    if features is None:
        speeds = np.linalg.norm(velocities, axis=1)
        features = np.stack([speeds, atoms.numbers / max(atoms.numbers.max(), 1)], axis=1)
    return build(atoms.positions, velocities, features, edges)
