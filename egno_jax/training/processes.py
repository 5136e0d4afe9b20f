"""Several processes of one run: whether they are alike, and how one that ends ends the others.

All of it goes through the store of JAX's coordination service in process 0. That needs no program
that is the same everywhere, and so works where collective operations would wait for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # JAX has no public way to the store

from egno_jax.checkpoint import library_versions

# Processes may load their data at different speeds.
_PATIENCE = 24 * 3600
_BEAT, _SILENCE, _LONGEST_SILENCE = 0.5, 4.0, 60.0  # seconds
_GRACE = 2.5  # seconds in which a process can still end with an error of its own
_NAMED = 5
_LARGEST_DIGEST = 2**26  # bytes of an array that are read
RESUMABLE = 75
_ENDED, _BEATS = "egno_jax/ended", "egno_jax/beats"
_numbers = itertools.count()
_ending = threading.Lock()  # held by the thread that ends this process
# What XLA's transports say of a peer that is gone.
_LOST = re.compile(r"gloo|connection (reset|closed|refused)|broken pipe|unavailable|socket", re.I)


class LostProcessError(RuntimeError):
    """Another process of the run has ended; the run can be resumed."""


def is_one_of_several() -> bool:
    """Returns whether this process runs together with others; starts nothing to find out."""
    return jax.distributed.is_initialized() and distributed.global_state.num_processes > 1


def fail(message: str, code: int) -> int:
    """Prints the message to stderr and returns the exit code.

    One of several processes ends at once instead, because the others may wait for it within a step,
    and JAX makes a process that exits normally wait for them. They end within seconds, too, with a
    line that gives this process and the message.
    """
    if is_one_of_several():
        _ending.acquire()
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    if is_one_of_several():
        store = distributed.global_state
        with contextlib.suppress(Exception):
            store.client.key_value_set(f"{_ENDED}/{store.process_id}", message.splitlines()[-1])
        if store.process_id == 0:
            time.sleep(_GRACE + 4 * _BEAT)  # the store ends with this process
        os._exit(code)
    return code


def check_all_alike(fields: Mapping[str, Any]) -> None:
    """Compares the fields of all processes with those of process 0; all must call.

    Raises:
      ValueError: some differ; names fields, values and processes, in every process.
    """
    store = distributed.global_state
    if store.client is None or store.num_processes == 1:
        return
    name = f"egno_jax/alike/{next(_numbers)}"
    own = {key: str(value) for key, value in fields.items()}
    store.client.key_value_set(f"{name}/{store.process_id}", json.dumps(own))
    store.client.wait_at_barrier(name, _PATIENCE * 1000)
    found = {
        _process(key): json.loads(value) for key, value in store.client.key_value_dir_get(name)
    }
    expected = found[0]
    different = [
        f"{key}: got {fields.get(key)!r} in process {index}, expected {expected.get(key)!r} as in "
        "process 0"
        for index, fields in sorted(found.items())
        for key in dict.fromkeys([*expected, *fields])
        if fields.get(key) != expected.get(key)
    ]
    if different:
        more = f"; and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        raise ValueError(
            f"{'; '.join(different[:_NAMED])}{more}; start all processes with the same command, "
            "data and versions"
        )


def versions() -> dict[str, str]:
    """Returns the versions that must be the same in all processes."""
    found = {**library_versions(), "jaxlib": metadata.version("jaxlib")}
    return {"python": platform.python_version(), **found, "numpy": metadata.version("numpy")}


def digests(data: Any, name: str) -> dict[str, str]:
    """Returns dtype, shape and a hash of every array of a tree, under its name.

    Of arrays over 64 MB, such as memory maps, evenly spaced rows are hashed.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        array = np.asanyarray(leaf)
        step = max(1, -(-array.nbytes // _LARGEST_DIGEST)) if array.ndim else 1
        part = np.ascontiguousarray(array[::step] if array.ndim else array)
        digest = hashlib.sha256(part.tobytes()).hexdigest()[:12]
        found[f"{name}{jax.tree_util.keystr(path)}"] = f"{array.dtype} {[*array.shape]} {digest}"
    return found


def start_beating() -> None:
    """Lets this process show that it lives, and end when another one has called `fail`.

    Process 0 also ends, and with it all, when another one gives no sign of life for a minute.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_beat, args=(is_over,), daemon=True, name="egno_jax beat")
    thread.start()

    def stop() -> None:
        is_over.set()
        thread.join()

    atexit.register(stop)  # before JAX closes the store


def _beat(is_over: threading.Event) -> None:
    store, seen = distributed.global_state, {}
    with contextlib.suppress(Exception):  # the store is gone, and with it process 0
        for number in itertools.count():
            key = f"{_BEATS}/{store.process_id}"
            store.client.key_value_set(key, str(number), allow_overwrite=True)
            if is_over.wait(_BEAT):
                return
            for key, message in store.client.key_value_dir_get(_ENDED):
                if (index := _process(key)) != store.process_id:
                    if is_over.wait(_GRACE):
                        return
                    fail(f"process {index} ended ({message}), so this one ends too", RESUMABLE)
            now = time.monotonic()
            for key, value in _beats().items() if store.process_id == 0 else ():
                if seen.setdefault(key, (value, now))[0] != value:
                    seen[key] = value, now
                if now - seen[key][1] > _LONGEST_SILENCE:
                    silent = [_process(key)]
                    fail(_description(silent), RESUMABLE)


def _beats() -> dict[str, str]:
    return dict(distributed.global_state.client.key_value_dir_get(_BEATS))


def _process(key: str) -> int:
    return int(key.rpartition("/")[2])


def _description(lost: list[int]) -> str:
    word = "process" if len(lost) == 1 else "processes"
    return (
        f"{word} {', '.join(map(str, lost))} of {distributed.global_state.num_processes} ended "
        "(see the output there), so this one ends too; start all again and resume the run"
    )


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turns failed communication into an error that names the processes that have ended.

    Raises:
      LostProcessError: another process has ended.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not is_one_of_several() or not _LOST.search(str(error)):
            raise
        if not (lost := _silent_processes()):
            raise
        raise LostProcessError(_description(lost)) from error


def _silent_processes() -> list[int]:
    """Returns the processes that do not beat; process 0 if the store has gone with it."""
    try:
        before = _beats()
        time.sleep(_SILENCE)
        after = _beats()
    except Exception:
        return [0]
    return sorted(_process(key) for key in before if before[key] == after.get(key))
