"""The configuration: frozen, hashable, a round trip through JSON, and checked field by field."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egno_jax import EGNOConfig

DTYPES = st.sampled_from(["bfloat16", "float16", "float32", "float64"])
POSITIVE = st.floats(1e-6, 1e6)
GRIDS = st.one_of(
    st.just({}),
    st.builds(
        lambda first, spacing, count: {
            "temporal_grid": "context",
            "context_times": tuple(first + spacing * i for i in range(count)),
        },
        st.floats(-10, 10),
        st.floats(0.1, 10),
        st.integers(2, 9),
    ),
)
MEAN_FIELDS = st.one_of(
    st.builds(dict, mean_field=st.booleans() | st.booleans().map(np.bool_)),
    st.builds(dict, mean_field=st.just(True), mean_field_channels=st.integers(0, 9)),
)
CONFIGS = st.builds(
    lambda grid, mean_field, **fields: EGNOConfig(**grid, **mean_field, **fields),
    GRIDS,
    MEAN_FIELDS,
    num_layers=st.integers(1, 9),
    hidden_dim=st.integers(1, 512),
    num_modes=st.integers(1, 20),
    time_embed_dim=st.integers(2, 64),
    time_scale=POSITIVE | st.integers(1, 9),
    velocity_scale=POSITIVE,
    vector_init=POSITIVE | st.just(0),
    velocity_weight=POSITIVE | st.just(0),
    dtype=DTYPES | st.none(),
    param_dtype=DTYPES,
    matmul_precision=st.sampled_from(["default", "high", "highest"]),
)


@given(config=CONFIGS)
def test_json_round_trip(config):
    text = config.to_json()
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(EGNOConfig)}
    back = EGNOConfig.from_json(text)
    assert back == config
    assert hash(back) == hash(config)


def test_configs_that_differ_are_not_equal():
    configs = {EGNOConfig(), EGNOConfig(num_layers=2), EGNOConfig(dtype="bfloat16")}
    assert len(configs | {EGNOConfig()}) == 3


def test_config_is_frozen_and_takes_keywords_alone():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EGNOConfig().num_layers = 2
    with pytest.raises(TypeError):
        EGNOConfig(4, 64)


def test_missing_fields_take_their_defaults():
    assert EGNOConfig.from_json('{"num_layers": 2}') == EGNOConfig(num_layers=2)
    assert EGNOConfig.from_json("{}") == EGNOConfig()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 0),
        ("num_layers", 2.0),
        ("num_layers", True),
        ("num_layers", "4"),
        ("hidden_dim", -1),
        ("hidden_dim", None),
        ("num_modes", 0),
        ("time_embed_dim", 1),
        ("time_scale", 0.0),
        ("time_scale", -1.0),
        ("time_scale", float("nan")),
        ("time_scale", float("inf")),
        ("time_scale", "1"),
        ("time_scale", True),
        ("temporal_grid", "physical"),
        ("context_times", 5),
        ("context_times", None),
        ("context_times", (1.0, 2.0)),
        ("velocity_scale", 0.0),
        ("velocity_scale", float("nan")),
        ("vector_init", -0.1),
        ("vector_init", float("nan")),
        ("mean_field", 1),
        ("mean_field", "yes"),
        ("mean_field", None),
        ("mean_field_channels", 1),
        ("mean_field_channels", -1),
        ("mean_field_channels", 2.0),
        ("velocity_weight", -0.5),
        ("velocity_weight", float("inf")),
        ("velocity_weight", None),
        ("dtype", "float8"),
        ("dtype", 32),
        ("param_dtype", None),
        ("param_dtype", "int32"),
        ("param_dtype", ",loat32"),
        ("matmul_precision", "exact"),
    ],
)
def test_wrong_values_are_errors_that_name_the_field_and_the_value(field, value):
    with pytest.raises(ValueError, match=rf"^EGNOConfig.{field}: got ") as error:
        EGNOConfig(**{field: value})
    assert repr(value) in str(error.value)
    assert "expected" in str(error.value)


@pytest.mark.parametrize("name", ["time_scale", "velocity_scale"])
def test_scales_are_normal_numbers_of_float32(name):
    smallest = float(np.finfo(np.float32).tiny)
    assert getattr(EGNOConfig(**{name: smallest}), name) == smallest
    for value in (1e-45, 1e39, 10**5000):
        with pytest.raises(ValueError, match=rf"EGNOConfig\.{name}: got .* float32"):
            EGNOConfig(**{name: value})


def test_counts_are_at_most_an_int32():
    for value in (2**31, 10**1000, -(10**5000)):
        with pytest.raises(ValueError, match=r"EGNOConfig\.num_layers: got .* to 2147483647"):
            EGNOConfig(num_layers=value)


@pytest.mark.parametrize(
    "times", [(), (1.0,), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0, 3.0), (0.0, float("nan")), ("0", "1")]
)
def test_context_times_must_be_equally_spaced(times):
    with pytest.raises(ValueError, match=r"EGNOConfig\.context_times: got .* equally spaced"):
        EGNOConfig(temporal_grid="context", context_times=times)


def test_context_times_of_a_list_are_a_tuple_and_can_be_hashed():
    config = EGNOConfig(temporal_grid="context", context_times=[1, 2, 3])
    assert config.context_times == (1, 2, 3)
    assert len({config, EGNOConfig.from_json(config.to_json())}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"num_layers": 2', "not JSON"),
        ("[1, 2]", "a JSON list"),
        ("null", "a JSON NoneType"),
        ('{"depth": 2}', r"unknown field\(s\) \['depth'\]"),
        ('{"num_layers": "2"}', "EGNOConfig.num_layers: got '2'"),
        ('{"time_scale": NaN}', "EGNOConfig.time_scale: got nan"),
    ],
)
def test_json_that_is_no_config(text, message):
    with pytest.raises(ValueError, match=message):
        EGNOConfig.from_json(text)


def test_values_of_other_libraries_take_one_form():
    """Equal settings have one hash and one JSON, whatever they were given as."""
    config = EGNOConfig(
        hidden_dim=np.int64(64), time_scale=2, dtype=jnp.bfloat16, param_dtype=np.dtype("float32")
    )
    expected = EGNOConfig(hidden_dim=64, time_scale=2.0, dtype="bfloat16", param_dtype="float32")
    assert config == expected
    assert hash(config) == hash(expected)
    assert config.to_json() == expected.to_json()
    assert EGNOConfig(time_scale=np.float32(0.5)).time_scale == 0.5


@pytest.mark.parametrize("text", [None, 3, b"\xff"])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ValueError, match=r"EGNOConfig.from_json: (got|not JSON)"):
        EGNOConfig.from_json(text)
