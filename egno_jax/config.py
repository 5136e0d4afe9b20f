"""The model's configuration: a frozen, hashable dataclass that is saved with the weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import operator
from typing import Any

import jax.numpy as jnp
import numpy as np

_TEMPORAL_GRIDS = ("index", "context")
_PRECISIONS = ("default", "high", "highest")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EGNOConfig:
    """Hyper-parameters of EGNO; node and edge feature sizes are read from the graph at `init`.

    Attributes:
      layer: name of the spatial layer in every block: `"egnn"`, or a name registered
        with `egno_jax.nn.register_layer`.
      num_layers: number L of blocks (two temporal convolutions and one spatial layer each).
      hidden_dim: width C of the node features and of every MLP.
      num_modes: number M of Fourier modes that the temporal convolutions keep, including the
        constant one; P times have only P // 2 + 1 modes, and further ones have no effect.
      time_embed_dim: size of the sinusoidal embedding of a time.
      time_scale: unit of time; the model sees only `times / time_scale`.
      temporal_grid: how the convolutions read the times. `"index"`: as P equally spaced samples,
        whatever their values (the original's scheme). `"context"`: the Fourier coefficients are
        computed at `context_times`, and the result is evaluated at each requested time. It then
        does not depend on the other requested times, and times may be irregular.
      context_times: with `"context"`, at least two equally spaced times in the unit of `times`; the
        period is their count times their spacing. At exactly these times the model equals
        that of `"index"`. Otherwise empty.
      velocity_scale: factor by which the input velocities are multiplied and the output velocities
        divided. If targets are far ahead, set it near their distance in the time unit of the
        velocities, so that `velocity_scale v` is the motion in a window. 1 is the original.
      mean_field: whether each block has global message passing before its spatial layer, which
        adds `a_i (x_i - mean x) + b_i mean v` to `x_i` with factors that depend on the features.
        It gives every node global context in O(N) time. Off in the original.
      mean_field_channels: number K of virtual-node channels of global message passing: further
        means, weighted by the senders; see `egno_jax.ops.mean_field`.
      vector_init: the vector kernels are initialised uniformly in `[0, vector_init)`; 0.1 is the
        original. At 0 positions and velocities are initially not mixed over time, which avoids
        large first steps in deep models. Read only by `init`.
      velocity_weight: records `TrainingConfig.velocity_weight` of the training; set by `fit`. At 0
        the velocities of a `Trajectory` are an unsupervised equivariant latent and do not predict
        the velocity. Never read by `apply`; rollouts read it.
      dtype: dtype of the feature computations, such as `"bfloat16"`; None follows the inputs and
        weights. Positions and velocities are computed in float32 or wider in any case.
      param_dtype: dtype of the weights that `init` returns.
      matmul_precision: `jax.lax` precision of products over channels. The default is exact
        float32; `"default"` is TF32 on recent NVIDIA GPUs and bfloat16 on TPUs.

    Raises:
      ValueError: a field is of the wrong type or out of range; names the field.
    """

    layer: str = "egnn"
    num_layers: int = 4
    hidden_dim: int = 64
    num_modes: int = 2
    time_embed_dim: int = 32
    time_scale: float = 1.0
    temporal_grid: str = "index"
    context_times: tuple[float, ...] = ()
    velocity_scale: float = 1.0
    mean_field: bool = False
    mean_field_channels: int = 0
    vector_init: float = 0.1
    velocity_weight: float = 0.0
    dtype: str | None = None
    param_dtype: str = "float32"
    matmul_precision: str = "highest"

    def __post_init__(self) -> None:
        _check("layer", self.layer, isinstance(self.layer, str), "the name of a spatial layer")
        for name in ("num_layers", "hidden_dim", "num_modes", "time_embed_dim"):
            self._set(name, _count(name, getattr(self, name), 2 if name == "time_embed_dim" else 1))
        for name in ("time_scale", "velocity_scale"):
            number = _number(name, getattr(self, name), "a finite number above 0")
            self._set(name, number)
            _check(name, getattr(self, name), number > 0, "a finite number above 0")
        self._set("mean_field", _flag("mean_field", self.mean_field))
        channels = _count("mean_field_channels", self.mean_field_channels, 0)
        self._set("mean_field_channels", channels)
        expected = "0 without mean_field"
        _check("mean_field_channels", channels, self.mean_field or not channels, expected)
        for name in ("vector_init", "velocity_weight"):
            self._set(name, _number(name, getattr(self, name), "0 or more"))
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _check_choice("temporal_grid", self.temporal_grid, _TEMPORAL_GRIDS)
        self._set("context_times", _context(self.temporal_grid, self.context_times))
        if self.dtype is not None:
            self._set("dtype", _dtype("dtype", self.dtype))
        self._set("param_dtype", _dtype("param_dtype", self.param_dtype))
        _check_choice("matmul_precision", self.matmul_precision, _PRECISIONS)

    def _set(self, name: str, value: Any) -> None:
        """Stores a normalised value, so that equal configs have equal hashes and JSON."""
        object.__setattr__(self, name, value)

    def to_json(self) -> str:
        """Returns the configuration as a JSON object with one key for each field."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> EGNOConfig:
        """Reads the output of `to_json`; missing fields have their default values.

        Args:
          text: a JSON object whose keys are field names.

        Returns:
          The configuration.

        Raises:
          ValueError: the text is not a JSON object, or a key or a value is not valid.
        """
        try:
            fields = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
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


def _check(name: str, value: Any, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"EGNOConfig.{name}: got {value!r}, expected {expected}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    _check(name, value, isinstance(value, str) and value in choices, f"one of {list(choices)}")


def _count(name: str, value: Any, least: int) -> int:
    """Returns an integer of any library as a Python integer."""
    expected = f"an integer >= {least}"
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    _check(name, value, count >= least and not isinstance(value, bool), expected)
    return count


def _number(name: str, value: Any, expected: str) -> float:
    """Returns a finite number of any library as a Python float."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    is_number = math.isfinite(number) and not isinstance(value, bool | str | bytes)
    _check(name, value, is_number, expected)
    return number


def _flag(name: str, value: Any) -> bool:
    """Returns a bool of any library as a Python bool."""
    _check(name, value, isinstance(value, bool | np.bool_), "True or False")
    return bool(value)


def _dtype(name: str, value: Any) -> str:
    """Returns the name of a floating dtype; accepts names and dtypes of JAX or NumPy."""
    try:
        dtype = None if value is None else jnp.dtype(value).name
    except TypeError:
        dtype = None
    _check(name, value, dtype in _DTYPES, f"one of {list(_DTYPES)}")
    return dtype


def _context(temporal_grid: str, context_times: Any) -> tuple[float, ...]:
    """Returns the context times as Python floats."""
    is_sequence = isinstance(context_times, tuple | list)
    _check("context_times", context_times, is_sequence, "a tuple of times")
    if temporal_grid == "index":
        expected = 'none with temporal_grid="index"; set temporal_grid="context" to use them'
        _check("context_times", context_times, not context_times, expected)
        return ()
    expected = "at least two equally spaced, increasing times"
    times = tuple(_number("context_times", time, expected) for time in context_times)
    spacings = [b - a for a, b in itertools.pairwise(times)]
    is_grid = bool(spacings) and spacings[0] > 0
    is_grid = is_grid and max(spacings) - min(spacings) <= 1e-6 * spacings[0]
    _check("context_times", context_times, is_grid, expected)
    return times
