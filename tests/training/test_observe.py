"""What a run reports of its costs, and the trace that it leaves."""

from __future__ import annotations

import gzip
import json

import jax
import jax.numpy as jnp

from egno_jax.training import JSONLines, fit, observe, read_json_lines
from tests.training.conftest import CONFIG


def test_compilations_are_counted():
    function = jax.jit(lambda x: 3 * x - 1)
    with observe.watch() as first:
        function(jnp.ones(5)).block_until_ready()
    with observe.watch() as second:
        function(jnp.ones(5)).block_until_ready()
    assert first.num_compiles >= 1 and 0 < first.compile_seconds < first.seconds
    assert (second.num_compiles, second.compile_seconds) == (0, 0)


def test_a_run_reports_its_costs_and_leaves_a_trace(task, tmp_path):
    fit(
        tmp_path,
        *task,
        CONFIG,
        make_callbacks=lambda step: [JSONLines(tmp_path / "metrics.jsonl", step)],
        profile=tmp_path / "profile",
    )
    records = read_json_lines(tmp_path / "metrics.jsonl")
    train = [record for record in records if record["kind"] == "train"]
    assert len(train) == 4
    for record in train:
        assert record["step_seconds"] > 0 and record["memory_bytes"] > 1e6
        assert (record["data_seconds"], record["padding"], record["skipped_steps"]) == (0, 0, 0)
    assert all(record["num_compiles"] == 0 for record in train[1:])
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("train_chunk" in event.get("name", "") for event in events)
