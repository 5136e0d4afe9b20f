import dataclasses
import json

import jax
import numpy as np
import pytest

import egno_jax
from egno_jax.durations import Duration
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


def test_a_window_that_starts_without_near_nodes_is_invalid(params):
    """Nodes that the first window takes apart; what it predicted is kept."""
    pytest.importorskip("vesin")
    recipe = dataclasses.replace(RECIPE, edges="radius", cutoff=1.0)
    params = dataclasses.replace(params, recipe=recipe)
    positions = 0.1 * np.arange(10.0).reshape(2, 5).T @ np.eye(2, 3)
    apart = State(positions, 1e3 * np.arange(5)[:, None] * np.ones(3))
    found = egno_jax.predict(params, apart, num_windows=3)
    assert (found.first_invalid, len(found.positions)) == (1, 2)
    with pytest.raises(ValueError, match="cutoff: got 1, but no two of 5 nodes"):
        egno_jax.predict(params, apart._replace(positions=1e3 * positions))


NEAR = dataclasses.replace(RECIPE, edges="radius", cutoff=2.0, is_periodic=True)
CHARGED = dataclasses.replace(RECIPE, edge_features=("charge_product",))


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (NEAR, {"cell": 4 * np.eye(3)}, r"state\.periodic: got no periodic direction"),
        (NEAR, {"cell": [4.0, 4.0, 4.0]}, r"state\.cell: got .*expected .*\[3, 3\]"),
        (RECIPE, {"periodic": "FFF"}, r"state\.periodic: got 'FFF', expected three bools"),
        (CHARGED, {"charges": np.ones(9)}, r"state\.charges: got .* with N = 5"),
        (CHARGED, {"charges": [1.0, [2.0]]}, r"state\.charges: .*expected an array of numbers"),
        (RECIPE, {"numbers": np.ones(9, int)}, r"state\.numbers: got .* with N = 5"),
        (RECIPE, {"velocities": np.ones(3)}, r"state\.velocities: got .*\[N, 3\]"),
        (RECIPE, {"positions": None}, r"state\.positions: got "),
    ],
)
def test_states_of_other_shapes_are_refused(recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        graph_of(recipe, STATE._replace(**changes))


def test_numbers_of_any_library_are_kept_as_json_has_them():
    recipe = dataclasses.replace(RECIPE, spacing=np.float32(2), species=(np.int64(6),))
    assert recipe == from_record(json.loads(json.dumps(dataclasses.asdict(recipe))))


def test_a_cell_of_two_frames_is_a_matrix(params):
    pair = {"positions": np.stack([STATE.positions] * 2), "cell": [5.0, 5.0, 5.0]}
    with pytest.raises(ValueError, match=r"state\['cell'\]: got .*expected floating \[3, 3\]"):
        egno_jax.predict(params, pair)


@pytest.mark.parametrize("times", ["50fs", 5.0])
def test_times_are_several(params, times):
    with pytest.raises(ValueError, match=r"times: got .*expected several; put it into a list"):
        egno_jax.predict(params, STATE, times)


@pytest.mark.parametrize("times", [[None], [True], [[1.0, 2.0]], [[[1], [1, 2]]], [1j]])
def test_times_are_numbers_in_one_list(params, times):
    with pytest.raises(ValueError, match=r"times: got .*expected a number or a text"):
        egno_jax.predict(params, STATE, times)


def test_durations_and_texts_are_mixed(params):
    found = egno_jax.predict(params, STATE, ["4fs", Duration(8.0, "fs")])
    np.testing.assert_array_equal(found.times, RECIPE.times)


def test_the_warning_of_other_times_has_their_unit(params):
    recipe = dataclasses.replace(RECIPE, time_unit="frame", times=(2.0, 4.0))
    message = r"got \[1 frame, 4 frames\], expected exactly \[2 frames, 4 frames\]"
    with pytest.warns(UserWarning, match=message):
        egno_jax.predict(dataclasses.replace(params, recipe=recipe), STATE, [1, 4])


@pytest.mark.parametrize("key", ["positions", "velocities", "cell"])
@pytest.mark.parametrize("value", ["abc", [[1.0], [1.0, 2.0]]])
def test_arrays_that_are_no_numbers_are_named(params, key, value):
    arrays = {"positions": STATE.positions, "velocities": STATE.velocities, key: value}
    with pytest.raises(ValueError, match=rf"state\['{key}'\]: got .*expected an array of numbers"):
        egno_jax.predict(params, arrays)


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
    # Of a single one there is no feature, and still the model knows no other.
    single = dataclasses.replace(params, recipe=dataclasses.replace(RECIPE, species=(6,)))
    with pytest.raises(ValueError, match=r"numbers\[2\]: got 8, expected one of .* \[6\] that"):
        egno_jax.predict(single, STATE._replace(numbers=np.array([6, 6, 8, 6, 6])))
    with pytest.raises(ValueError, match="expected some of"):
        from_record({"unknown": 1})
    with pytest.raises(ValueError, match="expected a suffix of"):
        write(tmp_path / "a.txt", egno_jax.predict(params, STATE))


BONDED = dataclasses.replace(
    RECIPE, edges="bonds", bonds=((0, 1), (1, 2), (2, 3), (3, 4)), sticks=((1, 0),)
)


@pytest.mark.parametrize("recipe", [RECIPE, BONDED])
def test_records_are_json(recipe):
    assert from_record(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
    hash(recipe)


def test_bonds_make_edges_and_their_features():
    recipe = dataclasses.replace(BONDED, edge_features=("num_bonds", "stick"))
    graph = graph_of(recipe, STATE)
    pairs = [*zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True)]
    assert len(pairs) == 2 * (4 + 3) and {(0, 2), (2, 0)} <= {*pairs}
    for pair, (num_bonds, stick) in zip(pairs, graph.edges["features"], strict=True):
        assert num_bonds == abs(pair[0] - pair[1])
        assert stick == ({*pair} == {0, 1})


def test_kinds_of_nodes_are_columns():
    graph = graph_of(dataclasses.replace(BONDED, node_features=("speed", "bond_kind")), STATE)
    kinds = graph.nodes["features"][:, 1:]
    assert kinds.shape == (5, 3) and (kinds.sum(axis=1) == 1).all()
    # A chain of five: the ends are alike, the nodes next to them, and the one in the middle.
    np.testing.assert_array_equal(kinds, kinds[::-1])
    assert (kinds.sum(axis=0) > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bonds": ()}, "bonds: got .*expected pairs of nodes with edges='bonds'"),
        ({"edges": "all"}, "bonds: got .*expected pairs of nodes with edges='bonds'"),
        ({"bonds": ((0, 1), (1, 3))}, "bonds: got .*each of 0 to N - 1"),
        ({"bonds": ((0, 0), (0, 1))}, "bonds: got .*different nodes"),
        ({"bonds": ((0, 1, 2),)}, r"bonds: got .*\[\[i, j\], ...\]"),
        ({"sticks": ((0, 7),)}, "sticks: got"),
        ({"numbers": (6, 6)}, "numbers: got .*expected 5"),
        ({"edges": "all", "bonds": (), "sticks": (), "edge_features": ("stick",)}, "without bonds"),
        (
            {"edges": "all", "bonds": (), "sticks": (), "node_features": ("bond_kind",)},
            "node_features: got .* without bonds",
        ),
        ({"model_time": 0.0}, "model_time: got"),
        ({"species": (1.7, 8.2)}, "species: got"),
        ({"numbers": (6.9,) * 5}, "numbers: got"),
        ({"numbers": (500,) * 5}, "numbers: got"),
        ({"times": "12"}, "times: got '12', expected a tuple"),
        ({"node_features": "speed"}, "node_features: got 'speed', expected a tuple"),
        ({"node_features": ("speed", "speed")}, "node_features: got .*each once"),
        ({"node_features": ("species",)}, r"species: got \(\), expected atomic numbers"),
    ],
)
def test_recipes_that_are_not_valid_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BONDED, **changes)


