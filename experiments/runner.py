"""What every experiment does: train, resume or evaluate, and write down the results."""

from __future__ import annotations

import math
import shlex
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import egno_jax
from egno_jax import baselines, metrics, training
from egno_jax.datasets import Samples, num_samples, take
from egno_jax.training.processes import (
    agree_on_any,
    agree_on_text,
    fail,
    is_one_of_several,
    wait_for_all,
)
from experiments import run_directory, run_page
from experiments.command_line import parse

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jaxtyping import Array, Float, Int

SUCCESS, FAILURE, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 75


class Splits(NamedTuple):
    """The data of a run.

    Attributes:
      train: what the model learns from.
      valid: what it is selected on.
      test: what its errors are reported on.
      test_paths: `[S, T, N, 3]`, positions from the given state to the last target at all times
        that are known, for pictures.
      drawing: how to draw systems whose nodes are joined by lines; None draws the paths of nodes.
    """

    train: Samples
    valid: Samples
    test: Samples
    test_paths: Float[np.ndarray, "S T N 3"]
    drawing: run_page.Drawing | None = None


class Published(NamedTuple):
    """A result from the literature, measured on the same data in the same way but for `source`.

    Attributes:
      method: the method's name.
      f_mse: error at the last time.
      a_mse: error over all times, if reported.
      source: who reported it, and what differs.
      conditions: settings in `data` that it was measured with, where the experiment has several
        tasks; runs with others are not compared with it.
      other_split: whether the data were split in another way, as `source` says; tables mark it.
    """

    method: str
    f_mse: float
    a_mse: float | None
    source: str
    conditions: Mapping[str, Any] = types.MappingProxyType({})
    other_split: bool = False


class Experiment(NamedTuple):
    """What an experiment's script says of it.

    Attributes:
      name: the script's name.
      title: for people.
      summary: a sentence or two about the task.
      config_class: dataclass of all settings: `preset`, `model`, `training` and `data`.
      presets: settings by name; the first is the default.
      descriptions: a line about each preset.
      load_splits: takes the settings in `data`, returns the data.
      published: results to be compared with.
      published_data: the settings in `data` that they were measured on.
      published_fields: those fields of it that decide whether results can be compared.
      time_unit: the unit of `times` in the velocities' unit of time.
      time_label: the unit of `times`, for people.
      length_label: the unit of positions, for people.
      length_unit: how long that is, where the label does not tell: `"5.64 cm"`.
      task_fields: the settings in `data` that make a task; results of two tasks are never compared.
        By default those in the conditions of `published`.
      data_words: what people call the values of settings in `data`, in titles and notes; empty
        where it goes without saying. Others are written `field=value`, or not at all where they are
        those of `published_data`.
      headlines: settings in `data` of the tasks that the README shows; where they fit several, it
        says in how many of them EGNO is ahead.
    """

    name: str
    title: str
    summary: str
    config_class: type
    presets: Mapping[str, Any]
    descriptions: Mapping[str, str]
    load_splits: Callable[[Any], Splits]
    published: Sequence[Published]
    published_data: Any
    published_fields: Sequence[str]
    time_unit: float
    time_label: str
    length_label: str
    length_unit: str = ""
    task_fields: Sequence[str] = ()
    data_words: Mapping[str, Mapping[Any, str]] = types.MappingProxyType({})
    headlines: Sequence[Mapping[str, Any]] = ({},)


