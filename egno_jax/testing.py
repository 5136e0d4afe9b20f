"""Checks of any model or spatial layer: its symmetries, its batches and its padding.

    egno_jax.testing.check_equivariance(params)          # a model
    egno_jax.testing.check_equivariance("egnn")          # a registered spatial layer
    egno_jax.testing.check_all(MyLayer, config)          # a custom class, every check

A check draws random graphs and, unless `Params` are given, random weights. It returns the largest
relative error, max|a - b| / max|b| over an array, and raises an `AssertionError`, which names the
output, if that is above the tolerance or NaN. The default tolerance is 1e-5 in float32, and 1e-10
in float64, the dtype if `config.param_dtype` is "float64" (JAX's x64 mode must be on).

All checks have the same arguments:

- `subject`: `Params`; an `EGNOConfig`, whose weights are then random; or a spatial layer: the name
  of a registered one, its class, or a function that makes the module.
- `config`: the hyper-parameters of a layer's module; small ones by default.
- `graph`, a batch of graphs, and `times`, `[P]`, of a model; by default a random graph with the
  features of the model, smaller if the prediction is large. `seed` of everything random;
  `tolerance`. A layer is checked on a random `egno_jax.nn.State`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.checks import as_seed
from egno_jax.config import EGNOConfig
from egno_jax.model import Params, Trajectory, apply, family_of, init
from egno_jax.nn.block import LayerFactory, State, initial_extra, layer_factory
from egno_jax.params import feature_sizes

__all__ = [
    "check_all",
    "check_batch_independence",
    "check_equivariance",
    "check_images",
    "check_padding",
    "check_permutation",
    "check_translation",
    "random_graph",
]

_CONFIG = EGNOConfig(num_layers=2, hidden_dim=16, num_modes=2, time_embed_dim=8)
_NUM_TIMES = 3
_SHIFT = 10.0
_LARGEST_POSITION = 5.0
_MAX_HALVINGS = 10

# Compiled once for each shape, whatever is checked.
_apply = jax.jit(apply)


class _Subject(NamedTuple):
    """A model or layer as a function from `(graph, state)` to a `State` or a `Trajectory`.

    `state` is None for models; `tolerance` is the largest relative error that is allowed.
    """

    call: Callable[[jraph.GraphsTuple, State | None], Any]
    graph: jraph.GraphsTuple
    state: State | None
    tolerance: float
    seed: int

    def rng(self) -> np.random.Generator:
        """Returns a generator for one check, so that checks do not depend on their order."""
        return np.random.default_rng((self.seed, 1))


def random_graph(
    rng: np.random.Generator,
    n_node: Any = (5, 3),
    num_edges: int = 16,
    num_node_features: int = 2,
    num_edge_features: int = 2,
    size: float = 1.0,
    dtype: str = "float32",
    num_external_vectors: int = 0,
    with_shifts: bool = False,
) -> jraph.GraphsTuple:
    """Draws graphs of `n_node` nodes; edges stay within a graph, and may be loops or repeated.

    With `with_shifts` they have random shifts, as in a periodic system.
    """
    n_node = np.asarray(n_node, np.int32)
    num_nodes, starts = n_node.sum(), np.cumsum(n_node) - n_node
    owners = np.sort(rng.choice(np.flatnonzero(n_node), num_edges))
    senders, receivers = (starts[owners] + rng.integers(n_node[owners]) for _ in range(2))
    of_edges = {}
    if num_edge_features or with_shifts:
        of_edges["features"] = rng.normal(size=(num_edges, num_edge_features)).astype(dtype)
    if with_shifts:
        of_edges["shifts"] = np.rint(size * rng.normal(size=(num_edges, 3))).astype(dtype)
    nodes = {
        "positions": (size * rng.normal(size=(num_nodes, 3))).astype(dtype),
        "velocities": (size * rng.normal(size=(num_nodes, 3))).astype(dtype),
        "features": rng.normal(size=(num_nodes, num_node_features)).astype(dtype),
    }
    if num_external_vectors:
        vectors = rng.normal(size=(num_nodes, num_external_vectors, 3))
        nodes["vectors"] = vectors.astype(dtype)
    return jraph.GraphsTuple(
        nodes=nodes,
        edges=of_edges or None,
        senders=senders.astype(np.int32),
        receivers=receivers.astype(np.int32),
        n_node=n_node,
        n_edge=np.bincount(owners, minlength=len(n_node)).astype(np.int32),
        globals=None,
    )


def check_all(subject: Any, config: EGNOConfig | None = None, **options: Any) -> dict[str, float]:
    """Runs every check; returns the largest relative error of each by name.

    `check_images` is among them if `graph` has shifts.
    """
    checked = _subject(subject, config, **options)
    checks = (
        check_equivariance,
        check_translation,
        check_permutation,
        check_batch_independence,
        check_padding,
    )
    if graph_lib.shifts_of(checked.graph) is not None:
        checks += (check_images,)
    return {check.__name__: check(checked) for check in checks}


def check_equivariance(
    subject: Any, config: EGNOConfig | None = None, *, reflections: bool = True, **options: Any
) -> float:
    """Checks that rotating (or, with `reflections`, reflecting) the input does so to the output."""
    checked = _subject(subject, config, **options)
    rotation, _ = np.linalg.qr(checked.rng().normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    plain, errors = checked.call(checked.graph, checked.state), []
    for matrix in (rotation, -rotation) if reflections else (rotation,):
        found = checked.call(_moved(checked.graph, matrix), _moved(checked.state, matrix))
        how = f"rotated by a matrix of determinant {np.linalg.det(matrix):+.0f}"
        errors.append(_compare(checked, found, _moved(plain, matrix), how))
    return max(errors)


def check_translation(subject: Any, config: EGNOConfig | None = None, **options: Any) -> float:
    """Checks that translating the input translates the positions and changes nothing else.

    A layer that uses absolute positions fails alone and passes as part of a model, which centres
    them.
    """
    checked = _subject(subject, config, **options)
    # Integer shifts on a grid are exact, so that the input is not rounded.
    graph, state = (_on_grid(tree) for tree in (checked.graph, checked.state))
    shift = np.rint(_SHIFT * checked.rng().normal(size=3))
    plain = checked.call(graph, state)
    found = checked.call(_moved(graph, shift=shift), _moved(state, shift=shift))
    # Positions at a distance of `_SHIFT` have that much less precision in float32.
    loose = checked._replace(tolerance=10 * checked.tolerance)
    return _compare(loose, found, _moved(plain, shift=shift), "translated")


def check_images(subject: Any, config: EGNOConfig | None = None, **options: Any) -> float:
    """Checks that it does not matter which periodic image of each node is given.

    Every node is moved by a vector t_i of its own, and the shifts of edges change by `t_j - t_i`,
    so that displacements stay: positions must move by t_i, and nothing else change. A graph without
    shifts is given random ones.
    """
    checked = _subject(subject, config, **options)
    graph, state = (_on_grid(tree) for tree in (checked.graph, checked.state))
    rng, positions = checked.rng(), graph.nodes["positions"]
    moves = np.rint(_SHIFT * rng.normal(size=positions.shape)).astype(positions.dtype)
    shifts = graph_lib.shifts_of(graph)
    if shifts is None:
        shifts = np.rint(rng.normal(size=(len(graph.senders), 3))).astype(positions.dtype)
    graph = graph._replace(edges={**(graph.edges or _no_features(graph)), "shifts": shifts})
    moved = _moved(graph, shift=moves)
    new_shifts = shifts + moves[graph.senders] - moves[graph.receivers]
    moved = moved._replace(edges={**graph.edges, "shifts": new_shifts})
    plain, found = checked.call(graph, state), checked.call(moved, _moved(state, shift=moves))
    loose = checked._replace(tolerance=10 * checked.tolerance)
    return _compare(loose, found, _moved(plain, shift=moves), "in other images")


def _no_features(graph: jraph.GraphsTuple) -> dict[str, np.ndarray]:
    return {"features": np.zeros((len(graph.senders), 0), graph.nodes["features"].dtype)}


def check_permutation(subject: Any, config: EGNOConfig | None = None, **options: Any) -> float:
    """Checks that the order of the nodes within a graph, and of its edges, does not matter."""
    checked = _subject(subject, config, **options)
    rng, graph = checked.rng(), graph_lib.without_layout(checked.graph)  # that of one order

    def permutation(counts: np.ndarray) -> np.ndarray:
        """Returns a random order of rows that permutes them within each graph."""
        ends = np.cumsum(counts)
        ranges = (np.arange(end - n, end) for end, n in zip(ends, counts, strict=True))
        return np.concatenate([rng.permutation(indices) for indices in ranges])

    order, edges = permutation(graph.n_node), permutation(graph.n_edge)
    place = np.argsort(order)
    permuted = graph._replace(
        nodes=jax.tree.map(lambda x: x[order], graph.nodes),
        edges=jax.tree.map(lambda x: x[edges], graph.edges),
        senders=place[graph.senders[edges]].astype(np.int32),
        receivers=place[graph.receivers[edges]].astype(np.int32),
    )
    found = checked.call(permuted, jax.tree.map(lambda x: x[:, order], checked.state))
    expected = jax.tree.map(lambda x: x[:, order], checked.call(graph, checked.state))
    return _compare(checked, found, expected, "permuted")


def check_batch_independence(
    subject: Any, config: EGNOConfig | None = None, **options: Any
) -> float:
    """Checks that a graph in a batch has the same prediction as alone."""
    checked = _subject(subject, config, **options)
    together, errors, first = checked.call(checked.graph, checked.state), [], 0
    for index, graph in enumerate(graph_lib.unbatch(checked.graph)):
        nodes = slice(first, first + int(graph.n_node.sum()))
        alone = checked.call(graph, jax.tree.map(lambda x, n=nodes: x[:, n], checked.state))
        expected = jax.tree.map(lambda x, n=nodes: x[:, n], together)
        errors.append(_compare(checked, alone, expected, f"graph {index} alone"))
        first = nodes.stop
    return max(errors)


def check_padding(subject: Any, config: EGNOConfig | None = None, **options: Any) -> float:
    """Checks that padding changes no real node, and that padded nodes and gradients are finite."""
    checked = _subject(subject, config, **options)
    num_nodes = checked.graph.nodes["positions"].shape[0]
    padded, _ = graph_lib.pad(
        checked.graph,
        num_nodes=num_nodes + 3,
        num_edges=checked.graph.senders.shape[0] + 4,
        num_graphs=len(checked.graph.n_node) + 2,
    )
    state = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 3), (0, 0)]), checked.state)

    def real(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[:, :num_nodes], tree)

    def total(nodes: Any, state: Any) -> Any:
        result = checked.call(padded._replace(nodes=nodes), state)
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(real(result)))

    found = checked.call(padded, state)
    # A model reads the nodes of the graph, a layer the state.
    gradient = jax.grad(total, (0, 1))(*jax.tree.map(jnp.asarray, (padded.nodes, state)))
    for name, tree in (("an output", found), ("a gradient", gradient)):
        is_finite = all(np.isfinite(x).all() for x in jax.tree.leaves(tree))
        assert is_finite, f"padded: got {name} that is not finite, expected finite numbers"
    return _compare(checked, real(found), checked.call(checked.graph, checked.state), "padded")


def _subject(
    subject: Any,
    config: EGNOConfig | None,
    *,
    graph: jraph.GraphsTuple | None = None,
    times: Any = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> _Subject:
    """Returns the subject with random inputs and weights."""
    if isinstance(subject, _Subject):
        return subject
    rng = np.random.default_rng(as_seed("seed", seed))
    is_model = isinstance(subject, Params | EGNOConfig)
    if is_model:
        config = subject.config if isinstance(subject, Params) else subject
    config = config or _CONFIG
    dtype = "float64" if config.param_dtype == "float64" else "float32"
    is_random = graph is None
    if is_random:
        num = config.num_external_vectors if is_model else 0
        sizes = _feature_sizes(subject)
        graph = random_graph(rng, dtype=dtype, num_external_vectors=num, **sizes)
    tolerance = {"float32": 1e-5, "float64": 1e-10}[dtype] if tolerance is None else tolerance
    if not is_model:
        call, state = _layer(subject, config, graph, rng, dtype)
        return _Subject(call, graph, state, tolerance, seed)
    if times is None:
        num_times = family_of(config).num_times(config) or _NUM_TIMES
        times = config.time_scale * np.arange(1, num_times + 1)
    times = np.asarray(times, graph.nodes["positions"].dtype)
    if isinstance(subject, EGNOConfig):
        params = init(_key(rng), config, graph, times)
        subject = dataclasses.replace(params, weights=_perturbed(params.weights, rng))
    if is_random:
        graph = _shrunk(lambda graph: _apply(subject, graph, times), graph)
    return _Subject(lambda graph, _: _apply(subject, graph, times), graph, None, tolerance, seed)


def _shrunk(call: Callable[[jraph.GraphsTuple], Trajectory], graph: Any) -> jraph.GraphsTuple:
    """Halves all of a random graph until its nodes stay near, as trained models may overflow."""
    for power in range(_MAX_HALVINGS):
        shrunk = graph._replace(
            nodes=jax.tree.map(lambda x, size=0.5**power: x * size, graph.nodes),
            edges=jax.tree.map(lambda x, size=0.5**power: x * size, graph.edges),
        )
        if np.abs(call(shrunk).positions).max() <= _LARGEST_POSITION:
            break
    return shrunk


def _feature_sizes(subject: Any) -> dict[str, int]:
    """Returns the numbers of features of the graphs of `Params`; nothing else has them."""
    if not isinstance(subject, Params):
        return {}
    names = ("num_node_features", "num_edge_features")
    known = zip(names, feature_sizes(subject), strict=True)
    return {name: size for name, size in known if size is not None}


class _Alone(nn.Module):
    """A spatial layer as a separate module."""

    config: EGNOConfig
    layer: LayerFactory

    @nn.compact
    def __call__(self, state: State, graph: jraph.GraphsTuple) -> State:
        return self.layer(self.config, name="layer")(state, graph)


def _layer(
    subject: Any, config: EGNOConfig, graph: jraph.GraphsTuple, rng: np.random.Generator, dtype: str
) -> tuple[Callable[..., State], State]:
    if not (isinstance(subject, str) or callable(subject)):
        raise ValueError(
            f"subject: got {type(subject).__name__}, expected Params, an EGNOConfig, a spatial "
            "layer or the name of one; pass such as egno_jax.testing.check_all('egnn')"
        )
    is_name = isinstance(subject, str)
    layer = layer_factory(dataclasses.replace(config, layer=subject)) if is_name else subject
    shape = (_NUM_TIMES, graph.nodes["positions"].shape[0])

    def normal(*size: int) -> np.ndarray:
        return rng.normal(size=(*shape, *size)).astype(dtype)

    extra = jax.tree.map(lambda x: normal(*x.shape[2:]), initial_extra(layer, config, shape, dtype))
    state = State(normal(3), normal(3), normal(config.hidden_dim), extra)
    module = _Alone(config, layer)
    variables = _perturbed(jax.jit(module.init)(_key(rng), state, graph), rng)
    applied = jax.jit(module.apply)
    return lambda graph, state: applied(variables, state, graph), state


def _key(rng: np.random.Generator) -> jax.Array:
    return jax.random.key(int(rng.integers(2**31)))


def _perturbed(weights: Any, rng: np.random.Generator) -> Any:
    """Changes every weight, so that parts that start at zero have an effect."""
    return jax.tree.map(lambda x: x + (0.05 * rng.normal(size=x.shape)).astype(x.dtype), weights)


def _moved(tree: Any, matrix: np.ndarray | None = None, shift: Any = 0.0) -> Any:
    """Rotates and translates a graph, a state or a trajectory."""
    matrix = np.eye(3) if matrix is None else matrix

    def rotated(x: Any) -> np.ndarray:
        return np.asarray(np.asarray(x, np.float64) @ matrix.T).astype(x.dtype)

    def translated(x: Any) -> np.ndarray:
        return (rotated(x) + shift).astype(x.dtype)

    moved = _mapped(tree, positions=translated, velocities=rotated)
    if isinstance(tree, jraph.GraphsTuple):
        if "vectors" in tree.nodes:
            moved.nodes["vectors"] = rotated(tree.nodes["vectors"])
        if graph_lib.shifts_of(tree) is not None:
            moved = moved._replace(edges={**tree.edges, "shifts": rotated(tree.edges["shifts"])})
        return moved
    if not isinstance(tree, State):
        return moved
    extra = {
        name: x.transform_by_matrix(jnp.asarray(matrix, x.dtype)) for name, x in tree.extra.items()
    }
    return moved._replace(extra=extra)


def _on_grid(tree: Any) -> Any:
    """Rounds positions to a grid on which translations by integers are exact."""
    step = 2.0**-12

    def rounded(x: Any) -> np.ndarray:
        return (np.round(np.asarray(x, np.float64) / step) * step).astype(x.dtype)

    return _mapped(tree, positions=rounded)


def _mapped(tree: Any, **functions: Callable[[Any], np.ndarray]) -> Any:
    """Applies functions to the arrays of these names in a graph, a state or a trajectory."""
    if tree is None:
        return None
    if isinstance(tree, jraph.GraphsTuple):
        new = {name: function(tree.nodes[name]) for name, function in functions.items()}
        return tree._replace(nodes={**tree.nodes, **new})
    new = {name: function(getattr(tree, name)) for name, function in functions.items()}
    return tree._replace(**new) if isinstance(tree, State) else dataclasses.replace(tree, **new)


def _compare(checked: _Subject, found: Any, expected: Any, how: str) -> float:
    """Returns the largest relative error of any output; raises if it is above the tolerance."""
    largest = 0.0
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, a), b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = float(np.abs(a - b).max() / (np.abs(b).max() or 1.0)) if b.size else 0.0
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert error <= checked.tolerance, (
            f"{name}, {how}: got a relative error of {error:.3g}, expected at most "
            f"{checked.tolerance:.3g}"
        )
        largest = max(largest, error)
    return largest
