"""Command lines of the experiments: a config, and any field changed on top of it."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from egno_jax.extras import import_requested
from egno_jax.training import parse_mesh
from experiments import run_directory, settings
from experiments.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to do, and where.

    Attributes:
      config: a YAML file with the settings to start from, in place of --preset.
      imports: modules to import before settings are read, such as one that registers your own
        layer; needed with --resume and --evaluate too.
      out: directory of a new run; it must not hold one yet. By default
        runs/<experiment>-<preset>-seed<seed>, with a number added if that exists.
      resume: directory of a run that was interrupted; resumes it with its own settings.
      auto_resume: with --out: resumes the run in that directory, if there is one. Use it on
        machines that may stop at any time: the same command can be started again and again.
      evaluate: directory of a run; evaluates its best model on the test set and writes results,
        pictures and report again.
      mesh: the devices to train on, such as data=4,time=2: batches are split over data, predicted
        times over time. Default: one device; with several processes all devices along data. A run
        may be resumed with another mesh.
      profile: writes a trace of some steps to profile/ in the run's directory, for TensorBoard and
        https://ui.perfetto.dev.
      coordinator: host:port of process 0, where several processes compute one run; start all of
        them with the same command. Not needed under Slurm, Open MPI and on GKE.
      num_processes: how many processes there are.
      process_id: the number of this process, from 0.
      distributed: lets JAX find the other processes by itself, on Cloud TPU.

    Raises:
      ValueError: more than one of the directories is given, or an option lacks another.
    """

    config: Path | None = None
    imports: tuple[str, ...] = ()
    out: Path | None = None
    resume: Path | None = None
    auto_resume: bool = False
    evaluate: Path | None = None
    mesh: str | None = None
    profile: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        for names in (("out", "resume", "evaluate"), ("config", "resume", "evaluate")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"got {' and '.join(f'--{name}' for name in given)}, expected one")
        if self.auto_resume and self.out is None:
            raise ValueError("auto_resume: got no --out, expected the directory of the run")
        if self.mesh is not None:
            parse_mesh(self.mesh)

    @property
    def existing(self) -> Path | None:
        """The directory of the run to resume or evaluate, if one was given."""
        return self.resume or self.evaluate


def parse(experiment: Experiment, arguments: Sequence[str]) -> tuple[RunOptions, Any]:
    """Returns what to do, and all settings: those of a config or an existing run, then changed.

    Raises:
      ValueError: the config, the existing run or a module cannot be read; names it.
      SystemExit: with code 2, after a message, if the arguments are wrong; with 0 for `--help`.
    """
    start = _start(experiment, arguments)
    options, config = tyro.cli(
        tuple[
            Annotated[RunOptions, tyro.conf.arg(name="")],
            Annotated[type(experiment.default), tyro.conf.arg(name="")],
        ],
        default=(RunOptions(), start),
        args=arguments,
        prog=f"python -m experiments.{experiment.name}",
        description=_description(experiment, start),
    )
    return options, dataclasses.replace(config, preset=start.preset)


def _start(experiment: Experiment, arguments: Sequence[str]) -> Any:
    """Returns the settings that the other options change; tyro reports words that are wrong."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "config", "resume", "evaluate"):
        parser.add_argument(f"--{name}", nargs="?")
    chosen = parser.parse_known_args(arguments)[0]
    import_requested(arguments)
    if chosen.preset and chosen.config:
        raise ValueError("got --preset and --config, expected one")
    existing = chosen.resume or chosen.evaluate
    if not existing or any(word in ("-h", "--help") for word in arguments):
        if chosen.config:
            return settings.read(Path(chosen.config), experiment.default)[0]
        return experiment.config(chosen.preset or experiment.presets[0])[0]
    config = run_directory.read_config(Path(existing), type(experiment.default))
    recorded = settings.current_name(config.preset, experiment.renamed, quiet=True)
    if chosen.preset and settings.current_name(chosen.preset, experiment.renamed) != recorded:
        raise ValueError(
            f"preset: got {chosen.preset!r}, but the run in {existing} started from "
            f"{config.preset!r}; a run keeps its settings, start a new one to change them"
        )
    return dataclasses.replace(config, preset=recorded)


def _description(experiment: Experiment, config: Any) -> str:
    """Returns the text of `--help` above the options."""
    name, known = experiment.name, settings.names(experiment.name)
    described = [f"  {preset}: {experiment.config(preset)[1]}" for preset in experiment.presets]
    others = ", ".join(other for other in known if other not in experiment.presets)
    return (
        f"{experiment.summary}\n\nPresets:\n" + "\n".join(described) + "\n\n"
        f"More presets, baselines and published variants, in experiments/configs/{name}/:\n"
        f"{textwrap.fill(others, 96, break_on_hyphens=False)}\n\n"
        f"Defaults below: {config.preset}."
    )
