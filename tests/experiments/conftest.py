"""One tiny run of the 5-body experiment, which many tests look at."""

from __future__ import annotations

import shutil
import types

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


def keep_initial_weights(directory, params, train, valid, config, *, make_callbacks, **_):
    """Takes the place of `training.fit`, which is tested elsewhere: nothing is trained."""
    import egno_jax
    from egno_jax import training

    egno_jax.save(directory / "best", params)
    with training.JSONLines(directory / "metrics.jsonl", 0) as metrics:
        last = {"step": config.num_steps, "seconds": 2.0}
        metrics.on_chunk({**last, "loss": 0.2})
        metrics.on_evaluation({**last, "f_mse": 0.1, "a_mse": 0.05})
    return types.SimpleNamespace(step=config.num_steps, interrupted=False)


@pytest.fixture
def untrained(monkeypatch):
    """Runs are not trained and have no page; returns the arguments that pages would have."""
    from egno_jax import training
    from experiments import run_page

    shown = []
    monkeypatch.setattr(training, "fit", keep_initial_weights)
    monkeypatch.setattr(run_page, "write", lambda *arguments: shown.append(arguments))
    return shown
