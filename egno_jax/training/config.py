"""The settings of a training run, and the optimizer that they describe."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from egno_jax.checks import as_float, as_seed
from egno_jax.config import check_field
from egno_jax.deprecation import renamed_fields
from egno_jax.graph.columns import QUANTITIES

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

Schedule = Literal["constant", "cosine", "halving", "hold"]
Decay = Literal["decoupled", "l2"]
RandomTimes = Literal["all", "subsets", "grids"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of Adam, its learning-rate schedule and its regularisation.

    Attributes:
      learning_rate: the peak learning rate.
      schedule: what follows the warm-up. `constant`; `cosine`: falls to `final_fraction` of the
        peak, which it would reach one step after the last; `halving`: halves every `halve_every`
        steps; `hold`: stays at the peak until the last `decay_fraction` of the run, then falls as
        `cosine` does.
      warmup_steps: steps over which the learning rate rises linearly from 0; a run that is shorter
        never reaches the peak.
      final_fraction: where the cosine ends, as a fraction of the peak.
      halve_every: steps between two halvings.
      decay_fraction: the part of the run in which `hold` falls.
      weight_decay: coefficient of the decay.
      decay: how weights decay. `decoupled`: as in AdamW, biases excluded; `l2`: added to the
        gradient before Adam scales it, as in `torch.optim.Adam`, biases included.
      clip_norm: gradients longer than this are scaled down to it; 0 disables clipping.
      clip_history: gradients longer than `1.5 mean + 2 std` of the norms of the last `clip_history`
        steps are also scaled down to that, see `clip_by_history`; 0 disables it.
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
    decay_fraction: float = 0.25
    weight_decay: float = 1e-2
    decay: Decay = "decoupled"
    clip_norm: float = 1.0
    clip_history: int = 0
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self) -> None:
        _check_numbers(self)
        check_field(self, "learning_rate", self.learning_rate > 0, "above 0")
        check_field(self, "final_fraction", self.final_fraction <= 1, "from 0 to 1")
        check_field(self, "halve_every", self.halve_every >= 1, "1 or more")
        check_field(self, "decay_fraction", 0 < self.decay_fraction <= 1, "above 0, at most 1")
        names = ("final_fraction", "warmup_steps", "weight_decay", "clip_norm", "clip_history")
        for name in names:
            check_field(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("b1", "b2"):
            check_field(self, name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name, choices in (("schedule", get_args(Schedule)), ("decay", get_args(Decay))):
            check_field(self, name, getattr(self, name) in choices, f"one of {choices}")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a run of `num_steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(num_steps - warmup, 1), config.final_fraction)
    elif config.schedule == "hold":
        num_falling = round(config.decay_fraction * num_steps)
        num_falling = max(min(num_falling, num_steps - warmup), 1)
        parts = [
            optax.constant_schedule(peak),
            optax.cosine_decay_schedule(peak, num_falling, config.final_fraction),
        ]
        after = optax.join_schedules(parts, [max(num_steps - warmup - num_falling, 0)])
    else:
        after = optax.exponential_decay(peak, config.halve_every, 0.5, staircase=True)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `num_steps`, for `Params` or any other tree."""
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.clip_history:
        clip = optax.chain(clip, clip_by_history(config.clip_history))
    if config.decay == "l2":
        updates = [clip, optax.add_decayed_weights(config.weight_decay), adam]
    else:
        updates = [clip, adam, optax.add_decayed_weights(config.weight_decay, mask=is_kernel)]
    return optax.chain(*updates, optax.scale_by_learning_rate(make_schedule(config, num_steps)))


class HistoryState(NamedTuple):
    """State of `clip_by_history`.

    Attributes:
      norms: `[H]`, the norms of the last gradients, after clipping.
      count: how many gradients there were.
    """

    norms: Float[Array, "H"]
    count: Int[Array, ""]


