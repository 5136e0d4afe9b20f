"""The training loop: chunks of steps, and between them evaluations, checkpoints and signals."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checkpoint import CheckpointError, load, save
from egno_jax.datasets.base import Samples, num_samples, take
from egno_jax.model import Params
from egno_jax.training.callbacks import Callback
from egno_jax.training.checkpoints import RunCheckpoints
from egno_jax.training.config import TrainingConfig
from egno_jax.training.evaluation import evaluate
from egno_jax.training.sampler import steps_per_epoch
from egno_jax.training.step import StepMetrics, TrainState, init_state, train_chunk

if TYPE_CHECKING:
    import os

_CHECKPOINTS = "checkpoints"
_BEST = "best"
_EVALUATE_EVERY_EPOCHS = 10


class FitResult(NamedTuple):
    """How a run ended.

    Attributes:
      params: the model of the step with the least F-MSE on the validation set; its averaged
        weights.
      best_step: that step.
      best_f_mse: that F-MSE.
      step: the last step done.
      interrupted: whether a signal ended the run before its last step; it can be resumed.
      seconds: time that the run took, all its parts together.
    """

    params: Params
    best_step: int
    best_f_mse: float
    step: int
    interrupted: bool
    seconds: float


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or infinite."""


def fit(
    directory: str | os.PathLike[str],
    params: Params,
    train: Samples,
    valid: Samples,
    config: TrainingConfig,
    *,
    resume: bool = False,
    make_callbacks: Callable[[int], Sequence[Callback]] = lambda start_step: (),
) -> FitResult:
    """Trains a model and keeps the one that is best on the validation set.

    The run lives in `directory`: `checkpoints/` (the whole state, for resuming) and `best/` (a
    model, for `egno_jax.load`). The same seed gives the same bits on the same device, whether or
    not the run is interrupted and resumed, and whatever `steps_per_call` is. SIGTERM and SIGINT are
    answered at the end of a call: a checkpoint is written and `interrupted` is True.

    Args:
      directory: where the run lives; made if it is not there.
      params: the initial model, also when resuming (its structure is needed).
      train: the training set; is put on the device whole.
      valid: the validation set; likewise.
      config: the settings.
      resume: continue from the newest checkpoint in `directory`, or from the start if the run ended
        before its first. Without it a directory that holds a run is refused.
      make_callbacks: is called with the step that the run starts from; returns what is told how it
        goes, such as `JSONLines`, `TensorBoard` and `Progress`.

    Returns:
      The best model and how the run ended.

    Raises:
      ValueError: the data do not fit the model or the settings.
      CheckpointError: there is a run in `directory` already, or its checkpoint cannot be resumed.
      NonFiniteLossError: training diverged; the last checkpoint is named.
    """
    directory = Path(directory)
    plan = _plan(config, num_samples(train))
    for name, samples in (("train", train), ("valid", valid)):
        _validate(name, samples)
    train, valid = jax.device_put((train, valid))
    directory.mkdir(parents=True, exist_ok=True)
    with RunCheckpoints(directory / _CHECKPOINTS, config.keep_checkpoints) as checkpoints:
        state, progress = _start(directory, checkpoints, params, config, resume)
        with contextlib.ExitStack() as stack:
            callbacks = [
                stack.enter_context(callback) for callback in make_callbacks(int(state.step))
            ]
            stop = stack.enter_context(_stop_on_signal())
            interrupted = _run(
                directory, checkpoints, state, progress, train, valid, config, plan, callbacks, stop
            )
    return FitResult(
        params=load(directory / _BEST) if progress.best_step else params,
        best_step=progress.best_step,
        best_f_mse=progress.best_f_mse,
        step=progress.step,
        interrupted=interrupted,
        seconds=progress.seconds,
    )


@dataclasses.dataclass
class _Progress:
    """What the loop remembers between two chunks and, through checkpoints, between two runs."""

    step: int = 0
    best_step: int = 0
    best_f_mse: float = math.inf
    seconds: float = 0.0


class _Plan(NamedTuple):
    """The steps between two events, zeros of the config resolved."""

    call: int
    evaluation: int
    checkpoint: int


def _plan(config: TrainingConfig, num_train: int) -> _Plan:
    epoch = steps_per_epoch(num_train, config.batch_size)
    evaluation = config.eval_every or _EVALUATE_EVERY_EPOCHS * epoch
    return _Plan(
        call=config.steps_per_call or epoch,
        evaluation=evaluation,
        checkpoint=config.checkpoint_every or evaluation,
    )


