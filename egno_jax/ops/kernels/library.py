"""Compilation and loading of the C++ kernels, when they are first needed.

The library is compiled by `$CXX`, or else `c++`, `g++` or `clang++`, against jaxlib's headers and
for the instruction set of this processor. It is kept in `$EGNO_CACHE_DIR/kernels` or
`~/.cache/egno_jax/kernels`, with its checksum; its name is a hash of everything that determines its
content. One process compiles it while others wait. A library is loaded only if file and folder are
the user's own and nobody else can write to them; without such a folder each process compiles a
library for itself. Without a compiler everything runs on JAX's operations, slower.

The environment variable `EGNO_JAX_KERNELS` is `auto` (the default); `off`; `require`: an error
instead of a warning if there are no kernels; or `pallas`: as `auto`, and TPUs and GPUs use kernels
that have never run on one (`egno_jax.ops.kernels.tpu`, `egno_jax.ops.kernels.gpu`).
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
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from egno_jax.locks import LockedError, lock

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
SETTINGS = ("auto", "off", "require", "pallas")

logger = logging.getLogger("egno_jax")
_lock = threading.Lock()


class Status(NamedTuple):
    """Whether the CPU kernels are in use; `reason` is the library's path, or why they are not."""

    is_loaded: bool
    reason: str


class KernelError(RuntimeError):
    """The kernels cannot be built or loaded; raised if `EGNO_JAX_KERNELS=require`."""


def setting() -> str:
    """Returns the value of `EGNO_JAX_KERNELS`.

    Raises:
      ValueError: it is not a valid one.
    """
    value = os.environ.get("EGNO_JAX_KERNELS") or "auto"
    if value not in SETTINGS:
        raise ValueError(
            f"EGNO_JAX_KERNELS: got {value!r}, expected {', '.join(SETTINGS)}; set one of these"
        )
    return value


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
    wanted = setting()
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
    path, library = _cached(command, name)
    for symbol in _SYMBOLS:
        handler = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(symbol, handler, platform="cpu")
    return str(path)


def _cached(command: list[str], name: str) -> tuple[Path, ctypes.CDLL]:
    """Returns the library, from the cache if there is one; compiles it if needed."""
    try:
        path = _cache() / name
        if (library := _open(path)) is None:
            with lock(path.with_name("compile.lock"), wait_seconds=_TIMEOUT):
                library = _open(path) or _build(command, path)
        return path, library
    # If the compiler failed because of the cache's disk, it may not on the other one.
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory, or the compiler
        reason = f"another one compiles them ({error})" if isinstance(error, LockedError) else error
    # An open library stays open when its file is deleted.
    with tempfile.TemporaryDirectory(prefix="egno_jax-") as folder:
        path = Path(folder, name)
        library = _build(command, path)
    logger.warning(
        "EGNO's CPU kernels were compiled for this process alone, as will be those of the next: %s "
        "(set EGNO_CACHE_DIR to a folder of your own)",
        reason,
    )
    return path, library


def _open(path: Path) -> ctypes.CDLL | None:
    """Opens a library if it is the user's own, intact and complete; None if not."""
    if not _is_intact(path):
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    return library if all(hasattr(library, symbol) for symbol in _SYMBOLS) else None


def _build(command: list[str], path: Path) -> ctypes.CDLL:
    """Compiles the library, opens it, and moves it to `path` with its checksum."""
    for old in path.parent.glob("build-*"):  # of processes that were killed, as we hold the lock
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
        # A name of its own, as the loader knows the libraries that it has opened by their names.
        built, checksum = (Path(folder, path.with_suffix(s).name) for s in (".so", ".sha256"))
        arguments = ["-o", str(built), str(_SOURCES[-1])]
        result = _run([*command, *arguments], check=False, env=os.environ | {"LC_ALL": "C"})
        if result.returncode or not built.is_file():
            lines = result.stderr.decode(errors="replace").splitlines()
            errors = [line for line in lines if "error" in line] or lines[-1:]
            raise KernelError(f"{shlex.join(command)} failed: {'; '.join(errors[:3])}")
        checksum.write_text(_checksum(built))
        for new in (built, checksum):
            new.chmod(0o700)  # whatever the umask is
        if (library := _open(built)) is None:
            raise KernelError(f"{shlex.join(command)} made a library without the kernels")
        for new in (built, checksum):
            target = path.with_name(new.name)
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            os.replace(new, target)
    return library


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, capture_output=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL, **options
    )


def _is_intact(path: Path) -> bool:
    """Returns whether a library is the user's own and intact.

    Opening one of another user would run its code, opening a truncated one would kill the process.
    """
    try:
        checksum = path.with_suffix(".sha256")
        is_own = _is_private(path, stat.S_ISREG) and _is_private(checksum, stat.S_ISREG)
        return is_own and _checksum(path) == checksum.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Returns whether a file or folder of a kind, no link, is writable for its owner, us, alone."""
    status = path.lstat()
    is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return is_own and is_kind(status.st_mode)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cache() -> Path:
    """Returns the folder of libraries.

    Raises:
      OSError, RuntimeError: it cannot be made, there is no home directory, or others can write to
        it.
    """
    folder = Path(os.environ.get("EGNO_CACHE_DIR") or "~/.cache/egno_jax").expanduser() / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(folder.resolve(), stat.S_ISDIR):
        raise PermissionError(f"{folder} is not your own, or others can write to it")
    return folder


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
