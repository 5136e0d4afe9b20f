"""The eight molecules of MD17: names, structures, and their archives."""

from __future__ import annotations

from typing import NamedTuple

from egno_jax.datasets.argument_checks import check_choice


class Molecule(NamedTuple):
    """One molecule of MD17.

    Attributes:
      smiles: its structure, for the generator. Malonaldehyde is the dialdehyde, as in MD17.
      counts: the number of atoms of each element, by atomic number.
      archive: the publisher's file name.
      num_frames: T, the frames of the archive.
      sticks: `[K, 2]`, bonds between heavy atoms that the original code flags, sharing no atom.
    """

    smiles: str
    counts: dict[int, int]
    archive: str
    num_frames: int
    sticks: tuple[tuple[int, int], ...]


MOLECULES = {
    "aspirin": Molecule(
        "CC(=O)Oc1ccccc1C(=O)O",
        {1: 8, 6: 9, 8: 4},
        "md17_aspirin.npz",
        211_762,
        ((0, 2), (1, 3), (5, 6), (7, 10), (11, 12)),
    ),
    "benzene": Molecule(
        "c1ccccc1", {1: 6, 6: 6}, "md17_benzene2017.npz", 627_983, ((0, 1), (2, 3), (4, 5))
    ),
    "ethanol": Molecule("CCO", {1: 6, 6: 2, 8: 1}, "md17_ethanol.npz", 555_092, ((0, 1),)),
    "malonaldehyde": Molecule(
        "O=CCC=O", {1: 4, 6: 3, 8: 2}, "md17_malonaldehyde.npz", 993_237, ((1, 2),)
    ),
    "naphthalene": Molecule(
        "c1ccc2ccccc2c1",
        {1: 8, 6: 10},
        "md17_naphthalene.npz",
        326_250,
        ((0, 1), (2, 3), (4, 9), (5, 6), (7, 8)),
    ),
    "salicylic": Molecule(
        "OC(=O)c1ccccc1O",
        {1: 6, 6: 7, 8: 3},
        "md17_salicylic.npz",
        320_231,
        ((0, 9), (1, 2), (4, 5), (6, 7)),
    ),
    "toluene": Molecule(
        "Cc1ccccc1", {1: 8, 6: 7}, "md17_toluene.npz", 442_790, ((2, 3), (5, 6), (0, 1))
    ),
    "uracil": Molecule(
        "O=c1cc[nH]c(=O)[nH]1",
        {1: 4, 6: 4, 7: 2, 8: 2},
        "md17_uracil.npz",
        133_770,
        ((0, 1), (3, 4)),
    ),
}


def find(name: str) -> Molecule:
    """Returns one of the eight molecules, or raises `ValueError`."""
    check_choice("molecule", name, MOLECULES)
    return MOLECULES[name]
