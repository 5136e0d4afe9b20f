"""Values that would pass in silence: seeds that wrap, lengths that overflow, samples of nothing."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egno_jax import checks, testing
from egno_jax.datasets import base, collisions, md17, mocap
from egno_jax.datasets.collisions import boxes
from egno_jax.datasets.md17 import generator
from egno_jax.datasets.mocap import run_file
from egno_jax.training import TrainingConfig
from tests.mocap_files import AMC, ASF, write

SEEDED = {
    "training": lambda seed: TrainingConfig(seed=seed),
    "boxes": lambda seed: boxes.draw_states(seed, 1),
    "random starts": lambda seed: md17.random_starts(
        3000, (1, 1, 1), window=10, margin=0, seed=seed
    ),
    "block starts": lambda seed: md17.block_starts(3000, (1, 1, 1), window=10, seed=seed),
    "running windows": lambda seed: run_file._draw({f"{n:02d}": 99 for n in range(11)}, seed),
    "molecules": lambda seed: generator.Settings(seed=seed),
    "test kit": lambda seed: testing.check_permutation(None, seed=seed),
}


@pytest.mark.parametrize("seed", [2**32, 2**40, 2**63, -1, True, 1.5], ids=str)
@pytest.mark.parametrize("use", SEEDED.values(), ids=SEEDED.keys())
def test_seeds_that_are_not_kept_apart_are_refused(use, seed):
    with pytest.raises(ValueError, match=r"seed: got "):
        use(seed)


def test_the_seeds_that_are_allowed_are_kept_apart_in_every_mode():
    seeds = [0, 1, 2**31 - 1, 2**31, checks.LARGEST_SEED]
    keys = {}
    for x64 in (False, True):
        with jax.enable_x64(x64):
            keys[x64] = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in seeds]
    assert keys[False] == keys[True]
    assert len({tuple(key) for key in keys[True]}) == len(seeds)
    assert checks.as_seed("seed", np.int64(3)) == 3


def test_numbers_too_large_for_the_dtype_of_jax_become_infinite_without_a_warning():
    for convert in (checks.as_jax_sees, lambda array: checks.as_floating("x", array)):
        found = convert(np.array([1e300, 1.0]))
        assert found.dtype == np.float32 and found.tolist() == [np.inf, 1.0]


def test_times_of_a_window_are_named_with_their_axes():
    for num_axes, axes in ((1, r"\[P\]"), (2, r"\[P, G\]")):
        for times in ("soon", np.zeros((2,) * num_axes), np.ones((1, 1, 1))):
            with pytest.raises(ValueError, match=rf"times: got .*expected (numbers )?{axes}"):
                checks.as_window_times(times, num_axes)


@pytest.mark.parametrize("number", ["1e308", "1e19", "-1e30"])
def test_lengths_whose_squares_overflow_are_refused_with_their_place(tmp_path, number):
    skeleton = mocap.read_skeleton(write(tmp_path / "a.asf", ASF))
    for old, line in (("root 1 2 3", 5), ("leg 1 2 3", 6)):
        path = write(tmp_path / "a.amc", AMC.replace(old, f"{old[:-1]}{number}"))
        with pytest.raises(ValueError, match=rf"a\.amc, line {line}: .*at most 1e\+18"):
            mocap.read_motion(path, skeleton)
    with pytest.raises(ValueError, match=r"a\.asf, line \d+: .*at most 1e\+18"):
        mocap.read_skeleton(
            write(tmp_path / "a.asf", ASF.replace("length 2.5", f"length {number}"))
        )
    frames = f"2\n\nH 0 0 0\nH 1 1 1\n2\n\nH 0 0 0\nH 1 1 {number}\n"
    pytest.importorskip("ase")
    with pytest.raises(ValueError, match=r"a\.extxyz: positions\[1, 1, 2\]: .*at most 1e\+18"):
        md17.read(write(tmp_path / "a.extxyz", frames))


def test_a_sample_without_a_real_node_is_refused():
    motion = collisions.simulate(
        *boxes.draw_states(0, 3), radius=0.25, box=2.0, num_frames=5, frame_spacing=0.1
    )
    samples = collisions.samples(motion, box=2.0, target_frames=(2, 4))
    base.validate(samples)
    mask = np.array(samples.node_mask)
    mask[1] = False
    with pytest.raises(ValueError, match="node_mask: got no real node in sample 1"):
        base.validate(samples._replace(node_mask=mask))


@pytest.mark.parametrize("num_times", [(True,), (2, True), (np.True_,)])
def test_true_is_no_number_of_times(num_times):
    with pytest.raises(ValueError, match="num_times"):
        TrainingConfig(random_times="subsets", num_times=num_times)
    assert dataclasses.replace(TrainingConfig(), random_times="subsets", num_times=(2,))


@given(text=st.text(max_size=200), width=st.integers(3, 120))
def test_a_short_text_is_as_it_was_and_a_long_one_fits(text, width):
    found = checks.shorten(text, width)
    assert len(found) <= width
    assert found == text or (found.endswith("...") and text.startswith(found[:-3]))


@given(text=st.text(max_size=400))
def test_the_text_of_any_error_is_one_short_line(text):
    found = checks.error_text(ValueError(text))
    assert found.startswith("ValueError: ") or not text.split()
    assert len(found) <= 200 and len(found.splitlines()) == 1


@pytest.mark.parametrize("value", [1, 1e-300, np.float32(2), np.array(3), np.int8(4)], ids=repr)
def test_numbers_above_0_of_any_library_are_positive(value):
    checks.check_positive("unit", value)
    assert checks.as_float(value) == float(value)


@pytest.mark.parametrize(
    "value",
    [0, -1.0, np.nan, np.inf, 10**400, None, True, np.True_, "1", [1, 2], np.ones(1)],
    ids=str,
)
def test_all_else_is_not(value):
    with pytest.raises(ValueError, match=r"unit: got .*, expected a finite number above 0"):
        checks.check_positive("unit", value)


@pytest.mark.parametrize("bound", [0, -1.0, np.nan, None, True, "1", np.ones(2)], ids=str)
def test_a_bound_is_a_number_above_0(bound):
    with pytest.raises(ValueError, match=r"bound: got .*, expected a number above 0"):
        checks.check_bound(bound)


def test_a_bound_may_be_infinite_or_traced():
    for bound in (1, np.inf, np.float32(2), jax.numpy.ones(())):
        checks.check_bound(bound)
    jax.jit(checks.check_bound)(1.0)
    with pytest.raises(ValueError, match=r"bound: got "):
        jax.jit(checks.check_bound)(np.ones(2))
