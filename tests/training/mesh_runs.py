"""What the tests of meshes run: a process keeps the number of devices that it started with.

python -m tests.training.mesh_runs losses none data=4,time=2
python -m tests.training.mesh_runs processes 127.0.0.1:1234 2 0 data=2,time=2
"""

from __future__ import annotations

import json
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["EGNO_JAX_KERNELS"] = (
    "off"  # a mesh does without them, and the one device compiles faster
)

import jax
import jax.numpy as jnp
import numpy as np

import egno_jax
from egno_jax import datasets, training
from egno_jax.datasets import nbody
from egno_jax.training import mesh as mesh_lib
from egno_jax.training.placement import place

NUM_STEPS = 20
CONFIG = training.TrainingConfig(
    num_steps=NUM_STEPS,
    batch_size=6,
    steps_per_call=10,
    eval_every=20,
    eval_batch_size=4,
    ema_decay=0.9,
    optimizer=training.OptimizerConfig(warmup_steps=2),
)


def task():
    """Returns initial params, a training set of 16 and a validation set of 7, with P = 5."""
    train, valid = (
        nbody.samples(
            nbody.canonical(split, num_simulations=number), start=1, target_frames=(2, 3, 4, 5, 6)
        )
        for split, number in (("train", 16), ("valid", 7))
    )
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, velocity_weight=0.1)
    batch = datasets.take(train, jnp.arange(1))
    params = egno_jax.init(jax.random.key(0), config, batch.graph, batch.times)
    return params, train, valid


def losses(names: list[str], stream: bool | None = None) -> dict:
    """Trains 20 steps on each mesh; `none` is the device without one."""
    params, train, valid = task()
    found = {}
    for name in names:
        mesh = None
        if name != "none":
            mesh = mesh_lib.make_mesh(mesh_lib.parse_mesh(name))
        placement = place(train, valid, CONFIG, mesh, stream=stream)
        state = placement.lay(training.init_state(params, CONFIG))
        steps = []
        for start in (0, 10):
            state, metrics = placement.advance(state, start, 10)
            steps.append(jax.device_get(metrics))
        errors = placement.errors(training.averaged(state, CONFIG))
        found[name] = {
            "loss": np.concatenate([part.loss for part in steps]).tolist(),
            "grad_norm": np.concatenate([part.grad_norm for part in steps]).tolist(),
            "f_mse": float(errors.f_mse),
            "a_mse": float(errors.a_mse),
            "num_devices": len(jax.tree.leaves(state.params)[0].sharding.device_set),
        }
    return found


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "processes":
        coordinator, number, index, *names = arguments
        training.start_processes(coordinator, int(number), int(index))
        found = losses(names)
    else:
        found = losses(arguments)
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
