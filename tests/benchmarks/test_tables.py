"""The page holds what the records say, and judges it by the goals."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import records, tables

RUN = {
    "name": "run-cpu",
    "command": "python -m benchmarks.run",
    "commit": "0123456",
    "device": "cpu, Some Processor",
    "threads": {"egno_jax": 2, "pina": 2},
    "python": "3.11.7",
    "versions": {"jax": "0.10.2", "torch": "2.13.0"},
    "date": "2026-01-02 03:04 UTC",
}
SIZES = {"G": 100, "N": 500, "E": 2000, "P": 5, "C": 64, "L": 4, "M": 2}


def spread(value):
    return {"median": value, "q1": 0.9 * value, "q3": 1.1 * value, "rounds": 5}


def timed(ours, pina):
    return {
        "sizes": SIZES,
        "seconds": {"egno_jax": spread(ours), "pina": spread(pina)},
        "ratio": {"pina": spread(pina / ours)},
        "compile": {"egno_jax": 7.25},
        "parameters": {"egno_jax": 145832, "pina": 150000},
        "notes": {"pina": ["PINA is not the same"]},
    }


def floor(seconds):
    part = {"count": 3e9, "seconds": seconds}
    total = {"seconds": seconds, "operations": 3e9, "parts": {"phi_x": part}}
    known = {"forward 4x4x4": {"rate": 9e10, "by": "XLA"}}
    speeds = {"copy": 2e10, "silu": 1e9, "derivative": 1e9, "products": known}
    return {"sizes": SIZES, "inference": total, "step": total, "rates": speeds}


def scaled(exponent, growth):
    found = {
        "seconds": [spread(0.01), spread(0.1)],
        "exponent": exponent,
        "last_over_first": growth,
    }
    return {"size": "P, times", "values": [4, 40], "limit": 1.05, "step": found, "inference": found}


def memory(ours, pina):
    return {
        "sizes": SIZES,
        "memory": {
            "egno_jax": {"run": ours, "peak": 4 * ours, "base": 3e8, "of": "host"},
            "pina": {"run": pina, "peak": pina, "base": 3e8, "of": "host"},
        },
    }


ENTRIES = {
    "step/nbody-p5": timed(0.04, 0.12),
    "inference/nbody-p5": timed(0.02, 0.04),
    "floor/nbody-p5": floor(0.025),
    "memory-step/nbody-p5": memory(5e7, 2e8),
    "scaling/times": scaled(1.01, 10.2),
    "scaling/modes": {**scaled(0.2, 1.3), "limit": None},
    "compile/nbody-p5": {"step": {"egno_jax": 5.5, "naive": 9.0}, "inference": {"egno_jax": None}},
    "profile/nbody-p5": {
        "step_seconds": 0.04,
        "kinds": {
            "dot": {"count": 12.0, "seconds": 0.03},
            "fusion": {"count": 4.0, "seconds": 0.01},
        },
        "ops": [{"name": "dot.1", "kind": "dot", "seconds": 0.02}],
    },
    "target/nbody-p5": {
        "target": 0.0135,
        "fits": {
            "egno_jax": {"is_reached": True, "step": 300, "seconds": 34.0, "best_f_mse": 0.0126},
            "pina": {"is_reached": False, "step": 450, "seconds": 102.0, "best_f_mse": 0.0152},
        },
    },
}


def page(entries):
    record = records.merge(records.EMPTY, RUN, entries)
    return tables.page(json.loads(json.dumps(record)))


def row(text, *beginnings):
    """Returns the cells of the one row that begins so, in the section that holds it."""
    (line,) = (x for x in text.splitlines() if x.startswith(beginnings))
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(text, title):
    return text.split(f"### {title}\n")[1].split("\n### ")[0]


def test_speed_is_judged_by_the_goals():
    text = page(ENTRIES)
    step = row(section(text, "Training step"), "| nbody-p5")
    assert step[1:3] == ["40 ms", "120 ms"]
    assert step[4:6] == ["3.00 [2.70, 3.30]", "yes"]
    assert step[6:] == ["25 ms", "1.60", "yes"]
    inference = row(section(text, "Inference"), "| nbody-p5")
    assert inference[4:6] == ["2.00 [1.80, 2.20]", "**no**"]


def test_memory_is_judged_with_and_without_compiling():
    cells = row(section(page(ENTRIES), "Peak memory, training step"), "| nbody-p5")
    assert cells[-4:] == ["0.25", "yes", "1.00", "**no**"]


def test_growth_is_judged():
    text = section(page(ENTRIES), "Scaling")
    assert row(text, "| times: P, times | Training step")[-3:] == [
        "10.20",
        "exponent at most 1.05",
        "yes",
    ]
    assert row(text, "| modes: P, times | Inference")[-1] == "**no**"


def test_what_made_an_entry_stands_there():
    text = section(page(ENTRIES), "What made these results")
    assert "| 1 | `python -m benchmarks.run` | 0123456 | 2026-01-02 03:04 UTC |" in text
    assert "step/nbody-p5" in text
    assert "- PINA is not the same." in page(ENTRIES)


def test_a_peer_that_is_missing_leaves_a_gap():
    alone = timed(0.04, 0.12)
    alone["seconds"].pop("pina")
    alone["ratio"], alone["notes"] = {}, {}
    cells = row(page({"step/nbody-p5": alone}), "| nbody-p5 (")
    assert "not measured" in cells


@pytest.mark.parametrize("with_matplotlib", [True, False])
def test_the_page_and_its_pictures_are_made_of_the_records_alone(
    tmp_path, monkeypatch, with_matplotlib
):
    if with_matplotlib:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "results" / "run-cpu.json"
    records.write(path, records.merge(records.EMPTY, RUN, ENTRIES))
    (tmp_path / "results" / "spectral-cpu.md").write_text("# FFT or DFT\n")
    tables.write(tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## cpu, Some Processor" in text
    assert "[spectral-cpu](results/spectral-cpu.md)" in text
    for image in ("run-cpu-times.png", "run-cpu-scaling.png"):
        assert (f"](results/{image})" in text) == with_matplotlib
        assert (tmp_path / "results" / image).is_file() == with_matplotlib


def test_what_is_measured_on_request_has_its_rows():
    text = page(ENTRIES)
    assert row(text, "| nbody-p5, training step") == ["nbody-p5, training step", "5.5", "9.0"]
    assert row(text, "| nbody-p5, inference") == ["nbody-p5, inference", "7.2", ""]
    assert row(text, "| dot |") == ["dot", "12", "30 ms", "75%"]
    assert row(text, "| dot.1 |") == ["dot.1", "dot", "20 ms"]
    assert row(text, "| pina | 0.0135")[2:] == ["no, best 0.0152", "450", "102.0 s", "3.00"]


def test_every_kind_of_entry_has_its_line():
    for name, entry in ENTRIES.items():
        assert tables.line(name, entry).startswith(f"{name}: ")
