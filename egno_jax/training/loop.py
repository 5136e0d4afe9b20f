"""The training loop: chunks of steps, and between them evaluations, checkpoints and signals."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from egno_jax.checkpoint import CheckpointError, load, save
from egno_jax.datasets.base import Samples, num_samples, validate
from egno_jax.datasets.buckets import Buckets, by_size, padding_share
from egno_jax.model import Params, check_feature_sizes, check_params
from egno_jax.training import observe
from egno_jax.training.callbacks import Callback
from egno_jax.training.checkpoints import RunCheckpoints, StorageError, check_writable
from egno_jax.training.config import TrainingConfig
from egno_jax.training.mesh import check_model
from egno_jax.training.mixed import epoch_batches
from egno_jax.training.placement import Placement, place
from egno_jax.training.processes import agree_on_any, is_main_process, wait_for_all
from egno_jax.training.sampler import steps_per_epoch
from egno_jax.training.step import StepMetrics, TrainState, averaged, init_state

if TYPE_CHECKING:
    import os

    from jax.sharding import Mesh

_CHECKPOINTS = "checkpoints"
_BEST = "best"
_EVALUATE_EVERY_EPOCHS = 10
_NAMED_SAMPLES = 20
# Settings that may change when a run is resumed, because they change no number.
_FREE_SETTINGS = ("steps_per_call", "keep_checkpoints", "max_skipped_steps")


class FitResult(NamedTuple):
    """How a run ended.

    Attributes:
      params: the model of the step with the least F-MSE on the validation set; its averaged
        weights. The initial ones if the run was interrupted before its first evaluation.
      best_step: that step; 0 before the first evaluation.
      best_f_mse: that F-MSE; infinite before the first evaluation.
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
    """The validation error, or more losses or gradients than allowed, became NaN or infinite."""


