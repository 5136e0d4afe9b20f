"""Programs that run without this library: a model as StableHLO in one file, through `jax.export`.

The file holds the weights, works for any numbers of times, nodes, edges and graphs, at least one of
each, and needs only JAX and flatbuffers where it runs:

    from jax import export
    program = export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    trajectory = program.call(graph, times)["positions"]

Here a graph is a dictionary with the names of `jraph.GraphsTuple`: `nodes`, `edges`, `senders`,
`receivers` and `n_node`.

`Params`, `Trajectory` and `jraph.GraphsTuple` are registered too, so that functions of them, such
as `egno_jax.apply`, can be exported and serialized with `jax.export`. Such a file needs egno_jax.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jraph
from jax import export as jax_export

from egno_jax import graph as graph_lib
from egno_jax import recipe
from egno_jax.checks import as_path
from egno_jax.extras import require
from egno_jax.families import class_name, config_of, family_of
from egno_jax.files import replacing
from egno_jax.model import Trajectory, apply, checked_inputs
from egno_jax.params import Params, check_feature_sizes, check_params, feature_sizes

if TYPE_CHECKING:
    from jaxtyping import Array, Float

PLATFORMS = ("cpu", "cuda", "tpu")
"""Where an exported program runs unless other platforms are given."""

# The axis that each field of a graph has first.
_AXES = {"nodes": "N", "edges": "E", "globals": "G", "senders": "E", "receivers": "E"}


def export(
    params: Params,
    path: str | os.PathLike[str],
    *,
    graph: jraph.GraphsTuple | None = None,
    times: Float[Array, "P *G"] | None = None,
    platforms: Sequence[str] = PLATFORMS,
    vjp_order: int = 0,
    overwrite: bool = False,
) -> None:
    """Writes a model as a StableHLO program that runs without egno_jax.

    `jax.export.deserialize` reads it. `call(graph, times)` then returns `positions` `[P, N, 3]`,
    `velocities` `[P, N, 3]` and `features` `[P, N, C]` in a dictionary. `graph` is a dictionary:
    `nodes` with `positions` `[N, 3]`, `velocities` `[N, 3]` and `features` `[N, F]`; `edges` with
    `features` `[E, D]` if the model has edge features; `senders` and `receivers` `[E]` and `n_node`
    `[G]`, int32. P, N, E and G are those of each call, each at least 1: give a graph without edges
    a padding edge, `egno_jax.graph.pad(graph, num_edges=1)`. The program has the plain formulas,
    not the kernels of the CPU. Values are not checked.

    Args:
      params: the model.
      path: the file.
      graph: an example of a graph, if it has more arrays than those above or other dtypes; only
        names, dtypes and the axes after the first matter.
      times: an example of times, if they are `[P, G]` or not float32.
      platforms: where the program runs.
      vjp_order: how often the program can be differentiated (`call` works under `jax.grad`).
      overwrite: whether to replace an existing file.

    Raises:
      ValueError: these are not valid parameters, or not those of the example; the model is the
        baseline `egnn-s`, which needs a fixed P; a platform is unknown; or the file exists and
        `overwrite` is False.
      ImportError: flatbuffers is not installed (extra `export`).
    """
    require("flatbuffers", "export")
    check_params(params)
    path = as_path("path", path)
    if path.exists() and not overwrite:
        raise ValueError(f"path: got {path}, which exists; choose another, or pass overwrite=True")
    if isinstance(platforms, str) or not platforms or not {*platforms} <= {*PLATFORMS}:
        raise ValueError(
            f"platforms: got {platforms!r}, expected a list of some of {PLATFORMS}; a GPU of "
            'NVIDIA is "cuda"'
        )
    if graph is not None:
        checked, _ = checked_inputs(graph, [1.0] if times is None else times)
        check_feature_sizes(params, checked)
    sizes = _symbolic_sizes(params)
    arguments = _graph_types(params, graph, sizes), _times_type(times, sizes)

    def predict(graph: dict[str, Any], times: Array) -> dict[str, Array]:
        trajectory = apply(params, _as_graphs_tuple(graph), times)
        return {name: getattr(trajectory, name) for name in ("positions", "velocities", "features")}

    program = jax_export.export(jax.jit(predict), platforms=tuple(platforms))(*arguments)
    with replacing(path) as partial:
        partial.write_bytes(program.serialize(vjp_order=vjp_order))


def _symbolic_sizes(params: Params) -> dict[str, Any]:
    """Returns P, N, E and G as symbols; P is a number where a baseline predicts one time."""
    letters = ("P", "N", "E", "G")
    sizes = dict(zip(letters, jax_export.symbolic_shape(", ".join(letters)), strict=True))
    fixed = family_of(params.config).num_times(params.config)
    return sizes if fixed is None else sizes | {"P": fixed}


def _graph_types(
    params: Params, graph: jraph.GraphsTuple | None, sizes: dict[str, Any]
) -> dict[str, Any]:
    """Returns shape and dtype of every array of the program's graph."""
    if graph is None:
        return _usual_graph_types(params, sizes)
    graph = graph_lib.without_layout(graph)
    return {
        field: jax.tree.map(
            lambda x, letter=letter: jax.ShapeDtypeStruct(
                (sizes[letter], *jnp.shape(x)[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
            ),
            getattr(graph, field),
        )
        for field, letter in (*_AXES.items(), ("n_node", "G"))
        if getattr(graph, field) is not None
    }


def _usual_graph_types(params: Params, sizes: dict[str, Any]) -> dict[str, Any]:
    num_node_features, num_edge_features = feature_sizes(params)
    if num_node_features is None or num_edge_features is None:
        raise ValueError(
            "graph: got None, expected an example, because the weights of this model do not "
            "determine the numbers of features; pass a graph"
        )

    def of(dtype: Any, letter: str, *rest: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((sizes[letter], *rest), dtype)

    widths = {"positions": 3, "velocities": 3, "features": num_node_features}
    types = {"nodes": {name: of(jnp.float32, "N", size) for name, size in widths.items()}}
    if num_vectors := params.config.num_external_vectors:
        types["nodes"]["vectors"] = of(jnp.float32, "N", num_vectors, 3)
    if num_edge_features:
        types["edges"] = {"features": of(jnp.float32, "E", num_edge_features)}
    indices = {name: of(jnp.int32, letter) for name, letter in (("senders", "E"), ("n_node", "G"))}
    return types | indices | {"receivers": indices["senders"]}


def _times_type(times: Any, sizes: dict[str, Any]) -> jax.ShapeDtypeStruct:
    if times is None:
        return jax.ShapeDtypeStruct((sizes["P"],), jnp.float32)
    times = graph_lib.as_times(times)
    letters = "PG"[: len(jnp.shape(times))]
    dtype = jax.dtypes.canonicalize_dtype(times.dtype)
    return jax.ShapeDtypeStruct(tuple(sizes[letter] for letter in letters), dtype)


def _as_graphs_tuple(graph: dict[str, Any]) -> jraph.GraphsTuple:
    """Returns the graph of a dictionary, with the numbers of edges counted."""
    ids = graph_lib.graph_ids(graph["n_node"], graph["nodes"]["positions"].shape[0])
    owners = jnp.take(ids, graph["receivers"], mode="clip")
    n_edge = jnp.zeros_like(graph["n_node"]).at[owners].add(1)
    fields = {"edges": None, "globals": None, **graph}
    return jraph.GraphsTuple(**fields, n_edge=n_edge)


def _config_to_bytes(auxiliary: tuple[Any, ...]) -> bytes:
    config, made_by = auxiliary
    record = made_by and dataclasses.asdict(made_by)
    return json.dumps([class_name(type(config)), config.to_json(), record]).encode()


def _config_from_bytes(data: bytes) -> tuple[Any, ...]:
    name, text, record = json.loads(data)
    return config_of(json.loads(text), name), record and recipe.from_record(record)


jax_export.register_pytree_node_serialization(
    Params,
    serialized_name="egno_jax.Params",
    serialize_auxdata=_config_to_bytes,
    deserialize_auxdata=_config_from_bytes,
)
jax_export.register_pytree_node_serialization(
    Trajectory,
    serialized_name="egno_jax.Trajectory",
    serialize_auxdata=lambda auxiliary: b"",
    deserialize_auxdata=lambda data: (),
)
jax_export.register_namedtuple_serialization(jraph.GraphsTuple, serialized_name="jraph.GraphsTuple")
