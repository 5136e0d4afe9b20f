"""The compiler's figures of our programs for accelerators that are not there.

    pip install "egno_jax[aot-tpu]"                  # libtpu; or aot-cuda. Neither needs the device
    python -m benchmarks.compiled --target v5e --case nbody-p5
    python -m benchmarks.compiled --target h100,v5p:4x4x4 --package before=../older-checkout
    python -m benchmarks.compiled                    # everything the installed compilers can: hours

compiles forward passes and training steps with XLA's compilers for TPU and CUDA, each program in a
process of its own, and writes what they report to `benchmarks/results/compiled.json`, to which a
later run adds its entries, with a table and pictures. **These are the compiler's figures; nothing
is run.**

A target is one chip, such as `v5e`; or a slice, such as `v5e:4x4`, or several, such as `v5e:4x4*2`,
for which training steps are compiled on meshes. On a slice each share of a batch has an eighth of
the case's graphs, at least one, and each device the case's number of times.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import (
    cases,
    chips,
    compiled_page,
    kernel_cycles,
    programs,
    provenance,
    records,
    tables,
)
from egno_jax import training
from egno_jax.extras import versions_of

CHIPS = (*chips.CHIPS, "h100")
KINDS = ("forward", "step")
VARIANTS = tuple(programs.VARIANTS)
# What else is set for programs of these variants.
ENVIRONMENTS = {
    "ours-O1": {"JAX_OPTIMIZATION_LEVEL": "O1"},
    "ours-pallas": {"EGNO_JAX_KERNELS": "pallas"},
}
# A protein of 855 nodes at thousands of times: the example of docs/scaling.md.
LONG = cases.Case(
    *("protein-p4096", "contacts", 1, (855, 855), 4096, 64, 4, 2, 2),
    num_neighbours=23,
    num_modes=8,
)
# The meshes, data x time, of each slice.
MESHES = {
    "v5e:4x4": ((2, 8), (16, 1)),
    "v5e:16x16": ((4, 64), (32, 8)),
    "v5p:4x4x4": ((8, 8), (32, 2), (1, 64)),
    "v5p:16x16x16": ((64, 64), (512, 8)),
    "v6e:16x16": ((4, 64),),
    "v5e:16x16*2": ((8, 64),),
}
POD_CASES = ("protein", LONG.name)
# XLA must not look for devices, nor libtpu for a metadata server. Several processes may compile.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "EGNO_JAX_KERNELS": "auto",
    "PYTHONDONTWRITEBYTECODE": "1",  # another checkout stays as it is
}
_ALL_CASES = {**cases.CASES, cases.TINY.name: cases.TINY, LONG.name: LONG}
_WITHOUT_MEMORY = ("RESOURCE_EXHAUSTED", "Ran out of memory")
# Runs a worker with this checkout's benchmarks and another's library.
_START = (
    "import sys, benchmarks; sys.path.insert(0, sys.argv.pop(1)); "
    "from benchmarks import {module}; {module}.main()"
)


class Program(NamedTuple):
    """A program to compile.

    Attributes:
      target: a chip or a slice.
      case: the name of a case.
      kind: `forward` or `step`.
      mesh: its mesh, such as `data=2,time=8`; None on one chip.
      row: the variant, or the name of another checkout.
      package: the checkout whose library is compiled.
    """

    target: str
    case: str
    kind: str
    mesh: str | None
    row: str
    package: Path

    @property
    def name(self) -> str:
        """Its name in the results."""
        return "/".join([self.target, self.case, self.mesh or self.kind, self.row])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = {"type": lambda text: tuple(text.split(","))}
    targets = ", ".join((*CHIPS, *MESHES))
    parser.add_argument("--target", **words, help=f"some of {targets}, or another slice")
    parser.add_argument("--case", **words, help=f"some of {', '.join(_ALL_CASES)}")
    parser.add_argument("--kind", **words, default=KINDS, help="forward, step (default: both)")
    about = "meshes of slices, such as data=2,time=8; several words"
    parser.add_argument("--mesh", nargs="*", help=about)
    about = f"some of {', '.join(VARIANTS)} (default: ours,naive)"
    parser.add_argument("--variant", **words, default=("ours", "naive"), help=about)
    about = "another checkout of the library, as a row of that name"
    parser.add_argument("--package", action="append", default=[], metavar="NAME=PATH", help=about)
    default = provenance.ROOT / "benchmarks"
    about = "the directory of the results (default: benchmarks)"
    parser.add_argument("--out", type=Path, default=default, help=about)
    parser.add_argument("--tables", action="store_true", help="rebuild the page alone")
    about = "a directory for the compiled programs' text"
    parser.add_argument("--text", type=Path, help=about)
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a message if the command line has unknown words or a compiler is missing."""
    known = {"case": _ALL_CASES, "kind": KINDS, "variant": VARIANTS}
    for option, expected in known.items():
        unknown = [word for word in getattr(options, option) or () if word not in expected]
        if unknown:
            parser.error(f"--{option}: got {unknown}, expected some of {', '.join(expected)}")
    for package in options.package:
        name, _, path = package.partition("=")
        if not name or not Path(path, "egno_jax").is_dir():
            parser.error(f"--package: got {package}, expected NAME=PATH of a checkout")
    if options.target is None:
        options.target = tuple(t for t in (*CHIPS, *MESHES) if missing(t) is None)
        if not options.target and not options.tables:
            parser.error(f"{missing('v5e')}; {missing('h100')}")
    for target in options.target:
        if target.partition(":")[0] not in CHIPS:
            parser.error(
                f"--target: got {target}, expected such as {', '.join(CHIPS)}, v5e:4x4, v5e:4x4*2"
            )
        if not options.tables and (message := missing(target)):
            parser.error(message)


