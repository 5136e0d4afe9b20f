"""Checkpoints of a run: damage in many ways, disks that are full, and no wrong restore ever."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax import training
from egno_jax.training import checkpoints, fit
from tests.helpers import SignalAfter
from tests.training.conftest import CONFIG
from tests.training.test_loop import assert_same_weights

STEPS = (3, 6, 9)


@pytest.fixture(scope="module")
def frequent():
    return dataclasses.replace(CONFIG, checkpoint_every=3, keep_checkpoints=3)


@pytest.fixture(scope="module")
def stopped(task, frequent, tmp_path_factory):
    """Returns the directory of a run of 12 steps that was stopped after 9."""
    directory = tmp_path_factory.mktemp("stopped")
    fit(directory, *task, frequent, make_callbacks=lambda _: [SignalAfter(9, 15)])
    return directory


@pytest.fixture(scope="module")
def whole(task, frequent, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), *task, frequent).params


@pytest.fixture
def quiet():
    """Collects what a failed write or read of orbax left, whose errors would be logged later."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    gc.collect()
    logger.setLevel(level)


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def largest_file(step):
    return max(files_of(step / "state"), key=lambda path: path.stat().st_size)


def record_file(step):
    (path,) = (path for path in files_of(step / "record") if b'"progress"' in path.read_bytes())
    return path


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


def flip_bits(step, every):
    for path in files_of(step / "state"):
        change(path, lambda text: bytes(b ^ (i % every == 0) for i, b in enumerate(text)))


def with_state_of_step_6(step):
    shutil.rmtree(step / "state")
    shutil.copytree(step.with_name("6") / "state", step / "state")


def with_other_progress(step):
    change(record_file(step), lambda text: re.sub(rb'"best_step": ?6', b'"best_step": 3', text))


def without_sums(step):
    def strip(text):
        record = json.loads(text)
        del record["sha256"]
        return json.dumps(record).encode()

    change(record_file(step), strip)


DAMAGES = {
    "truncated data": lambda step: os.truncate(largest_file(step), 100),
    "some bits": lambda step: flip_bits(step, every=100),
    "all bytes": lambda step: flip_bits(step, every=1),
    "empty data": lambda step: [path.write_bytes(b"") for path in files_of(step / "state")],
    "zeros for data": lambda step: change(largest_file(step), lambda text: bytes(len(text))),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "an older state": with_state_of_step_6,
    "truncated record": lambda step: change(record_file(step), lambda text: text[:-50]),
    "empty record": lambda step: change(record_file(step), lambda _: b""),
    "no record": lambda step: shutil.rmtree(step / "record"),
    "other progress": with_other_progress,
    "no sums": without_sums,
    "an empty folder": lambda step: [shutil.rmtree(step), step.mkdir()],
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    task, frequent, stopped, whole, tmp_path, damage
):
    run = shutil.copytree(stopped, tmp_path / "run")
    DAMAGES[damage](run / "checkpoints" / "9")
    with pytest.warns(UserWarning, match=r"checkpoints/9: the checkpoint is damaged"):
        resumed = fit(run, *task, frequent, resume=True)
    assert resumed.step == 12
    assert_same_weights(resumed.params, whole)
    (aside,) = (run / "damaged-checkpoints").iterdir()
    assert aside.name.startswith("9-")
    assert {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()} == {
        "6",
        "9",
        "12",
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("quiet")
def test_any_single_file_may_be_lost(task, frequent, stopped, whole, tmp_path):
    """Whatever a file is for, without it the state is the right one, or the one before."""
    names = [path.relative_to(stopped) for path in files_of(stopped / "checkpoints" / "9")]
    run = tmp_path / "run"
    like = training.init_state(task[0], frequent)
    expected = None
    for name in names:
        shutil.copytree(stopped, run)
        (run / name).unlink()
        with checkpoints.RunCheckpoints(run / "checkpoints", 3) as found:
            if expected is None:
                expected = jax.device_get(found_state(run.with_name("9"), stopped, like))
            try:
                state = found.restore(like)
            except egno_jax.CheckpointError as error:
                assert "checkpoints/9" in str(error)
            else:
                jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), expected)
        shutil.rmtree(run)


def found_state(copy, stopped, like):
    shutil.copytree(stopped, copy)
    with checkpoints.RunCheckpoints(copy / "checkpoints", 3) as whole:
        return whole.restore(like).params


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("quiet")
def test_no_checkpoint_that_is_whole_is_an_error_and_nothing_is_moved(
    task, frequent, stopped, tmp_path
):
    run = shutil.copytree(stopped, tmp_path / "run")
    for step in STEPS:
        flip_bits(run / "checkpoints" / str(step), every=100)
    with pytest.raises(egno_jax.CheckpointError, match="none of the checkpoints is whole") as found:
        fit(run, *task, frequent, resume=True)
    assert all(
        f"checkpoints/{step}: the checkpoint is damaged" in str(found.value) for step in STEPS
    )
    assert not (run / "damaged-checkpoints").exists()


def test_checkpoints_without_sums_of_earlier_versions_are_read(task, frequent, stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")

    def as_before(text):
        record = json.loads(text)
        progress = {k: v for k, v in record["progress"].items() if k != "skipped_steps"}
        return json.dumps({"progress": progress, "settings": record["settings"]}).encode()

    change(record_file(run / "checkpoints" / "9"), as_before)
    assert fit(run, *task, frequent, resume=True).step == 12


def test_a_checkpoint_says_what_made_it(stopped):
    record = json.loads(record_file(stopped / "checkpoints" / "9").read_text())
    assert record["versions"]["jax"] == jax.__version__
    assert record["step"] == 9 and record["settings"]["model"]["hidden_dim"] == 8
    assert len(record["sha256"]) > 20


def test_a_directory_that_cannot_be_written_to_is_refused_at_once(task, frequent, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(training.StorageError, match="cannot be written to"):
        fit(tmp_path / "file" / "run", *task, frequent)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class FillDisk(SignalAfter):
    """A callback that fills a disk to the last byte once a step is reached."""

    def __init__(self, step, path):
        super().__init__(step, 0)
        self.path = path

    def on_chunk(self, record):
        if record["step"] == self.step:
            with pytest.raises(OSError, match="No space"), self.path.open("wb", 0) as file:
                while True:
                    file.write(bytes(1024))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("quiet")
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(
    task, frequent, whole, small_disk
):
    run, filler = small_disk / "run", small_disk / "filler"
    callbacks = [FillDisk(9, filler)]
    with pytest.raises(
        training.StorageError, match=r"last checkpoint is .*checkpoints/6; make room"
    ):
        fit(run, *task, frequent, make_callbacks=lambda _: callbacks)
    filler.unlink()
    assert_same_weights(fit(run, *task, frequent, resume=True).params, whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("quiet")
def test_an_error_while_writing_names_the_last_checkpoint(task, frequent, tmp_path, monkeypatch):
    """As above, where no disk can be mounted."""
    save = checkpoints.ocp.CheckpointManager.save

    def refuse(self, step, **arguments):
        if step == 9:
            raise OSError(28, "No space left on device")
        return save(self, step, **arguments)

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", refuse)
    with pytest.raises(training.StorageError, match=r"No space left.*checkpoints/6"):
        fit(tmp_path, *task, frequent)
