"""Fuzzes everything that reads a file, guided by coverage: `make fuzz`.

python -m tests.fuzz_readers [--seconds 60] [--folder build/fuzz] [READER ...]

Each reader is given mutations of small valid files. It may return, or raise a ValueError or OSError
that names the file. Anything else is a finding: another exception, an error without the file, more
than 20 seconds or 4 GB, a crash of the process. The input of a finding is kept in the folder, as is
the corpus, which later runs continue. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# egno_jax is imported later: only what is imported under atheris is instrumented.
INSTRUMENTED = ["egno_jax", "experiments", "ase.io.extxyz", "json", "yaml"]
LIMITS = ("-timeout=20", "-rss_limit_mb=4096", "-max_len=8192")
FOUND = 1
RESIDUES = 3  # of the simulation that files of frames belong to


def readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Returns the name of the file that each reader reads, and the reader."""
    import egno_jax
    from egno_jax.datasets import cache, md17, mocap, protein, trajectories
    from egno_jax.training import read_json_lines
    from experiments import nbody, run_directory, run_records, settings
    from tests import mocap_files, protein_files

    @functools.cache
    def skeleton() -> mocap.Skeleton:
        return mocap.read_skeleton(
            mocap_files.write(Path(tempfile.mkdtemp()) / "a.asf", mocap_files.ASF)
        )

    @functools.cache
    def topology() -> Path:
        return protein_files.write_psf(Path(tempfile.mkdtemp()) / "a.psf", RESIDUES)

    def simulation(path: Path) -> object:
        return trajectories.read(topology(), path)

    def run(path: Path) -> object:
        return run_directory.read_config(path.parent, type(nbody.EXPERIMENT.default))

    return {
        "skeleton": ("a.asf", mocap.read_skeleton),
        "motion": ("a.amc", lambda path: mocap.read_motion(path, skeleton())),
        "xyz": ("a.extxyz", md17.read),
        "traj": ("a.traj", md17.read),
        "npz": ("a.npz", md17.read),
        "cache": ("a.npz", lambda path: cache.read(path, {"size": 2})),
        "pdb": ("a.pdb", protein.load_universe),
        "psf": ("a.psf", protein.load_universe),
        "dcd": ("a.dcd", simulation),
        "xtc": ("a.xtc", simulation),
        "trr": ("a.trr", simulation),
        "own-xyz": ("a.extxyz", trajectories.read),
        "own-npz": ("a.npz", trajectories.read),
        "own-npy": ("a.npy", trajectories.read),
        "checkpoint": ("egno_jax.json", lambda path: egno_jax.load(path.parent)),
        "metrics": ("metrics.jsonl", read_json_lines),
        "results": ("results.jsonl", run_records.load),
        "run": ("config.json", run),
        "settings": ("a.yaml", lambda path: settings.read(path, nbody.EXPERIMENT.default)),
    }


def examples(name: str, folder: Path) -> Iterator[bytes]:
    """Yields valid files for a reader; `folder` is for those that libraries write."""
    import numpy as np

    from tests import mocap_files

    root = Path(__file__).parents[1]
    path = folder / f"a.{name.removeprefix('own-')}"
    positions = np.arange(18.0).reshape(3, 2, 3)
    if name == "skeleton":
        yield mocap_files.ASF.encode()
    elif name == "motion":
        yield mocap_files.AMC.encode()
    elif name in ("xyz", "own-xyz"):
        for comment in (
            "",
            "Properties=species:S:1:pos:R:3 Lattice='9 0 0 0 9 0 0 0 9' pbc='F F F'",
        ):
            rows = (f"H {x:.3f} {y:.3f} {z:.3f}\n" for frame in positions for x, y, z in frame)
            yield "".join(f"2\n{comment}\n{next(rows)}{next(rows)}" for _ in positions).encode()
    elif name == "traj":
        import ase.io

        atoms = [ase.Atoms("H2", positions=frame) for frame in positions]
        ase.io.write(path, atoms)
        yield path.read_bytes()
    elif name in ("npz", "cache", "own-npz", "own-npy"):
        yield from array_files(name, path)
    elif name in ("pdb", "psf", "dcd", "xtc", "trr"):
        yield simulation_file(name, path)
    elif name == "checkpoint":
        for found in (root / "tests" / "fixtures" / "checkpoints").glob("*/egno_jax.json"):
            yield found.read_bytes()
    elif name == "metrics":
        records = [{"kind": "valid", "step": step, "f_mse": 0.5} for step in range(3)]
        yield "".join(json.dumps(record) + "\n" for record in records).encode()
    elif name == "results":
        for line in (root / "experiments" / "results.jsonl").read_bytes().splitlines()[::60]:
            yield line + b"\n"
    elif name == "run":
        from experiments import nbody, run_directory

        (folder / "run").mkdir()
        run_directory.start(folder / "run", nbody.EXPERIMENT.default, "a command")
        yield (folder / "run" / "config.json").read_bytes()
    elif name == "settings":
        for found in sorted((root / "experiments" / "configs" / "nbody").glob("*.yaml"))[:4]:
            yield found.read_bytes()


