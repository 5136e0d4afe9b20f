"""Weights of the original PyTorch code, to and from this library's tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

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


def from_torch_state_dict(state: Mapping[str, ArrayLike], config: EGNOConfig) -> Params:
    """Converts a checkpoint of the original EGNO code.

    Such a model numbers its times from 0, and 0 is the first *target*: ask it for
    `times = 0..P-1` in units of `config.time_scale`.

    Args:
      state: the original's names and arrays: `{k: v.numpy() for k, v in
        torch_model.state_dict().items()}`.
      config: the sizes of that model; `param_dtype` is the dtype of the result. The weights tell
        whether a size is wrong, but for `time_embed_dim`: of it and the number of node features
        they hold the sum alone, so that `apply` finds it when it sees a graph.

    Returns:
      The parameters, ready for `egno_jax.apply`.

    Raises:
      ValueError: an array is missing, unknown, of another shape than the config says, or not
        finite; names it. Or the config asks for a mean field or another `velocity_scale` than 1,
        which the original does not have.

    Source of the names: github.com/MinkaiXu/EGNO, `model/egno.py`.
    """
    check_config(config)
    _check_is_original(config)
    if not isinstance(state, Mapping):
        raise ValueError(
            f"state: got {type(state).__name__}, expected a mapping of names to arrays, such as "
            "torch_model.state_dict()"
        )
    names = _torch_names(config)
    _check_names(set(state), set(names), config)
    weights: dict[str, Any] = {}
    for name, path in names.items():
        array = _from_torch_layout(_as_finite(state[name], name, config.param_dtype), name)
        *parents, leaf = path
        subtree = weights
        for parent in parents:
            subtree = subtree.setdefault(parent, {})
        subtree[leaf] = jnp.asarray(array)
    params = Params(weights=weights, config=config)
    _check_shapes(params)
    return params


def to_torch_state_dict(params: Params) -> dict[str, np.ndarray]:
    """Converts parameters to the names and layouts of the original EGNO code.

    The weights are all that is converted. The original embeds the numbers 0..P-1 of the times that
    are asked, so that it gives this model's numbers where `times / config.time_scale` are these,
    and with `temporal_grid="context"` only where the times are the context times.

    Args:
      params: a model.

    Returns:
      Names and NumPy arrays for `torch_model.load_state_dict` (after `torch.from_numpy`).

    Raises:
      ValueError: these are no parameters; or it is a baseline, or has a mean field or another
        `velocity_scale` than 1, for which the original has no names.
    """
    check_weights(params)
    if type(params.config) is not EGNOConfig:
        raise ValueError(
            f"params.config: got a {type(params.config).__name__}, expected an EGNOConfig"
        )
    _check_is_original(params.config)
    return {
        name: _to_torch_layout(np.asarray(_leaf(params.weights, path)))
        for name, path in _torch_names(params.config).items()
    }


def _check_is_original(config: EGNOConfig) -> None:
    if config.layer != "egnn":
        raise ValueError(
            f"config.layer: got {config.layer!r}, expected 'egnn', the layer of the original EGNO"
        )
    if config.mean_field:
        raise ValueError(
            "config.mean_field: got True, expected False: the original EGNO has no mean field"
        )
    if config.velocity_scale != 1:
        raise ValueError(
            f"config.velocity_scale: got {config.velocity_scale}, expected 1: the original EGNO "
            "computes with velocities as they are given"
        )


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
        with np.errstate(over="ignore"):  # what overflows is infinite, and named below
            array = np.asarray(array).astype(jnp.dtype(dtype))
    except (TypeError, ValueError) as error:
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


def _check_names(found: set[str], expected: set[str], config: EGNOConfig) -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing or unknown:
        raise ValueError(
            f"state: {len(missing)} array(s) missing {missing[:3]} and {len(unknown)} unknown "
            f"{unknown[:3]}, expected the names of an original EGNO of {config.num_layers} layers; "
            "check config.num_layers, and that the original's `norm` and `flat` options were off"
        )


def _check_shapes(params: Params) -> None:
    """Raises if a weight's shape is not the one that the config and the inputs' sizes imply."""
    try:
        expected = weight_shapes(params.config, *feature_sizes(params))
    except ValueError as error:
        raise ValueError(f"state: {error}") from error
    for name, path in _torch_names(params.config).items():
        found, wanted = _leaf(params.weights, path).shape, expected["/".join(path)]
        if found != wanted:
            raise ValueError(
                f"state[{name!r}]: got an array that becomes {list(found)}, expected "
                f"{list(wanted)} with hidden_dim={params.config.hidden_dim} and "
                f"num_modes={params.config.num_modes}"
            )


def _leaf(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
