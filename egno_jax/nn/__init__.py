"""Layers as Linen modules, thin wrappers of `egno_jax.ops`; each can be used alone, also in NNX.

`register_layer` registers custom spatial layers of EGNO; see `SpatialLayer`.
"""

from egno_jax.nn.block import Block, SpatialLayer, State, layer_names, register_layer
from egno_jax.nn.egnn import EGNNLayer, EGNNSpatialLayer, EGNOBlock
from egno_jax.nn.embedding import TimeEmbedding
from egno_jax.nn.linear import MLP, Linear
from egno_jax.nn.mean_field import MeanField
from egno_jax.nn.steerable import SteerableLayer
from egno_jax.nn.temporal_conv import IrrepsTemporalConv, TemporalConv, VectorTemporalConv
from egno_jax.nn.vector import VectorLayer

__all__ = [
    "MLP",
    "Block",
    "EGNNLayer",
    "EGNNSpatialLayer",
    "EGNOBlock",
    "IrrepsTemporalConv",
    "Linear",
    "MeanField",
    "SpatialLayer",
    "State",
    "SteerableLayer",
    "TemporalConv",
    "TimeEmbedding",
    "VectorLayer",
    "VectorTemporalConv",
    "layer_names",
    "register_layer",
]
