"""Three commands from a file to a predicted file, which another program opens."""

import json
import os
import pathlib
import shlex
import signal
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("MDAnalysis")
chemfiles = pytest.importorskip("chemfiles")

import egno_jax  # noqa: E402
from egno_jax import datasets  # noqa: E402
from egno_jax.cli import main, making  # noqa: E402
from egno_jax.datasets import nbody, trajectories  # noqa: E402

FILES = pathlib.Path(__file__).parents[1] / "datasets" / "files"
TINY = (
    "--training.num-steps 2 --training.eval-every 2 --training.checkpoint-every 2 "
    "--model.num-layers 1 --model.hidden-dim 4 --model.time-embed-dim 4"
).split()
INPUTS = {
    "recorded.npy": (["recorded.npy"], "predicted.extxyz", ["--window", "10"]),
    "momenta": (["cluster_momenta.extxyz"], "predicted.xtc", ["--window", "20fs"]),
    "traj": (["cluster.traj"], "predicted.dcd", ["--window", "20fs"]),
    "gz": (["plain.xyz.gz"], "predicted.extxyz", ["--window", "20fs", "--time-step", "2fs"]),
    "crystal": (["copper_wrapped.extxyz"], "predicted.extxyz", ["--window", "20fs"]),
    "md17": (["md17_like.npz"], "predicted.pdb", ["--window", "10frames"]),
    "rmd17": (["rmd17_like.npz"], "predicted.npz", ["--window", "10frames"]),
    "helix": (["helix_box.pdb", "helix_box.xtc"], "predicted.pdb", ["--window", "10ps"]),
}


