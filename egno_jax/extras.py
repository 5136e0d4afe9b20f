"""Packages by name: optional dependencies, modules that users name, and what is installed."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports `module`, which the extra `extra` of egno_jax installs.

    Raises:
      ImportError: it is not installed, or it cannot be imported; names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is not None:
            raise ImportError(
                f"this needs {module}, which is installed but cannot be imported: {error}"
            ) from error
        raise ImportError(
            f'this needs {package}, which is not installed: pip install "egno_jax[{extra}]"'
        ) from error


def versions_of(*packages: str) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def import_requested(arguments: Sequence[str]) -> None:
    """Imports the modules that `--imports` names among the arguments of a command.

    They come before other options are read, so that a module can register what options name, such
    as a custom layer.

    Raises:
      ValueError: a module cannot be imported; names it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--imports", nargs="*", default=())
    names = parser.parse_known_args(arguments)[0].imports
    if names and "" not in sys.path:  # an installed command does not find the working directory
        sys.path.append("")
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a module may do anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"--imports: got {name!r}, which cannot be imported ({reason}); expected a module "
                "on PYTHONPATH or in the working directory"
            ) from error
