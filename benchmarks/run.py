"""Measures the library and its peers: `python -m benchmarks.run`.

    python -m benchmarks.run                                   # all but compile, profile and target
    python -m benchmarks.run --only nbody-p5,protein --what step,memory
    python -m benchmarks.run --pina-python ~/torch/bin/python  # PINA in another environment
    python -m benchmarks.run --what target                     # time to an error: minutes
    python -m benchmarks.run --quick                           # one tiny case, as a test

writes `benchmarks/results/run-<device>.json`, to which a later run adds its entries, and
`benchmarks/RESULTS.md` with figures. Run nothing else on the machine at the same time. Each peer
has a process of its own; this one uses no device.
"""

from __future__ import annotations

import argparse
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import cases, provenance, records, suite, tables
from benchmarks.timing import Worker, workers
from benchmarks.worker import MODULES

# The quantities of a run without --what.
_DEFAULT_WHAT = ("step", "inference", "memory", "scaling", "floor")
_DEFAULT_PEERS = ("egno_jax", "naive", "pina")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*cases.CASES, cases.TINY.name, *cases.CURVES]
    for option, known, default, about in (
        ("--only", names, None, "cases and curves; by default all"),
        ("--what", suite.WHAT, _DEFAULT_WHAT, "quantities"),
        ("--peers", MODULES, _DEFAULT_PEERS, "programs to compare"),
    ):
        text = f"{about}, some of {', '.join(known)}"
        parser.add_argument(option, type=_words(known), default=default, help=text)
    for option, default, about in (
        ("--pina-python", sys.executable, "the interpreter that has torch and pina-mathlab"),
        ("--budget", 8.0, "seconds for all rounds of one workload of one case"),
        ("--target", 0.0135, "the F-MSE that --what target trains to"),
        ("--target-steps", 450, "its steps at most, over which the learning rate falls"),
    ):
        text = f"{about} (default: %(default)s)"
        parser.add_argument(option, type=type(default), default=default, help=text)
    parser.add_argument("--quick", action="store_true", help="a smoke run: one tiny case")
    about = "the directory of the results; by default benchmarks/, with --quick none"
    parser.add_argument("--out", type=Path, help=about)
    options = parser.parse_args(arguments)
    if suite.OURS not in options.peers:
        parser.error(f"--peers: got {options.peers}, expected {suite.OURS} among them")
    if options.quick:
        options.only = options.only or (cases.TINY.name,)
        options.budget = min(options.budget, 1.0)
    elif options.out is None:
        options.out = provenance.ROOT / "benchmarks"
    return options


def _words(known: Sequence[str]) -> Any:
    """Returns a parser of words between commas that are all known."""

    def parse_words(text: str) -> tuple[str, ...]:
        words = tuple(text.split(","))
        unknown = [word for word in words if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"got {unknown}, expected some of {', '.join(known)}")
        return words

    return parse_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the command line requests, and writes each result when it is there."""
    options = parse(arguments)
    jax.config.update("jax_platforms", "cpu")  # the device is for the peers
    pythons = {
        peer: options.pina_python if peer == "pina" else sys.executable for peer in options.peers
    }
    with suite.temporary_files() as directory, workers(pythons) as peers:
        run = made_with(options, peers)
        plan = suite.Plan(
            *suite.choose(options.only),
            files=suite.Files(Path(directory)),
            pythons={name: pythons[name] for name in peers},
            peers=peers,
            budget=options.budget,
            target_f_mse=options.target,
            target_steps=options.target_steps,
        )
        path = None if options.out is None else options.out / "results" / f"{run['name']}.json"
        before = records.EMPTY if path is None else records.read(path)
        entries: dict[str, Any] = {}
        try:
            for name, entry in suite.measure(plan, options.what):
                print(tables.line(name, entry), flush=True)
                entries[name] = entry
                if path is not None:
                    records.write(path, records.merge(before, run, entries))
        finally:
            if options.out is not None:  # also if the run is interrupted
                tables.write(options.out)
    return 0


def made_with(options: argparse.Namespace, peers: Mapping[str, Worker]) -> dict[str, Any]:
    """Returns what made the results of this run, and the name of their file."""
    infos = {name: worker.request("info") for name, worker in peers.items()}
    info = infos[suite.OURS]
    is_cpu = info["platform"] == "cpu"
    kind = provenance.processor() if is_cpu else info["device"]
    name = "cpu" if is_cpu else f"{info['platform']}-{info['device']}"
    versions = {k: v for each in infos.values() for k, v in each["versions"].items()}
    return {
        "name": "run-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "command": _command(options),
        "commit": provenance.commit(),
        "device": f"{info['platform']}, {kind}",
        "devices": {name: each["device"] for name, each in infos.items()},
        "threads": {name: each["threads"] for name, each in infos.items()},
        "python": platform.python_version(),
        "versions": dict(sorted(versions.items())),
        "date": provenance.date(),
    }


def _command(options: argparse.Namespace) -> str:
    """Returns the command that repeats this run, without the paths of this machine."""
    words = ["python", "-m", "benchmarks.run"]
    if options.only is not None:
        words += ["--only", ",".join(options.only)]
    words += ["--what", ",".join(options.what), "--peers", ",".join(options.peers)]
    words += ["--budget", f"{options.budget:g}"]
    if "target" in options.what:
        words += ["--target", f"{options.target:g}", "--target-steps", f"{options.target_steps}"]
    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
