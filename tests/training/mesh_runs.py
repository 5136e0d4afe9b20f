"""What the tests of meshes run: a process keeps the number of devices that it started with.

python -m tests.training.mesh_runs losses none data=4,time=2
python -m tests.training.mesh_runs guarded data=4,time=2 data=2
python -m tests.training.mesh_runs processes 127.0.0.1:1234 2 0 data=2,time=2
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import egno_jax
from benchmarks.scaling import Size
from egno_jax import datasets, ops, training
from egno_jax.datasets import nbody
from egno_jax.training import mesh as mesh_lib
from egno_jax.training.placement import place
from tests import helpers, hlo
from tests.datasets.test_buckets import swarm

NUM_STEPS = 20
# The others would compile the same once more.
EVALUATED = ("none", "data=4,time=2", "data=2,time=2")
CONFIG = training.TrainingConfig(
    num_steps=NUM_STEPS,
    batch_size=6,
    steps_per_call=10,
    eval_every=20,
    eval_batch_size=4,
    ema_decay=0.9,
    noise=training.NoiseConfig(positions=0.01, velocities=0.02),
    optimizer=training.OptimizerConfig(warmup_steps=2),
)
# Distinct numbers, so that a shape tells what it is.
MODEL = egno_jax.EGNOConfig(
    num_layers=1, hidden_dim=8, mean_field=True, mean_field_channels=2, velocity_weight=0.1
)
MODEL_SIZE = Size(layers=2, width=32, modes=3, times=1024, nodes=10, edges=40, time_embed=6)


def task():
    """Returns initial params, a training set of 16 and a validation set of 7, with P = 5."""
    train, valid = (
        nbody.samples(
            nbody.canonical(split, num_simulations=number), start=1, target_frames=(2, 3, 4, 5, 6)
        )
        for split, number in (("train", 16), ("valid", 7))
    )
    batch = datasets.take(train, jnp.arange(1))
    params = egno_jax.init(jax.random.key(0), MODEL, batch.graph, batch.times)
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
        found[name] = {
            "loss": np.concatenate([part.loss for part in steps]).tolist(),
            "grad_norm": np.concatenate([part.grad_norm for part in steps]).tolist(),
            "num_devices": len(jax.tree.leaves(state.params)[0].sharding.device_set),
        }
        if name in EVALUATED:
            errors = placement.errors(training.averaged(state, CONFIG))
            found[name] |= {"f_mse": float(errors.f_mse), "a_mse": float(errors.a_mse)}
    return found


def guarded(names: list[str]) -> dict:
    """Trains on graphs of several sizes on each mesh, and moves a run from 8 devices to 2 to 1."""
    meshes = {name: mesh_lib.make_mesh(mesh_lib.parse_mesh(name)) for name in names}
    return {"mixed": mixed_losses({"none": None, **meshes}), "moved": moved()}


def mixed_losses(meshes: dict, stream: bool | None = None) -> dict:
    buckets = datasets.bucketed([swarm(bodies, 6, num_times=5) for bodies in (3, 4, 6)], 2)
    example = datasets.take(buckets.samples[0], jnp.arange(1))
    params = egno_jax.init(jax.random.key(0), MODEL, example.graph, example.times)
    found = {}
    for name, mesh in meshes.items():
        placement = place(buckets, buckets, CONFIG, mesh, stream=stream)
        state = placement.lay(training.init_state(params, CONFIG))
        state, steps = placement.advance(state, 0, NUM_STEPS)
        errors = placement.errors(training.averaged(state, CONFIG))
        found[name] = {
            "loss": steps.loss.tolist(),
            "grad_norm": steps.grad_norm.tolist(),
            "f_mse": float(errors.f_mse),
        }
    return found


class _Losses:
    """Keeps the losses of a run, and asks it to stop."""

    def __init__(self, stop: bool) -> None:
        self.losses, self._stop = [], stop

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def on_chunk(self, record):
        self.losses.append(record["loss"])
        if self._stop:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluation(self, record):
        pass


def moved() -> dict:
    """Returns the losses of 3 calls on one device, and of one call each on 8, 2 and 1 devices."""
    config = dataclasses.replace(CONFIG, num_steps=12, steps_per_call=4, eval_every=12)

    def run(directory: str, name: str | None, stop: bool) -> list[float]:
        mesh = None if name is None else mesh_lib.make_mesh(mesh_lib.parse_mesh(name))
        losses = _Losses(stop)
        training.fit(
            directory,
            *task(),
            config,
            resume=True,
            make_callbacks=lambda _: [losses],
            mesh=mesh,
        )
        return losses.losses

    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        return {
            "whole": run(whole, None, stop=False),
            "cut": [
                *run(cut, "data=4,time=2", stop=True),
                *run(cut, "data=2", stop=True),
                *run(cut, None, stop=False),
            ],
        }


def traffic() -> dict:
    """Compiles the temporal convolution and the model's gradient with times split over 8 devices.

    Returns what is sent between them, and each device's memory and operations.
    """
    return {
        "conv": {str(times): conv_traffic(times) for times in (16, 1024)},
        "model": {
            f"{times},{shares}": model_costs(times, shares)
            for times, shares in ((16, 8), (1024, 8), (1024, 1), (5, 8))
        },
        "errors": {grid: decoding_error(grid) for grid in ("index", "context")},
    }


def decoding_error(temporal_grid: str) -> float:
    """Returns how far a mesh takes the trajectory, of graphs that ask for different times."""
    rng = np.random.default_rng(1)
    context = {"context_times": (1.0, 2.0, 3.0)} if temporal_grid == "context" else {}
    config = egno_jax.EGNOConfig(
        num_layers=1, hidden_dim=8, num_modes=2, temporal_grid=temporal_grid, **context
    )
    params = helpers.random_params(rng, config)
    graph = helpers.random_graph(rng, n_node=[4, 3], num_edges=12)
    times = np.cumsum(rng.uniform(0.5, 1.5, (5, 2)), axis=0).astype(np.float32)
    expected = jax.jit(egno_jax.apply)(params, graph, times)
    with jax.set_mesh(mesh_lib.make_mesh(mesh_lib.MeshShape(time=8))):
        found = jax.jit(egno_jax.apply)(params, graph, times)
    return max(
        helpers.relative_error(getattr(found, name), getattr(expected, name))
        for name in helpers.TRAJECTORY_FIELDS
    )


def conv_traffic(num_times: int) -> dict:
    sizes = MODEL_SIZE
    mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(time=8))
    split = NamedSharding(mesh, PartitionSpec(ops.TIME_AXIS))
    shape = (num_times, sizes.nodes, sizes.width)
    kernel = jnp.zeros((2, sizes.modes, sizes.width, sizes.width))

    def gradient(features, kernel, cotangent):
        value, pullback = jax.vjp(ops.temporal_conv, features, kernel)
        return value, pullback(cotangent)

    features = jax.ShapeDtypeStruct(shape, jnp.float32)
    with jax.set_mesh(mesh):
        forward = jax.jit(ops.temporal_conv, in_shardings=(split, None), out_shardings=split)
        both = jax.jit(
            gradient, in_shardings=(split, None, split), out_shardings=(split, (split, None))
        )
        return {
            "forward": hlo.collectives(forward.lower(features, kernel).compile().as_text()),
            "both": hlo.collectives(both.lower(features, kernel, features).compile().as_text()),
        }


def model_costs(num_times: int, num_shares: int) -> dict:
    sizes = MODEL_SIZE
    rng = np.random.default_rng(0)
    config = egno_jax.EGNOConfig(
        num_layers=sizes.layers,
        hidden_dim=sizes.width,
        num_modes=sizes.modes,
        time_embed_dim=sizes.time_embed,
    )
    params = helpers.random_params(rng, config)
    graph = helpers.random_graph(rng, n_node=[sizes.nodes], num_edges=sizes.edges)
    times = np.arange(1, num_times + 1, dtype=np.float32)

    def loss(params, graph, times):
        found = egno_jax.apply(params, graph, times)
        return jnp.mean(found.positions**2) + jnp.mean(found.features**2)

    mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(time=num_shares))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss), in_shardings=whole, out_shardings=whole)
        compiled = step.lower(params, graph, times).compile()
    costs = compiled.cost_analysis()
    return {
        "collectives": hlo.collectives(compiled.as_text()),
        "memory": compiled.memory_analysis().temp_size_in_bytes,
        "flops": (costs[0] if isinstance(costs, list) else costs)["flops"],
        "num_weights": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "processes":
        coordinator, number, index, *names = arguments
        training.start_processes(coordinator, int(number), int(index))
        meshes = {name: mesh_lib.make_mesh(mesh_lib.parse_mesh(name)) for name in names}
        found = {"losses": losses(names), "mixed": mixed_losses(meshes)}
    elif command == "guarded":
        found = guarded(arguments)
    elif command == "traffic":
        found = traffic()
    else:
        found = losses(arguments)
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
