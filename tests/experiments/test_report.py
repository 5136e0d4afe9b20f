"""Published tables: made only from finished runs, seeds grouped, selected on the validation set."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

from egno_jax import baselines
from experiments import dot_plot, mocap, report, run_directory, run_page, settings
from experiments import run_records as records
from experiments.run_records import EXPERIMENTS, Row


def row(name, *f_mses, valid=None, experiment="mocap", single=False, **changes):
    """Returns a row of a run for each error; `training__num_steps=100` changes a setting."""
    config = EXPERIMENTS[experiment].config(name)[0]
    for path, value in changes.items():
        tree = value
        for key in reversed(path.split("__")):
            tree = {key: tree}
        config = settings.changed(config, tree)
    made = [
        {
            "name": f"{name}-seed{seed}",
            "experiment": experiment,
            "config": name,
            "varied": {},
            "seed": seed,
            "model": baselines.title(config.model),
            "f_mse": f_mse,
            "a_mse": f_mse / 2,
            "valid_f_mse": f_mse if valid is None else valid,
            "steps": config.training.num_steps,
            "train_seconds": 60.0,
            "mse_per_time": [f_mse] if single else [f_mse / 4, f_mse],
            "linear_baseline": {"f_mse": 9.0, "a_mse": 5.0, "mse_per_time": [1.0, 9.0]},
        }
        for seed, f_mse in enumerate(f_mses)
    ]
    return Row(name, config, made)


WARMUP = {"training__optimizer__warmup_steps": 500}


def summary(*rows):
    ours = records.selected(rows)
    return report.table(report._SUMMARY, [report.summary("task", ours, rows)]).splitlines()[-1]


def behind(*rows):
    return [cells for _, cells in report.ahead("task", records.selected(rows), rows)]


def test_the_validation_set_selects_and_the_test_set_does_not():
    good, lucky = row("walk", 0.2, valid=0.1), row("walk-noise0.05", 0.1, valid=0.2)
    assert records.selected([good, lucky]) is good
    first, second = records.rivals(
        [row("walk-egnn", 0.2, valid=0.1), row("walk-mpnn", 0.1, valid=0.2)], good
    )
    assert (first.row.model, second.row.model) == ("EGNN", "MPNN")


def test_settings_of_few_seeds_stand_for_a_model_only_where_there_are_no_others():
    single = row("walk", 0.1, valid=0.01, **WARMUP)
    several = row("walk", 0.1, 0.1, 0.1, valid=0.1)
    many = row("walk", *[0.1] * 5, valid=0.2, training__num_steps=6400)
    assert records.selected([single, several, many]) is several
    assert records.selected([single, row("walk", 0.1)]) is single
    assert records.selected([row("walk-egnn", 0.1)]) is None


def test_a_baseline_is_compared_with_the_row_that_was_trained_as_it_was():
    ours = [row("walk", 0.070, **WARMUP), row("walk", 0.075, valid=0.9)]
    alike, other = row("walk-egnn", 0.09, **WARMUP), row("walk-egnn", 0.08, valid=0.01)
    line = summary(*ours, alike, other)
    assert "| EGNN: 0.09000 |" in line and "†" not in line
    assert "| EGNN † (`warmup_steps=400`): 0.08000 |" in summary(*ours, other)


def test_a_baseline_that_is_ahead_with_its_own_settings_is_not_hidden():
    ours = [row("walk", 0.070, **WARMUP), row("walk", 0.075, valid=0.9)]
    assert not behind(*ours, row("walk-mpnn", 0.071, single=True))
    (cells,) = behind(*ours, row("walk-mpnn", 0.069, single=True))
    assert cells[1:5] == ["F-MSE", "0.07000", "MPNN † (`warmup_steps=400`)", "0.06900"]
    longer = row("walk-mpnn", 0.01, single=True, training__num_steps=6400)
    assert not behind(*ours, longer) and "| MPNN † (" in summary(*ours, longer)
    other = row("walk-mpnn", 0.01, training__num_steps=6400, training__batch_size=24)
    assert "| MPNN † (`walk-mpnn`): 0.01000 |" in summary(*ours, other)
    both = behind(row("walk", 0.07), row("walk-egnn-s", 0.069))
    assert [cells[1] for cells in both] == ["F-MSE", "A-MSE"]


def test_figures_from_another_split_are_marked_wherever_they_stand_beside_ours():
    for text in (summary(row("walk", 0.07)), report.task_table([row("walk", 0.07)])):
        assert "| 0.081\\* |" in text
    for text in (summary(row("run", 0.07)), report.task_table([row("run", 0.07)])):
        assert "| 0.339 |" in text and "\\*" not in text


def test_global_message_passing_is_noted_with_the_error_without_it():
    plain = row("run-6x128", 0.3, 0.3, 0.3)
    extended = row("run-egnn-global64", 0.01)
    line = summary(row("run", 0.1, 0.1, 0.1), plain, row("run-egnn", 0.2))
    assert "without global message passing 0.30000 ± 0.00000" in line
    assert "EGNN with" not in summary(plain, extended)
    assert behind(plain, extended)[0][3].startswith("EGNN with")
    assert "EGNN with" in summary(row("run", 0.1), extended)
    assert "global" not in summary(plain)


def test_the_table_of_a_task_shows_every_row_and_marks_what_is_ahead():
    rows = [row("walk", 0.07, 0.08, 0.09), row("walk-mpnn", 0.06, single=True)]
    still = {"f_mse": 3.0, "a_mse": 2.0, "mse_per_time": [1.0, 3.0]}
    rows[0].records[0]["still_baseline"] = still
    lines = report.task_table(rows).splitlines()[2:]
    spread = "| 0.08000 ± 0.01000 | 0.04000 ± 0.00500 | 0.08000 ± 0.01000 | 3 | 3200 | 1.0 |"
    assert lines[0] == f"| **EGNO** | `walk` {spread}"
    assert lines[1] == "| MPNN ▲ | `walk-mpnn` | 0.06000 | – | 0.06000 | 1 | 3200 | 1.0 |"
    assert lines[2] == "| x + v t | – | 9.00000 | 5.00000 | – | – | – | – |"
    assert lines[3] == "| nothing moves | – | 3.00000 | 2.00000 | – | – | – | – |"
    assert len(lines) == 4 + 5


def test_tasks_are_told_apart_by_all_that_makes_them_easier_or_harder():
    walk = mocap.EXPERIMENT.config("walk")[0].data
    changes = ({}, {"protocol": "uniform"}, {"num_train": 100}, {"num_test": 5}, {"height": True})
    names = {mocap.task(dataclasses.replace(walk, **change)) for change in changes}
    assert len(names) == 5 and "walking" in names
    assert mocap.task(dataclasses.replace(walk, num_valid=5)) == "walking"


def test_a_summary_of_several_tasks_counts():
    rows = {
        "run": [row("run", 0.1), row("run-egnn", 0.2)],
        "walk": [row("walk", 0.3), row("walk-egnn", 0.2)],
    }
    cells = report.count("Motion", [("", own[0], own) for own in rows.values()])
    assert cells[2:4] == ["lower in 1 of 2", "EGNN: lower in 1"]
    assert cells[-2:] == ["1 / 1", "`run`, `walk`"]


def test_every_model_has_one_style_and_no_two_known_ones_share_it():
    styles = [dot_plot.style(model) for model in dot_plot._STYLES]
    assert len({*styles}) == len({color for color, _ in styles}) == len(styles)
    assert dot_plot.style("my model") == dot_plot.style("my model")
    found = list(dot_plot.points([row("walk", 0.1), row("walk-egnn", 0.1, **WARMUP)]))
    assert [mark for *_, mark in found] == ["", "†", "*", "*", "*", "*", "*"]
    assert [published for _, published, *_ in found] == [False, False, *[True] * 5]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Directs what is written to a folder of the test, with a README that has the marks."""
    (tmp_path / "README.md").write_text(f"before\n{report._BEGIN}\nold\n{report._END}\nafter\n")
    monkeypatch.setattr(report, "_README", tmp_path / "README.md")
    monkeypatch.setattr(report, "_PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "_IMAGES", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(settings, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs" / "nbody").mkdir(parents=True)
    for name in EXPERIMENTS["nbody"].presets:
        source = run_page.Path(report.__file__).parent / "configs" / "nbody" / f"{name}.yaml"
        shutil.copy(source, tmp_path / "configs" / "nbody")
    return tmp_path


