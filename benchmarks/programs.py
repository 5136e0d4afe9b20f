"""Compiles one program for an accelerator that need not be there, in a process of its own.

`benchmarks.compiled` starts it with a request in JSON, in the environment that it needs, and reads
the entry that it prints. XLA's compilers for TPU and CUDA accept a description of the devices;
compile-only devices hold no arrays, so inputs are shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

import egno_jax
from benchmarks import cases, floor, hlo
from benchmarks.peer_jax import Plain, batch_of
from egno_jax import graph as graph_lib
from egno_jax import training
from egno_jax.training.batches import by_kind
from egno_jax.training.devices import time_axis, using
from egno_jax.training.step import run_chunk

# The changed fields of each variant's configuration. Some are other settings of the compiler or of
# the library instead, `benchmarks.compiled.ENVIRONMENTS`.
VARIANTS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours-high": {"matmul_precision": "high"},
    "ours-default": {"matmul_precision": "default"},
    "ours-bf16": {"dtype": "bfloat16"},
    "ours-scan": {"scan_layers": True},
    "ours-O1": {},
    "ours-pallas": {},
    "naive": {},
}
_TARGETS = Path(__file__).parent / "targets"
# The smallest slices, of which a program for one chip uses the first.
_SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
_GPUS = {"h100": "NVIDIA H100 80GB HBM3"}
_NUM_STEPS = 10_000


def devices_of(target: str) -> Sequence[jax.Device]:
    """Returns the compile-only devices of a target.

    Args:
      target: `h100`; a kind of TPU such as `v5e`; a slice such as `v5e:4x4` or `v5p:16x16x16`; or
        several, such as `v5e:4x4*2`.
    """
    if target == "h100":
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=target,
            topology="1x1x1",
            target_config=(_TARGETS / f"{target}.txt").read_text(),
        )
    else:
        name, _, number = _SLICES.get(target, target).partition("*")
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=name, num_slices=int(number or 1)
        )
    return topology.devices


def placed(tree: Any, sharding: Sharding, lead: tuple[int, ...] = ()) -> Any:
    """Returns the shapes of a tree's arrays with leading axes added, placed by `sharding`."""

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def params_of(problem: cases.Problem, **changes: Any) -> egno_jax.Params:
    """Returns the shapes of the weights of a case's model."""
    config = cases.config_of(problem.case, **changes)
    return jax.eval_shape(
        lambda: egno_jax.init(jax.random.key(0), config, problem.graph, problem.times)
    )


def lower_forward(problem: cases.Problem, device: jax.Device, **changes: Any) -> Any:
    """Lowers `egno_jax.apply` on the batch of a problem for one device."""
    place = functools.partial(placed, sharding=SingleDeviceSharding(device))
    params = params_of(problem, **changes)
    inputs = map(place, (params, problem.graph, problem.times))
    return jax.jit(egno_jax.model.apply).lower(*inputs)


def lower_step(
    problem: cases.Problem,
    devices: Sequence[jax.Device],
    shape: training.MeshShape | None = None,
    **changes: Any,
) -> Any:
    """Lowers one training step, `egno_jax.training.step.run_chunk` on a batch from the host.

    Args:
      problem: the samples of one share of the batch.
      devices: the devices.
      shape: the mesh over which shares and times are split; None: the first device alone.
      **changes: changed fields of the model's config.
    """
    shape_or_one = shape or training.MeshShape()
    config = training.TrainingConfig(
        num_steps=_NUM_STEPS, batch_size=problem.case.num_graphs * shape_or_one.data
    )
    state = jax.eval_shape(
        lambda params: _flat(training.init_state(params, config)), params_of(problem, **changes)
    )
    mesh = None if shape is None else training.make_mesh(shape, devices=devices)

    def sharding(*axes: str | None) -> Sharding:
        if mesh is None:
            return SingleDeviceSharding(devices[0])
        return NamedSharding(mesh, PartitionSpec(*axes))

    # As `egno_jax.training.stream.Stream` places the batches of a chunk of one step.
    axes, lead = (None, "data"), (1, shape_or_one.data)
    over_time = time_axis(mesh, problem.case.num_times)
    batches = by_kind(
        batch_of(problem), lambda leaf, *t: placed(leaf, sharding(*axes, *t), lead), over_time
    )
    with using(mesh):
        return run_chunk.lower(placed(state, sharding()), None, batches, None, config, None)


