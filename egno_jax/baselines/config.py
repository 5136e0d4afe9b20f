"""Which baseline, and how large."""

from __future__ import annotations

import dataclasses

from egno_jax.config import EGNOConfig, check_field

# Name of each method in tables and figures.
METHODS = {
    "linear": "Linear",
    "mpnn": "MPNN",
    "egnn": "EGNN",
    "egnn-r": "EGNN-R",
    "egnn-s": "EGNN-S",
    "egno-no-conv": "EGNO without temporal convolutions",
}
# These have no E(n)-equivariant layers for global message passing to precede.
_WITHOUT_MEAN_FIELD = ("linear", "mpnn")
# These predict one later state.
_STATE_TO_STATE = ("mpnn", "egnn")
# These compute every requested time in parallel.
_PARALLEL_IN_TIME = ("linear", "egno-no-conv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig(EGNOConfig):
    """Hyper-parameters of a baseline: EGNO's, and the method.

    No method has temporal convolutions: `num_modes` and `vector_init` are not used, and
    `temporal_grid` must be `"index"`. `linear` ignores `velocity_scale` and learns a scale. Only
    `egnn-r` and `egno-no-conv` use `time_embed_dim`. `mean_field`, which the published methods do
    not have, can be added to those with E(n)-equivariant layers.

    Attributes:
      method: `linear`: x + v t / s, s learned. `mpnn`: message passing without symmetry, to one
        later state. `egnn`: E(n)-equivariant layers, to one later state. `egnn-r`: one EGNN that
        steps from each time to the next. `egnn-s`: an EGNN whose successive layers predict the
        successive times. `egno-no-conv`: EGNO with independent times.

    Raises:
      ValueError: a field is of the wrong type or out of range; names the field.
    """

    method: str = "egnn"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "method", self.method in METHODS, f"one of {[*METHODS]}")
        is_allowed = not self.mean_field or self.method not in _WITHOUT_MEAN_FIELD
        expected = f"False with method={self.method!r}, which has no equivariant layers"
        check_field(self, "mean_field", is_allowed, expected)
        expected = "'index'; baselines have no temporal convolutions"
        check_field(self, "temporal_grid", self.temporal_grid == "index", expected)


def num_times(config: EGNOConfig) -> int | None:
    """Returns 1 for a model that predicts one later state, and None for any number of times.

    `egnn-s` predicts at most `num_layers` times.
    """
    is_baseline = isinstance(config, BaselineConfig)
    return 1 if is_baseline and config.method in _STATE_TO_STATE else None


def has_independent_times(config: BaselineConfig) -> bool:
    """Returns whether the requested times can be computed in parallel."""
    return config.method in _PARALLEL_IN_TIME


def title(config: EGNOConfig) -> str:
    """Returns the name of a config's model in tables and figures."""
    if not isinstance(config, BaselineConfig):
        return "EGNO"
    name = METHODS[config.method]
    is_extended = config.mean_field and config.method != "egno-no-conv"
    return f"{name} with mean field" if is_extended else name
