"""Hard spheres: laws of conservation, no overlap, reversal, known collisions, and the samples."""

from __future__ import annotations

import numpy as np
import pytest

import egno_jax
from egno_jax.datasets import collisions, take


@pytest.fixture(scope="module")
def motion(tmp_path_factory):
    return collisions.load_motion("test", num_boxes=40, cache_dir=tmp_path_factory.mktemp("cache"))


def run(positions, velocities, *, num_frames=2, frame_spacing=1.0, radius=0.25, box=2.0):
    return collisions.simulate(
        np.asarray(positions, float)[None],
        np.asarray(velocities, float)[None],
        radius=radius,
        box=box,
        num_frames=num_frames,
        frame_spacing=frame_spacing,
    )


def test_energy_is_kept_and_spheres_neither_overlap_nor_leave(motion):
    energies = (motion.velocities**2).sum((-1, -2)) / 2
    np.testing.assert_allclose(energies, energies[:, :1].repeat(energies.shape[1], 1), rtol=1e-12)
    rows, columns = np.triu_indices(collisions.NUM_SPHERES, 1)
    apart = motion.positions[:, :, rows] - motion.positions[:, :, columns]
    assert np.sqrt((apart**2).sum(-1)).min() > 2 * collisions.RADIUS - 1e-12
    assert np.abs(motion.positions).max() < collisions.BOX / 2 - collisions.RADIUS + 1e-12
    assert 10 < motion.num_collisions[:, -1].mean() < 60
    assert (np.diff(motion.num_collisions, axis=1) >= 0).all()


def test_motion_runs_back_to_where_it_came_from(motion):
    there = collisions.Motion(*(field[:8, :33] for field in motion))
    back = collisions.simulate(
        there.positions[:, -1],
        -there.velocities[:, -1],
        radius=collisions.RADIUS,
        box=collisions.BOX,
        num_frames=33,
        frame_spacing=1 / 32,
    )
    np.testing.assert_allclose(back.positions, there.positions[:, ::-1], atol=1e-7)


def test_two_spheres_that_meet_head_on_exchange_their_velocities():
    found = run([[-0.5, 0, 0], [0.5, 0, 0]], [[1.0, 0, 0], [0, 0, 0]], frame_spacing=0.6)
    np.testing.assert_allclose(found.positions[0, 1, :, 0], [0.0, 0.6], atol=1e-15)
    np.testing.assert_allclose(found.velocities[0, 1, :, 0], [0.0, 1.0], atol=1e-15)
    assert found.num_collisions[0].tolist() == [0, 1]


def test_momentum_is_kept_where_no_wall_is_met():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1, 6, 3)) + 4 * np.array([[i, 0, 0] for i in range(6)]) - 10
    v = rng.normal(size=(1, 6, 3))
    v[..., 0] -= 0.5 * np.arange(6)
    found = collisions.simulate(x, v, radius=1.0, box=1000.0, num_frames=50, frame_spacing=1.0)
    assert found.num_collisions[0, -1] > 0
    np.testing.assert_allclose(found.velocities.sum(2), v.sum(1)[:, None].repeat(50, 1), atol=1e-12)


def test_a_wall_turns_one_component_around():
    found = run([[0.5, 0, 0]], [[0.5, 0.1, 0]])
    np.testing.assert_allclose(found.positions[0, 1, 0], [0.5, 0.1, 0], atol=1e-15)
    np.testing.assert_allclose(found.velocities[0, 1, 0], [-0.5, 0.1, 0])


def test_boxes_do_not_depend_on_one_another(motion, tmp_path):
    fewer = collisions.load_motion("test", num_boxes=3, cache_dir=tmp_path)
    for all_boxes, first in zip(motion, fewer, strict=True):
        np.testing.assert_array_equal(all_boxes[:3], first)


def test_samples_have_walls_that_receive_nothing_and_do_not_count(motion):
    samples = collisions.samples(motion, box=collisions.BOX, target_frames=(8, 16))
    assert samples.positions.shape == (40, 2, 11, 3)
    assert samples.times.tolist() == [8, 16]
    assert samples.node_mask.sum(1).tolist() == [5] * 40
    assert (samples.graph.receivers < 5).all()
    assert samples.graph.senders.shape == (40, 5 * 10)
    np.testing.assert_array_equal(samples.positions[:, 0, 5:], samples.positions[:, 1, 5:])
    batch = take(samples, np.arange(4))
    egno_jax.graph.validate(batch.graph, batch.times)
    walls = batch.graph.nodes["positions"].reshape(4, 11, 3)[:, 5:]
    assert (np.abs(walls).sum(-1) == collisions.BOX / 2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": [[0.9, 0, 0]]}, r"positions\[0\]: got a sphere of radius 0.25 outside"),
        ({"positions": [[0, 0, 0], [0.4, 0, 0]]}, "overlaps another"),
        ({"positions": [[np.nan, 0, 0]]}, r"positions\[0, 0, 0\]: got nan"),
        ({"velocities": [[0, 0]]}, "velocities.* 2"),
        ({"radius": 1.5}, "radius, box: got 1.5 and 2.0"),
        ({"frame_spacing": 0.0}, "frame_spacing: got 0.0"),
        ({"num_frames": 0}, "num_frames: got 0"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_states_that_no_box_can_be_in_are_refused(change, message):
    state = {"positions": [[0.0, 0, 0]], **change}
    state.setdefault("velocities", np.zeros_like(state["positions"]))
    with pytest.raises(ValueError, match=message):
        run(**state)


def test_what_does_not_exist_is_named(motion, monkeypatch):
    monkeypatch.setattr(collisions.boxes, "_MAX_DRAWS", 3)
    with pytest.raises(ValueError, match="split: got 'all'"):
        collisions.load_motion("all", num_boxes=1)
    with pytest.raises(ValueError, match="all from 0 to 64"):
        collisions.samples(motion, box=collisions.BOX, target_frames=(8, 65))
    with pytest.raises(ValueError, match="num_spheres: got 60, for which no placement"):
        collisions.draw_states(0, 1, num_spheres=60)


@pytest.mark.parametrize("box", [0.0, -2.0, np.nan, np.inf, 1.0])
def test_samples_refuse_a_box_that_does_not_hold_the_spheres(motion, box):
    with pytest.raises(ValueError, match=f"box: got {box}, expected"):
        collisions.samples(motion, box=box, target_frames=(8,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_boxes": 0}, "num_boxes: got 0"),
        ({"num_boxes": 1.5}, r"num_boxes: got 1\.5"),
        ({"num_spheres": 0}, "num_spheres: got 0"),
        ({"num_spheres": 2.0}, r"num_spheres: got 2\.0"),
        ({"radius": 0.0}, r"radius, box: got 0\.0"),
        ({"radius": 1.0}, r"radius, box: got 1\.0 and 2\.0"),
        ({"radius": np.nan}, "radius, box: got nan"),
        ({"box": np.inf}, "radius, box: got 0.25 and inf"),
        ({"speed": -1.0}, r"speed: got -1\.0"),
        ({"speed": np.nan}, "speed: got nan"),
    ],
)
def test_states_that_cannot_be_drawn_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        collisions.draw_states(0, **{"num_boxes": 1, **change})


def test_spheres_may_be_at_rest():
    assert not collisions.draw_states(0, 2, speed=0)[1].any()
