"""Old public names: they keep working for one minor version, with a `DeprecationWarning`."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that `old` is deprecated in favour of `new`."""
    warnings.warn(
        f"{old} is deprecated and will be removed in 0.3; use {new}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def module_getattr(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a module, for old names -> `"package.module:new_name"`."""

    def getattr_(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = renamed[name].partition(":")
        warn(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return getattr_


def renamed_fields(**renamed: str) -> Callable[[type], type]:
    """Returns a decorator for a dataclass whose fields were renamed: old name = new name.

    The old names are accepted as keywords and can be read as attributes.
    """

    def decorate(cls: type) -> type:
        init = cls.__init__

        @functools.wraps(init)
        def with_old_names(self: Any, *args: Any, **fields: Any) -> None:
            for old in renamed.keys() & fields.keys():
                warn(f"{cls.__name__}.{old}", f"{cls.__name__}.{renamed[old]}")
                fields[renamed[old]] = fields.pop(old)
            init(self, *args, **fields)

        def reader(old: str, new: str) -> property:
            def read(self: Any) -> Any:
                warn(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}")
                return getattr(self, new)

            return property(read, doc=f"Deprecated name of `{new}`.")

        cls.__init__ = with_old_names
        for old, new in renamed.items():
            setattr(cls, old, reader(old, new))
        return cls

    return decorate
