"""The training state, the step from one to the next, and jitted chunks of steps on devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from egno_jax import model
from egno_jax.datasets.base import Batch, Samples, at_times, check_structure, num_samples, prepared
from egno_jax.datasets.buckets import Buckets, by_size, padding_share
from egno_jax.metrics import Errors
from egno_jax.model import Params
from egno_jax.training.batches import (
    TIMES,
    BucketSampler,
    batch_indices,
    mean_nodes,
    place,
    place_valid,
    sampler_key,
    sampler_of,
    share_places,
    split_shares,
    step_key,
    take_shares,
    time_indices,
    without_repetitions,
)
from egno_jax.training.config import TrainingConfig, make_optimizer
from egno_jax.training.devices import MeshShape, constrain, make_mesh, map_shares, replicate, using
from egno_jax.training.flat import FlatParams, flatten, flatten_like, unflatten
from egno_jax.training.noise import add_noise
from egno_jax.training.objective import LossFn, Metrics, measure, mse_loss, velocity_weight
from egno_jax.training.stream import Stream

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that the next step depends on, and so all that a checkpoint must hold.

    On an accelerator `Trainer` keeps `params`, `ema` and `opt_state` as `FlatParams`.

    Attributes:
      step: number of steps done, int32.
      params: the weights that are trained.
      ema: the moving average of the weights, in float32 or wider: a narrower one would not move.
      opt_state: the optimizer's state.
      sampler_key: the random key of the sampler, never changed.
    """

    step: Int[Array, ""]
    params: Params | FlatParams
    ema: Params | FlatParams
    opt_state: Any
    sampler_key: Array


class StepMetrics(NamedTuple):
    """Metrics of one training step, or arrays of those of K steps.

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
    """Returns the state before the first step; its arrays are copies, because steps donate them."""

    def widened(leaf: Array) -> Array:
        return jnp.array(leaf, jnp.result_type(leaf.dtype, jnp.float32))

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.copy, params),
        ema=jax.tree.map(widened, params),
        opt_state=make_optimizer(config.optimizer, config.num_steps).init(params),
        sampler_key=sampler_key(config),
    )


def averaged(state: TrainState, config: TrainingConfig) -> Params:
    """Returns the model that is evaluated and saved: the average, or the weights without one."""
    found = state.params
    if config.ema_decay != 0:
        found = jax.tree.map(lambda mean, new: mean.astype(new.dtype), state.ema, found)
    return unflatten(found)


def train_step(
    state: TrainState, samples: Samples, config: TrainingConfig
) -> tuple[TrainState, StepMetrics]:
    """Takes one step on the batch that the sampler draws for it; pure, works inside `jit`.

    The training set has one size. Returns the state after the step and its metrics.
    """
    indices = batch_indices(state.sampler_key, state.step, num_samples(samples), config.batch_size)
    shares = take_shares(samples, indices)
    new, metrics = _step(flatten(state), shares, config, None, None)
    return unflatten(new), metrics


def train_chunk(
    state: TrainState, samples: Samples, config: TrainingConfig, num_steps: int
) -> tuple[TrainState, StepMetrics]:
    """Takes K = `num_steps` steps in one jitted chunk, on a training set of one size.

    Returns the state after, and the metrics of each step, `[K]`. The buffers of the state before
    are donated and must not be used again.
    """
    check_structure(samples)
    draw = BucketSampler(state.sampler_key, num_samples(samples), config.batch_size)
    step = int(state.step)
    indices = np.stack([draw(number)[1] for number in range(step, step + num_steps)])
    return _chunk_of_trees(state, samples, indices, _of_steps(config))


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _chunk_of_trees(
    state: TrainState, samples: Samples, indices: Int[Array, "K B"], config: TrainingConfig
) -> tuple[TrainState, StepMetrics]:
    new, metrics = run_chunk(flatten(state), samples, indices, None, config, None)
    return unflatten(new), metrics


def _of_steps(config: TrainingConfig) -> TrainingConfig:
    """Returns the settings without those that no step depends on, so that less is compiled anew."""
    others = ("steps_per_chunk", "eval_every", "eval_batch_size", "checkpoint_every")
    others += ("keep_checkpoints", "max_skipped_steps", "seed")
    return dataclasses.replace(config, **{name: getattr(TrainingConfig, name) for name in others})


@functools.partial(jax.jit, static_argnames=("config", "loss_fn"), donate_argnames="state")
def run_chunk(
    state: TrainState,
    samples: Samples | None,
    batches: Int[Array, "K B"] | Batch,
    mean_nodes: Float[Array, ""] | None,
    config: TrainingConfig,
    loss_fn: LossFn | None,
) -> tuple[TrainState, StepMetrics]:
    """Takes K steps; the one program of training, on any mesh.

    `batches` are `[K, B]`, which of the samples on the devices; or without `samples` the batches
    themselves in shares, from the host, whose leaves are `[K, D, ...]`. The state, before and
    after, is as `egno_jax.training.flat.flatten` returns it, and donated.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        shares = batch if samples is None else take_shares(samples, batch)
        return _step(state, shares, config, mean_nodes, loss_fn)

    return constrain(jax.lax.scan(step, state, batches))


