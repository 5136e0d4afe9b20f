"""Locks between processes, on files that are left alone; the system frees those of the dead.

On Windows and on file systems without `flock`, nothing is locked.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LONGEST = 1000
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(OSError):
    """Another process holds a lock; the message says which: process, host, command and time."""


@contextlib.contextmanager
def lock(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is missing and never removed.

    The file names its last holder for people; what counts is the system's lock, which ends with
    the process. On a network file system it excludes other hosts if the system supports that.

    Raises:
      LockedError: another process holds it, also after `wait_seconds`; names it.
      OSError: the file cannot be opened.
    """
    if fcntl is None:
        yield
        return
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        _wait(file.fileno(), path, time.monotonic() + wait_seconds)
        with contextlib.suppress(OSError):  # of a full disk, which holds the lock as well
            file.truncate(0)
            file.write(_holder().encode(errors="replace"))
            file.flush()
        yield


def _wait(file: int, path: Path, until: float) -> None:
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                found = os.pread(file, _LONGEST, 0).decode(errors="replace").strip()
                raise LockedError(found or "another process") from None
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            warnings.warn(
                f"{path}: cannot be locked on this file system ({error}), so a second process in "
                "the same directory is not noticed",
                stacklevel=4,
            )
            return None


def _holder() -> str:
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    command = shlex.join(sys.orig_argv)[:_LONGEST]
    return f"process {os.getpid()} on host {socket.gethostname()}, since {now}: {command}\n"
