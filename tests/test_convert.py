"""Weights of the original: the round trip, and every way in which a state can be wrong."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import egno_jax
from egno_jax import EGNOConfig
from tests import helpers

ONE_MLP = "layers.0.node_net.mlp.0"


@pytest.fixture
def fixture():
    return helpers.Fixture.load("nbody_p5")


@pytest.mark.parametrize("name", helpers.fixture_names())
def test_there_and_back_gives_the_same_bits(name):
    fixture = helpers.Fixture.load(name)
    state = fixture.state()
    back = egno_jax.to_torch_state_dict(fixture.params())
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype
        assert back[key].flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(back[key], array)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_layers=st.integers(1, 3),
    num_modes=st.integers(1, 4),
    num_edge_features=st.integers(0, 2),
)
def test_back_and_there_gives_the_same_tree(seed, num_layers, num_modes, num_edge_features):
    config = EGNOConfig(num_layers=num_layers, hidden_dim=4, num_modes=num_modes)
    rng = np.random.default_rng(seed)
    params = helpers.random_params(rng, config, num_edge_features=num_edge_features)
    back = egno_jax.from_torch_state_dict(egno_jax.to_torch_state_dict(params), config)
    assert back.config == config
    helpers.assert_trees_close(back, params, 0.0)


def test_layouts_of_the_original(fixture):
    """Linear weights are transposed, spectral ones `[C_in, C_out, M, 2]`."""
    state, weights = fixture.state(), fixture.params().weights
    block = weights["block_0"]
    kernel = block["egnn_layer"]["feature_mlp"]["linear_0"]["kernel"]
    np.testing.assert_array_equal(kernel, state[f"{ONE_MLP}.weight"].T)
    spectral = state["time_conv_modules.0.t_conv.weights1"]
    real, imag = np.asarray(block["temporal_conv"]["kernel"])
    for mode in range(spectral.shape[2]):
        np.testing.assert_array_equal(real[mode], spectral[:, :, mode, 0])
        np.testing.assert_array_equal(imag[mode], spectral[:, :, mode, 1])


def test_param_dtype_is_the_dtype_of_the_weights(fixture):
    config = dataclasses.replace(fixture.config, param_dtype="bfloat16")
    params = egno_jax.from_torch_state_dict(fixture.state(), config)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize("name", ["embedding.bias", f"{ONE_MLP}.weight"])
def test_a_missing_array_is_named(fixture, name):
    state = fixture.state()
    del state[name]
    with pytest.raises(ValueError, match=r"1 array\(s\) missing") as error:
        egno_jax.from_torch_state_dict(state, fixture.config)
    assert name in str(error.value)


def test_an_unknown_array_is_named(fixture):
    state = fixture.state() | {"layers.0.norm.weight": np.ones(3)}
    with pytest.raises(ValueError, match=r"1 unknown \['layers\.0\.norm\.weight'\]"):
        egno_jax.from_torch_state_dict(state, fixture.config)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_another_number_of_layers_is_an_error(fixture, num_layers):
    config = dataclasses.replace(fixture.config, num_layers=num_layers)
    with pytest.raises(ValueError, match=r"check config\.num_layers"):
        egno_jax.from_torch_state_dict(fixture.state(), config)


@pytest.mark.parametrize(
    "fields",
    [{"hidden_dim": 8}, {"hidden_dim": 32}, {"num_modes": 5}, {"time_embed_dim": 64}],
    ids=str,
)
def test_another_size_is_an_error_that_names_the_field(fixture, fields):
    config = dataclasses.replace(fixture.config, **fields)
    with pytest.raises(ValueError, match="state") as error:
        egno_jax.from_torch_state_dict(fixture.state(), config)
    assert next(iter(fields)) in str(error.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (f"{ONE_MLP}.weight", lambda x: x[:, :-1]),
        (f"{ONE_MLP}.weight", lambda x: x[:-1]),
        (f"{ONE_MLP}.weight", lambda x: x[0]),
        (f"{ONE_MLP}.bias", lambda x: x[:-1]),
        (f"{ONE_MLP}.bias", lambda x: x[None]),
        ("embedding.bias", lambda x: x[:-1]),
        ("time_conv_modules.1.t_conv.weights1", lambda x: x[..., 0]),
        ("time_conv_modules.1.t_conv.weights1", lambda x: x[:, :, :1]),
        ("time_conv_x_modules.0.t_conv.weights1", lambda x: x[:1]),
        ("layers.1.coord_net.mlp.2.weight", lambda x: np.concatenate([x, x])),
    ],
)
def test_an_array_of_another_shape_is_named(fixture, name, change):
    state = fixture.state()
    with pytest.raises(ValueError, match=r"^state\['" + name.replace(".", r"\.")):
        egno_jax.from_torch_state_dict(state | {name: change(state[name])}, fixture.config)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_that_is_not_finite_is_named(fixture, value):
    state = fixture.state()
    state[f"{ONE_MLP}.bias"][1] = value
    with pytest.raises(ValueError, match=rf"{ONE_MLP}.bias.* got NaN or infinite"):
        egno_jax.from_torch_state_dict(state, fixture.config)


@pytest.mark.parametrize("state", [None, [("embedding.weight", 1)]])
def test_what_is_no_mapping_is_refused(state):
    with pytest.raises(ValueError, match=r"state: got .*, expected a mapping"):
        egno_jax.from_torch_state_dict(state, EGNOConfig())


def test_weights_must_be_finite_in_the_dtype_that_is_asked():
    fixture = helpers.Fixture.load("nbody_p5")
    state = fixture.state()
    state["embedding.bias"] = np.full_like(state["embedding.bias"], 1e6)
    half = dataclasses.replace(fixture.config, param_dtype="float16")
    with pytest.raises(ValueError, match=r"state\['embedding.bias'\]: got NaN or .* in float16"):
        egno_jax.from_torch_state_dict(state, half)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mean_field", True, r"^config\.mean_field: got True, expected False"),
        ("velocity_scale", 20.0, r"^config\.velocity_scale: got 20\.0, expected 1"),
    ],
)
def test_what_the_original_has_not_is_refused_both_ways(fixture, name, value, message):
    config = dataclasses.replace(fixture.config, **{name: value})
    with pytest.raises(ValueError, match=message):
        egno_jax.from_torch_state_dict(fixture.state(), config)
    params = helpers.random_params(np.random.default_rng(0), config)
    with pytest.raises(ValueError, match=message):
        egno_jax.to_torch_state_dict(params)


def test_a_layer_that_the_original_has_not_is_refused_both_ways(fixture, monkeypatch):
    layers = egno_jax.nn.block._LAYERS
    monkeypatch.setitem(layers, "mine", layers["egnn"])
    config = dataclasses.replace(fixture.config, layer="mine")
    message = r"^config\.layer: got 'mine', expected 'egnn'"
    with pytest.raises(ValueError, match=message):
        egno_jax.from_torch_state_dict(fixture.state(), config)
    params = helpers.random_params(np.random.default_rng(0), config)
    with pytest.raises(ValueError, match=message):
        egno_jax.to_torch_state_dict(params)


def test_what_is_no_model_is_refused(fixture):
    params = fixture.params()
    with pytest.raises(ValueError, match=r"params: got dict, expected egno_jax\.Params"):
        egno_jax.to_torch_state_dict(params.weights)
    deeper = dataclasses.replace(params.config, num_layers=9)
    with pytest.raises(ValueError, match=r"params\.weights: got block_.* expected"):
        egno_jax.to_torch_state_dict(dataclasses.replace(params, config=deeper))
    baseline = egno_jax.baselines.BaselineConfig(method="linear")
    graph = helpers.random_graph(np.random.default_rng(0))
    linear = egno_jax.init(jax.random.key(0), baseline, graph, np.arange(1.0, 3.0))
    with pytest.raises(ValueError, match="got a BaselineConfig, expected an EGNOConfig"):
        egno_jax.to_torch_state_dict(linear)


def as_torch_would(state):
    """Tensors that require a gradient: NumPy cannot read them before `detach`."""

    class Tensor:
        def __init__(self, array):
            self._array = array

        dtype = "torch.float32"

        def detach(self):
            return Detached(self._array)

        def __array__(self, *args, **kwargs):
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    class Detached:
        def __init__(self, array):
            self._array, self.dtype = array, "torch.float32"

        def cpu(self):
            return self

        def __array__(self, *args, **kwargs):
            return self._array

    return {name: Tensor(array) for name, array in state.items()}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_checkpoints_of_training_scripts_are_unwrapped(fixture, key, prefix):
    state = {prefix + name: array for name, array in as_torch_would(fixture.state()).items()}
    config = fixture.params().config
    found = egno_jax.from_torch_state_dict({key: state, "epoch": 3}, config)
    helpers.assert_trees_close(found, fixture.params(), 0.0)


def test_a_tensor_that_cannot_be_read_is_named(fixture):
    class Broken:
        def __array__(self, *args, **kwargs):
            raise RuntimeError("on another device")

    state = {**fixture.state(), f"{ONE_MLP}.weight": Broken()}
    with pytest.raises(ValueError, match=rf"{ONE_MLP}.weight'\]: .*another device"):
        egno_jax.from_torch_state_dict(state, fixture.params().config)
