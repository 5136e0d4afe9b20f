"""Trajectories of selected atoms, read from a universe and unwrapped; those of adenylate kinase."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from egno_jax.checks import LARGEST_LENGTH, error_text, is_length
from egno_jax.datasets.npz import PathLike, data_directory
from egno_jax.datasets.protein.simulation_files import load_universe, select_atoms
from egno_jax.extras import require

if TYPE_CHECKING:
    import MDAnalysis
    from jaxtyping import Float, Int

SELECTION = "backbone"
"""MDAnalysis' keyword for the atoms N, CA, C and O of amino acids."""


class Trajectory(NamedTuple):
    """Equally spaced frames of selected atoms, unwrapped.

    Attributes:
      positions: `[T, N, 3]` in Angstrom, float32 as MDAnalysis reads them.
      charges: `[N]`, partial charges in units of the elementary charge.
      bonds: `[B, 2]` between selected atoms, smaller index first; empty if the topology has none.
    """

    positions: Float[np.ndarray, "T N 3"]
    charges: Float[np.ndarray, "N"]
    bonds: Int[np.ndarray, "B 2"]


def read(
    universe: MDAnalysis.Universe, selection: str = SELECTION, *, charges: ArrayLike | None = None
) -> Trajectory:
    """Reads all frames of selected atoms, and unwraps them from a periodic box.

    If frames have a box, molecules are made whole in the first frame (`AtomGroup.unwrap`, which
    needs bonds; atoms without bonds stay in place, with a warning), and from frame to frame each
    atom goes to its nearest image (`transformations.NoJump`). No atom may move farther than half a
    box between two frames. Molecules stay in their images of the first frame, at which the universe
    is left, unchanged. Needs MDAnalysis, of the extra `data`.

    Args:
      universe: see `load_universe`, or any other.
      selection: the atoms that are nodes, in MDAnalysis' language.
      charges: `[N]`; those of the topology if None.

    Raises:
      ValueError: the selection is not valid or selects no atom, there are no charges or fewer than
        two frames, or a frame cannot be read, is not finite, or has lost its box.
    """
    group = select_atoms(universe, selection)
    charges = _charges(group, charges)
    name = universe.trajectory.filename or "the universe"
    total = len(universe.trajectory)
    if total < 2:
        raise ValueError(f"{name}: got {total} frames, expected at least 2")
    positions = np.empty((total, len(group), 3), np.float32)
    frame = -1
    try:
        for frame, found in enumerate(_frames(group)):
            positions[frame] = found
    except Exception as error:  # Damaged bytes make the readers raise anything.
        place = f"{name}: frame {frame + 1} of {total}"
        raise ValueError(f"{place}: cannot be read ({error_text(error)})") from error
    if frame + 1 < total:
        raise ValueError(f"{name}: got {frame + 1} frames, expected {total}")
    if not is_length(positions).all():
        frame, atom, axis = np.argwhere(~is_length(positions))[0]
        raise ValueError(
            f"{name}: coordinate {axis} of atom {atom} of {selection!r} in frame {frame}: got "
            f"{positions[frame, atom, axis]}, expected a finite number of at most "
            f"{LARGEST_LENGTH:g}"
        )
    universe.trajectory[0]
    return Trajectory(positions, charges, _bonds(group))


def _charges(group: MDAnalysis.AtomGroup, charges: ArrayLike | None) -> np.ndarray:
    if charges is None:
        if not hasattr(group, "charges"):
            raise ValueError(
                "charges: got None, and the topology has none; use one that does (PSF, PRMTOP, "
                f"TPR), or pass charges of the {len(group)} selected atoms, numpy.zeros("
                f"{len(group)}) if unknown"
            )
        charges = group.charges
    charges = np.array(charges, np.float64)
    if charges.shape != (len(group),) or not np.isfinite(charges).all():
        raise ValueError(
            f"charges: got {charges.dtype} {list(charges.shape)}, expected {len(group)} finite "
            "numbers, one for each selected atom"
        )
    return charges


