"""One tiny run of the 5-body experiment, which many tests look at."""

from __future__ import annotations

import shutil

import pytest

TINY = (
    "--model.num-layers 1 --model.hidden-dim 8 --model.time-embed-dim 4 "
    "--training.num-steps 12 --training.batch-size 10 --training.eval-every 4 --training.seed 3 "
    "--training.eval-batch-size 7 --training.optimizer.warmup-steps 2 "
    "--data.num-train 20 --data.num-valid 10 --data.num-test 12"
).split()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of simulated data."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(cache):
    """The words of a command for a tiny run."""
    return [*TINY, "--data.cache-dir", str(cache)]


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory):
    """A finished tiny run, to look at."""
    for package in ("tyro", "matplotlib", "plotly"):
        pytest.importorskip(package)
    from experiments import runner
    from experiments.nbody import EXPERIMENT

    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert runner.main(EXPERIMENT, [*tiny, "--out", str(directory)]) == 0
    return directory


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the tiny run, to change."""
    return shutil.copytree(run, tmp_path / "run")
