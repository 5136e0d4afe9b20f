"""Training on meshes of simulated devices and in several processes: the numbers of one device."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import egno_jax
from egno_jax import datasets, training
from egno_jax.baselines import BaselineConfig
from egno_jax.ops.kernels import library
from egno_jax.training import MeshShape, devices, make_mesh, parse_mesh, processes
from egno_jax.training.batches import share_places
from egno_jax.training.step import Trainer
from egno_jax.training.stream import LocalShare, StepBatches, Stream, local_share
from tests.datasets.test_buckets import swarm
from tests.training.mesh_runs import CHUNK, NUM_STEPS

ROOT = Path(__file__).parents[2]
MESH, OTHER_MESHES = "data=4,time=2", ("data=8", "time=8")


def start(*arguments, num_devices, kernels="off", layout="none"):
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    settings = {
        "JAX_PLATFORMS": "cpu",
        "EGNO_JAX_KERNELS": kernels,
        "EGNO_JAX_LAYOUT": layout,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.mesh_runs", *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of(process):
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-4000:]
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def runs():
    """Returns runs on one device and on a mesh of 8; P = 5, and 6 samples a step."""
    return result_of(start("losses", "none", MESH, num_devices=8))


@pytest.fixture(scope="module")
def other_runs():
    """Returns runs on one device and on the other meshes of 8."""
    return result_of(start("losses", "none", *OTHER_MESHES, num_devices=8))


@pytest.fixture(scope="module")
def mixed_runs():
    """Returns runs of graphs of several sizes."""
    return result_of(start("mixed", "none", "data=8", num_devices=8))


@pytest.fixture(scope="module")
def runs_of_processes():
    """Returns what two processes of two devices each found, fed by grain."""
    pytest.importorskip("grain")
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        start("processes", coordinator, "2", str(index), "data=2,time=2", num_devices=2)
        for index in range(2)
    ]
    return [result_of(process) for process in processes]


def assert_same_steps(found, expected):
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-4)


def assert_same_run(found, expected):
    assert_same_steps(found, expected)
    for name in ("f_mse", "a_mse", "speed"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def assert_steps_are_those_of_one_device(runs, mesh):
    """Shares that are uneven or all padding, and times that are added, show nowhere."""
    assert runs[mesh]["num_devices"] == 8 and runs["none"]["num_devices"] == 1
    assert len(runs["none"]["loss"]) == NUM_STEPS and np.ptp(runs["none"]["loss"]) > 0.01
    assert_same_run(runs[mesh], runs["none"])


def test_a_mesh_takes_the_steps_of_one_device(runs):
    assert_steps_are_those_of_one_device(runs, MESH)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", OTHER_MESHES)
def test_other_meshes_take_the_steps_of_one_device(other_runs, mesh):
    assert_steps_are_those_of_one_device(other_runs, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["blocks", "incidence", "segments"])
def test_layouts_take_the_steps_of_the_list_on_a_mesh(runs, layout):
    found = result_of(start("losses", MESH, num_devices=8, layout=layout))
    assert_same_run(found[MESH], runs["none"])


@pytest.mark.skipif(not library.load().is_loaded, reason=f"no kernels: {library.load().reason}")
def test_a_device_of_a_mesh_of_data_uses_the_kernels_of_one_device():
    """And sends the gradient of each array of weights once, a few numbers, and nothing else."""
    found = result_of(start("kernels", "none", "data=2", num_devices=2, kernels="auto"))
    one, mesh = found["none"], found["data=2"]
    assert one["kernels"] and mesh["kernels"] == one["kernels"]
    assert_same_steps(mesh, one)
    assert {kind for kind, *_ in mesh["collectives"]} == {"all-reduce"}
    arrays = [shape for _, shape, _ in mesh["collectives"] if shape]
    assert len(arrays) <= found["num_arrays"]
    assert sum(map(math.prod, arrays)) <= found["num_weights"]
    assert len(mesh["collectives"]) - len(arrays) <= 4


@pytest.mark.skipif(not library.load().is_loaded, reason=f"no kernels: {library.load().reason}")
@pytest.mark.parametrize("name", ["time=2", pytest.param("data=2,time=2", marks=pytest.mark.slow)])
def test_a_device_of_a_mesh_of_times_uses_the_kernels_of_each_time_alone(name):
    num_devices = math.prod(parse_mesh(name))
    found = result_of(start("kernels", "none", name, num_devices=num_devices, kernels="auto"))
    one, mesh = found["none"], found[name]
    assert mesh["kernels"] == [kernel for kernel in one["kernels"] if "temporal_conv" not in kernel]
    assert "egno_message_sums_vjp" in mesh["kernels"]
    assert_same_steps(mesh, one)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_device(mixed_runs, runs_of_processes):
    """Fed by streams, with padded graphs of several sizes."""
    for process in runs_of_processes:
        run = process["data=2,time=2"]
        assert run["num_devices"] == 4
        assert_same_run(run, mixed_runs["none"])
    assert runs_of_processes[0] == runs_of_processes[1]


def test_meshes_are_read_from_text():
    assert parse_mesh("data=4,time=2") == MeshShape(4, 2)
    assert parse_mesh(" time = 3 ") == MeshShape(1, 3)
    assert parse_mesh(str(MeshShape(2, 5))) == MeshShape(2, 5)
    for text in ("", "data=0", "data=2,data=2", "model=2", "data=2;time=2", "8"):
        with pytest.raises(ValueError, match=f"mesh: got {text!r}, expected such as data=4"):
            parse_mesh(text)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("data=1", "shape: got 'data=1', expected a MeshShape"),
        (MeshShape(time=0), "time: got 0, expected an integer >= 1"),
        (MeshShape(1.0), "data: got 1.0, expected an integer"),
    ],
)
def test_what_is_no_shape_of_a_mesh_is_named(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_a_mesh_of_too_many_devices_is_refused():
    available = len(jax.devices())
    message = f"{available + 1} devices, expected at most the {available} "
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshShape(data=available + 1))


def slices(num_slices, num_devices):
    """Returns the devices of several slices, in a mixed order."""
    return [
        Device(slice, slice, num_devices * slice + number)
        for number in range(num_devices)
        for slice in range(num_slices)
    ]


@pytest.mark.parametrize(
    ("shape", "over_data", "over_time"),
    [((2, 4), 2, 1), ((4, 2), 2, 1), ((8, 1), 2, 1), ((1, 8), 1, 2), ((3, 8), 1, 2)],
)
def test_slices_are_joined_along_data_if_they_can_be(shape, over_data, over_time):
    data, time = shape
    grid = devices.arranged(MeshShape(*shape), slices(2, data * time // 2))
    assert grid.shape == shape and len({device.id for device in grid.flat}) == data * time
    for index, device in np.ndenumerate(grid):
        part = index[0] * over_data // data, index[1] * over_time // time
        assert device.slice_index == max(part)


def test_slices_must_be_whole():
    with pytest.raises(ValueError, match="mesh: got data=3,time=1"):
        devices.arranged(MeshShape(3, 1), slices(2, 2)[:3])


def test_one_slice_keeps_the_order_of_the_devices():
    found = slices(1, 8)
    grid = devices.arranged(MeshShape(2, 4), found)
    assert grid.flatten().tolist() == found
    mesh = make_mesh(MeshShape())
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert mesh == jax.make_mesh((1, 1), devices.AXES, axis_types=mesh.axis_types)


class Device:
    """As much of a device as a mesh's layout looks at."""

    device_kind = platform = "gpu"

    def __init__(self, process_index, slice_index=0, id=0):
        self.process_index, self.slice_index, self.id = process_index, slice_index, id

    def __repr__(self):
        return f"{self.slice_index}:{self.id}"


