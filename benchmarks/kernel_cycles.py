"""Estimates the cycles of the Pallas kernels of a program for TPUs, in a process of its own.

XLA's estimates of a program leave kernels out. Its compiler for TPUs can go through the machine
code of a kernel and count, but takes seconds for each block of edges, so the kernels are compiled
for two small numbers of blocks, and the count of all blocks is extrapolated. `benchmarks.compiled`
starts this with a request of `benchmarks.programs`, in the environment that `environment` returns.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks import programs
from egno_jax import graph as graph_lib
from egno_jax.ops.kernels import tpu

_BLOCKS = (2, 4)
_COUNTED = re.compile(r'"bundle_analysis_data":\{"estimated_cycles":"(\d+)"')


def environment(directory: Path) -> dict[str, str]:
    """Returns the variables with which libtpu counts; it writes its counts to a directory too."""
    return {"LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={directory}"}


def kernel_cycles(request: dict[str, Any]) -> dict[str, int]:
    """Returns the cycles of one call of each kernel in the program of a request, by its name.

    A call is of `groups x graphs` tables, each of which takes `a + b` times its blocks.
    """
    args, device = arguments(request)
    plan = tpu._plan(args)
    tables, edges = plan.groups * plan.graphs, args["senders"].shape[0] // plan.graphs
    blocks = -(-edges // plan.edges)
    few, more = (
        {name: _count(program) for name, program in programs_of(args, device, number).items()}
        for number in _BLOCKS
    )
    found = {}
    for name, cycles in few.items():
        each = (more[name] - cycles) / (_BLOCKS[1] - _BLOCKS[0])
        found[name] = round(tables * (cycles + (blocks - _BLOCKS[0]) * each))
    return found


def programs_of(args: dict[str, Any], device: jax.Device, blocks: int) -> dict[str, str]:
    """Returns the compiled program of each kernel alone, for one table and so many blocks.

    Its operands are in the memory of the chip.
    """
    plan = tpu._plan(args)._replace(groups=1, graphs=1)
    args = _resized(args, plan, blocks)
    static = {name: args.pop(name) for name in ("num_graphs", "precision")}
    indices = jax.eval_shape(lambda given: tpu._indices(plan, given | static), args)
    operands = jax.eval_shape(lambda given: tpu._operands(plan, given | static), args)
    cotangents = (operands[0]["receivers"],) * 2
    place = SingleDeviceSharding(device)
    calls = {"egno_sums_kernel": _sums, "egno_gradient_kernel": _gradients}
    found = {}
    for name, call in calls.items():
        program = jax.jit(functools.partial(call, plan), in_shardings=place, out_shardings=place)
        found[name] = program.lower(indices, operands, cotangents).compile().as_text()
    return found


def arguments(request: dict[str, Any]) -> tuple[dict[str, Any], jax.Device]:
    """Returns the shapes of what a layer of the program gives to the kernel, and its device."""
    problem, device = programs.problem_of(request), programs.devices_of(request["target"])[0]
    params = programs.params_of(problem, **programs.VARIANTS[request["variant"]])
    layer = params.weights["block_0"]["egnn_layer"]
    graph, width = problem.graph, problem.case.width
    lead = problem.case.num_times, graph.nodes["positions"].shape[0]
    layout = graph_lib.layout_of(graph)
    return {
        "message_mlp": layer["message_mlp"],
        "position_mlp": layer["position_mlp"],
        "positions": jax.ShapeDtypeStruct((*lead, 3), jnp.float32),
        "features": jax.ShapeDtypeStruct((*lead, width), jnp.float32),
        "edge_features": jax.ShapeDtypeStruct(graph.edges["features"].shape, jnp.float32),
        "senders": jax.ShapeDtypeStruct(graph.senders.shape, jnp.int32),
        "receivers": jax.ShapeDtypeStruct(graph.receivers.shape, jnp.int32),
        "num_graphs": 1 if layout is None else layout.num_graphs,
        "precision": params.config.matmul_precision,
    }, device


def _resized(args: dict[str, Any], plan: tpu._Plan, blocks: int) -> dict[str, Any]:
    """Returns arguments for one table with so many blocks of edges."""
    lead, edges = (plan.rows * plan.slots, plan.nodes), blocks * plan.edges
    shapes = {
        **{name: (*lead, args[name].shape[2]) for name in ("positions", "features")},
        **{name: (edges,) for name in ("senders", "receivers")},
        "edge_features": (edges, args["edge_features"].shape[1]),
    }
    new = {name: jax.ShapeDtypeStruct(shape, args[name].dtype) for name, shape in shapes.items()}
    return args | new | {"num_graphs": 1}


def _count(text: str) -> int:
    """Returns the cycles of the kernel of a program."""
    (cycles,) = _COUNTED.findall("\n".join(line for line in text.splitlines() if "egno_" in line))
    return int(cycles)


def _sums(plan: tpu._Plan, indices: Any, operands: Any, _: Any) -> Any:
    return tpu._sums(plan, indices, operands)


def _gradients(plan: tpu._Plan, indices: Any, operands: Any, cotangents: Any) -> Any:
    return tpu._pull_back(plan, (indices, operands), cotangents)


def main() -> None:
    """Prints the cycles of the kernels in the program of the request on the command line."""
    print(json.dumps(kernel_cycles(json.loads(sys.argv[1]))))
