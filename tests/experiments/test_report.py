"""Published tables: made from the files of runs alone, seeds grouped, unfinished runs refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax.datasets import nbody as datasets
from egno_jax.datasets import take
from experiments import (
    command_line,
    mocap,
    nbody,
    protein,
    report,
    report_figures,
    report_rows,
    report_tables,
    run_directory,
    run_page,
    runner,
)
from experiments.runner import Published


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
    assert "| **EGNO**, preset `paper` | 0.00500 ± 0.00141 | 0.00250 ± 0.00071 | 2 |" in page
    assert "preset `paper`, `time_reversal=False` | 0.00700 | 0.00350 | 1 |" in page
    assert "| EGNO | 0.0054 |" in page
    assert "| 5-body problem | length units² | 0.00500 ± 0.00141 | 0.00250 ± 0.00071 | 2 |" in page
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
    assert "| **EGNN**, preset `paper-egnn` | 0.00800 | – | 1 | here |" in page
    summary = next(line for line in page.splitlines() if line.startswith("| 5-body problem |"))
    assert "| 0.00400 | 0.00200 | 1 | EGNN | 0.00800 | – | 1 | 0.0054 |" in summary
    runs = page.partition("### Runs")[2]
    assert "| preset `paper-egnn` | 0 | – | 0.00800 | – |" in runs


def test_a_task_in_which_a_baseline_is_ahead_is_named(published):
    make_run(published / "a", f_mse=0.004)
    egnn = make_run(published / "b", f_mse=0.003)
    assert report.main([str(published / "a")]) == 0
    assert "No baseline with as many steps" in (published / "RESULTS.md").read_text()
    record = json.loads((egnn / run_directory.RESULTS).read_text())
    record |= {"model": "EGNN-S", "preset": "paper-egnn-s", "valid_f_mse": 0.01}
    (egnn / run_directory.RESULTS).write_text(json.dumps(record))
    settings = json.loads((egnn / run_directory.CONFIG).read_text())["settings"]
    settings |= run_directory.plain(nbody.PRESETS["paper-egnn-s"])
    (egnn / run_directory.CONFIG).write_text(json.dumps({"settings": settings}))
    assert report.main([str(egnn)]) == 0
    page = (published / "RESULTS.md").read_text()
    assert "| F-MSE | 0.00400 | EGNN-S | 0.00300 | – | – | 1 / 1 | – | 0.01000 |" in page
    assert "| 5-body problem | A-MSE | 0.00200 | EGNN-S | 0.00150 |" in page
    assert "In 1 of the 1 tasks with baselines" in (published / "README.md").read_text()


def record(preset, seed=0, f_mse=0.1, valid=None, experiment=mocap.EXPERIMENT, **changes):
    """Returns a record with changes of settings, `training__num_steps=100`."""
    settings = run_directory.plain(experiment.presets[preset])
    settings["training"]["seed"] = seed
    for path, value in changes.items():
        *groups, key = path.split("__")
        tree = settings
        for group in groups:
            tree = tree[group]
        tree[key] = value
    method = getattr(experiment.presets[preset].model, "method", None)
    return {
        "experiment": experiment.name,
        "name": f"{experiment.name}-{preset}-{len(changes)}-seed{seed}",
        "preset": preset,
        "model": "EGNO" if method is None else method.upper(),
        "f_mse": f_mse,
        "a_mse": f_mse / 2,
        "mse_per_time": [f_mse / 4, f_mse],
        "linear_baseline": {"f_mse": 9.0, "a_mse": 5.0, "mse_per_time": [1.0, 9.0]},
        "num_parameters": 7,
        "steps": settings["training"]["num_steps"],
        "finished": True,
        "best_step": 5,
        "valid_f_mse": f_mse if valid is None else valid,
        "train_seconds": 60.0,
        "seed": seed,
        "command": f"python -m experiments.{experiment.name} --preset {preset}",
        "git_commit": "0123456789abcdef",
        "date": "2026-01-02 03:04 UTC",
        "device": "cpu, 2 cores",
        "settings": settings,
    }


def rows(*records):
    return report.rows_of("mocap", records)


WARMUP = {"training__optimizer__warmup_steps": 500}


def test_the_validation_set_selects_and_the_test_set_does_not():
    good, lucky = (
        record("walk", f_mse=0.2, valid=0.1),
        record("walk", f_mse=0.1, valid=0.2, **WARMUP),
    )
    assert report_rows.selected(rows(good, lucky)).records == [good]
    baseline = [
        record("walk-egnn", f_mse=0.2, valid=0.1),
        record("walk-mpnn", f_mse=0.1, valid=0.2),
    ]
    first, second = report_rows.rivals(rows(*baseline), rows(good)[0])
    assert (first.row.model, second.row.model) == ("EGNN", "MPNN")


def test_settings_of_few_seeds_stand_for_a_model_only_where_there_are_no_others():
    single = record("walk", valid=0.01, **WARMUP)
    several = [record("walk", seed, valid=0.1) for seed in range(3)]
    many = [record("walk", seed, valid=0.2, training__num_steps=6400) for seed in range(5)]
    assert report_rows.selected(rows(single, *several, *many)).records == several
    assert report_rows.selected(rows(single, several[0])).records == [single]
    assert report_rows.selected(rows(record("walk-egnn"))) is None


def test_a_baseline_is_compared_with_the_row_that_was_trained_as_it_was():
    ours = [record("walk", f_mse=0.070, **WARMUP), record("walk", f_mse=0.075, valid=0.9)]
    alike = record("walk-egnn", f_mse=0.09, **WARMUP)
    other = record("walk-egnn", f_mse=0.08, valid=0.01)
    table = report.summary({"mocap": rows(*ours, alike, other)})
    assert "| EGNN | 0.09000 |" in table and "†" not in table
    table = report.summary({"mocap": rows(*ours, other)})
    assert "| EGNN † | 0.08000 |" in table and "† Trained with other settings" in table
    assert "EGNN with `warmup_steps=400` |" in table


def test_a_baseline_that_is_ahead_with_its_own_settings_is_not_hidden():
    ours = [record("walk", f_mse=0.070, **WARMUP), record("walk", f_mse=0.075, valid=0.9)]
    assert "No baseline" in report.shortfalls(
        {"mocap": rows(*ours, record("walk-mpnn", f_mse=0.071))}
    )
    table = report.shortfalls({"mocap": rows(*ours, record("walk-mpnn", f_mse=0.069))})
    assert "| F-MSE | 0.07000 | MPNN | 0.06900 | `warmup_steps=400` | 0.07500 |" in table
    longer = record("walk-mpnn", f_mse=0.01, training__num_steps=6400)
    assert "No baseline" in report.shortfalls({"mocap": rows(*ours, longer)})
    assert "| MPNN † | 0.01000 |" in report.summary({"mocap": rows(*ours, longer)})


def test_figures_from_another_split_are_marked_wherever_they_stand_beside_ours():
    for table in (
        report.summary({"mocap": rows(record("walk"))}),
        report_tables.headlines({"mocap": rows(record("walk"))}, "page", "reasons"),
    ):
        assert "| 0.081\\* |" in table and "\\* Measured on another split" in table
    for table in (
        report.summary({"mocap": rows(record("run"))}),
        report_tables.headlines({"mocap": rows(record("run"))}, "page", "reasons"),
    ):
        assert "| 0.339 |" in table and "another split" not in table


def test_what_differs_from_the_published_data_is_noted():
    def table(**changes):
        found = report.rows_of("nbody", [record("paper", experiment=nbody.EXPERIMENT, **changes)])
        return report.summary({"nbody": found})

    assert "| trained on windows run backwards too |" in table()
    assert "| num_valid=50 |" in table(data__num_valid=50, data__time_reversal=False)
    assert "backwards" not in table(data__time_reversal=False)
    assert "num_valid" not in report.summary({"mocap": rows(record("run"), record("walk"))})


@pytest.fixture
def with_features(monkeypatch):
    """Gives the data of motion capture an option `features`, of which `original` is published."""
    field = ("features", str, dataclasses.field(default="original"))
    base = mocap.DataConfig
    data = dataclasses.make_dataclass("Data", [field], bases=(base,), frozen=True, kw_only=True)

    def widened(config):
        return data(**{f.name: getattr(config, f.name) for f in dataclasses.fields(base)})

    presets = {
        name: dataclasses.replace(config, data=widened(config.data))
        for name, config in mocap.PRESETS.items()
    }
    original = {"features": "original"}
    experiment = mocap.EXPERIMENT
    experiment = experiment._replace(
        presets=presets,
        published_data=data(),
        task_fields=(*experiment.task_fields, "features"),
        data_words={
            **experiment.data_words,
            "features": {"original": "", "body": "features of the body"},
        },
        published=[
            other._replace(conditions={**other.conditions, **original})
            for other in experiment.published
        ],
        headlines=[{**headline, **original} for headline in experiment.headlines],
    )
    monkeypatch.setitem(report_rows.EXPERIMENTS, "mocap", experiment)
    return experiment


def test_other_features_are_a_task_of_their_own_and_old_records_have_the_original(with_features):
    old = record("walk", f_mse=0.3)
    old["settings"]["data"].pop("features", None)
    new = record("walk", 1, f_mse=0.4, experiment=with_features)
    body = record("walk", f_mse=0.1, experiment=with_features, data__features="body")
    found = rows(old, new, body)
    assert [len(row.records) for row in found] == [1, 2]
    lines = report.summary({"mocap": found}).splitlines()[2:4]
    assert lines[0].startswith("| Motion capture, walking | (5.64 cm)² | 0.35000 ±")
    assert "0.081" in lines[0] and "0.081" not in lines[1]
    assert lines[1].startswith("| Motion capture, walking, features of the body |")
    headline = report_tables.headlines({"mocap": found}, "page", "reasons")
    assert "| 0.35000 ±" in headline and "| 0.10000 |" not in headline


def test_a_mean_field_is_noted_beside_the_error_without_it():
    found = rows(
        *(record("run", seed, 0.1) for seed in range(3)),
        *(record("run", seed, 0.3, model__mean_field=False) for seed in range(3)),
        record("run-egnn", 0, 0.2),
    )
    line = report.summary({"mocap": found})
    assert "EGNO with mean field, without: 0.30000 ±" in line
    extended = {**record("run-egnn", 0, 0.01, model__mean_field=True), "model": "EGNN+"}
    plain = rows(record("run", 0, 0.3, model__mean_field=False), extended)
    assert "EGNN+ | 0.01000" not in report.summary({"mocap": plain})
    assert "EGNN+ | 0.01000" in report.shortfalls({"mocap": plain})
    assert "EGNN+ | 0.01000" in report.summary({"mocap": rows(record("run"), extended)})
    plain = rows(record("run", 0, 0.3, model__mean_field=False))
    assert "mean field" not in report.summary({"mocap": plain})


def test_a_setting_that_is_newer_than_a_run_has_its_default_and_not_that_of_the_preset():
    old, new = record("run"), record("run", 1)
    assert new["settings"]["training"]["noise"]["positions"] > 0
    del old["settings"]["training"]["noise"], old["settings"]["model"]["velocity_scale"]
    found = rows(old, new)
    assert [len(row.records) for row in found] == [1, 1]
    before = next(row for row in found if row.records == [old])
    assert before.settings["training.noise.positions"] == 0
    assert before.settings["model.velocity_scale"] == 1
    assert "`noise.positions=0.0`" in before.name


def test_without_fields_of_its_own_a_task_is_made_by_the_conditions_of_published_results(
    monkeypatch,
):
    conditions = {"motion": "walk", "num_train": 200}
    published = (Published("EGNO", 0.5, None, "somewhere", conditions),)
    experiment = mocap.EXPERIMENT._replace(task_fields=(), published=published)
    monkeypatch.setitem(report_rows.EXPERIMENTS, "mocap", experiment)
    found = rows(record("walk"), record("walk-uniform"), record("walk", data__num_train=100))
    tasks = report_rows.by_task(found)
    assert [dict(task) for task in tasks] == [{**conditions}, {"motion": "walk", "num_train": 100}]
    assert [len(of_task) for of_task in tasks.values()] == [2, 1]


def test_no_two_tasks_are_called_the_same():
    found = rows(record("run"), record("run", data__num_test=600), record("walk"))
    tasks = report_rows.by_task(found)
    assert len({*report_rows.titles(mocap.EXPERIMENT, tasks).values()}) == len(tasks) == 3


def test_a_headline_of_several_tasks_counts(monkeypatch):
    experiment = mocap.EXPERIMENT._replace(headlines=({"protocol": "last"},))
    monkeypatch.setitem(report_rows.EXPERIMENTS, "mocap", experiment)
    found = rows(
        *(record("run", f_mse=0.1), record("run-egnn", f_mse=0.2)),
        *(record("walk", f_mse=0.2), record("walk-egnn", f_mse=0.1)),
    )
    table = report_tables.headlines({"mocap": found}, "page", "reasons")
    assert "| Motion capture | (5.64 cm)² | lower in 1 of 2 | EGNN: lower in 1 |" in table
    assert "In 1 of the 2 tasks" in table and "](page#where-a-baseline-is-ahead)" in table


def test_that_nothing_moves_is_shown_where_a_run_wrote_it_down():
    still = {"still_baseline": {"f_mse": 3.0, "a_mse": 2.0, "mse_per_time": [1.0, 3.0]}}
    line = "| nothing moves | 3.00000 | 2.00000 | – | here |"
    assert line not in report.comparison("mocap", rows(record("run")))
    assert line in report.comparison("mocap", rows({**record("run"), **still}))


def test_a_run_writes_down_the_error_of_predicting_that_nothing_moves(tmp_path):
    config = nbody.PRESETS["quick"]
    run_directory.start(tmp_path / "run", config, "command")
    line = json.dumps({"kind": "valid", "step": 3, "f_mse": 0.1, "seconds": 1.0})
    (tmp_path / "run" / run_directory.METRICS).write_text(f"{line}\n")
    test = datasets.load("test", num_samples=6)
    batch = take(test, np.arange(1))
    params = egno_jax.init(jax.random.key(0), config.model, batch.graph, batch.times)
    results = runner.evaluate(nbody.EXPERIMENT, tmp_path / "run", config, params, test)
    moved = test.positions - np.asarray(test.graph.nodes["positions"])[:, None]
    expected = np.mean(np.square(moved), axis=(0, 2, 3))
    np.testing.assert_allclose(results["still_baseline"]["mse_per_time"], expected, rtol=1e-5)
    np.testing.assert_allclose(results["still_baseline"]["a_mse"], expected.mean(), rtol=1e-5)


def test_columns_of_noise_count_only_where_there_is_noise():
    """Records of proteins that are older than `length_column` repeat with today's presets."""
    column = {"training__noise__length_column": None}
    made = record("transition", experiment=protein.EXPERIMENT, **column)
    settings = report_rows.settings_of(made)
    assert settings == report_rows.preset_settings(made, "transition")
    assert report_rows.preset_of(made) == "transition"
    noisy = record(
        "transition", experiment=protein.EXPERIMENT, training__noise__positions=0.1, **column
    )
    assert report_rows.settings_of(noisy)["training.noise.length_column"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 3},
        {"training__num_steps": 10, "data__height": True, "training__optimizer__b2": 0.9},
        {"training__random_times": "grids", "training__num_times": [5, 7], "data__dense": True},
        {"model__dtype": "float32", "data__num_train": 400},
        {"preset": "walk-dense", "data__dense": False},
    ],
)
def test_the_command_of_today_asks_for_the_settings_of_the_run(changes):
    made = record(**{"preset": "walk", **changes})
    words = report_rows.command_today(made).split()
    options, config = command_line.parse(
        words[3:],
        program="program",
        summary="",
        config_class=mocap.MocapConfig,
        presets=mocap.PRESETS,
        descriptions=mocap.DESCRIPTIONS,
        read_config=None,
    )
    found, wanted = (
        {**tree, "preset": None} for tree in (run_directory.plain(config), made["settings"])
    )
    assert found == wanted
    assert options.out.name == made["name"]


