"""Predicted trajectories as Universes of MDAnalysis."""

from __future__ import annotations

import numpy as np
import pytest

from egno_jax.mdanalysis import universe_of

mda = pytest.importorskip("MDAnalysis")


def universe():
    found = mda.Universe.empty(4, n_residues=2, atom_resindex=[0, 0, 1, 1], trajectory=True)
    found.add_TopologyAttr("name", ["N", "CA", "N", "CA"])
    found.add_TopologyAttr("bonds", [(0, 1), (2, 3)])
    found.dimensions = [10, 11, 12, 90, 90, 90]
    return found


def test_a_prediction_is_a_trajectory_with_the_names_of_its_atoms(tmp_path):
    rng = np.random.default_rng(0)
    positions, velocities = rng.normal(size=(2, 5, 4, 3))
    times = np.arange(1, 6) * 20.0  # fs
    found = universe_of(universe(), positions, times, velocities=velocities)
    assert list(found.atoms.names) == ["N", "CA", "N", "CA"]
    assert len(found.bonds) == 2
    assert [ts.time for ts in found.trajectory] == pytest.approx(times / 1000)
    for ts, x, v in zip(found.trajectory, positions, velocities, strict=True):
        np.testing.assert_allclose(ts.positions, x, rtol=1e-6)
        np.testing.assert_allclose(ts.velocities, 1000 * v, rtol=1e-6)  # Angstrom / ps
        np.testing.assert_allclose(ts.dimensions, [10, 11, 12, 90, 90, 90])
    path = str(tmp_path / "predicted.xtc")
    found.atoms.write(path, frames="all")
    back = mda.coordinates.XTC.XTCReader(path)
    assert [ts.time for ts in back] == pytest.approx(times / 1000)
    np.testing.assert_allclose([ts.positions.copy() for ts in back], positions, atol=0.01)


def test_a_selection_and_a_cell_can_be_given():
    positions = np.zeros((3, 2, 3))
    group = universe().select_atoms("name CA")
    found = universe_of(group, positions, [0, 1, 2], dimensions=[5, 5, 5, 90, 90, 60], time_unit=1)
    assert list(found.atoms.names) == ["CA", "CA"]
    assert found.trajectory.dt == pytest.approx(1)
    np.testing.assert_allclose(found.dimensions, [5, 5, 5, 90, 90, 60])


@pytest.mark.parametrize(
    ("positions", "times", "match"),
    [
        (np.zeros((3, 5, 3)), [0, 1, 2], "positions: got"),
        (np.full((3, 4, 3), np.nan), [0, 1, 2], "positions"),
        (np.zeros((3, 4, 3)), [0, 1], "times: got"),
        (np.zeros((3, 4, 3)), [0, 1, 3], "times: got .*evenly"),
    ],
)
def test_wrong_inputs_are_refused(positions, times, match):
    with pytest.raises(ValueError, match=match):
        universe_of(universe(), positions, times)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_times_are_judged_relative_to_their_step(scale):
    positions, unit = np.zeros((4, 4, 3)), 1e-3 / scale
    found = universe_of(universe(), positions, scale * np.arange(4), time_unit=unit)
    assert found.trajectory.dt == pytest.approx(1e-3)
    with pytest.raises(ValueError, match=r"times: got .*evenly"):
        universe_of(universe(), positions, scale * np.array([0, 1, 2, 4.0]), time_unit=unit)


def test_times_keep_double_precision():
    found = universe_of(universe(), np.zeros((4, 4, 3)), 1e8 + np.arange(4), time_unit=1)
    assert [ts.time for ts in found.trajectory] == [1e8, 1e8 + 1, 1e8 + 2, 1e8 + 3]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        *[({"time_unit": unit}, "time_unit: got") for unit in (0.0, -1.0, np.nan, np.inf)],
        ({"velocities": np.full((1, 4, 3), np.nan)}, "velocities: got nan"),
        ({"velocities": np.full((1, 4, 3), 1e30), "time_unit": 1e-20}, "velocities: got inf"),
        ({"dimensions": [5, 5, 0, 90, 90, 90]}, "dimensions: got .* above 0"),
        ({"dimensions": [5, 5, np.nan, 90, 90, 90]}, "dimensions: got .* finite"),
        ({"dimensions": [5, -5, 5, 90, 90, 90]}, "dimensions: got .* above 0"),
        ({"dimensions": [5, 5, 5]}, r"dimensions: got .* \[3\]"),
        ({"times": [np.nan]}, "times: got"),
        ({"times": None}, "times: got"),
    ],
)
def test_numbers_without_meaning_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        universe_of(universe(), np.zeros((1, 4, 3)), **{"times": [0.0], **options})
