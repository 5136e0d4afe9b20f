"""Optional dependencies: imported where they are used, with an error that names their extra."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional dependency.

    Args:
      module: its dotted name.
      extra: the extra of egno_jax that brings it.

    Returns:
      The module.

    Raises:
      ImportError: it is not installed, and how to install it; or why it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if importlib.util.find_spec(package) is not None:
            raise ImportError(
                f"this needs {module}, which is there but cannot be imported: {error}"
            ) from error
        raise ImportError(
            f'this needs {package}, which is not installed: pip install "egno_jax[{extra}]"'
        ) from error
