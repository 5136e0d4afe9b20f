"""The model against the original's numbers, and as a pure function of its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egno_jax
from tests import helpers

DTYPES = ("float32", "float64")


OUTPUTS = {"float32": 1e-5, "float64": 1e-12}
GRADIENTS = {"float32": 1e-4, "float64": 1e-10}


def mean_squared_error(params, graph, times, target):
    trajectory = egno_jax.apply(params, graph, times)
    return jnp.mean((trajectory.positions - target) ** 2), trajectory


differentiate = jax.jit(jax.value_and_grad(mean_squared_error, has_aux=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", helpers.fixture_names())
def test_parity_of_outputs_loss_and_every_gradient(name, dtype):
    fixture = helpers.Fixture.load(name, dtype)
    stored = fixture.arrays
    with helpers.using(dtype):
        (loss, trajectory), gradient = differentiate(
            fixture.params(), fixture.graph(), fixture.times(), stored["target"].astype(dtype)
        )
    for field in helpers.TRAJECTORY_FIELDS:
        found = getattr(trajectory, field)
        assert found.dtype == dtype
        helpers.assert_close(found, stored[f"out_{field}"], OUTPUTS[dtype], field)
    helpers.assert_close(loss, stored["loss"], GRADIENTS[dtype], "loss")
    found, expected = egno_jax.to_torch_state_dict(gradient), fixture.state("grad/")
    assert found.keys() == expected.keys()
    for key, array in found.items():
        assert array.dtype == dtype
        helpers.assert_close(array, expected[key], GRADIENTS[dtype], key)


def test_the_fixtures_are_there_and_differ():
    configs = {helpers.Fixture.load(name).config for name in helpers.fixture_names()}
    assert len(configs) >= 4


def test_parity_would_see_a_change_of_any_weight():
    fixture = helpers.Fixture.load("nbody_p5")
    state = fixture.state()
    for name in state:
        changed = state | {name: state[name] * np.float32(1.01)}
        params = egno_jax.from_torch_state_dict(changed, fixture.config)
        found = helpers.apply(params, fixture.graph(), fixture.times())
        errors = [
            helpers.relative_error(getattr(found, field), fixture.arrays[f"out_{field}"])
            for field in helpers.TRAJECTORY_FIELDS
        ]
        assert max(errors) > 2 * OUTPUTS["float32"], name
