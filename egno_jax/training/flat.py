"""Weights as two long vectors, so that an optimizer is a few programs rather than hundreds.

On an accelerator each small array costs a launch in the norm of the gradient, in its clipping, in
the optimizer, and in the average of the weights. A run keeps them flat from its first step to its
last; whoever needs the weights of a layer, such as a checkpoint, unflattens the state.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from egno_jax import graph as graph_lib
from egno_jax.model import Params
from egno_jax.training.config import is_kernel

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("kernel", "others"),
    meta_fields=("structure", "shapes"),
)
@dataclasses.dataclass(frozen=True)
class FlatParams:
    """The weights of a model, in the order of its tree.

    Attributes:
      kernel: those to which weight decay applies (`is_kernel`); named so that it does here too.
      others: the rest.
      structure: the tree, a `Params`.
      shapes: the shapes of its leaves.
    """

    kernel: Float[Array, "A"]
    others: Float[Array, "B"]
    structure: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]


def flatten(tree: Any) -> Any:
    """Returns a tree whose every `Params` is a `FlatParams`.

    Returns the tree itself on a CPU, which would gain nothing, and whose bits would depend on the
    number of steps in a program; and if the weights of a model have several dtypes.
    """
    if not graph_lib.is_for_accelerator():
        return tree
    nodes = jax.tree.leaves(tree, is_leaf=_is_params)
    is_uniform = all(_has_one_dtype(node) for node in nodes if _is_params(node))
    return _flattened(tree) if is_uniform else tree


def flatten_like(params: Params, like: Params | FlatParams) -> Params | FlatParams:
    """Returns weights, or their gradients, in the form that `like` has."""
    return _flattened(params) if _is_flat(like) else params


def unflatten(tree: Any) -> Any:
    """Returns a tree whose every `FlatParams` is a `Params`: the inverse of `flatten`."""
    nodes = jax.tree.leaves(tree, is_leaf=_is_flat)
    return _unflattened(tree) if any(map(_is_flat, nodes)) else tree


def _is_params(node: Any) -> bool:
    return isinstance(node, Params)


def _is_flat(node: Any) -> bool:
    return isinstance(node, FlatParams)


def _has_one_dtype(params: Params) -> bool:
    return len({leaf.dtype for leaf in jax.tree.leaves(params)}) == 1


@jax.jit  # one program outside of others, where each leaf would be one
def _flattened(tree: Any) -> Any:
    return jax.tree.map(
        lambda node: _flatten_params(node) if _is_params(node) else node, tree, is_leaf=_is_params
    )


@jax.jit
def _unflattened(tree: Any) -> Any:
    return jax.tree.map(
        lambda node: _unflatten_params(node) if _is_flat(node) else node, tree, is_leaf=_is_flat
    )


def _flatten_params(params: Params) -> FlatParams:
    leaves, structure = jax.tree.flatten(params)
    parts: tuple[list[Array], list[Array]] = ([], [])
    for leaf, is_decayed in zip(leaves, jax.tree.leaves(is_kernel(params)), strict=True):
        parts[not is_decayed].append(leaf.reshape(-1))
    nothing = jnp.zeros(0, leaves[0].dtype)
    vectors = (jnp.concatenate([*part, nothing]) for part in parts)
    return FlatParams(*vectors, structure, tuple(leaf.shape for leaf in leaves))


def _unflatten_params(flat: FlatParams) -> Params:
    vectors = [
        jax.lax.platform_dependent(vector, tpu=lambda x: x, default=_as_product)
        for vector in (flat.kernel, flat.others)
    ]
    starts, found = [0, 0], []
    is_decayed = jax.tree.leaves(is_kernel(flat.structure.unflatten(range(len(flat.shapes)))))
    for shape, index in zip(flat.shapes, (int(not each) for each in is_decayed), strict=True):
        start, starts[index] = starts[index], starts[index] + math.prod(shape)
        part = jax.lax.slice_in_dim(vectors[index], start, starts[index])
        found.append(part.reshape(shape))
    # Without the barrier each layer has slices at other places in its programs, and so programs of
    # its own, which take several times as long to compile.
    return jax.lax.optimization_barrier(flat.structure.unflatten(found))


def _as_product(vector: Float[Array, "A"]) -> Float[Array, "A"]:
    # XLA's GPU compiler makes one launch of equally long slices of a product, not of an array.
    return vector * jax.lax.optimization_barrier(jnp.ones((), vector.dtype))