def test_of_two_frames_the_first_is_the_state_of_a_forward_difference(params):
    after = STATE.positions + 2.0 * STATE.velocities
    recipe = dataclasses.replace(RECIPE, velocities="forward_difference")
    pair = {"positions": np.stack([STATE.positions, after])}
    found = egno_jax.predict(dataclasses.replace(params, recipe=recipe), pair)
    np.testing.assert_array_equal(found.state.positions, STATE.positions)
    np.testing.assert_allclose(found.state.velocities, STATE.velocities)
    with pytest.raises(ValueError, match="the frame after it"):
        graph_of(recipe, STATE._replace(velocities=None))


def test_the_model_sees_times_in_its_own_unit(params):
    recipe = dataclasses.replace(RECIPE, model_time=4.0)
    found = egno_jax.predict(dataclasses.replace(params, recipe=recipe), STATE)
    expected = egno_jax.apply(params, graph_of(RECIPE, STATE), np.array([1.0, 2.0]))
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-5)
    np.testing.assert_allclose(found.times, RECIPE.times)


def test_complex_states_and_paths_that_are_none_are_refused():
    positions, velocities = np.random.default_rng(0).normal(size=(2, 5, 3))
    state = {"positions": positions, "velocities": velocities, "charges": [1, -1, 1, -1, 1]}
    for key in ("positions", "velocities"):
        with pytest.raises(ValueError, match=f"state.*{key}.*complex numbers; convert them"):
            egno_jax.predict("nbody", {**state, key: state[key] * 1j})
    prediction = egno_jax.predict("nbody", state)
    with pytest.raises(ValueError, match="path: got NoneType, expected a path"):
        egno_jax.predicting.write(None, prediction)
