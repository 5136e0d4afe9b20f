"""The model's layers as Linen modules that work alone, also through `flax.nnx.bridge`."""

from egno_jax.nn.egnn import EGNNLayer, EGNOBlock, MeanField
from egno_jax.nn.embedding import TimeEmbedding
from egno_jax.nn.linear import MLP, Linear
from egno_jax.nn.temporal_conv import IrrepsTemporalConv, TemporalConv, VectorTemporalConv

__all__ = [
    "MLP",
    "EGNNLayer",
    "EGNOBlock",
    "IrrepsTemporalConv",
    "Linear",
    "MeanField",
    "TemporalConv",
    "TimeEmbedding",
    "VectorTemporalConv",
]
