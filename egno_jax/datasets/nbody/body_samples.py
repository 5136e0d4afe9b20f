"""Samples of simulations: the state at one frame, and the frames to predict after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from egno_jax.checks import check_array
from egno_jax.datasets.argument_checks import check_frames
from egno_jax.datasets.base import Samples, num_samples, with_own_times
from egno_jax.datasets.cutting import samples_from_frames
from egno_jax.datasets.nbody.simulation import (
    COULOMB,
    DT,
    MAX_FORCE,
    Interaction,
    Trajectories,
    check_trajectories,
    reverse_time,
)
from egno_jax.graph import fully_connected_edges, orbit_features

if TYPE_CHECKING:
    from jaxtyping import Float

START = 30
TARGET_FRAMES = (32, 34, 36, 38, 40)


def samples(
    trajectories: Trajectories,
    *,
    start: int = START,
    target_frames: Sequence[int] = TARGET_FRAMES,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts one sample out of each trajectory.

    Node features are |v_i|, edge features [c_ij, |x_i - x_j|^2] at frame `start`; edges connect all
    pairs, E = N (N - 1). `times = target_frames - start` are in frames: 2, 4, 6, 8, 10 for the
    default frames, so use `time_scale=2`.

    Args:
      trajectories: S simulations.
      start: the initial frame.
      target_frames: `[P]`, the frames to predict, increasing and after `start`.
      dtype: the dtype of all real numbers.

    Raises:
      ValueError: frames do not exist or do not increase, or shapes do not match.
    """
    positions, velocities, couplings = check_trajectories(trajectories)
    frames = check_frames(start, target_frames, positions.shape[1])
    positions, velocities = positions[:, frames], velocities[:, frames]
    edges = fully_connected_edges(positions.shape[2])
    edges = edges._replace(features=couplings[:, edges.receivers, edges.senders, None])
    speeds = np.sqrt((velocities[:, 0] ** 2).sum(-1, keepdims=True))
    times = frames[1:] - frames[0]
    return samples_from_frames(positions, velocities, speeds, edges, times, dtype=dtype)


def reversed_samples(
    trajectories: Trajectories,
    *,
    start: int = START,
    target_frames: Sequence[int] = TARGET_FRAMES,
    interaction: Interaction = COULOMB,
    dt: float = DT,
    max_force: float = MAX_FORCE,
    dtype: np.typing.DTypeLike = np.float32,
) -> Samples:
    """Cuts the samples of `samples` out of the same frames, run backwards.

    Frame 40 with reversed velocities leads to 38, 36, 34, 32, 30. These are new samples of the same
    task that use no frame outside the window; join them with `datasets.concatenate`. Their times
    are those of `samples` if the frames are evenly spaced.

    Arguments and errors are those of `samples`, and `interaction`, `dt` and `max_force` the
    settings that the trajectories were made with. `start` becomes the last target, and the last of
    `target_frames` the initial frame.
    """
    positions, velocities, couplings = check_trajectories(trajectories)
    frames = check_frames(start, target_frames, positions.shape[1])
    window = Trajectories(positions[:, frames], velocities[:, frames], couplings)
    backwards = reverse_time(window, interaction=interaction, dt=dt, max_force=max_force)
    cut = samples(backwards, start=0, target_frames=range(1, len(frames)), dtype=dtype)
    return cut._replace(times=(frames[-1] - frames[-2::-1]).astype(dtype))


def with_orbits(samples: Samples) -> Samples:
    """Appends features of the orbits of pairs to the edge features.

    They are `egno_jax.graph.orbit_features` of the initial states: three more columns.

    Args:
      samples: S samples of `samples`, `reversed_samples` or `scaled_samples`, simulated with
        `COULOMB`.

    Raises:
      ValueError: the edge features are not the two of `samples`.
    """
    graph, features = samples.graph, _pair_features(samples)

    def between_ends(name: str) -> np.ndarray:
        nodes = np.asarray(graph.nodes[name], np.float64)
        ends = (np.asarray(each)[..., None] for each in (graph.receivers, graph.senders))
        of_receivers, of_senders = (np.take_along_axis(nodes, each, axis=1) for each in ends)
        return of_receivers - of_senders

    orbits = orbit_features(*map(between_ends, ("positions", "velocities")), features[..., :1])
    features = np.concatenate([features, orbits.astype(features.dtype)], axis=-1)
    return samples._replace(graph=graph._replace(edges={"features": features}))


def _pair_features(samples: Samples) -> Float[np.ndarray, "S E 2"]:
    features = np.asarray(samples.graph.edges["features"])
    if features.shape[-1] != 2:
        raise ValueError(
            f"samples.graph.edges['features']: got {features.shape[-1]} columns, expected the two "
            "of nbody.samples; append others last"
        )
    return features


def scaled_samples(samples: Samples, factors: Float[ArrayLike, "S"]) -> Samples:
    """Multiplies the lengths of samples of charges, which gives new samples of the same physics.

    Coulomb's force falls with the square of the distance, so if x(t) solves the equations of
    motion, then so does

        x'(t) = f x(f^(-3/2) t),    v'(t) = f^(-1/2) v(f^(-3/2) t)

    with the same charges and masses ("mechanical similarity"): lengths are multiplied by f, times
    by f^(3/2), and velocities and speeds by f^(-1/2). Where a simulation limited the force,
    this holds only nearly.

    Args:
      samples: S samples of `samples` or `reversed_samples`, simulated with `COULOMB`.
      factors: f of each sample, above 0.

    Returns:
      Samples in the same order, with times of their own, `[S, P]`.

    Raises:
      ValueError: factors have another shape, one is not finite or not above 0, or the edge features
        are not the two of `samples`.

    Source: Landau and Lifshitz, "Mechanics", section 10.
    """
    count, dtype = num_samples(samples), samples.positions.dtype
    factors = np.asarray(factors, np.float64)
    check_array("factors", factors, "floating", ("S",), {"S": count})
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        wrong = factors[~(np.isfinite(factors) & (factors > 0))][0]
        raise ValueError(f"factors: got {wrong}, expected finite numbers above 0")

    def times_power(array: np.ndarray, power: float) -> np.ndarray:
        factor = (factors**power).reshape(-1, *[1] * (array.ndim - 1))
        return (np.asarray(array) * factor).astype(dtype)

    nodes, edges = samples.graph.nodes, _pair_features(samples)
    nodes = {
        "positions": times_power(nodes["positions"], 1.0),
        "velocities": times_power(nodes["velocities"], -0.5),
        "features": times_power(nodes["features"], -0.5),
    }
    couplings, squares = edges[..., :1], times_power(edges[..., 1:], 2.0)
    edges = {"features": np.concatenate([couplings, squares], axis=-1)}
    return samples._replace(
        graph=samples.graph._replace(nodes=nodes, edges=edges),
        times=times_power(with_own_times(samples).times, 1.5),
        positions=times_power(samples.positions, 1.0),
        velocities=times_power(samples.velocities, -0.5),
    )
