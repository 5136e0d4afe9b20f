"""NNX modules: the weights and results of the Linen layers, in NNX's own transforms."""

import dataclasses

import e3nn_jax as e3nn
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import egno_jax
from egno_jax import graph as graph_lib
from egno_jax.recipe import GraphRecipe

CONFIG = egno_jax.EGNOConfig(num_layers=1, hidden_dim=16, mean_field=True, mean_field_channels=2)
TIMES = np.arange(1, 5)


@egno_jax.nn.register_layer("nnx_test_layer")
class Swirl(linen.Module):
    """A spatial layer of a user: no edges, features and velocities through a linear layer."""

    config: egno_jax.EGNOConfig

    @linen.compact
    def __call__(self, state, graph):
        features = linen.Dense(self.config.hidden_dim)(state.features)
        return state._replace(
            features=features, positions=state.positions + features[..., :1] * state.velocities
        )


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(0)
    edges = graph_lib.fully_connected_edges(5)
    edges = edges._replace(features=rng.normal(size=(20, 2)).astype(np.float32))
    return graph_lib.build(*(rng.normal(size=(5, w)).astype(np.float32) for w in (3, 3, 4)), edges)


@pytest.fixture(scope="module")
def model(graph):
    return egno_jax.nnx.EGNO.create(CONFIG, graph, rngs=nnx.Rngs(0))


