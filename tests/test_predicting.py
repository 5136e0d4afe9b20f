import dataclasses
import json

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax.predicting import write
from egno_jax.recipe import GraphRecipe, State, from_record, graph_of

RECIPE = GraphRecipe(time_unit="fs", spacing=2.0, times=(4.0, 8.0), velocity_time=4.0)
RNG = np.random.default_rng(0)
STATE = State(RNG.normal(size=(5, 3)), 0.1 * RNG.normal(size=(5, 3)))


@pytest.fixture(scope="module")
def params():
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=4, time_scale=4.0)
    config = dataclasses.replace(config, velocity_weight=0.1)
    made = egno_jax.init(jax.random.key(0), config, graph_of(RECIPE, STATE), RECIPE.times)
    return dataclasses.replace(made, recipe=RECIPE)


def test_a_recipe_travels_in_the_checkpoint(params, tmp_path):
    egno_jax.save(tmp_path / "model", params)
    assert egno_jax.load(tmp_path / "model").recipe == RECIPE
    found = egno_jax.predict(tmp_path / "model", STATE)
    expected = egno_jax.apply(params, graph_of(RECIPE, STATE), RECIPE.times)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-5)
    np.testing.assert_allclose(found.velocities * 4.0, expected.velocities, atol=1e-5)


def test_windows_continue_and_invalid_ones_are_named(params):
    found = egno_jax.predict(params, STATE, num_windows=3)
    first = egno_jax.predict(params, STATE)
    following = STATE._replace(positions=first.positions[-1], velocities=first.velocities[-1])
    second = egno_jax.predict(params, following)
    np.testing.assert_allclose(found.positions[2:4], second.positions, atol=1e-5)
    np.testing.assert_allclose(found.times, [4, 8, 12, 16, 20, 24])
    assert egno_jax.predict(params, STATE, num_windows=3, bound=1e-3).first_invalid == 0


def test_arrays_and_two_frames_give_the_same_state(params):
    before = STATE.positions - 2.0 * STATE.velocities
    recipe = dataclasses.replace(RECIPE, velocities="difference")
    pair = {"positions": np.stack([before, STATE.positions])}
    found = egno_jax.predict(dataclasses.replace(params, recipe=recipe), pair, ["4fs", "4frames"])
    expected = egno_jax.predict(params, STATE)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-5)


def test_what_is_missing_is_named(params, tmp_path):
    with pytest.raises(ValueError, match="velocities: got None"):
        egno_jax.predict(params, STATE._replace(velocities=None))
    with pytest.raises(ValueError, match="without a recipe"):
        egno_jax.predict(dataclasses.replace(params, recipe=None), STATE)
    species = dataclasses.replace(RECIPE, node_features=("species",), species=(1, 6))
    with pytest.raises(ValueError, match=r"numbers\[2\]: got 8"):
        graph_of(species, STATE._replace(numbers=np.array([1, 6, 8, 6, 1])))
    with pytest.raises(ValueError, match="expected some of"):
        from_record({"unknown": 1})
    with pytest.raises(ValueError, match="expected a suffix of"):
        write(tmp_path / "a.txt", egno_jax.predict(params, STATE))


def test_records_are_json():
    assert from_record(json.loads(json.dumps(dataclasses.asdict(RECIPE)))) == RECIPE
