"""Callbacks, whose files can be read also after a run was cut off; costs and traces of runs."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from egno_jax.training import Callback, JSONLines, Progress, TensorBoard, fit, read_json_lines
from egno_jax.training.costs import watch

TRAIN = {"step": 3, "loss": 0.25, "grad_norm": 1.5, "steps_per_second": 9.0, "seconds": 0.5}
VALID = {"step": 3, "f_mse": 0.5, "a_mse": 0.25, "mse_per_time": [0.1, 0.5], "seconds": 0.6}


def write_some(callback):
    with callback:
        callback.on_chunk(TRAIN)
        callback.on_evaluation(VALID)


def test_json_lines_round_trip(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_some(JSONLines(path))
    assert read_json_lines(path) == [{"kind": "train", **TRAIN}, {"kind": "valid", **VALID}]


def test_json_lines_of_lost_steps_are_removed_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_some(JSONLines(path))
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 6}\n{"kind": "train", "st')
    with JSONLines(path, start_step=3) as resumed:
        resumed.on_chunk({"step": 5})
    assert [record["step"] for record in read_json_lines(path)] == [3, 3, 5]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2: not JSON"):
        read_json_lines(path)


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    write_some(TensorBoard(tmp_path))
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    for tag in (b"train/loss", b"train/grad_norm", b"valid/f_mse"):
        assert tag in content
    assert b"mse_per_time" not in content


def test_progress_shows_errors_and_time_left(capsys):
    pytest.importorskip("rich")
    write_some(Progress(num_steps=6))
    shown = capsys.readouterr().out
    for text in ("loss 0.25000", "valid F-MSE 0.50000", "3/6", "left"):
        assert text in shown


def test_progress_has_a_dash_for_an_error_that_is_not_known_yet(capsys):
    pytest.importorskip("rich")
    with Progress(num_steps=6) as progress:
        progress.on_chunk({"step": 1, "loss": None})
    assert "loss -  valid F-MSE - " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("callback", "argument", "package"),
    [(TensorBoard, "curves", "tensorboardX"), (Progress, 5, "rich")],
)
def test_a_missing_extra_is_named(monkeypatch, callback, argument, package):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf'needs {package}.*pip install "egno_jax\[train\]"'):
        callback(argument)


def test_compilations_are_counted():
    function = jax.jit(lambda x: 3 * x - 1)
    with watch() as first:
        function(jnp.ones(5)).block_until_ready()
    with watch() as second:
        function(jnp.ones(5)).block_until_ready()
    assert first.num_compiles >= 1 and 0 < first.compile_seconds < first.seconds
    assert (second.num_compiles, second.compile_seconds) == (0, 0)


def test_a_run_reports_its_costs_and_writes_a_trace(task, config, tmp_path):
    path = tmp_path / "metrics.jsonl"
    callbacks = {"make_callbacks": lambda step: [JSONLines(path, step)]}
    fit(tmp_path, *task, config, **callbacks, profile=tmp_path / "profile")
    train = [record for record in read_json_lines(path) if record["kind"] == "train"]
    assert len(train) == 4
    for record in train:
        assert record["step_seconds"] > 0 and record["memory_bytes"] > 1e6
        assert (record["data_seconds"], record["padding"], record["skipped_steps"]) == (0, 0, 0)
    assert all(record["num_compiles"] == 0 for record in train[1:])
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("run_chunk" in event.get("name", "") for event in events)


def test_a_file_may_be_named_by_a_text(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3}\n')
    assert read_json_lines(str(path)) == [{"step": 3}]
    assert read_json_lines(str(tmp_path / "none.jsonl")) == []


def test_an_error_of_a_connection_is_not_one_of_the_disk(task, config, tmp_path):
    class Dashboard(Callback):
        def on_chunk(self, record):
            raise ConnectionResetError("the dashboard is gone")

    with pytest.raises(ConnectionResetError, match="the dashboard is gone"):
        fit(tmp_path, *task, config, make_callbacks=lambda step: [Dashboard()])
