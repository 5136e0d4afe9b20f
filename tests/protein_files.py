"""Small proteins, and the files that simulations write of them."""

from __future__ import annotations

import warnings

import numpy as np

RESIDUE = {
    "N": (-0.47, (0.0, 0.0, 0.0)),
    "HN": (0.31, (-0.5, 0.8, 0.0)),
    "CA": (0.07, (1.2, 0.8, 0.0)),
    "C": (0.51, (2.3, 0.1, 0.4)),
    "O": (-0.51, (2.4, -1.1, 0.3)),
}
BACKBONE = [0, 2, 3, 4]


def bonds(num_residues):
    """Bonds of all atoms; residues are joined from C to N."""
    inside = np.array([(0, 1), (0, 2), (2, 3), (3, 4)])
    found = [inside + 5 * residue for residue in range(num_residues)]
    found += [np.array([(5 * residue + 3, 5 * residue + 5)]) for residue in range(num_residues - 1)]
    return np.concatenate(found)


def charges(num_residues):
    return np.tile([charge for charge, _ in RESIDUE.values()], num_residues)


def motion(num_frames, num_residues, *, seed=0, drift=(0.0, 0.0, 0.0)):
    """A chain whose atoms swing, each in its own way, while it drifts: `[T, 5 R, 3]`."""
    rng = np.random.default_rng(seed)
    residues = np.array([offset for _, offset in RESIDUE.values()])
    along = np.arange(num_residues)[:, None, None] * np.array([3.3, 0.4, 0.6])
    structure = (along + residues).reshape(-1, 3)
    amplitudes, phases = rng.normal(scale=0.1, size=(2, *structure.shape))
    times = np.arange(num_frames)[:, None, None]
    swings = amplitudes * np.sin(0.3 * times + 50 * phases)
    return (structure + swings + times * np.asarray(drift)).astype(np.float32)


def backbone(positions):
    """Returns the backbone's atoms of `[..., 5 R, 3]`."""
    atoms = positions.reshape(*positions.shape[:-2], -1, 5, 3)[..., BACKBONE, :]
    return atoms.reshape(*positions.shape[:-2], -1, 3)


def write_psf(path, num_residues):
    names = [*RESIDUE] * num_residues
    lines = ["PSF", "", "       1 !NTITLE", " REMARKS a chain", "", f"{len(names):8d} !NATOM"]
    for atom, (name, charge) in enumerate(zip(names, charges(num_residues), strict=True)):
        residue = atom // 5 + 1
        lines.append(
            f"{atom + 1:8d} {'A':4s} {residue:<4d} {'ALA':4s} {name:4s} {1:4d} "
            f"{charge:14.6f}{12.0:14.4f}{0:8d}"
        )
    pairs = bonds(num_residues) + 1
    lines += ["", f"{len(pairs):8d} !NBOND: bonds"]
    for row in range(0, len(pairs), 4):
        lines.append("".join(f"{atom:8d}" for atom in pairs[row : row + 4].ravel()))
    for section in ("NTHETA: angles", "NPHI: dihedrals", "NIMPHI: impropers"):
        lines += ["", f"{0:8d} !{section}", ""]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_frames(path, positions, box=None):
    """Writes `[T, N, 3]` in the format of the suffix, with MDAnalysis."""
    import MDAnalysis
    from MDAnalysis.coordinates.memory import MemoryReader

    num_atoms = positions.shape[1]
    universe = MDAnalysis.Universe.empty(num_atoms, trajectory=True)
    universe.load_new(positions.copy(), format=MemoryReader, dimensions=box)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the format has room for, and these atoms lack
        with MDAnalysis.Writer(str(path), n_atoms=num_atoms) as writer:
            for _ in universe.trajectory:
                writer.write(universe.atoms)
    return path
