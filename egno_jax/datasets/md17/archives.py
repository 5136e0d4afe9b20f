"""Downloads the original MD17 archives once, and verifies them."""

from __future__ import annotations

import hashlib
import pathlib
import re
import zipfile
from typing import Literal

from egno_jax.datasets import cache, npz
from egno_jax.datasets.argument_checks import check_choice
from egno_jax.datasets.md17.molecule_trajectory import (
    ORIGINAL,
    ORIGINAL_FIELDS,
    Trajectory,
    original_molecule,
    read,
)
from egno_jax.datasets.md17.molecules import find
from egno_jax.datasets.npz import PathLike
from egno_jax.extras import require
from egno_jax.files import write_text

BASE_URL = "http://www.quantum-machine.org/gdml/data/npz/"


def data_directory(data_dir: PathLike | None = None) -> pathlib.Path:
    """Returns the data folder: `data_dir`, else `$EGNO_DATA_DIR`, else the cache."""
    return npz.data_directory(data_dir) or cache.default_directory()


def path_of(
    molecule: str, *, archive: Literal["md", "md17"] = "md", data_dir: PathLike | None = None
) -> pathlib.Path:
    """Returns the path of a trajectory.

    Args:
      molecule: its name; for "md17" one of `MOLECULES`, for "md" any.
      archive: "md": `md/<molecule>.npz`, your own; "md17": `md17/<archive>`, the original.
      data_dir: the folder of both, see `data_directory`.

    Raises:
      ValueError: the archive is unknown, or the name is not a file name.
    """
    check_choice("archive", archive, ("md", "md17"))
    if archive == "md17":
        return data_directory(data_dir) / "md17" / find(molecule).archive
    if not re.fullmatch(r"[\w+-][\w.+-]*", molecule):
        raise ValueError(
            f"molecule: got {molecule!r}, expected a name of letters, digits and _ . + -"
        )
    return data_directory(data_dir) / "md" / f"{molecule}.npz"


def download(
    molecule: str,
    *,
    data_dir: PathLike | None = None,
    base_url: str = BASE_URL,
    known_hash: str | None = None,
    progress: bool = False,
) -> pathlib.Path:
    """Downloads an original archive (200 to 400 MB) unless it exists, and verifies it.

    The publisher gives no checksums. The first download is checked for the fields, atoms and number
    of frames of the archive, and its SHA-256 is written next to it, to `<archive>.sha256`; from
    then on the file must have this checksum. Delete both to start again. Needs the extra `data`.

    Args:
      molecule: one of `MOLECULES`.
      data_dir: the folder of `md17/`, see `data_directory`.
      base_url: the folder at the publisher, or at a mirror.
      known_hash: the SHA-256 in hexadecimal, if you know it.
      progress: whether to draw a progress bar (needs tqdm).

    Raises:
      ValueError: the file is not the archive, or has another checksum than the first download.
      OSError: the publisher cannot be reached or has no such file.
    """
    pooch = require("pooch", "data")
    path = path_of(molecule, archive="md17", data_dir=data_dir)
    record = path.with_name(f"{path.name}.sha256")
    expected = known_hash or _read_record(record)
    is_new = not path.exists()
    if not is_new and expected and (found := _sha256(path)) != expected.lower():
        raise ValueError(
            f"{path}: got SHA-256 {found}, expected {expected}; it has changed since the download, "
            "delete it to download it again"
        )
    if is_new:
        url = f"{base_url.rstrip('/')}/{path.name}"
        known = f"sha256:{expected}" if expected else None
        pooch.retrieve(url, known, path.name, str(path.parent), progressbar=progress)
    if not record.exists():
        try:
            check_original(path, read(path), molecule)
        except ValueError:
            if is_new:
                path.unlink()
            raise
        write_text(record, f"{_sha256(path)}  {path.name}\n")  # the format of sha256sum -c
    return path


def check_original(path: pathlib.Path, trajectory: Trajectory, molecule: str) -> None:
    """Raises `ValueError` unless a file has the atoms, frames and fields of MD17's archive."""
    with zipfile.ZipFile(path) as file:
        fields = {name.removesuffix(".npy") for name in file.namelist()}
    is_original = trajectory.source == ORIGINAL and fields >= ORIGINAL_FIELDS
    if is_original and original_molecule(trajectory) == molecule:
        return
    counts = find(molecule).counts
    formula = ", ".join(f"{counts[z]} of Z = {z}" for z in sorted(counts, reverse=True))
    raise ValueError(
        f"{path}: got {len(trajectory.positions)} frames of z = {trajectory.numbers.tolist()}, "
        f"not MD17's {molecule}, expected {find(molecule).num_frames} frames, {formula}, "
        "with energies E and forces F"
    )


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(record: pathlib.Path) -> str | None:
    if not record.exists():
        return None
    words = record.read_text(errors="replace").split()
    if not words or not re.fullmatch(r"[0-9a-f]{64}", words[0]):
        raise ValueError(f"{record}: got {' '.join(words)[:80]!r}, expected a SHA-256; delete it")
    return words[0]
