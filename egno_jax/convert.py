"""Conversion of weights from and to the original PyTorch code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from egno_jax.config import EGNOConfig
from egno_jax.params import Params, check_config, check_weights, feature_sizes, weight_shapes

if TYPE_CHECKING:
    from jaxtyping import ArrayLike

# The original's names of the four perceptrons of a layer.
_MLPS = {
    "message_mlp": "edge_message_net.scalar_net.mlp",
    "position_mlp": "coord_net.mlp",
    "velocity_mlp": "node_v_net.mlp",
    "feature_mlp": "node_net.mlp",
}
# The original's names of the two temporal convolutions of a layer.
_CONVS = {"temporal_conv": "time_conv_modules", "vector_temporal_conv": "time_conv_x_modules"}

# Where training scripts keep the state of the model in a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model")
# What DataParallel and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


def from_torch_state_dict(state: Mapping[str, ArrayLike], config: EGNOConfig) -> Params:
    """Converts a checkpoint of the original EGNO code.

    Such a model numbers its times from 0, and 0 is the first *target*: request
    `times = 0..P-1` in units of `config.time_scale`.

    Args:
      state: `torch_model.state_dict()`, or its names and NumPy arrays; also a checkpoint that holds
        it as `state_dict`, `model_state_dict` or `model`, and names that begin with `module.`
        (`DataParallel`) or `_orig_mod.` (`torch.compile`). Nothing is unpickled here.
      config: the sizes of that model; `param_dtype` is the dtype of the result. Sizes are checked
        against the weights, except `time_embed_dim`: the weights determine only its sum with the
        number of node features, which `apply` checks.

    Raises:
      ValueError: an array is missing, unknown, not of the config's shape, or not finite; names it.
        Or the config has a mean field or a `velocity_scale` other than 1, which the original does
        not have.

    Source of the names: github.com/MinkaiXu/EGNO, `model/egno.py`.
    """
    check_config(config)
    _check_is_original(config)
    if not isinstance(state, Mapping):
        raise ValueError(
            f"state: got {type(state).__name__}, expected a mapping of names to arrays, such as "
            "torch_model.state_dict()"
        )
    state = _unwrapped(state)
    names = _torch_names(config)
    missing, unknown = sorted(names.keys() - set(state)), sorted(set(state) - names.keys())
    if missing or unknown:
        raise ValueError(
            f"state: {len(missing)} array(s) missing {missing[:3]} and {len(unknown)} unknown "
            f"{unknown[:3]}, expected the names of an original EGNO of {config.num_layers} layers; "
            "check config.num_layers, and that the original's `norm` and `flat` options were off"
        )
    arrays = {name: _as_finite(state[name], name, config.param_dtype) for name in names}
    weights = {path: jnp.asarray(_from_torch_layout(arrays[x], x)) for x, path in names.items()}
    params = Params(weights=traverse_util.unflatten_dict(weights), config=config)
    _check_shapes(params)
    return params


def to_torch_state_dict(params: Params) -> dict[str, np.ndarray]:
    """Converts parameters to the names and layouts of the original EGNO code.

    The result is for `torch_model.load_state_dict` (after `torch.from_numpy`). Only weights are
    converted. The original embeds the indices 0..P-1 of the requested times, so that both models
    agree where `times / config.time_scale` are these indices, and with `temporal_grid="context"`
    only at the context times.

    Raises:
      ValueError: these are not valid parameters, are of a baseline, or have a mean field or a
        `velocity_scale` other than 1, for which the original has no names.
    """
    check_weights(params)
    if type(params.config) is not EGNOConfig:
        raise ValueError(
            f"params.config: got a {type(params.config).__name__}, expected an EGNOConfig"
        )
    _check_is_original(params.config)
    weights = traverse_util.flatten_dict(params.weights)
    return {
        name: _to_torch_layout(np.asarray(weights[path]))
        for name, path in _torch_names(params.config).items()
    }


def _check_is_original(config: EGNOConfig) -> None:
    for name, expected in (("layer", "egnn"), ("mean_field", False), ("velocity_scale", 1)):
        if getattr(config, name) != expected:
            raise ValueError(
                f"config.{name}: got {getattr(config, name)!r}, expected {expected!r}, as in the "
                "original EGNO"
            )


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state of a model out of a training checkpoint, without the names of wrappers."""
    for key in _NESTED:
        if isinstance(state.get(key), Mapping):
            return _unwrapped(state[key])
    for prefix in _WRAPPERS:
        if state and all(str(name).startswith(prefix) for name in state):
            return _unwrapped({name.removeprefix(prefix): x for name, x in state.items()})
    return dict(state)


def _as_numpy(array: ArrayLike) -> np.ndarray:
    """Converts an array, or a tensor of PyTorch on any device, with or without gradient."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if "bfloat16" in str(array.dtype):  # NumPy has no such dtype
            array = array.float()
    return np.asarray(array)


def _torch_names(config: EGNOConfig) -> dict[str, tuple[str, ...]]:
    """Returns the path in `Params.weights` of every array of the original."""
    names = {
        "embedding.weight": ("embedding", "linear", "kernel"),
        "embedding.bias": ("embedding", "linear", "bias"),
    }
    for layer in range(config.num_layers):
        block = f"block_{layer}"
        for conv, torch_conv in _CONVS.items():
            names[f"{torch_conv}.{layer}.t_conv.weights1"] = (block, conv, "kernel")
        for mlp, torch_mlp in _MLPS.items():
            # The activation between them is the original's entry 1.
            for linear, torch_index in (("linear_0", 0), ("linear_1", 2)):
                prefix = f"layers.{layer}.{torch_mlp}.{torch_index}"
                path = (block, "egnn_layer", mlp, linear)
                names[f"{prefix}.weight"] = (*path, "kernel")
                names[f"{prefix}.bias"] = (*path, "bias")
    return names


def _as_finite(array: ArrayLike, name: str, dtype: str) -> np.ndarray:
    """Returns the weights in `dtype`, in which they must be finite."""
    try:
        with np.errstate(over="ignore"):  # overflow gives infinity, which is reported below
            array = _as_numpy(array).astype(jnp.dtype(dtype))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"state[{name!r}]: not an array of numbers ({error})") from error
    if not np.isfinite(array).all():
        raise ValueError(
            f"state[{name!r}]: got NaN or infinite values, expected finite weights in {dtype}"
        )
    return array


def _from_torch_layout(array: np.ndarray, name: str) -> np.ndarray:
    rank = 1 if name.endswith("bias") else 4 if name.endswith("weights1") else 2
    if array.ndim != rank:
        raise ValueError(f"state[{name!r}]: got shape {list(array.shape)}, expected rank {rank}")
    if rank == 4:
        return array.transpose(3, 2, 0, 1)  # [C_in, C_out, M, 2] -> [2, M, C_in, C_out]
    return array.T


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def _check_shapes(params: Params) -> None:
    """Raises a ValueError, with the original's name, for a weight of another shape."""
    try:
        expected = weight_shapes(params.config, *feature_sizes(params))
    except ValueError as error:
        raise ValueError(f"state: {error}") from error
    weights = traverse_util.flatten_dict(params.weights)
    for name, path in _torch_names(params.config).items():
        found, wanted = weights[path].shape, expected["/".join(path)]
        if found != wanted:
            raise ValueError(
                f"state[{name!r}]: got an array that becomes {list(found)}, expected "
                f"{list(wanted)} with hidden_dim={params.config.hidden_dim} and "
                f"num_modes={params.config.num_modes}"
            )