def published(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_run_is_published_with_its_config(repository, copy, capsys):
    assert report.main([str(copy)]) == 2
    assert f"report --freeze NAME {copy}" in capsys.readouterr().err
    assert report.main(["--freeze", "quick", str(copy)]) == 2
    assert "exists with other settings" in capsys.readouterr().err
    assert not (repository / "results.jsonl").exists()
    assert report.main(["--freeze", "tiny", "--description", "A test.", str(copy)]) == 0
    made, description = EXPERIMENTS["nbody"].config("tiny")
    assert description == "A test." and made.model.hidden_dim == 8 and made.training.seed == 0
    (line,) = published(repository)
    results = json.loads((copy / "results.json").read_text())
    assert (line["name"], line["config"], line["seed"]) == ("run", "tiny", 3)
    for key in results.keys() - {"command", "preset", "finished"}:
        assert line[key] == results[key], key
    assert str(repository) not in json.dumps(line) and "settings" not in line
    readme = (repository / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith(f"{report._END}\nafter\n")
    assert "old" not in readme
    page = (repository / "RESULTS.md").read_text()
    assert "| **EGNO** | `tiny` |" in page and "](results/nbody.png)" in page
    assert (repository / "results" / "nbody.png").stat().st_size > 1000
    assert report.main([str(copy)]) == 2
    assert "holds run with the same name, or the same settings and seed" in capsys.readouterr().err
    again = copy.with_name("again")
    shutil.copytree(copy, again)
    assert report.main([str(again)]) == 2
    assert len(published(repository)) == 1


def test_only_finished_runs_are_published(repository, copy, capsys):
    results = json.loads((copy / "results.json").read_text())
    run_directory.write_json(copy / "results.json", {**results, "finished": False, "steps": 8})
    assert report.main(["--freeze", "tiny", str(copy)]) == 2
    assert "ended at step 8 of 12; only finished runs" in capsys.readouterr().err
    assert report.main([str(repository)]) == 2
    assert "there is no results.json" in capsys.readouterr().err
    assert not (repository / "results.jsonl").exists()


def test_own_runs_are_tabulated_elsewhere(repository, copy, capsys):
    (repository / "RESULTS.md").write_text("as it was")
    readme = (repository / "README.md").read_text()
    out = repository / "mine"
    for _ in range(2):  # the same run again replaces itself
        assert report.main(["--out", str(out), str(copy)]) == 0
    assert capsys.readouterr().out.split()[-1] == str(out / "RESULTS.md")
    assert (out / "configs" / "nbody" / "run.yaml").exists()
    assert "`run`" in (out / "RESULTS.md").read_text() and len(published(out)) == 1
    assert (repository / "RESULTS.md").read_text() == "as it was"
    assert (repository / "README.md").read_text() == readme
    assert not (repository / "results.jsonl").exists()
    assert report.main(["--out", str(repository / "empty")]) == 2
    assert "there are no results" in capsys.readouterr().err


def test_a_setting_that_may_vary_needs_no_config_of_its_own(tmp_path):
    """Molecules differ as seeds do: one config serves all of them."""
    made = EXPERIMENTS["md17"].config("quick")[0]
    data = dataclasses.replace(made.data, molecule="ethanol", split="blocks")
    run_directory.start(tmp_path / "run", dataclasses.replace(made, data=data), "command")
    results = {"experiment": "md17", "finished": True, "command": "c", "seed": 0, "model": "EGNO"}
    results |= (
        {key: 0 for key in records._FIRST if key not in ("name", "config", "varied")}
        | {"mse_per_time": [0]}
        | results
    )
    run_directory.write_json(tmp_path / "run" / "results.json", results)
    assert records.append(tmp_path / "run", tmp_path / "results.jsonl") == "run: quick"
    (found,) = records.load(tmp_path / "results.jsonl")
    assert found.records[0]["varied"] == {"data.molecule": "ethanol", "data.split": "blocks"}
    assert found.task == "ethanol, blocks of time" and found.settings.data == data


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("experiment", "chess", "experiment: got 'chess', expected one of"),
        ("config", "vast", "config: got 'vast', expected a file in"),
        ("fingerprint", "0", "was edited"),
    ],
)
def test_a_line_of_no_experiment_or_config_is_named(key, value, message, tmp_path):
    line = json.loads(records.RESULTS.read_text().splitlines()[0]) | {key: value}
    (tmp_path / "results.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match=line["name"]) as error:
        records.load(tmp_path / "results.jsonl")
    assert message in str(error.value)


def test_the_moving_picture_of_a_run_comes_to_the_docs(repository, copy, capsys):
    report.main(["--freeze", "tiny", str(copy)])
    assert report.main(["--picture", str(copy)]) == 2
    assert "trajectories.gif" in capsys.readouterr().err
    (copy / "pictures" / "trajectories.gif").write_bytes(b"GIF89a")
    assert report.main(["--picture", str(copy)]) == 0
    assert (repository / "nbody.gif").read_bytes() == b"GIF89a"


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
    assert records.portable(f"{program} {options}") == f"{program} {published_options}"


@pytest.mark.parametrize(
    ("error", "other", "words"), [(1.0, 4.0, "25 %"), (3.0, 2.0, "1.5 times"), (1.0, 1.0, "100 %")]
)
def test_a_run_says_how_its_error_compares_with_going_straight_on(error, other, words):
    assert run_page._relative(error, other) == words


def test_the_committed_tables_are_those_of_the_committed_results(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(report._README.read_text())
    monkeypatch.setattr(dot_plot, "draw", lambda *_: True)
    report.build(records.load(), tmp_path / "RESULTS.md", readme)
    assert (tmp_path / "RESULTS.md").read_text() == report._PAGE.read_text()
    assert readme.read_text() == report._README.read_text()
    assert report._PAGE.stat().st_size <= 40_000
    names = [json.loads(line)["name"] for line in records.RESULTS.read_text().splitlines()]
    assert len({*names}) == len(names) >= 165
    assert np.isfinite([row.mean("f_mse") for row in records.load()]).all()