def _step(
    state: TrainState,
    shares: Batch,
    config: TrainingConfig,
    mean_nodes: Float[Array, ""] | None,
    loss_fn: LossFn | None,
) -> tuple[TrainState, StepMetrics]:
    """Takes one step on a batch in D shares, whose leaves are `[D, ...]`.

    The state is as `egno_jax.training.flat.flatten` returns it.
    The loss of a batch from buckets is weighted by its real nodes, so that over an epoch every real
    node weighs the same, whichever bucket it is in.
    """
    num_shares, num_times = shares.positions.shape[:2]
    places, _ = share_places(config.batch_size, num_shares)
    shares, nodes = without_repetitions(split_shares(shares), config.batch_size)
    key = step_key(state.sampler_key, state.step)
    shares = map_shares(lambda part, at: add_noise(part, key, at, config.noise), shares, places)
    weight = 1.0 if mean_nodes is None else jnp.sum(nodes) / mean_nodes

    def loss_at(params: Params, kept: Int[Array, "Q B"] | None) -> Float[Array, ""]:
        velocities = velocity_weight(params, config)
        loss = loss_fn or functools.partial(mse_loss, velocity_weight=velocities)
        part = shares
        if kept is not None:
            part = map_shares(at_times, shares, jnp.moveaxis(kept[:, places], 1, 0))
        losses = map_shares(lambda batch: loss(model.apply, params, batch), part)
        if num_shares == 1:
            return weight * losses[0]
        return weight * jnp.sum(losses * nodes) / jnp.maximum(jnp.sum(nodes), 1)

    params = unflatten(state.params)
    loss, grads = _loss_and_gradient(state, params, config, num_times, loss_at)
    # Without the barrier a TPU concatenates again for every use.
    grads = jax.lax.optimization_barrier(flatten_like(grads, state.params))
    return _update(state, loss, grads, config)


def _loss_and_gradient(
    state: TrainState,
    params: Params,
    config: TrainingConfig,
    num_times: int,
    loss_at: Callable[[Params, Int[Array, "Q B"] | None], Float[Array, ""]],
) -> tuple[Float[Array, ""], Params]:
    """Returns the loss and its gradient, at all P times or at those drawn for this step."""
    gradient = jax.value_and_grad(loss_at)
    if config.random_times == "all":
        return gradient(params, None)
    choice_key, times_key = jax.random.split(step_key(state.sampler_key, state.step, TIMES))

    def at(num_kept: int) -> tuple[Float[Array, ""], Params]:
        size, kind = config.batch_size, config.random_times
        kept = time_indices(times_key, num_times, num_kept, size, kind=kind)
        return gradient(params, kept)

    choice = jax.random.randint(choice_key, (), 0, len(config.num_times))
    return jax.lax.switch(choice, [functools.partial(at, kept) for kept in config.num_times])


def _update(
    state: TrainState, loss: Float[Array, ""], grads: Params, config: TrainingConfig
) -> tuple[TrainState, StepMetrics]:
    """Returns the state after a step with this loss and gradient, and the step's metrics.

    A step whose loss, gradient or update is not finite is skipped: it counts, and its batch is
    gone, but weights, average and optimizer stay as they are.
    """
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
    new = (params, _average(state.ema, params, state.step, config.ema_decay), opt_state)
    kept = optax.tree.where(is_finite, new, (state.params, state.ema, state.opt_state))
    new_state = TrainState(state.step + 1, *kept, state.sampler_key)
    return new_state, StepMetrics(loss, grad_norm, ~is_finite)


