"""The molecules' data sets as in the experiments."""

from __future__ import annotations

from typing import Literal

import numpy as np

from egno_jax.datasets.argument_checks import check_choice, check_integer
from egno_jax.datasets.base import Samples
from egno_jax.datasets.cutting import PARTITIONS
from egno_jax.datasets.md17 import archives, molecule_trajectory
from egno_jax.datasets.md17.graphs import bond_graph
from egno_jax.datasets.md17.molecule_samples import NUM_TARGETS, samples
from egno_jax.datasets.md17.molecule_starts import SIZES, WINDOW, block_starts, random_starts
from egno_jax.datasets.md17.molecule_trajectory import Trajectory
from egno_jax.datasets.npz import PathLike

PUBLISHED_SIZES = dict(zip(PARTITIONS, SIZES, strict=True))


def load(
    molecule: str,
    partition: str,
    *,
    split: Literal["blocks", "random"] = "blocks",
    num_samples: int | None = None,
    window: int = WINDOW,
    num_targets: int = NUM_TARGETS,
    archive: Literal["md", "md17"] = "md",
    dtype: np.typing.DTypeLike = np.float32,
    data_dir: PathLike | None = None,
) -> Samples:
    """Loads one partition of a molecule's samples: heavy atoms, the original's graph and sizes.

    For other choices call its parts: `load_trajectory`, `heavy_atoms`, `block_starts` or
    `random_starts`, `bond_graph` and `samples`, or `radius_samples`. Set the model's `time_scale`
    to `window / num_targets`, 375. Needs the extra `data`.

    Args:
      molecule: its name.
      partition: "train", "valid" or "test".
      split: "blocks", which share no time, or "random", the original's, which leaks.
      num_samples: at most 500, 2000 and 2000, the defaults.
      window: frames from the initial state to the last target.
      num_targets: P targets, uniform over the window.
      archive: "md" for `md/<molecule>.npz`, "md17" for the original archive.
      dtype: the dtype of all real numbers.
      data_dir: the folder of both; `$EGNO_DATA_DIR`, else the cache, if None.

    Raises:
      ValueError: an argument is out of range, or the file is missing, damaged or too short.
    """
    check_choice("partition", partition, PARTITIONS)
    check_choice("split", split, ("blocks", "random"))
    if num_samples is not None:
        check_integer("num_samples", num_samples, most=PUBLISHED_SIZES[partition])
    trajectory = load_trajectory(molecule, archive=archive, data_dir=data_dir)
    trajectory = molecule_trajectory.heavy_atoms(trajectory)
    draw = block_starts if split == "blocks" else random_starts
    starts = getattr(draw(len(trajectory.positions), window=window), partition)[:num_samples]
    edges = bond_graph(trajectory)
    return samples(trajectory, starts, edges, window=window, num_targets=num_targets, dtype=dtype)


def load_trajectory(
    molecule: str, *, archive: Literal["md", "md17"] = "md", data_dir: PathLike | None = None
) -> Trajectory:
    """Loads a molecule's trajectory with all its atoms; arguments and errors are those of `load`.

    An archive of "md17" is checked to be that of the molecule.
    """
    path = archives.path_of(molecule, archive=archive, data_dir=data_dir)
    try:
        trajectory = molecule_trajectory.read(path)
    except FileNotFoundError as error:
        verb = "generate" if archive == "md" else "download"
        raise ValueError(
            f"{path} is not there; make it with `python -m egno_jax.datasets.md17 {verb} "
            f"--molecule {molecule}`, or choose another folder with data_dir or EGNO_DATA_DIR"
        ) from error
    if archive == "md17":
        archives.check_original(path, trajectory, molecule)
    return trajectory
