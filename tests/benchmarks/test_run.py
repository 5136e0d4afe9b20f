"""The whole way on one tiny case: workers, rounds, records, page; and what is refused."""

from __future__ import annotations

import json

import pytest

from benchmarks import records, run


def test_a_smoke_run_end_to_end(tmp_path, capsys):
    arguments = ["--quick", "--what", "inference", "--peers", "egno_jax", "--out", str(tmp_path)]
    assert run.main(arguments) == 0
    (path,) = (tmp_path / "results").glob("run-*.json")
    record = json.loads(path.read_text())
    (entry,) = record["entries"].values()
    assert entry["seconds"]["egno_jax"]["median"] > 0
    assert entry["compile"]["egno_jax"] > 0
    assert record["runs"][entry["run"]]["command"].startswith(
        "python -m benchmarks.run --only tiny"
    )
    assert "| tiny (N 18, E 64, P 5, C 16, L 1) |" in (tmp_path / "RESULTS.md").read_text()
    assert "inference/tiny: egno_jax" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--only", "--what", "--peers"])
def test_an_unknown_word_is_refused_with_those_known(option, capsys):
    with pytest.raises(SystemExit):
        run.parse([option, "nonsense"])
    assert "got ['nonsense'], expected some of" in capsys.readouterr().err


def test_entries_keep_the_run_that_made_them():
    first = records.merge(records.EMPTY, {"date": "then"}, {"a": {"x": 1}, "b": {"x": 2}})
    second = records.merge(first, {"date": "now"}, {"b": {"x": 3}})
    runs, entries = second["runs"], second["entries"]
    assert {name: (e["x"], runs[e["run"]]["date"]) for name, e in entries.items()} == {
        "a": (1, "then"),
        "b": (3, "now"),
    }


def test_a_run_without_entries_is_forgotten():
    first = records.merge(records.EMPTY, {"date": "then"}, {"a": {}})
    second = records.merge(first, {"date": "now"}, {"a": {}})
    assert [run["date"] for run in second["runs"].values()] == ["now"]


def test_records_survive_their_file(tmp_path):
    record = records.merge(records.EMPTY, {"date": "now"}, {"a": {"x": [1.23456789e-5, 3, "y"]}})
    records.write(tmp_path / "there" / "run-cpu.json", record)
    read = records.read(tmp_path / "there" / "run-cpu.json")
    assert read["entries"]["a"]["x"] == [1.23457e-5, 3, "y"]
    assert records.read(tmp_path / "nothing.json") == records.EMPTY
