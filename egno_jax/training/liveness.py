"""How one process of a run that ends, or is killed, ends the others.

Every process keeps a TCP connection with process 0. The system closes it however a process ends, so
the others know of it within milliseconds and end with a line that names it. Without it they would
wait in a step; or, if process 0 ends, JAX would abort them some 15 ms later.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hmac
import ipaddress
import math
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # JAX has no public way to its store

RESUMABLE = 75
"""The exit code of a run that can be resumed: EX_TEMPFAIL, "temporary failure", of sysexits.h."""

# Seconds: between signs of life; without one; before another process's end ends this one.
_BEAT, _SILENCE, _GRACE = 5.0, 60.0, 2.5
_PATIENCE, _START = 20.0, 300  # seconds for a connection, and for process 0 to start
_ADDRESS = "egno_jax/liveness"
_BACKLOG = 4096
_LONGEST = 1024  # bytes of a message
_NO_MORE = b"bye"
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
        _end(message, code)
    return code


def _end(message: str, code: int) -> None:
    if _watch is not None:
        _watch.tell(message.strip().rpartition("\n")[2])
    os._exit(code)


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

    An exception that nobody catches ends this process as `fail` does. Where process 0 cannot be
    reached there is a warning, and the end of a process shows in a step that fails or never ends.
    """
    global _watch
    state = distributed.global_state
    try:
        watch = _Watch(state.process_id, state.num_processes, *_connect(state))
    except (OSError, RuntimeError, ValueError) as error:
        warnings.warn(
            f"process {state.process_id} has no connection with process 0 ({error}): if one of the "
            "processes ends, the others notice it late",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    _watch = watch
    threading.Thread(target=watch.run, daemon=True, name="egno_jax liveness").start()
    atexit.register(watch.stop)
    os.register_at_fork(after_in_child=watch.close)  # else a child would keep the connections
    if not hasattr(sys, "ps1") and sys.excepthook is not _end_by_exception:
        _hooks.append(sys.excepthook)
        sys.excepthook = _end_by_exception


def _end_by_exception(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    _hooks[-1](kind, error, trace)
    if is_one_of_several():
        _ending.acquire()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        _end(f"{kind.__name__}: {error}", 1)


def _connect(state: Any) -> tuple[socket.socket, str]:
    """Returns the socket that process 0 listens at, or a connection with it, and the token.

    The store has the port, and the token by which process 0 knows the others from strangers.
    """
    host = state.coordinator_address.rpartition(":")[0].strip("[]")
    if state.process_id == 0:
        address, token = "", secrets.token_hex()
        try:
            listener = _listen(host)
            address = f"{listener.getsockname()[1]} {token}"
        finally:
            state.client.key_value_set(_ADDRESS, address)
        return listener, token
    port, token = state.client.blocking_key_value_get(_ADDRESS, 1000 * _START).split()
    connection = socket.create_connection((host, int(port)), _PATIENCE)
    connection.sendall(f"{token} {state.process_id}\n".encode())
    return connection, token


def _listen(host: str) -> socket.socket:
    """Returns a socket that listens at a free port, of all addresses or of a loopback as given.

    The name of this machine may be an address of its loopback, where others cannot reach it.
    """
    with contextlib.suppress(ValueError):
        if (address := ipaddress.ip_address(host)).is_loopback:
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            return socket.create_server((host, 0), family=family, backlog=_BACKLOG)
    if socket.has_dualstack_ipv6():
        options = {"family": socket.AF_INET6, "dualstack_ipv6": True}
        return socket.create_server(("::", 0), backlog=_BACKLOG, **options)
    return socket.create_server(("", 0), backlog=_BACKLOG)


@dataclasses.dataclass(eq=False)
class _Line:
    """A connection with another process; `index` is None until it has said which.

    Attributes:
      socket: the connection.
      index: the process at the other end.
      rest: the beginning of its next message.
      heard: when it last gave a sign of life; infinite when it has said all.
    """

    socket: socket.socket
    index: int | None
    rest: bytes = b""
    heard: float = dataclasses.field(default_factory=time.monotonic)


class _Watch:
    """The connections of one process: of process 0 with all others, of the others with it.

    Messages are lines. The first of a process to process 0 is token and number. An empty one is a
    sign of life. The last is `_NO_MORE`, or the number of a process that ended and what it said.
    """

    def __init__(self, index: int, num_processes: int, first: socket.socket, token: str) -> None:
        self._index, self._num_processes, self._token = index, num_processes, token
        self._selector = selectors.DefaultSelector()
        self._lines: list[_Line] = []
        self._loss, self._is_lost = "", threading.Event()
        if index == 0:
            first.setblocking(False)
            self._selector.register(first, selectors.EVENT_READ)
        else:
            self._add(first, 0)

    def _add(self, connection: socket.socket, index: int | None) -> None:
        connection.settimeout(_PATIENCE)
        line = _Line(connection, index)
        self._selector.register(connection, selectors.EVENT_READ, line)
        self._lines.append(line)

    def run(self) -> None:
        """Listens, and gives signs of life, until a process has ended."""
        last = time.monotonic()
        while True:
            for key, _ in self._selector.select(_BEAT):
                if key.data is None:
                    self._accept(key.fileobj)
                elif (end := self._receive(key.data)) is not None:
                    return self._lose(*end)
            now = time.monotonic()
            if now - last > _SILENCE / 2:  # this process was suspended, perhaps with the others
                for line in self._lines:
                    line.heard = max(line.heard, now)
            for line in [line for line in self._lines if now - line.heard > _SILENCE]:
                if line.index is not None:
                    return self._lose(line.index, "")
                self._drop(line)
            if now - last >= _BEAT:
                self._send("")
                last = now

    def _accept(self, listener: socket.socket) -> None:
        try:
            self._add(listener.accept()[0], None)
        except OSError:  # such as too many open files: it stays in the queue
            time.sleep(0.1)

    def _receive(self, line: _Line) -> tuple[int, str] | None:
        """Reads from a line; returns the process that has ended and what it said, if one has."""
        try:
            data = line.socket.recv(_LONGEST)
        except OSError:
            data = b""
        line.heard = time.monotonic()
        *messages, line.rest = (line.rest + data).split(b"\n")
        for message in filter(None, messages):
            if line.index is None:
                if not self._knows(line, message):
                    return self._drop(line)
                continue
            self._drop(line)
            if message == _NO_MORE:
                return None
            index, _, reason = message.decode(errors="replace").partition(" ")
            return int(index), reason
        if not data or len(line.rest) > _LONGEST:
            self._drop(line)
            return None if line.index is None else (line.index, "")
        return None

    def _knows(self, line: _Line, message: bytes) -> bool:
        token, _, index = message.decode(errors="replace").partition(" ")
        if hmac.compare_digest(token.encode(), self._token.encode()) and index.isdecimal():
            line.index = int(index)
        return line.index is not None

    def _drop(self, line: _Line) -> None:
        """Reads no more from a line; that of a stranger is closed."""
        self._selector.unregister(line.socket)
        line.heard = math.inf
        if line.index is None:
            self._lines.remove(line)
            line.socket.close()

    def _lose(self, index: int, reason: str) -> None:
        """Tells the others, and ends this process unless it ends by itself."""
        self._loss = (
            f"process {index} of {self._num_processes} ended ({reason or 'see the output there'}), "
            "so this one ends too; start all again and resume the run"
        )
        self._is_lost.set()
        self._send(f"{index} {reason}", but=index)
        if index or reason:  # else JAX's store is gone with process 0, and would abort this one
            time.sleep(_GRACE)
        if is_one_of_several():  # it may have left the others
            fail(f"error: {self._loss}", RESUMABLE)

    def _send(self, message: str, but: int | None = None) -> None:
        for line in [line for line in self._lines if line.index not in (None, but)]:
            with contextlib.suppress(OSError):
                line.socket.sendall(message.encode()[:_LONGEST] + b"\n")

    def loss(self) -> str:
        """Returns which process has ended, if one has or does within a second."""
        self._is_lost.wait(1)
        return self._loss

    def tell(self, message: str) -> None:
        """Tells the others that this process ends, and lets them end before JAX's store does."""
        self._send(f"{self._index} {message}")
        if self._index == 0 and self._lines:
            time.sleep(_GRACE + 1)

    def stop(self) -> None:
        """Tells the others that this process has done its part."""
        self._send(_NO_MORE.decode())

    def close(self) -> None:
        """Closes all connections, without a word."""
        listening = [key.fileobj for key in self._selector.get_map().values()]
        for each in [*listening, *(line.socket for line in self._lines)]:
            each.close()


_watch: _Watch | None = None
_hooks: list[Any] = []  # what handled exceptions before
