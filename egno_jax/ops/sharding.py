"""How arrays with a time axis lie on a mesh: constraints for XLA, and nothing where there is none.

The mesh is the one that `jax.set_mesh` sets, with automatic axes; `"data"` splits batches of graphs
and `"time"` the requested times. A program that was traced without a mesh is traced again under
one, for JAX keeps them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

if TYPE_CHECKING:
    from jaxtyping import Array, Float

DATA_AXIS = "data"
TIME_AXIS = "time"


def axis_size(name: str) -> int:
    """Returns how many shares the current mesh makes along an axis; 1 where XLA makes none."""
    mesh = jax.sharding.get_abstract_mesh()
    if name not in mesh.axis_names:
        return 1
    index = mesh.axis_names.index(name)
    return mesh.axis_sizes[index] if mesh.axis_types[index] == AxisType.Auto else 1


def is_partitioned() -> bool:
    """Says whether XLA splits the current program over devices, by a mesh with automatic axes."""
    return any(axis_size(name) > 1 for name in jax.sharding.get_abstract_mesh().axis_names)


def split_times(x: Float[Array, "P *rest"]) -> Float[Array, "P *rest"]:
    """Keeps on each device its share of the times, and of them everything.

    Args:
      x: `[P, ...]`, P a multiple of the size of the time axis.

    Returns:
      The same values.
    """
    if axis_size(TIME_AXIS) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(TIME_AXIS, *[None] * (x.ndim - 1)))


def share_whole(x: Float[Array, "*rest"]) -> Float[Array, "*rest"]:
    """Keeps the whole array on each device of the time axis: what was summed over times.

    Its cotangent is whole too, so that both cross the wire once, as they are here.
    """
    if axis_size(TIME_AXIS) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * x.ndim))


def num_missing_times(num_times: int) -> int:
    """Returns how many times must be added to P so that all devices have equally many."""
    return -num_times % axis_size(TIME_AXIS)


def pad_times(x: Float[Array, "P *rest"], num_added: int) -> Float[Array, "P+A *rest"]:
    """Repeats the last of the times so many times more."""
    if num_added == 0:
        return x
    return jnp.concatenate([x, jnp.repeat(x[-1:], num_added, axis=0)])