def random_like(params):
    """Weights without zeros, which hide wrong formulas."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), params)


def test_weights_are_those_of_init_and_survive_the_way_there_and_back(model, graph):
    params = egno_jax.init(nnx.Rngs(0).params(), CONFIG, graph, TIMES)
    assert jax.tree.structure(model.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    changed = dataclasses.replace(random_like(params), recipe=GraphRecipe())
    jax.tree.map(np.testing.assert_array_equal, egno_jax.nnx.EGNO(changed).params, changed)
    assert isinstance(model.block_0.egnn_layer.message_mlp.linear_0.kernel, nnx.Param)


def test_results_equal_apply_in_nnx_transforms(model, graph):
    params = random_like(model.params)
    expected = jax.jit(egno_jax.apply)(params, graph, TIMES)
    definition, state = nnx.split(egno_jax.nnx.EGNO(params))
    found = nnx.jit(lambda model, graph: model(graph, TIMES))(nnx.merge(definition, state), graph)
    for name, value in vars(expected).items():
        scale = float(abs(value).max())
        np.testing.assert_allclose(getattr(found, name), value, rtol=0, atol=1e-6 * scale)


def test_training_with_an_nnx_optimizer_is_that_of_optax(model, graph):
    target = graph.nodes["positions"] + 0.3

    def loss_of(predict):
        return jnp.mean((predict(graph, TIMES).positions - target) ** 2)

    transform = optax.adam(1e-2)
    trained = egno_jax.nnx.EGNO(model.params)
    optimizer = nnx.Optimizer(trained, transform, wrt=nnx.Param)
    params, moments = model.params, transform.init(model.params)

    @nnx.jit
    def nnx_step(model, optimizer):
        loss, gradient = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradient)
        return loss

    @jax.jit
    def step(params, moments):
        loss, gradient = jax.value_and_grad(
            lambda params: loss_of(lambda *inputs: egno_jax.apply(params, *inputs))
        )(params)
        updates, moments = transform.update(gradient, moments)
        return loss, optax.apply_updates(params, updates), moments

    losses = []
    for _ in range(4):
        loss, params, moments = step(params, moments)
        losses.append(float(loss))
        np.testing.assert_allclose(float(nnx_step(trained, optimizer)), losses[-1], rtol=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    # Adam's first steps have the size of the rate whatever the gradient, so only losses are close.
    shapes = jax.tree.map(jnp.shape, params)
    assert jax.tree.map(jnp.shape, trained.params) == shapes


def test_a_model_is_a_part_of_other_modules_and_can_be_frozen(model, graph):
    class Shifted(nnx.Module):
        def __init__(self):
            self.egno = egno_jax.nnx.EGNO(model.params)
            self.shift = nnx.Param(jnp.ones(3))

        def __call__(self):
            return self.egno(graph, TIMES).positions + self.shift[...]

    class Frozen(nnx.Variable):
        """Weights that an optimizer of `nnx.Param` leaves out."""

    shifted = Shifted()
    plain = jax.jit(egno_jax.apply)(model.params, graph, TIMES).positions
    np.testing.assert_allclose(nnx.jit(lambda m: m())(shifted), plain + 1, atol=1e-5)
    kernel = shifted.egno.embedding.linear.kernel
    shifted.egno.embedding.linear.kernel = Frozen(2 * kernel[...])
    found = shifted.egno.params.weights["embedding"]["linear"]["kernel"]
    np.testing.assert_array_equal(found, 2 * kernel[...])
    gradient = nnx.grad(lambda m: jnp.sum(m.egno.embedding.linear.bias[...]))(shifted)
    assert "kernel" not in gradient["egno"]["embedding"]["linear"]


@pytest.mark.parametrize(
    "config",
    [
        egno_jax.EGNOConfig(num_layers=1, hidden_dim=16, layer="nnx_test_layer"),
        egno_jax.baselines.BaselineConfig(num_layers=1, hidden_dim=16, method="mpnn"),
    ],
    ids=["custom layer", "baseline"],
)
def test_other_layers_and_families(config, graph, tmp_path):
    model = egno_jax.nnx.EGNO.create(config, graph, rngs=nnx.Rngs(0))
    egno_jax.save(tmp_path / "model", model.params)
    loaded = egno_jax.nnx.EGNO(egno_jax.load(tmp_path / "model"))
    found = nnx.jit(lambda model: model(graph, TIMES[:1]).positions)(loaded)
    expected = jax.jit(egno_jax.apply)(model.params, graph, TIMES[:1]).positions
    np.testing.assert_allclose(found, expected, atol=1e-5)


def layers_and_inputs():
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    ends = jnp.array([0, 1, 2]), jnp.array([1, 2, 0])
    state = random(2, 3, 3), random(2, 3, 3), random(2, 3, 6)
    irreps = e3nn.IrrepsArray("2x0e + 2x1o", random(4, 8))
    front, nn, rngs = egno_jax.nnx, egno_jax.nn, nnx.Rngs
    return [
        (lambda: front.Linear(4, 6, rngs=rngs(0)), nn.Linear(6), [random(2, 4)]),
        (lambda: front.MLP(4, 16, 6, rngs=rngs(0)), nn.MLP(16, 6), [random(2, 4)]),
        (
            lambda: front.TimeEmbedding(4, 6, 8, rngs=rngs(0)),
            nn.TimeEmbedding(6, 8),
            [random(3, 4), jnp.arange(5.0)],
        ),
        (lambda: front.TemporalConv(6, 2, rngs=rngs(0)), nn.TemporalConv(2), [random(4, 3, 6)]),
        (
            lambda: front.VectorTemporalConv(2, 3, init_bound=0.5, rngs=rngs(0)),
            nn.VectorTemporalConv(3, init_bound=0.5),
            [random(4, 3, 2)],
        ),
        (
            lambda: front.IrrepsTemporalConv("2x0e + 2x1o", 2, rngs=rngs(0)),
            nn.IrrepsTemporalConv(2),
            [irreps],
        ),
        (
            lambda: front.EGNNLayer(6, 8, 2, rngs=rngs(0)),
            nn.EGNNLayer(8),
            [*state, random(3, 2), *ends],
        ),
        (lambda: front.MeanField(6, 8, 2, rngs=rngs(0)), nn.MeanField(8, 2), [*state]),
    ]


@pytest.mark.parametrize("index", range(8))
def test_layers_equal_those_of_linen(index):
    make, layer, inputs = layers_and_inputs()[index]
    module, variables = make(), jax.jit(layer.init)(nnx.Rngs(0).params(), *inputs)
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(module, nnx.Param)),
        variables["params"],
    )
    found = nnx.jit(lambda module, *inputs: module(*inputs))(module, *inputs)
    expected = jax.jit(layer.apply)(variables, *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_a_block_alone(graph):
    block = egno_jax.nnx.Block(CONFIG, graph, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    state = egno_jax.nn.State(
        *(jnp.asarray(rng.normal(size=(4, 5, w)), jnp.float32) for w in (3, 3, 16))
    )
    weights = nnx.to_pure_dict(nnx.state(block, nnx.Param))
    linen_block = jax.jit(egno_jax.nn.Block(CONFIG).apply)
    expected = linen_block({"params": weights}, state, graph)
    found = nnx.jit(lambda block, state: block(state, graph))(block, state)
    np.testing.assert_allclose(found.positions, expected.positions, atol=1e-6)
