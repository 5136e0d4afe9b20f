from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_the_five_lines_run_as_they_stand(tmp_path):
    """The first Python block of the README is a program; its last line is what it promises."""
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = block[1].strip().splitlines()
    assert len(lines) == 5
    check = "assert trajectory.positions.shape == (5, 40, 3), trajectory.positions.shape"
    environment = {
        **os.environ,
        "EGNO_CACHE_DIR": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, check])],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=600,
    )
