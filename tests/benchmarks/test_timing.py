"""What is read off the times of peers that run in turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import timing


@given(st.floats(-3, 3), st.floats(1e-6, 1e3))
def test_exponent_of_a_power_law(power, factor):
    sizes = np.array([2, 4, 8, 32, 64])
    assert timing.exponent(sizes, factor * sizes**power) == pytest.approx(power, abs=1e-9)


def test_the_ratio_is_taken_within_rounds():
    # The machine is ten times slower in the second round, for both.
    assert timing.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])["median"] == 2.0


def test_summary():
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "q1": 2.0,
        "q3": 4.0,
        "rounds": 5,
    }


def test_peers_take_turns_and_begin_in_turn(monkeypatch):
    monkeypatch.setattr(timing, "_PAUSE_SECONDS", 0.0)
    order = []

    def turn(name, seconds):
        def call(calls):
            order.append((name, calls))
            return seconds

        return call

    turns = timing.interleave({"a": turn("a", 0.1), "b": turn("b", 1.0)}, budget=0.0, least=2)
    warm_up, rounds = order[:2], order[2:]
    assert warm_up == [("a", 1), ("b", 1)]
    assert rounds == [("a", 2), ("b", 1), ("b", 1), ("a", 2)]
    assert turns.calls == {"a": 2, "b": 1}
    assert turns.seconds == {"a": [0.1, 0.1], "b": [1.0, 1.0]}


def test_a_package_that_is_missing_leaves_its_peer_out(capsys, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'{"missing": "No module named torch"}\'\n')
    python.chmod(0o755)
    with timing.workers({"pina": str(python)}) as peers:
        assert peers == {}
    assert "pina is left out: No module named torch" in capsys.readouterr().out


def test_a_worker_that_dies_says_why(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(timing.Failed, match=r"status 3\nout of luck"):
        timing.Worker("pina", str(python))
