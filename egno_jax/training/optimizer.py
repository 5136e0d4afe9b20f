"""Optimizers and learning-rate schedules, described by one dataclass and built by optax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal, get_args

import jax
import optax

Schedule = Literal["constant", "cosine", "halving"]
Decay = Literal["decoupled", "l2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of Adam, its schedule and its regularisation.

    Attributes:
      learning_rate: the peak learning rate.
      schedule: what follows the warm-up. `constant`; `cosine`: falls to `final_fraction` of the
        peak at the last step; `halving`: halves every `halve_every` steps.
      warmup_steps: steps over which the learning rate rises linearly from 0.
      final_fraction: where the cosine ends, as a fraction of the peak.
      halve_every: steps between two halvings.
      weight_decay: coefficient of the decay; biases are left out.
      decay: how weights decay. `decoupled`: as AdamW does; `l2`: added to the gradient before Adam
        scales it, as `torch.optim.Adam` does, biases included.
      clip_norm: gradients longer than this are scaled down to it; 0 leaves them.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.

    Raises:
      ValueError: a field is out of range; names it.
    """

    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"
    warmup_steps: int = 200
    final_fraction: float = 1e-3
    halve_every: int = 1000
    weight_decay: float = 1e-2
    decay: Decay = "decoupled"
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self) -> None:
        check_numbers(self)
        check(self, "learning_rate", self.learning_rate > 0, "above 0")
        check(self, "schedule", self.schedule in get_args(Schedule), f"one of {get_args(Schedule)}")
        check(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")
        check(self, "final_fraction", 0 <= self.final_fraction <= 1, "from 0 to 1")
        check(self, "halve_every", self.halve_every >= 1, "1 or more")
        check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        check(self, "decay", self.decay in get_args(Decay), f"one of {get_args(Decay)}")
        check(self, "clip_norm", self.clip_norm >= 0, "0 (off) or more")
        check(self, "b1", 0 <= self.b1 < 1, "from 0 to below 1")
        check(self, "b2", 0 <= self.b2 < 1, "from 0 to below 1")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a run of `num_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1), config.final_fraction)
    else:
        after = optax.exponential_decay(peak, config.halve_every, 0.5, staircase=True)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `num_steps`; it works on `Params` and on any other tree."""
    schedule = make_schedule(config, num_steps)
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.decay == "l2":
        updates = [clip, optax.add_decayed_weights(config.weight_decay), adam]
    else:
        updates = [clip, adam, optax.add_decayed_weights(config.weight_decay, mask=is_kernel)]
    return optax.chain(*updates, optax.scale_by_learning_rate(schedule))


def is_kernel(tree: Any) -> Any:
    """Returns a tree of booleans, True on leaves named `kernel`: a mask for weight decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", tree
    )


def check_numbers(config: Any, but: Collection[str] = ()) -> None:
    """Raises a ValueError that names a field of a config that is not of its default's kind.

    Where the default is an integer so must be the field, where it is a float a finite number.

    Args:
      config: a dataclass.
      but: fields that are not looked at.
    """
    for field in dataclasses.fields(config):
        if field.name in but:
            continue
        kind = type(field.default)
        if kind is int:
            value = getattr(config, field.name)
            is_valid = isinstance(value, int) and not isinstance(value, bool)
            check(config, field.name, is_valid, "an integer")
        elif kind is float:
            value = getattr(config, field.name)
            is_valid = isinstance(value, int | float) and not isinstance(value, bool)
            check(config, field.name, is_valid and math.isfinite(value), "a finite number")


def check(config: Any, name: str, is_valid: bool, expected: str) -> None:
    """Raises a ValueError that names the field of a config dataclass, unless `is_valid`."""
    if not is_valid:
        owner = type(config).__name__
        raise ValueError(f"{owner}.{name}: got {getattr(config, name)!r}, expected {expected}")
