"""The CPU kernels: when they can be used, and how they are called.

A kernel is a custom call of XLA, `kernels.cc`. Its operands are the leaves of dicts, in the order
of `jax.tree.leaves`: names are sorted. `enum Operand` in its C++ header lists the same names in the
same order. The operands of a derivative are those of the function, the residuals and the
cotangents; the gradient of an operand has the operand's position. All arithmetic is in float32,
whatever the requested precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from egno_jax.ops import fourier
from egno_jax.ops.kernels import library
from egno_jax.ops.kernels.accelerated import Kernel

if TYPE_CHECKING:
    from jaxtyping import Array

    from egno_jax.ops.kernels.accelerated import Arguments

    Residuals = dict[str, Array]
    Types = dict[str, jax.ShapeDtypeStruct]

# The longest vector of a processor, in numbers. The kernels have no tails.
_LANES = 16


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _fits(args: Arguments, shapes: dict[str, Any], widths: Sequence[int]) -> bool:
    """Returns whether arguments are float32 of these shapes, not empty, of full vectors."""
    arrays = {name: args[name] for name in shapes}
    return (
        jax.tree.map(jnp.shape, arrays) == shapes
        and all(x.dtype == jnp.float32 for x in jax.tree.leaves(arrays))
        and all(width > 0 and width % _LANES == 0 for width in widths)
        and 0 not in shapes["features"]
    )


def _mlp_shapes(in_width: int, width: int, out_width: int) -> dict[str, Any]:
    return {
        "linear_0": {"kernel": (in_width, width), "bias": (width,)},
        "linear_1": {"kernel": (width, out_width), "bias": (out_width,)},
    }


def _call(name: str, results: Any, *operands: Any) -> Any:
    """Calls a kernel with the leaves of the operands; returns results of the given types."""
    types, structure = jax.tree.flatten(results)
    return structure.unflatten(jax.ffi.ffi_call(name, types)(*jax.tree.leaves(operands)))


# Operands that have one row for each edge.
_INDICES = ("receivers", "senders")
_OF_EDGES = ("edge_features", "edge_shifts")
_IGNORED = ("precision", "num_graphs", "incoming", "outgoing")


class _OverEdges:
    """What the kernels that sum over edges have in common."""

    name: str

    @classmethod
    def _fits(cls, args: Arguments, shapes: dict[str, Any], widths: Sequence[int]) -> bool:
        """Returns whether the arguments fit; `shapes` are those of all but edges and positions."""
        times, nodes = shapes["features"][:2]
        edges = args["edge_features"].shape[0]
        shapes = {
            **shapes,
            **{"positions": (times, nodes, 3), "edge_features": args["edge_features"].shape},
            **({"edge_shifts": (edges, 3)} if "edge_shifts" in args else {}),
        }
        indices = [args[name] for name in _INDICES]
        return (
            edges > 0
            and all(x.shape == (edges,) for x in indices)
            and {x.dtype for x in indices} <= {jnp.dtype("int32"), jnp.dtype("int64")}
            and _fits(args, shapes, widths)
        )

    @staticmethod
    def operands(args: Arguments) -> Arguments:
        num_nodes = args["positions"].shape[1]

        def narrow(indices: Array) -> Array:
            """Returns int32; an index out of range stays out of range, on the same side."""
            if indices.dtype == jnp.int32:
                return indices
            return jnp.clip(indices, -num_nodes - 1, num_nodes).astype(jnp.int32)

        shifts = {"edge_shifts": jnp.zeros((0, 3), jnp.float32)}
        rest = {name: x for name, x in args.items() if name not in _IGNORED}
        return shifts | rest | {name: narrow(args[name]) for name in _INDICES}

    @classmethod
    def vjp(cls, args: Arguments, residuals: Residuals, cotangents: Any, wanted: Any) -> Arguments:
        operands = cls.operands(args)
        floating = {name: x for name, x in operands.items() if name not in _INDICES}
        gradients = jax.tree.map(lambda x: _floats(*x.shape), floating)
        # The kernel returns the gradients of values of edges for each time, or for none.
        for name in _OF_EDGES:
            num_times = args["positions"].shape[0] if wanted.get(name) else 0
            gradients[name] = _floats(num_times, *operands[name].shape)
        name = f"egno_{cls.name}_vjp"
        gradients = _call(name, gradients, operands, residuals, tuple(cotangents))
        return gradients | {name: jnp.sum(gradients[name], axis=0) for name in _OF_EDGES}


class _MessageSums(_OverEdges):
    """The kernel of `egno_jax.ops.message_sums`."""

    name = "message_sums"

    @classmethod
    def fits(cls, args: Arguments) -> bool:
        features, edge_features = args["features"], args["edge_features"]
        kernel = args["message_mlp"]["linear_0"]["kernel"]
        if (features.ndim, edge_features.ndim, kernel.ndim) != (3, 2, 2):
            return False
        depth, width = features.shape[2], kernel.shape[1]
        shapes = {
            "features": features.shape,
            "message_mlp": _mlp_shapes(1 + 2 * depth + edge_features.shape[1], width, width),
            "position_mlp": _mlp_shapes(width, width, 1),
        }
        return cls._fits(args, shapes, (depth, width))

    @staticmethod
    def residuals(args: Arguments) -> Types:
        width = args["message_mlp"]["linear_0"]["kernel"].shape[1]
        terms = _floats(*args["features"].shape[:2], width)
        return {"of_receiver": terms, "of_sender": terms}

    @classmethod
    def function(cls, args: Arguments) -> tuple[tuple[Array, Array], Residuals]:
        residuals = cls.residuals(args)
        results = residuals["of_receiver"], _floats(*args["positions"].shape)
        return _call("egno_message_sums", (results, residuals), cls.operands(args))


class _VectorSums(_OverEdges):
    """The kernel of `egno_jax.ops.vector_sums`; `features` are terms of receivers."""

    name = "vector_sums"

    @classmethod
    def fits(cls, args: Arguments) -> bool:
        features, edge_features = args["features"], args["edge_features"]
        vectors = args["node_vectors"]
        if (features.ndim, vectors.ndim, edge_features.ndim) != (3, 4, 2):
            return False
        width, num_vectors = features.shape[2], vectors.shape[3]

        def layer(columns: int) -> dict[str, tuple[int, ...]]:
            return {"kernel": (width, columns), "bias": (columns,)}

        shapes = {
            "features": features.shape,
            "features_of_senders": features.shape,
            "node_vectors": (*features.shape[:2], 3, num_vectors),
            "layers": {
                "of_distance": (width,),
                "of_edge": (edge_features.shape[1], width),
                "of_invariants": (3 * num_vectors, width),
                "message": layer(width),
                "gates": layer(2 * num_vectors),
                "step": layer(1),
            },
        }
        return cls._fits(args, shapes, (width, num_vectors))

    @classmethod
    def function(cls, args: Arguments) -> tuple[tuple[Array, ...], Residuals]:
        names = ("features", "positions", "node_vectors")
        results = tuple(_floats(*args[name].shape) for name in names)
        return _call("egno_vector_sums", results, cls.operands(args)), {}


class _TwoLayers:
    """The kernels of `egno_jax.ops.feature_update` and `velocity_factor`: two layers at each node.

    Both have one signature in C++, where a velocity factor has messages of width 0. `mlp` is the
    name of the argument that holds the weights.
    """

    def __init__(self, name: str, mlp: str):
        self.name, self.mlp = name, mlp

    def fits(self, args: Arguments) -> bool:
        names = [name for name in ("features", "messages") if name in args]
        layers = [args[self.mlp][name]["kernel"] for name in ("linear_0", "linear_1")]
        if any(args[name].ndim != 3 for name in names) or any(x.ndim != 2 for x in layers):
            return False
        width, out_width = (x.shape[1] for x in layers)
        depths = {name: args[name].shape[2] for name in names}
        rows = args["features"].shape[:2]
        shapes: dict[str, Any] = {name: (*rows, depth) for name, depth in depths.items()}
        shapes[self.mlp] = _mlp_shapes(sum(depths.values()), width, out_width)
        if "messages" not in args:  # one number for each node
            return out_width == 1 and _fits(args, shapes, [*depths.values(), width])
        return _fits(args, shapes, [*depths.values(), width, out_width])

    def residuals(self, args: Arguments) -> Types:
        width = args[self.mlp]["linear_0"]["kernel"].shape[1]
        return {"hidden": _floats(*args["features"].shape[:2], width)}

    def operands(self, args: Arguments) -> Arguments:
        nothing = jnp.zeros((*args["features"].shape[:2], 0), jnp.float32)
        messages = args.get("messages", nothing)
        return {"features": args["features"], "messages": messages, "mlp": args[self.mlp]}

    def function(self, args: Arguments) -> tuple[Array, Residuals]:
        out_width = args[self.mlp]["linear_1"]["kernel"].shape[1]
        result = _floats(*args["features"].shape[:2], out_width)
        return _call(f"egno_{self.name}", (result, self.residuals(args)), self.operands(args))

    def vjp(
        self, args: Arguments, residuals: Residuals, cotangent: Array, wanted: Any
    ) -> Arguments:
        operands = self.operands(args)
        gradients = jax.tree.map(lambda x: _floats(*x.shape), operands)
        gradients = _call(f"egno_{self.name}_vjp", gradients, operands, residuals, cotangent)
        return gradients | {self.mlp: gradients["mlp"]}


class _TemporalConv:
    """The kernel of `egno_jax.ops.temporal_conv`."""

    @staticmethod
    def fits(args: Arguments) -> bool:
        features, kernel = args["features"], args["kernel"]
        if (features.ndim, kernel.ndim) != (3, 4):
            return False
        modes, width = kernel.shape[1], features.shape[2]
        shapes = {"features": features.shape, "kernel": (2, modes, width, width)}
        num_live = fourier.num_live_modes(features.shape[0], modes)
        return 0 < num_live <= fourier.MAX_DFT_MODES and _fits(args, shapes, [width])

    @staticmethod
    def operands(args: Arguments) -> Arguments:
        num_times, modes = args["features"].shape[0], args["kernel"].shape[1]
        num_live = fourier.num_live_modes(num_times, modes)
        to_coefficients, to_times, mode_of = fourier.real_basis(num_times, num_live)
        return {
            "features": args["features"],
            "kernel": args["kernel"],
            "mode_of": jnp.asarray(mode_of),
            "to_coefficients": jnp.asarray(to_coefficients, jnp.float32),
            "to_times": jnp.asarray(to_times, jnp.float32),
        }

    @classmethod
    def function(cls, args: Arguments) -> tuple[Array, Residuals]:
        result = _floats(*args["features"].shape)
        return _call("egno_temporal_conv", result, cls.operands(args)), {}

    @classmethod
    def vjp(cls, args: Arguments, residuals: Residuals, cotangent: Array, wanted: Any) -> Arguments:
        gradients = {name: _floats(*args[name].shape) for name in ("features", "kernel")}
        return _call("egno_temporal_conv_vjp", gradients, cls.operands(args), cotangent)


def _is_loaded() -> bool:
    return library.load().is_loaded


MESSAGE_SUMS = Kernel.of(_MessageSums, _is_loaded)
FEATURE_UPDATE = Kernel.of(_TwoLayers("feature_update", "feature_mlp"), _is_loaded)
VELOCITY_FACTOR = Kernel.of(_TwoLayers("velocity_factor", "velocity_mlp"), _is_loaded)
TEMPORAL_CONV = Kernel.of(_TemporalConv, _is_loaded)
VECTOR_SUMS = Kernel.of(_VectorSums, _is_loaded)
