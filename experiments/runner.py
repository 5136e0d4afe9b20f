"""What every experiment does: train, resume or evaluate a run, and write its results."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import egno_jax
from egno_jax import baselines, metrics, training
from egno_jax.datasets import Samples, num_samples, take
from egno_jax.families import family_of
from egno_jax.training.guards import only_run_in
from egno_jax.training.liveness import RESUMABLE, fail, is_one_of_several, naming_lost_processes
from egno_jax.training.processes import (
    agree_on_any,
    agree_on_text,
    check_all_alike,
    wait_for_all,
)
from experiments import run_directory, run_page, settings
from experiments.command_line import RunOptions, parse
from experiments.decoding import decode, linear_baseline
from experiments.experiment import Experiment, Splits
from experiments.run_pictures import showcase

if TYPE_CHECKING:
    from jax.sharding import Mesh

SUCCESS, FAILURE, WRONG_INPUT = 0, 1, 2


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Runs an experiment from the words after the program's name, by default of this process.

    Returns:
      The exit code: 0; 1 if training diverged or a file cannot be read or written; 2 for wrong
      input, or if a package of an extra is not installed; 75 if a signal, or the end of another
      process of the run, interrupted the run, which can be resumed. A message is printed with all
      but 0.
    """
    try:
        with _sigterm_as_sigint(), naming_lost_processes():
            return _main(experiment, sys.argv[1:] if arguments is None else arguments)
    except training.LostProcessError as error:
        return fail(f"error: {error}", RESUMABLE)
    except (training.NonFiniteLossError, OSError) as error:
        return fail(f"error: {error}", FAILURE)
    except (ValueError, ImportError) as error:
        return fail(f"error: {error}", WRONG_INPUT)
    except KeyboardInterrupt:  # before the command line is read
        return fail("interrupted; start the same command again", RESUMABLE)
    except BaseException:
        if not is_one_of_several():
            raise
        return fail(traceback.format_exc(), FAILURE)


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """Turns both signals into a KeyboardInterrupt, wherever `fit` does not handle them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    previous = {each: signal.signal(each, signal.default_int_handler) for each in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _main(experiment: Experiment, arguments: Sequence[str]) -> int:
    command = shlex.join(["python", "-m", f"experiments.{experiment.name}", *arguments])
    options, config = parse(experiment, arguments)
    directory = options.existing or options.out
    try:
        training.start_processes(
            options.coordinator,
            options.num_processes,
            options.process_id,
            from_environment=True if options.distributed else None,
        )
        if directory is None:
            name = f"{experiment.name}-{config.preset}-seed{config.training.seed}"
            directory = Path(agree_on_text(str(run_directory.fresh(name))))
        step = _run(experiment, options, config, directory, command)
    except KeyboardInterrupt:
        return fail(f"interrupted; {_again(command, options, directory)}", RESUMABLE)
    if step is None:
        return SUCCESS
    again = _again(command, options, directory)
    _print(f"interrupted at step {step} of {config.training.num_steps}; {again}")
    return RESUMABLE


def _again(command: str, options: RunOptions, directory: Path | None) -> str:
    """Returns how to go on after an interruption."""
    if options.evaluate or directory is None or not run_directory.holds_run(directory):
        return f"start it again with: {command}"
    words = ["--resume", str(directory)]
    words += ["--imports", *options.imports] if options.imports else []
    return f"resume with: {shlex.join([*shlex.split(command)[:3], *words])}"


def _run(
    experiment: Experiment, options: RunOptions, config: Any, directory: Path, command: str
) -> int | None:
    """Trains or evaluates; returns the step at which a signal stopped the training, if one did."""
    words = {"out": directory, "resume": options.resume, "evaluate": options.evaluate}
    words |= {"auto_resume": options.auto_resume, "mesh": options.mesh}
    check_all_alike(words | dict(settings.flatten(settings.plain(config))))
    mesh = _mesh(options.mesh)
    is_resumed = options.resume is not None
    if options.auto_resume:
        is_resumed = agree_on_any(run_directory.holds_run(directory))
    if options.existing or is_resumed:
        run_directory.check_settings(directory, config)
    else:
        run_directory.check_new(directory)
    if not options.evaluate:
        training.check_writable(directory)
    splits = _for_model(config.model, experiment.load_splits(config.data))
    if not options.evaluate:
        words = {"resume": is_resumed, "mesh": mesh, "profile": options.profile}
        result = train(directory, config, splits, command, **words)
        if result.interrupted:
            return result.step
    if training.is_main_process():
        finish(experiment, directory, config, splits)
    return None


def _mesh(text: str | None) -> Mesh | None:
    """Returns the mesh to train on: the requested one, or all devices of several processes."""
    if text is not None:
        return training.make_mesh(training.parse_mesh(text))
    if jax.process_count() == 1:
        return None
    return training.make_mesh(training.MeshShape(data=jax.device_count()))


def _print(text: str) -> None:
    """Prints, in process 0 only."""
    if training.is_main_process():
        print(text, flush=True)


def _for_model(model: egno_jax.EGNOConfig, splits: Splits) -> Splits:
    """Returns the data of a model; one that predicts a single state gets only the last time."""
    if family_of(model).num_times(model) != 1:
        return splits

    def last(samples: Samples) -> Samples:
        targets = {key: getattr(samples, key)[:, -1:] for key in ("positions", "velocities")}
        return samples._replace(times=samples.times[..., -1:], **targets)

    drawing = splits.drawing
    if drawing is not None:
        drawing = drawing._replace(target_frames=drawing.target_frames[-1:])
    return Splits(*map(last, splits[:3]), splits.test_paths, drawing)


def train(
    directory: Path,
    config: Any,
    splits: Splits,
    command: str,
    *,
    resume: bool,
    mesh: Mesh | None = None,
    profile: bool = False,
) -> training.FitResult:
    """Trains the model of a run, or resumes its training from the last checkpoint.

    `command` started it, for the record; with `profile` a trace of some steps is written.

    Raises:
      CheckpointError: another process trains in the directory.
      ValueError: the settings do not fit the data; nothing is written then.
    """
    training.steps_per_epoch(num_samples(splits.train), config.training.batch_size)
    example = take(splits.train, np.arange(1))
    params = jax.jit(egno_jax.init, static_argnums=1)(
        jax.random.key(config.training.seed), config.model, example.graph, example.times
    )
    num_steps = config.training.num_steps

    def callbacks(start_step: int) -> list[training.Callback]:
        is_terminal = sys.stdout.isatty()
        return [
            training.JSONLines(directory / run_directory.METRICS, start_step),
            training.TensorBoard(directory / run_directory.TENSORBOARD),
            training.Progress(num_steps, start_step) if is_terminal else _Lines(num_steps),
        ]

    wait_for_all("settings checked")
    with only_run_in(directory):
        if training.is_main_process():
            (run_directory.resume if resume else run_directory.start)(directory, config, command)
        wait_for_all("settings written")
        _print(f"{directory}: {num_steps} steps on {num_samples(splits.train)} samples")
        return training.fit(
            directory,
            params,
            splits.train,
            splits.valid,
            config.training,
            resume=resume,
            make_callbacks=callbacks,
            mesh=mesh,
            profile=directory / run_directory.PROFILE if profile else None,
        )


def finish(experiment: Experiment, directory: Path, config: Any, splits: Splits) -> None:
    """Evaluates the best model of a run on the test set, writes and prints the results.

    Raises:
      CheckpointError: the run has no model yet.
      ValueError: its record of the training is missing or damaged, or a result is not finite;
        earlier results stay as they are.
    """
    params = egno_jax.load(directory)
    results = evaluate(experiment, directory, config, params, splits.test)
    run_directory.check_results(directory, results)
    predicted, _ = decode(params, splits.test, batch_size=config.training.eval_batch_size)
    real = slice(splits.test_paths.shape[2])  # padding nodes come after the others
    systems = showcase(splits.test_paths, splits.test.positions[:, :, real], predicted[:, :, real])
    run_page.write(experiment, directory, config, results, systems, splits.drawing)
    # Last: where this file exists, the run is complete.
    run_directory.write_json(directory / run_directory.RESULTS, results, allow_nan=False)
    _print_results(experiment, results)
    print(f"report with pictures: {directory / run_directory.REPORT}")


def evaluate(
    experiment: Experiment, directory: Path, config: Any, params: egno_jax.Params, test: Samples
) -> dict[str, Any]:
    """Returns the results of a run's best model on its test set, as `results.json` holds them."""
    course = _course(directory, config)
    errors = training.evaluate(params, test, batch_size=config.training.eval_batch_size)
    mask = test.node_mask.reshape(-1)
    straight, still = (
        metrics.squared_errors(*linear_baseline(test, time_unit), mask).finalize()
        for time_unit in (experiment.time_unit, 0.0)
    )
    made_with = run_directory.check_settings(directory, config)["made_with"]
    return {
        "experiment": experiment.name,
        "preset": config.preset,
        "model": baselines.title(config.model),
        **_plain(errors),
        "times": [float(time) for time in test.times],
        "linear_baseline": _plain(straight),
        "still_baseline": _plain(still),
        "num_test": num_samples(test),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **course,
        "seed": config.training.seed,
        **made_with[0],
        "resumed": made_with[1:],
    }


