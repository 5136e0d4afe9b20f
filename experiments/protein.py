"""Proteins: from one frame of a simulation of a protein's backbone, predict the next frames.

    python -m experiments.protein
    python -m experiments.protein --preset equilibrium --data.data-dir data
    python -m experiments.protein --data.source files --data.topology a.psf --data.coordinates a.dcd
    python -m experiments.protein --resume runs/protein-transition-seed0
    python -m experiments.protein --evaluate runs/protein-transition-seed0

The transition comes with MDAnalysisTests; the equilibrium trajectory, on which the published
figures were measured, is downloaded by MDAnalysisData. docs/protein.md says more.

Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024, section
5.4; the task is that of Han et al., NeurIPS 2022.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np

from egno_jax import EGNOConfig
from egno_jax.datasets import protein
from egno_jax.training import NoiseConfig, OptimizerConfig, TrainingConfig
from experiments import methods
from experiments.run_page import Drawing
from experiments.runner import Experiment, Published, Splits, main

# The presets that baselines are compared with EGNO in.
_COMPARED = ("transition",)
_PRESETS = methods.preset_names(("transition", "equilibrium", "quick"), compared=_COMPARED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples of which trajectory a run sees.

    Attributes:
      source: `transition`: adenylate kinase from closed to open, 98 frames; `equilibrium`: the
        same in equilibrium, 4187 frames, beside which published figures may stand; `files`: those
        of `topology` and `coordinates`.
      topology: atoms, charges and bonds, for the source `files` alone.
      coordinates: the trajectory, for the source `files` alone.
      selection: the atoms that are nodes, in MDAnalysis' language.
      cutoff: atoms closer than this in the given state are joined, in Angstrom; 8 in the original's
        code, 10 in the paper.
      window: frames from the given state to the last target.
      num_targets: targets, uniform over the window; set `model.time_scale` to their spacing.
      stride: frames from one sample to the next.
      data_dir: where the equilibrium trajectory is kept; `$EGNO_DATA_DIR`, else MDAnalysisData's
        own folder, if None.

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
        sources = ("transition", "equilibrium", "files")
        self._check("source", self.source in sources, f"one of {sources}")
        for name in ("topology", "coordinates"):
            is_there, is_read = getattr(self, name) is not None, self.source == "files"
            self._check(name, is_there or not is_read, "a file, for the source files")
            expected = f"None, for the source {self.source}; --data.source files reads such files"
            self._check(name, is_read or not is_there, expected)
        for name in ("window", "stride"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        self._check("cutoff", 0 < self.cutoff < np.inf, "a number above 0")
        in_window = 1 <= self.num_targets <= self.window
        self._check("num_targets", in_window, f"1 to {self.window}, the frames of the window")

    def _check(self, name: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            raise ValueError(f"DataConfig.{name}: got {getattr(self, name)!r}, expected {expected}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProteinConfig:
    """All settings of a run.

    Attributes:
      preset: the settings to start from; whatever else is given changes them.
      model: the model; `time_scale` is in frames.
      training: the training loop.
      data: the data set.
    """

    preset: Literal[_PRESETS] = "transition"
    model: EGNOConfig
    training: TrainingConfig
    data: DataConfig


_EQUILIBRIUM = DataConfig(source="equilibrium", window=protein.WINDOW)

# Times are frames after the given state, the unit is the spacing of the grid.
_MODEL = EGNOConfig(
    num_layers=4,
    hidden_dim=64,
    num_modes=2,
    time_embed_dim=32,
    time_scale=DataConfig().window / DataConfig().num_targets,
)

# There is none, but where it is asked for, the distances renewed are those that the data hold.
_NOISE = NoiseConfig(length_column=0)

# The 400 steps took 22 minutes on 2 cores.
_TRAINING = TrainingConfig(
    num_steps=400,
    batch_size=2,
    ema_decay=0.98,
    steps_per_call=10,
    eval_every=20,
    eval_batch_size=4,
    noise=_NOISE,
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=20,
        weight_decay=1e-2,
        decay="decoupled",
        clip_norm=1.0,
    ),
)

_EGNO_PRESETS = {
    "transition": ProteinConfig(
        preset="transition", model=_MODEL, training=_TRAINING, data=DataConfig()
    ),
    "equilibrium": ProteinConfig(
        preset="equilibrium",
        model=dataclasses.replace(
            _MODEL,
            hidden_dim=128,
            time_scale=_EQUILIBRIUM.window / _EQUILIBRIUM.num_targets,
        ),
        training=TrainingConfig(
            num_steps=31_000,
            batch_size=8,
            ema_decay=0.999,
            steps_per_call=10,
            eval_every=620,
            eval_batch_size=8,
            noise=_NOISE,
            optimizer=OptimizerConfig(
                learning_rate=5e-4,
                schedule="cosine",
                warmup_steps=200,
                weight_decay=1e-2,
                decay="decoupled",
                clip_norm=1.0,
            ),
        ),
        data=_EQUILIBRIUM,
    ),
    "quick": ProteinConfig(
        preset="quick",
        model=dataclasses.replace(_MODEL, num_layers=2, hidden_dim=32),
        training=dataclasses.replace(_TRAINING, num_steps=200, eval_every=20),
        data=DataConfig(),
    ),
}

PRESETS = methods.with_baselines(_EGNO_PRESETS, compared=_COMPARED, num_times=protein.NUM_TARGETS)

_EGNO_DESCRIPTIONS = {
    "transition": "adenylate kinase opens: 98 frames that need no download, 22 minutes on 2 cores",
    "equilibrium": "the original's data, model and batch, with our own optimisation; for a GPU",
    "quick": "a smaller model and a short run of the transition, a first look",
}

DESCRIPTIONS = methods.with_baseline_descriptions(_EGNO_DESCRIPTIONS, compared=_COMPARED)

_EGNO = "Xu et al., ICML 2024, arXiv:2401.11037"
_NO_GAPS = "no gaps between its splits"
_CONDITIONS = {
    "source": "equilibrium",
    "selection": protein.SELECTION,
    "window": protein.WINDOW,
    "num_targets": protein.NUM_TARGETS,
    "stride": 1,
}

PUBLISHED = (
    Published("EGNN", 2.735, None, f"as reported by {_EGNO}; {_NO_GAPS}", _CONDITIONS, True),
    Published("EGNO", 2.231, None, f"{_EGNO}; {_NO_GAPS}", _CONDITIONS, True),
    Published(
        "EGNO, its public code run again",
        2.226,
        1.876,
        f"an independent reproduction; {_NO_GAPS}",
        _CONDITIONS,
        other_split=True,
    ),
    Published("EGNO on EGHN", 1.801, None, f"{_EGNO}; {_NO_GAPS}", _CONDITIONS, True),
)


def load_splits(config: DataConfig) -> Splits:
    """Loads the data of a run.

    Args:
      config: which samples.

    Returns:
      Training, validation and test samples, every frame of the test windows, and the bonds.

    Raises:
      ValueError: files are missing or damaged, or hold too few frames.
      ImportError: a package of the extra `protein` is not installed.
    """
    trajectory = _load(config)
    starts = protein.block_starts(
        len(trajectory.positions), window=config.window, stride=config.stride
    )
    num_edges = protein.most_contacts(trajectory, *starts, cutoff=config.cutoff)
    parts = {
        name: protein.samples(
            trajectory,
            frames,
            cutoff=config.cutoff,
            num_edges=num_edges,
            window=config.window,
            num_targets=config.num_targets,
        )
        for name, frames in starts._asdict().items()
    }
    targets = protein.target_offsets(config.window, config.num_targets)
    drawing = Drawing(bonds=trajectory.bonds, target_frames=targets.tolist())
    return Splits(
        **parts,
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


EXPERIMENT = Experiment(
    name="protein",
    title="Proteins",
    summary=(
        "The backbone of a protein, adenylate kinase, that opens or trembles. From positions and "
        "velocities at one frame the model predicts four later ones, all in one pass, over the "
        "contacts of the given frame."
    ),
    config_class=ProteinConfig,
    presets=PRESETS,
    descriptions=DESCRIPTIONS,
    load_splits=load_splits,
    published=PUBLISHED,
    published_data=_EQUILIBRIUM,
    published_fields=(),
    time_unit=1.0,
    time_label="frames",
    length_label="Å",
    task_fields=(*_CONDITIONS, "cutoff"),
    data_words={
        "source": {
            "transition": "opening, 98 frames",
            "equilibrium": "in equilibrium",
            "files": "a trajectory of one's own",
        },
        "window": {DataConfig().window: "", _EQUILIBRIUM.window: ""},
    },
    headlines=({"source": "transition"}, {"source": "equilibrium"}),
)


if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