def missing(target: str) -> str | None:
    """Returns what to install for a target, or None if its compiler is there."""
    extra, module = ("aot-tpu", "libtpu")
    if target == "h100":
        extra, module = ("aot-cuda", "jax_plugins.xla_cuda13")
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        is_there = False
    if is_there:
        return None
    return (
        f"target {target}: got no {module}, XLA's compiler for it, expected it to be installed; "
        f'pip install "egno_jax[{extra}]" on Linux (no device is needed; the newest compilers need '
        "Python 3.12 or later)"
    )


def programs_of(options: argparse.Namespace) -> Iterator[Program]:
    """Yields the programs that the command line requests."""
    rows = [(variant, provenance.ROOT) for variant in options.variant]
    others = [package.partition("=") for package in options.package]
    rows += [(name, Path(path).resolve()) for name, _, path in others]
    for target in options.target:
        if ":" not in target:
            for case in options.case or cases.CASES:
                for kind in options.kind:
                    for row, package in rows:
                        yield Program(target, case, kind, None, row, package)
            continue
        meshes = options.mesh or [
            str(training.MeshShape(*shape)) for shape in MESHES.get(target, ())
        ]
        for case in options.case or POD_CASES:
            for mesh in meshes:
                for row, package in rows:
                    if row != "naive":
                        yield Program(target, case, "step", mesh, row, package)


def case_of(program: Program) -> cases.Case:
    """Returns the case that a program computes; on a mesh, that of one share of the batch."""
    case = _ALL_CASES[program.case]
    if program.mesh is None or case is LONG:
        return case
    shape = training.parse_mesh(program.mesh)
    return dataclasses.replace(
        case, num_graphs=-(-case.num_graphs // 8), num_times=case.num_times * shape.time
    )


def compile_program(program: Program, text: Path | None = None) -> dict[str, Any]:
    """Compiles a program in a process of its own and returns its entry.

    Raises:
      RuntimeError: it failed for another reason than the device's memory.
    """
    request = {
        "target": program.target,
        "kind": program.kind,
        "mesh": program.mesh,
        "case": dataclasses.asdict(case_of(program)),
        "variant": program.row if program.row in VARIANTS else "ours",
    }
    if text is not None:
        text.mkdir(parents=True, exist_ok=True)
        request["text"] = str(text.resolve() / (program.name.replace("/", "-") + ".txt"))
    done = _run("programs", program, request)
    if done.returncode == 0:
        entry = json.loads(done.stdout.splitlines()[-1])
        is_counted = bool(entry["kernels"]) and program.mesh is None
        return _with_kernels(program, request, entry) if is_counted else entry
    for line in done.stderr.splitlines():
        if any(reason in line for reason in _WITHOUT_MEMORY):
            return {"error": line.strip()[:300]}
    raise RuntimeError(f"{program.name} did not compile:\n{done.stderr[-4000:]}")


def _run(
    module: str, program: Program, request: dict[str, Any], **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a worker, `benchmarks.programs` or `benchmarks.kernel_cycles`."""
    script = _START.format(module=module)
    settings = {"EGNO_JAX_LAYOUT": "gpu" if program.target == "h100" else "tpu", **more}
    settings |= ENVIRONMENTS.get(program.row, {})
    return subprocess.run(
        [sys.executable, "-P", "-c", script, program.package, json.dumps(request)],
        env={**os.environ, **ENVIRONMENT, **settings, "PYTHONPATH": str(provenance.ROOT)},
        capture_output=True,
        text=True,
    )


def _with_kernels(
    program: Program, request: dict[str, Any], entry: dict[str, Any]
) -> dict[str, Any]:
    """Returns an entry whose cycles include those of its kernels."""
    with tempfile.TemporaryDirectory() as directory:
        flags = kernel_cycles.environment(Path(directory))
        done = _run("kernel_cycles", program, request, **flags)
    if done.returncode != 0:
        raise RuntimeError(f"{program.name}: no cycles of kernels:\n{done.stderr[-4000:]}")
    cycles = json.loads(done.stdout.splitlines()[-1])
    counts = entry["kernels"]
    return entry | {
        "kernel_cycles": cycles,
        "cycles": entry["cycles"] + sum(n * cycles[name] for name, n in counts.items()),
        "without_estimate": entry["without_estimate"] - sum(counts.values()),
    }


def made_with(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what made the entries of this run, without the paths of this machine."""
    words = ["python", "-m", "benchmarks.compiled"]
    for option in ("target", "case", "kind", "variant"):
        if getattr(options, option):
            words += [f"--{option}", ",".join(getattr(options, option))]
    words += ["--mesh", *options.mesh] if options.mesh else []
    packages = [package.partition("=") for package in options.package]
    for name, _, path in packages:
        words += ["--package", f"{name}={provenance.commit(Path(path))}"]
    return {
        "command": shlex.join(words),
        "commit": provenance.commit(),
        "machine": f"{provenance.processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions(),
        "date": provenance.date(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide what is compiled."""
    return versions_of("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles what the command line requests, and writes each entry when it is there."""
    options = parse(arguments)
    path = options.out / "results" / "compiled.json"
    entries: dict[str, Any] = {}
    failed = 0
    for program in () if options.tables else programs_of(options):
        try:
            entry = compile_program(program, options.text)
        except RuntimeError as error:
            print(error, flush=True)
            failed = 1
            continue
        run = made_with(options)
        entries[program.name] = entry
        # Another process may have added entries meanwhile.
        records.write(path, records.merge(records.read(path), run, entries))
        print(compiled_page.line(program.name, entry), flush=True)
    if entries or options.tables:
        tables.write(options.out)
    return failed


if __name__ == "__main__":
    sys.exit(main())
