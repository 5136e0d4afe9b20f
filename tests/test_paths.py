"""Parity, symmetry and padding on both paths of a CPU: its kernels, and the formulas in JAX.

In other tests the sizes select the path; these run both, and check which one was compiled.
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import egno_jax
from egno_jax.ops.kernels import library
from tests import helpers, test_symmetry

OUTPUTS, GRADIENTS = 1e-5, 1e-4
# The kernels need widths that are multiples of this.
WIDTH = 16
NAMES = ("message_sums", "feature_update", "velocity_factor", "temporal_conv")
FORWARD = {f"egno_{name}" for name in NAMES}
WITH_GRADIENT = FORWARD | {f"egno_{name}_vjp" for name in NAMES}


class Program:
    """A compiled function that must call exactly the kernels of these names."""

    def __init__(self, function, kernels):
        # A new function, for which JAX has no program of the other path.
        self._function = jax.jit(lambda *args: function(*args))
        self._kernels = kernels
        self._compiled = {}

    def __call__(self, *args):
        leaves, structure = jax.tree.flatten(args)
        kind = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if kind not in self._compiled:
            program = self._function.lower(*args).compile()
            called = set(re.findall(r'custom_call_target="(egno_\w+)"', program.as_text()))
            assert called == self._kernels
            self._compiled[kind] = program
        return self._compiled[kind](*args)


@dataclasses.dataclass(frozen=True)
class Path:
    """The model, the loss of the fixtures, and a loss over real nodes, on one path."""

    apply: Program
    parity: Program
    masked: Program


@pytest.fixture(scope="module", params=["kernels", "reference"])
def path(request):
    forward, with_gradient = FORWARD, WITH_GRADIENT
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(library, "load", lambda: library.Status(False, "not wanted"))
            forward, with_gradient = set(), set()
        elif jax.default_backend() != "cpu":
            pytest.skip(f"the kernels are for a CPU, and JAX runs on {jax.default_backend()}")
        elif not library.load().is_loaded:
            pytest.skip(f"no kernels: {library.load().reason}")
        yield Path(
            apply=Program(egno_jax.apply, forward),
            parity=Program(jax.value_and_grad(mean_squared_error, has_aux=True), with_gradient),
            masked=Program(jax.value_and_grad(masked_loss, (0, 1), has_aux=True), with_gradient),
        )


# Parity. Channels of zeros make the fixtures' models wide enough for the kernels.


def widened(params):
    """Returns the same function with channels of zeros, up to a multiple of `WIDTH`."""
    old = params.config.hidden_dim
    extra = -old % WIDTH

    def pad(array, axis, starts):
        """Adds zeros after each block of channels, given their starts."""
        return np.insert(array, np.repeat(np.array(starts) + old, extra), 0.0, axis=axis)

    def pad_leaf(key_path, leaf):
        name = jax.tree_util.keystr(key_path, simple=True, separator="/")
        if leaf.shape[-1] == old:
            leaf = pad(leaf, -1, [0])
        if name.endswith("bias") or "embedding" in name or "vector" in name:
            return leaf
        if "message_mlp/linear_0" in name:  # the squared distance, h_i, h_j, edge features
            return pad(leaf, -2, [1, 1 + old])
        return pad(leaf, -2, [0, old] if "feature_mlp/linear_0" in name else [0])

    weights = jax.tree_util.tree_map_with_path(pad_leaf, params.weights)
    config = dataclasses.replace(params.config, hidden_dim=old + extra)
    return egno_jax.Params(weights, config)


def narrowed(gradient, params):
    """Returns the part of a gradient by `widened(params)` that belongs to `params`."""
    kept = widened(jax.tree.map(np.ones_like, params))
    pairs = jax.tree.map(lambda leaf, mask: leaf[mask == 1], gradient.weights, kept.weights)
    weights = jax.tree.map(lambda leaf, old: leaf.reshape(old.shape), pairs, params.weights)
    return egno_jax.Params(weights, params.config)


def mean_squared_error(params, graph, times, target):
    trajectory = egno_jax.apply(params, graph, times)
    return jnp.mean((trajectory.positions - target) ** 2), trajectory


def parity_cases():
    """Returns path and fixture; tests/test_model.py takes most of those without kernels, too."""
    names = helpers.fixture_names()
    kernels = [pytest.param("kernels", name) for name in names]
    reference = [pytest.param("reference", name, marks=pytest.mark.slow) for name in names[1:]]
    return [*kernels, pytest.param("reference", names[0]), *reference]


@pytest.mark.parametrize(("path", "name"), parity_cases(), indirect=["path"], scope="module")
def test_parity_of_outputs_loss_and_every_gradient(path, name):
    fixture = helpers.Fixture.load(name)
    stored = fixture.arrays
    target = stored["target"].astype("float32")
    params = jax.tree.map(np.asarray, fixture.params())
    (loss, trajectory), gradient = path.parity(
        widened(params), fixture.graph(), fixture.times(), target
    )
    width = fixture.config.hidden_dim
    np.testing.assert_array_equal(trajectory.features[..., width:], 0.0)
    trajectory = dataclasses.replace(trajectory, features=trajectory.features[..., :width])
    for field in helpers.TRAJECTORY_FIELDS:
        helpers.assert_close(getattr(trajectory, field), stored[f"out_{field}"], OUTPUTS, field)
    helpers.assert_close(loss, stored["loss"], GRADIENTS, "loss")
    gradient = narrowed(jax.tree.map(np.asarray, gradient), params)
    found, expected = egno_jax.to_torch_state_dict(gradient), fixture.state("grad/")
    assert found.keys() == expected.keys()
    for key, array in found.items():
        helpers.assert_close(array, expected[key], GRADIENTS, key)


# Symmetry: a few examples; tests/test_symmetry.py has all sizes.

CASE = (5, 2, "float32")
EXAMPLES = test_symmetry.examples([(0.1, 1.0), (1.0, 1.0), (10.0, 10.0)], width=WIDTH)
SEEDS = test_symmetry.SEEDS


@settings(max_examples=10)
@given(example=EXAMPLES, angle=test_symmetry.ANGLES, axis_seed=SEEDS)
def test_rotation(path, example, angle, axis_seed):
    matrix = test_symmetry.rotation(test_symmetry.random_direction(axis_seed), angle)
    test_symmetry.check_turn(example, CASE, matrix, path.apply)


@settings(max_examples=10)
@given(example=EXAMPLES, normal_seed=SEEDS)
def test_reflection(path, example, normal_seed):
    matrix = test_symmetry.reflection(test_symmetry.random_direction(normal_seed))
    test_symmetry.check_turn(example, CASE, matrix, path.apply)


@settings(max_examples=10)
@given(example=EXAMPLES, seed=SEEDS)
def test_permutation_of_graphs_nodes_and_edges(path, example, seed):
    test_symmetry.check_permutation(example, CASE, seed, path.apply)


@settings(max_examples=10)
@given(example=EXAMPLES, reach=st.sampled_from([1, 30, 1000]), seed=SEEDS)
def test_translation_of_each_graph_by_whole_numbers(path, example, reach, seed):
    test_symmetry.check_translation(example, CASE, reach, seed, path.apply)


# Padding


def masked_loss(params, nodes, graph, times, mask):
    trajectory = egno_jax.apply(params, graph._replace(nodes=nodes), times)
    leaves = jax.tree.leaves(trajectory)
    return sum(jnp.sum(jnp.where(mask[:, None], jnp.sin(x), 0.0)) for x in leaves), trajectory


def test_padding_changes_neither_outputs_nor_gradients(path):
    rng = np.random.default_rng(0)
    graph, times = helpers.random_graph(rng, (5, 0, 4, 3), 30), np.array([1, 2, 4], np.float32)
    config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=WIDTH, num_modes=2)
    params = helpers.perturbed(helpers.random_params(rng, config), rng)
    padded, mask = egno_jax.graph.pad(graph, num_nodes=19, num_edges=70, num_graphs=7)
    mask = np.asarray(mask)

    everything = np.ones(mask.sum(), bool)
    expected, expected_gradients = path.masked(params, graph.nodes, graph, times, everything)
    found, (of_params, of_nodes) = path.masked(params, padded.nodes, padded, times, mask)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, of_params)))
    for leaf in jax.tree.leaves(of_nodes):
        np.testing.assert_array_equal(leaf[~mask], 0.0)
    of_nodes = jax.tree.map(lambda leaf: leaf[mask], of_nodes)
    helpers.assert_trees_close((of_params, of_nodes), expected_gradients, GRADIENTS)
    trajectory = jax.tree.map(lambda leaf: leaf[:, mask], found[1])
    helpers.assert_trees_close((found[0], trajectory), expected, OUTPUTS)
