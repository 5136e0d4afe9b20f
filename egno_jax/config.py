"""The model's configuration: a frozen, hashable dataclass that travels with the weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

_TEMPORAL_GRIDS = ("index", "context")
_PRECISIONS = ("default", "high", "highest")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EGNOConfig:
    """Hyper-parameters of EGNO; node and edge feature sizes are read from the graph at `init`.

    Attributes:
      num_layers: number L of blocks (two temporal convolutions and one message passing each).
      hidden_dim: width C of the node features and of every MLP.
      num_modes: number M of Fourier modes that the temporal convolutions keep, the constant one
        included; a grid of P times has P // 2 + 1 and uses those that it has.
      time_embed_dim: size of the sinusoidal embedding of a time.
      time_scale: unit of time; the model sees `times / time_scale` and nothing else.
      temporal_grid: how the convolutions read the times. `"index"`: as P equally spaced samples,
        whatever their values (the original's scheme). `"context"`: the Fourier coefficients are
        those of the trajectory at `context_times`, and the response is read at each time that is
        asked, so that it does not depend on what else is asked and times may be irregular.
      context_times: with `"context"`, at least two equally spaced times in the unit of `times`; the
        period is their count times their spacing. Asked for these times the model equals that of
        `"index"`. Otherwise empty.
      velocity_weight: weight of the velocity error in the loss that the weights were trained
        with. At 0 (the original's) `Trajectory.velocities` is an inner vector channel of the
        model and predicts no velocity. Read by the training loss, recorded by checkpoints, never
        read by `apply`.
      dtype: dtype of the feature computations, such as `"bfloat16"`; None follows the inputs and
        weights. Positions and velocities are computed in float32 or wider in any case.
      param_dtype: dtype of the weights that `init` makes.
      matmul_precision: `jax.lax` precision of products over channels. The default is exact
        float32; `"default"` is TF32 on recent NVIDIA GPUs and bfloat16 on TPUs.

    Raises:
      ValueError: a field is of the wrong type or out of range; names the field.
    """

    num_layers: int = 4
    hidden_dim: int = 64
    num_modes: int = 2
    time_embed_dim: int = 32
    time_scale: float = 1.0
    temporal_grid: str = "index"
    context_times: tuple[float, ...] = ()
    velocity_weight: float = 0.0
    dtype: str | None = None
    param_dtype: str = "float32"
    matmul_precision: str = "highest"

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden_dim", "num_modes", "time_embed_dim"):
            _check_count(name, getattr(self, name), least=2 if name == "time_embed_dim" else 1)
        _check_number("time_scale", self.time_scale, "a finite number above 0", lambda x: x > 0)
        _check_number("velocity_weight", self.velocity_weight, "0 or more", lambda x: x >= 0)
        _check_choice("temporal_grid", self.temporal_grid, _TEMPORAL_GRIDS)
        if not isinstance(self.context_times, tuple | list):
            raise ValueError(
                f"EGNOConfig.context_times: got {self.context_times!r}, expected a tuple of times"
            )
        object.__setattr__(self, "context_times", tuple(self.context_times))
        _check_context(self.temporal_grid, self.context_times)
        _check_choice("dtype", self.dtype, (None, *_DTYPES))
        _check_choice("param_dtype", self.param_dtype, _DTYPES)
        _check_choice("matmul_precision", self.matmul_precision, _PRECISIONS)

    def to_json(self) -> str:
        """Returns the configuration as a JSON object, one key a field."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> EGNOConfig:
        """Reads what `to_json` wrote; a field that is missing takes its default.

        Args:
          text: a JSON object whose keys are field names.

        Returns:
          The configuration.

        Raises:
          ValueError: the text is no JSON object, or a key or a value is not valid.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"EGNOConfig.from_json: the text is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(
                f"EGNOConfig.from_json: got a JSON {type(fields).__name__}, expected an object "
                "with one key a field"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(
                f"EGNOConfig.from_json: unknown field(s) {unknown}, expected some of {known}; was "
                "the text written by a newer version of egno_jax?"
            )
        return cls(**fields)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"EGNOConfig.{name}: got {value!r}, expected an integer >= {least}")


def _check_number(name: str, value: Any, expected: str, is_valid: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not is_valid(value):
        raise ValueError(f"EGNOConfig.{name}: got {value!r}, expected {expected}")


def _check_context(temporal_grid: str, context_times: tuple[float, ...]) -> None:
    if temporal_grid == "index":
        if context_times:
            raise ValueError(
                f"EGNOConfig.context_times: got {context_times!r}, expected none with "
                'temporal_grid="index"; set temporal_grid="context" to use them'
            )
        return
    expected = "at least two equally spaced, increasing times"
    for time in context_times:
        _check_number("context_times", time, expected, lambda x: True)
    spacings = [b - a for a, b in itertools.pairwise(context_times)]
    if not spacings or spacings[0] <= 0 or max(spacings) - min(spacings) > 1e-6 * spacings[0]:
        raise ValueError(f"EGNOConfig.context_times: got {context_times!r}, expected {expected}")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"EGNOConfig.{name}: got {value!r}, expected one of {list(choices)}")
