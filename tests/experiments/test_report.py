"""Published tables: made from the files of runs alone, seeds grouped, unfinished runs refused."""

from __future__ import annotations

import json

import pytest

from experiments import nbody, report, run_directory


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Directs what is written to a folder of the test, with a README that has the marks."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report._BEGIN}\nold table\n{report._END}\nafter\n")
    monkeypatch.setattr(report, "_RECORDS", tmp_path / "results")
    monkeypatch.setattr(report, "_PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "_README", readme)
    return tmp_path


def make_run(directory, seed=0, f_mse=0.005, finished=True, **settings):
    directory.mkdir()
    config = run_directory.plain(nbody.PRESETS["paper"])
    config["training"]["seed"] = seed
    config["data"].update(settings, cache_dir="somewhere")
    record = {
        "experiment": "nbody",
        "preset": "paper",
        "f_mse": f_mse,
        "a_mse": f_mse / 2,
        "linear_baseline": {"f_mse": 0.1, "a_mse": 0.05},
        "num_parameters": 160_000,
        "steps": 6000 if finished else 300,
        "finished": finished,
        "best_step": 5700,
        "train_seconds": 600.0,
        "seed": seed,
        "command": f"python -m experiments.nbody --training.seed {seed}",
        "git_commit": "0123456789abcdef",
        "date": "2026-01-02 03:04 UTC",
        "device": "cpu, 2 cores",
    }
    (directory / run_directory.RESULTS).write_text(json.dumps(record))
    (directory / run_directory.CONFIG).write_text(json.dumps({"settings": config}))
    return directory


def test_seeds_share_a_row_and_other_settings_have_their_own(published):
    runs = [
        make_run(published / "a", seed=0, f_mse=0.004),
        make_run(published / "b", seed=1, f_mse=0.006),
        make_run(published / "c", seed=0, f_mse=0.007, time_reversal=False),
    ]
    assert report.main([str(run) for run in runs]) == 0
    page = (published / "RESULTS.md").read_text()
    assert "| **EGNO**, preset `paper` | 0.00500 +- 0.00141 | 0.00250 +- 0.00071 | 2 |" in page
    assert "preset `paper`, `data.time_reversal=False` | 0.00700 | 0.00350 | 1 |" in page
    assert "| EGNO | 0.0054 |" in page
    assert "| 5-body problem | 0.00500 +- 0.00141 | 0.00250 +- 0.00071 | 2 |" in page
    assert page.count("| `0123456` | 2026-01-02 |") == 3
    assert "somewhere" not in "".join(p.read_text() for p in (published / "results").glob("*.json"))


def test_baselines_stand_beside_the_model_and_a_single_time_has_no_mean_over_times(published):
    make_run(published / "a", f_mse=0.004)
    egnn = make_run(published / "b", f_mse=0.008)
    record = json.loads((egnn / run_directory.RESULTS).read_text())
    record |= {"model": "EGNN", "preset": "paper-egnn", "mse_per_time": [0.008], "a_mse": 0.008}
    (egnn / run_directory.RESULTS).write_text(json.dumps(record))
    settings = json.loads((egnn / run_directory.CONFIG).read_text())["settings"]
    settings |= run_directory.plain(nbody.PRESETS["paper-egnn"])
    (egnn / run_directory.CONFIG).write_text(json.dumps({"settings": settings}))
    assert report.main([str(published / "a"), str(egnn)]) == 0
    page = (published / "RESULTS.md").read_text()
    assert "| **EGNN**, preset `paper-egnn` | 0.00800 |  | 1 | here |" in page
    assert "| 5-body problem | 0.00400 | 0.00200 | 1 | EGNN | 0.00800 |  | 0.0054 |" in page


def test_a_task_in_which_a_baseline_is_ahead_is_named(published):
    make_run(published / "a", f_mse=0.004)
    egnn = make_run(published / "b", f_mse=0.003)
    assert report.main([str(published / "a")]) == 0
    assert "No baseline with the same number of steps" in (published / "RESULTS.md").read_text()
    record = json.loads((egnn / run_directory.RESULTS).read_text())
    record |= {"model": "EGNN-S", "preset": "paper-egnn-s", "valid_f_mse": 0.01}
    (egnn / run_directory.RESULTS).write_text(json.dumps(record))
    settings = json.loads((egnn / run_directory.CONFIG).read_text())["settings"]
    settings |= run_directory.plain(nbody.PRESETS["paper-egnn-s"])
    (egnn / run_directory.CONFIG).write_text(json.dumps({"settings": settings}))
    assert report.main([str(egnn)]) == 0
    page = (published / "RESULTS.md").read_text()
    assert "| 5-body problem | F-MSE | 0.00400 | EGNN-S | 0.00300 |  | 0.01000 |" in page
    assert "| 5-body problem | A-MSE | 0.00200 | EGNN-S | 0.00150 |" in page


def test_the_picture_of_an_experiment_is_linked_where_it_could_be_drawn(published, monkeypatch):
    pytest.importorskip("matplotlib")
    report.main([str(make_run(published / "a"))])
    assert (published / "results" / "nbody.png").stat().st_size > 1000
    assert "](results/nbody.png)" in (published / "RESULTS.md").read_text()


def test_the_table_in_the_readme_is_replaced_and_nothing_else(published):
    report.main([str(make_run(published / "a"))])
    readme = (published / "README.md").read_text()
    report.main([])
    assert (published / "README.md").read_text() == readme
    assert readme.startswith(f"before\n{report._BEGIN}\n| task |")
    assert readme.endswith(f"\n{report._END}\nafter\n")
    assert "old table" not in readme


def test_the_moving_picture_of_a_run_comes_to_the_docs(published, monkeypatch, capsys):
    monkeypatch.setattr(report, "_IMAGES", published)
    run = make_run(published / "a")
    assert report.main(["--picture", str(run)]) == 2
    assert "there is no trajectories.gif" in capsys.readouterr().err
    (run / "pictures").mkdir()
    (run / "pictures" / "trajectories.gif").write_bytes(b"GIF89a")
    assert report.main(["--picture", str(run)]) == 0
    assert (published / "nbody.gif").read_bytes() == b"GIF89a"


def test_a_published_command_names_no_folder_of_the_machine(published):
    directory = make_run(published / "a")
    record = json.loads((directory / run_directory.RESULTS).read_text())
    record["command"] = f"python -m experiments.nbody --training.seed 0 --out {directory}"
    record["resumed"] = [{"command": f"python -m experiments.nbody --resume {directory}"}]
    (directory / run_directory.RESULTS).write_text(json.dumps(record))
    assert report.main([str(directory)]) == 0
    assert str(published) not in (published / "RESULTS.md").read_text()
    written = json.loads((published / "results" / "a.json").read_text())
    assert written["command"] == "python -m experiments.nbody --training.seed 0 --out runs/a"
    assert written["resumed"][0]["command"] == "python -m experiments.nbody --resume runs/a"


def test_only_finished_runs_are_published(published, capsys):
    assert report.main([str(make_run(published / "a", finished=False))]) == 2
    num_steps = nbody.PRESETS["paper"].training.num_steps
    assert f"ended at step 300 of {num_steps}; only finished runs" in capsys.readouterr().err
    assert report.main([str(published)]) == 2
    assert "there is no results.json" in capsys.readouterr().err
    assert not (published / "results").exists()


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(report._README.read_text())
    committed = report._PAGE.read_text()
    monkeypatch.setattr(report, "_README", readme)
    monkeypatch.setattr(report, "_PAGE", tmp_path / "RESULTS.md")
    report.build()
    assert (tmp_path / "RESULTS.md").read_text() == committed
    assert readme.read_text() == (report._ROOT / "README.md").read_text()
