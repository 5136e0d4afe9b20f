"""The training loop: chunks of steps, and between them evaluations, checkpoints and signals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from egno_jax.checkpoint import BEST, CheckpointError, load, remove_leftovers, save
from egno_jax.datasets.base import Samples
from egno_jax.datasets.buckets import Buckets
from egno_jax.model import Params
from egno_jax.training.advice import scale_text
from egno_jax.training.callbacks import Callback
from egno_jax.training.checkpoints import RunCheckpoints, StorageError, check_writable
from egno_jax.training.config import TrainingConfig, upgrade_settings
from egno_jax.training.costs import Cost, memory_bytes, watch
from egno_jax.training.guards import only_run_in, stop_on_signal
from egno_jax.training.inputs import check_inputs, check_processes, recording_velocity_weight
from egno_jax.training.liveness import naming_lost_processes
from egno_jax.training.objective import LossFn, Metric, check_metrics, entries_of
from egno_jax.training.processes import (
    agree_on_any,
    digest,
    digests,
    is_main_process,
    wait_for_all,
)
from egno_jax.training.step import StepMetrics, Trainer, TrainState, averaged, init_state

_CHECKPOINTS = "checkpoints"
_EVALUATE_EVERY_EPOCHS = 10
_NAMED_SAMPLES = 20
# Settings that may change when a run is resumed, because they change no number.
_FREE_SETTINGS = ("steps_per_chunk", "keep_checkpoints", "max_skipped_steps")


class FitResult(NamedTuple):
    """How a run ended.

    Attributes:
      params: the model with the least score on the validation set; its averaged weights. The
        initial ones if the run was interrupted before its first evaluation.
      best_step: the step of that model; 0 before the first evaluation.
      best_f_mse: its F-MSE; infinite before the first evaluation.
      step: the last step done.
      interrupted: whether a signal ended the run before its last step; it can be resumed.
      seconds: time that the run took, all its parts together.
      best_score: the model's value of `select_by`; infinite before the first evaluation.
    """

    params: Params
    best_step: int
    best_f_mse: float
    step: int
    interrupted: bool
    seconds: float
    best_score: float = math.inf


class NonFiniteLossError(ArithmeticError):
    """The validation error, the metric that selects, or too many losses are NaN or infinite."""


def fit(
    directory: str | os.PathLike[str],
    params: Params,
    train: Samples | Buckets,
    valid: Samples | Buckets,
    config: TrainingConfig,
    *,
    loss_fn: LossFn | None = None,
    metrics: Mapping[str, Metric] | None = None,
    select_by: str = "f_mse",
    resume: bool = False,
    make_callbacks: Callable[[int], Sequence[Callback]] = lambda start_step: (),
    mesh: Mesh | None = None,
    profile: str | os.PathLike[str] | None = None,
) -> FitResult:
    """Trains a model and keeps the one that is best on the validation set.

    The same seed gives the same bits on the same device, even if the run is interrupted and
    resumed; docs/training.md describes its guarantees.

    Args:
      directory: made for the run; gets `checkpoints/` (the state) and `best/` (the model).
      params: the initial model, also when resuming (its structure is needed).
      train: the training set, of one size or in buckets (`egno_jax.datasets.bucketed`).
      valid: the validation set, at the times of the training set unless those vary.
      config: the settings.
      loss_fn: `loss_fn(model, params, batch) -> scalar`, a mean over the real nodes of the batch;
        `model` is `egno_jax.apply`. Shares and buckets are weighted by their real nodes. None:
        `mse_loss` with the velocity weight of `config`.
      metrics: `{name: metric}`, computed in every evaluation: `metric(predicted, batch)` returns
        sums that add up leaf by leaf and have `.finalize()`, such as `egno_jax.metrics.Mean`.
      select_by: entry of the evaluation records whose least value selects the best model.
      resume: continue from the newest checkpoint, or from the start if there is none.
      make_callbacks: called with the step that the run starts from; returns the callbacks that
        receive its records, such as `JSONLines`; in process 0 only.
      mesh: the devices, from `make_mesh`; None: the default one. Several processes need a mesh.
      profile: a folder for a trace of the second chunk; None: no trace.

    Returns:
      The best model and how the run ended; SIGTERM and SIGINT end it after the current chunk.

    Raises:
      ValueError: an argument is not valid, or data, model and settings do not fit together.
      CheckpointError: the directory holds a run that is going on, or cannot be resumed.
      NonFiniteLossError: more steps were not finite than `config.max_skipped_steps` allows.
      StorageError: the directory cannot be written to; the last checkpoint is intact.
      LostProcessError: another process of the run has ended; names it.
    """
    with stop_on_signal() as stop:
        chosen = tuple((metrics or {}).items())
        check_inputs(params, train, valid, config, make_callbacks, loss_fn, mesh)
        check_metrics(chosen, params, valid, select_by)
        params = recording_velocity_weight(params, config)
        settings = _settings(params, config, select_by)
        data = {"train": digests(train), "valid": digests(valid)}
        check_processes(settings, config, data, mesh, resume)
        trainer = Trainer(train, valid, config, mesh, loss_fn=loss_fn, metrics=chosen)
        config, made_with = _resolved(config, trainer.steps_per_epoch), _made_with(data, loss_fn)
        run = _Run(Path(directory), trainer, config, settings, made_with, train, profile)
        return _carry_out(run, params, resume, make_callbacks, stop)


def _carry_out(
    run: _Run,
    params: Params,
    resume: bool,
    make_callbacks: Callable[[int], Sequence[Callback]],
    stop: threading.Event,
) -> FitResult:
    """Starts or resumes a run, and trains to its last step or to a signal."""
    check_writable(run.directory)
    keep = run.config.keep_checkpoints
    with (
        _naming_the_last_checkpoint(run.directory),
        only_run_in(run.directory),
        RunCheckpoints(run.directory / _CHECKPOINTS, keep) as checkpoints,
        naming_lost_processes(),
        contextlib.ExitStack() as stack,
    ):
        if is_main_process():
            remove_leftovers(run.directory / BEST)
        run = run._replace(checkpoints=checkpoints)
        state, progress = _start(run, params, resume)
        made = make_callbacks(int(state.step)) if is_main_process() else ()
        if not isinstance(made, Sequence):
            raise ValueError(
                f"make_callbacks: got a function that returns {type(made).__name__}, expected a "
                "list of callbacks"
            )
        callbacks = [stack.enter_context(callback) for callback in made]
        _train(run, state, progress, callbacks, stop)
    outcome = dataclasses.asdict(progress)
    del outcome["skipped_steps"]
    return FitResult(
        params=load(run.directory / BEST) if progress.best_step else params,
        interrupted=progress.step < run.config.num_steps,
        **outcome,
    )


def _made_with(data: dict[str, dict[str, str]], loss_fn: LossFn | None) -> dict[str, str]:
    """Returns a digest of each data set, and the name of the loss."""
    name = getattr(loss_fn, "__qualname__", type(loss_fn).__name__)
    return {**{part: digest(found) for part, found in data.items()}, "loss_fn": name}


@dataclasses.dataclass
class _Progress:
    """What the loop remembers between two chunks and, through checkpoints, between two runs."""

    step: int = 0
    best_step: int = 0
    best_f_mse: float = math.inf
    seconds: float = 0.0
    skipped_steps: int = 0
    best_score: float = math.inf


class _Run(NamedTuple):
    """What does not change during a run; zeros of the config are resolved, of `settings` not."""

    directory: Path
    trainer: Trainer
    config: TrainingConfig
    settings: dict[str, Any]
    made_with: dict[str, str]
    train: Samples | Buckets
    profile: str | os.PathLike[str] | None
    checkpoints: RunCheckpoints | None = None


def _resolved(config: TrainingConfig, epoch: int) -> TrainingConfig:
    """Returns the settings with the numbers of steps that zeros stand for."""
    eval_every = config.eval_every or _EVALUATE_EVERY_EPOCHS * epoch
    return dataclasses.replace(
        config,
        steps_per_chunk=config.steps_per_chunk or epoch,
        eval_every=eval_every,
        checkpoint_every=config.checkpoint_every or eval_every,
    )


def _settings(params: Params, config: TrainingConfig, select_by: str = "f_mse") -> dict[str, Any]:
    """Returns the settings that decide a run's numbers, as JSON holds them."""
    model, training = dataclasses.asdict(params.config), dataclasses.asdict(config)
    for name in _FREE_SETTINGS:
        del training[name]
    settings = {"model": model, "training": training, "selection": {"select_by": select_by}}
    return upgrade_settings(json.loads(json.dumps(settings)))


