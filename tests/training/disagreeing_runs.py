"""A run of which some processes differ from the others, or one is killed.

python -m tests.training.disagreeing_runs DIRECTORY COORDINATOR NUM_PROCESSES PROCESS_ID KIND
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import jax

from egno_jax import training
from egno_jax.training import processes
from tests.helpers import SignalAfter
from tests.training.kill_runs import settings
from tests.training.mesh_runs import task


def main(directory, coordinator, count, index, kind) -> int:
    is_odd = index != "0"
    config, callbacks, count = settings(6), [], int(count) + (is_odd and kind == "count")
    if is_odd and kind == "versions":
        processes.library_versions = lambda: {"jax": "0.0.1"}
    if is_odd and kind == "settings":
        config = dataclasses.replace(config, batch_size=4, seed=7)
    if kind == "kill 0" and not is_odd:
        callbacks = [SignalAfter(3, signal.SIGKILL)]
    try:
        training.start_processes(coordinator, count, int(index))
        params, train, valid = task()
        if is_odd and kind in ("data", "settings"):
            train = train._replace(positions=train.positions + 1e-3)
        mesh = training.make_mesh(training.MeshShape(data=jax.device_count()))
        if kind == "kill 1" and is_odd:  # callbacks are called in process 0 alone
            advance = training.step.Trainer.advance

            def advance_or_die(self, state, step, length):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return advance(self, state, step, length)

            training.step.Trainer.advance = advance_or_die
        training.fit(
            Path(directory),
            *(params, train, valid, config),
            resume=True,
            make_callbacks=lambda _: callbacks,
            mesh=mesh,
        )
    except training.LostProcessError as error:
        return training.fail(f"error: {error}", 75)
    except ValueError as error:
        return training.fail(f"error: {error}", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
