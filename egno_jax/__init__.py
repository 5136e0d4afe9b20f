"""egno_jax: learn 3D dynamics as functions of time with the Equivariant Graph Neural Operator."""

import importlib as _importlib
from importlib import metadata as _metadata
from typing import TYPE_CHECKING as _TYPE_CHECKING

from egno_jax import baselines, graph, metrics, nn, ops, published, rolling
from egno_jax.checkpoint import CheckpointError, load, save
from egno_jax.config import EGNOConfig
from egno_jax.convert import from_torch_state_dict, to_torch_state_dict
from egno_jax.exporting import export
from egno_jax.model import EGNO, Params, Trajectory, apply, init
from egno_jax.predicting import Prediction, predict
from egno_jax.recipe import GraphRecipe
from egno_jax.rolling import Rollout, rollout

if _TYPE_CHECKING:
    from types import ModuleType as _ModuleType

    from egno_jax import datasets, nnx, testing, training, visualize  # noqa: F401

__all__ = [
    "EGNO",
    "CheckpointError",
    "EGNOConfig",
    "GraphRecipe",
    "Params",
    "Prediction",
    "Rollout",
    "Trajectory",
    "apply",
    "baselines",
    "export",
    "from_torch_state_dict",
    "graph",
    "init",
    "load",
    "metrics",
    "nn",
    "ops",
    "predict",
    "published",
    "rolling",
    "rollout",
    "save",
    "to_torch_state_dict",
]

try:
    __version__ = _metadata.version("egno_jax")
except _metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0+unknown"

# Imported when they are first asked for: `import egno_jax` is for those who apply models, too.
_LAZY = ("datasets", "nnx", "testing", "training", "visualize")


def __getattr__(name: str) -> "_ModuleType":
    if name in _LAZY:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
