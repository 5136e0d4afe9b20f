"""One run at a time in a directory, signals at any time, and nothing that kills leave."""

from __future__ import annotations

import os
import shutil
import signal
import threading

import pytest

import egno_jax
from egno_jax import locks, training
from egno_jax.training import guards

pytest.importorskip("fcntl")


def paths_below(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_a_directory_is_refused(task, config, tmp_path, resume):
    place = tmp_path / guards.LOCK
    with locks.lock(place):
        with pytest.raises(egno_jax.checkpoint.CheckpointError) as refused:
            training.fit(tmp_path, *task, config, resume=resume)
        assert paths_below(tmp_path) == [guards.LOCK]
    assert f"process {os.getpid()} on host" in str(refused.value)
    assert "choose another directory" in str(refused.value)


def test_a_thread_may_lock_a_directory_twice_and_another_may_not(tmp_path):
    refused = []

    def enter():
        try:
            with guards.only_run_in(tmp_path):
                pass
        except egno_jax.checkpoint.CheckpointError as error:
            refused.append(error)

    with guards.only_run_in(tmp_path):
        with guards.only_run_in(tmp_path / ".." / tmp_path.name):
            pass
        other = threading.Thread(target=enter)
        other.start()
        other.join()
    assert len(refused) == 1
    enter()
    assert len(refused) == 1


def test_a_signal_before_the_first_step_ends_the_run_in_order(task, config, tmp_path):
    def callbacks(_):
        os.kill(os.getpid(), signal.SIGTERM)
        return ()

    result = training.fit(tmp_path, *task, config, make_callbacks=callbacks)
    assert (result.interrupted, result.step) == (True, 0)


def test_what_a_kill_left_of_the_best_model_is_removed_or_used(task, config, tmp_path):
    training.fit(tmp_path, *task, config)
    best = tmp_path / "best"
    before = sorted(os.listdir(tmp_path))
    for name in (".best-k1ll3d", ".best-replaced-1"):  # killed while writing, while removing
        shutil.copytree(best, tmp_path / name)
    (tmp_path / ".best-k1ll3d" / "egno_jax.json").unlink()
    training.fit(tmp_path, *task, config, resume=True)
    assert sorted(os.listdir(tmp_path)) == before
    best.rename(tmp_path / ".best-replaced-2")  # killed between the two renames
    egno_jax.checkpoint.remove_leftovers(best)
    assert sorted(os.listdir(tmp_path)) == before
    egno_jax.load(best)
