"""Linear layers and perceptrons, initialised as in PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egno_jax import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Float

    Weights = dict[str, Any]


def symmetric_uniform(bound: float) -> Callable[..., Array]:
    """Returns an initialiser that draws uniformly from `[-bound, bound)`."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def compute_dtype(dtype: Any, *arrays: Array) -> Any:
    """Returns `dtype`, or if it is None the dtype that the arrays promote to."""
    return jnp.result_type(*arrays) if dtype is None else jnp.dtype(dtype)


class Linear(nn.Module):
    """A linear layer `y = x kernel + bias`; both are initially uniform in `+-1/sqrt(A)`.

    Attributes:
      features: size B of the output.
      dtype: dtype of the computation; None follows input and weights.
      param_dtype: dtype of the weights.
      precision: `jax.lax` precision of products over channels.
      starts_at_zero: whether both are 0 at the start instead.

    Source of the initialisation: `torch.nn.Linear`.
    """

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"
    starts_at_zero: bool = False

    @nn.compact
    def weights(self, in_features: int) -> Weights:
        """Returns `kernel` `[A, B]` and `bias` `[B]` for inputs of size A."""
        bound = 1.0 / math.sqrt(max(in_features, 1))
        init = nn.initializers.zeros if self.starts_at_zero else symmetric_uniform(bound)
        return {
            "kernel": self.param("kernel", init, (in_features, self.features), self.param_dtype),
            "bias": self.param("bias", init, (self.features,), self.param_dtype),
        }

    def __call__(self, x: Float[Array, "... A"]) -> Float[Array, "... B"]:
        """Applies the layer to the last axis."""
        weights = self.weights(x.shape[-1])
        dtype = compute_dtype(self.dtype, x, weights["kernel"])
        return ops.linear(cast(weights, dtype), x.astype(dtype), self.precision)


class MLP(nn.Module):
    """The model's perceptron: Linear, SiLU, Linear.

    Attributes:
      hidden: width of the inner layer.
      features: size B of the output.
      dtype, param_dtype, precision: as in `Linear`.
      starts_at_zero: whether the output is 0 at the start.
    """

    hidden: int
    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: str = "highest"
    starts_at_zero: bool = False

    @nn.compact
    def weights(self, in_features: int) -> dict[str, Weights]:
        """Returns the weights of `linear_0` and `linear_1` for inputs of size A."""
        dtype, is_zero = self.param_dtype, self.starts_at_zero
        first = Linear(self.hidden, param_dtype=dtype, name="linear_0")
        second = Linear(self.features, param_dtype=dtype, starts_at_zero=is_zero, name="linear_1")
        return {"linear_0": first.weights(in_features), "linear_1": second.weights(self.hidden)}

    def __call__(self, x: Float[Array, "... A"]) -> Float[Array, "... B"]:
        """Applies the layer to the last axis."""
        weights = self.weights(x.shape[-1])
        dtype = compute_dtype(self.dtype, x, weights["linear_0"]["kernel"])
        return ops.mlp(cast(weights, dtype), x.astype(dtype), self.precision)


def cast(tree: Any, dtype: Any) -> Any:
    """Casts every array of a tree to `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def as_geometry(vectors: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    """Returns positions or velocities in float32 or wider, the dtype of all geometry."""
    return vectors.astype(jnp.result_type(vectors.dtype, jnp.float32))
