"""Guards of a run: one run at a time in a directory, and signals that end it between two chunks."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egno_jax.checkpoint import CheckpointError
from egno_jax.locks import LockedError, lock
from egno_jax.training.processes import agree_on_text, is_main_process

LOCK = "run.lock"
# What each thread of this process holds, so that a program can hold it longer than `fit` does.
_held: set[tuple[int, Path]] = set()


@contextlib.contextmanager
def only_run_in(directory: Path) -> Iterator[None]:
    """Holds the lock of a run's directory, which is made if needed; all its processes must call.

    Process 0 locks, for the processes of all hosts. The lock is free when process 0 has ended,
    however it ended. A thread that holds it may call again.

    Raises:
      CheckpointError: another run holds it; names its process, host and command.
    """
    place = directory.resolve() / LOCK
    key = (threading.get_ident(), place)
    with contextlib.ExitStack() as stack:
        holder = ""
        if is_main_process() and key not in _held:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock(place))
            except LockedError as error:
                holder = str(error)
            else:
                _held.add(key)
                stack.callback(_held.discard, key)
        if holder := agree_on_text(holder):
            raise CheckpointError(
                f"directory: got {directory}, in which another run is going on ({holder}), "
                "expected one without; wait for it, stop it, or choose another directory"
            )
        yield


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Sets an event on the first SIGTERM or SIGINT; a second SIGINT interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    previous = {each: signal.signal(each, handle) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