class Grid:
    """As much of a mesh as a stream looks at: devices of several processes."""

    def __init__(self, process_indices):
        indices = np.array(process_indices)
        self.devices = np.vectorize(Device)(indices)
        self.shape = dict(zip(devices.AXES, indices.shape, strict=True))


@pytest.mark.parametrize(
    ("grid", "process", "rows", "columns"),
    [
        ([[0, 0], [1, 1]], 1, (1,), (0, 1)),
        ([[0, 0, 1, 1]], 1, (0,), (2, 3)),
        ([[0], [1], [0]], 0, (0, 2), (0,)),
    ],
)
def test_a_process_holds_what_its_devices_hold(grid, process, rows, columns):
    assert local_share(Grid(grid), process) == LocalShare(rows, columns)


@pytest.mark.parametrize(("batch_size", "num_shares"), [(6, 4), (6, 8), (8, 4), (1, 1), (5, 2)])
def test_every_sample_has_one_place(batch_size, num_shares):
    places, is_sample = share_places(batch_size, num_shares)
    assert places.shape[0] == num_shares
    assert sorted(places[is_sample]) == list(range(batch_size))


class Counted(np.ndarray):
    """An array that remembers which samples were read."""

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            self.base_reads.append(index.copy())
        return super().__getitem__(index)

    def __array_finalize__(self, source):
        self.base_reads = getattr(source, "base_reads", [])


