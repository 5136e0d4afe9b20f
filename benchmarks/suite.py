"""The measurements: functions of workers and a case that return entries of the results.

An entry is a JSON object that `benchmarks.tables` reads.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import cases, floor, target
from benchmarks.cases import Case
from benchmarks.timing import Worker, exponent, interleave, ratio, summary, workers

OURS = "egno_jax"
WORKLOADS = ("step", "inference")


class Files:
    """Problems on disk, in `directory`, each made once, for workers to read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sizes: dict[str, tuple[int, int]] = {}

    def path(self, case: Case, suffix: str = "") -> str:
        """Returns the file of a case."""
        path = self.directory / f"{case.name}{suffix}.npz"
        if not path.exists():
            problem = cases.make(case)
            self.sizes[path.name] = cases.num_nodes_and_edges(problem)
            cases.save(problem, path)
        return str(path)

    def warm_up(self, case: Case) -> str:
        """Returns the file of the case with one graph."""
        return self.path(cases.one_graph(case), "-one-graph")

    def sizes_of(self, case: Case) -> dict[str, int]:
        """Returns the sizes of a case, under the letters of the docstrings."""
        num_nodes, num_edges = self.sizes[Path(self.path(case)).name]
        return {
            "G": case.num_graphs,
            "N": num_nodes,
            "E": num_edges,
            "P": case.num_times,
            "C": case.width,
            "L": case.num_layers,
            "M": case.num_modes,
        }


def temporary_files() -> tempfile.TemporaryDirectory:
    """Returns a context with a directory for `Files`."""
    return tempfile.TemporaryDirectory(prefix="benchmarks-")


def compare(
    peers: Mapping[str, Worker], files: Files, case: Case, workload: str, budget: float
) -> dict[str, Any]:
    """Times one workload, `step` or `inference`, of a case on all peers in turn.

    Returns:
      Seconds by peer, their ratios to ours, the seconds of compiling, and parameter counts.
    """
    path = files.path(case)
    loaded = {
        name: worker.request("load", slot="a", path=path, workload=workload)
        for name, worker in peers.items()
    }
    turns = interleave({name: _turn(w) for name, w in peers.items()}, budget=budget)
    for worker in peers.values():
        worker.request("drop")
    seconds = turns.seconds
    return {
        "sizes": files.sizes_of(case),
        "seconds": {
            name: {**summary(values), "calls": turns.calls[name]}
            for name, values in seconds.items()
        },
        "ratio": {
            name: ratio(values, seconds[OURS])
            for name, values in seconds.items()
            if name != OURS and OURS in seconds
        },
        "compile": {
            name: answer["compile_seconds"]
            for name, answer in loaded.items()
            if answer["compile_seconds"] is not None
        },
        "parameters": {name: answer["num_parameters"] for name, answer in loaded.items()},
        "notes": {name: answer["notes"] for name, answer in loaded.items() if answer["notes"]},
    }


def _turn(worker: Worker, slot: str = "a") -> Any:
    return lambda calls: worker.request("time", slot=slot, calls=calls)["seconds"]


def memory(pythons: Mapping[str, str], files: Files, case: Case, workload: str) -> dict[str, Any]:
    """Measures the peak memory of one workload on every peer, each in a fresh process.

    Returns:
      Bytes by peer; see `benchmarks.worker.peak_memory`.
    """
    arguments = {"path": files.path(case), "warm_up": files.warm_up(case), "workload": workload}
    found = {}
    for name, python in pythons.items():
        with workers({name: python}) as fresh:
            found |= {peer: w.request("memory", **arguments) for peer, w in fresh.items()}
    return {"sizes": files.sizes_of(case), "memory": found}


def scaling(worker: Worker, files: Files, curve: cases.Curve, budget: float) -> dict[str, Any]:
    """Times all points of a curve in turn, and fits the exponent of time over size.

    Returns:
      By workload, the seconds of every point and the exponent.
    """
    entry: dict[str, Any] = {
        "size": curve.size,
        "values": list(curve.values),
        "limit": curve.limit,
        "points": [files.sizes_of(case) for case in curve.cases],
    }
    for workload in WORKLOADS:
        for case in curve.cases:
            worker.request("load", slot=case.name, path=files.path(case), workload=workload)
        turns = interleave(
            {case.name: _turn(worker, case.name) for case in curve.cases},
            budget=budget / len(WORKLOADS),
        )
        worker.request("drop")
        points = [summary(turns.seconds[case.name]) for case in curve.cases]
        medians = [point["median"] for point in points]
        entry[workload] = {
            "seconds": points,
            "exponent": exponent(curve.values, medians),
            "last_over_first": medians[-1] / medians[0],
        }
    return entry


def compile_time(pythons: Mapping[str, str], files: Files, case: Case) -> dict[str, Any]:
    """Returns the seconds of tracing and compiling each workload in a fresh process, by peer."""
    entry: dict[str, Any] = {"sizes": files.sizes_of(case)}
    for workload in WORKLOADS:
        entry[workload] = {}
        for name, python in pythons.items():
            with workers({name: python}) as fresh:
                for peer, worker in fresh.items():
                    answer = worker.request(
                        "load", slot="a", path=files.path(case), workload=workload
                    )
                    entry[workload][peer] = answer["compile_seconds"]
    return entry