def opened(path):
    """Returns the positions [T, N, 3] that another library than the writer reads."""
    if path.suffix == ".npz":
        return np.load(path)["positions"]
    with chemfiles.Trajectory(str(path), "r", "XYZ" if path.suffix == ".extxyz" else "") as file:
        frames = [file.read_step(t) for t in range(file.nsteps)]  # their positions are views
        return np.stack([frame.positions.copy() for frame in frames])


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_three_commands_make_a_file_that_another_program_opens(name, tmp_path, capsys):
    files, out, window = INPUTS[name]
    paths = [str(FILES / file) for file in files]
    run, out = str(tmp_path / "run"), tmp_path / out
    step = ["--time-step", "2fs"] if "2fs" in window else []
    assert main(["inspect", *paths, *step]) == 0
    assert main(["train", *paths, *window, "--stride", "10", "--out", run, *TINY]) == 0
    assert main(["predict", run, *paths, "--out", str(out), *step]) == 0, capsys.readouterr().err
    positions = opened(out)
    assert positions.shape[0] > 2 and np.isfinite(positions).all()
    assert np.abs(positions[1:] - positions[:1]).max() > 0
    assert "root mean squared error" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_how_to_go_on(tmp_path, capsys, monkeypatch):
    class Stop(making.Progress):
        def on_chunk(self, record):
            os.kill(os.getpid(), signal.SIGTERM)

    command = ["train", str(FILES / "recorded.npy"), "--window", "10", "--out", str(tmp_path)]
    command += [*TINY, "--training.steps-per-chunk", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(making, "Progress", Stop)
        assert main(command) == 75
    found = capsys.readouterr()
    again = shlex.join(["egno-jax", *command, "--resume"])
    (line,) = [line for line in found.err.splitlines() if "interrupted" in line]
    assert line == f"egno-jax: interrupted at step 1 of 2; go on with: {again}"
    assert "model:" not in found.out and not (tmp_path / "summary.json").exists()
    older = tmp_path / "older"
    older.write_text("whole")
    for name in ("summary.json", "errors.png"):
        os.link(older, tmp_path / name)
    assert main([*command, "--resume"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["best_step"] == 2
    assert (tmp_path / "best").exists()
    # A kill at any moment leaves whole files: new ones take their places in one step.
    assert older.read_text() == "whole"


def test_inspect_says_what_is_in_a_file(capsys):
    assert main(["inspect", str(FILES / "copper_wrapped.extxyz")]) == 0
    text = capsys.readouterr().out
    for part in ("120 frame(s) of 32 nodes", "7.22", "momenta", "2 fs apart", "across the walls"):
        assert part in text


def test_inspect_says_what_training_would_make_of_the_options(capsys):
    options = ["--window", "6frames", "--targets", "2", "--stride", "2frames", "--cutoff", "3"]
    assert main(["inspect", str(FILES / "copper_wrapped.extxyz"), *options]) == 0
    text = capsys.readouterr().out
    for part in ("window: 12 fs, 2 targets", "pairs within 3", "train: 30 windows"):
        assert part in text


def test_a_window_that_was_not_chosen_is_said_to_be_the_default(capsys):
    said = "this window is the default; --window sets it"
    for options, is_said in (([], True), (["--window", "5"], False)):
        assert main(["inspect", str(FILES / "recorded.npy"), *options]) == 0
        assert (said in capsys.readouterr().out) is is_said


@pytest.mark.slow
def test_a_layer_of_ones_own_trains_predicts_and_is_evaluated(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_layers.py").write_text(
        "from egno_jax import nn\n\n"
        "@nn.register_layer('mine')\n"
        "class Mine(nn.EGNNSpatialLayer):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    data, run = str(FILES / "recorded.npy"), str(tmp_path / "run")
    train = ["train", data, "--window", "10", "--out", run, "--model.layer", "mine", *TINY]
    assert main(train) == 1 and "mine" in capsys.readouterr().err
    imports = ["--imports", "my_layers"]
    assert main([*train, *imports]) == 0
    assert main(["predict", run, data, "--out", str(tmp_path / "a.xyz"), *imports]) == 0
    assert main(["evaluate", run, data, *imports]) == 0
    assert main(["evaluate", run, data, "--imports", "no_such"]) == 1
    assert "got 'no_such', which cannot be imported" in capsys.readouterr().err


def test_errors_are_one_line_and_a_status(capsys, tmp_path):
    assert main(["inspect", str(tmp_path / "missing.xyz")]) == 1
    assert "missing.xyz" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), str(FILES / "recorded.npy")]) == 1
    assert "is no checkpoint" in capsys.readouterr().err
    start = ["train", str(FILES / "recorded.npy"), "--start-from"]
    out = ["--out", str(tmp_path / "out")]
    assert main([*start, "nbody", *out, "--window", "2", "--model.num-layers", "1"]) == 1
    assert "got nbody together with window, model, expected one" in capsys.readouterr().err
    assert main([*start, "nowhere", *out]) == 1
    assert "got nowhere, which does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_published_models_are_listed_and_exported(capsys, tmp_path):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == egno_jax.published.names()
    assert main(["models", "nbody"]) == 0
    assert '"command": "python -m experiments.nbody' in capsys.readouterr().out
    assert main(["models", "unknown"]) == 1
    pytest.importorskip("flatbuffers")
    program = tmp_path / "nbody.stablehlo"
    export = ["export", "nbody", "--out", str(program), "--platforms", "cpu"]
    assert main(export) == 0
    assert jax.export.deserialize(bytearray(program.read_bytes())).platforms == ("cpu",)
    assert main(export) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert main([*export, "--overwrite"]) == 0


def test_a_published_model_predicts_a_file(tmp_path, capsys):
    states = nbody.samples(nbody.canonical("test", num_simulations=1))
    nodes, couplings = states.graph.nodes, nbody.canonical("test", num_simulations=1).couplings
    charges = np.array([1.0, *np.sign(couplings[0][0, 1:])])  # up to one sign of all
    arrays = {"positions": nodes["positions"], "velocities": nodes["velocities"] / 10}  # per frame
    np.savez(tmp_path / "state.npz", **arrays, charges=charges)
    out = tmp_path / "predicted.xyz"
    state = str(tmp_path / "state.npz")
    assert main(["predict", "nbody", state, "--out", str(out)]) == 0, capsys.readouterr().err
    positions = opened(out)
    assert positions.shape == (6, 5, 3)
    assert np.mean((positions[-1] - states.positions[0, -1]) ** 2) < 0.02


def test_models_that_count_frames_take_data_with_times_in_frames(tmp_path, capsys):
    """The same motion, once with times and velocities per fs, once without."""
    start, drift = np.random.default_rng(0).normal(size=(2, 5, 3))
    positions = start + 0.01 * drift * np.arange(30)[:, None, None]
    velocities, charges = np.broadcast_to(0.01 * drift, positions.shape), [1.0, -1, 1, -1, 1]
    more = {"positions": positions, "charges": charges}
    times = {"times": 2.0 * np.arange(30), "time_unit": "fs"}
    np.savez(tmp_path / "frames.npz", velocities=velocities, **more)
    np.savez(tmp_path / "fs.npz", velocities=velocities / 2, **times, **more)
    found = []
    for name in ("frames", "fs"):
        data, out = str(tmp_path / f"{name}.npz"), str(tmp_path / f"{name}_out.npz")
        assert main(["predict", "nbody", data, "--out", out]) == 0
        assert main(["evaluate", "nbody", data]) == 0
        found.append((np.load(out)["positions"], capsys.readouterr().out.partition("squared")[2]))
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-5)
    assert found[1][1] == found[0][1]
    np.savez(tmp_path / "still.npz", **more)  # the finite differences are the velocities above
    assert main(["evaluate", "nbody", str(tmp_path / "still.npz")]) == 0
    text = capsys.readouterr().out
    assert "has no velocities, which the model was trained with: finite differences are" in text
    errors = [float(each.split("last time: ")[1].split()[0]) for each in (text, found[0][1])]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)  # without the first window


