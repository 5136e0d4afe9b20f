"""Compilation and loading of the C++ kernels, when they are first needed.

The library is compiled by `$CXX`, or else `c++`, `g++` or `clang++`, against jaxlib's headers and
for the instruction set of this processor. It is kept in `$EGNO_CACHE_DIR/kernels` or
`~/.cache/egno_jax/kernels`, with its checksum; its name is a hash of everything that determines its
content. If that folder is not writable, each process compiles a library. Without a compiler
everything runs on JAX's operations, slower.

The environment variable `EGNO_JAX_KERNELS` is `auto` (the default), `off`, or `require`: an error
instead of a warning if there are no kernels.
"""

from __future__ import annotations

import contextlib
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
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

_FOLDER = Path(__file__).parent
_SOURCES = [*sorted(_FOLDER.glob("*.h")), _FOLDER / "kernels.cc"]
_SYMBOLS = tuple(
    f"egno_{name}{suffix}"
    for name in (
        "message_sums",
        "feature_update",
        "velocity_factor",
        "temporal_conv",
        "vector_sums",
    )
    for suffix in ("", "_vjp")
)
_TIMEOUT = 300.0

logger = logging.getLogger("egno_jax")
_lock = threading.Lock()


class Status(NamedTuple):
    """Whether the CPU kernels are in use; `reason` is the library's path, or why they are not."""

    is_loaded: bool
    reason: str


class KernelError(RuntimeError):
    """The kernels cannot be built or loaded; raised if `EGNO_JAX_KERNELS=require`."""


def load() -> Status:
    """Loads the kernels into this process and registers them with XLA; compiles them if needed.

    The result is the same for the lifetime of the process.

    Raises:
      KernelError: they cannot be used, and `EGNO_JAX_KERNELS` is `require`.
      ValueError: `EGNO_JAX_KERNELS` is not a valid value.
    """
    with _lock:
        return _load()


@functools.cache
def _load() -> Status:
    wanted = os.environ.get("EGNO_JAX_KERNELS") or "auto"
    if wanted not in ("auto", "off", "require"):
        raise ValueError(
            f"EGNO_JAX_KERNELS: got {wanted!r}, expected auto, off or require; set one of these"
        )
    if wanted == "off":
        return Status(False, "EGNO_JAX_KERNELS is off")
    try:
        return Status(True, _register())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        if wanted == "require":
            raise KernelError(
                f"EGNO_JAX_KERNELS: got 'require', but {error}; fix this or set it to auto"
            ) from error
        logger.warning(
            "EGNO runs without its CPU kernels and trains several times slower: %s "
            "(EGNO_JAX_KERNELS=off silences this warning)",
            error,
        )
        return Status(False, str(error))


def _register() -> str:
    """Opens the compiled library and registers its kernels with XLA; returns its path."""
    if os.name != "posix":
        raise KernelError(f"the kernels are for Linux and macOS, not {platform.system()}")
    compiler = _compiler()
    command = [*compiler, *_flags(), "-I", jax.ffi.include_dir()]
    name = f"kernels-{_fingerprint(compiler, command)}.so"
    with contextlib.ExitStack() as stack:
        folder = _cache()
        if folder is None or not (_is_intact(folder / name) or os.access(folder, os.W_OK)):
            # An open library stays open when its file is deleted.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="egno_jax-")))
        path = folder / name
        if not _is_intact(path):
            _build(command, path)
        library = ctypes.CDLL(str(path))
    for symbol in _SYMBOLS:
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(symbol, handler, platform="cpu")
    return str(path)


def _build(command: list[str], path: Path) -> None:
    """Compiles the library to `path`, with its checksum; other processes may do the same."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
        built, checksum = Path(folder, "kernels.so"), Path(folder, "checksum")
        arguments = ["-o", str(built), str(_SOURCES[-1])]
        result = _run([*command, *arguments], check=False, env=os.environ | {"LC_ALL": "C"})
        if result.returncode or not built.is_file():
            lines = result.stderr.decode(errors="replace").splitlines()
            errors = [line for line in lines if "error" in line] or lines[-1:]
            raise KernelError(f"{shlex.join(command)} failed: {'; '.join(errors[:3])}")
        checksum.write_text(_checksum(built))
        os.replace(built, path)
        os.replace(checksum, path.with_suffix(".sha256"))


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, capture_output=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL, **options
    )


def _is_intact(path: Path) -> bool:
    """Returns whether a library is intact; opening a truncated one would kill the process."""
    try:
        return _checksum(path) == path.with_suffix(".sha256").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cache() -> Path | None:
    """Returns the folder of libraries; None if others can write to it or there is none."""
    try:
        folder = Path(os.environ.get("EGNO_CACHE_DIR") or "~/.cache/egno_jax").expanduser()
        folder /= "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    is_private = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if is_private else None


def _compiler() -> list[str]:
    try:
        configured = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise KernelError(f"CXX: got {os.environ['CXX']!r}, expected a command; {error}") from error
    if configured:
        return configured
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise KernelError("no C++ compiler was found (set CXX to one)")


def _flags() -> list[str]:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    native = "-march=native" if is_x86 else "-mcpu=native"
    return ["-std=c++17", "-O3", native, "-fPIC", "-shared", "-w"]


def _fingerprint(compiler: list[str], command: list[str]) -> str:
    """Returns a hash of everything that determines the compiled library."""
    version = _run([*compiler, "--version"], check=True)
    parts = (
        *(source.read_bytes() for source in _SOURCES),
        metadata.version("jaxlib").encode(),
        shlex.join(command).encode(),
        version.stdout,
        platform.machine().encode(),
        _processor(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> bytes:
    """Returns a description of this machine's instruction set."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    names = (b"flags", b"Features", b"model name", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(names)}))
