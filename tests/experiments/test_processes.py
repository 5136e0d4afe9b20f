"""The same command in several processes: one run, one writer, stopped and resumed together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.training.test_mesh import ROOT, free_port

pytest.importorskip("tyro")
pytest.importorskip("grain")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

pytestmark = pytest.mark.slow

SETTINGS = (
    "--training.num-steps 600 --training.steps-per-chunk 10 --training.eval-every 200 "
    "--training.batch-size 4 --model.num-layers 1 --model.hidden-dim 8 "
    "--data.num-train 20 --data.num-valid 10 --data.num-test 10 --data.no-time-reversal"
).split()


def start(arguments, num_devices):
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    settings = {
        "JAX_PLATFORMS": "cpu",
        "EGNO_JAX_KERNELS": "off",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.nbody", *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_both(arguments):
    address = f"127.0.0.1:{free_port()}"
    return [
        start(
            [
                *arguments,
                *("--mesh", "data=2,time=2", "--coordinator", address),
                *("--num-processes", "2", "--process-id", str(index)),
            ],
            num_devices=2,
        )
        for index in range(2)
    ]


def ends(processes):
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def test_a_process_that_fails_ends_the_others(tmp_path):
    """Process 0 cannot print any more, while the other waits for it within a step."""
    both = start_both([*SETTINGS, "--training.eval-every", "10", "--out", str(tmp_path / "run")])
    both[0].stdout.readline()
    both[0].stdout.close()
    assert both[0].wait(timeout=300) == 1
    both[1].communicate(timeout=300)
    assert both[1].returncode == 75


def records(directory, kind):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_processes_stop_together_and_the_run_goes_on_elsewhere(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    codes, outputs = ends([start([*SETTINGS, "--out", str(whole)], num_devices=1)])
    assert codes == [0], outputs

    both = start_both([*SETTINGS, "--out", str(cut)])
    metrics = cut / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and both[0].poll() is None:
        time.sleep(0.1)
    both[1].send_signal(signal.SIGTERM)
    codes, outputs = ends(both)
    assert codes == [75, 75], outputs
    assert "interrupted at step" in outputs[0] and "interrupted" not in outputs[1]

    codes, outputs = ends(start_both(["--resume", str(cut)]))
    assert codes == [0, 0], outputs
    found, expected = (records(directory, "valid") for directory in (cut, whole))
    assert [record["step"] for record in found] == [200, 400, 600]
    for record, other in zip(found, expected, strict=True):
        assert record["f_mse"] == pytest.approx(other["f_mse"], rel=0.05)
    assert len({record["step"] for record in records(cut, "train")}) == 60
