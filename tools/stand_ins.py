"""Empty wheels that stand in for the packages of another machine.

    python tools/stand_ins.py make HAVE FOLDER      prints constraints that select them
    python tools/stand_ins.py others REPORT         prints what else pip would install

pip then resolves requirements as on that machine, without downloading its packages.
"""

import json
import pathlib
import re
import sys
import zipfile

# A local version is above the public one of the same number, and not on any index.
_MARK = "+have"


def make(have: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Writes an empty wheel for every package of a list.

    Args:
      have: lines `name==version`, as `pip list --format=freeze` prints them; others are left out.
      folder: where the wheels go.

    Returns:
      Constraints that allow no other version of these packages.
    """
    constraints = []
    for name, version in re.findall(r"^([\w.-]+)==([^\s+]+)", have.read_text(), re.MULTILINE):
        plain = re.sub(r"[-_.]+", "_", name).lower()
        if plain in ("egno_jax", "pip"):
            continue
        info = f"{plain}-{version}{_MARK}.dist-info"
        files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}{_MARK}\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        path = folder / f"{plain}-{version}{_MARK}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for file, text in files.items():
                wheel.writestr(f"{info}/{file}", text)
        constraints.append(f"{name}=={version}{_MARK}")
    return constraints


def others(report: pathlib.Path) -> list[str]:
    """Returns `name==version` of the other packages in a report of `pip install --dry-run`."""
    packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return [
        f"{package['name']}=={package['version']}"
        for package in packages
        if _MARK not in package["version"] and package["name"].replace("-", "_") != "egno_jax"
    ]


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    print("\n".join({"make": make, "others": others}[command](*map(pathlib.Path, paths))))
