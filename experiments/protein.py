"""Proteins: from one frame of a simulation of a protein's backbone, predict the next frames.

    python -m experiments.protein
    python -m experiments.protein --preset equilibrium --data.data-dir data
    python -m experiments.protein --data.source files --data.topology a.psf --data.coordinates a.dcd
    python -m experiments.protein --resume runs/protein-transition-seed0
    python -m experiments.protein --evaluate runs/protein-transition-seed0

The transition comes with MDAnalysisTests; the equilibrium trajectory, on which published results
were measured, is downloaded by MDAnalysisData. See docs/protein.md.

Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024, section
5.4; the task is that of Han et al., NeurIPS 2022.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from egno_jax.config import check_field
from egno_jax.datasets import protein
from egno_jax.training import NoiseConfig, TrainingConfig
from experiments import data_settings
from experiments.experiment import Drawing, Experiment, RunConfig, Splits
from experiments.published import EGNO_PAPER, REPORTED, REPRODUCTION, RUN_AGAIN, Published
from experiments.runner import main


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples of which trajectory a run sees.

    Attributes:
      source: `transition`: adenylate kinase from closed to open, 98 frames; `equilibrium`: the
        same in equilibrium, 4187 frames, which published results were measured on; `files`: those
        of `topology` and `coordinates`.
      topology: atoms, charges and bonds; only for the source `files`.
      coordinates: the trajectory; only for the source `files`.
      selection: the atoms that are nodes, in MDAnalysis' language.
      cutoff: atoms closer than this in the initial state are joined, in Angstrom; 8 in the
        original's code, 10 in the paper.
      window: frames from the initial state to the last target.
      num_targets: targets, uniform over the window; set `model.time_scale` to their spacing.
      stride: frames from one sample to the next.
      data_dir: folder of the equilibrium trajectory; None: `$EGNO_DATA_DIR`, else MDAnalysisData's
        own folder.

    Raises:
      ValueError: a field is out of range; names it.
    """

    source: Literal["transition", "equilibrium", "files"] = "transition"
    topology: Path | None = None
    coordinates: Path | None = None
    selection: str = protein.SELECTION
    cutoff: float = 8.0
    window: int = 8
    num_targets: int = protein.NUM_TARGETS
    stride: int = 1
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        data_settings.check_choices(self)
        for name in ("topology", "coordinates"):
            is_there, is_read = getattr(self, name) is not None, self.source == "files"
            check_field(self, name, is_there or not is_read, "a file, for the source files")
            expected = f"None, for the source {self.source}; --data.source files reads such files"
            check_field(self, name, is_read or not is_there, expected)
        data_settings.check_positive(self, "window", "stride", "cutoff")
        data_settings.check_targets(self)


# For long epochs, and for noise that updates the distances in the data.
_TRAINING = TrainingConfig(steps_per_chunk=10, noise=NoiseConfig(distance_column=0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProteinConfig(RunConfig):
    """All settings of a run."""

    preset: str = "transition"
    training: TrainingConfig = _TRAINING
    data: DataConfig = dataclasses.field(default_factory=DataConfig)


_NO_GAPS = "no gaps between its splits"
_TASK = "in equilibrium"

PUBLISHED = (
    Published("EGNN", 2.735, None, f"{REPORTED}; {_NO_GAPS}", _TASK, True),
    Published("EGNO", 2.231, None, f"{EGNO_PAPER}; {_NO_GAPS}", _TASK, True),
    Published(RUN_AGAIN, 2.226, 1.876, f"{REPRODUCTION}; {_NO_GAPS}", _TASK, True),
    Published("EGNO on EGHN", 1.801, None, f"{EGNO_PAPER}; {_NO_GAPS}", _TASK, True),
)


def load_splits(config: DataConfig) -> Splits:
    """Loads the data of a run."""
    trajectory = _load(config)
    num_frames, cutoff = len(trajectory.positions), config.cutoff
    starts = protein.block_starts(num_frames, window=config.window, stride=config.stride)
    words = {
        "cutoff": cutoff,
        "num_edges": protein.most_contacts(trajectory, *starts, cutoff=cutoff),
        "window": config.window,
        "num_targets": config.num_targets,
    }
    targets = protein.target_offsets(config.window, config.num_targets)
    drawing = Drawing(bonds=trajectory.bonds, target_frames=targets.tolist())
    return Splits(
        *(protein.samples(trajectory, frames, **words) for frames in starts),
        test_paths=protein.paths(trajectory, starts.test, window=config.window),
        drawing=drawing if len(trajectory.bonds) else None,
    )


def _load(config: DataConfig) -> protein.Trajectory:
    if config.source == "files":
        universe = protein.load_universe(config.topology, config.coordinates)
        return protein.read(universe, config.selection)
    if config.source == "equilibrium":
        return protein.load_equilibrium(config.selection, data_dir=config.data_dir)
    return protein.load_transition(config.selection)


def task(data: DataConfig) -> str:
    """Returns the name of the task that the settings define."""
    windows = {"equilibrium": protein.WINDOW}
    return data_settings.named(
        {
            "transition": "opening, 98 frames",
            "equilibrium": "in equilibrium",
            "files": f"your own {data.coordinates and data.coordinates.name}",
        }[data.source],
        window=(data.window, windows.get(data.source, DataConfig().window)),
        **data_settings.unusual(data, DataConfig(), "selection", "num_targets", "stride", "cutoff"),
    )


EXPERIMENT = Experiment(
    name="protein",
    title="Proteins",
    summary=(
        "The backbone of a protein, adenylate kinase, that opens or fluctuates in equilibrium. "
        "From positions and velocities at one frame the model predicts four later ones, all in one "
        "pass, over the contacts of the initial frame."
    ),
    default=ProteinConfig(),
    presets=("transition", "quick", "equilibrium"),
    load_splits=load_splits,
    task=task,
    published=PUBLISHED,
    headlines={title: [title] for title in ("opening, 98 frames", "in equilibrium")},
    length_label="Å",
    error_unit="Å²",
)


if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
