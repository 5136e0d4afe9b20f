"""The command line: makes and downloads trajectories.

python -m egno_jax.datasets.md17 generate --molecule aspirin
python -m egno_jax.datasets.md17 generate --smiles "CCOC" --out ether.npz --seed 1
python -m egno_jax.datasets.md17 download --molecule aspirin
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Sequence

from egno_jax.datasets.md17 import archives, generator
from egno_jax.datasets.md17.molecules import MOLECULES, find

# The help of each setting is its line in the docstring of `Settings`.
_HELP = dict(re.findall(r"^ +(\w+): (.+)\.$", generator.Settings.__doc__ or "", re.MULTILINE))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, 2 after an error message, or 130 after an interruption."""
    # One thread is fastest for small molecules, and reproducible to the bit.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    program, summary = "python -m egno_jax.datasets.md17", __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog=program, description=summary)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    names = ", ".join(MOLECULES)

    make = commands.add_parser(
        "generate",
        help="simulate a molecule with GFN2-xTB",
        description="Simulate a molecule with GFN2-xTB in a Nose-Hoover chain, as MD17 was made "
        "with DFT. An interrupted run resumes when started again. Needs the extra `generate`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    which = make.add_mutually_exclusive_group(required=True)
    which.add_argument("--molecule", choices=MOLECULES, metavar="NAME", help=f"one of {names}")
    which.add_argument("--smiles", help="any molecule, as SMILES")
    make.add_argument("--name", help="name of the file md/NAME.npz; default: the molecule")
    make.add_argument("--out", type=pathlib.Path, help="the file, instead of DATA_DIR/md/NAME.npz")
    make.add_argument("--data-dir", type=pathlib.Path, help="else $EGNO_DATA_DIR, else the cache")
    for field in dataclasses.fields(generator.Settings):
        flag = f"--{field.name.replace('_', '-')}"
        kind = int if isinstance(field.default, int) else float
        make.add_argument(flag, type=kind, default=field.default, help=_HELP.get(field.name))
    make.set_defaults(run=_generate)

    get = commands.add_parser(
        "download",
        help="fetch an original archive of MD17",
        description="Download an original archive of MD17 (200 to 400 MB) and verify it.",
    )
    get.add_argument("--molecule", choices=MOLECULES, metavar="NAME", required=True, help=names)
    get.add_argument("--data-dir", type=pathlib.Path, help="else $EGNO_DATA_DIR, else the cache")
    get.add_argument("--sha256", help="the checksum, if you know it")
    get.set_defaults(run=_download)
    return parser


def _generate(options: argparse.Namespace) -> None:
    fields = dataclasses.fields(generator.Settings)
    settings = generator.Settings(**{f.name: getattr(options, f.name) for f in fields})
    name = options.molecule if options.name is None else options.name
    if options.out is None and name is None:
        raise ValueError("--smiles: got no file name; add --name or --out")
    smiles = find(options.molecule).smiles if options.smiles is None else options.smiles
    path = options.out or archives.path_of(name, data_dir=options.data_dir)
    if path.exists():
        raise ValueError(f"{path}: the file exists already; remove it, or choose another --out")
    about = {"molecule": options.molecule or options.name, "smiles": smiles}
    atoms = generator.start_atoms(smiles, seed=settings.seed)
    result = generator.generate(
        path,
        atoms,
        settings,
        about={key: value for key, value in about.items() if value},
        report=lambda line: print(line, flush=True),
    )
    frames, atoms_per_frame, _ = result.positions.shape
    print(f"{path}: {frames} frames of {atoms_per_frame} atoms")


def _download(options: argparse.Namespace) -> None:
    print(f"{options.molecule}: downloading 200 to 400 MB, unless the file exists", flush=True)
    path = archives.download(options.molecule, data_dir=options.data_dir, known_hash=options.sha256)
    print(f"{path}: verified")


if __name__ == "__main__":
    sys.exit(main())
