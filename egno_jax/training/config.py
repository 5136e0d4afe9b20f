"""The settings of a training run."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args, get_type_hints

from egno_jax.training.noise import NoiseConfig
from egno_jax.training.optimizer import OptimizerConfig, check, check_numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of `fit`; the weight of the velocity error is the model's (`EGNOConfig`).

    Attributes:
      num_steps: number of optimizer steps.
      batch_size: samples a step.
      seed: seed of the weights and of the order of the samples.
      ema_decay: decay of the exponential moving average of the weights that is evaluated and kept;
        0 evaluates the weights themselves.
      steps_per_call: steps that one call of the device runs; 0 means an epoch. It changes nothing
        but speed; checkpoints and signals wait for the end of a call. Each distinct length is
        compiled once, so let it divide `eval_every`, `checkpoint_every` and `num_steps`.
      eval_every: steps between two evaluations on the validation set; 0 means 10 epochs.
      eval_batch_size: samples a batch of an evaluation.
      checkpoint_every: steps between two checkpoints; 0 means each evaluation.
      random_times: which of the targets a sample is trained on in a step. `all`; or as many as
        `num_times` says, drawn anew for each sample of each step: `subsets`, any of them, or
        `grids`, equally spaced ones from a random window. Evaluations use all targets. A model
        with `temporal_grid="context"` is made for it; one with `"index"` takes any times for
        equally spaced ones.
      num_times: how many targets are drawn; of several numbers each step draws one. Each is
        compiled. Empty with `all`.
      keep_checkpoints: how many of the last checkpoints are kept; the best model is kept besides.
      max_skipped_steps: how many steps of a run may be skipped because their loss, gradient or
        update is not finite, before the run is stopped; 0 stops at the first.
      noise: noise on the given states of each step.
      optimizer: settings of the optimizer.

    Raises:
      ValueError: a field is out of range; names it.
    """

    num_steps: int = 6000
    batch_size: int = 100
    seed: int = 0
    ema_decay: float = 0.999
    steps_per_call: int = 0
    eval_every: int = 0
    eval_batch_size: int = 500
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    max_skipped_steps: int = 10
    random_times: Literal["all", "subsets", "grids"] = "all"
    num_times: tuple[int, ...] = ()
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        is_config = isinstance(self.optimizer, OptimizerConfig)
        check(self, "optimizer", is_config, "an egno_jax.training.OptimizerConfig")
        is_noise = isinstance(self.noise, NoiseConfig)
        check(self, "noise", is_noise, "an egno_jax.training.NoiseConfig")
        for name in ("num_steps", "batch_size", "eval_batch_size", "keep_checkpoints"):
            check(self, name, getattr(self, name) >= 1, "1 or more")
        counts = ("seed", "steps_per_call", "eval_every", "checkpoint_every", "max_skipped_steps")
        for name in counts:
            check(self, name, getattr(self, name) >= 0, "0 or more")
        kinds = get_args(get_type_hints(type(self))["random_times"])
        check(self, "random_times", self.random_times in kinds, f"one of {kinds}")
        is_drawn = self.random_times != "all"
        expected = "one or more numbers above 0" if is_drawn else 'none with random_times="all"'
        is_counts = isinstance(self.num_times, tuple) and all(
            isinstance(number, int) and number >= 1 for number in self.num_times
        )
        check(self, "num_times", is_counts and bool(self.num_times) == is_drawn, expected)
        check(self, "ema_decay", 0 <= self.ema_decay < 1, "from 0 (off) to below 1")