def _plain(errors: metrics.Errors) -> dict[str, Any]:
    """Returns errors as JSON values."""
    return {
        "f_mse": float(errors.f_mse),
        "a_mse": float(errors.a_mse),
        "mse_per_time": [float(error) for error in errors.per_time],
    }


def _course(directory: Path, config: Any) -> dict[str, Any]:
    """Returns how training went, from `metrics.jsonl`."""
    path = directory / run_directory.METRICS
    try:
        records = training.read_json_lines(path)
        valid = [record for record in records if record["kind"] == "valid"]
        if not valid:
            raise ValueError(f"{path}: got no evaluation of a model, expected one or more")
        best, last = min(valid, key=lambda record: record["f_mse"]), records[-1]
        return {
            "steps": last["step"],
            "finished": last["step"] == config.training.num_steps,
            "best_step": best["step"],
            "valid_f_mse": best["f_mse"],
            "train_seconds": round(last["seconds"], 1),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or not written by a run ({error!r})") from error


def _print_results(experiment: Experiment, results: dict[str, Any]) -> None:
    table = Table(title=f"{experiment.title}: {results['num_test']} test samples")
    for column in ("", "F-MSE", "A-MSE", *(f"t = {time:g}" for time in results["times"])):
        table.add_column(column, justify="right" if column else "left")
    for name, row in ((results["model"], results), ("x + v t", results["linear_baseline"])):
        errors = (row["f_mse"], row["a_mse"], *row["mse_per_time"])
        table.add_row(name, *(f"{error:.5f}" for error in errors))
    # Without a terminal, rich assumes a narrow one.
    width = None if sys.stdout.isatty() else 40 + 14 * len(results["times"])
    Console(width=width).print(table)


class _Lines(training.Callback):
    """Prints one line per evaluation, where there is no terminal for a progress bar."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._loss = math.nan

    def on_chunk(self, record: dict[str, Any]) -> None:
        self._loss = math.nan if record["loss"] is None else record["loss"]

    def on_evaluation(self, record: dict[str, Any]) -> None:
        print(
            f"step {record['step']}/{self._num_steps}  loss {self._loss:.5f}  "
            f"valid F-MSE {record['f_mse']:.5f}  A-MSE {record['a_mse']:.5f}  "
            f"{record['seconds']:.0f} s",
            flush=True,
        )
