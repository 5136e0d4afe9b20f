"""Trains for a day of tiny steps while being killed: `make soak`.

python -m tests.soak [--steps 600000] [--folder build/soak]

Two runs take the same steps. One is left alone. The other is ended every 20 to 90 seconds, by
SIGKILL or SIGTERM, and started again until it is done. Both must end with the same bits, and
neither may grow. The default is as many steps as the 5-body experiment `vector-orbits` takes in a
day (0.14 s each).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.training.kill_runs import INTERRUPTED

CHUNK, EVERY = 1000, 20_000  # steps of a chunk, and between checkpoints
SECONDS_BETWEEN = (20, 90)
MAX_GROWTH = 60  # MB after the first checkpoints


def memory() -> float:
    """Returns the memory that this process holds now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def train(directory: Path, num_steps: int) -> int:
    """Trains in this process; prints its memory, and at the end a hash of the result."""
    from egno_jax import training
    from tests.training import kill_runs, mesh_runs

    run = dataclasses.replace(
        mesh_runs.CONFIG,
        num_steps=num_steps,
        batch_size=2,
        steps_per_chunk=CHUNK,
        eval_every=EVERY,
        checkpoint_every=EVERY,
    )

    class Memory(training.Callback):
        def on_chunk(self, record: dict) -> None:
            if record["step"] % EVERY == 0:
                print("MEMORY", record["step"], memory(), flush=True)

    result = training.fit(
        directory, *mesh_runs.task(), run, resume=True, make_callbacks=lambda _: [Memory()]
    )
    if result.interrupted:
        return INTERRUPTED
    print("RESULT", kill_runs.digest(directory, run, result.params), flush=True)
    return 0


class Watched:
    """A process that trains, and what it has printed."""

    def __init__(self, directory: Path, num_steps: int):
        self.log = directory.with_suffix(".log")
        command = [sys.executable, "-u", "-m", "tests.soak", "--train", str(directory)]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--steps", str(num_steps)], stdout=file, stderr=subprocess.STDOUT
            )

    def words(self, name: str) -> list[list[str]]:
        """Returns the words of the lines that begin with a name."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line.split()[1:] for line in lines if line.startswith(name)]

    def growth(self) -> float:
        """Returns by how many MB the process has grown since its second checkpoint."""
        found = [float(size) for _, size in self.words("MEMORY")][1:]
        return max(found) - found[0] if found else 0.0


def killed(directory: Path, num_steps: int, chance: random.Random) -> tuple[str, int, float]:
    """Trains with kills; returns the result, the number of kills and the greatest growth."""
    kills, growth = 0, 0.0
    while True:
        run = Watched(directory, num_steps)
        try:
            code = run.process.wait(timeout=chance.uniform(*SECONDS_BETWEEN))
        except subprocess.TimeoutExpired:
            kills += 1
            run.process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            code = run.process.wait()
        growth = max(growth, run.growth())
        if found := run.words("RESULT"):
            return found[0][0], kills, growth
        # A signal may come before `fit` handles it.
        if code not in (INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM):
            raise RuntimeError(f"exit code {code}: {run.log.read_text(errors='replace')}")


def main(arguments: list[str]) -> int:
    """Runs both; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.soak")
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train is not None:
        return train(options.train, options.steps)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    started = time.perf_counter()
    whole = Watched(options.folder / "whole", options.steps)
    result, kills, growth = killed(options.folder / "killed", options.steps, random.Random(0))
    if whole.process.wait() != 0:
        raise RuntimeError(whole.log.read_text(errors="replace"))
    is_same = [[result]] == whole.words("RESULT")
    print(
        f"{options.steps} steps, {kills} kills, {time.perf_counter() - started:.0f} s: "
        f"{'the same bits' if is_same else 'OTHER BITS'}; memory grew by {whole.growth():.0f} MB "
        f"in the run left alone, by at most {growth:.0f} MB between kills"
    )
    return 0 if is_same and max(growth, whole.growth()) < MAX_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
