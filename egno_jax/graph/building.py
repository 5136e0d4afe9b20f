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
      positions: `[N, 3]`. In a periodic system edges have shifts, which fit these positions; the
        model predicts positions that continue from them, and are not wrapped into the cell.
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
    of_edges = {
        name: as_floating(f"edges.{name}", getattr(edges, name))
        for name in ("features", "shifts")
        if getattr(edges, name) is not None
    }
    if edges.shifts is not None:
        of_edges.setdefault("features", np.zeros((np.size(edges.senders), 0), np.float32))
    graph = jraph.GraphsTuple(
        nodes={name: as_floating(name, array) for name, array in nodes.items()},
        edges=of_edges or None,
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
    """Builds one graph from ASE Atoms.

        edges = radius_edges(atoms.positions, 5.0, atoms.cell, atoms.pbc)
        graph = from_atoms(atoms, edges)

    Args:
      atoms: with momenta.
      edges: of these atoms, from a function of this module; with shifts if the atoms are periodic.
      features: `[N, F]`; by default [|v_i|, Z_i / max_j Z_j], with v in Angstrom per femtosecond.
        The second depends on the heaviest element: pass custom features if molecules differ.

    Returns:
      A `GraphsTuple` with positions in Angstrom and velocities in Angstrom per femtosecond (ASE's
      unit of time is 10.18 fs).

    Raises:
      ValueError: if `atoms` are not ASE Atoms, have no momenta, or are periodic while the edges
        have no shifts, or if `validate` rejects the graph.
      ImportError: if ASE, of the extra `data`, is not installed.
    """
    if not isinstance(atoms, require("ase", "data").Atoms):
        raise ValueError(
            f"atoms: got {type(atoms).__name__}, expected ase.Atoms; for arrays use build"
        )
    if atoms.pbc.any() and edges.shifts is None:
        raise ValueError(
            f"edges.shifts: got None, expected shifts, as atoms.pbc is {atoms.pbc.tolist()}; use "
            "radius_edges(atoms.positions, cutoff, atoms.cell, atoms.pbc) or minimum_images, or "
            "unwrap the positions and set atoms.pbc = False"
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
