"""The commands of docs/command_line.md run as they stand, with small models."""

import pathlib
import re
import shlex
import shutil

import jax
import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("MDAnalysis")
pytest.importorskip("flatbuffers")

import egno_jax
from egno_jax import datasets
from egno_jax.cli import COMMANDS, main
from egno_jax.datasets import nbody

ROOT = pathlib.Path(__file__).parents[2]
FILES = ROOT / "tests" / "datasets" / "files"
PAGE = (ROOT / "docs" / "command_line.md").read_text()
SMALL = (
    "--training.num-steps 2 --training.eval-every 2 --training.checkpoint-every 2 "
    "--model.num-layers 1 --model.hidden-dim 4 --model.time-embed-dim 4"
).split()


def commands(text):
    """Returns the arguments of the commands in the blocks of a page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    return [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page names, in the current folder."""
    shutil.copy(FILES / "copper_wrapped.extxyz", tmp_path / "copper.extxyz")
    shutil.copy(FILES / "copper_wrapped.extxyz", tmp_path / "other.extxyz")
    for suffix in (".pdb", ".xtc"):
        shutil.copy(FILES / f"helix_box{suffix}", tmp_path / f"protein{suffix}")
    body = np.zeros((31, 3))
    for joint, parent in egno_jax.load("running").recipe.bonds:
        body[joint] = body[parent] + [1.0, -1.0, joint % 2]
    np.save(tmp_path / "steps.npy", body + 0.5 * np.arange(3)[:, None, None])
    batch = datasets.take(nbody.samples(nbody.canonical("test", num_simulations=1)), np.arange(1))
    config = egno_jax.EGNOConfig(num_layers=2, hidden_dim=16)
    params = egno_jax.init(jax.random.key(0), config, batch.graph, batch.times)
    np.savez(tmp_path / "weights.npz", **egno_jax.to_torch_state_dict(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_a_section_with_an_example():
    for name in COMMANDS:
        section = re.search(rf"^## {name}\n(.*?)(?=^## )", PAGE, re.M | re.S)
        assert section, name
        found = commands(section[1])
        assert found and {command[1] for command in found} == {name}


@pytest.mark.slow
def test_the_commands_of_the_page_run(folder, capsys):
    for program, *arguments in commands(PAGE):
        assert program == "egno-jax"
        is_other = "--start-from" in arguments
        if arguments[0] == "train" and "--resume" not in arguments and not is_other:
            shutil.rmtree(folder / "runs", ignore_errors=True)  # the page begins with a summary
        small = SMALL if arguments[0] == "train" else []
        small = small[: small.index("--model.num-layers")] if is_other else small
        assert main([*arguments, *small]) == 0, (arguments, capsys.readouterr().err)
        if "--out" in arguments:
            assert (folder / arguments[arguments.index("--out") + 1]).exists(), arguments
    start, found = (egno_jax.load(folder / "runs" / name / "best") for name in ("copper", "other"))
    assert found.config == start.config and found.recipe == start.recipe
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start, found)), strict=True)
    ]
    assert 0 < max(moved) < 0.01  # two small steps away from the first model
