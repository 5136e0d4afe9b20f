"""Compiles the C++ kernels for this machine when they are first needed, and keeps them.

The library is built by the C++ compiler that is found (`$CXX`, else `c++`, `g++` or `clang++`)
against the headers that jaxlib ships, for the instruction set of this processor, and kept in
`$EGNO_CACHE_DIR/kernels` or `~/.cache/egno_jax/kernels` under a name made of all that decides what
is in it, with its checksum beside it. Where that folder cannot be written, every process compiles
for itself. Without a compiler everything runs on JAX's own operations, slower.

`EGNO_JAX_KERNELS` in the environment: `auto` (the default), `off`, or `require`, which makes an
error of what otherwise is a warning.
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
from typing import NamedTuple

import jax

_FOLDER = Path(__file__).parent
_SOURCES = [*sorted(_FOLDER.glob("*.h")), _FOLDER / "kernels.cc"]
_SYMBOLS = tuple(
    f"egno_{name}{suffix}"
    for name in ("message_sums", "feature_update", "velocity_factor", "temporal_conv")
    for suffix in ("", "_vjp")
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
    wanted = os.environ.get("EGNO_JAX_KERNELS") or "auto"
    if wanted not in ("auto", "off", "require"):
        raise ValueError(f"EGNO_JAX_KERNELS: got {wanted!r}, expected auto, off or require")
    if wanted == "off":
        return Status(False, "EGNO_JAX_KERNELS is off")
    try:
        return Status(True, _register())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        if wanted == "require":
            raise KernelError(f"EGNO_JAX_KERNELS is require, and {error}") from error
        logger.warning(
            "EGNO runs without its CPU kernels, several times slower in training: %s "
            "(EGNO_JAX_KERNELS=off silences this)",
            error,
        )
        return Status(False, str(error))


def _register() -> str:
    """Opens the compiled library and names its kernels to XLA; returns where it came from."""
    if os.name != "posix":
        raise KernelError("the kernels are for Linux and macOS")
    compiler = _compiler()
    command = [*compiler, *_flags(), "-I", jax.ffi.include_dir()]
    name = f"kernels-{_fingerprint(compiler, command)}.so"
    with contextlib.ExitStack() as stack:
        folder = _cache()
        if folder is None or not (_is_whole(folder / name) or os.access(folder, os.W_OK)):
            # What is open stays open when its file is gone.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="egno_jax-")))
        path = folder / name
        if not _is_whole(path):
            _build(command, path)
        library = ctypes.CDLL(str(path))
    for symbol in _SYMBOLS:
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(symbol, handler, platform="cpu")
    return str(path)


def _build(command: list[str], path: Path) -> None:
    """Compiles the library to `path`, with its checksum beside it; others may do the same."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
        built, checksum = Path(folder, "kernels.so"), Path(folder, "checksum")
        result = subprocess.run(
            [*command, "-o", str(built), str(_SOURCES[-1])],
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
        )
        if result.returncode or not built.is_file():
            lines = result.stderr.decode(errors="replace").splitlines()
            errors = [line for line in lines if "error" in line] or lines[-1:]
            raise KernelError(f"{shlex.join(command)} failed: {'; '.join(errors[:3])}")
        checksum.write_text(_checksum(built))
        os.replace(built, path)
        os.replace(checksum, path.with_suffix(".sha256"))


def _is_whole(path: Path) -> bool:
    """Says whether a library is there as it was built; opening a cut one kills the process."""
    try:
        return _checksum(path) == path.with_suffix(".sha256").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cache() -> Path | None:
    """Returns the folder that keeps the library; None where there is none that is ours alone."""
    try:
        folder = Path(os.environ.get("EGNO_CACHE_DIR") or "~/.cache/egno_jax").expanduser()
        folder /= "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    is_private = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if is_private else None


def _compiler() -> list[str]:
    try:
        configured = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise KernelError(f"CXX is {os.environ['CXX']!r}: {error}") from error
    if configured:
        return configured
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise KernelError("there is no C++ compiler (set CXX to name one)")


def _flags() -> list[str]:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    native = "-march=native" if is_x86 else "-mcpu=native"
    return ["-std=c++17", "-O3", native, "-fPIC", "-shared", "-w"]


def _fingerprint(compiler: list[str], command: list[str]) -> str:
    """Returns a name for what the command makes of the source on this machine."""
    version = subprocess.run(
        [*compiler, "--version"],
        capture_output=True,
        timeout=_TIMEOUT,
        check=True,
        stdin=subprocess.DEVNULL,
    )
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
    """Returns what tells this machine's instruction set from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    names = (b"flags", b"Features", b"model name", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(names)}))