def fit(
    directory: str | os.PathLike[str],
    params: Params,
    train: Samples | Buckets,
    valid: Samples | Buckets,
    config: TrainingConfig,
    *,
    resume: bool = False,
    make_callbacks: Callable[[int], Sequence[Callback]] = lambda start_step: (),
    mesh: Mesh | None = None,
    profile: str | os.PathLike[str] | None = None,
) -> FitResult:
    """Trains a model and keeps the one that is best on the validation set.

    The run lives in `directory`: `checkpoints/` (the whole state, for resuming) and `best/` (a
    model, for `egno_jax.load`). The same seed gives the same bits on the same device, whether or
    not the run is interrupted and resumed, and whatever `steps_per_call` is (on GPUs, if XLA is
    told to be deterministic: `--xla_gpu_deterministic_ops=true`). SIGTERM and SIGINT are answered
    at the end of a call: a checkpoint is written and `interrupted` is True.

    Steps whose loss or gradient is not finite are skipped and counted, up to
    `config.max_skipped_steps`. Checkpoints are written while training goes on, each whole or not
    at all, and hold the SHA-256 of what is in them; one that is damaged is set aside on resuming,
    with a warning, and the one before it is used.

    Args:
      directory: where the run lives; made if it is not there.
      params: the initial model, also when resuming (its structure is needed).
      train: the training set, of one size or in buckets (`egno_jax.datasets.bucketed`); is put on
        the device whole, or on each of a mesh.
      valid: the validation set, likewise, at the times of the training set; is put on the device
        whole, or split over a mesh.
      config: the settings.
      resume: continue from the newest checkpoint in `directory`, or from the start if the run ended
        before its first. Without it a directory that holds a run is refused.
      make_callbacks: is called with the step that the run starts from; returns what is told how it
        goes, such as `JSONLines`, `TensorBoard` and `Progress`; in process 0 alone.
      mesh: the devices to compute on, from `make_mesh`; None: the default device. Several processes
        need one; the training set then stays on the host, and each reads its share of every batch.
        It may change when a run is resumed, and changes the numbers by rounding alone.
      profile: a folder for a trace of the second call of the device, the first that is compiled
        already; TensorBoard and https://ui.perfetto.dev show it. None: no trace.

    Returns:
      The best model and how the run ended.

    Raises:
      ValueError: an argument is of another kind, or the data do not go together, or do not fit
        the model or the settings; names what. (With `random_times`, which trains on others in each
        step, the validation set may have times of its own.)
      CheckpointError: there is a run in `directory` already, its checkpoint cannot be resumed, or
        it was made with other settings; names the setting.
      NonFiniteLossError: training diverged; names the step, the samples of its batch and the last
        checkpoint.
      StorageError: the directory cannot be written to, at the start or later, for example because
        the disk is full; the last checkpoint is whole, and the run can be resumed from it.
    """
    directory = Path(directory)
    _check_inputs(params, train, valid, config, make_callbacks)
    plan = _plan(config, train)
    if mesh is not None:
        check_model(params.config, mesh)
    placement = place(train, valid, config, mesh)
    check_writable(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (
        _naming_the_last_checkpoint(directory),
        RunCheckpoints(directory / _CHECKPOINTS, config.keep_checkpoints) as checkpoints,
    ):
        settings = _settings(params, config)
        run = _Run(directory, checkpoints, placement, config, plan, settings, padding_share(train))
        state, progress = _start(run, params, resume)
        with contextlib.ExitStack() as stack:
            callbacks = [
                stack.enter_context(callback)
                for callback in (make_callbacks(int(state.step)) if is_main_process() else ())
            ]
            stop = stack.enter_context(_stop_on_signal())
            _train(run, state, progress, callbacks, stop, _trace_folders(profile))
    return FitResult(
        params=load(directory / _BEST) if progress.best_step else params,
        best_step=progress.best_step,
        best_f_mse=progress.best_f_mse,
        step=progress.step,
        interrupted=progress.step < config.num_steps,
        seconds=progress.seconds,
    )


def _check_inputs(
    params: Params,
    train: Samples | Buckets,
    valid: Samples | Buckets,
    config: TrainingConfig,
    make_callbacks: Any,
) -> None:
    """Raises if model, data and settings do not go together."""
    check_params(params)
    if not isinstance(config, TrainingConfig):
        raise ValueError(f"config: got {type(config).__name__}, expected a TrainingConfig")
    if not callable(make_callbacks):
        raise ValueError(
            f"make_callbacks: got {type(make_callbacks).__name__}, expected a function of the step "
            "that the run starts from, such as lambda step: [JSONLines(path, step)]"
        )
    for name, data in (("train", train), ("valid", valid)):
        for part in by_size(data):
            try:
                validate(part)
                check_feature_sizes(params, part.graph)
                _check_times(np.asarray(part.times), name, by_size(train)[0].times, config)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    weight = params.config.velocity_weight
    if weight and any(part.velocities is None for part in by_size(train)):
        raise ValueError(
            f"train: velocities are None, but the model's config.velocity_weight is {weight}; give "
            "the velocities, or make the model with velocity_weight=0"
        )
    num_targets = by_size(train)[0].positions.shape[1]
    if max(config.num_times, default=0) > num_targets:
        raise ValueError(
            f"num_times: got {config.num_times}, expected at most {num_targets}, the number of "
            "target times of the training samples"
        )


def _check_times(times: np.ndarray, name: str, expected: Any, config: TrainingConfig) -> None:
    """Raises if times are not those of the training set.

    A model that is trained on other times in each step may be selected on times of its own.
    """
    is_free = name == "valid" and config.random_times != "all"
    if not is_free and not np.array_equal(times, expected):
        raise ValueError(
            f"times: got {times}, expected those of the training set, {np.asarray(expected)}: the "
            'times that a model is trained on (with random_times="all")'
        )


@dataclasses.dataclass
class _Progress:
    """What the loop remembers between two chunks and, through checkpoints, between two runs."""

    step: int = 0
    best_step: int = 0
    best_f_mse: float = math.inf
    seconds: float = 0.0
    skipped_steps: int = 0


class _Plan(NamedTuple):
    """The steps between two events, zeros of the config resolved."""

    call: int
    evaluation: int
    checkpoint: int


class _Run(NamedTuple):
    """What does not change while a run goes."""

    directory: Path
    checkpoints: RunCheckpoints
    placement: Placement
    config: TrainingConfig
    plan: _Plan
    settings: dict[str, Any]
    padding: float


def _plan(config: TrainingConfig, train: Samples | Buckets) -> _Plan:
    counts = [num_samples(part) for part in by_size(train)]
    if isinstance(train, Buckets):
        epoch = sum(epoch_batches(counts, config.batch_size))
    else:
        epoch = steps_per_epoch(*counts, config.batch_size)
    evaluation = config.eval_every or _EVALUATE_EVERY_EPOCHS * epoch
    return _Plan(
        call=config.steps_per_call or epoch,
        evaluation=evaluation,
        checkpoint=config.checkpoint_every or evaluation,
    )


def _settings(params: Params, config: TrainingConfig) -> dict[str, Any]:
    """Returns the settings that decide a run's numbers, as JSON gives them back."""
    training = dataclasses.asdict(config)
    for name in _FREE_SETTINGS:
        del training[name]
    settings = {"model": dataclasses.asdict(params.config), "training": training}
    return json.loads(json.dumps(settings))


def _start(run: _Run, params: Params, resume: bool) -> tuple[TrainState, _Progress]:
    """Returns the state and the progress that the run starts or resumes from."""
    state = run.placement.lay(init_state(params, run.config))
    latest = run.checkpoints.latest_step()
    if not resume and (latest is not None or (run.directory / _BEST).exists()):
        raise CheckpointError(
            f"directory: {run.directory} holds a run of {latest or 0} steps already; pass "
            "resume=True to continue it, or choose another directory"
        )
    if latest is None:
        return state, _Progress()
    state, record = run.checkpoints.restore_newest(
        state, check_record=lambda record: _check_settings(run, params, record["settings"])
    )
    progress = _Progress(**record["progress"])
    if progress.best_step == progress.step:
        # The run may have ended between this checkpoint and the best model that it belongs to.
        _save_best(run, state)
    return state, progress


def _defaults(kind: type) -> dict[str, Any]:
    """Returns the defaults of a config's fields, as JSON gives them back."""
    fields = {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else dataclasses.asdict(field.default_factory())
        for field in dataclasses.fields(kind)
    }
    known = {name: value for name, value in fields.items() if value is not dataclasses.MISSING}
    return json.loads(json.dumps(known))


def _check_settings(run: _Run, params: Params, expected: dict[str, Any]) -> None:
    # A setting that is newer than the run had its default then.
    kinds = {"model": type(params.config), "training": TrainingConfig}
    expected = {part: _defaults(kinds[part]) | expected[part] for part in run.settings}
    for part, settings in run.settings.items():
        for name, value in settings.items():
            if value != expected[part].get(name):
                remedy = "start a new run to change it"
                if part == "training":
                    remedy += (
                        "; one in another directory goes on from this one's model with "
                        f"params=egno_jax.load({str(run.directory / _BEST)!r})"
                    )
                raise CheckpointError(
                    f"{part} setting {name}: got {value!r}, but the run in {run.directory} was "
                    f"made with {expected[part].get(name)!r}; {remedy}"
                )


def _train(
    run: _Run,
    state: TrainState,
    progress: _Progress,
    callbacks: Sequence[Callback],
    stop: threading.Event,
    traces: Iterator[Path | None],
) -> None:
    """Goes on to the last step or to a signal; `progress` tells how far."""
    num_steps = run.config.num_steps
    while progress.step < num_steps and not agree_on_any(stop.is_set()):
        length = _steps_until_next_event(progress.step, num_steps, run.plan)
        with observe.watch(next(traces)) as cost:
            state, steps = run.placement.advance(state, progress.step, length)
            steps = jax.device_get(steps)
        progress.skipped_steps += int(steps.is_skipped.sum())
        if progress.skipped_steps > run.config.max_skipped_steps:
            raise NonFiniteLossError(_divergence(run, state, steps, progress))
        progress.step += length
        progress.seconds += cost.seconds
        _tell(callbacks, "on_chunk", _chunk_record(run, progress, steps, cost))
        is_best = False
        if progress.step == num_steps or progress.step % run.plan.evaluation == 0:
            record = _evaluate(run, state, progress)
            is_best = progress.best_step == progress.step
            _tell(callbacks, "on_evaluation", record)
        if is_best or progress.step % run.plan.checkpoint == 0:
            _save_checkpoint(run, state, progress)
        if is_best:
            # After its checkpoint, so that no best model is newer than the newest checkpoint.
            run.checkpoints.wait()
            _save_best(run, state)
    if progress.step:
        _save_checkpoint(run, state, progress)
        run.checkpoints.wait()


def _save_best(run: _Run, state: TrainState) -> None:
    """Writes the best model from process 0, while the others wait."""
    params = averaged(state, run.config)
    if is_main_process():
        save(run.directory / _BEST, params, overwrite=True)
    wait_for_all("best")


def _steps_until_next_event(step: int, num_steps: int, plan: _Plan) -> int:
    """Returns the length of the next chunk, which ends at the next event at the latest."""
    to_events = (every - step % every for every in (plan.evaluation, plan.checkpoint))
    return min(plan.call, num_steps - step, *to_events)


def _save_checkpoint(run: _Run, state: TrainState, progress: _Progress) -> None:
    record = {"progress": dataclasses.asdict(progress), "settings": run.settings}
    run.checkpoints.save(state, record)


def _trace_folders(profile: str | os.PathLike[str] | None) -> Iterator[Path | None]:
    """Yields, for each call of the device, where its trace goes: that of the second is written."""
    yield None
    yield Path(profile) if profile is not None and is_main_process() else None
    yield from itertools.repeat(None)


def _chunk_record(
    run: _Run, progress: _Progress, steps: StepMetrics, cost: observe.Cost
) -> dict[str, Any]:
    taken = ~steps.is_skipped
    waited = run.placement.seconds_waited()

    def mean(values: np.ndarray) -> float | None:
        return float(values[taken].mean()) if taken.any() else None

    return {
        "step": progress.step,
        "loss": mean(steps.loss),
        "grad_norm": mean(steps.grad_norm),
        "skipped_steps": progress.skipped_steps,
        "steps_per_second": len(steps.loss) / cost.seconds,
        "seconds": progress.seconds,
        "step_seconds": max(cost.seconds - cost.compile_seconds - waited, 0.0) / len(steps.loss),
        "data_seconds": waited,
        "num_compiles": cost.num_compiles,
        "compile_seconds": cost.compile_seconds,
        "memory_bytes": observe.memory_bytes(),
        "padding": run.padding,
    }


def _evaluate(run: _Run, state: TrainState, progress: _Progress) -> dict[str, Any]:
    """Evaluates the averaged weights, notes whether they are the best yet, returns a record."""
    started = time.perf_counter()
    params = averaged(state, run.config)
    errors = run.placement.errors(params)
    f_mse, a_mse = float(errors.f_mse), float(errors.a_mse)
    if not math.isfinite(f_mse + a_mse):
        raise NonFiniteLossError(
            f"step {progress.step}: the error on the validation set is {f_mse}; the last "
            f"checkpoint is of step {run.checkpoints.latest_step()}; lower optimizer.learning_rate"
        )
    if f_mse < progress.best_f_mse:
        progress.best_step, progress.best_f_mse = progress.step, f_mse
    progress.seconds += time.perf_counter() - started
    return {
        "step": progress.step,
        "f_mse": f_mse,
        "a_mse": a_mse,
        "mse_per_time": [float(error) for error in errors.per_time],
        "seconds": progress.seconds,
    }


def _divergence(run: _Run, state: TrainState, steps: StepMetrics, progress: _Progress) -> str:
    """Says which step of a chunk, begun at `progress.step`, was the first that is not finite."""
    index = int(np.flatnonzero(steps.is_skipped)[0])
    step = progress.step + index
    batch = run.placement.batch_of(state, step)
    samples = ", ".join(map(str, batch[:_NAMED_SAMPLES]))
    if len(batch) > _NAMED_SAMPLES:
        samples += f", ... ({len(batch)} in all)"
    return (
        f"step {step + 1}: the loss is {steps.loss[index]} and the norm of its gradient "
        f"{steps.grad_norm[index]}, on the training samples {samples}; {progress.skipped_steps} "
        f"steps of the run were not finite, {run.config.max_skipped_steps} are allowed "
        f"(max_skipped_steps); the last checkpoint is {_last_checkpoint(run.directory)}; lower "
        "optimizer.learning_rate or optimizer.clip_norm"
    )


def _last_checkpoint(directory: Path) -> str:
    """Returns where the newest whole checkpoint of a run is, for a message."""
    folder = directory / _CHECKPOINTS
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return str(folder / str(max(steps))) if steps else "none"


@contextlib.contextmanager
def _naming_the_last_checkpoint(directory: Path) -> Iterator[None]:
    """Turns errors of the disk into one that says what is safe."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{directory}: cannot be written to ({error}); the last checkpoint is "
            f"{_last_checkpoint(directory)}; make room and resume the run"
        ) from error


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
