"""How one process of a run that ends, or is killed, ends the others.

Every process keeps a TCP connection with process 0. The system closes it however a process ends, so
the others know of it within milliseconds and end with a line that names it. Without it they would
wait in a step; or, if process 0 ends, JAX would abort them some 15 ms later.
"""

from __future__ import annotations

import atexit
import contextlib
import hmac
import math
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax._src import distributed  # JAX has no public way to its store

RESUMABLE = 75
# In seconds: between signs of life; without one; to end with an error of one's own.
_BEAT, _SILENCE, _GRACE = 5.0, 60.0, 2.5
_PATIENCE, _START = 20.0, 300  # seconds for a connection, and for process 0 to start
_ADDRESS = "egno_jax/liveness"
_LONGEST_MESSAGE = 1024  # bytes
_END, _NO_MORE = b"\n", b"bye"
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
        if _watch is not None:
            _watch.tell(message.strip().rpartition("\n")[2])
        os._exit(code)
    return code


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turns failed communication into an error that names the process that has ended.

    Raises:
      LostProcessError: another process has ended.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if _watch is None or not _LOST.search(str(error)) or not (loss := _watch.loss()):
            raise
        raise LostProcessError(loss) from error


def watch_others() -> None:
    """Lets this process end when another one ends; all must call, once.

    Where process 0 cannot be reached there is a warning, and JAX notices the end of a process.
    """
    global _watch
    state = distributed.global_state
    host = state.coordinator_address.rpartition(":")[0].strip("[]")
    try:
        if state.process_id == 0:
            listener, token = _listen(host), secrets.token_hex()
            state.client.key_value_set(_ADDRESS, f"{listener.getsockname()[1]} {token}")
            watch = _Watch(0, listener, token)
        else:
            found = state.client.blocking_key_value_get(_ADDRESS, 1000 * _START)
            port, token = found.split()
            line = socket.create_connection((host, int(port)), _PATIENCE)
            line.sendall(f"{token} {state.process_id}".encode() + _END)
            watch = _Watch(state.process_id, line)
    except OSError as error:
        warnings.warn(
            f"process {state.process_id} has no connection with process 0 on {host} ({error}): if "
            "one of the processes ends, the others notice it late",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    _watch = watch
    threading.Thread(target=watch.run, daemon=True, name="egno_jax liveness").start()
    atexit.register(watch.stop)
    os.register_at_fork(after_in_child=watch.close)  # else a child would keep the connections


def _listen(host: str) -> socket.socket:
    """Returns a socket that listens at a free port of the address, or of all if it is not ours."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=4096)
    except OSError:
        return socket.create_server(("", 0), backlog=4096)


class _Line(NamedTuple):
    """A connection with another process."""

    index: int
    socket: socket.socket


class _Watch:
    """The connections of one process: of process 0 with all others, of the others with it.

    A sign of life is an empty message. The first other one is the last: `_NO_MORE`, or the number
    of a process that ended and what it said.
    """

    def __init__(self, index: int, first: socket.socket, token: str = "") -> None:
        self._index, self._token = index, token
        self._selector = selectors.DefaultSelector()
        self._heard: dict[_Line, float] = {}
        self._loss, self._is_lost, self._is_over = "", threading.Event(), threading.Event()
        if index == 0:
            self._selector.register(first, selectors.EVENT_READ)
        else:
            self._add(_Line(0, first))

    def _add(self, line: _Line) -> None:
        line.socket.settimeout(_PATIENCE)
        self._selector.register(line.socket, selectors.EVENT_READ, line)
        self._heard[line] = time.monotonic()

    def run(self) -> None:
        """Listens and gives signs of life until a process has ended."""
        last = time.monotonic()
        while not self._is_over.is_set():
            for key, _ in self._selector.select(_BEAT):
                if key.data is None:
                    self._accept(key.fileobj)
                elif (end := self._receive(key.data)) is not None:
                    return self._lose(key.data, end)
            now = time.monotonic()
            silent = [line for line, heard in self._heard.items() if now - heard > _SILENCE]
            if silent:
                return self._lose(silent[0], b"")
            if now - last >= _BEAT:
                self._send(b"")
                last = now
        return None

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(_PATIENCE)
        with contextlib.suppress(OSError, ValueError):  # a stranger
            token, _, index = connection.recv(_LONGEST_MESSAGE).decode().partition(" ")
            if hmac.compare_digest(token, self._token):
                return self._add(_Line(int(index), connection))
        return connection.close()

    def _receive(self, line: _Line) -> bytes | None:
        """Returns what came over a line that has ended; None: a sign of life, or all is well."""
        try:
            message = line.socket.recv(2 * _LONGEST_MESSAGE)
        except OSError:
            message = b""
        self._heard[line] = time.monotonic()
        if message and not (message := message.strip().partition(_END)[0]):
            return None
        self._selector.unregister(line.socket)
        self._heard[line] = math.inf
        return None if message == _NO_MORE else message

    def _lose(self, line: _Line, message: bytes) -> None:
        """Tells the others, and ends this process unless it ends by itself."""
        if self._is_over.is_set():
            return
        index, _, reason = message.decode(errors="replace").partition(" ")
        index = index or str(line.index)
        self._loss = (
            f"process {index} of {distributed.global_state.num_processes} ended "
            f"({reason or 'see the output there'}), so this one ends too; start all again and "
            "resume the run"
        )
        self._is_lost.set()
        self._send(f"{index} {reason}".encode())
        is_store_gone = line.index == 0 and not message
        if is_store_gone or not self._is_over.wait(_GRACE):
            fail(f"error: {self._loss}", RESUMABLE)

    def _send(self, message: bytes) -> None:
        for line in tuple(self._heard):
            with contextlib.suppress(OSError):
                line.socket.sendall(message + _END)

    def loss(self) -> str:
        """Returns which process has ended, if one has or does within a second."""
        self._is_lost.wait(1)
        return self._loss

    def tell(self, message: str) -> None:
        """Tells the others that this process ends, and lets them end before JAX's store does."""
        self._send(f"{self._index} {message}".encode()[:_LONGEST_MESSAGE])
        if self._index == 0 and self._heard:
            time.sleep(_GRACE + 1)

    def stop(self) -> None:
        """Tells the others that this process needs them no more."""
        self._is_over.set()
        self._send(_NO_MORE)

    def close(self) -> None:
        listening = [key.fileobj for key in self._selector.get_map().values()]
        for each in [*listening, *(line.socket for line in self._heard)]:
            each.close()


_watch: _Watch | None = None
