"""The models that EGNO is compared with, under the same contract.

`egno_jax.init`, `apply`, `save`, `load` and all of `egno_jax.training` accept a `BaselineConfig`
where they accept an `EGNOConfig`:

    config = egno_jax.baselines.BaselineConfig(method="egnn-s", num_layers=5)
    params = egno_jax.init(key, config, graph, times)
    trajectory = egno_jax.apply(params, graph, times)
"""

from egno_jax.baselines.config import METHODS, BaselineConfig, num_times, title
from egno_jax.baselines.models import (
    EGNN,
    MPNN,
    EGNNRoll,
    EGNNSequential,
    EGNOWithoutConvolutions,
    LinearMotion,
)

__all__ = [
    "EGNN",
    "METHODS",
    "MPNN",
    "BaselineConfig",
    "EGNNRoll",
    "EGNNSequential",
    "EGNOWithoutConvolutions",
    "LinearMotion",
    "num_times",
    "title",
]
