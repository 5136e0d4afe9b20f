"""The 5-body problem: from one frame of a simulation of charged particles, predict five later ones.

    python -m experiments.nbody --preset quick
    python -m experiments.nbody --preset paper --training.seed 1 --model.hidden-dim 32
    python -m experiments.nbody --resume runs/nbody-paper-seed1
    python -m experiments.nbody --evaluate runs/nbody-paper-seed1

Source: Xu et al., "Equivariant Graph Neural Operator for Modeling 3D Dynamics", ICML 2024, section
5.1; the data set "charged5_initvel1small" of Satorras et al., "E(n) Equivariant Graph Neural
Networks", ICML 2021.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from egno_jax import datasets
from egno_jax.config import check_field
from egno_jax.datasets import nbody
from experiments import data_settings
from experiments.experiment import Experiment, RunConfig, Splits
from experiments.published import EGNO_PAPER, REPORTED, REPRODUCTION, RUN_AGAIN, Published
from experiments.runner import main


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples of the 5-body data set a run sees.

    Attributes:
      num_train: simulations to train on, at most 10000.
      num_valid: simulations to select the model on, at most 2000.
      num_test: simulations to report errors on, at most 2000.
      start: frame of the initial state; a simulation has frames 0 to 48, 0.1 time units apart.
      target_frames: frames to predict, increasing and after `start`.
      time_reversal: whether each training window is also shown reversed in time, which doubles the
        training set and uses no other frame.
      parts: whether the parts of each training window are shown too: as many targets, one frame
        apart, from each frame of the window that leaves room for them. Whole windows are repeated
        as often, so that they remain half of the training set. It uses no other frame.
      scale_spread: s of the factors exp(s e), e ~ N(0, 1), that multiply the lengths of each
        training window (`egno_jax.datasets.nbody.scaled_samples`); 0 leaves them.
      scale_draws: how many factors are drawn for each training window, each for a copy of it.
      orbits: whether edges also have features of the orbit that their pair would follow alone
        (`egno_jax.graph.orbit_features`).
      cache_dir: folder of the simulated data; None: `$EGNO_CACHE_DIR`, else `~/.cache/egno_jax`.

    Raises:
      ValueError: a field is out of range; names it.
    """

    num_train: int = nbody.PUBLISHED_SIZES["train"]
    num_valid: int = nbody.PUBLISHED_SIZES["valid"]
    num_test: int = nbody.PUBLISHED_SIZES["test"]
    start: int = nbody.START
    target_frames: tuple[int, ...] = nbody.TARGET_FRAMES
    time_reversal: bool = True
    parts: bool = False
    scale_spread: float = 0.0
    scale_draws: int = 1
    orbits: bool = False
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        for split, number in data_settings.split_sizes(self).items():
            most = nbody.SPLIT_SIZES[split]
            check_field(self, f"num_{split}", 1 <= number <= most, f"1 to {most}")
        is_spread = 0 <= self.scale_spread < math.inf
        check_field(self, "scale_spread", is_spread, "a number, 0 or more")
        check_field(self, "scale_draws", self.scale_draws >= 1, "1 or more")
        frames = (self.start, *self.target_frames)
        is_increasing = all(a < b for a, b in itertools.pairwise(frames))
        if len(frames) < 2 or frames[0] < 0 or frames[-1] > 48 or not is_increasing:
            raise ValueError(
                f"DataConfig: got start {self.start} and target_frames {self.target_frames}, "
                "expected at least one target and frames from 0 to 48 that increase from start"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NBodyConfig(RunConfig):
    """All settings of a run."""

    preset: str = "quick"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        noise = self.training.noise
        if self.data.orbits and (noise.positions or noise.velocities):
            raise ValueError(
                f"NBodyConfig: got data.orbits=True and training.noise of positions "
                f"{noise.positions}, velocities {noise.velocities}, expected only one of them: the "
                "features of orbits would reveal the state without noise"
            )


PUBLISHED = (
    Published("EGNN", 0.0071, None, REPORTED),
    Published("EGNO", 0.0054, None, EGNO_PAPER),
    Published(RUN_AGAIN, 0.00611, 0.00253, REPRODUCTION),
    Published("SEGNN", 0.0043, None, "trained for the last frame alone; Brandstetter et al. 2022"),
    Published("PONITA", 0.0043, None, "trained for the last frame alone; Bekkers et al. 2024"),
    Published("CGENN", 0.0039, None, "trained for the last frame alone; Ruhe et al. 2023"),
    Published(
        *("Multivector Neurons", 0.0035, None),
        "trained for the last frame alone; Liu, Ruhe and Forré 2024, arXiv:2406.04052",
    ),
)


def load_splits(config: DataConfig) -> Splits:
    """Loads the data of a run; simulates them if the cache does not have them."""
    start, targets = config.start, config.target_frames
    train, valid, test = (
        nbody.load_trajectories(split, num_simulations=number, cache_dir=config.cache_dir)
        for split, number in data_settings.split_sizes(config).items()
    )
    evaluated = (nbody.samples(each, start=start, target_frames=targets) for each in (valid, test))
    samples = _augmented(train, config), *evaluated
    if config.orbits:
        samples = map(nbody.with_orbits, samples)
    return Splits(*samples, test.positions[:, start : targets[-1] + 1])


def _augmented(train: nbody.Trajectories, config: DataConfig) -> datasets.Samples:
    """Returns the windows to train on: published, reversed in time, parts, of other lengths."""
    first, last = config.start, config.target_frames[-1]
    windows = [(first, config.target_frames)]
    if config.parts:
        length = len(config.target_frames)
        starts = range(first, last - length + 1)
        parts = [(start, range(start + 1, start + length + 1)) for start in starts]
        windows = windows * len(parts) + parts
    found = []
    for start, targets in windows:
        found.append(nbody.samples(train, start=start, target_frames=targets))
        if config.time_reversal:
            found.append(nbody.reversed_samples(train, start=start, target_frames=targets))
    if config.scale_spread == 0:
        return datasets.concatenate(*found)
    samples = datasets.concatenate(*found * config.scale_draws)
    normal = np.random.default_rng(0).normal(size=datasets.num_samples(samples))
    return nbody.scaled_samples(samples, np.exp(config.scale_spread * normal))


def task(data: DataConfig) -> str:
    """Returns the name of the task that the settings define; empty for the published one."""
    fields = ("num_train", "num_test", "start", "target_frames")
    return data_settings.named(**data_settings.unusual(data, DataConfig(), *fields))


EXPERIMENT = Experiment(
    name="nbody",
    title="5-body problem",
    summary=(
        "Five charged particles attract and repel one another. From positions and velocities at "
        "one frame of a simulation the model predicts the later ones, all in one pass."
    ),
    default=NBodyConfig(),
    presets=(
        "quick",
        "paper",
        "vector-orbits-quick",
        "vector-orbits",
        "vector",
        "any-times",
        "original",
    ),
    load_splits=load_splits,
    task=task,
    published=PUBLISHED,
    headlines={"": [""]},
    time_unit=nbody.DT * nbody.FRAME_SPACING,
    length_label="length units",
    error_unit="length units²",
)


if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
