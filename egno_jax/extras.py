"""Optional dependencies: imported where they are used, with an error that names their extra."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional dependency.

    Args:
      module: its dotted name.
      extra: the extra of egno_jax that brings it.

    Returns:
      The module.

    Raises:
      ImportError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'this needs {package}, which is not installed: pip install "egno_jax[{extra}]"'
        ) from error
