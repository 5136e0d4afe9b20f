"""What a command refuses, in one line that says what to do, before it spends time or loses data."""

import logging
import pathlib
import warnings

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("ase")

from egno_jax.cli import main

FILES = pathlib.Path(__file__).parents[1] / "datasets" / "files"
RECORDED = str(FILES / "recorded.npy")


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """Runs a command that must fail, and returns its error: one line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("egno-jax: error: ")

    return run


@pytest.fixture
def bodies(tmp_path):
    """A state of five charged particles, for the published model `nbody`."""
    positions, velocities = np.random.default_rng(0).normal(size=(2, 1, 5, 3))
    path = tmp_path / "bodies.npz"
    np.savez(path, positions=positions, velocities=velocities, charges=[1.0, -1, 1, -1, 1])
    return path


def test_a_prediction_does_not_replace_its_data(refused, bodies):
    before = bodies.read_bytes()
    for out in (bodies, bodies.parent / "." / bodies.name):
        assert "out: got" in refused("predict", "nbody", bodies, "--out", out)
    assert bodies.read_bytes() == before


def test_a_result_is_replaced_only_on_request(refused, bodies):
    out = bodies.parent / "out.npz"
    out.write_text("older")
    for command in ("predict", "rollout"):
        assert refused(command, "nbody", bodies, "--out", out).endswith("or pass --overwrite")
    assert out.read_text() == "older"
    assert main(["predict", "nbody", str(bodies), "--out", str(out), "--overwrite"]) == 0
    assert np.load(out)["positions"].shape == (6, 5, 3)


def test_a_bound_is_named_as_it_was_typed(refused, bodies):
    for bound in ("0.0", "-1.0", "nan"):
        line = refused("rollout", "nbody", bodies, "--bound", bound)
        assert line.startswith(f"bound: got {bound}, expected a number above 0")


def test_an_unknown_suffix_is_named_as_the_option(refused, bodies):
    line = refused("rollout", "nbody", bodies, "--out", "predicted.foo")
    assert line.startswith("out: got predicted.foo") and ".extxyz" in line


@pytest.mark.parametrize("left", ["best", "checkpoints/20"])
def test_a_run_is_not_replaced_and_the_options_are_named(refused, tmp_path, left):
    (tmp_path / left).mkdir(parents=True)
    line = refused("train", RECORDED, "--out", tmp_path)
    assert line.startswith(f"out: got {tmp_path}") and "--resume" in line


def test_a_folder_without_a_run_to_resume_is_pointed_out(tmp_path, capsys):
    out = str(tmp_path / "new")
    assert main(["train", RECORDED, "--resume", "--out", out, "--window", "50frames"]) == 1
    assert capsys.readouterr().out.startswith(f"{out} holds no run to resume: a new one starts\n")


def test_a_misspelt_file_is_named_without_an_error_number(refused, tmp_path):
    line = refused("inspect", tmp_path / "coper.xyz")
    assert line.startswith(f"{tmp_path / 'coper.xyz'}: got no such file") and "Errno" not in line
    assert "expected a file; name a trajectory" in refused("inspect")


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_a_model_that_does_not_exist_is_named_as_the_argument(refused, tmp_path, command):
    rest = ["--out", tmp_path / "m.stablehlo"] if command == "export" else [RECORDED]
    line = refused(command, "nbodi", *rest)
    assert line.startswith("model: got nbodi") and "running" in line


def test_warnings_about_a_format_that_is_not_used_are_not_shown(caplog):
    assert main(["models"]) == 0
    logger = logging.getLogger("MDAnalysis.coordinates.AMBER")
    logger.warning("netCDF4 is not available. Writing AMBER ncdf files will be slow.")
    logger.warning("the file has no units")
    assert [record.message for record in caplog.records] == ["the file has no units"]


def test_times_in_a_unit_that_the_model_does_not_know_are_explained(refused, bodies):
    command = ["predict", "nbody", bodies, "--out", bodies.parent / "out.xyz", "--times"]
    line = refused(*command, "4fs")
    assert line.startswith("times: got 4fs, expected frames") and "3frames" in line
    assert "such as 4fs:20fs:4fs" in refused(*command, "1:3")


@pytest.mark.filterwarnings("always")
def test_times_after_the_window_are_warned_of_with_the_command_for_them(bodies, capsys):
    command = ["predict", "nbody", str(bodies), "--out", str(bodies.parent / "out.xyz")]
    assert main([*command, "--times", "2", "99"]) == 0
    text = capsys.readouterr().err
    assert "times: got 99 frames, expected at most 10 frames" in text and "rollout" in text


def test_frames_and_recordings_that_do_not_exist_are_told_apart(refused, bodies):
    assert refused("predict", "nbody", bodies, "--frame", 3).startswith("frame: got 3, expected")
    line = refused("predict", "nbody", bodies, "--recording", 3)
    assert line.startswith("recording: got 3, expected one of 0 to 0")
    with np.load(bodies) as arrays:
        still = {name: arrays[name] for name in ("positions", "charges")}
    np.savez(bodies, **still | {"positions": np.repeat(still["positions"], 3, axis=0)})
    line = refused("predict", "nbody", bodies, "--frame", "-3", "--accept", "all")
    assert line.startswith("frame: got -3, the first one, expected one of 1 to 2")


def test_missing_charges_are_named_with_the_file_that_holds_them(refused, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(2, 5, 3)))
    line = refused("predict", "nbody", tmp_path / "a.npy", "--accept", "all")
    assert line.startswith("state.charges: got None") and line.endswith(".npz file as `charges`")


def test_a_selection_of_nothing_lists_the_names_of_atoms(refused):
    pytest.importorskip("MDAnalysis")
    line = refused("inspect", FILES / "helix_box.pdb", "--selection", "name XX")
    assert line.endswith("names of atoms in the file are: C, CA, N, O")


def test_a_window_longer_than_recordings_says_how_long_they_must_be(refused):
    line = refused("train", RECORDED, "--window", "50frames")
    assert line.endswith("use a smaller window, or more frames (52 in each recording)")


def test_a_file_of_a_model_that_counts_frames_says_what_its_times_are(bodies, capsys):
    command = ["predict", "nbody", str(bodies), "--times", "2", "--out"]
    for suffix in ("xyz", "npz"):
        with warnings.catch_warnings(action="ignore"):
            assert main([*command, str(bodies.parent / f"out.{suffix}")]) == 0
        text = capsys.readouterr().out
        assert ("in the file a frame is 1 fs" in text) == (suffix == "xyz")
        assert "1 predicted frame, to 2 frames" in text


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--targets", "3", "targets: got 3 in a window of 10 frames.*one of [1, 2, 5]"),
        ("--targets", "0", "targets: got 0 in a window of 10 frames.*one of [1, 2, 5]"),
        ("--cutoff", "-1", "cutoff: got -1, expected a finite length above 0.*"),
        ("--cutoff", "inf", "cutoff: got inf, expected a finite length above 0.*"),
        ("--model.time-scale", "7", "model.time_scale: got 7.0, expected nothing.*--window"),
    ],
)
def test_options_of_windows_are_named_as_they_are_typed(refused, option, value, expected):
    start, end = expected.split(".*")
    line = refused("train", RECORDED, option, value)
    assert line.startswith(start) and end in line


def test_a_model_without_a_cell_on_periodic_data_is_pointed_out(bodies, capsys):
    with np.load(bodies) as arrays:
        np.savez(bodies, **arrays, cell=30 * np.eye(3))
    out = str(bodies.parent / "out.xyz")
    with warnings.catch_warnings(action="ignore"):
        assert main(["predict", "nbody", str(bodies), "--out", out]) == 0
    assert "the data are periodic, and the model is not" in capsys.readouterr().out


def test_files_with_a_wrong_suffix_are_one_line(refused, tmp_path):
    archive, text = tmp_path / "archive.npy", tmp_path / "table.csv"
    archive.write_bytes((FILES / "md17_like.npz").read_bytes())
    text.write_text("a,b\n")
    assert "name it .npz" in refused("inspect", archive)
    assert "check that the suffix is right" in refused("inspect", text)


def test_files_that_do_not_belong_together_are_one_line(refused, tmp_path):
    pytest.importorskip("MDAnalysis")
    structure = FILES / "helix_box.pdb"
    for other in ("cluster.traj", "cluster_momenta.extxyz", "recorded.npy"):
        line = refused("inspect", structure, FILES / other)
        assert line.startswith(f"{FILES / other}: got 2 files") and "topology" in line
    short = tmp_path / "short.pdb"
    short.write_text("".join(structure.read_text().splitlines(keepends=True)[-5:]))
    trajectory = FILES / "helix_box.xtc"
    assert "same number of atoms" in refused("inspect", short, trajectory)
    line = refused("inspect", trajectory, structure)
    assert line.startswith(f"paths: got {trajectory} first, expected a topology")


@pytest.mark.parametrize("times", [["20frames:4frames:4frames"], ["8frames:4frames:2frames", "4"]])
def test_ranges_without_a_time_are_refused(refused, bodies, times):
    line = refused("predict", "nbody", bodies, "--times", *times, "--out", bodies.parent / "a.npz")
    assert line.startswith(f"times: got {times[0]}, which is no time, expected START:STOP:STEP")


def test_a_range_of_too_many_times_is_refused(refused, bodies):
    line = refused("predict", "nbody", bodies, "--times", "1:1000000000:1", "--out", "a.npz")
    assert line.startswith("times: got 1:1000000000:1, which is 1e+09 times, expected at most")


def test_a_number_of_windows_is_named_as_it_was_typed(refused, bodies):
    line = refused("rollout", "nbody", bodies, "--windows", "0", "--out", "a.npz")
    assert line.startswith("windows: got 0, expected")


def test_places_where_no_file_can_be_are_one_line(refused, bodies, tmp_path):
    (tmp_path / "folder.xyz").mkdir()
    for command in (["predict", "nbody", bodies], ["export", "nbody"]):
        for overwrite in ([], ["--overwrite"]):
            line = refused(*command, "--out", "folder.xyz", *overwrite)
            assert line == "out: got folder.xyz, which is a folder, expected a file; name one in it"
    line = refused("predict", "nbody", bodies, "--out", bodies / "a.xyz")
    assert line.startswith(f"{bodies}: got ") and "Errno" not in line
    line = refused("convert-torch", "missing.npz", "--out", "converted")
    assert line.startswith("missing.npz: got 'No such file") and "Errno" not in line


def test_data_that_no_model_can_use_are_named_before_training(refused, tmp_path):
    positions = np.random.default_rng(0).normal(size=(4, 3)) + np.linspace(0, 1, 60)[:, None, None]
    path, charged = tmp_path / "a.npz", tmp_path / "charged.npz"
    np.savez(path, positions=positions)
    np.savez(charged, positions=positions, charges=[1, np.nan, 1, 1])
    for command in ("inspect", "train"):
        assert "velocities: got none in" in refused(command, path, "--velocities", "file")
        assert "charge of atom 1: got nan, expected" in refused(command, charged)
    pytest.importorskip("vesin")
    assert refused("train", path, "--cutoff", "1e-9").startswith("cutoff: got 1e-09, which vesin")


@pytest.mark.parametrize("command", ["inspect", "train"])
def test_unknown_kinds_to_accept_are_refused(refused, command):
    assert refused(command, RECORDED, "--accept", "stepp").startswith("accept: got ['stepp']")