def test_the_command_of_a_run_is_kept_where_it_asks_for_something_else_today():
    now = record("walk", 1, data__height=True)
    now["command"] = (
        "python -m experiments.mocap --preset=walk --training.optimizer.warmup_steps 400 "
        "--data.height --out runs/x --training.seed 1 --data.data-dir /x --training.batch-size 12"
    )
    assert report_rows.is_repeatable(now)
    assert now["command"] not in report_tables.commands(rows(now))
    then = record("walk", training__num_steps=99)
    assert not report_rows.is_repeatable(then)
    assert f"# made at 0123456 by: {then['command']}" in report_tables.commands(rows(then))


def test_every_model_has_one_style_and_no_two_known_ones_share_it():
    styles = [report_figures._style(model) for model in report_figures._STYLES]
    assert len({*styles}) == len({color for color, _ in styles}) == len(styles)
    assert report_figures._style("my model") == report_figures._style("my model")
    points = report_figures._points(rows(record("walk"), record("walk-egnn", **WARMUP)))
    ours, baseline, *published = points
    assert not ours.other_settings and baseline.other_settings
    assert all(point.other_split and not point.is_ours for point in published)


def test_own_runs_are_tabulated_elsewhere_and_what_is_written_is_printed(published, capsys):
    run = make_run(published / "a")
    (published / "RESULTS.md").write_text("as it was")
    readme = (published / "README.md").read_text()
    out = published / "mine"
    assert report.main(["--out", str(out), str(run)]) == 0
    written = [out / "results" / "a.json", out / "results" / "nbody.png", out / "RESULTS.md"]
    assert capsys.readouterr().out.split() == [*map(str, written)]
    assert all(path.stat().st_size for path in written)
    assert (published / "RESULTS.md").read_text() == "as it was"
    assert (published / "README.md").read_text() == readme
    assert not (published / "results").exists()
    assert report.main(["--out", str(published / "empty")]) == 2
    assert "there are no results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("experiment", "chess", "experiment: got 'chess'"), ("preset", "vast", "preset: got 'vast'")],
)
def test_a_record_of_no_experiment_or_preset_is_named(key, value, message, tmp_path, capsys):
    made = record("walk")
    (made if key == "experiment" else made["settings"])[key] = value
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "odd.json").write_text(json.dumps(made))
    assert report.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "odd.json" in error and message in error


