"""Schedules and optimizers: their values, and that decay and masks reach the right weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egno_jax import training
from egno_jax.training import OptimizerConfig, is_kernel, make_optimizer, make_schedule

NUM_STEPS = 100
TREE = {"block_0": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}}


def one_update(config, grads, tree=TREE):
    optimizer = make_optimizer(config, NUM_STEPS)
    updates, _ = optimizer.update(grads, optimizer.init(tree), tree)
    return updates["block_0"]


def test_cosine_warms_up_peaks_and_ends_at_its_fraction():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=10, final_fraction=0.1)
    rate = make_schedule(config, NUM_STEPS)
    assert rate(0) == 0
    np.testing.assert_allclose(rate(5), 0.25)
    np.testing.assert_allclose(rate(10), 0.5)
    np.testing.assert_allclose(rate(55), 0.5 * (0.1 + 0.9 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(rate(NUM_STEPS), 0.05, rtol=1e-6)


def test_halving_halves_in_stairs():
    config = OptimizerConfig(schedule="halving", learning_rate=1.0, warmup_steps=0, halve_every=7)
    rate = make_schedule(config, NUM_STEPS)
    steps = np.array([0, 6, 7, 13, 14, 70])
    np.testing.assert_allclose([rate(step) for step in steps], 0.5 ** (steps // 7))


def test_constant_stays():
    config = OptimizerConfig(schedule="constant", learning_rate=0.3, warmup_steps=0)
    rate = make_schedule(config, NUM_STEPS)
    np.testing.assert_allclose([rate(0), rate(1000)], 0.3)


def test_l2_decay_is_that_of_torch_adam():
    """Adam's first update is -lr sign(g + wd w), for biases too."""
    config = OptimizerConfig(
        schedule="constant", learning_rate=0.1, warmup_steps=0, decay="l2", weight_decay=1.0
    )
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, -1.0), TREE)
    for update in one_update(config, grads).values():
        np.testing.assert_allclose(update, -0.1, rtol=1e-5)


def test_decoupled_decay_spares_biases():
    config = OptimizerConfig(
        schedule="constant", learning_rate=0.1, warmup_steps=0, weight_decay=0.5
    )
    updates = one_update(config, jax.tree.map(jnp.zeros_like, TREE))
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 3.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_clipping_bounds_what_adam_sees():
    """A long gradient and the same direction at the clipping length give one trajectory."""
    config = OptimizerConfig(schedule="constant", warmup_steps=0, clip_norm=1e-9, weight_decay=0.0)
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7.0), TREE)
    clipped = jax.tree.map(lambda leaf: leaf * 1e-9 / optax.tree.norm(grads), grads)
    long, short = one_update(config, grads), one_update(config, clipped)
    np.testing.assert_allclose(long["kernel"], short["kernel"], rtol=1e-4)
    unclipped = one_update(OptimizerConfig(**{**vars(config), "clip_norm": 0.0}), grads)
    assert abs(unclipped["kernel"][0, 0]) > 2 * abs(long["kernel"][0, 0])


def test_is_kernel_marks_kernels_alone():
    assert is_kernel(TREE) == {"block_0": {"kernel": True, "bias": False}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("schedule", "linear"),
        ("learning_rate", float("inf")),
        ("warmup_steps", 1.5),
        ("warmup_steps", -1),
        ("final_fraction", 1.5),
        ("halve_every", 0),
        ("weight_decay", -1e-3),
        ("decay", "L1"),
        ("clip_norm", -1.0),
        ("b1", 1.0),
        ("b2", -0.1),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"OptimizerConfig.{field}: got {value!r}"):
        OptimizerConfig(**{field: value})


def test_numbers_of_any_library_become_those_of_python():
    config = OptimizerConfig(learning_rate=np.float32(0.5), warmup_steps=np.int64(3), clip_norm=1)
    assert config == OptimizerConfig(learning_rate=0.5, warmup_steps=3, clip_norm=1.0)
    assert [type(x) for x in (config.learning_rate, config.warmup_steps)] == [float, int]


def test_clipping_comes_before_l2_decay():
    """As `torch.nn.utils.clip_grad_norm_` before a step of `torch.optim.Adam`."""
    config = OptimizerConfig(
        schedule="constant",
        learning_rate=0.1,
        warmup_steps=0,
        decay="l2",
        weight_decay=1.0,
        clip_norm=1e-3,
    )
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, -100.0), TREE)
    for update in one_update(config, grads).values():
        # The decay of +3 outweighs the clipped gradient.
        np.testing.assert_allclose(update, -0.1, rtol=1e-2)


def test_hold_stays_and_falls_at_the_end():
    config = OptimizerConfig(
        schedule="hold", learning_rate=0.5, warmup_steps=10, decay_fraction=0.2, final_fraction=0.1
    )
    rate = make_schedule(config, NUM_STEPS)
    np.testing.assert_allclose([rate(5), rate(10), rate(79), rate(80)], [0.25, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(rate(90), 0.5 * (0.1 + 0.9 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(rate(NUM_STEPS), 0.05, rtol=1e-6)


def test_hold_ends_at_its_fraction_also_where_the_warm_up_leaves_less_for_the_fall():
    config = OptimizerConfig(
        schedule="hold", learning_rate=0.5, warmup_steps=40, decay_fraction=0.9, final_fraction=0.1
    )
    rate = make_schedule(config, NUM_STEPS)
    np.testing.assert_allclose([rate(40), rate(NUM_STEPS)], [0.5, 0.05], rtol=1e-6)


def test_gradients_are_clipped_at_what_is_usual():
    clip = training.clip_by_history(4)
    state, norms = clip.init(TREE), [1.0, 2.0, 1.0, 2.0, 100.0, 1.0]
    found = []
    for norm in norms:
        grads = {"w": jnp.array([0.6 * norm, 0.8 * norm])}
        clipped, state = clip.update(grads, state)
        found.append(float(jnp.linalg.norm(clipped["w"])))
    usual = 1.5 * 1.5 + 2 * 0.5
    np.testing.assert_allclose(found, [1, 2, 1, 2, usual, 1], rtol=1e-6)
    np.testing.assert_allclose(state.norms, [usual, 1, 1, 2], rtol=1e-6)


def test_the_history_is_part_of_the_optimizer_and_of_its_state():
    config = OptimizerConfig(clip_norm=0.0, clip_history=2, schedule="constant", warmup_steps=0)
    optimizer = make_optimizer(config, NUM_STEPS)
    state = optimizer.init(TREE)
    _, state = optimizer.update(jax.tree.map(jnp.ones_like, TREE), state, TREE)
    assert any(np.allclose(x, [6**0.5, 0]) for x in jax.tree.leaves(state) if x.shape == (2,))


def test_zero_gradients_do_not_stop_training_for_ever():
    clip = training.clip_by_history(2)
    state, found = clip.init(jnp.zeros(1)), []
    for gradient in (0.0, 0.0, 1.0, 1.0):
        update, state = clip.update(jnp.full(1, gradient), state)
        found.append(float(update[0]))
    assert found == [0, 0, 1, 1]
