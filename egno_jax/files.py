"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# Seconds after which what a killed writer left is removed.
_ABANDONED = 24 * 60 * 60


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a new file next to `path` to write, which then takes its name in one step.

    The folder is made if it is missing. After an error `path` is as it was, and the new file is
    removed; what a killed writer left is removed by a later one after a day. Of several writers at
    the same time the last one wins. Raises `OSError` if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.partial*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text, completely or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
