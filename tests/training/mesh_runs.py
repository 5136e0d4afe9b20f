"""What the tests of meshes run: a process keeps the number of devices that it started with.

python -m tests.training.mesh_runs losses none data=8 data=4,time=2   (or mixed, moved, kernels)
python -m tests.training.mesh_runs processes 127.0.0.1:1234 2 0 data=2,time=2
python -m tests.training.mesh_runs traffic
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import signal
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import egno_jax
from benchmarks import hlo
from benchmarks.scaling import Size
from egno_jax import datasets, ops, training
from egno_jax.datasets import nbody
from egno_jax.metrics import Mean
from egno_jax.training.step import Trainer, run_chunk
from tests import helpers
from tests.datasets.test_buckets import swarm

NUM_STEPS, CHUNK = 12, 4
CONFIG = training.TrainingConfig(
    num_steps=NUM_STEPS,
    batch_size=6,
    velocity_weight=0.1,
    steps_per_chunk=CHUNK,
    eval_every=NUM_STEPS,
    eval_batch_size=4,
    ema_decay=0.9,
    noise=training.NoiseConfig(positions=0.01, velocities=0.02),
    optimizer=training.OptimizerConfig(warmup_steps=2),
)
# Distinct numbers, so that a shape tells what it is.
MODEL = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, mean_field=True, mean_field_channels=2)
MODEL_SIZE = Size(layers=2, width=32, modes=3, times=1024, nodes=10, edges=40, time_embed=6)


@functools.cache
def task():
    """Returns initial params, a training set of 16 and a validation set of 7, with P = 5."""
    train, valid = (
        nbody.samples(
            nbody.canonical(split, num_simulations=number), start=1, target_frames=(2, 3, 4, 5, 6)
        )
        for split, number in (("train", 16), ("valid", 7))
    )
    return helpers.random_params(np.random.default_rng(0), MODEL, 1, 2), train, valid


def make_mesh(name: str):
    """Returns the mesh of a name; `none` is one device without a mesh."""
    return None if name == "none" else training.make_mesh(training.parse_mesh(name))


def absolute_loss(model, params, batch):
    """Returns the mean absolute error over real nodes; not finite where there are none."""
    predicted = model(params, batch.graph, batch.times)
    errors = jnp.abs(predicted.positions - batch.positions).mean(axis=(0, 2))
    return jnp.sum(errors * batch.node_mask) / jnp.sum(batch.node_mask)


def speed_error(predicted, batch):
    """Returns the mean squared error of the velocities, as a metric."""
    errors = ((predicted.velocities - batch.velocities) ** 2).mean(axis=(0, 2))
    return Mean(jnp.sum(errors * batch.node_mask), jnp.sum(batch.node_mask))


METRICS = (("speed", speed_error),)


def run(trainer: Trainer, params: egno_jax.Params, *, num_steps: int) -> dict:
    state = trainer.place(training.init_state(params, CONFIG))
    steps = []
    for start in range(0, num_steps, CHUNK):
        state, metrics = trainer.advance(state, start, CHUNK)
        steps.append(metrics)
    errors, found = trainer.evaluate(training.averaged(state, CONFIG))
    return {
        "loss": np.concatenate([part.loss for part in steps]).tolist(),
        "grad_norm": np.concatenate([part.grad_norm for part in steps]).tolist(),
        "num_devices": len(jax.tree.leaves(state.params)[0].sharding.device_set),
        "f_mse": float(errors.f_mse),
        "a_mse": float(errors.a_mse),
        "speed": float(found["speed"]),
    }


def losses(names: list[str]) -> dict:
    """Trains on each mesh."""
    params, train, valid = task()
    return {
        name: run(
            Trainer(train, valid, CONFIG, make_mesh(name), metrics=METRICS),
            params,
            num_steps=NUM_STEPS,
        )
        for name in names
    }


def mixed(names: list[str]) -> dict:
    """Trains on padded graphs of several sizes on each mesh, with another loss and vectors."""
    buckets = datasets.bucketed([swarm(bodies, 6, num_times=5) for bodies in (3, 4, 6)], 1)
    model = dataclasses.replace(MODEL, layer="vector", num_vectors=2)
    params = helpers.random_params(np.random.default_rng(0), model, 1, 0)
    options = {"loss_fn": absolute_loss, "metrics": METRICS}
    return {
        name: run(
            Trainer(buckets, buckets, CONFIG, make_mesh(name), **options), params, num_steps=CHUNK
        )
        for name in names
    }


def with_kernels(names: list[str]) -> dict:
    """Compiles a chunk of training on each mesh, of a width that has kernels, and runs it.

    The weights of the model are `num_weights` numbers in `num_arrays` arrays.
    """
    config = dataclasses.replace(MODEL, hidden_dim=16)
    params = helpers.random_params(np.random.default_rng(0), config, 1, 2)
    found = {name: compiled_chunk(params, make_mesh(name)) for name in names}
    leaves = jax.tree.leaves(params)
    return {**found, "num_arrays": len(leaves), "num_weights": sum(leaf.size for leaf in leaves)}


def compiled_chunk(params: egno_jax.Params, mesh: Mesh | None) -> dict:
    """Returns the losses of a chunk, and the kernels and collectives of its program."""
    _, train, valid = task()
    trainer = Trainer(train, valid, CONFIG, mesh)
    state = trainer.place(training.init_state(params, CONFIG))
    with training.devices.using(mesh):
        samples, batches = trainer._batches(0, CHUNK)
        program = run_chunk.lower(state, samples, batches, None, CONFIG, None).compile()
        _, metrics = program(state, samples, batches, None)
    text = program.as_text()
    return {
        "loss": metrics.loss.tolist(),
        "grad_norm": metrics.grad_norm.tolist(),
        "kernels": sorted(re.findall(r'custom_call_target="(egno_\w+)"', text)),
        "collectives": hlo.collectives(text),
    }


class _Losses(training.Callback):
    """Keeps the losses of a run, and asks it to stop."""

    def __init__(self, stop: bool) -> None:
        self.losses, self._stop = [], stop

    def on_chunk(self, record):
        self.losses.append(record["loss"])
        if self._stop:
            os.kill(os.getpid(), signal.SIGTERM)


def moved(names: list[str]) -> list[float]:
    """Returns the losses of one chunk on each mesh, of a run that is interrupted after each."""
    with tempfile.TemporaryDirectory() as directory:
        found = []
        for index, name in enumerate(names):
            losses = _Losses(stop=index + 1 < len(names))
            training.fit(
                directory,
                *task(),
                CONFIG,
                metrics=dict(METRICS),
                resume=True,
                make_callbacks=lambda _, losses=losses: [losses],
                mesh=make_mesh(name),
            )
            found.extend(losses.losses)
        return found


_ON_MESHES = {"losses": losses, "mixed": mixed, "moved": moved, "kernels": with_kernels}


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
    with jax.set_mesh(training.make_mesh(training.MeshShape(time=8))):
        found = jax.jit(egno_jax.apply)(params, graph, times)
    return max(
        helpers.relative_error(getattr(found, name), getattr(expected, name))
        for name in helpers.TRAJECTORY_FIELDS
    )


def conv_traffic(num_times: int) -> dict:
    sizes = MODEL_SIZE
    mesh = training.make_mesh(training.MeshShape(time=8))
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

    mesh = training.make_mesh(training.MeshShape(time=num_shares))
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
        coordinator, number, index, *arguments = arguments
        training.start_processes(coordinator, int(number), int(index))
        command = "mixed"
    found = traffic() if command == "traffic" else _ON_MESHES[command](arguments)
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
