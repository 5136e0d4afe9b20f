"""Molecules: from one frame of a molecular dynamics trajectory, predict the next 1.5 picoseconds.

    python -m experiments.md17 --preset quick --data.molecule ethanol --data.data-dir data
    python -m experiments.md17 --preset paper --data.molecule aspirin --data.split blocks
    python -m experiments.md17 --preset original --data.molecule aspirin --data.archive md17
    python -m experiments.md17 --resume runs/md17-paper-seed0
    python -m experiments.md17 --evaluate runs/md17-paper-seed0

The data are read from `--data.data-dir` or `$EGNO_DATA_DIR`; docs/md17.md says how to get them.

Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024, section
5.3; MD17 of Chmiela et al., Science Advances 3 (2017).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from egno_jax import datasets
from egno_jax.config import check_field
from egno_jax.datasets import md17
from experiments import data_settings
from experiments.experiment import Drawing, Experiment, RunConfig, Splits
from experiments.published import EGNO_PAPER, REPORTED, Published
from experiments.runner import main

if TYPE_CHECKING:
    import numpy as np

    from egno_jax.datasets import Samples
    from egno_jax.datasets.md17 import Trajectory
    from egno_jax.graph import Edges


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples of which molecule a run sees.

    Attributes:
      molecule: aspirin, benzene, ethanol, malonaldehyde, naphthalene, salicylic, toluene or uracil;
        with the archive `md` any other name that has a file.
      archive: `md`: the file `md/<molecule>.npz`, a trajectory like those of MD17; `md17`: the
        original archive in `md17/`, which published results were measured on.
      split: `random`: frames of the whole trajectory, as in the original, which leaks; `blocks`:
        blocks of time with a gap of one window between them.
      atoms: `heavy`: without hydrogen, as in the original; `all`.
      graph: `bonds`: bonds of frame 0 and pairs two bonds apart, as in the original; `radius`: the
        pairs within `radius` of each initial state.
      bond_cutoff: atoms closer than this in frame 0 are bonded, in Angstrom; with the graph
        `radius` only pictures use it.
      radius: in Angstrom; only for the graph `radius`.
      num_train: windows to train on.
      num_valid: windows to select the model on.
      num_test: windows to report errors on.
      window: frames of 0.5 fs from the initial state to the last target.
      num_targets: targets, uniform over the window; set `model.time_scale` to their spacing.
      margin: frames that the split `random` leaves out at each end.
      time_reversal: whether each training window is also shown reversed in time.
      data_dir: the folder that holds `md/` and `md17/`; None: `$EGNO_DATA_DIR`, else the cache.

    Raises:
      ValueError: a field is out of range; names it.
    """

    molecule: str = "aspirin"
    archive: Literal["md", "md17"] = "md"
    split: Literal["random", "blocks"] = "random"
    atoms: Literal["heavy", "all"] = "heavy"
    graph: Literal["bonds", "radius"] = "bonds"
    bond_cutoff: float = md17.BOND_CUTOFF
    radius: float = md17.RADIUS
    num_train: int = md17.PUBLISHED_SIZES["train"]
    num_valid: int = md17.PUBLISHED_SIZES["valid"]
    num_test: int = md17.PUBLISHED_SIZES["test"]
    window: int = md17.WINDOW
    num_targets: int = md17.NUM_TARGETS
    margin: int = md17.MARGIN
    time_reversal: bool = False
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        data_settings.check_choices(self)
        if self.archive == "md17":
            is_known = self.molecule in md17.MOLECULES
            check_field(self, "molecule", is_known, f"one of {[*md17.MOLECULES]}")
        data_settings.check_positive(self, "num_train", "num_valid", "num_test", "window")
        data_settings.check_positive(self, "bond_cutoff", "radius")
        check_field(self, "margin", self.margin >= 0, "0 or more")
        data_settings.check_targets(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MD17Config(RunConfig):
    """All settings of a run."""

    preset: str = "quick"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


# F-MSE and A-MSE in units of 1e-2, of the original MD17.
_TABLE = {
    "aspirin": ((14.41, None), (14.51, 12.07), (9.50, 9.49), (9.18, 7.37), (6.52, 5.45)),
    "benzene": ((62.40, None), (62.61, 23.73), (66.45, 29.99), (48.85, 18.78), (18.78, 8.47)),
    "ethanol": ((4.64, None), (4.94, 3.44), (4.63, 3.29), (4.62, 3.28), (3.47, 2.69)),
    "malonaldehyde": (
        (13.64, None),
        (17.25, 13.38),
        (12.88, 11.21),
        (12.80, 10.67),
        (13.51, 11.62),
    ),
    "naphthalene": ((0.47, None), (0.82, 0.63), (0.45, 0.43), (0.37, 0.32), (0.40, 0.37)),
    "salicylic": ((1.02, None), (1.35, 1.15), (1.00, 1.36), (0.86, 0.77), (0.83, 0.71)),
    "toluene": ((11.78, None), (11.59, 5.04), (10.78, 4.85), (10.21, 4.58), (4.68, 2.26)),
    "uracil": ((0.64, None), (1.11, 0.89), (0.60, 0.68), (0.52, 0.47), (0.55, 0.54)),
}
_METHODS = {
    "EGNN": REPORTED,
    "EGNN-R": REPORTED,
    "EGNN-S": REPORTED,
    "EGNO": EGNO_PAPER,
    "ATOM": "ATOM, ICLR 2026",
}

PUBLISHED = tuple(
    Published(
        method,
        round(f_mse / 100, 6),
        None if a_mse is None else round(a_mse / 100, 6),
        source,
        f"{molecule}, random frames, original MD17",
    )
    for molecule, rows in _TABLE.items()
    for (method, source), (f_mse, a_mse) in zip(_METHODS.items(), rows, strict=True)
)


def load_splits(config: DataConfig) -> Splits:
    """Loads the data of a run."""
    trajectory = md17.load_trajectory(
        config.molecule, archive=config.archive, data_dir=config.data_dir
    )
    if config.atoms == "heavy":
        trajectory = md17.heavy_atoms(trajectory)
    draw, margin = md17.block_starts, {}
    if config.split == "random":
        draw, margin = md17.random_starts, {"margin": config.margin}
    sizes = tuple(data_settings.split_sizes(config).values())
    starts = draw(len(trajectory.positions), sizes, window=config.window, **margin)
    edges = None  # those of a radius graph follow each sample
    if config.graph == "bonds":
        edges = md17.bond_graph(trajectory, cutoff=config.bond_cutoff)
    train = _samples(config, trajectory, starts.train, edges)
    if config.time_reversal:
        backwards = md17.reverse_time(trajectory, starts.train, window=config.window)
        train = datasets.concatenate(train, _samples(config, *backwards, edges))
    targets = {"window": config.window, "num_targets": config.num_targets}
    paths = md17.paths(trajectory, starts.test, **targets)
    bonds = md17.close_pairs if config.graph == "radius" else md17.bonds
    bonds = bonds(trajectory, cutoff=config.bond_cutoff)
    spacing = (paths.shape[1] - 1) // config.num_targets
    drawing = Drawing(bonds=bonds, target_frames=range(spacing, paths.shape[1], spacing))
    valid, test = (
        _samples(config, trajectory, each, edges) for each in (starts.valid, starts.test)
    )
    return Splits(train, valid, test, paths, drawing if len(bonds) else None)


def _samples(
    config: DataConfig, trajectory: Trajectory, starts: np.ndarray, edges: Edges | None
) -> Samples:
    targets = {"window": config.window, "num_targets": config.num_targets}
    if edges is None:
        return md17.radius_samples(trajectory, starts, radius=config.radius, **targets)
    return md17.samples(trajectory, starts, edges, **targets)


def task(data: DataConfig) -> str:
    """Returns the name of the task that the settings define."""
    fields = ["atoms", "graph", "bond_cutoff", "num_train", "num_test", "window", "num_targets"]
    fields += ["margin"] if data.split == "random" else []
    fields += ["radius"] if data.graph == "radius" else []
    return data_settings.named(
        data.molecule,
        {"random": "random frames", "blocks": "blocks of time"}[data.split],
        {"md": "", "md17": "original MD17"}[data.archive],
        **data_settings.unusual(data, DataConfig(), *fields),
    )


EXPERIMENT = Experiment(
    name="md17",
    title="Molecules",
    summary=(
        "A small molecule at 500 K, simulated in steps of half a femtosecond. From positions and "
        "velocities at one frame the model predicts eight later ones, up to 1.5 picoseconds ahead, "
        "all in one pass. Papers print these errors times 100, for the original MD17."
    ),
    default=MD17Config(),
    presets=("quick", "quick-no-global", "paper", "original"),
    load_splits=load_splits,
    task=task,
    published=PUBLISHED,
    headlines={
        split: [f"{name}, {split}" for name in md17.MOLECULES]
        for split in ("random frames", "blocks of time")
    },
    time_label="frames of 0.5 fs",
    length_label="Å",
    error_unit="Å²",
    varied=("data.molecule", "data.archive", "data.split"),
    renamed={"quick-plain": "quick-no-global"},
)


if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
