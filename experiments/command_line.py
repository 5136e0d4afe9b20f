"""Command lines made from config dataclasses: a preset, and any field changed on top of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from egno_jax.training import parse_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to do, and where.

    Attributes:
      out: directory of a new run; it must not hold one yet. By default
        runs/<experiment>-<preset>-seed<seed>, numbered where that is taken.
      resume: directory of a run that was interrupted; goes on with it, with its own settings.
      auto_resume: with --out: goes on with the run that is there, if one is. So a command that is
        started again whenever its machine is taken away ends as if it had run through.
      evaluate: directory of a run; evaluates its best model on the test set and renews results,
        pictures and report.
      mesh: the devices to train on, such as data=4,time=2: batches are split over data, the times
        that are predicted over time. By default one device; in several processes all devices along
        data. A run may go on with another mesh.
      profile: writes a trace of some steps into the run's directory, profile/, for TensorBoard and
        https://ui.perfetto.dev.
      coordinator: host:port of process 0, where several processes compute one run; all are started
        with the same command. Not needed under Slurm, Open MPI and on GKE, which tell.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      distributed: lets JAX find the other processes where nothing tells of them: on Cloud TPU.

    Raises:
      ValueError: more than one of the three directories is given, or an option lacks another.
    """

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
        given = [name for name in ("out", "resume", "evaluate") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"got {' and '.join('--' + name for name in given)}, expected one")
        if self.auto_resume and self.out is None:
            raise ValueError("auto_resume: got no --out, expected the directory of the run")
        if self.mesh is not None:
            parse_mesh(self.mesh)

    @property
    def existing(self) -> Path | None:
        """The directory of the run that is already there, if one was given."""
        return self.resume or self.evaluate


def parse(
    arguments: Sequence[str],
    *,
    program: str,
    summary: str,
    config_class: type,
    presets: Mapping[str, Any],
    descriptions: Mapping[str, str],
    read_config: Any,
) -> tuple[RunOptions, Any]:
    """Reads a command line; settings start from a preset, or from those of an existing run.

    Args:
      arguments: the words behind the program's name.
      program: the program's name.
      summary: what the program does.
      config_class: the dataclass of all settings; has a field `preset`.
      presets: settings by the name of the preset; the first is the default.
      descriptions: a line about each preset.
      read_config: takes the directory of a run and returns its settings.

    Returns:
      What to do, and all settings.

    Raises:
      ValueError: the directory of the existing run cannot be read.
      SystemExit: with code 2, behind a message, if the arguments are wrong; with 0 for `--help`.
    """
    chosen = _peek(arguments)
    existing = chosen.resume or chosen.evaluate
    is_help = any(word in ("-h", "--help") for word in arguments)
    if existing and not is_help:
        config = read_config(Path(existing))
    else:
        config = presets.get(chosen.preset) or next(iter(presets.values()))
    lines = "\n".join(f"  {name}: {text}" for name, text in descriptions.items())
    return tyro.cli(
        tuple[
            Annotated[RunOptions, tyro.conf.arg(name="")],
            Annotated[config_class, tyro.conf.arg(name="")],
        ],
        default=(RunOptions(), config),
        args=arguments,
        prog=program,
        description=f"{summary}\n\nPresets:\n{lines}\n\nDefaults below: {config.preset}.",
    )


def _peek(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options that decide the defaults of all others; errors are left to tyro."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "resume", "evaluate"):
        parser.add_argument(f"--{name}", nargs="?")
    return parser.parse_known_args(arguments)[0]
