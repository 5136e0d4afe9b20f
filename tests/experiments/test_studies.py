"""Studies: what they rest on, and their command lines."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egno_jax.datasets import nbody
from egno_jax.datasets.buckets import padded
from experiments.studies import body_frame, leakage, paths, precision, sizes, symmetry
from experiments.studies.study import PUBLISHED, main

STUDIES = (
    "accuracy",
    "body_frame",
    "leakage",
    "long_windows",
    "modes",
    "precision",
    "resolution",
    "rough",
    "sizes",
    "symmetry",
)


def test_paths_at_whole_frames_are_the_canonical_simulations():
    found = paths.simulate("test", 3, [25, 200, 1000])
    canonical = nbody.canonical("test", num_simulations=3)
    assert found.steps.tolist() == [0, 25, 200, 1000]
    for field in ("positions", "velocities"):
        frames = getattr(canonical, field)[:, [nbody.START, nbody.START + 2, nbody.START + 10]]
        np.testing.assert_array_equal(getattr(found.trajectories, field)[:, [0, 2, 3]], frames)
    cut = paths.samples_at(found, [25, 1000])
    assert cut.times.tolist() == [0.25, 10.0]
    with pytest.raises(ValueError, match=r"steps: got \[30\], expected steps that were kept"):
        paths.samples_at(found, [30])


def test_an_error_curve_is_interpolated_from_zero():
    assert paths.error_at([1.0, 3.0], [1.0, 2.0], [0.5, 1.5]) == pytest.approx((0.5 + 2.0) / 2)


def test_systems_of_any_size_are_padded_to_one():
    samples = sizes._samples(sizes.simulate(0, 3, 2))
    grown = padded(samples, 6, 21)
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


def windows_of_a_body(number, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 32, 31, 3))


def test_a_turned_body_has_the_same_state_in_its_own_frame():
    windows = windows_of_a_body(3)
    turn = symmetry._rotation(np.array([0.6, 0.0, 0.8]), 1.0)
    states = body_frame.in_body_frame(windows)
    turned = body_frame.in_body_frame(windows @ turn.T + np.array([5.0, -2.0, 1.0]))
    for field, again in zip(states, turned, strict=True):
        np.testing.assert_allclose(again, field, atol=1e-12)
    up = states.positions[:, 16] - states.positions[:, 0]
    np.testing.assert_allclose(up[:, [0, 2]], 0, atol=1e-12)
    np.testing.assert_allclose(states.velocities.mean(1)[:, 2], 0, atol=1e-12)
    assert (states.velocities.mean(1)[:, 0] > 0).all()


def test_a_mirrored_body_has_the_state_of_the_mirror_image():
    windows = windows_of_a_body(2)
    both = body_frame.with_mirror_images(body_frame.in_body_frame(windows))
    in_a_mirror = windows[:, :, body_frame.SWAPPED] * np.array([1.0, -1.0, 1.0])
    for field, image in zip(both, body_frame.in_body_frame(in_a_mirror), strict=True):
        np.testing.assert_allclose(field[2:], image, atol=1e-12)


def test_the_regression_finds_a_linear_motion_and_chooses_on_the_validation_set():
    """Only the linear kernel extrapolates: the validation set lies outside the training set."""
    weights = np.random.default_rng(1).normal(size=(93, 93)) / 9

    def states(number, seed, scale):
        found = body_frame.in_body_frame(windows_of_a_body(number, seed))
        positions = scale * found.positions
        moves = (positions.reshape(number, -1) @ weights).reshape(positions.shape)
        return body_frame.States(positions, 0 * found.velocities, moves)

    size = body_frame.Size(velocity_weights=(1.0,), lengths=(1.0,), ridges=(1e-8, 1.0))
    sets = states(200, 0, 1.0), states(20, 1, 4.0), states(20, 2, 4.0)
    found = body_frame.regress(*sets, size)
    assert (found["linear"], found["ridge"]) == (1.0, 1e-8)
    assert found["f_mse"] < 0.25 * np.mean(sets[2].moves ** 2)
    narrow = dataclasses.replace(size, linear=(0.0,))
    assert body_frame.regress(*sets, narrow)["f_mse"] > 2 * found["f_mse"]


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
    module = importlib.import_module(f"experiments.studies.{name}")
    record = json.loads((PUBLISHED / f"{name}.json").read_text())
    assert record["size"] == "default"
    assert not record["git_commit"].endswith("-dirty")
    assert module.STUDY.draw(record).axes


def test_products_round_their_factors_and_cotangents_as_accelerators_do():
    rng = np.random.default_rng(0)
    x, y, w = (jnp.asarray(rng.normal(size=(8, 8)), jnp.float32) for _ in range(3))
    to = [lambda z: z.astype(jnp.bfloat16).astype(jnp.float32)]
    to.append(lambda z: to[0](z) + to[0](z - to[0](z)))
    for precision_name, cut in zip(("default", "high"), to, strict=True):
        product = functools.partial(precision.narrow(jnp.matmul), precision=precision_name)
        found, pull = jax.vjp(product, x, y)
        np.testing.assert_array_equal(found, jnp.matmul(cut(x), cut(y)))
        for one, other in zip(pull(w), (cut(w) @ cut(y).T, cut(x).T @ cut(w)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    exact = precision.narrow(jnp.matmul)(x, y, precision="highest")
    np.testing.assert_array_equal(exact, jnp.matmul(x, y, precision="highest"))
