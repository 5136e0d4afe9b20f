"""Weights as two long vectors, so that an optimizer is a few programs rather than hundreds.

On an accelerator each small array costs a launch in the norm of the gradient, in its clipping, in
the optimizer, and in the average of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from egno_jax import graph as graph_lib
from egno_jax.model import Params
from egno_jax.training.config import is_kernel

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class FlatParams(NamedTuple):
    """The weights of a model, in the order of its tree.

    Attributes:
      kernel: those to which weight decay applies (`is_kernel`); named so that it does here too.
      others: the rest.
    """

    kernel: Float[Array, "A"]
    others: Float[Array, "B"]


def flatten(tree: Any) -> Any:
    """Returns a tree whose every `Params` of one dtype is a `FlatParams`; the tree on a CPU.

    A CPU gains nothing, and its bits would depend on the number of steps in a program.
    """
    if not graph_lib.is_for_accelerator():
        return tree
    return jax.tree.map(_flat, tree, is_leaf=lambda node: isinstance(node, Params))


def unflatten(tree: Any, like: Params) -> Any:
    """Returns a tree whose every `FlatParams` is a `Params` of the shapes of `like`."""

    def grown(node: Any) -> Any:
        return _grown(node, like) if isinstance(node, FlatParams) else node

    return jax.tree.map(grown, tree, is_leaf=lambda node: isinstance(node, FlatParams))


def _flat(node: Any) -> Any:
    leaves = jax.tree.leaves(node)
    if not isinstance(node, Params) or len({leaf.dtype for leaf in leaves}) != 1:
        return node
    parts: tuple[list[Array], list[Array]] = ([], [])
    for leaf, is_decayed in zip(leaves, jax.tree.leaves(is_kernel(node)), strict=True):
        parts[not is_decayed].append(leaf.reshape(-1))
    nothing = jnp.zeros(0, leaves[0].dtype)
    return FlatParams(*(jnp.concatenate([*part, nothing]) for part in parts))


def _grown(flat: FlatParams, like: Params) -> Params:
    leaves, structure = jax.tree.flatten(like)
    starts, found = [0, 0], []
    for leaf, is_decayed in zip(leaves, jax.tree.leaves(is_kernel(like)), strict=True):
        index = int(not is_decayed)
        part = jax.lax.slice_in_dim(flat[index], starts[index], starts[index] + leaf.size)
        found.append(part.reshape(leaf.shape))
        starts[index] += leaf.size
    return structure.unflatten(found)
