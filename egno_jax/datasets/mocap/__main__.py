"""The command line: makes the file of running trials.

python -m egno_jax.datasets.mocap convert --folder cmu/subject09 --out cmu/subject09_run.npz
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from egno_jax.datasets.mocap import convert_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 after a message."""
    options = _parser().parse_args(arguments)
    try:
        convert_run(options.folder, options.out, split=options.split, seed=options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    windows = options.split or f"drawn with seed {options.seed}"
    print(f"{options.out}: written, windows: {windows}")
    if not options.split:
        print("these are not the published windows: errors do not compare with published errors")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m egno_jax.datasets.mocap", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = commands.add_parser(
        "convert",
        help="make the file of running trials from the recordings of subject 9",
        description="Make cmu/subject09_run.npz from 09.asf and 09_01.amc to 09_11.amc of "
        "mocap.cs.cmu.edu, with your own windows or drawn ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    convert.add_argument("--folder", type=pathlib.Path, required=True, help="holds the recordings")
    convert.add_argument("--out", type=pathlib.Path, required=True, help="the file to write")
    convert.add_argument(
        "--split",
        type=pathlib.Path,
        help='a JSON file of windows: {"train": {"09_02": [0, 17], ...}, "valid": ..., "test": '
        "...}, frames counted from 0; drawn if omitted",
    )
    convert.add_argument("--seed", type=int, default=0, help="of the draw of trials and windows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
