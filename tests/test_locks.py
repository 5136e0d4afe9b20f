"""A lock excludes other processes, names them, and ends with them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from egno_jax import locks

pytest.importorskip("fcntl")

HOLD = """
import pathlib, runpy, sys, time
with runpy.run_path(sys.argv[1])["lock"](pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_frees_its_lock_and_a_live_one_is_named(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, locks.__file__, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(locks.LockedError) as refused, locks.lock(path):
            pass
        assert f"process {holder.pid} on host {socket.gethostname()}, since 2" in str(refused.value)
        assert str(path) in str(refused.value)  # its command
        with pytest.raises(locks.LockedError), locks.lock(path, wait_seconds=0.2):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locks.lock(path, wait_seconds=60):
        assert f"process {os.getpid()} on host" in path.read_text()
    assert path.exists()


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked on this file system"):
        with locks.lock(tmp_path / "lock"):
            pass
