"""Motion capture: from one frame of a person who runs or walks, predict a quarter of a second.

    python -m experiments.mocap --preset run --data.data-dir data
    python -m experiments.mocap --preset walk --training.seed 1
    python -m experiments.mocap --resume runs/mocap-run-seed0
    python -m experiments.mocap --evaluate runs/mocap-run-seed0

The data are read from `--data.data-dir` or `$EGNO_DATA_DIR`; docs/mocap.md says how to get them.

Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024, section
5.2.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from egno_jax import datasets
from egno_jax.datasets import mocap
from experiments import data_settings
from experiments.experiment import Drawing, Experiment, RunConfig, Splits
from experiments.published import EGNO_PAPER, REPORTED, REPRODUCTION, RUN_AGAIN, Published
from experiments.runner import main


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples a run sees.

    Attributes:
      motion: `run`: subject 9, with the published split; `walk`: subject 35, split by trial.
      protocol: the predicted frames after the initial one. `last`: 26 to 30, as in the original;
        `uniform`: 6, 12, 18, 24, 30.
      num_train: windows to train on, a multiple of the number of trials: 5 run, 10 walk.
      num_valid: windows to select the model on, a multiple of 3 or 5.
      num_test: windows to report errors on, a multiple of 3 or 5.
      dense: whether training samples have all frames up to the last as targets, from which
        `training.random_times` draws; otherwise those of the protocol.
      parts: whether training samples also start at each later frame of a window that is before the
        targets, with the same targets, which are then nearer. Whole windows are repeated as often,
        so that they remain half of the training set. It uses no other frame.
      height: whether heights are a feature; predictions are then equivariant only to rotations
        about the vertical.
      joints: whether which joint a node is is a feature; the model then learns this skeleton alone.
      joint_kinds: whether the kind of joint is a feature, left and right alike.
      up: whether the vertical direction is an external vector, for the layers that carry vectors;
        predictions rotate with positions, velocities and this vector together.
      data_dir: the folder that holds `cmu/`; None: `$EGNO_DATA_DIR`.

    Raises:
      ValueError: a field is out of range; names it.
    """

    motion: Literal["run", "walk"] = "run"
    protocol: Literal["last", "uniform"] = "last"
    num_train: int = mocap.PUBLISHED_SIZES["run"]["train"]
    num_valid: int = mocap.PUBLISHED_SIZES["run"]["valid"]
    num_test: int = mocap.PUBLISHED_SIZES["run"]["test"]
    dense: bool = False
    parts: bool = False
    height: bool = False
    joints: bool = False
    joint_kinds: bool = False
    up: bool = False
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        data_settings.check_choices(self)
        data_settings.check_positive(self, "num_train", "num_valid", "num_test")
        if self.parts and self.dense:
            raise ValueError(
                "DataConfig: got parts and dense, expected only one of them: all later frames are "
                "dense targets, so no window can start there"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MocapConfig(RunConfig):
    """All settings of a run.

    Raises:
      ValueError: heights are features and there is noise on the positions, which would not change
        the heights.
    """

    preset: str = "run"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        if self.data.height and self.training.noise.positions:
            raise ValueError(
                f"MocapConfig: got data.height=True and training.noise.positions="
                f"{self.training.noise.positions}, expected only one of them: the height would "
                "show the position without noise; set --training.noise.positions 0"
            )


UP = (0.0, 1.0, 0.0)
_OTHER_SPLIT = "on another split, of 23 trials"
_OTHER = f"{_OTHER_SPLIT}; {EGNO_PAPER}"
_OTHER_AGAIN = f"{_OTHER_SPLIT}; {REPRODUCTION}"

PUBLISHED = (
    Published("EGNN", 0.509, None, REPORTED, "running"),
    Published("EGNN-R", 8.167, None, REPORTED, "running"),
    Published("EGNN-S", 0.542, None, REPORTED, "running"),
    Published("EGNO", 0.339, None, EGNO_PAPER, "running"),
    Published(RUN_AGAIN, 0.42938, 0.38370, REPRODUCTION, "running"),
    Published("EGNN", 0.287, None, _OTHER, "walking", True),
    Published("EGNN-R", 0.907, None, _OTHER, "walking", True),
    Published("EGNN-S", 0.264, None, _OTHER, "walking", True),
    Published("EGNO", 0.081, None, _OTHER, "walking", True),
    Published(RUN_AGAIN, 0.06515, 0.05725, _OTHER_AGAIN, "walking", True),
)


def load_splits(config: DataConfig) -> Splits:
    """Loads the data of a run."""
    frames = mocap.PROTOCOLS[config.protocol]
    windows = {
        split: mocap.load_windows(
            config.motion, split, num_samples=number, data_dir=config.data_dir
        )
        for split, number in data_settings.split_sizes(config).items()
    }
    targets = dict.fromkeys(windows, frames)
    if config.dense:
        targets["train"] = range(1, mocap.HORIZON + 1)
    starts = {split: [0] for split in windows}
    if config.parts:
        later = range(1, targets["train"][0])
        starts["train"] = [0] * len(later) + [*later]
    names = ("height", "joints", "joint_kinds")
    features = {name: getattr(config, name) for name in names}
    samples = {
        split: datasets.concatenate(
            *(
                mocap.samples(cut, start=start, target_frames=targets[split], **features)
                for start in starts[split]
            )
        )
        for split, cut in windows.items()
    }
    if config.up:
        samples = {split: datasets.with_vectors(each, [UP]) for split, each in samples.items()}
    return Splits(
        **samples,
        test_paths=windows["test"].positions[:, : mocap.HORIZON + 1],
        drawing=Drawing(bonds=windows["test"].bonds, target_frames=frames, up="y"),
    )


def task(data: DataConfig) -> str:
    """Returns the name of the task that the settings define."""
    usual = mocap.PUBLISHED_SIZES[data.motion]
    return data_settings.named(
        {"run": "running", "walk": "walking"}[data.motion],
        {"last": "", "uniform": "evenly spaced frames"}[data.protocol],
        f"{data.num_train} training windows" if data.num_train != usual["train"] else "",
        "heights given" if data.height else "",
        "joints given" if data.joints else "",
        "kinds of joints given" if data.joint_kinds else "",
        "vertical given" if data.up else "",
        num_test=(data.num_test, usual["test"]),
    )


EXPERIMENT = Experiment(
    name="mocap",
    title="Motion capture",
    summary=(
        "A person runs or walks, recorded as 31 joints at 120 frames a second. From positions and "
        "velocities at one frame the model predicts five later ones, up to a quarter of a second "
        "ahead, all in one pass. A unit of length is 5.64 cm; papers print these errors times 100."
    ),
    default=MocapConfig(),
    presets=(
        *("run", "run-joints", "run-kinds", "walk", "walk-kinds", "quick", "run-6x128"),
        *("walk-6x128", "run-original", "walk-uniform", "walk-dense"),
    ),
    load_splits=load_splits,
    task=task,
    published=PUBLISHED,
    headlines={"running": ["running"], "walking": ["walking"]},
    length_label="units of 5.64 cm",
    error_unit="(5.64 cm)²",
    renamed={"run-plain": "run-6x128", "walk-plain": "walk-6x128"},
)


if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
