"""Compiles the C++ kernels for this machine when they are first needed, and keeps them.

The library is built by the C++ compiler that is found (`$CXX`, else `c++`, `g++` or `clang++`)
against the headers that jaxlib ships, for the instruction set of this processor, and kept in
`$EGNO_CACHE_DIR/kernels` or `~/.cache/egno_jax/kernels` under a name made of all that decides what
is in it. Without a compiler everything runs on JAX's own operations, slower.

`EGNO_JAX_KERNELS` in the environment: `auto` (the default), `off`, or `require`, which makes an
error of what otherwise is a warning.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib

_FOLDER = Path(__file__).parent
_SOURCES = [*sorted(_FOLDER.glob("*.h")), _FOLDER / "kernels.cc"]
_SYMBOLS = (
    "egno_message_sums",
    "egno_message_sums_vjp",
    "egno_node_update",
    "egno_node_update_vjp",
)
_TIMEOUT = 300.0

logger = logging.getLogger("egno_jax")
_lock = threading.Lock()


class Status(NamedTuple):
    """Whether the CPU kernels are in use.

    Attributes:
      is_loaded: whether they are.
      reason: where they come from, or why they are not there.
    """

    is_loaded: bool
    reason: str


class KernelError(RuntimeError):
    """The kernels cannot be built or loaded, and `EGNO_JAX_KERNELS=require` asks for them."""


def load() -> Status:
    """Loads the kernels into this process and names them to XLA; compiles them if need be.

    Returns:
      Whether they can be used, and why not; the answer stays the same for the whole process.

    Raises:
      KernelError: they cannot, and `EGNO_JAX_KERNELS` is `require`.
      ValueError: `EGNO_JAX_KERNELS` is none of its values.
    """
    with _lock:
        return _load()


@functools.cache
def _load() -> Status:
    wanted = os.environ.get("EGNO_JAX_KERNELS", "auto")
    if wanted not in ("auto", "off", "require"):
        raise ValueError(f"EGNO_JAX_KERNELS: got {wanted!r}, expected auto, off or require")
    if wanted == "off":
        return Status(False, "EGNO_JAX_KERNELS is off")
    try:
        path = _build()
        library = ctypes.CDLL(str(path))
        for symbol in _SYMBOLS:
            handler = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(symbol, handler, platform="cpu")
    except (OSError, subprocess.SubprocessError, AttributeError, KernelError) as error:
        if wanted == "require":
            raise KernelError(f"EGNO_JAX_KERNELS is require, and {error}") from error
        logger.warning(
            "message passing runs without its CPU kernels, several times slower in training: %s "
            "(EGNO_JAX_KERNELS=off silences this)",
            error,
        )
        return Status(False, str(error))
    return Status(True, str(path))


def _build() -> Path:
    """Returns the compiled library, from the cache if it is there."""
    command = [*_compiler(), *_flags(), "-I", jax.ffi.include_dir()]
    folder = _folder()
    path = folder / f"kernels-{_fingerprint(command)}.so"
    if path.exists():
        return path
    descriptor, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(descriptor)
    try:
        result = subprocess.run(
            [*command, "-o", unfinished, str(_SOURCES[-1])],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if "error" in line]
            raise KernelError(f"{shlex.join(command)} failed: {'; '.join(errors[:3])}")
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return path


def _folder() -> Path:
    """Returns a folder for the library that nobody else can write to."""
    configured = os.environ.get("EGNO_CACHE_DIR") or "~/.cache/egno_jax"
    folder = Path(configured).expanduser() / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_private = folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o022
        if is_private and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    # Read-only homes and shared caches: compiled again by every process.
    return Path(tempfile.mkdtemp(prefix="egno_jax-"))


def _compiler() -> list[str]:
    if configured := os.environ.get("CXX"):
        return shlex.split(configured)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise KernelError("there is no C++ compiler (set CXX to name one)")


def _flags() -> list[str]:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    native = "-march=native" if is_x86 else "-mcpu=native"
    return ["-std=c++17", "-O3", native, "-fPIC", "-shared", "-w"]


def _fingerprint(command: list[str]) -> str:
    """Returns a name for what the command makes of the source on this machine."""
    version = subprocess.run(
        [command[0], "--version"], capture_output=True, timeout=_TIMEOUT, check=True
    )
    parts = (
        *(source.read_bytes() for source in _SOURCES),
        jaxlib.__version__.encode(),
        shlex.join(command).encode(),
        version.stdout,
        platform.machine().encode(),
        _processor(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> bytes:
    """Returns what tells this machine's instruction set from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    names = (b"flags", b"Features", b"model name", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(names)}))