def test_processes_read_the_sampler_s_batch_and_their_share_of_it_alone(task, config):
    _, train, _ = task
    train = jax.tree.map(np.asarray, train)
    positions = train.positions.view(Counted)
    counted = train._replace(positions=positions)
    key = jax.random.key(3)
    grid = Grid([[0], [0], [1]])  # 4 samples in 3 shares: 2, 2 and none
    for step in (0, 5, 11):
        batch = datasets.take(
            train, training.batch_indices(key, step, len(train.positions), config.batch_size)
        )
        shares = []
        for process in (0, 1):
            positions.base_reads.clear()
            source = StepBatches(counted, key, config, grid, local_share(grid, process))
            shares.append(source[step])
            read = set(np.concatenate(positions.base_reads).ravel().tolist())
            assert len(read) <= (4, 1)[process]
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
        _, is_sample = share_places(config.batch_size, 3)
        mask = np.repeat(is_sample, 5, axis=1).reshape(-1)
        assert together.node_mask.all()
        found = np.moveaxis(together.positions, 1, 0).reshape(2, -1, 3)[:, mask]
        np.testing.assert_array_equal(found, batch.positions)
        nodes = together.graph.nodes["features"].reshape(len(mask), -1)[mask]
        np.testing.assert_array_equal(nodes, batch.graph.nodes["features"])


def test_a_stream_goes_on_from_its_state(task, config):
    pytest.importorskip("grain")
    _, train, _ = task
    mesh = make_mesh(MeshShape())
    stream = Stream(jax.tree.map(np.asarray, train), jax.random.key(1), config, mesh)
    first = stream.take(3)
    state = json.loads(json.dumps(stream.get_state()))
    expected = stream.take(2)
    other = Stream(jax.tree.map(np.asarray, train), jax.random.key(1), config, mesh)
    other.set_state(state)
    jax.tree.map(np.testing.assert_array_equal, other.take(2), expected)
    assert first.positions.shape[:2] == (3, 1)
    assert (np.asarray(first.positions[0]) != np.asarray(expected.positions[0])).any()


def test_what_a_mesh_cannot_do_is_refused(task, config, monkeypatch):
    grid = Grid([[0, 0]])
    for method in ("egnn-s", "egnn-r", "mpnn"):
        with pytest.raises(ValueError, match=f"got time=2, expected time=1 with .*{method}"):
            devices.check_model(BaselineConfig(method=method), grid)
    devices.check_model(BaselineConfig(method="egno-no-conv"), grid)
    devices.check_model(egno_jax.EGNOConfig(), grid)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"mesh: got None .* in 2 processes, expected a mesh"):
        Trainer(*task[1:], config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a:1", None, 0), "num_processes: got none, expected coordinator"),
        (("a:1", 2, 2), "process_id: got 2 of 2 processes"),
        (("a", 2, 0), "coordinator: got 'a', expected host:port"),
    ],
)
def test_processes_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        training.start_processes(*arguments)


def test_the_environment_tells_of_other_processes(monkeypatch):
    for name in (*processes._COUNTS, *processes._HOST_LISTS):
        monkeypatch.delenv(name, raising=False)
    assert not processes.is_cluster()
    training.start_processes()
    for name, alone, several in (
        ("SLURM_STEP_NUM_TASKS", "1", "4"),
        ("TPU_WORKER_HOSTNAMES", "localhost", "host-0,host-1"),
    ):
        monkeypatch.setenv(name, alone)
        assert not processes.is_cluster()
        monkeypatch.setenv(name, several)
        assert processes.is_cluster()
        monkeypatch.delenv(name)


@pytest.mark.slow
def test_batches_of_several_sizes_give_the_same_losses_on_a_mesh(mixed_runs):
    """Padded graphs: shares have different numbers of real nodes, and some none.

    The loss is one that is not finite without real nodes.
    """
    assert np.isfinite(mixed_runs["none"]["loss"]).all()
    assert_same_run(mixed_runs["data=8"], mixed_runs["none"])


@pytest.mark.slow
def test_a_run_moves_from_8_devices_to_2_to_1(runs):
    found = result_of(start("moved", "data=4,time=2", "data=2", "none", num_devices=8))
    expected = np.reshape(runs["none"]["loss"], (-1, CHUNK)).mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("num_buckets", [0, 2])
def test_a_stream_gives_the_batches_of_a_training_set_on_the_device(task, config, num_buckets):
    """Samples of one size have times of their own."""
    pytest.importorskip("grain")
    train = task[1]
    train = datasets.concatenate(train, train._replace(times=2 * train.times))
    if num_buckets:
        train = datasets.bucketed([swarm(bodies, 4) for bodies in (3, 4, 6)], num_buckets)
    streamed, resident = (Trainer(train, task[2], config, stream=flag) for flag in (True, False))
    for step in (0, 1, 5):
        _, batches = streamed._batches(step, 1)
        samples, indices = resident._batches(step, 1)
        expected = datasets.take(samples, indices[0])
        jax.tree.map(
            lambda found, leaf: np.testing.assert_array_equal(found[0, 0], leaf), batches, expected
        )
