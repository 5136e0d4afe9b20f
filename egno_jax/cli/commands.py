"""The subcommands by name; a new one is a function with typed arguments and an entry here."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence

from egno_jax.cli.converting import convert_torch
from egno_jax.cli.inspecting import inspect
from egno_jax.cli.making import Interrupted, train
from egno_jax.cli.publishing import export, models
from egno_jax.cli.using import evaluate, predict, rollout
from egno_jax.extras import import_requested, require
from egno_jax.training.liveness import RESUMABLE

COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "train": train,
    "predict": predict,
    "rollout": rollout,
    "evaluate": evaluate,
    "convert-torch": convert_torch,
    "export": export,
    "models": models,
}


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for what needs no action.

    MDAnalysis logs of a format not used here whenever it is imported; orbax of checkpoints that
    wait for each other, as those of a short run do.
    """
    routine = ("netCDF4 is not available", "Waiting for previous save")
    return not any(text in record.getMessage() for text in routine)


def _text_of(error: Exception) -> str:
    """Returns what an error says; for an error of the system, the path and the reason."""
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: got {error.strerror!r} from the system, expected a place that can "
            "be read and written; check the path and its permissions"
        )
    return str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      The exit status: 0; 1 after an error that says what to do; 75 after an interruption, where the
      command can be given again.
    """
    arguments = sys.argv[1:] if arguments is None else [*arguments]
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    logging.getLogger("MDAnalysis.coordinates.AMBER").addFilter(_is_news)
    logging.getLogger("absl").addFilter(_is_news)
    try:
        import_requested(arguments)
        require("tyro", "cli").extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="egno-jax",
            description="From your trajectory to a predicted one.",
            args=arguments,
        )
    except (Interrupted, KeyboardInterrupt) as error:
        again = ["egno-jax", *arguments]
        if isinstance(error, Interrupted) and "--resume" not in arguments:
            again.append("--resume")
        text = str(error) or "interrupted"
        print(f"egno-jax: {text}; go on with: {shlex.join(again)}", file=sys.stderr)
        return RESUMABLE
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        print(f"egno-jax: error: {_text_of(error)}", file=sys.stderr)
        return 1
    return 0
