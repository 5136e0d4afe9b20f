"""Devices: the mesh of a run, and arrays on it.

Batches of graphs are split over the mesh axis `data`, requested times over the axis `time`; the
training state is replicated. One device is like a mesh of size 1.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from egno_jax import ops
from egno_jax.checks import as_count
from egno_jax.config import EGNOConfig
from egno_jax.families import family_of

AXES = (ops.DATA_AXIS, ops.TIME_AXIS)


class MeshShape(NamedTuple):
    """The sizes of a mesh's axes.

    Attributes:
      data: number of shares that a batch is split into.
      time: number of shares that the requested times are split into.
    """

    data: int = 1
    time: int = 1

    def __str__(self) -> str:
        return f"data={self.data},time={self.time}"


def parse_mesh(text: str) -> MeshShape:
    """Reads the sizes of a mesh, such as `data=4,time=2`; an axis that is not named has size 1.

    Raises:
      ValueError: the text names another axis, an axis twice, or a size below 1.
    """
    parts = [re.fullmatch(r"\s*(data|time)\s*=\s*([1-9][0-9]*)\s*", x) for x in text.split(",")]
    found = {part[1]: int(part[2]) for part in parts if part}
    if len(found) < len(parts):
        raise ValueError(f"mesh: got {text!r}, expected such as data=4,time=2")
    return MeshShape(**found)


def make_mesh(shape: MeshShape, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of a run, on any torus; neighbours along `time` are close in the network.

    Axes of a TPU's torus are split between `data` and `time` where the shape requires it. Several
    TPU slices, or several GPU machines, are joined along `data` as far as its size allows.

    Args:
      shape: the sizes of its axes.
      devices: the devices; by default the first of `jax.devices()`, which lists those of all
        processes.

    Raises:
      ValueError: `shape` is not a `MeshShape` of positive integers, there are too few devices, or a
        process would have no part in the mesh.
    """
    if not isinstance(shape, MeshShape):
        raise ValueError(f"shape: got {shape!r}, expected a MeshShape; use parse_mesh for text")
    shape = MeshShape(*map(as_count, AXES, shape))
    available = list(jax.devices() if devices is None else devices)
    needed, is_several = math.prod(shape), jax.process_count() > 1
    if needed > len(available) or (is_several and needed < len(available)):
        limit = "exactly" if is_several else "at most"
        raise ValueError(
            f"mesh: got {shape}, {needed} devices, expected {limit} the {len(available)} available "
            f"in {jax.process_count()} processes"
        )
    types = (AxisType.Auto,) * len(AXES)
    return Mesh(arranged(shape, available[:needed]), AXES, axis_types=types)


def arranged(shape: MeshShape, devices: Sequence[jax.Device]) -> np.ndarray:
    """Arranges devices to an array `[data, time]`, by their places in the network.

    Args:
      shape: the sizes of the axes.
      devices: as many as the shape has.

    Raises:
      ValueError: there are several slices, and not equally many devices of each.
    """
    sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    num_slices = len(sizes)
    if num_slices == 1:
        # The same order as `jax.make_mesh`, which refuses to split axes of most tori.
        return mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=True)
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"mesh: got {shape} with {dict(sizes)} devices of each slice, expected equally many; "
            "choose a mesh of all devices"
        )
    # The gradient's sum over `data` is one a step, the sums over `time` are several a layer.
    over_data = math.gcd(shape.data, num_slices)
    over_time = num_slices // over_data
    return mesh_utils.create_hybrid_device_mesh(
        (shape.data // over_data, shape.time // over_time),
        (over_data, over_time),
        devices,
        allow_split_physical_axes=True,
    )


def shape_of(mesh: Mesh | None) -> MeshShape:
    """Returns the sizes of a mesh's axes; those of one device without a mesh."""
    return MeshShape() if mesh is None else MeshShape(*(mesh.shape[axis] for axis in AXES))


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Returns a context in which programs are compiled for a mesh, if there is one."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def check_model(config: EGNOConfig, mesh: Mesh | None) -> None:
    """Raises a ValueError if the mesh splits the times of a model that cannot be split."""
    size = shape_of(mesh).time
    if size > 1 and not family_of(config).has_independent_times(config):
        raise ValueError(
            f"mesh: got time={size}, expected time=1 with the method "
            f"{getattr(config, 'method', type(config).__name__)!r}, whose times depend on each "
            "other or are one"
        )


def global_array(array: Any, mesh: Mesh | None, *axes: str | None) -> jax.Array:
    """Places an array that every process has in full, or a random key, on the mesh; sends nothing.

    `axes` are those of the mesh that the array's axes are split over; replicated where None or
    missing. Without a mesh it is placed on the default device.
    """
    if mesh is None:
        return jax.device_put(array)
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = global_array(jax.random.key_data(array), mesh, *axes)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    array = np.asarray(array)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Places a tree of arrays on every device."""
    return jax.tree.map(lambda leaf: global_array(leaf, mesh), tree)


def time_axis(mesh: Mesh | None, num_times: int) -> str | None:
    """Returns the axis that data at P times are split over: None if they do not divide evenly."""
    is_split = mesh is not None and num_times % shape_of(mesh).time == 0
    return ops.TIME_AXIS if is_split else None


def constrain(tree: Any, *axes: str | None) -> Any:
    """Constrains the sharding of arrays within a program; without a mesh there is nothing to do."""
    if not ops.is_partitioned():
        return tree
    spec = PartitionSpec(*axes)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), tree)


def map_shares(function: Callable[..., Any], *shares: Any) -> Any:
    """Applies a function to each of D shares, where it is placed; leaves are `[D, ...]`.

    Each part of the mesh along the data runs the function as if it were alone, so that kernels are
    used; the gradient of what the shares have in common is summed once, after it.
    """
    if jax.tree.leaves(shares)[0].shape[0] == 1:  # kernels do not survive `vmap`
        found = function(*jax.tree.map(lambda leaf: leaf[0], shares))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], found)
    if ops.axis_size(ops.DATA_AXIS) == 1:
        return jax.vmap(function)(*shares)
    spec = PartitionSpec(ops.DATA_AXIS)
    # An axis of one device too, because kernels of TPUs need a mesh without automatic axes.
    names = jax.sharding.get_abstract_mesh().axis_names
    manual = {name for name in names if name == ops.DATA_AXIS or ops.axis_size(name) == 1}
    of_device = functools.partial(map_shares, function)
    # Checks would refuse a loss or a metric with a loop that starts from constants, and sum the
    # gradient of a weight at each of its uses.
    mapped = jax.shard_map(
        of_device, in_specs=spec, out_specs=spec, axis_names=manual, check_vma=False
    )
    return mapped(*shares)
