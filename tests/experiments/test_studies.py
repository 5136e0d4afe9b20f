"""Studies: what they rest on, and their command lines."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from egno_jax.datasets import nbody
from experiments.studies import leakage, paths, sizes, symmetry
from experiments.studies.study import PUBLISHED, main

STUDIES = ("leakage", "long_windows", "modes", "resolution", "rough", "sizes", "symmetry")


def test_paths_at_whole_frames_are_the_canonical_simulations():
    found = paths.simulate("test", 3, [25, 200, 1000])
    canonical = nbody.canonical("test", num_simulations=3)
    assert found.steps.tolist() == [0, 25, 200, 1000]
    for field in ("positions", "velocities"):
        frames = getattr(canonical, field)[:, [nbody.START, nbody.START + 2, nbody.START + 10]]
        np.testing.assert_array_equal(getattr(found.trajectories, field)[:, [0, 2, 3]], frames)
    cut = paths.samples_at(found, [25, 1000])
    assert cut.times.tolist() == [0.25, 10.0]
    with pytest.raises(ValueError, match=r"got \[30\], of which some were not kept"):
        paths.samples_at(found, [30])


def test_an_error_curve_is_interpolated_from_zero():
    assert paths.error_at([1.0, 3.0], [1.0, 2.0], [0.5, 1.5]) == pytest.approx((0.5 + 2.0) / 2)


def test_systems_of_any_size_are_padded_to_one():
    samples = sizes._samples(sizes.simulate(0, 3, 2))
    grown = sizes.padded(samples, 5)
    assert grown.positions.shape == (2, 5, 6, 3)
    assert grown.node_mask.sum(1).tolist() == [3, 3]
    assert grown.graph.n_node.tolist() == [[3, 3], [3, 3]]
    assert grown.graph.senders.shape == (2, 21)
    np.testing.assert_array_equal(grown.positions[:, :, :3], samples.positions)


def test_rotations_are_rotations():
    turn = symmetry._rotation(np.array([0.6, 0.0, 0.8]), math.pi - 1e-6)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(turn) == pytest.approx(1)
    assert np.trace(turn) == pytest.approx(1 + 2 * math.cos(math.pi - 1e-6))


def test_coefficients_of_what_is_asked_leak():
    """The first mode of a ramp is 64 % off its limit at P = 5 and 5 % at 64, as a sum shows."""
    size = leakage.SIZES["default"]

    def ramp(times):
        return times[:, None]

    def first(scheme, times):
        return leakage.coefficients(scheme, ramp, times, size)[1, 0]

    limit = 1j / (2 * math.pi)
    for number, error in ((5, 0.643), (64, 0.049)):
        found = abs(first("index", leakage.uniform(number)) - limit) / abs(limit)
        assert found == pytest.approx(error, abs=1e-3)
    fine = leakage.uniform(4096)
    assert first("quadrature", fine) == pytest.approx(limit, rel=1e-3)
    own = first("index", leakage.uniform(size.num_context))
    for times in (fine, np.array([0.1, 0.7, 1.0])):
        assert first("context", times) == own
        assert leakage.cells(times).sum() == pytest.approx(1)


@pytest.mark.slow
def test_a_study_runs_draws_and_goes_on_where_it_was(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--size", "smoke", "--out", str(tmp_path / "out")]
    assert main(symmetry.STUDY, arguments) == 0
    record = json.loads((tmp_path / "out" / "symmetry.json").read_text())
    assert record["study"] == "symmetry"
    assert record["models"]["5 bodies"]["steps"] == 2
    assert record["errors"]["turn by pi"]["float64"] < 1e-12
    assert record["errors"]["shift by 1000 sizes"]["input"] > 1e-6
    assert (tmp_path / "out" / "symmetry.png").stat().st_size > 1000
    assert main(symmetry.STUDY, arguments) == 0
    again = json.loads((tmp_path / "out" / "symmetry.json").read_text())
    assert again["errors"] == record["errors"]


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_published_can_be_drawn(name):
    pytest.importorskip("matplotlib")
    module = pytest.importorskip(f"experiments.studies.{name}")
    path = PUBLISHED / f"{name}.json"
    if not path.exists():
        pytest.skip("not published yet")
    record = json.loads(path.read_text())
    assert record["size"] == "default"
    assert not record["git_commit"].endswith("-dirty")
    assert module.STUDY.draw(record).axes
