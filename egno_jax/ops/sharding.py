"""Sharding constraints for arrays with a time axis; no-ops without a mesh.

The mesh is that of `jax.set_mesh`, with automatic axes: `"data"` shards batches of graphs, `"time"`
the requested times. `egno_jax.apply` makes explicit axes automatic. JAX traces a function
separately for each mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

if TYPE_CHECKING:
    from jaxtyping import Array, Float

DATA_AXIS = "data"
TIME_AXIS = "time"


def axis_size(name: str) -> int:
    """Returns the number of shards along an automatic axis of the current mesh; 1 without it."""
    mesh = jax.sharding.get_abstract_mesh()
    if name not in mesh.axis_names:
        return 1
    index = mesh.axis_names.index(name)
    return mesh.axis_sizes[index] if mesh.axis_types[index] == AxisType.Auto else 1


def is_partitioned() -> bool:
    """Returns whether XLA partitions the current program over a mesh with automatic axes."""
    return any(axis_size(name) > 1 for name in jax.sharding.get_abstract_mesh().axis_names)


def splits_only_times(num_times: int) -> bool:
    """Returns whether the current mesh splits P times evenly, and nothing else."""
    split = [name for name in jax.sharding.get_abstract_mesh().axis_names if axis_size(name) > 1]
    return split == [TIME_AXIS] and num_times % axis_size(TIME_AXIS) == 0


def map_times(function: Callable[..., Any], args: dict[str, Any], with_times: Sequence[str]) -> Any:
    """Applies a function to the times of each device, as if the device were alone.

    Args:
      function: takes arguments by name, and returns arrays whose first axis is that of times.
      args: its arguments.
      with_times: the names of those whose first axis is that of times; the others are the same at
        all times, and their gradient is summed over the devices.
    """
    specs = {name: PartitionSpec(TIME_AXIS if name in with_times else None) for name in args}
    mapped = jax.shard_map(
        lambda args: function(**args), in_specs=(specs,), out_specs=PartitionSpec(TIME_AXIS)
    )
    return mapped(args)


def shard_times(x: Float[Array, "P *rest"]) -> Float[Array, "P *rest"]:
    """Returns x, sharded along its first axis over the devices of the time axis.

    P must be a multiple of the size of that axis; see `num_missing_times`.
    """
    if axis_size(TIME_AXIS) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(TIME_AXIS, *[None] * (x.ndim - 1)))


def replicate(x: Float[Array, "*rest"]) -> Float[Array, "*rest"]:
    """Returns x, replicated on the devices of the time axis; its cotangent is replicated too."""
    if axis_size(TIME_AXIS) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * x.ndim))


def explicit_mesh(tree: Any) -> Any:
    """Returns the mesh with explicit axes that shards an array of a tree; None if none does.

    Such axes are the default of `jax.make_mesh` in recent versions of JAX.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.number):
            mesh = jax.typeof(leaf).sharding.mesh
            if mesh.explicit_axes:
                return mesh
    return None


def num_missing_times(num_times: int) -> int:
    """Returns how many times to add to P so that all devices have equally many."""
    return -num_times % axis_size(TIME_AXIS)


def pad_times(x: Float[Array, "P *rest"], num_added: int) -> Float[Array, "P+A *rest"]:
    """Appends `num_added` copies of the last time."""
    if num_added == 0:
        return x
    return jnp.concatenate([x, jnp.repeat(x[-1:], num_added, axis=0)])
