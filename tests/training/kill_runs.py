"""A short run with many checkpoints, to be killed: one process, or one of several.

python -m tests.training.kill_runs DIRECTORY NUM_STEPS [COORDINATOR NUM_PROCESSES PROCESS_ID]
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from egno_jax import Params, training
from egno_jax.training import devices
from tests.training.mesh_runs import CONFIG, task

INTERRUPTED = 75


def settings(num_steps: int) -> training.TrainingConfig:
    """Returns the settings of the run."""
    return dataclasses.replace(
        CONFIG,
        num_steps=num_steps,
        steps_per_chunk=1,
        eval_every=12,
        checkpoint_every=2,
        eval_batch_size=7,
    )


class Steps(training.Callback):
    """Prints the step after each chunk."""

    def on_chunk(self, record):
        print("STEP", record["step"], flush=True)


def digest(
    directory: Path, run: training.TrainingConfig, params: Params, mesh: Mesh | None = None
) -> str:
    """Returns a hash of a finished run's last state and of the model that it returned."""
    with training.RunCheckpoints(directory / "checkpoints", run.keep_checkpoints) as last:
        state = training.init_state(task()[0], run)
        if mesh is not None:
            state = devices.replicate(state, mesh)
        state = last.restore(state)
    found = hashlib.sha256()
    for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state, params)):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def main(directory: str, num_steps: str, coordinator="", num_processes="1", index="0") -> int:
    mesh, run = None, settings(int(num_steps))
    if coordinator:
        training.start_processes(coordinator, int(num_processes), int(index))
        mesh = training.make_mesh(training.MeshShape(data=jax.device_count()))
    result = training.fit(
        Path(directory), *task(), run, resume=True, make_callbacks=lambda _: [Steps()], mesh=mesh
    )
    if result.interrupted:
        return INTERRUPTED
    print("RESULT", digest(Path(directory), run, result.params, mesh), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