def least_time(peers: Mapping[str, Worker], files: Files, case: Case) -> dict[str, Any]:
    """Measures the rates of the machine at the shapes of a case, and computes the case's floor.

    Returns:
      The floor by workload and part (`benchmarks.floor.entry`), and the rates: the best of all
      peers that can measure them.
    """
    sizes = files.sizes_of(case)
    found = floor.products(case, sizes["N"], sizes["E"])
    shapes = floor.shapes(found)
    state = case.num_times * sizes["N"] * (floor.VECTORS + case.width) * floor.BYTES
    workers_of_rates = [peers[name] for name in (OURS, "pina") if name in peers]
    by: dict[str, list[float]] = {}
    throughputs = []
    for worker in workers_of_rates:
        by |= worker.request("matmul", shapes=shapes)
        throughputs.append(worker.request("throughput", num_bytes=2 * state))
    best = {
        shape: min((by[name][index], name) for name in by) for index, shape in enumerate(shapes)
    }
    rates = floor.Rates(
        {shape: seconds for shape, (seconds, _) in best.items()},
        *(max(found[key] for found in throughputs) for key in ("copy", "silu", "derivative")),
    )
    num_weights = cases.num_weights(case)
    return {
        "sizes": sizes,
        **floor.entry(case, sizes["N"], sizes["E"], num_weights, rates),
        "rates": {
            **{key: getattr(rates, key) for key in ("copy", "silu", "derivative")},
            "products": {
                f"{kind} {rows}x{inner}x{columns}": {
                    "rate": 2 * rows * inner * columns / seconds,
                    "by": name,
                }
                for (kind, rows, inner, columns), (seconds, name) in best.items()
            },
        },
    }


# The command line's selection


class Plan(NamedTuple):
    """The settings of a run.

    Attributes:
      cases: the cases.
      curves: the curves, by name.
      files: the problems.
      pythons: the interpreter of each peer.
      peers: the workers.
      budget: seconds of the rounds of one workload of one case.
      target_f_mse: the error to train to.
      target_steps: the greatest number of steps of that training.
    """

    cases: Sequence[Case]
    curves: Mapping[str, cases.Curve]
    files: Files
    pythons: Mapping[str, str]
    peers: Mapping[str, Worker]
    budget: float
    target_f_mse: float
    target_steps: int


Entries = Iterator[tuple[str, dict[str, Any]]]


def choose(only: Sequence[str] | None) -> tuple[list[Case], dict[str, cases.Curve]]:
    """Returns the named cases and curves; by default all except the tiny case."""
    known = cases.CASES if only is None else {**cases.CASES, cases.TINY.name: cases.TINY}
    return (
        [case for name, case in known.items() if only is None or name in only],
        {name: c for name, c in cases.CURVES.items() if only is None or name in only},
    )


def measure(plan: Plan, what: Sequence[str]) -> Entries:
    """Measures what was selected, in the order of `WHAT`; yields each entry when it is done."""
    for word, measure_it in WHAT.items():
        if word in what:
            yield from measure_it(plan)


def _compare_all(workload: str, plan: Plan) -> Entries:
    for case in plan.cases:
        if "naive" in plan.peers:
            plan.peers["naive"].request("check", path=plan.files.warm_up(case))
        yield (
            f"{workload}/{case.name}",
            compare(plan.peers, plan.files, case, workload, plan.budget),
        )


def _memory_all(plan: Plan) -> Entries:
    for case in plan.cases:
        for workload in WORKLOADS:
            entry = memory(plan.pythons, plan.files, case, workload)
            yield f"memory-{workload}/{case.name}", entry


def _compile_all(plan: Plan) -> Entries:
    for case in plan.cases:
        yield f"compile/{case.name}", compile_time(plan.pythons, plan.files, case)


def _scaling_all(plan: Plan) -> Entries:
    for name, curve in plan.curves.items():
        yield f"scaling/{name}", scaling(plan.peers[OURS], plan.files, curve, plan.budget)


def _floor_all(plan: Plan) -> Entries:
    for case in plan.cases:
        yield f"floor/{case.name}", least_time(plan.peers, plan.files, case)


def _profile_all(plan: Plan) -> Entries:
    for case in plan.cases:
        answer = plan.peers[OURS].request("profile", path=plan.files.path(case))
        yield f"profile/{case.name}", {"sizes": plan.files.sizes_of(case), **answer}


def _target_all(plan: Plan) -> Entries:
    """Trains every peer on the 5-body problem, one after the other."""
    path = plan.files.directory / "target.npz"
    target.save_task(path, plan.target_steps)
    found = {}
    for name, worker in plan.peers.items():
        found[name] = worker.request(
            "fit", path=str(path), num_steps=plan.target_steps, target_f_mse=plan.target_f_mse
        )
        print(f"target: {name} {report_target(found[name])}", flush=True)
    yield (
        "target/nbody-p5",
        {"target": plan.target_f_mse, "num_steps": plan.target_steps, "fits": found},
    )


def report_target(found: dict[str, Any]) -> str:
    """Returns the outcome of a training run in words."""
    reached = "reached" if found["is_reached"] else f"not reached, best {found['best_f_mse']:.4f},"
    return f"{reached} after {found['step']} steps, {found['seconds']:.1f} s"


WHAT: dict[str, Callable[[Plan], Entries]] = {
    "step": functools.partial(_compare_all, "step"),
    "inference": functools.partial(_compare_all, "inference"),
    "memory": _memory_all,
    "compile": _compile_all,
    "scaling": _scaling_all,
    "floor": _floor_all,
    "profile": _profile_all,
    "target": _target_all,
}
