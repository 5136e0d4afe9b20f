from __future__ import annotations

import configparser
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def smaller(code: str, **sizes: str) -> str:
    """Returns a program with other values of some of its settings, each of which it must have."""
    for name, value in sizes.items():
        code, count = re.subn(rf"\b{name}=\d+", f"{name}={value}", code)
        assert count, name
    return code


def run(code: str, folder: pathlib.Path) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=600
    )


def test_a_published_model_predicts_and_writes_a_file(tmp_path):
    run(python_blocks("README.md")[0], tmp_path)
    frames = (tmp_path / "bodies.xyz").read_text().split("Properties=")
    assert len(frames) == 1 + 1 + 5


def test_the_five_lines_run_as_they_stand_and_the_next_train_save_and_load(tmp_path):
    """The first Python block is a program of five lines, and its last is what it promises.

    The second goes on from there, here in fewer steps on fewer samples.
    """
    _, first, second = python_blocks("README.md")
    assert len(first.strip().splitlines()) == 5
    check = "assert trajectory.positions.shape == (5, 40, 3), trajectory.positions.shape"
    second = smaller(second, num_samples="8", num_steps="2", batch_size="8")
    check_second = """
assert result.step == 2
for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(result.params), strict=True):
    assert (a == b).all()
"""
    run("\n".join([first, check, second, check_second]), tmp_path)


@pytest.mark.slow
def test_the_page_on_training_is_a_program(tmp_path):
    """Its blocks run one after the other; fewer steps on fewer samples here."""
    pytest.importorskip("rich")
    code = "\n".join(python_blocks("docs/training.md"))
    code = smaller(code, num_simulations="8", count="4", num_steps="2", batch_size="4")
    code = smaller(code, num_buckets="2")
    check = """
records = training.read_json_lines(pathlib.Path("runs/mine/metrics.jsonl"))
assert {record["kind"] for record in records} == {"train", "valid"}
"""
    run("\n".join(["import pathlib", code, check]), tmp_path)


def test_ratios_of_speed_are_those_measured():
    """The README's words hold the least and the largest ratio of the benchmark's cases."""
    record = json.loads((ROOT / "benchmarks" / "results" / "run-cpu.json").read_text())
    entries = record["entries"]
    steps = {name.partition("/")[2]: entry for name, entry in entries.items() if "step/" in name}
    over_pina = [entry["ratio"]["pina"]["median"] for entry in steps.values()]
    over_floor = [
        entry["seconds"]["egno_jax"]["median"] / entries[f"floor/{case}"]["step"]["seconds"]
        for case, entry in steps.items()
    ]
    text = " ".join((ROOT / "README.md").read_text().split())
    for ratios, words in (
        (over_pina, "a training step is {} to {} times faster than that of PINA's EGNO"),
        (over_floor, "It takes {} to {} times a lower bound"),
    ):
        assert words.format(*(f"{f(ratios):.2g}" for f in (min, max))) in text


def test_status_is_that_of_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    text = (ROOT / "README.md").read_text()
    assert f"Version {config['metadata']['version']}, beta." in text
    assert "Development Status :: 4 - Beta" in config["metadata"]["classifiers"]


def test_pages_that_are_linked_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
