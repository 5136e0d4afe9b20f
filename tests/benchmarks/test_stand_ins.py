"""What a machine without network has stands in as empty wheels, which pip takes instead."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

_PATH = Path(__file__).parents[2] / "tools" / "stand_ins.py"
_SPEC = importlib.util.spec_from_file_location("stand_ins", _PATH)
stand_ins = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stand_ins)


def test_pip_resolves_with_them(tmp_path):
    have, wheels, report = tmp_path / "have.txt", tmp_path / "wheels", tmp_path / "report.json"
    have.write_text("torch==2.11.0+cu130\nSome_Package==1.5\n-e git+https://example.org/x\n")
    wheels.mkdir()
    constraints = stand_ins.make(have, wheels)
    assert constraints == ["torch==2.11.0+have", "Some_Package==1.5+have"]
    (tmp_path / "constraints.txt").write_text("\n".join(constraints))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-index"]
    command += ["--ignore-installed", "--find-links", str(wheels), "--report", str(report)]
    command += ["--constraint", str(tmp_path / "constraints.txt"), "torch>=2", "some-package<2"]
    subprocess.run(command, check=True)
    assert len(json.loads(report.read_text())["install"]) == 2
    assert stand_ins.others(report) == []


def test_the_rest_is_wanted(tmp_path):
    packages = [("torch", "2.11.0+have"), ("jraph", "0.0.6.dev0"), ("egno_jax", "0.1.0")]
    install = [{"metadata": {"name": name, "version": version}} for name, version in packages]
    (tmp_path / "report.json").write_text(json.dumps({"install": install}))
    assert stand_ins.others(tmp_path / "report.json") == ["jraph==0.0.6.dev0"]
