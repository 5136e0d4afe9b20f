"""A gradient through thousands of times in limited memory: in one process, and split over several.

    python -m benchmarks.long_decode --limit 4 --processes 4

runs forward and gradient of EGNO at 2048 times of a chain of 1000 nodes: in one process, and split
over the axis `time` of several. Each process may use the given GiB (`RLIMIT_DATA`), as on a device;
one process alone needs more and fails. Writes `benchmarks/results/long-decode-cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import egno_jax
from benchmarks import provenance
from egno_jax import graph as graph_lib
from egno_jax import training
from egno_jax.files import write_text

RESULT = Path(__file__).parent / "results" / "long-decode-cpu.json"
GIB = 2**30


def main() -> None:
    """Runs both cases in separate processes and records how they ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=float, default=4.0, help="GiB that a process may hold")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--times", type=int, default=2048)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments)
        return
    record = {
        "command": " ".join(["python -m benchmarks.long_decode", *sys.argv[1:]]),
        "git_commit": provenance.commit(),
        "date": provenance.date(),
        "device": f"{provenance.processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "limit_gib": arguments.limit,
        "times": arguments.times,
        "nodes": arguments.nodes,
        "whole": _run(1, sys.argv[1:]),
        "split": _run(arguments.processes, sys.argv[1:]),
    }
    write_text(RESULT, json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def _run(num_processes: int, options: list[str]) -> dict[str, Any]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "EGNO_JAX_KERNELS": "off",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.long_decode", *options),
                *("--worker", coordinator, str(num_processes), str(index)),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(num_processes)
    ]
    outputs = [worker.communicate() for worker in workers]
    found = [
        json.loads(line)
        for output, _ in outputs
        for line in output.splitlines()
        if line.startswith("{")
    ]
    codes = [worker.returncode for worker in workers]
    errors = [
        re.findall(r".*(?:RESOURCE_EXHAUSTED|bad_alloc|Out of memory).*", e) for _, e in outputs
    ]
    reasons = [lines[-1].strip()[:200] for lines in errors if lines]
    return {
        "processes": num_processes,
        "fits": not any(codes),
        "exit_codes": codes,
        "error": reasons[0] if reasons else None,
        "results": found,
    }


def _work(arguments: argparse.Namespace) -> None:
    """Computes one process's share and prints its memory and time."""
    coordinator, num_processes, process_id = arguments.worker
    limit = int(arguments.limit * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    if int(num_processes) > 1:
        training.start_processes(coordinator, int(num_processes), int(process_id))
    mesh = training.make_mesh(training.MeshShape(time=jax.device_count()))
    config = egno_jax.EGNOConfig(num_layers=2, hidden_dim=16, num_modes=4, time_embed_dim=16)
    graph, times = _chain(arguments.nodes), np.arange(1, arguments.times + 1, dtype=np.float32)
    params = egno_jax.init(jax.random.key(0), config, graph, times)

    def loss(params: Any, graph: Any, times: Any) -> Any:
        return jnp.mean(jnp.square(egno_jax.apply(params, graph, times).positions))

    params, graph, times = jax.tree.map(np.asarray, (params, graph, times))
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        step = jax.jit(jax.value_and_grad(loss), in_shardings=whole, out_shardings=whole)
        compiled = step.lower(params, graph, times).compile()
        needed = compiled.memory_analysis().temp_size_in_bytes
        print(f"{needed / GIB:.2f} GiB", file=sys.stderr, flush=True)
        started = time.perf_counter()
        value, gradient = jax.block_until_ready(compiled(params, graph, times))
    norm = float(jnp.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(gradient))))
    print(
        json.dumps(
            {
                "loss": float(value),
                "gradient_norm": norm,
                "compiled_gib": round(needed / GIB, 3),
                "peak_resident_gib": round(
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3
                ),
                "seconds": round(time.perf_counter() - started, 1),
            }
        ),
        flush=True,
    )


def _chain(num_nodes: int) -> Any:
    """Returns a chain of nodes, each connected with the next in both directions."""
    rng = np.random.default_rng(0)
    first = np.arange(num_nodes - 1)
    edges = graph_lib.Edges(np.r_[first, first + 1], np.r_[first + 1, first])
    positions = rng.normal(size=(num_nodes, 3)).cumsum(axis=0).astype(np.float32)
    velocities = rng.normal(size=(num_nodes, 3)).astype(np.float32)
    features = np.ones((num_nodes, 1), np.float32)
    return graph_lib.build(positions, velocities, features, edges)


if __name__ == "__main__":
    main()
