"""Optional dependencies: imported where they are used, with an error that names their extra."""

from __future__ import annotations

import importlib
import importlib.util
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
