"""Equivariance of the whole model over random graphs, weights and transformations."""

from __future__ import annotations

import dataclasses
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

import egno_jax
from egno_jax import EGNOConfig
from egno_jax.ops import message_passing
from egno_jax.ops.linear import matmul
from tests import helpers

# Sizes that compile; within them the graphs of a batch, some empty, are drawn.
NUM_NODES, NUM_EDGES, NUM_GRAPHS = 12, 40, 4
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
ROUNDING = np.finfo(np.float32).eps / 2

# The number of times, of edge features, and the dtype.
_BOTH_DTYPES = [(5, 2, "float32"), (5, 2, "float64")]
_MORE = [(1, 0, "float32"), (8, 0, "float32"), (8, 0, "float64"), (2, 1, "float32")]
BOTH_DTYPES = pytest.mark.parametrize("case", _BOTH_DTYPES, ids=str)
CASES = pytest.mark.parametrize("case", _BOTH_DTYPES + _MORE, ids=str)


@dataclasses.dataclass(frozen=True)
class Example:
    """A batch of graphs and a model, to be drawn.

    Attributes:
      seed: of all values.
      n_node: the nodes of each graph.
      size: of the graphs.
      weight_noise: how far the weights are from those of `init`.
      step_gain: how much longer the coordinate steps are than those of `init`.
      width: channels of the hidden features.
      channels: those of a mean field; None: without one.
    """

    seed: int
    n_node: tuple[int, ...]
    size: float = 1.0
    weight_noise: float = 0.0
    step_gain: float = 1.0
    width: int = 8
    channels: int | None = None

    def make(self, num_times, num_edge_features, dtype):
        """Returns params, a graph and times; rejects what float32 cannot answer."""
        rng = np.random.default_rng(self.seed)
        options = {"num_edge_features": num_edge_features, "size": self.size, "dtype": dtype}
        graph = helpers.random_graph(rng, self.n_node, NUM_EDGES, **options)
        times = np.cumsum(rng.uniform(0.5, 2.0, num_times)).astype(dtype)
        config = EGNOConfig(
            num_layers=2,
            hidden_dim=self.width,
            num_modes=3,
            mean_field=self.channels is not None,
            mean_field_channels=self.channels or 0,
            param_dtype=dtype,
        )
        params = helpers.random_params(rng, config, num_edge_features=num_edge_features)
        params = helpers.perturbed(params, rng, self.weight_noise)
        params = jax.tree_util.tree_map_with_path(self._lengthen_step, params)
        assume(dtype == "float64" or amplification(params, graph, times) < 40)
        return params, graph, times

    def _lengthen_step(self, path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        is_output = "position_mlp.linear_1" in name
        return leaf * np.asarray(self.step_gain, leaf.dtype) if is_output else leaf


@jax.jit
def apply_rounded(params, graph, times):
    """Applies the model in float64, with errors of its products as large as those of float32."""

    def rounded(x, kernel, precision="highest"):
        size = jnp.abs(x) @ jnp.abs(kernel)
        noise = jax.random.uniform(jax.random.key(0), size.shape, size.dtype, -1, 1)
        return matmul(x, kernel, precision) + ROUNDING * noise * size

    # Not the functions that use them, which JAX has traced before.
    changed = {"matmul": rounded, "_message_sums": message_passing.message_sums_reference}
    for name in ("feature_update", "velocity_factor"):
        changed[name] = getattr(message_passing, f"{name}_reference")
    with mock.patch.multiple(message_passing, **changed):
        with mock.patch.object(sys.modules[matmul.__module__], "matmul", rounded):
            return egno_jax.apply(params, graph, times)


def amplification(params, graph, times):
    """Returns how many times larger than float32's rounding the model makes it.

    It is that of the input, the weights and the products, measured in float64, so that it is a
    property of the function, not of its computation. Where the terms of a coordinate step cancel
    and the limit keeps the direction alone, it has no bound.
    """
    rng = np.random.default_rng(0)

    def widen(leaf):
        return np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else np.asarray(leaf)

    def round_off(leaf):
        is_floating = leaf.dtype == np.float64
        return leaf * (1 + ROUNDING * rng.uniform(-1, 1, leaf.shape)) if is_floating else leaf

    with helpers.using("float64"):
        params, graph, times = jax.tree.map(widen, (params, graph, times))
        plain = helpers.apply(params, graph, times)
        rounded = [apply_rounded(*jax.tree.map(round_off, (params, graph)), times) for _ in "ab"]
    return max(
        helpers.relative_error(getattr(x, field), getattr(plain, field)) / ROUNDING
        for x in rounded
        for field in helpers.TRAJECTORY_FIELDS
    )


def sizes_of_graphs():
    """Draws how `NUM_NODES` nodes are split over `NUM_GRAPHS` graphs."""
    cuts = st.lists(st.integers(0, NUM_NODES), min_size=NUM_GRAPHS - 1, max_size=NUM_GRAPHS - 1)
    return cuts.map(lambda x: tuple(np.diff([0, *sorted(x), NUM_NODES]).tolist()))


def examples(sizes_and_gains, width=8):
    """Draws examples with one of these graph sizes and step gains."""
    return st.builds(
        lambda seed, n_node, noise, pair: Example(seed, n_node, pair[0], noise, pair[1], width),
        SEEDS,
        sizes_of_graphs(),
        st.sampled_from([0.0, 0.5]),
        st.sampled_from(sizes_and_gains),
    )


SEEDS = st.integers(0, 2**32 - 1)
# Large graphs, and smaller ones with strong weights, make steps longer than the limit.
AT_THE_LIMIT = examples([(30.0, 1.0), (10.0, 10.0), (3.0, 100.0)])
EXAMPLES = st.one_of(examples([(0.1, 1.0), (1.0, 1.0), (3.0, 1.0)]), AT_THE_LIMIT)
ANGLES = st.one_of(
    st.floats(0.0, 2 * np.pi),
    st.floats(-1e-3, 1e-3).map(lambda x: np.pi + x),
    st.sampled_from([np.pi, np.pi / 2, float(np.nextafter(np.pi, 4)), 1e-8]),
)


def rotation(axis, angle):
    """Returns Rodrigues' matrix `I + sin(a) K + (1 - cos(a)) K^2`."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def reflection(normal):
    """Returns the reflection at the plane with this normal, `I - 2 n n^T`."""
    normal = normal / np.linalg.norm(normal)
    return np.eye(3) - 2 * np.outer(normal, normal)


def random_direction(seed):
    return np.random.default_rng(seed).normal(size=3)


def with_nodes(graph, **arrays):
    """Replaces arrays of the nodes, in the dtype that they have."""
    new = {key: np.asarray(x, graph.nodes[key].dtype) for key, x in arrays.items()}
    return graph._replace(nodes={**graph.nodes, **new})


def turned(graph, matrix):
    """Applies a 3x3 matrix to positions and velocities."""
    vectors = {key: graph.nodes[key] @ matrix.T for key in ("positions", "velocities")}
    return with_nodes(graph, **vectors)


def check_turn(example, case, matrix, apply=helpers.apply):
    """Checks that vectors turn along and features stay; returns what was computed from."""
    dtype = case[-1]
    with helpers.using(dtype):
        params, graph, times = example.make(*case)
        plain = apply(params, graph, times)
        found = apply(params, turned(graph, matrix), times)
    for field in ("positions", "velocities"):
        expected = np.asarray(getattr(plain, field), np.float64) @ matrix.T
        helpers.assert_close(getattr(found, field), expected, TOLERANCE[dtype], field)
    helpers.assert_close(found.features, plain.features, TOLERANCE[dtype], "features")
    return params, graph, times, plain


@CASES
@settings(max_examples=30)
@given(example=EXAMPLES, angle=ANGLES, axis_seed=SEEDS)
def test_rotation(case, example, angle, axis_seed):
    check_turn(example, case, rotation(random_direction(axis_seed), angle))


@CASES
@settings(max_examples=20)
@given(example=EXAMPLES, normal_seed=SEEDS)
def test_reflection(case, example, normal_seed):
    check_turn(example, case, reflection(random_direction(normal_seed)))


@BOTH_DTYPES
@settings(max_examples=20)
@given(
    example=EXAMPLES,
    channels=st.sampled_from([0, 3]),
    angle=ANGLES,
    axis_seed=SEEDS,
    is_mirrored=st.booleans(),
)
def test_turns_with_a_mean_field(case, example, channels, angle, axis_seed, is_mirrored):
    matrix = rotation(random_direction(axis_seed), angle) * (-1 if is_mirrored else 1)
    check_turn(dataclasses.replace(example, channels=channels), case, matrix)


@jax.jit
def apply_without_limit(params, graph, times):
    with mock.patch.object(message_passing, "MAX_STEP", np.inf):
        return egno_jax.apply(params, graph, times)


@BOTH_DTYPES
@settings(max_examples=30)
@given(example=AT_THE_LIMIT, angle=ANGLES, axis_seed=SEEDS, is_mirrored=st.booleans())
def test_turns_at_the_limit_on_the_coordinate_step(case, example, angle, axis_seed, is_mirrored):
    matrix = rotation(random_direction(axis_seed), angle) * (-1 if is_mirrored else 1)
    params, graph, times, plain = check_turn(example, case, matrix)
    with helpers.using(case[-1]):
        unlimited = apply_without_limit(params, graph, times)
    moved = np.abs(np.asarray(plain.positions - unlimited.positions)).max(axis=(0, 2))
    is_limited = moved > 0.1
    # Rare draws stay below the limit; hypothesis fails the test if most of them do.
    assume(is_limited.any())
    event("every node at the limit" if is_limited.all() else "some nodes at the limit")


def permuted(graph, rng):
    """Shuffles graphs, the nodes of each, and its edges; returns the order of the nodes too."""
    owners = np.repeat(np.arange(NUM_GRAPHS), graph.n_node)
    new_place = rng.permutation(NUM_GRAPHS)
    order = np.lexsort((rng.random(NUM_NODES), new_place[owners]))
    new_index = np.argsort(order).astype(np.int32)
    edge_places = new_place[owners[graph.receivers]]
    edge_order = np.lexsort((rng.random(NUM_EDGES), edge_places))
    graph_order = np.argsort(new_place)
    shuffled = graph._replace(
        nodes=jax.tree.map(lambda x: x[order], graph.nodes),
        edges=jax.tree.map(lambda x: x[edge_order], graph.edges),
        senders=new_index[graph.senders][edge_order],
        receivers=new_index[graph.receivers][edge_order],
        n_node=graph.n_node[graph_order],
        n_edge=graph.n_edge[graph_order],
    )
    return shuffled, order


def check_permutation(example, case, seed, apply=helpers.apply):
    """Checks that what is shuffled comes out in the same order."""
    dtype = case[-1]
    with helpers.using(dtype):
        params, graph, times = example.make(*case)
        shuffled, order = permuted(graph, np.random.default_rng(seed))
        egno_jax.graph.validate(shuffled, times)
        plain = apply(params, graph, times)
        found = apply(params, shuffled, times)
    for field in helpers.TRAJECTORY_FIELDS:
        expected = np.asarray(getattr(plain, field))[:, order]
        helpers.assert_close(getattr(found, field), expected, TOLERANCE[dtype], field)


@CASES
@settings(max_examples=20)
@given(example=EXAMPLES, seed=SEEDS)
def test_permutation_of_graphs_nodes_and_edges(case, example, seed):
    check_permutation(example, case, seed)


def centred_size(graph):
    """Returns the largest distance of a node from the centre of its graph."""
    positions = graph.nodes["positions"].astype(np.float64)
    parts = np.split(positions, np.cumsum(graph.n_node)[:-1])
    return max(np.linalg.norm(x - x.mean(0), axis=1).max() for x in parts if len(x))


def rounded_for_shifts(graph, farthest, dtype):
    """Rounds positions so that every sum with a whole number up to `farthest` is exact."""
    positions = graph.nodes["positions"]
    largest = farthest + np.abs(positions).max() + 1
    step = 2 * float(np.spacing(np.asarray(largest, dtype)))
    return with_nodes(graph, positions=np.round(positions.astype(np.float64) / step) * step)


def check_translation(example, case, reach, seed, apply=helpers.apply):
    """Checks that each graph's positions move along, and nothing else changes."""
    dtype = case[-1]
    with helpers.using(dtype):
        params, graph, times = example.make(*case)
        farthest = np.floor(reach * centred_size(graph))
        graph = rounded_for_shifts(graph, farthest, dtype)
        size = centred_size(graph)
        shifts = np.random.default_rng(seed).integers(-farthest, farthest + 1, (NUM_GRAPHS, 3))
        shift = np.repeat(shifts, graph.n_node, axis=0).astype(dtype)
        shifted = with_nodes(graph, positions=graph.nodes["positions"] + shift)
        np.testing.assert_array_equal(
            shifted.nodes["positions"].astype(np.float64) - shift, graph.nodes["positions"]
        )
        plain = apply(params, graph, times)
        found = apply(params, shifted, times)
    back = np.asarray(found.positions, np.float64) - shift
    error = np.abs(back - np.asarray(plain.positions)).max() / size
    assert error <= {"float32": 5e-4, "float64": 1e-11}[dtype]
    for field in ("velocities", "features"):
        helpers.assert_close(getattr(found, field), getattr(plain, field), TOLERANCE[dtype], field)


@CASES
@settings(max_examples=40)
@given(example=EXAMPLES, reach=st.sampled_from([1, 30, 1000]), seed=SEEDS)
def test_translation_of_each_graph_by_whole_numbers(case, example, reach, seed):
    check_translation(example, case, reach, seed)
