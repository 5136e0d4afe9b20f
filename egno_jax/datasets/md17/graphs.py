"""Edges of a molecule, the same over its trajectory, with the original's features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from egno_jax import graph
from egno_jax.datasets.md17.molecule_trajectory import Trajectory
from egno_jax.datasets.md17.molecules import MOLECULES

if TYPE_CHECKING:
    from jaxtyping import Int

BOND_CUTOFF = 1.6


def bonds(trajectory: Trajectory, *, cutoff: float = BOND_CUTOFF) -> Int[np.ndarray, "B 2"]:
    """Guesses the bonds of a molecule, `[B, 2]`: pairs closer than a cutoff in frame 0.

    Two hydrogen atoms are never bonded: at 500 K those of one carbon come closer than 1.6 Angstrom.

    Args:
      trajectory: the atoms that are nodes.
      cutoff: in Angstrom; 1.6 suits H, C, N, O and F, heavier atoms need more.

    Raises:
      ValueError: an atom has no bond; names it.
    """
    pairs = close_pairs(trajectory, cutoff=cutoff)
    alone = np.setdiff1d(np.arange(len(trajectory.numbers)), pairs)
    if alone.size:
        raise ValueError(
            f"cutoff: got {cutoff}, but of {len(trajectory.numbers)} atoms, atom {alone[0]} (Z = "
            f"{trajectory.numbers[alone[0]]}) has no other within {cutoff} Angstrom in frame 0; "
            "raise it, include hydrogen if it is left out, or use a radius graph"
        )
    return pairs


def close_pairs(trajectory: Trajectory, *, cutoff: float = BOND_CUTOFF) -> Int[np.ndarray, "B 2"]:
    """Returns the pairs of `bonds`, but accepts atoms without any."""
    pairs = graph.bonds_within(trajectory.positions[0], cutoff)
    return pairs[(trajectory.numbers[pairs] > 1).any(axis=1)]


def bond_graph(
    trajectory: Trajectory,
    *,
    cutoff: float = BOND_CUTOFF,
    sticks: Sequence[tuple[int, int]] | None = None,
) -> graph.Edges:
    """Builds the original's graph: bonds of frame 0, and pairs two bonds apart.

    Features `[E, 4]` of the edge from j to i are [Z_i, Z_j, 1 or 2 bonds, stick], where `stick` is
    1 on chosen pairs (Huang et al., ICLR 2022) and 0 on all others; `samples` appends |x_i - x_j|^2
    in each initial state. Edges are sorted by receiver, then sender. Needs vesin, of the extra
    `data`.

    Args:
      trajectory: the atoms that are nodes.
      cutoff: the length in Angstrom below which two atoms are bonded.
      sticks: `[K, 2]` pairs to flag; by default those of `default_sticks`.

    Raises:
      ValueError: an atom has no bond, or a stick is not a pair of atoms.
    """
    num_nodes, numbers = len(trajectory.numbers), trajectory.numbers
    found = bonds(trajectory, cutoff=cutoff)
    if sticks is None:
        sticks = default_sticks(trajectory, found)
    flags = np.zeros((num_nodes, num_nodes), bool)
    for pair in sticks:
        if len(pair) != 2 or not all(0 <= atom < num_nodes for atom in pair):
            raise ValueError(f"sticks: got {tuple(pair)}, expected two of {num_nodes} atoms")
        flags[pair[0], pair[1]] = flags[pair[1], pair[0]] = True
    edges = graph.bond_edges(found, num_nodes)
    receivers, senders = edges.receivers, edges.senders
    columns = [numbers[receivers], numbers[senders], edges.features, flags[receivers, senders]]
    return graph.with_features(edges._replace(features=None), *columns)


def default_sticks(trajectory: Trajectory, bonds: Int[np.ndarray, "B 2"]) -> list[tuple[int, int]]:
    """Chooses bonds of `[B, 2]` that share no atom, as in the original's hand-made lists.

    Those lists number atoms as in the original archives, so they are used for these alone. For any
    other trajectory, bonds are chosen in order if their atoms are still free.
    """
    name = (trajectory.provenance or {}).get("molecule")
    if trajectory.source == "MD17" and isinstance(name, str) and name in MOLECULES:
        heavy = {z: count for z, count in MOLECULES[name].counts.items() if z > 1}
        if Counter(trajectory.numbers.tolist()) == heavy:
            return list(MOLECULES[name].sticks)
    taken: set[int] = set()
    chosen = []
    for pair in map(tuple, bonds.tolist()):
        if taken.isdisjoint(pair):
            taken.update(pair)
            chosen.append(pair)
    return chosen