def main(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Runs an experiment from its command line.

    Args:
      experiment: which.
      arguments: the words behind the program's name.

    Returns:
      The exit code: 0; 1 if training diverged or a file cannot be read or written; 2 for wrong
      input, or a package of an extra that is not installed; both behind a message; 75 if a signal
      interrupted the run, which can be resumed.
    """
    try:
        return _main(experiment, arguments)
    except (training.NonFiniteLossError, OSError) as error:
        return fail(f"error: {error}", FAILURE)
    except (ValueError, ImportError) as error:
        return fail(f"error: {error}", WRONG_INPUT)
    except BaseException:
        if not is_one_of_several():
            raise
        return fail(traceback.format_exc(), FAILURE)


def _main(experiment: Experiment, arguments: Sequence[str]) -> int:
    program = f"python -m experiments.{experiment.name}"
    options, config = parse(
        arguments,
        program=program,
        summary=experiment.summary,
        config_class=experiment.config_class,
        presets=experiment.presets,
        descriptions=experiment.descriptions,
        read_config=lambda path: _read_config(experiment, path),
    )
    training.start_processes(
        options.coordinator,
        options.num_processes,
        options.process_id,
        from_environment=True if options.distributed else None,
    )
    mesh = _mesh(options.mesh)
    name = f"{experiment.name}-{config.preset}-seed{config.training.seed}"
    directory = options.existing or options.out
    is_resumed = options.resume is not None
    if options.auto_resume:
        is_resumed = agree_on_any(run_directory.holds_run(directory))
    if directory is None:
        directory = Path(agree_on_text(str(run_directory.fresh(name))))
    command = shlex.join([*program.split(), *arguments])
    if options.existing or is_resumed:
        run_directory.check_settings(directory, config)
    else:
        run_directory.check_new(directory)
    if not options.evaluate:
        training.check_writable(directory)
    splits = _for_model(config.model, experiment.load_splits(config.data))
    if not options.evaluate:
        result = train(
            directory,
            config,
            splits,
            command,
            resume=is_resumed,
            mesh=mesh,
            profile=options.profile,
        )
        if result.interrupted:
            _print(
                f"interrupted at step {result.step} of {config.training.num_steps}; go on with: "
                f"{program} --resume {shlex.quote(str(directory))}"
            )
            return INTERRUPTED
    if training.is_main_process():
        finish(experiment, directory, config, splits)
    return SUCCESS


def _read_config(experiment: Experiment, directory: Path) -> Any:
    config = run_directory.read_config(directory, experiment.config_class)
    if config.preset not in experiment.presets:
        raise ValueError(
            f"{directory / run_directory.CONFIG}: preset is {config.preset!r}, expected one of "
            f"{[*experiment.presets]}"
        )
    return config


def _mesh(text: str | None) -> Mesh | None:
    """Returns the mesh to train on: as the command says, or all devices of several processes."""
    if text is not None:
        return training.make_mesh(training.parse_mesh(text))
    if jax.process_count() == 1:
        return None
    return training.make_mesh(training.MeshShape(data=jax.device_count()))


def _print(text: str) -> None:
    """Prints, in process 0 alone."""
    if training.is_main_process():
        print(text, flush=True)


def _for_model(model: egno_jax.EGNOConfig, splits: Splits) -> Splits:
    """Returns the data of a model; one that predicts a single state gets the last time alone."""
    if baselines.num_times(model) != 1:
        return splits

    def last(samples: Samples) -> Samples:
        return samples._replace(
            times=samples.times[-1:],
            positions=samples.positions[:, -1:],
            velocities=samples.velocities[:, -1:],
        )

    drawing = splits.drawing
    if drawing is not None:
        drawing = drawing._replace(target_frames=drawing.target_frames[-1:])
    return Splits(*map(last, (splits.train, splits.valid, splits.test)), splits.test_paths, drawing)


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
    """Trains, or goes on training, the model of a run.

    Args:
      directory: where the run lives.
      config: its settings.
      splits: its data.
      command: the command that asks for it, to be written down.
      resume: whether to go on from its last checkpoint.
      mesh: the devices to train on; None: the default one.
      profile: whether to write a trace of some steps.

    Returns:
      How training ended.

    Raises:
      ValueError: the settings do not fit the data; nothing is written then.
    """
    training.steps_per_epoch(num_samples(splits.train), config.training.batch_size)
    example = take(splits.train, np.arange(1))
    params = jax.jit(egno_jax.init, static_argnums=1)(
        jax.random.key(config.training.seed), config.model, example.graph, example.times
    )
    wait_for_all("settings checked")
    if training.is_main_process():
        (run_directory.resume if resume else run_directory.start)(directory, config, command)
    wait_for_all("settings written")
    num_steps = config.training.num_steps
    _print(f"{directory}: {num_steps} steps on {num_samples(splits.train)} samples")

    def callbacks(start_step: int) -> list[training.Callback]:
        is_terminal = sys.stdout.isatty()
        return [
            training.JSONLines(directory / run_directory.METRICS, start_step),
            training.TensorBoard(directory / run_directory.TENSORBOARD),
            training.Progress(num_steps, start_step) if is_terminal else _Lines(num_steps),
        ]

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
    """Evaluates the best model of a run on the test set and writes and shows the results.

    Args:
      experiment: which.
      directory: where the run lives.
      config: its settings.
      splits: its data.

    Raises:
      CheckpointError: the run has no model yet.
      ValueError: its record of the training is not there or damaged, or a result is not finite;
        the results of before stay as they are.
    """
    params = egno_jax.load(directory / run_directory.BEST)
    results = evaluate(experiment, directory, config, params, splits.test)
    run_directory.check_results(directory, results)
    predicted = predict(params, splits.test, batch_size=config.training.eval_batch_size)
    real = slice(splits.test_paths.shape[2])  # nodes that only pad stand behind the others
    systems = run_page.showcase(
        splits.test_paths, splits.test.positions[:, :, real], predicted[:, :, real]
    )
    run_page.write(experiment, directory, config, results, systems, splits.drawing)
    # Last: where this file is, all else of the run is done.
    run_directory.write_json(directory / run_directory.RESULTS, results, allow_nan=False)
    _print_results(experiment, results)
    print(f"{directory / run_directory.REPORT} shows it all")


def evaluate(
    experiment: Experiment,
    directory: Path,
    config: Any,
    params: egno_jax.Params,
    test: Samples,
) -> dict[str, Any]:
    """Returns the record of a run's results, as `results.json` holds it.

    Args:
      experiment: which.
      directory: where the run lives; its metrics and its origin are read.
      config: its settings.
      params: its best model.
      test: the test set.
    """
    course = _course(directory, config)
    errors = training.evaluate(params, test, batch_size=config.training.eval_batch_size)
    straight = linear_baseline(test, experiment.time_unit)
    mask = test.node_mask.reshape(-1)
    still = linear_baseline(test, time_unit=0.0)
    made_with = run_directory.check_settings(directory, config)["made_with"]
    return {
        "experiment": experiment.name,
        "preset": config.preset,
        "model": baselines.title(config.model),
        **_plain(errors),
        "times": [float(time) for time in test.times],
        "linear_baseline": _plain(metrics.squared_errors(*straight, mask).finalize()),
        "still_baseline": _plain(metrics.squared_errors(*still, mask).finalize()),
        "num_test": num_samples(test),
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **course,
        "seed": config.training.seed,
        **made_with[0],
        "resumed": made_with[1:],
    }


def _plain(errors: metrics.Errors) -> dict[str, Any]:
    """Returns errors as a record holds them."""
    return {
        "f_mse": float(errors.f_mse),
        "a_mse": float(errors.a_mse),
        "mse_per_time": [float(error) for error in errors.per_time],
    }


def predict(
    params: egno_jax.Params, samples: Samples, *, batch_size: int
) -> Float[np.ndarray, "S P N 3"]:
    """Returns the predicted positions of all samples.

    Args:
      params: the model.
      samples: S samples.
      batch_size: samples predicted together.
    """
    total = num_samples(samples)
    batch_size = min(batch_size, total)
    samples = jax.device_put(samples)
    # Indices beyond the last sample give the last one again.
    batches = [
        np.asarray(_predict_batch(params, samples, np.arange(start, start + batch_size)))
        for start in range(0, total, batch_size)
    ]
    return np.concatenate(batches)[:total]


@jax.jit
def _predict_batch(
    params: egno_jax.Params, samples: Samples, indices: Int[Array, "B"]
) -> Float[Array, "B P N 3"]:
    batch = take(samples, indices)
    positions = egno_jax.apply(params, batch.graph, batch.times).positions
    return jnp.moveaxis(positions.reshape(len(batch.times), len(indices), -1, 3), 1, 0)


def linear_baseline(
    samples: Samples, time_unit: float
) -> tuple[Float[np.ndarray, "P S*N 3"], Float[np.ndarray, "P S*N 3"]]:
    """Returns x + v t, and the true positions, of all samples together.

    Args:
      samples: the data.
      time_unit: the unit of `samples.times` in the velocities' unit of time.

    Returns:
      `[P, S N, 3]` both.
    """
    batch = take(samples, np.arange(num_samples(samples)))
    offsets = jnp.asarray(batch.times)[:, None, None] * time_unit * batch.graph.nodes["velocities"]
    return batch.graph.nodes["positions"] + offsets, batch.positions


def _course(directory: Path, config: Any) -> dict[str, Any]:
    """Returns how training went, from the lines it left, or says what is wrong with them."""
    path = directory / run_directory.METRICS
    try:
        records = training.read_json_lines(path)
        valid = [record for record in records if record["kind"] == "valid"]
        if not valid:
            raise ValueError(f"{path}: no evaluation of a model is written down in it")
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
    # Where there is no terminal, rich takes it for a narrow one.
    width = None if sys.stdout.isatty() else 40 + 14 * len(results["times"])
    Console(width=width).print(table)


class _Lines:
    """Prints a line an evaluation, where there is no terminal to draw a progress bar on."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._loss = math.nan

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def on_chunk(self, record: dict[str, Any]) -> None:
        self._loss = math.nan if record["loss"] is None else record["loss"]

    def on_evaluation(self, record: dict[str, Any]) -> None:
        print(
            f"step {record['step']}/{self._num_steps}  loss {self._loss:.5f}  "
            f"valid F-MSE {record['f_mse']:.5f}  A-MSE {record['a_mse']:.5f}  "
            f"{record['seconds']:.0f} s",
            flush=True,
        )
