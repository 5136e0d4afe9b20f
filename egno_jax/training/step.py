"""The training state, the loss, and the compiled steps that carry one to the next."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egno_jax import metrics, model
from egno_jax.datasets.base import Batch, Samples, at_times, num_samples, take
from egno_jax.model import Params
from egno_jax.training.config import TrainingConfig
from egno_jax.training.noise import add_noise, step_key
from egno_jax.training.optimizer import make_optimizer
from egno_jax.training.sampler import batch_indices, chunk_indices, time_indices

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on, and so all that a checkpoint must hold.

    Attributes:
      step: number of steps done, int32.
      params: the weights that are trained.
      ema: the moving average of the weights, in float32 or wider: a narrower one would not move.
      opt_state: the optimizer's state.
      sampler_key: the random key of the sampler, never changed.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: Any
    sampler_key: Array


class StepMetrics(NamedTuple):
    """What a step reports; a chunk of K steps reports arrays of K.

    Attributes:
      loss: `[]` or `[K]`, the loss before the step.
      grad_norm: `[]` or `[K]`, the norm of its gradient before clipping.
      is_skipped: `[]` or `[K]`, whether the step changed nothing but its own number, because loss,
        gradient or update was not finite.
    """

    loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    is_skipped: Bool[Array, "..."]


def init_state(params: Params, config: TrainingConfig) -> TrainState:
    """Returns the state before the first step; its arrays are copies, for steps donate them."""
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.copy, params),
        ema=jax.tree.map(_widened, params),
        opt_state=optimizer.init(params),
        sampler_key=jax.random.fold_in(jax.random.key(config.seed), 1),
    )


def loss_fn(params: Params, batch: Batch) -> Float[Array, ""]:
    """Returns the mean squared error over times, real nodes and coordinates.

    `A-MSE(positions) + config.velocity_weight A-MSE(velocities)`.
    """
    predicted = model.apply(params, batch.graph, batch.times)
    loss = metrics.a_mse(predicted.positions, batch.positions, batch.node_mask)
    weight = params.config.velocity_weight
    if weight == 0:
        return loss
    if batch.velocities is None:
        raise ValueError(
            f"batch.velocities: got None with config.velocity_weight={weight}, expected the "
            "velocities that the loss asks for; train with velocity_weight=0 without them"
        )
    return loss + weight * metrics.a_mse(predicted.velocities, batch.velocities, batch.node_mask)


def train_step(
    state: TrainState, samples: Samples, config: TrainingConfig
) -> tuple[TrainState, StepMetrics]:
    """Takes one step on the batch that the sampler names for it; pure.

    Args:
      state: the state before the step.
      samples: the training set, on the device.
      config: the run's settings.

    Returns:
      The state after the step, and the loss and gradient norm of the batch.
    """
    indices = batch_indices(state.sampler_key, state.step, num_samples(samples), config.batch_size)
    return _step_on(state, samples, indices, config)


def noisy_batch(
    state: TrainState, samples: Samples, indices: Int[Array, "B"], config: TrainingConfig
) -> Batch:
    """Returns the batch of a step, with the noise of that step on its states."""
    key = step_key(state.sampler_key, state.step)
    return add_noise(take(samples, indices), key, jnp.arange(config.batch_size), config.noise)


def _step_on(
    state: TrainState, samples: Samples, indices: Int[Array, "B"], config: TrainingConfig
) -> tuple[TrainState, StepMetrics]:
    batch = noisy_batch(state, samples, indices, config)

    def loss_at(params: Params, kept: Int[Array, "Q B"] | None) -> Float[Array, ""]:
        return loss_fn(params, batch if kept is None else at_times(batch, kept))

    loss, grads = loss_and_gradient(state, config, batch.positions.shape[0], loss_at)
    return update(state, loss, grads, config)


def update(
    state: TrainState, loss: Float[Array, ""], grads: Params, config: TrainingConfig
) -> tuple[TrainState, StepMetrics]:
    """Returns the state after a step with this loss and gradient, and what the step reports.

    A step whose loss, gradient or update is not finite is skipped: it counts, and its batch is
    gone, but weights, average and optimizer stay as they are.
    """
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm = optax.tree.norm(grads)
    is_finite = (
        jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
    )

    def kept(new: Any, old: Any) -> Any:
        return jax.tree.map(functools.partial(jnp.where, is_finite), new, old)

    new_state = TrainState(
        step=state.step + 1,
        params=kept(params, state.params),
        ema=kept(_average(state.ema, params, state.step, config.ema_decay), state.ema),
        opt_state=kept(opt_state, state.opt_state),
        sampler_key=state.sampler_key,
    )
    return new_state, StepMetrics(loss, grad_norm, ~is_finite)


def loss_and_gradient(
    state: TrainState,
    config: TrainingConfig,
    num_times: int,
    loss_at: Callable[[Params, Int[Array, "Q B"] | None], Float[Array, ""]],
) -> tuple[Float[Array, ""], Params]:
    """Returns the loss and its gradient, at all times or at those that are drawn for this step.

    Args:
      state: the state before the step.
      config: the run's settings.
      num_times: P, how many times the batch has.
      loss_at: takes the model and which of the times to keep of each sample, `[Q, B]`, or None.
    """
    gradient = jax.value_and_grad(loss_at)
    if config.random_times == "all":
        return gradient(state.params, None)
    # Far from the numbers of epochs, which the sampler folds in.
    key = jax.random.fold_in(jax.random.fold_in(state.sampler_key, 0x7FFFFFFF), state.step)
    choice_key, times_key = jax.random.split(key)

    def at(num_kept: int) -> tuple[Float[Array, ""], Params]:
        kept = time_indices(
            times_key, num_times, num_kept, config.batch_size, kind=config.random_times
        )
        return gradient(state.params, kept)

    choice = jax.random.randint(choice_key, (), 0, len(config.num_times))
    return jax.lax.switch(choice, [functools.partial(at, kept) for kept in config.num_times])


@functools.partial(jax.jit, static_argnames=("config", "num_steps"), donate_argnames="state")
def train_chunk(
    state: TrainState, samples: Samples, config: TrainingConfig, num_steps: int
) -> tuple[TrainState, StepMetrics]:
    """Takes `num_steps` steps in one call of the device.

    Args:
      state: the state before; its buffers are donated and must not be used again.
      samples: the training set, on the device.
      config: the run's settings.
      num_steps: K.

    Returns:
      The state after, and the metrics of each step, `[K]`.
    """
    batches = chunk_indices(
        state.sampler_key, state.step, num_steps, num_samples(samples), config.batch_size
    )
    return jax.lax.scan(
        lambda state, indices: _step_on(state, samples, indices, config), state, batches
    )


def _average(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """Moves the average towards the weights: `d ema + (1 - d) w`, d = min(decay, (1+t)/(10+t)).

    d rises with the step t, so that the average forgets the initial weights.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda mean, new: (d * mean + (1 - d) * new).astype(mean.dtype), ema, params
    )


def averaged(state: TrainState, config: TrainingConfig) -> Params:
    """Returns the model that is evaluated and kept: the average, or the weights without one."""
    if config.ema_decay == 0:
        return state.params
    return jax.tree.map(lambda mean, new: mean.astype(new.dtype), state.ema, state.params)


def _widened(leaf: Array) -> Array:
    return jnp.array(leaf, jnp.result_type(leaf.dtype, jnp.float32))