def problem_of(request: dict[str, Any]) -> cases.Problem:
    """Returns the batch of the case of a request, arranged for its target."""
    case = cases.Case(**{**request["case"], "num_nodes": tuple(request["case"]["num_nodes"])})
    problem = cases.make(case)
    prepare = getattr(graph_lib, "prepare", None)  # older packages have no layouts
    return problem if prepare is None else problem._replace(graph=prepare(problem.graph))


def _flat(state: training.TrainState) -> training.TrainState:
    """Returns a state as `run_chunk` takes it; that of older packages flattens it itself."""
    flat = getattr(training, "flat", None)
    is_flat = flat is not None and dataclasses.is_dataclass(flat.FlatParams)
    return flat.flatten(state) if is_flat else state


def lower(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Lowers the program of a request and returns it with the work that it must do."""
    devices, problem = devices_of(request["target"]), problem_of(request)
    changes = VARIANTS[request.get("variant", "ours")]
    mesh = request.get("mesh")
    shape = training.parse_mesh(mesh) if mesh else None
    work = work_of(problem, request["kind"], shape)
    with abstract_gpu(request["target"]):
        if request["kind"] == "forward":
            return lower_forward(problem, devices[0], **changes), work
        return lower_step(problem, devices, shape, **changes), work


def abstract_gpu(target: str) -> contextlib.AbstractContextManager[Any]:
    """Sets the GPU that Pallas compiles for, instead of the one of this machine."""
    if target not in _GPUS:
        return contextlib.nullcontext()
    fields = {"device_kind": _GPUS[target], "num_cores": None, "platform": "gpu"}
    # Older versions of JAX have no field for the platform.
    known = {field.name for field in dataclasses.fields(jax.sharding.AbstractDevice)}
    device = jax.sharding.AbstractDevice(**{k: v for k, v in fields.items() if k in known})
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def work_of(
    problem: cases.Problem, kind: str, shape: training.MeshShape | None = None
) -> dict[str, Any]:
    """Returns the sizes of a program's batch, and the least operations and bytes of one device.

    They are those of `benchmarks.floor`; a mesh splits times, so a device has `P / time` of them.
    """
    workload = "inference" if kind == "forward" else "step"
    times = -(-problem.case.num_times // shape.time) if shape else problem.case.num_times
    case = dataclasses.replace(problem.case, num_times=times)
    num_nodes, num_edges = cases.num_nodes_and_edges(problem)
    moved = floor.compulsory_bytes(case, num_nodes, num_edges, cases.num_weights(problem.case))
    sizes = {"N": num_nodes, "E": num_edges, "P": problem.case.num_times, "C": case.width}
    return {
        "sizes": {**sizes, "L": case.num_layers, "G": case.num_graphs},
        "least_operations": floor.operations(floor.products(case, num_nodes, num_edges))[workload],
        "least_bytes": moved[workload],
    }


def entry(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles the program of a request and returns its entry in the results.

    Raises:
      RuntimeError: the plain version should be in the program and is not.
    """
    plain = Plain()
    if request.get("variant") == "naive":
        # The loss and the training step find `apply` here.
        egno_jax.model.apply = plain
    lowered, work = lower(request)
    if egno_jax.model.apply is plain and plain.num_traced == 0:
        raise RuntimeError(
            "egno_jax.model.apply: got no call by the program, expected one, so that the plain "
            "version is compiled; fix benchmarks.programs.entry"
        )
    started, cpu_started = time.perf_counter(), time.process_time()
    compiled = lowered.compile()
    seconds = {
        "compile_seconds": time.perf_counter() - started,
        "compile_cpu_seconds": time.process_time() - cpu_started,
    }
    if request.get("text"):
        Path(request["text"]).write_text(compiled.as_text())
    return {**work, **hlo.figures(compiled), **seconds}


def main() -> None:
    """Prints the entry of the request on the command line."""
    print(json.dumps(entry(json.loads(sys.argv[1]))))