def _start(run: _Run, params: Params, resume: bool) -> tuple[TrainState, _Progress]:
    """Returns the state and the progress that the run starts or resumes from."""
    state = run.trainer.place(init_state(params, run.config))
    latest = run.checkpoints.latest_step()
    if not resume and (latest is not None or (run.directory / BEST).exists()):
        raise CheckpointError(
            f"directory: {run.directory} holds a run of {latest or 0} steps already; pass "
            "resume=True to continue it, or choose another directory"
        )
    if latest is None:
        return state, _Progress()
    restored, record = run.checkpoints.restore_newest(
        state, check_record=lambda record: _check_settings(run, params, record["settings"])
    )
    _warn_of_changes(run, record.get("made_with", {}))  # not in checkpoints of 0.1
    state = run.trainer.place(restored)
    progress = _Progress(**{"best_score": record["progress"]["best_f_mse"], **record["progress"]})
    if progress.best_step == progress.step:
        # The run may have ended between this checkpoint and the best model that it belongs to.
        _save_best(run, state)
    return state, progress


def _warn_of_changes(run: _Run, saved: dict[str, str]) -> None:
    """Warns if a run is resumed with other data, or another loss, than it was started with."""
    changed = [name for name, value in saved.items() if run.made_with.get(name) != value]
    if changed:
        warnings.warn(
            f"{', '.join(changed)}: got others than the run in {run.directory} was started with, "
            "and resumes with them; start a new run if you did not mean this",
            stacklevel=4,
        )


