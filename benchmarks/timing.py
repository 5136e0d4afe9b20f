"""Peers in separate processes, timed in turn, and statistics of their times."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_ROOT = Path(__file__).parent.parent
# The seconds of one turn, well above the resolution of the clock.
_TURN_SECONDS = 0.25
_MOST_CALLS = 50
# A pause before each turn, in which the previous peer's threads stop spinning.
_PAUSE_SECONDS = 0.02


class Missing(ImportError):
    """A peer's packages are not installed."""


class Failed(RuntimeError):
    """A request to a peer failed."""


class Worker:
    """A peer's process; see `benchmarks.worker`.

    Args:
      peer: the peer's name.
      python: the interpreter.

    Raises:
      Missing: a package of the peer is missing; the message says which.
      Failed: the process did not start.
    """

    def __init__(self, peer: str, python: str = sys.executable) -> None:
        self.peer = peer
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", peer],
            cwd=_ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        answer = self._read()
        if "missing" in answer:
            self.close()
            raise Missing(answer["missing"])

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Raises:
          Failed: with the worker's traceback.
        """
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise Failed(f"{self.peer}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-20:])
            code = self._process.returncode
            raise Failed(f"{self.peer}: the worker ended with status {code}\n{tail}")
        return json.loads(line)


def _environment() -> dict[str, str]:
    """Returns the variables of a worker: no compilation cache, and devices are shared."""
    return {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


@contextlib.contextmanager
def workers(peers: Mapping[str, str]) -> Iterator[dict[str, Worker]]:
    """Starts peers, by name and interpreter; those that lack a package are left out."""
    started: dict[str, Worker] = {}
    try:
        for peer, python in peers.items():
            try:
                started[peer] = Worker(peer, python)
            except Missing as error:
                print(f"{peer} is left out: {error} ({python})", flush=True)
        yield started
    finally:
        for worker in started.values():
            worker.close()


class Turns(NamedTuple):
    """The times of several peers.

    Attributes:
      seconds: by peer, the seconds of one call in every round, `[rounds]`.
      calls: by peer, the calls of a turn.
    """

    seconds: dict[str, list[float]]
    calls: dict[str, int]


def interleave(
    turns: Mapping[str, Callable[[int], float]],
    *,
    budget: float,
    least: int = 3,
    most: int = 15,
) -> Turns:
    """Times peers in turn, round by round, so that disturbances affect all of them.

    The first call of each peer warms up and determines the number of calls of a turn. Rounds start
    with a different peer each.

    Args:
      turns: by peer, a function that makes a number of calls and returns the seconds of one.
      budget: seconds for all rounds together.
      least: the least number of rounds, however long they take.
      most: the greatest number of rounds.
    """
    once = {name: turn(1) for name, turn in turns.items()}
    calls = {
        name: int(np.clip(_TURN_SECONDS / seconds, 1, _MOST_CALLS))
        for name, seconds in once.items()
    }
    cost = sum(calls[name] * once[name] + _PAUSE_SECONDS for name in turns)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for index in range(int(np.clip(budget / cost, least, most))):
        begin = index % len(names)
        for name in names[begin:] + names[:begin]:
            time.sleep(_PAUSE_SECONDS)
            seconds[name].append(turns[name](calls[name]))
    return Turns(seconds, calls)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles and number of values."""
    first, median, third = np.percentile(values, [25, 50, 75])
    return {"median": median, "q1": first, "q3": third, "rounds": len(values)}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Returns median and quartiles of the ratios within rounds, in which slow minutes cancel."""
    return summary(np.divide(numerator, denominator))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Returns the slope b of the least-squares line `log t = a + b log n`."""
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)