@pytest.mark.parametrize(
    ("error", "other", "words"), [(1.0, 4.0, "25 %"), (3.0, 2.0, "1.5 times"), (1.0, 1.0, "100 %")]
)
def test_a_run_says_how_its_error_compares_with_going_straight_on(error, other, words):
    assert run_page._relative(error, other) == words


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


@pytest.mark.parametrize(
    ("options", "published_options"),
    [
        ("--out=/x/y --training.seed 1", "--out=runs/y --training.seed 1"),
        ("--evaluate /x/y", "--evaluate runs/y"),
        ("--out runs/y --auto-resume", "--out runs/y --auto-resume"),
        ("--data.data-dir /mnt/d/mocap --data.num-train 9", "--data.num-train 9"),
        ("--data.cache_dir=/mnt/d --out 'runs/a b'", "--out 'runs/a b'"),
        ("--data.topology /x/adk.psf", "--data.topology /x/adk.psf"),
        ("--preset run --data.data-dir d", "--preset run"),
    ],
)
def test_a_published_command_stays_true(options, published_options):
    program = "python -m experiments.mocap"
    assert report._anywhere(f"{program} {options}") == f"{program} {published_options}"


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
    shutil.copytree(report._RECORDS, tmp_path / "results")
    monkeypatch.setattr(report, "_RECORDS", tmp_path / "results")
    monkeypatch.setattr(report, "_README", readme)
    monkeypatch.setattr(report, "_PAGE", tmp_path / "RESULTS.md")
    report.build()
    assert (tmp_path / "RESULTS.md").read_text() == committed
    assert readme.read_text() == (report._ROOT / "README.md").read_text()