def array_files(name: str, path: Path) -> Iterator[bytes]:
    """Yields valid files of NumPy's formats."""
    import numpy as np

    positions = np.arange(18.0).reshape(3, 2, 3)
    if name == "npz":
        from egno_jax.datasets import md17

        md17.write(path, md17.Trajectory(positions, np.array([1, 8]), "a method", {"step": 1}))
        yield path.read_bytes()
    elif name == "cache":
        from egno_jax.datasets import cache

        cache.write(path, {"x": np.arange(3.0)}, {"size": 2})
        yield path.read_bytes()
    elif name == "own-npz":
        cell, numbers = 9 * np.eye(3), np.array([1, 8])
        np.savez(path, R=positions, v=positions, z=numbers, cell=cell, times=np.arange(3.0))
        yield path.read_bytes()
        np.savez(path, coords=positions, nuclear_charges=numbers, old_indices=np.array([4, 0, 2]))
        yield path.read_bytes()
    elif name == "own-npy":
        np.save(path, positions)
        yield path.read_bytes()


def simulation_file(name: str, path: Path) -> bytes:
    """Returns a valid topology, or frames, of a small protein."""
    from tests import protein_files

    if name == "psf":
        protein_files.write_psf(path, RESIDUES)
    else:
        box = [30.0, 30.0, 30.0, 90.0, 90.0, 90.0]
        protein_files.write_frames(path, protein_files.motion(3, RESIDUES), box)
    return path.read_bytes()


def fuzz_one(name: str, arguments: list[str]) -> None:
    """Fuzzes one reader in this process, which ends with a finding or at the time limit."""
    import atheris

    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    with atheris.instrument_imports(include=INSTRUMENTED):
        file, read = readers()[name]
        test_one = functools.partial(read_bytes, read, folder / file)
        for data in examples(name, folder):  # what readers import later is instrumented too
            test_one(data)
    atheris.Setup(["fuzz", *arguments], test_one)
    atheris.Fuzz()


def read_bytes(read: Callable[[Path], object], path: Path, data: bytes) -> None:
    """Writes and reads a file.

    Raises:
      AssertionError: the reader raised an error that does not name the file.
    """
    path.write_bytes(data)
    try:
        read(path)
    except (ValueError, OSError) as error:
        if str(path) not in str(error) and str(path.parent) not in str(error):
            raise AssertionError(f"an error without the file: {error}") from error


def fuzz(name: str, seconds: int, folder: Path) -> bool:
    """Fuzzes a reader in a process of its own; prints figures, returns whether it found nothing."""
    corpus = folder / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        for number, data in enumerate(examples(name, Path(made))):
            (corpus / f"example-{number}").write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz_readers", "--fuzz-one", name, str(corpus)]
    command += [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={folder / name}/"]
    started, log = time.perf_counter(), folder / name / "log"
    # In memory where possible: most disks write a file that is replaced so often every time.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory) as made, log.open("wb") as file:
        settings = os.environ | {"TMPDIR": made}
        code = subprocess.run(command, stdout=file, stderr=file, env=settings).returncode
    text = log.read_text(errors="replace")
    runs = [*re.finditer(r"^#(\d+)\s+\w+\s+(?:cov: (\d+))?", text, re.MULTILINE)]
    tried, lines = (runs[-1][1], runs[-1][2] or "?") if runs else ("0", "?")
    took = time.perf_counter() - started
    outcome = "nothing found" if code == 0 else f"FOUND: see {log} and the inputs next to it"
    print(f"{name:12s} {tried:>9s} inputs {lines:>6s} edges {took:5.0f} s  {outcome}", flush=True)
    return code == 0


def main(arguments: list[str]) -> int:
    """Fuzzes the readers given, or all, one after the other; returns the exit code."""
    if arguments[:1] == ["--fuzz-one"]:
        fuzz_one(arguments[1], arguments[2:])
    known = [*readers()]
    parser = argparse.ArgumentParser("python -m tests.fuzz_readers")
    parser.add_argument("--seconds", type=int, default=60, help="time limit of each reader")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"some of {known}")
    options = parser.parse_args(arguments)
    if unknown := {*options.readers} - {*known}:
        parser.error(f"READER: got {sorted(unknown)}, expected some of {known}")
    each = [fuzz(name, options.seconds, options.folder) for name in options.readers or known]
    return 0 if all(each) else FOUND


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