def _average(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """Moves the average towards the weights: `d ema + (1 - d) w`, d = min(decay, (1+t)/(10+t)).

    d rises with the step t, so that the average forgets the initial weights.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: (d * old + (1 - d) * new).astype(old.dtype), ema, params)


class Trainer:
    """Training and evaluation of a run on the devices of a mesh, which hold its data.

    Args:
      train, valid, config, mesh, loss_fn: see `fit`.
      metrics: as pairs of a name and a function.
      stream: whether batches come from the host (`Stream`) rather than from a training set on every
        device; None: if there are several processes.

    Raises:
      ValueError: there are several processes and no mesh, or no stream.
    """

    def __init__(
        self,
        train: Samples | Buckets,
        valid: Samples | Buckets,
        config: TrainingConfig,
        mesh: Mesh | None = None,
        *,
        loss_fn: LossFn | None = None,
        metrics: Metrics = (),
        stream: bool | None = None,
    ) -> None:
        is_several = jax.process_count() > 1
        if is_several and (mesh is None or stream is False):
            raise ValueError(
                f"mesh: got {mesh} with stream={stream} in {jax.process_count()} processes, "
                "expected a mesh and a stream; make one with make_mesh"
            )
        self._mesh, self._config, self._loss_fn, self._metrics = mesh, config, loss_fn, metrics
        self._draw = sampler_of(train, sampler_key(config), config.batch_size)
        self.steps_per_epoch, self.seconds_waited = self._draw.steps_per_epoch, 0.0
        self._origins = self._mean_nodes = self._stream = None
        if isinstance(train, Buckets):
            self._origins = train.origins
            self._mean_nodes = mean_nodes(train, self._draw.num_batches, config.batch_size)
        self.padding = padding_share(train)
        self._valid = [place_valid(part, mesh) for part in by_size(valid)]
        if is_several if stream is None else stream:
            mesh = make_mesh(MeshShape()) if mesh is None else mesh
            self._stream = Stream(train, sampler_key(config), config, mesh)
        else:
            self._resident = [place(prepared(part), mesh) for part in by_size(train)]

    def place(self, state: TrainState) -> TrainState:
        """Places a state on all devices; on an accelerator its weights are flat from then on."""
        return flatten(replicate(state, self._mesh))

    def advance(
        self, state: TrainState, step: int, num_steps: int
    ) -> tuple[TrainState, StepMetrics]:
        """Takes a chunk of steps after the first `step`; `seconds_waited` for data is set.

        The state is one that was placed, and is donated. Returns the state after, and the metrics
        of each step on the host.
        """
        found, self.seconds_waited = [], 0.0
        config = _of_steps(self._config)
        # Sizes of buckets differ, so each of their steps is a call of its own.
        length = num_steps if len(self._draw.num_batches) == 1 else 1
        for start in range(step, step + num_steps, length):
            samples, batches = self._batches(start, length)
            with using(self._mesh):
                state, metrics = run_chunk(
                    state, samples, batches, self._mean_nodes, config, self._loss_fn
                )
            found.append(metrics)
        return state, jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(found))

    def _batches(self, step: int, num_steps: int) -> tuple[Samples | None, Any]:
        """Returns the samples and the indices of steps, or no samples and the steps' batches."""
        if self._stream is not None:
            if self._stream.get_state() != {"next_step": step}:
                self._stream.set_state({"next_step": step})
            batches = self._stream.take(num_steps)
            self.seconds_waited += self._stream.seconds_waited
            return None, batches
        drawn = [self._draw(number) for number in range(step, step + num_steps)]
        return self._resident[drawn[0][0]], np.stack([indices for _, indices in drawn])

    def evaluate(self, params: Params) -> tuple[Errors, dict[str, Any]]:
        """Returns the errors and the metrics of a model on the validation set."""
        size = self._config.eval_batch_size
        with using(self._mesh):
            return measure(params, self._valid, batch_size=size, metrics=self._metrics)

    def batch_of(self, step: int) -> Int[np.ndarray, "B"]:
        """Returns which of the samples, as they were given, make up the batch after `step`."""
        bucket, indices = self._draw(step)
        return indices if self._origins is None else np.asarray(self._origins[bucket])[indices]