@pytest.mark.slow
def test_a_single_node_is_rolled_out(tmp_path):
    np.save(tmp_path / "one.npy", np.cumsum(np.ones((60, 1, 3)), axis=0))
    data, run = str(tmp_path / "one.npy"), str(tmp_path / "run")
    assert main(["train", data, "--window", "2", "--out", run, *TINY]) == 0
    out = tmp_path / "out.npz"
    assert main(["rollout", run, data, "--windows", "2", "--out", str(out)]) == 0
    assert np.load(out)["positions"].shape == (5, 1, 3)


def test_a_published_model_of_bonds_predicts_and_is_evaluated(tmp_path, capsys):
    rng, body = np.random.default_rng(0), np.zeros((31, 3))
    for joint, parent in egno_jax.load("running").recipe.bonds:
        body[joint] = body[parent] + rng.choice([-1.0, 1.0], size=3)
    path, out = tmp_path / "motion.npy", tmp_path / "predicted.xyz"
    np.save(path, body + np.cumsum(0.1 * rng.normal(size=(34, 31, 3)), axis=0))
    assert main(["predict", "running", str(path), "--out", str(out)]) == 0, capsys.readouterr().err
    assert "the initial state is frame 32" in capsys.readouterr().out
    np.testing.assert_allclose(opened(out)[0], np.load(path)[32], atol=1e-6)
    rollout = ["rollout", "walking", str(path), "--windows", "2", "--out", str(out), "--overwrite"]
    assert main(rollout) == 0, capsys.readouterr().err
    assert opened(out).shape == (11, 31, 3)
    trajectories.write(tmp_path / "timed.xyz", np.load(path), times=8.0 * np.arange(34))
    for data in (path, tmp_path / "timed.xyz"):
        assert main(["evaluate", "running", str(data)]) == 0, capsys.readouterr().err
        assert "3 windows" in capsys.readouterr().out


def test_differences_over_another_time_than_in_training_are_named(tmp_path, capsys):
    recipe = egno_jax.load("aspirin").recipe
    frames = np.random.default_rng(0).normal(size=(1, 21, 3)) + 0.01 * np.arange(3)[:, None, None]
    for spacing in (0.5, 4.0):
        times = spacing * np.arange(3)
        trajectories.write(tmp_path / "a.xyz", frames, times=times, numbers=recipe.numbers)
        out = ["--accept", "all", "--overwrite", "--out", str(tmp_path / "b.xyz")]
        assert main(["predict", "aspirin", str(tmp_path / "a.xyz"), *out]) == 0
        said = "frames are 4 fs apart, and 0.5 fs in training" in capsys.readouterr().out
        assert said == (spacing == 4.0)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_data_without_times_are_as_far_apart_as_in_training(tmp_path, capsys, command):
    recipe, rng = egno_jax.load("aspirin").recipe, np.random.default_rng(0)
    frames = rng.normal(size=(1, 21, 3)) + 0.01 * rng.normal(size=(100, 21, 3)).cumsum(axis=0)
    np.savez(tmp_path / "a.npz", positions=frames, numbers=recipe.numbers)
    out = ["--out", str(tmp_path / "b.xyz")] if command == "predict" else []
    path = str(tmp_path / "a.npz")
    assert main([command, "aspirin", path, "--accept", "all", *out]) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    assert "frames are taken to be 0.5 fs apart, as in training" in text
    assert "frames are counted" not in text


def test_weights_of_the_original_code_are_converted(tmp_path, capsys):
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=8, time_embed_dim=8)
    batch = datasets.take(nbody.samples(nbody.canonical("test", num_simulations=1)), np.arange(1))
    params = egno_jax.init(jax.random.key(0), config, batch.graph, batch.times)
    np.savez(tmp_path / "weights.npz", **egno_jax.to_torch_state_dict(params))
    sizes = ["--model.num-layers", "1", "--model.hidden-dim", "8", "--model.time-embed-dim", "8"]
    command = ["convert-torch", str(tmp_path / "weights.npz"), "--out", str(tmp_path / "new")]
    assert main([*command, *sizes]) == 0, capsys.readouterr().err
    assert main([*command, *sizes]) == 1
    assert "which exists; choose another, or pass --overwrite" in capsys.readouterr().err
    assert main([*command, *sizes, "--overwrite"]) == 0, capsys.readouterr().err
    found = egno_jax.load(tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, found.weights, params.weights)