def _check_settings(run: _Run, params: Params, saved: dict[str, Any]) -> None:
    """Raises a CheckpointError if a run was made with other settings."""
    # A setting that is newer than the run had its default then.
    usual = {
        field.name: field.default
        for field in dataclasses.fields(params.config)
        if field.default is not dataclasses.MISSING
    }
    model = dataclasses.replace(params, config=dataclasses.replace(params.config, **usual))
    saved = _merged(_settings(model, TrainingConfig()), upgrade_settings(saved))
    remedies = dict.fromkeys(saved, "start a new run to change it")
    remedies["training"] += (
        "; to continue from this run's model, start one in another directory with "
        f"params=egno_jax.load({str(run.directory / BEST)!r})"
    )
    for part, settings in run.settings.items():
        for name, value in settings.items():
            if value != saved[part].get(name):
                raise CheckpointError(
                    f"{part} setting {name}: got {value!r}, but the run in {run.directory} was "
                    f"made with {saved[part].get(name)!r}; {remedies[part]}"
                )


def _merged(defaults: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Returns the saved entries, and the defaults of those that are missing, at any depth."""
    merged = defaults | saved
    for name in defaults.keys() & saved.keys():
        if isinstance(defaults[name], dict) and isinstance(saved[name], dict):
            merged[name] = _merged(defaults[name], saved[name])
    return merged


def _train(
    run: _Run,
    state: TrainState,
    progress: _Progress,
    callbacks: Sequence[Callback],
    stop: threading.Event,
) -> None:
    """Trains to the last step or to a signal; updates `progress`."""
    num_steps, events = run.config.num_steps, (run.config.eval_every, run.config.checkpoint_every)
    is_traced = run.profile is not None and is_main_process()
    # The first chunk compiles, so the second one is traced.
    traces = iter([None, Path(run.profile)] if is_traced else [])
    while progress.step < num_steps and not agree_on_any(stop.is_set()):
        to_events = (every - progress.step % every for every in events)
        length = min(run.config.steps_per_chunk, num_steps - progress.step, *to_events)
        with watch(next(traces, None)) as cost:
            state, steps = run.trainer.advance(state, progress.step, length)
        progress.skipped_steps += int(steps.is_skipped.sum())
        if progress.skipped_steps > run.config.max_skipped_steps:
            raise NonFiniteLossError(_divergence(run, steps, progress))
        progress.step += length
        progress.seconds += cost.seconds
        record = _chunk_record(run, progress, steps, cost)
        for callback in callbacks:
            callback.on_chunk(record)
        is_best = False
        if progress.step == num_steps or progress.step % run.config.eval_every == 0:
            record = _evaluate(run, state, progress)
            is_best = progress.best_step == progress.step
            for callback in callbacks:
                callback.on_evaluation(record)
        if is_best or progress.step % run.config.checkpoint_every == 0:
            _save_checkpoint(run, state, progress)
        if is_best:
            # After its checkpoint, so that no best model is newer than the newest checkpoint.
            run.checkpoints.wait()
            _save_best(run, state)
    if progress.step:
        _save_checkpoint(run, state, progress)
        run.checkpoints.wait()


def _save_best(run: _Run, state: TrainState) -> None:
    """Writes the best model in process 0, while the others wait."""
    params = averaged(state, run.config)
    if is_main_process():
        save(run.directory / BEST, params, overwrite=True)
    wait_for_all("best")


def _save_checkpoint(run: _Run, state: TrainState, progress: _Progress) -> None:
    record = {"progress": dataclasses.asdict(progress), "settings": run.settings}
    run.checkpoints.save(state, {**record, "made_with": run.made_with})


def _chunk_record(run: _Run, progress: _Progress, steps: StepMetrics, cost: Cost) -> dict[str, Any]:
    taken = ~steps.is_skipped
    waited = run.trainer.seconds_waited

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
        "memory_bytes": memory_bytes(),
        "padding": run.trainer.padding,
    }


def _evaluate(run: _Run, state: TrainState, progress: _Progress) -> dict[str, Any]:
    """Evaluates the averaged weights, updates the best score and returns a record."""
    started = time.perf_counter()
    errors, found = run.trainer.evaluate(averaged(state, run.config))
    f_mse, a_mse, per_time = (np.asarray(each).tolist() for each in errors)
    record = {"step": progress.step, "f_mse": f_mse, "a_mse": a_mse, "mse_per_time": per_time}
    record |= entries_of(found)
    name = run.settings["selection"]["select_by"]
    score = math.nan if record[name] is None else record[name]
    if not math.isfinite(f_mse + a_mse):
        raise NonFiniteLossError(
            f"step {progress.step}: the error on the validation set is {f_mse}; the last "
            f"checkpoint is {_last_checkpoint(run.directory)}; lower optimizer.learning_rate"
        )
    if not math.isfinite(score):
        raise NonFiniteLossError(
            f"step {progress.step}: the metric {name!r} is not finite on the validation set, "
            "expected a number to select by; the last checkpoint is "
            f"{_last_checkpoint(run.directory)}; fix the metric, or select by another"
        )
    if score < progress.best_score:
        progress.best_step, progress.best_score = progress.step, score
        progress.best_f_mse = f_mse
    progress.seconds += time.perf_counter() - started
    return {**record, "seconds": progress.seconds}


def _divergence(run: _Run, steps: StepMetrics, progress: _Progress) -> str:
    """Describes the first step that is not finite in a chunk that began at `progress.step`."""
    index = int(np.flatnonzero(steps.is_skipped)[0])
    step = progress.step + index
    batch = run.trainer.batch_of(step)
    samples = ", ".join(map(str, batch[:_NAMED_SAMPLES]))
    if len(batch) > _NAMED_SAMPLES:
        samples += f", ... ({len(batch)} in all)"
    return (
        f"step {step + 1}: the loss is {steps.loss[index]} and the norm of its gradient "
        f"{steps.grad_norm[index]}, on the training samples {samples}; {progress.skipped_steps} "
        f"steps of the run were not finite, {run.config.max_skipped_steps} are allowed "
        f"(max_skipped_steps); the last checkpoint is {_last_checkpoint(run.directory)}; lower "
        "optimizer.learning_rate or optimizer.clip_norm; nodes are "
        f"{scale_text(run.train)}"
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
    except (ConnectionError, TimeoutError):  # of a callback that reports somewhere
        raise
    except OSError as error:
        raise StorageError(
            f"{directory}: cannot be written to ({error}); the last checkpoint is "
            f"{_last_checkpoint(directory)}; make room and resume the run"
        ) from error
