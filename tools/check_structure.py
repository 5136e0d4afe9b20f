"""Checks that functions are short and that no two modules have the same file name.

    python tools/check_structure.py

A function has at most 60 lines, docstring included. Two modules may share a file name only as
`nn/X.py` over `ops/X.py`, or as `__init__.py` or `__main__.py`. The exceptions below must shrink:
one that is no longer needed is an error.
"""

from __future__ import annotations

import ast
import collections
import itertools
import pathlib
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 60
# Folders whose functions are checked; of the first three, file names too.
FOLDERS = ("egno_jax", "experiments", "benchmarks", "tests", "tools")
NAMED_FOLDERS = FOLDERS[:3]
# File names that several modules still have.
SHARED_NAMES = {
    "config.py",  # of the model, the baselines and training
}


def long_functions(path: pathlib.Path) -> Iterator[tuple[str, int]]:
    """Yields the name and the number of lines of each function that is too long."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MAX_LINES:
                yield node.name, num_lines


def is_pair(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether these are a layer and the pure functions below it, `nn/X.py` and `ops/X.py`."""
    return {path.parent.name for path in (one, other)} == {"nn", "ops"}


def shared_names(paths: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """Returns the modules of each file name that may not be shared."""
    by_name = collections.defaultdict(list)
    for path in paths:
        if path.stem not in ("__init__", "__main__"):
            by_name[path.name].append(path)
    return {
        name: group
        for name, group in by_name.items()
        if not all(itertools.starmap(is_pair, itertools.combinations(group, 2)))
    }


def problems(root: pathlib.Path) -> list[str]:
    """Returns a line for each problem of the repository."""
    modules = {folder: sorted((root / folder).rglob("*.py")) for folder in FOLDERS}
    found = []
    for path in itertools.chain(*modules.values()):
        relative = path.relative_to(root)
        for name, num_lines in long_functions(path):
            found.append(f"{relative}: {name} has {num_lines} lines; split it ({MAX_LINES})")
    shared = shared_names([path for folder in NAMED_FOLDERS for path in modules[folder]])
    for name, group in shared.items():
        if name not in SHARED_NAMES:
            places = ", ".join(str(path.relative_to(root)) for path in group)
            found.append(f"{name}: the name of {places}; rename all but one")
    for exception in sorted(SHARED_NAMES - shared.keys()):
        found.append(f"tools/check_structure.py: {exception} is no exception any more; remove it")
    return found


if __name__ == "__main__":
    lines = problems(ROOT)
    print("\n".join(lines))
    sys.exit(bool(lines))
