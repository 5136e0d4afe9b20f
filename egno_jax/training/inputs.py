"""Checks of the inputs of `fit`.

They must fit together, agree with what the model records, and be the same in all processes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from egno_jax.datasets.base import Samples, validate
from egno_jax.datasets.buckets import Buckets, by_size
from egno_jax.model import Params, check_feature_sizes, check_params
from egno_jax.training.advice import warn_of_data
from egno_jax.training.config import TrainingConfig
from egno_jax.training.devices import check_model, shape_of
from egno_jax.training.noise import check_noise
from egno_jax.training.objective import LossFn, check_loss, velocity_weight
from egno_jax.training.processes import check_all_alike


def check_inputs(
    params: Params,
    train: Samples | Buckets,
    valid: Samples | Buckets,
    config: TrainingConfig,
    make_callbacks: Any,
    loss_fn: LossFn | None,
    mesh: Mesh | None,
) -> None:
    """Raises a ValueError if model, data, settings and mesh do not fit together."""
    check_params(params)
    if params.config.param_dtype == "float16":
        raise ValueError(
            "params.config.param_dtype: got 'float16', in which the smallest number of Adam is 0, "
            "expected 'bfloat16', 'float32' or 'float64' to train"
        )
    if not isinstance(config, TrainingConfig):
        raise ValueError(f"config: got {type(config).__name__}, expected a TrainingConfig")
    if not callable(make_callbacks):
        raise ValueError(
            f"make_callbacks: got {type(make_callbacks).__name__}, expected a function of the step "
            "that the run starts from, such as lambda step: [JSONLines(path, step)]"
        )
    if not isinstance(mesh, Mesh | None):
        raise ValueError(
            f"mesh: got {type(mesh).__name__}, expected a mesh; use egno_jax.training.make_mesh"
        )
    check_model(params.config, mesh)
    for name, data in (("train", train), ("valid", valid)):
        for part in by_size(data):
            try:
                validate(part)
                check_feature_sizes(params, part.graph)
                if name == "train" or config.random_times == "all":
                    _check_times(part, by_size(train)[0])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    num_targets = by_size(train)[0].positions.shape[1]
    if max(config.num_times, default=0) > num_targets:
        raise ValueError(
            f"num_times: got {config.num_times}, expected at most {num_targets}, the number of "
            "target times of the training samples"
        )
    _check_objective(params, train, config, loss_fn)
    warn_of_data(params.config, train)


def _check_times(samples: Samples, train: Samples) -> None:
    """Raises a ValueError if samples have other times than the training set, unless those vary."""
    expected = np.asarray(train.times)
    if expected.ndim == 1 and not np.array_equal(samples.times, expected):
        raise ValueError(
            f"times: got {np.asarray(samples.times)}, expected those of the training set, "
            f'{expected}: the times that a model is trained on (with random_times="all")'
        )


def _check_objective(
    params: Params, train: Samples | Buckets, config: TrainingConfig, loss_fn: LossFn | None
) -> None:
    """Raises a ValueError if the loss or the noise do not fit the training set."""
    check_noise(train, config.noise)
    if loss_fn is not None:
        check_loss(loss_fn, params, train)
        return
    weight = velocity_weight(params, config)
    if weight and any(part.velocities is None for part in by_size(train)):
        raise ValueError(
            f"train.velocities: got None, expected target velocities, because velocity_weight is "
            f"{weight}; give them, or set velocity_weight=0"
        )


def check_processes(
    settings: dict[str, Any],
    config: TrainingConfig,
    data: dict[str, dict[str, str]],
    mesh: Mesh | None,
    resume: bool,
) -> None:
    """Raises a ValueError if processes do not agree; `data` are the digests of each data set."""
    if jax.process_count() == 1:
        return
    parts = {**settings, "training": dataclasses.asdict(config)}
    leaves = jax.tree_util.tree_leaves_with_path(parts, is_leaf=lambda x: not isinstance(x, dict))
    fields = {".".join(key.key for key in path): value for path, value in leaves}
    fields |= {"mesh": shape_of(mesh), "resume": resume}
    for name, found in data.items():
        fields |= {f"{name}{path}": text for path, text in found.items()}
    check_all_alike(fields)


def recording_velocity_weight(params: Params, config: TrainingConfig) -> Params:
    """Returns the model with the weight of its loss in its config, for rollouts and readers.

    Raises:
      ValueError: the model's config and the settings name different weights.
    """
    recorded, weight = params.config.velocity_weight, config.velocity_weight
    if recorded and weight and recorded != weight:
        raise ValueError(
            f"config.velocity_weight: got {weight}, expected that of the model, {recorded}, which "
            "its config records; set one of them to 0, or both to the same"
        )
    config = dataclasses.replace(params.config, velocity_weight=recorded or weight)
    return dataclasses.replace(params, config=config)
