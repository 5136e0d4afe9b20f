"""What models predict for samples, and what follows from going straight on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import egno_jax
from egno_jax.datasets import Samples, num_samples, take

if TYPE_CHECKING:
    from jaxtyping import Float

    from egno_jax import Params


def decode(
    params: Params,
    samples: Samples,
    *,
    roll: Callable[..., Any] = egno_jax.apply,
    batch_size: int | None = None,
) -> tuple[Float[np.ndarray, "S P N 3"], Float[np.ndarray, "S P N 3"]]:
    """Returns the predicted positions and velocities of samples.

    Args:
      params: the model.
      samples: S samples.
      roll: called as `egno_jax.apply`; a rollout gives more times.
      batch_size: samples that are predicted together; None: all.
    """
    total, num_nodes = num_samples(samples), samples.positions.shape[2]
    run, step = jax.jit(roll), batch_size or total
    parts = []
    for start in range(0, total, step):
        batch = take(samples, np.arange(start, min(start + step, total)))
        found = run(params, batch.graph, batch.times)
        fields = map(np.asarray, (found.positions, found.velocities))
        parts.append([x.reshape(len(x), -1, num_nodes, 3).swapaxes(0, 1) for x in fields])
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def linear_baseline(
    samples: Samples, time_unit: float
) -> tuple[Float[np.ndarray, "P S*N 3"], Float[np.ndarray, "P S*N 3"]]:
    """Returns x + v t, and the true positions, of all samples together.

    Args:
      samples: the data.
      time_unit: the unit of `samples.times` in the velocities' unit of time.
    """
    batch = take(samples, np.arange(num_samples(samples)))
    offsets = jnp.asarray(batch.times)[:, None, None] * time_unit * batch.graph.nodes["velocities"]
    return batch.graph.nodes["positions"] + offsets, batch.positions