def clip_by_history(length: int) -> optax.GradientTransformation:
    """Scales gradients that are longer than is usual down to what is.

    The longest that is not scaled is `1.5 mean + 2 std` of the last `length` norms; the first
    `length` gradients, and those after norms that are all 0, are not scaled.

    Source: Hoogeboom et al., "Equivariant Diffusion for Molecule Generation in 3D", ICML 2022, the
    queue of gradient norms in its code.
    """

    def init(params: Any) -> HistoryState:
        return HistoryState(jnp.zeros(length, jnp.float32), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: HistoryState, params: Any = None) -> tuple[Any, HistoryState]:
        norm = optax.tree.norm(updates).astype(jnp.float32)
        usual = 1.5 * jnp.mean(state.norms) + 2 * jnp.std(state.norms)
        is_known = (state.count >= length) & (usual > 0)
        longest = jnp.where(is_known, usual, jnp.inf)
        scale = jnp.where(norm > longest, longest / norm, 1.0)
        norms = state.norms.at[state.count % length].set(jnp.minimum(norm, longest))
        scaled = jax.tree.map(lambda x: (scale * x).astype(x.dtype), updates)
        return scaled, HistoryState(norms, state.count + 1)

    return optax.GradientTransformation(init, update)


def is_kernel(tree: Any) -> Any:
    """Returns a tree of booleans, True on leaves named `kernel`: a mask for weight decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", tree
    )


@renamed_fields(length_column="distance_column")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Noise on the initial states and the targets of each training batch; none by default.

    Features that follow the state must be recomputed, or they would reveal the state without
    noise: name their columns. `fit` checks that the columns hold what their names say.

    Attributes:
      positions: the standard deviation s_x, in the unit of the positions.
      velocities: the standard deviation s_v, in the unit of the velocities.
      targets: the standard deviation s_y of noise on target positions, in their unit.
      speed_column: the node feature that holds |v_i|; None if there is none.
      squared_distance_column: the edge feature that holds |x_i - x_j|^2; None if there is none.
      distance_column: the edge feature that holds |x_i - x_j|, 0 in `egno_jax.datasets.protein`;
        None if there is none.

    Raises:
      ValueError: a field is out of range; names it.
    """

    positions: float = 0.0
    velocities: float = 0.0
    targets: float = 0.0
    speed_column: int | None = 0
    squared_distance_column: int | None = -1
    distance_column: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, exclude=QUANTITIES)
        for name in ("positions", "velocities", "targets"):
            check_field(self, name, getattr(self, name) >= 0, "0 (no noise) or more")
        for name in QUANTITIES:
            column = getattr(self, name)
            is_column = isinstance(column, int) and not isinstance(column, bool)
            check_field(self, name, column is None or is_column, "the number of a column, or None")

    @property
    def is_off(self) -> bool:
        """Whether no noise is added."""
        return self.positions == self.velocities == self.targets == 0


