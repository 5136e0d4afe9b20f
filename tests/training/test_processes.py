"""Processes that differ are told so."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from egno_jax.training import processes
from tests.training.test_mesh import ROOT, free_port


def outcome(directory, kind):
    """Returns exit codes and messages of two processes of `disagreeing_runs`."""
    words = ["-m", "tests.training.disagreeing_runs", str(directory)]
    return outcome_of(lambda address, index: [*words, address, "2", index, kind])


def outcome_of(words):
    """Returns exit codes and messages of two Python processes, `words(address, index)`."""
    address = f"127.0.0.1:{free_port()}"
    settings = {"JAX_PLATFORMS": "cpu", "EGNO_JAX_KERNELS": "off"}
    both = [
        subprocess.Popen(
            [sys.executable, *words(address, str(index))],
            cwd=ROOT,
            env=os.environ | settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    return [process.returncode for process in both], errors


def assert_refused(directory, kind, *messages):
    codes, errors = outcome(directory, kind)
    assert codes == [2, 2], errors
    for error in errors:
        for message in messages:
            assert message in error, error
    assert not directory.exists()


def test_settings_and_data_that_differ_are_named_in_every_process(tmp_path):
    assert_refused(
        tmp_path / "run",
        "settings",
        "training.batch_size: got '4' in process 1, expected '6' as in process 0; ",
        "training.seed: got '7' in process 1, expected '0' as in process 0; ",
        "train.positions: got 'float32 [16, 5, 5, 3] ",
        "start all processes with the same command, data and versions",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("versions", "jax: got '0.0.1' in process 1, expected "),
        ("count", "num_processes: got '3' in process 1, expected '2' as in process 0; "),
        ("data", "train.positions: got 'float32 [16, 5, 5, 3] "),
    ],
)
def test_processes_that_cannot_work_together_are_named(tmp_path, kind, message):
    assert_refused(tmp_path / "run", kind, message)


def test_digests_are_those_of_the_values():
    tree = {"a": np.arange(6.0), "b": np.float32(1), "c": np.ones((0, 3))}
    found = processes.digests(tree)
    assert [*found] == ["['a']", "['b']", "['c']"]
    assert found["['a']"].startswith("float64 [6] ")
    assert found == processes.digests({**tree, "a": tree["a"].copy()})
    for other in (tree["a"].astype(np.float32), tree["a"][::-1], tree["a"].reshape(2, 3)):
        assert found != processes.digests({**tree, "a": other})


def test_large_arrays_are_hashed_in_part(monkeypatch):
    monkeypatch.setattr(processes, "_LARGEST_DIGEST", 80)
    array = np.arange(100.0)
    before = processes.digests(array)
    array[10] += 1  # of every tenth row
    assert processes.digests(array) != before
    array[10] -= 1
    array[11] += 1
    assert processes.digests(array) == before
