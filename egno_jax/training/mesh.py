"""The mesh of a run: its two axes, how a command line names it, and how arrays are laid on it.

Batches of graphs are split over the axis `data`, the requested times over the axis `time`. The
model, its average and the optimizer's state are whole on every device.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egno_jax import ops
from egno_jax.baselines import BaselineConfig
from egno_jax.config import EGNOConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jax.sharding import Mesh

AXES = (ops.DATA_AXIS, ops.TIME_AXIS)
# Methods whose times do not depend on one another, but through convolutions over time.
_PARALLEL_IN_TIME = ("linear", "egno-no-conv")


class MeshShape(NamedTuple):
    """The sizes of a mesh's axes.

    Attributes:
      data: how many shares a batch is split into.
      time: how many shares the requested times are split into.
    """

    data: int = 1
    time: int = 1

    def __str__(self) -> str:
        return f"data={self.data},time={self.time}"


def parse_mesh(text: str) -> MeshShape:
    """Reads the sizes of a mesh, such as `data=4,time=2`; an axis that is not named has size 1.

    Raises:
      ValueError: the text names another axis, one twice, or a size below 1.
    """
    found = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(data|time)\s*=\s*([1-9][0-9]*)\s*", part)
        if match is None or match[1] in found:
            raise ValueError(f"mesh: got {text!r}, expected such as data=4,time=2")
        found[match[1]] = int(match[2])
    return MeshShape(**found)


def make_mesh(shape: MeshShape, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of a run; neighbours along `time` are neighbours in the list of devices.

    Args:
      shape: the sizes of its axes.
      devices: the devices; by default the first of `jax.devices()`, all of them where there are
        several processes.

    Raises:
      ValueError: there are too few devices, or a process would have no part in the mesh.
    """
    available = list(jax.devices() if devices is None else devices)
    needed = math.prod(shape)
    is_enough = needed == len(available) if jax.process_count() > 1 else needed <= len(available)
    if not is_enough:
        raise ValueError(
            f"mesh: got {shape}, {needed} devices, expected "
            f"{'exactly' if jax.process_count() > 1 else 'at most'} the {len(available)} that "
            f"there are in {jax.process_count()} processes"
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(shape), AXES, axis_types=types, devices=available[:needed])


def check_model(config: EGNOConfig, mesh: Mesh) -> None:
    """Raises a ValueError if the times of a model cannot be split as the mesh asks."""
    size = mesh.shape[ops.TIME_AXIS]
    if size == 1 or not isinstance(config, BaselineConfig):
        return
    if config.method not in _PARALLEL_IN_TIME:
        raise ValueError(
            f"mesh: got time={size}, expected time=1 with the method {config.method!r}, whose "
            "times follow from one another or are one"
        )


def global_array(array: np.ndarray, mesh: Mesh, *axes: str | None) -> jax.Array:
    """Lays an array that every process has in full on the mesh; nothing is sent.

    Args:
      array: any array, keys too; the same on all processes.
      mesh: the mesh.
      *axes: the mesh axis that each of the array's axes is split over; whole where None or missing.
    """
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = global_array(jax.random.key_data(array), mesh, *axes)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    array = np.asarray(array)
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Lays a tree of arrays whole on every device; they are copies."""
    return jax.tree.map(lambda leaf: global_array(leaf, mesh), tree)


def time_axis(mesh: Mesh, num_times: int) -> str | None:
    """Returns the axis that data at P times are split over: None if they do not divide evenly."""
    return ops.TIME_AXIS if num_times % mesh.shape[ops.TIME_AXIS] == 0 else None
