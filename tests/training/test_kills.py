"""Runs that are killed again and again end with the bits of one that is left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.training.kill_runs import INTERRUPTED
from tests.training.test_mesh import ROOT, free_port

pytestmark = pytest.mark.slow

# Processes, steps, kills and terminations.
SWEEPS = {
    "kills of one process": (1, 150, 10, 4),
    "kills of two processes": (2, 100, 6, 2),
}


class Run:
    """The processes of a run, and how far it has come."""

    def __init__(self, directory, num_processes, num_steps):
        address = f"127.0.0.1:{free_port()}"
        settings = {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(directory.parents[1] / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "EGNO_JAX_KERNELS": "off",
        }
        self.step, self.output, self.result = 0, [], None
        self.processes = []
        for index in range(num_processes):
            several = [address, str(num_processes), str(index)] if num_processes > 1 else []
            rest = [str(num_steps), *several]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-u", "-m", "tests.training.kill_runs", directory, *rest],
                    cwd=ROOT,
                    env=os.environ | settings,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        self._readers = [
            threading.Thread(target=self._read, args=(process,)) for process in self.processes
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, process):
        for line in process.stdout:
            word, _, rest = line.partition(" ")
            if not line.endswith("\n"):  # the process was killed within a line
                self.output.append(line)
            elif word == "STEP":
                self.step = int(rest)
            elif word == "RESULT":
                self.result = rest.strip()
            else:
                self.output.append(line)

    def is_running(self):
        return all(process.poll() is None for process in self.processes)

    def wait_for(self, condition):
        while self.is_running() and not condition():
            time.sleep(0.0005)
        return self.is_running()

    def send(self, number, *, to_all):
        for process in random.sample(self.processes, len(self.processes) if to_all else 1):
            process.send_signal(number)

    def end(self):
        codes = [process.wait(timeout=300) for process in self.processes]
        for reader in self._readers:
            reader.join()
        return codes


@pytest.fixture(scope="module", params=SWEEPS.values(), ids=SWEEPS.keys())
def whole(request, tmp_path_factory):
    """Returns a sweep and what a run that is left alone ends with."""
    num_processes, num_steps, *_ = request.param
    if num_processes > 1:
        pytest.importorskip("grain")
    run = Run(tmp_path_factory.mktemp("whole") / "run", num_processes, num_steps)
    assert run.end() == [0] * num_processes, "".join(run.output)
    return request.param, run.result


def is_writing(directory):
    folder = directory / "checkpoints"
    return folder.exists() and any("tmp" in path.name for path in folder.iterdir())


def test_killed_runs_end_with_the_same_bits(whole, tmp_path):
    (num_processes, num_steps, num_kills, _), expected = whole
    chance = random.Random(num_processes)
    kills = in_checkpoint = runs = 0
    while kills < num_kills:
        directory, runs = tmp_path / str(runs), runs + 1
        while True:
            run = Run(directory, num_processes, num_steps)
            if kills < num_kills and run.wait_for(lambda run=run: run.step):
                last = run.step + chance.randrange(num_steps // 2)
                run.wait_for(lambda run=run, last=last: run.step >= last)
                if kills % 2:
                    run.wait_for(lambda directory=directory: is_writing(directory))
                else:
                    time.sleep(0.02 * chance.random())
                is_killed = run.is_running()
                run.send(signal.SIGKILL, to_all=True)
                run.end()
                kills += is_killed
                in_checkpoint += is_killed and is_writing(directory)
                if is_killed:
                    continue
            codes = run.end()
            # A run that ended by itself just before it would have been killed counts as well.
            if run.result is None and codes != [0] * num_processes:
                assert set(codes) <= {0, -signal.SIGKILL}, f"{codes}\n" + "".join(run.output)
                continue
            assert run.result == expected, "".join(run.output)
            break
    print(f"{kills} kills, {in_checkpoint} in a checkpoint, {runs} runs, {num_processes} processes")
    assert in_checkpoint >= num_kills // 5 and kills >= num_kills


def test_terminated_runs_end_with_the_same_bits(whole, tmp_path):
    (num_processes, num_steps, _, num_terms), expected = whole
    chance = random.Random(num_processes)
    terms = runs = 0
    while terms < num_terms:
        directory, runs = tmp_path / str(runs), runs + 1
        while True:
            run = Run(directory, num_processes, num_steps)
            if terms < num_terms and run.wait_for(lambda run=run: run.step):
                last = run.step + chance.randrange(num_steps // 3)
                run.wait_for(lambda run=run, last=last: run.step >= last)
                run.send(signal.SIGTERM, to_all=False)
            codes = run.end()
            if codes == [INTERRUPTED] * num_processes:
                terms += 1
                continue
            # A signal just after the end of `fit` ends a process that has nothing left to do.
            assert set(codes) <= {0, -signal.SIGTERM}, f"{codes}\n" + "".join(run.output)
            assert run.result == expected, "".join(run.output)
            break
    print(f"{terms} terminations, {runs} runs, {num_processes} processes")
