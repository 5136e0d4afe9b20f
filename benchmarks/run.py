"""Measures the library and its peers: `python -m benchmarks.run`.

    python -m benchmarks.run                                   # all but profile and target
    python -m benchmarks.run --only nbody-p5,protein --what step,memory
    python -m benchmarks.run --pina-python ~/torch/bin/python  # PINA in another environment
    python -m benchmarks.run --what target                     # time to an error: minutes
    python -m benchmarks.run --quick                           # one tiny case: does it all work?

writes `benchmarks/results/run-<device>.json`, into which a later run merges its own entries, and
`benchmarks/RESULTS.md` with pictures. Nothing else should run on the machine meanwhile. This
process itself touches no device: each peer has its own.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import cases, report, results, suite
from benchmarks.timing import Worker, workers
from benchmarks.worker import MODULES

# What a run without --what measures.
_DEFAULT_WHAT = ("step", "inference", "memory", "scaling", "floor")
_ROOT = Path(__file__).parent.parent


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*cases.CASES, cases.TINY.name, *cases.CURVES]
    parser.add_argument(
        "--only", type=_words(names), help=f"cases and curves: {', '.join(names)} (default: all)"
    )
    parser.add_argument(
        "--what",
        type=_words(suite.WHAT),
        default=_DEFAULT_WHAT,
        help=f"{', '.join(suite.WHAT)} (default: {','.join(_DEFAULT_WHAT)})",
    )
    parser.add_argument(
        "--peers",
        type=_words(MODULES),
        default=("egno_jax", "naive", "pina"),
        help=f"{', '.join(MODULES)} (default: egno_jax,naive,pina)",
    )
    parser.add_argument(
        "--pina-python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter that has torch and pina-mathlab (default: this one)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=8.0,
        metavar="SECONDS",
        help="what the rounds of one workload of one case should take (default: 8)",
    )
    parser.add_argument(
        "--target",
        type=float,
        default=0.0135,
        metavar="F-MSE",
        help="the error that --what target trains to (default: 0.0135)",
    )
    parser.add_argument(
        "--target-steps",
        type=int,
        default=450,
        metavar="STEPS",
        help="the steps that it takes at most, over which the learning rate falls (default: 450)",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: one tiny case")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="DIRECTORY",
        help="where results go (default: benchmarks/; with --quick nowhere)",
    )
    options = parser.parse_args(arguments)
    if suite.OURS not in options.peers:
        parser.error(f"--peers: got {options.peers}, expected {suite.OURS} among them")
    if options.quick:
        options.only = options.only or (cases.TINY.name,)
        options.budget = min(options.budget, 1.0)
    elif options.out is None:
        options.out = _ROOT / "benchmarks"
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
    """Measures what the command line asks for, writes it as it comes, and reports."""
    options = parse(arguments)
    jax.config.update("jax_platforms", "cpu")  # of this process: the device is the peers'
    pythons = {
        peer: options.pina_python if peer == "pina" else sys.executable for peer in options.peers
    }
    with suite.temporary_files() as directory, workers(pythons) as peers:
        run = provenance(options, peers)
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
        before = results.EMPTY if path is None else results.read(path)
        entries: dict[str, Any] = {}
        try:
            for name, entry in suite.measure(plan, options.what):
                print(report.line(name, entry), flush=True)
                entries[name] = entry
                if path is not None:
                    results.write(path, results.merge(before, run, entries))
        finally:
            # Also of a run that is interrupted.
            if options.out is not None:
                report.write(options.out)
    return 0


def provenance(options: argparse.Namespace, peers: Mapping[str, Worker]) -> dict[str, Any]:
    """Returns what makes the results of this run, and the name of their file.

    Args:
      options: the command line.
      peers: the workers, which know their device and versions.
    """
    infos = {name: worker.request("info") for name, worker in peers.items()}
    info = infos[suite.OURS]
    kind = _processor() if info["platform"] == "cpu" else info["device"]
    name = "cpu" if info["platform"] == "cpu" else f"{info['platform']}-{info['device']}"
    versions = {k: v for each in infos.values() for k, v in each["versions"].items()}
    return {
        "name": "run-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
        "command": _command(options),
        "commit": _commit(),
        "device": f"{info['platform']}, {kind}",
        "devices": {name: each["device"] for name, each in infos.items()},
        "threads": {name: each["threads"] for name, each in infos.items()},
        "python": platform.python_version(),
        "versions": dict(sorted(versions.items())),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
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


def _commit() -> str:
    """Returns the commit, marked where the library or its benchmarks differ from it."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--", "egno_jax", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}, with changes" if changes else commit


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    """Returns the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