def _frames(group: MDAnalysis.AtomGroup) -> Iterator[np.ndarray]:
    """Yields the positions of a group in each frame, unwrapped."""
    trajectory = group.universe.trajectory
    trajectory[0]
    if not _has_box(trajectory.ts):
        for step in trajectory:
            if _has_box(step):
                raise ValueError("got a periodic box, expected none, as in the first frame")
            yield group.positions
        return
    unjump = require("MDAnalysis.transformations", "data").NoJump()
    # The transformation is applied to copies of the selection: the universe stays unchanged.
    step = require("MDAnalysis.coordinates.timestep", "data").Timestep(len(group))
    for index, source in enumerate(trajectory):
        if not _has_box(source):
            raise ValueError("got no periodic box, expected one, as in the first frame")
        step.frame, step.dimensions = index, source.dimensions
        step.positions = group.positions if index else _whole(group)
        yield unjump(step).positions


def _has_box(step: MDAnalysis.coordinates.timestep.Timestep) -> bool:
    return step.dimensions is not None and bool((step.dimensions[:3] > 0).all())


def _whole(group: MDAnalysis.AtomGroup) -> np.ndarray:
    """Returns the positions of a group in the current frame, its molecules made whole."""
    _warn_of_loose(group)
    if not len(_all_bonds(group.universe)):
        return group.positions
    molecules = sum(group.fragments[1:], group.fragments[0])
    places = {atom: place for place, atom in enumerate(molecules.ix)}
    chosen = [places[atom] for atom in group.ix]
    return molecules.unwrap(compound="fragments", reference=None, inplace=False)[chosen]


def _warn_of_loose(group: MDAnalysis.AtomGroup) -> None:
    """Warns of atoms without bonds, whose molecules may be split by the box."""
    is_bound = np.zeros(len(group.universe.atoms), bool)
    is_bound[_all_bonds(group.universe)] = True
    loose = group.ix[~is_bound[group.ix]]
    if len(loose):
        warnings.warn(
            f"{len(loose)} of the {len(group)} selected atoms have no bond in the topology, the "
            f"first of them atom {loose[0]}: they are not unwrapped in the first frame, so their "
            "molecules must be whole there; use a topology with all bonds, or guess them, "
            'Universe(..., to_guess=("bonds",))',
            stacklevel=5,
        )


def _bonds(group: MDAnalysis.AtomGroup) -> np.ndarray:
    """Returns the bonds inside a group, as indices in it."""
    places = np.full(len(group.universe.atoms), -1)
    places[group.ix] = np.arange(len(group))
    bonds = places[_all_bonds(group.universe)]
    return np.unique(np.sort(bonds[(bonds >= 0).all(axis=1)]), axis=0).astype(np.int32)


def _all_bonds(universe: MDAnalysis.Universe) -> np.ndarray:
    """Returns the bonds of the topology `[B, 2]`, none if it does not say."""
    bonds = getattr(universe, "bonds", ())
    return bonds.indices if len(bonds) else np.zeros((0, 2), int)


def load_transition(selection: str = SELECTION) -> Trajectory:
    """Loads a transition of adenylate kinase from closed to open, 98 frames, 855 backbone atoms.

    A biased simulation (Beckstein et al., Journal of Molecular Biology 394, 2009) from
    MDAnalysisTests in the extra `protein`: nothing is downloaded. `selection` are the atoms that
    are nodes. The task differs from that of the equilibrium trajectory and has no published
    figures.
    """
    files = require("MDAnalysisTests.datafiles", "protein")
    return read(load_universe(files.PSF, files.DCD), selection)


def load_equilibrium(selection: str = SELECTION, *, data_dir: PathLike | None = None) -> Trajectory:
    """Loads adenylate kinase in equilibrium, the original's data: 4187 frames, 240 ps apart.

    MDAnalysisData, of the extra `protein`, downloads it once, 170 MB from figshare.com, and checks
    its SHA-256 (Seyler and Beckstein, doi:10.6084/m9.figshare.5108170.v1, 2017).

    Args:
      selection: the atoms that are nodes.
      data_dir: the folder of `adk_equilibrium/`; else `$EGNO_DATA_DIR`, else MDAnalysisData's own.

    Raises:
      ValueError: it cannot be downloaded, or is damaged.
    """
    fetch = require("MDAnalysisData.adk_equilibrium", "protein").fetch_adk_equilibrium
    folder = data_directory(data_dir)
    try:
        files = fetch(data_home=None if folder is None else str(folder))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"adk_equilibrium: could not be downloaded ({error}); put its two files into this "
            "folder of data_dir or EGNO_DATA_DIR"
        ) from error
    return read(load_universe(files.topology, files.trajectory), selection)