def _validate(name: str, samples: Samples) -> None:
    """Checks the values of every sample, joined into one graph, and of its targets."""
    batch = take(samples, np.arange(num_samples(samples)))
    try:
        graph_lib.validate(batch.graph, batch.times)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    for field in ("positions", "velocities"):
        is_finite = np.isfinite(getattr(batch, field)).all(axis=(0, 2))
        if not is_finite[np.asarray(batch.node_mask)].all():
            raise ValueError(f"{name}.{field}: got NaN or infinite targets, expected finite ones")


def _start(
    directory: Path,
    checkpoints: RunCheckpoints,
    params: Params,
    config: TrainingConfig,
    resume: bool,
) -> tuple[TrainState, _Progress]:
    """Returns the state and the progress that the run starts or resumes from."""
    state = init_state(params, config)
    if checkpoints.latest_step() is None:
        return state, _Progress()
    if not resume:
        raise CheckpointError(
            f"directory: {directory} holds a run of {checkpoints.latest_step()} steps already; "
            "pass resume=True to continue it, or choose another directory"
        )
    state, record = checkpoints.restore(state)
    return state, _Progress(**record)


def _run(
    directory: Path,
    checkpoints: RunCheckpoints,
    state: TrainState,
    progress: _Progress,
    train: Samples,
    valid: Samples,
    config: TrainingConfig,
    plan: _Plan,
    callbacks: Sequence[Callback],
    stop: threading.Event,
) -> bool:
    """Runs to the last step or to a signal; returns whether it was a signal."""
    while progress.step < config.num_steps and not stop.is_set():
        started = time.perf_counter()
        num_steps = _steps_until_next_event(progress.step, config.num_steps, plan)
        state, steps = train_chunk(state, train, config, num_steps)
        steps = jax.device_get(steps)
        _check_finite(steps, progress.step, checkpoints)
        progress.step += num_steps
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        _tell(callbacks, "on_chunk", _chunk_record(progress, steps, seconds))
        is_last = progress.step == config.num_steps
        if is_last or progress.step % plan.evaluation == 0:
            record = _evaluate(directory, state, progress, valid, config)
            _tell(callbacks, "on_evaluation", record)
        if is_last or stop.is_set() or progress.step % plan.checkpoint == 0:
            checkpoints.save(state, dataclasses.asdict(progress))
    return progress.step < config.num_steps


def _steps_until_next_event(step: int, num_steps: int, plan: _Plan) -> int:
    """Returns the length of the next chunk, which ends at the next event at the latest."""
    to_events = (every - step % every for every in (plan.evaluation, plan.checkpoint))
    return min(plan.call, num_steps - step, *to_events)


def _chunk_record(progress: _Progress, steps: StepMetrics, seconds: float) -> dict[str, Any]:
    return {
        "step": progress.step,
        "loss": float(steps.loss.mean()),
        "grad_norm": float(steps.grad_norm.mean()),
        "steps_per_second": len(steps.loss) / seconds,
        "seconds": progress.seconds,
    }


def _evaluate(
    directory: Path,
    state: TrainState,
    progress: _Progress,
    valid: Samples,
    config: TrainingConfig,
) -> dict[str, Any]:
    """Evaluates the averaged weights, keeps them if they are the best yet, returns a record."""
    started = time.perf_counter()
    params = state.ema if config.ema_decay else state.params
    errors = evaluate(params, valid, batch_size=config.eval_batch_size)
    f_mse, a_mse = float(errors.f_mse), float(errors.a_mse)
    if f_mse < progress.best_f_mse:
        save(directory / _BEST, params, overwrite=True)
        progress.best_step, progress.best_f_mse = progress.step, f_mse
    progress.seconds += time.perf_counter() - started
    return {
        "step": progress.step,
        "f_mse": f_mse,
        "a_mse": a_mse,
        "mse_per_time": [float(error) for error in errors.per_time],
        "seconds": progress.seconds,
    }


def _check_finite(steps: StepMetrics, first_step: int, checkpoints: RunCheckpoints) -> None:
    for index, (loss, grad_norm) in enumerate(zip(*steps, strict=True)):
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteLossError(
                f"step {first_step + index + 1}: the loss is {loss} and the norm of its gradient "
                f"{grad_norm}; the last checkpoint is of step {checkpoints.latest_step()}; lower "
                "optimizer.learning_rate or optimizer.clip_norm"
            )


def _tell(callbacks: Sequence[Callback], event: str, record: dict[str, Any]) -> None:
    for callback in callbacks:
        getattr(callback, event)(record)


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Sets an event on the first SIGTERM or SIGINT; a second SIGINT interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
