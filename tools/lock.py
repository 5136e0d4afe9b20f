"""Rewrites constraints.txt: the newest versions that all supported Pythons can share.

Resolves `.[experiments,generate,docs,test]` for the first Python and then, held to those versions,
for the others; packages that differ between them get an environment marker. Installs nothing.

    python tools/lock.py [--keep] PYTHON3.11 PYTHON3.12 PYTHON3.13

With `--keep`, versions that are in constraints.txt stay, and only new packages are added.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = "experiments,generate,docs,test"
HEADER = f"""\
# Pins of every package of `.[{EXTRAS}]`.
# Written by `make lock`; do not edit by hand.
"""


def normalize(name: str) -> str:
    """Returns a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(python: str, constraints: list[str]) -> dict[str, str]:
    """Asks pip what it would install into an empty environment.

    Args:
      python: an interpreter.
      constraints: lines that hold versions.

    Returns:
      Versions by name, egno_jax itself left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv = pathlib.Path(folder, "venv")
        report = pathlib.Path(folder, "report.json")
        constraint = pathlib.Path(folder, "constraints.txt")
        constraint.write_text("\n".join(constraints))
        subprocess.run([python, "-m", "venv", venv], check=True)
        pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        dry_run = [*pip, "--dry-run", "--report", report, "--constraint", constraint]
        subprocess.run([*dry_run, f"{ROOT}[{EXTRAS}]"], check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    versions = {normalize(package["name"]): package["version"] for package in packages}
    del versions["egno-jax"]
    return versions


def main(pythons: list[str], keep: bool) -> None:
    """Resolves for each interpreter in turn and writes the file."""
    names = [
        subprocess.run(
            [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for python in pythons
    ]
    oldest = resolve(pythons[0], CONSTRAINTS.read_text().splitlines() if keep else [])
    held = [f"{name}=={version}" for name, version in oldest.items()]
    found = {names[0]: oldest}
    for name, python in zip(names[1:], pythons[1:], strict=True):
        found[name] = resolve(python, held)
    lines = []
    for package in sorted(set().union(*found.values())):
        versions = {name: found[name][package] for name in names if package in found[name]}
        if len(set(versions.values())) == 1:  # a pin installs nothing by itself
            lines.append(f"{package}=={next(iter(versions.values()))}")
            continue
        lines += [
            f'{package}=={version}; python_version == "{name}"'
            for name, version in versions.items()
        ]
    partial = CONSTRAINTS.with_suffix(".partial")
    partial.write_text(HEADER + "\n".join(lines) + "\n")
    partial.replace(CONSTRAINTS)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--keep"]
    main(arguments, keep="--keep" in sys.argv)