@renamed_fields(steps_per_call="steps_per_chunk")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of `fit`.

    Attributes:
      num_steps: number of optimizer steps.
      batch_size: samples in a step.
      seed: seed of the order of the samples, of noise and of random times; 0 to 2^32 - 1.
      velocity_weight: weight of the velocity error in the default loss. At 0 the velocities that
        the model returns are not supervised and predict nothing.
      ema_decay: decay of the exponential moving average of the weights, which is evaluated and
        saved; 0 evaluates the weights themselves.
      steps_per_chunk: steps in one jitted chunk; 0 means an epoch. It affects speed only:
        checkpoints and signals wait for the end of a chunk. Each distinct length is compiled once,
        so choose a divisor of `eval_every`, `checkpoint_every` and `num_steps`.
      eval_every: steps between two evaluations on the validation set; 0 means 10 epochs.
      eval_batch_size: samples in a batch of an evaluation.
      checkpoint_every: steps between two checkpoints; 0 means at each evaluation.
      random_times: on which targets a sample is trained in a step. `all`; or `num_times` of them,
        drawn for each sample in each step: `subsets`, any of them, or `grids`, equally spaced ones
        from a random window. Evaluations use all targets. Suits `temporal_grid="context"`;
        `"index"` treats the times as equally spaced.
      num_times: how many targets are drawn; if there are several numbers, each step draws one of
        them. Each is compiled. Empty with `all`.
      keep_checkpoints: how many of the last checkpoints are kept, in addition to the best model.
      max_skipped_steps: how many steps may be skipped because their loss, gradient or update is
        not finite, before the run is stopped; 0 stops at the first.
      noise: noise on the initial states of each step.
      optimizer: settings of the optimizer.

    Raises:
      ValueError: a field is out of range; names it.
    """

    num_steps: int = 6000
    batch_size: int = 100
    seed: int = 0
    velocity_weight: float = 0.0
    ema_decay: float = 0.999
    steps_per_chunk: int = 0
    eval_every: int = 0
    eval_batch_size: int = 500
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    max_skipped_steps: int = 10
    random_times: RandomTimes = "all"
    num_times: tuple[int, ...] = ()
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _check_numbers(self)
        for name, kind in (("optimizer", OptimizerConfig), ("noise", NoiseConfig)):
            is_config = isinstance(getattr(self, name), kind)
            check_field(self, name, is_config, f"an egno_jax.training.{kind.__name__}")
        positive = ("num_steps", "batch_size", "eval_batch_size", "keep_checkpoints")
        for field in dataclasses.fields(self):
            if isinstance(field.default, int | float):
                name, least = field.name, 1 if field.name in positive else 0
                check_field(self, name, getattr(self, name) >= least, f"{least} or more")
        as_seed("TrainingConfig.seed", self.seed)
        check_field(self, "ema_decay", self.ema_decay < 1, "from 0 (off) to below 1")
        kinds = get_args(RandomTimes)
        check_field(self, "random_times", self.random_times in kinds, f"one of {kinds}")
        is_drawn = self.random_times != "all"
        is_counts = isinstance(self.num_times, tuple) and all(
            isinstance(number, int) and not isinstance(number, bool) and number >= 1
            for number in self.num_times
        )
        expected = "one or more numbers above 0" if is_drawn else 'none with random_times="all"'
        check_field(self, "num_times", is_counts and bool(self.num_times) == is_drawn, expected)


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the saved settings of a run, of this or an earlier version, to today's names.

    Returns a copy, with the parts `training` and `model` in JSON's types; other parts stay.
    `training.steps_per_call` becomes `steps_per_chunk`; the columns of the noise, in which
    `distance_column` was |x|^2 and `length_column` |x|, take the names of `NoiseConfig`; the
    model's `velocity_weight` moves to the training.
    """
    settings = copy.deepcopy(dict(settings))
    training, model = settings.get("training"), settings.get("model")
    if not isinstance(training, dict):
        return settings
    if "steps_per_call" in training:
        training["steps_per_chunk"] = training.pop("steps_per_call")
    noise = training.get("noise")
    is_old = isinstance(noise, dict) and "squared_distance_column" not in noise
    if is_old and "distance_column" in noise:
        noise["squared_distance_column"] = noise.pop("distance_column")
        noise["distance_column"] = noise.pop("length_column", None)
    if isinstance(model, dict) and "velocity_weight" in model:
        training["velocity_weight"] = training.get("velocity_weight") or model["velocity_weight"]
        model["velocity_weight"] = 0.0
    return settings


def _check_numbers(config: Any, exclude: Collection[str] = ()) -> None:
    """Raises a ValueError if a field with a number as its default does not hold such a number.

    Numbers of any library become those of Python, as JSON holds them.
    """
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), type(field.default)
        if field.name in exclude or kind not in (int, float):
            continue
        is_number = isinstance(value, Integral if kind is int else Real)
        is_valid = is_number and math.isfinite(as_float(value))
        expected = "an integer" if kind is int else "a finite number"
        check_field(config, field.name, is_valid, expected)
        object.__setattr__(config, field.name, kind(value))
