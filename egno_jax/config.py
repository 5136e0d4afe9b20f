"""The model's configuration: a frozen, hashable dataclass that is saved with the weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from egno_jax.checks import LARGEST_COUNT, as_count, as_float, parse_json, value_text

# Positive float32 numbers in full precision; JAX rounds smaller ones to 0.
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EGNOConfig:
    """Hyper-parameters of EGNO; `init` reads the feature sizes from the graph.

    Attributes:
      layer: name of the spatial layer in every block: `"egnn"`, or a name registered
        with `egno_jax.nn.register_layer`. `"vector"` and `"steerable"` carry more than positions
        and velocities from block to block.
      num_layers: number L of blocks (two temporal convolutions and one spatial layer each).
      hidden_dim: width C of the node features and of every MLP.
      num_modes: number M of Fourier modes that the temporal convolutions keep, including the
        constant one; P times have only P // 2 + 1 modes, and further ones have no effect.
      time_embed_dim: size of the sinusoidal embedding of a time.
      time_scale: a duration in the unit of the requested times, such as 2.0 frames; the model sees
        only `times / time_scale`. Usually the spacing of the target times.
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
      num_vectors: number K of vectors that the layers `vector` and `steerable` carry, and of
        pseudo-vectors and tensors of every type.
      max_degree: the largest degree l of the tensors of `steerable`; 1 are vectors.
      symmetry: `"O(3)"`: the model commutes with rotations and reflections. `"SO(3)"`: with
        rotations alone, so that it can learn systems with a handedness; for the layers `vector` and
        `steerable`.
      num_external_vectors: number of directions in `graph.nodes["vectors"]`; `init` reads it from
        the graph.
      dtype: dtype of the feature computations, such as `"bfloat16"`; None follows the inputs and
        weights. Positions and velocities are computed in float32 or wider in any case.
      param_dtype: dtype of the weights that `init` returns.
      matmul_precision: `jax.lax` precision of products over channels. The default is exact
        float32; `"default"` is TF32 on recent NVIDIA GPUs and bfloat16 on TPUs.
      scan_layers: whether the blocks are compiled once, as the body of a loop over their stacked
        weights, instead of one after the other. Results are the same. It shortens compiling. The
        blocks must have weights of the same shapes, and no other variables, random numbers or
        captured intermediates.

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
    num_vectors: int = 16
    max_degree: int = 2
    symmetry: str = "O(3)"
    num_external_vectors: int = 0
    dtype: str | None = None
    param_dtype: str = "float32"
    matmul_precision: str = "highest"
    scan_layers: bool = False

    def __post_init__(self) -> None:
        """Checks every field, and stores one form of each, so that equal configs have one hash."""

        def convert(function: Callable[..., Any], *names: str, **options: Any) -> None:
            for name in names:
                value = function(name, getattr(self, name), **options)
                object.__setattr__(self, name, value)

        _check("layer", self.layer, isinstance(self.layer, str), "the name of a spatial layer")
        convert(_count, "num_layers", "hidden_dim", "num_modes", "num_vectors", least=1)
        convert(_count, "max_degree", least=1)
        convert(_count, "num_external_vectors", least=0)
        convert(_choice, "symmetry", choices=("O(3)", "SO(3)"))
        convert(_count, "time_embed_dim", least=2)
        convert(_positive, "time_scale", "velocity_scale")
        convert(_flag, "mean_field", "scan_layers")
        convert(_count, "mean_field_channels", least=0)
        channels, expected = self.mean_field_channels, "0 without mean_field"
        _check("mean_field_channels", channels, self.mean_field or not channels, expected)
        convert(_non_negative, "vector_init", "velocity_weight")
        convert(_choice, "temporal_grid", choices=("index", "context"))
        convert(_context, "context_times", temporal_grid=self.temporal_grid)
        if self.dtype is not None:
            convert(_dtype, "dtype")
        convert(_dtype, "param_dtype")
        convert(_choice, "matmul_precision", choices=("default", "high", "highest"))

    def to_json(self) -> str:
        """Returns the configuration as a JSON object with one key for each field."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> EGNOConfig:
        """Reads the text of `to_json`; missing fields have their defaults.

        Raises:
          ValueError: the text is not a JSON object, or a key or a value is not valid.
        """
        if not isinstance(text, str | bytes | bytearray):
            raise ValueError(f"EGNOConfig.from_json: got {type(text).__name__}, expected a text")
        fields = parse_json(text, "EGNOConfig.from_json")
        if not isinstance(fields, dict):
            raise ValueError(
                f"EGNOConfig.from_json: got a JSON {type(fields).__name__}, expected an object"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            raise ValueError(
                f"EGNOConfig.from_json: unknown field(s) {unknown}, expected some of {known}; was "
                "the text written by a newer version of egno_jax?"
            )
        return cls(**fields)


def check_field(config: Any, name: str, is_valid: bool, expected: str) -> None:
    """Raises a ValueError that names a field of a config dataclass, unless `is_valid`."""
    if not is_valid:
        owner = type(config).__name__
        raise ValueError(f"{owner}.{name}: got {getattr(config, name)!r}, expected {expected}")


def _check(name: str, value: Any, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"EGNOConfig.{name}: got {value_text(value)}, expected {expected}")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    _check(name, value, isinstance(value, str) and value in choices, f"one of {list(choices)}")
    return value


def _count(name: str, value: Any, least: int) -> int:
    return as_count(f"EGNOConfig.{name}", value, least, LARGEST_COUNT)


def _number(
    name: str, value: Any, expected: str, is_valid: Callable[[float], bool] = math.isfinite
) -> float:
    """Returns a finite number of any library as a Python float."""
    number = as_float(value)
    _check(name, value, math.isfinite(number) and is_valid(number), expected)
    return number


def _positive(name: str, value: Any) -> float:
    expected = "a finite number above 0 that float32 holds in full precision"
    return _number(name, value, expected, lambda number: _SMALLEST <= number <= _LARGEST)


def _non_negative(name: str, value: Any) -> float:
    return _number(name, value, "0 or more", lambda number: number >= 0)


def _flag(name: str, value: Any) -> bool:
    """Returns a bool of any library as a Python bool."""
    _check(name, value, isinstance(value, bool | np.bool_), "True or False")
    return bool(value)


def _dtype(name: str, value: Any) -> str:
    """Returns the name of a floating dtype, which may be a name or a dtype of JAX or NumPy."""
    try:
        dtype = None if value is None else jnp.dtype(value).name
    except (TypeError, ValueError, SyntaxError):  # NumPy parses what is between commas
        dtype = None
    _check(name, value, dtype in _DTYPES, f"one of {list(_DTYPES)}")
    return dtype


def _context(name: str, value: Any, temporal_grid: str) -> tuple[float, ...]:
    """Returns the context times as Python floats."""
    _check(name, value, isinstance(value, tuple | list), "a tuple of times")
    if temporal_grid == "index":
        expected = 'none with temporal_grid="index"; set temporal_grid="context" to use them'
        _check(name, value, not value, expected)
        return ()
    expected = "at least two equally spaced, increasing times"
    times = tuple(_number(name, time, expected) for time in value)
    spacings = [b - a for a, b in itertools.pairwise(times)] or [0.0]
    is_grid = spacings[0] > 0 and max(spacings) - min(spacings) <= 1e-6 * spacings[0]
    _check(name, value, is_grid, expected)
    return times
