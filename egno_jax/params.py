"""Parameters of a model, and checks that weights, config and graph fit together."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax.config import EGNOConfig
from egno_jax.families import class_name, config_of, family_of
from egno_jax.nn.block import layer_factory
from egno_jax.recipe import GraphRecipe, from_record

# The names of F and D in `model_record`.
_FEATURE_SIZES = ("nodes", "edges")

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shapes = dict[str, tuple[int, ...]]
    Sizes = tuple[int | None, int | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params:
    """A model: its weights, which are pytree leaves, and its configuration, which is static.

    Attributes:
      weights: nested dict of arrays, exactly Linen's `variables["params"]`, one subtree a block.
      config: the configuration that the weights belong to.
      recipe: how its graphs are made of states, for `egno_jax.predict`; None: in your own code.
    """

    weights: dict[str, Any]
    config: EGNOConfig = dataclasses.field(metadata={"static": True})
    recipe: GraphRecipe | None = dataclasses.field(default=None, metadata={"static": True})

    def __repr__(self) -> str:
        """Returns a line with the number of the weights, not their values."""
        leaves = jax.tree.leaves(self.weights)
        is_of_arrays = all(hasattr(leaf, "shape") for leaf in leaves)
        weights = f"<{sum(map(np.size, leaves))} weights>" if is_of_arrays else self.weights
        return f"Params({weights}, {self.config}, recipe={self.recipe})"

    @property
    def predicts_velocities(self) -> bool:
        """Whether the model was trained on velocities, `config.velocity_weight` > 0."""
        return self.config.velocity_weight > 0


def weight_shapes(config: EGNOConfig, num_node_features: int, num_edge_features: int) -> Shapes:
    """Returns the shape of every weight that `init` makes, by path such as `a/b/kernel`."""
    # Shapes are the same in every dtype, and float32 can always be traced.
    config = dataclasses.replace(config, dtype=None, param_dtype="float32")
    made_by = family_of(config), layer_factory(config)
    return dict(_weight_shapes(config, num_node_features, num_edge_features, made_by))


@functools.lru_cache(maxsize=256)
def _weight_shapes(
    config: EGNOConfig, num_node_features: int, num_edge_features: int, made_by: Any
) -> Shapes:
    """Traces the module on two nodes; `made_by` only distinguishes layers of the same name."""
    edges = graph_lib.fully_connected_edges(2)
    nodes = {"positions": 3, "velocities": 3, "features": num_node_features}
    edge_features = {"features": np.zeros((2, num_edge_features), np.float32)}
    arrays = {name: np.zeros((2, size), np.float32) for name, size in nodes.items()}
    if config.num_external_vectors:
        arrays["vectors"] = np.zeros((2, config.num_external_vectors, 3), np.float32)
    graph = jraph.GraphsTuple(
        nodes=arrays,
        edges=edge_features if num_edge_features else None,
        senders=edges.senders,
        receivers=edges.receivers,
        globals=None,
        n_node=np.array([2], np.int32),
        n_edge=np.array([2], np.int32),
    )
    module = family_of(config).module(config)
    made = jax.eval_shape(module.init, jax.random.key(0), graph, np.ones(1, np.float32))
    return _shapes_of(made["params"])


def _shapes_of(weights: Any) -> Shapes:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
    }


def feature_sizes(params: Params) -> Sizes:
    """Returns F and D, the numbers of node and edge features that the weights were made for.

    They are inferred from the weights whose shapes grow with F or D. None if no shape does; then
    any number is accepted.

    Raises:
      ValueError: the weights are not those of the config; names one.
    """
    config, found = params.config, _shapes_of(params.weights)
    base = weight_shapes(config, 1, 1)
    per_node, per_edge = (_growth(base, weight_shapes(config, *s)) for s in ((2, 1), (1, 2)))
    num_nodes = num_edges = None
    for dimension in sorted(per_node.keys() - per_edge.keys())[:1]:
        growth = per_node[dimension]
        num_nodes = 1 + _excess(config, found, base, dimension, growth) // growth
    for dimension in sorted(per_edge, key=lambda each: each in per_node)[:1]:
        growth, more_nodes = per_edge[dimension], 0 if num_nodes is None else num_nodes - 1
        from_nodes = per_node.get(dimension, 0) * more_nodes
        excess = _excess(config, found, base, dimension, growth - from_nodes) - from_nodes
        num_edges = 1 + excess // growth
    return num_nodes, num_edges


def model_record(params: Params) -> dict[str, Any]:
    """Returns what a file says of a model besides its weights; raises as `feature_sizes` does."""
    return {
        "config": dataclasses.asdict(params.config),
        "config_class": class_name(type(params.config)),
        "feature_sizes": dict(zip(_FEATURE_SIZES, feature_sizes(params), strict=True)),
        "recipe": None if params.recipe is None else dataclasses.asdict(params.recipe),
    }


def read_model_record(
    record: Mapping[str, Any],
) -> tuple[EGNOConfig, GraphRecipe | None, Sizes | None]:
    """Returns config, recipe, and F and D of a `model_record`; no F and D if 0.1 wrote it.

    Raises:
      ValueError: the class of the config is not registered, or an entry is not valid.
    """
    config = config_of(record["config"], record.get("config_class"))
    made_by, sizes = record.get("recipe"), record.get("feature_sizes")
    recipe = None if made_by is None else from_record(made_by)
    if sizes is None:
        return config, recipe, None
    numbers = tuple(map(sizes.get, _FEATURE_SIZES)) if isinstance(sizes, dict) else ()
    if not numbers or not all(type(number) in (int, type(None)) for number in numbers):
        raise ValueError(f"feature_sizes: got {sizes!r}, expected two numbers")
    return config, recipe, numbers


def _growth(base: Shapes, grown: Shapes) -> dict[tuple[str, int], int]:
    """Returns by how much each dimension of the weights grew, by path and axis."""
    return {
        (path, axis): grown[path][axis] - size
        for path, shape in base.items()
        for axis, size in enumerate(shape)
        if grown[path][axis] != size
    }


def _excess(
    config: EGNOConfig, found: Shapes, base: Shapes, dimension: tuple[str, int], most_missing: int
) -> int:
    """Returns how much larger a dimension is than with one node feature and one edge feature.

    Without that feature it is smaller by at most `most_missing`.
    """
    path, axis = dimension
    shape, expected = found.get(path, ()), base[path]
    if len(shape) != len(expected) or shape[axis] < expected[axis] - most_missing:
        least = list(expected)
        least[axis] -= most_missing
        raise ValueError(
            f"params.weights: got {path} of shape {found.get(path)}, expected at least "
            f"{tuple(least)} with {_sizes_text(config)}; use the tree that egno_jax.init makes, "
            'variables["params"] of the Linen module, with the config that it was made with'
        )
    return shape[axis] - expected[axis]


def _sizes_text(config: EGNOConfig) -> str:
    """Returns the fields of a config that determine shapes, for a message."""
    names = ("layer", "num_layers", "hidden_dim", "num_modes", "time_embed_dim")
    fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in names)
    return f"config({fields})"


def check_params(params: Params) -> None:
    """Applies `check_config` and `check_weights`."""
    if isinstance(params, Params):
        check_config(params.config)
    check_weights(params)


def check_weights(params: Params, sizes: Sizes | None = None) -> None:
    """Checks that the weights, of any dtype, are the tree that their config describes.

    `sizes` are F and D if they are known; None: `feature_sizes`. The ValueError names the weight,
    its shape and the one expected.
    """
    if not isinstance(params, Params):
        raise ValueError(
            f"params: got {type(params).__name__}, expected egno_jax.Params; make them with "
            'egno_jax.init, or of a Linen module: Params(weights=variables["params"], '
            "config=config)"
        )
    num_nodes, num_edges = feature_sizes(params) if sizes is None else sizes
    expected = weight_shapes(params.config, num_nodes or 0, num_edges or 0)
    found = _shapes_of(params.weights)
    for path in sorted(found.keys() | expected.keys()):
        if found.get(path) != expected.get(path):
            raise ValueError(
                f"params.weights: got {path} of shape {found.get(path)}, expected "
                f"{expected.get(path)} with {_sizes_text(params.config)}; use the config that the "
                "weights were made with"
            )


def check_config(config: EGNOConfig) -> None:
    """Checks that the family and the layer are registered, and that JAX can use the dtypes.

    Raises:
      ValueError: they are not; or a dtype is float64 and JAX's x64 mode is off.
    """
    family_of(config)
    layer_factory(config)
    for name in ("dtype", "param_dtype"):
        dtype = getattr(config, name)
        if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"config.{name}: got {dtype!r}, expected 32 bits or fewer without x64 mode; call "
                'jax.config.update("jax_enable_x64", True) first'
            )


def check_feature_sizes(params: Params, graph: jraph.GraphsTuple) -> None:
    """Checks that a graph, or a stack of them, has the numbers of features of the weights."""
    found = graph_feature_sizes(graph)
    for key, size, expected in zip(("nodes", "edges"), found, feature_sizes(params), strict=True):
        if expected is None or size == expected:
            continue
        message = (
            f"graph.{key}['features']: got {size} features, expected {expected} by the weights; "
            "build the graph with the features that the model was trained on"
        )
        if key == "nodes" and type(params.config) is EGNOConfig:
            embed_dim = params.config.time_embed_dim
            message += (
                f" (for a converted checkpoint check config.time_embed_dim={embed_dim} too: the "
                f"weights determine only the sum, {expected + embed_dim})"
            )
        raise ValueError(message)


def check_external_vectors(config: EGNOConfig, graph: jraph.GraphsTuple) -> None:
    """Checks that a graph has the external vectors that the model was made for."""
    num = graph.nodes["vectors"].shape[-2] if "vectors" in graph.nodes else 0
    if num != config.num_external_vectors:
        raise ValueError(
            f"graph.nodes['vectors']: got {num} external vectors, expected "
            f"{config.num_external_vectors} by config.num_external_vectors; give the graph the "
            "vectors that the model was made with"
        )


def graph_feature_sizes(graph: jraph.GraphsTuple) -> tuple[int, int]:
    """Returns F and D of a graph, D = 0 without edge features."""
    num_edge_features = 0 if graph.edges is None else graph.edges["features"].shape[-1]
    return graph.nodes["features"].shape[-1], num_edge_features
