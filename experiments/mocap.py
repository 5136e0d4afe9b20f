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
import sys
from pathlib import Path
from typing import Literal

from egno_jax import EGNOConfig
from egno_jax.datasets import mocap
from egno_jax.training import NoiseConfig, OptimizerConfig, TrainingConfig
from experiments import methods
from experiments.run_page import Drawing
from experiments.runner import Experiment, Published, Splits, main

# The presets that baselines are compared with EGNO in.
_COMPARED = ("run", "run-plain", "walk", "walk-plain")
_PRESETS = methods.preset_names(
    (
        "run",
        "run-plain",
        "run-original",
        "walk",
        "walk-plain",
        "walk-uniform",
        "walk-dense",
        "quick",
    ),
    compared=_COMPARED,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples a run sees.

    Attributes:
      motion: `run`: subject 9, with the published split; `walk`: subject 35, split by trial.
      protocol: which frames after the given one are predicted. `last`: 26, 27, 28, 29, 30, as in
        the original; `uniform`: 6, 12, 18, 24, 30.
      num_train: windows to train on, a multiple of the number of trials: 5 run, 10 walk.
      num_valid: windows to select the model on, a multiple of 3 or 5.
      num_test: windows to report errors on, a multiple of 3 or 5.
      dense: whether training samples have every frame up to the last as a target, of which
        `training.random_times` draws; otherwise those of the protocol.
      height: whether heights are a feature; predictions then turn about the vertical alone.
      data_dir: the folder that holds `cmu/`; `$EGNO_DATA_DIR` if None.

    Raises:
      ValueError: a field is out of range; names it.
    """

    motion: Literal["run", "walk"] = "run"
    protocol: Literal["last", "uniform"] = "last"
    num_train: int = mocap.PUBLISHED_SIZES["run"]["train"]
    num_valid: int = mocap.PUBLISHED_SIZES["run"]["valid"]
    num_test: int = mocap.PUBLISHED_SIZES["run"]["test"]
    dense: bool = False
    height: bool = False
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, choices in (("motion", mocap.PUBLISHED_SIZES), ("protocol", mocap.PROTOCOLS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"DataConfig.{name}: got {value!r}, expected one of {[*choices]}")
        for name in ("num_train", "num_valid", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"DataConfig.{name}: got {getattr(self, name)}, expected >= 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MocapConfig:
    """All settings of a run.

    Attributes:
      preset: the settings to start from; whatever else is given changes them.
      model: the model; `time_scale` is in frames.
      training: the training loop.
      data: the data set.

    Raises:
      ValueError: there are heights among the features and noise on the positions, which would leave
        the heights as they were.
    """

    preset: Literal[_PRESETS] = "run"
    model: EGNOConfig
    training: TrainingConfig
    data: DataConfig

    def __post_init__(self) -> None:
        if self.data.height and self.training.noise.positions:
            raise ValueError(
                f"MocapConfig: got data.height=True and training.noise.positions="
                f"{self.training.noise.positions}, expected one of them alone: the height would "
                "tell the position without noise; --training.noise.positions 0 switches that off"
            )


# The original's model. Times are frames after the given state. Those of the protocol `last` are one
# frame apart, so the unit is a frame: the embedding of a time must tell 29 from 30.
_MODEL = EGNOConfig(
    num_layers=6,
    hidden_dim=128,
    num_modes=2,
    time_embed_dim=32,
    time_scale=1.0,
)

_TRAINING = TrainingConfig(
    num_steps=9600,
    batch_size=12,
    ema_decay=0.999,
    eval_every=160,
    eval_batch_size=120,
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=200,
        weight_decay=1e-2,
        decay="decoupled",
        clip_norm=1.0,
    ),
)

# Within the window a body moves thirty times the length of a velocity, which is per frame: hence
# the unit of velocity, and times in units of the window, in which the last five are nearly alike.
# It moves as a whole, and arms go with legs far from them: the mean field says so at once, and with
# it a model of a sixth of the original's weights does better than one of the original's size.
# Vector kernels start at 0: before they are trained they only throw joints about.
_OUR_MODEL = dataclasses.replace(
    _MODEL,
    num_layers=4,
    hidden_dim=64,
    time_scale=float(mocap.HORIZON),
    velocity_scale=20.0,
    mean_field=True,
    mean_field_channels=64,
    vector_init=0.0,
)

# With the layers and the size of the original.
_PLAIN_RUN_MODEL = dataclasses.replace(
    _MODEL, time_scale=_OUR_MODEL.time_scale, velocity_scale=_OUR_MODEL.velocity_scale
)

# The 200 windows are soon learned by heart: hence the noise.
_RUN_TRAINING = dataclasses.replace(
    _TRAINING,
    num_steps=4800,
    noise=NoiseConfig(positions=0.15, velocities=0.03),
    optimizer=dataclasses.replace(_TRAINING.optimizer, learning_rate=2e-3, warmup_steps=400),
)

# A walk varies less than a run: two thirds of the steps will do, and noise does not help.
_WALK_TRAINING = dataclasses.replace(_RUN_TRAINING, num_steps=3200, noise=NoiseConfig())

_WALK = DataConfig(
    motion="walk",
    num_train=mocap.PUBLISHED_SIZES["walk"]["train"],
    num_valid=mocap.PUBLISHED_SIZES["walk"]["valid"],
    num_test=mocap.PUBLISHED_SIZES["walk"]["test"],
)

_EGNO_PRESETS = {
    "run": MocapConfig(preset="run", model=_OUR_MODEL, training=_RUN_TRAINING, data=DataConfig()),
    "run-plain": MocapConfig(
        preset="run-plain", model=_PLAIN_RUN_MODEL, training=_RUN_TRAINING, data=DataConfig()
    ),
    "run-original": MocapConfig(
        preset="run-original",
        model=_MODEL,
        training=TrainingConfig(
            num_steps=32_000,
            batch_size=12,
            ema_decay=0.0,
            eval_every=80,
            eval_batch_size=120,
            checkpoint_every=1600,
            optimizer=OptimizerConfig(
                learning_rate=5e-4,
                schedule="constant",
                warmup_steps=0,
                weight_decay=1e-10,
                decay="l2",
                clip_norm=0.0,
            ),
        ),
        data=DataConfig(height=True),
    ),
    "walk": MocapConfig(preset="walk", model=_OUR_MODEL, training=_WALK_TRAINING, data=_WALK),
    "walk-plain": MocapConfig(
        preset="walk-plain",
        model=_MODEL,
        training=dataclasses.replace(
            _TRAINING,
            num_steps=_WALK_TRAINING.num_steps,
            optimizer=dataclasses.replace(_TRAINING.optimizer, warmup_steps=800),
        ),
        data=_WALK,
    ),
    "walk-uniform": MocapConfig(
        preset="walk-uniform",
        model=_OUR_MODEL,
        training=_WALK_TRAINING,
        data=dataclasses.replace(_WALK, protocol="uniform"),
    ),
    "walk-dense": MocapConfig(
        preset="walk-dense",
        model=_OUR_MODEL,
        training=dataclasses.replace(_WALK_TRAINING, random_times="grids", num_times=(5,)),
        data=dataclasses.replace(_WALK, dense=True),
    ),
    "quick": MocapConfig(
        preset="quick",
        model=_OUR_MODEL,
        training=dataclasses.replace(_RUN_TRAINING, num_steps=1200, ema_decay=0.99),
        data=DataConfig(),
    ),
}

PRESETS = methods.with_baselines(_EGNO_PRESETS, compared=_COMPARED, num_times=5)

_EGNO_DESCRIPTIONS = {
    "run": "subject 9 runs: the original's data and split; our own optimisation, and a mean field",
    "run-plain": "run without the mean field, in the original's size: 6 layers of 128 channels",
    "run-original": "the original's optimisation and height feature too: 2000 epochs of Adam",
    "walk": "subject 35 walks, split by trial; the last five frames",
    "walk-plain": "walk without the mean field, in the original's size, trained as suits it",
    "walk-dense": "subject 35 walks, trained on five frames of thirty that are drawn in each step",
    "walk-uniform": "subject 35 walks, five evenly spaced frames",
    "quick": "a short run of subject 9, a first look",
}

DESCRIPTIONS = methods.with_baseline_descriptions(_EGNO_DESCRIPTIONS, compared=_COMPARED)

_EGNO = "Xu et al., ICML 2024, arXiv:2401.11037"
_OTHER_SPLIT = "on another split, of 23 trials"
_AGAIN = "EGNO, its public code run again"


def _conditions(motion: str) -> dict[str, str | int]:
    """Returns the settings in `data` that a published figure was measured with."""
    sizes = mocap.PUBLISHED_SIZES[motion]
    return {
        "motion": motion,
        "protocol": "last",
        "num_train": sizes["train"],
        "num_test": sizes["test"],
    }


PUBLISHED = (
    Published("EGNN", 0.509, None, f"as reported by {_EGNO}", _conditions("run")),
    Published("EGNN-R", 8.167, None, f"as reported by {_EGNO}", _conditions("run")),
    Published("EGNN-S", 0.542, None, f"as reported by {_EGNO}", _conditions("run")),
    Published("EGNO", 0.339, None, _EGNO, _conditions("run")),
    Published(_AGAIN, 0.42938, 0.38370, "an independent reproduction", _conditions("run")),
    Published("EGNN", 0.287, None, f"{_OTHER_SPLIT}; {_EGNO}", _conditions("walk"), True),
    Published("EGNN-R", 0.907, None, f"{_OTHER_SPLIT}; {_EGNO}", _conditions("walk"), True),
    Published("EGNN-S", 0.264, None, f"{_OTHER_SPLIT}; {_EGNO}", _conditions("walk"), True),
    Published("EGNO", 0.081, None, f"{_OTHER_SPLIT}; {_EGNO}", _conditions("walk"), True),
    Published(
        _AGAIN,
        0.06515,
        0.05725,
        f"{_OTHER_SPLIT}; an independent reproduction",
        _conditions("walk"),
        other_split=True,
    ),
)


def load_splits(config: DataConfig) -> Splits:
    """Loads the data of a run.

    Args:
      config: which samples.

    Returns:
      Training, validation and test samples, every frame of the test windows, and the skeleton.

    Raises:
      ValueError: files are missing or damaged, or there are not so many windows.
    """
    frames = mocap.PROTOCOLS[config.protocol]
    windows = {
        split: mocap.load_windows(
            config.motion, split, num_samples=number, data_dir=config.data_dir
        )
        for split, number in (
            ("train", config.num_train),
            ("valid", config.num_valid),
            ("test", config.num_test),
        )
    }
    return Splits(
        **{
            split: mocap.samples(
                cut,
                target_frames=range(1, mocap.HORIZON + 1) if _is_dense(config, split) else frames,
                height=config.height,
            )
            for split, cut in windows.items()
        },
        test_paths=windows["test"].positions[:, : mocap.HORIZON + 1],
        drawing=Drawing(bonds=windows["test"].bonds, target_frames=frames, up="y"),
    )


def _is_dense(config: DataConfig, split: str) -> bool:
    return config.dense and split == "train"


EXPERIMENT = Experiment(
    name="mocap",
    title="Motion capture",
    summary=(
        "A person runs or walks, recorded as 31 joints at 120 frames a second. From positions and "
        "velocities at one frame the model predicts five later ones, up to a quarter of a second "
        "ahead, all in one pass. A unit of length is 5.64 cm; papers print these errors times 100."
    ),
    config_class=MocapConfig,
    presets=PRESETS,
    descriptions=DESCRIPTIONS,
    load_splits=load_splits,
    published=PUBLISHED,
    published_data=DataConfig(),
    published_fields=(),
    time_unit=1.0,
    time_label="frames",
    length_label="units",
    length_unit="5.64 cm",
    task_fields=("motion", "protocol", "num_train", "num_test", "height"),
    data_words={
        "motion": {"run": "running", "walk": "walking"},
        "protocol": {"uniform": "evenly spaced frames"},
        "num_train": {2000: "2000 training windows"},
        "height": {True: "heights given"},
        **{
            f"num_{split}": {sizes[split]: "" for sizes in mocap.PUBLISHED_SIZES.values()}
            for split in ("valid", "test")
        },
    },
    headlines=[{**_conditions(motion), "height": False} for motion in mocap.PUBLISHED_SIZES],
)


if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
