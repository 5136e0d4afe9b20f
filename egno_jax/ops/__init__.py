"""Pure functions of arrays and weights, used by the layers; independent of Flax."""

from egno_jax import deprecation
from egno_jax.ops.embedding import embed_times, sinusoidal_embedding
from egno_jax.ops.layouts import Adjacency, Blocks, EdgeList, Incidence, Layout, Segments
from egno_jax.ops.linear import linear, matmul, mlp
from egno_jax.ops.mean_field import mean_field
from egno_jax.ops.message_passing import (
    MAX_STEP,
    displacements,
    edge_messages,
    egnn_layer,
    feature_update,
    feature_update_reference,
    graph_mean,
    message_sums,
    message_sums_reference,
    segment_mean,
    segment_sum,
    sums_over,
    velocity_factor,
    velocity_factor_reference,
)
from egno_jax.ops.numerics import limit_norm, safe_norm, squared_norm
from egno_jax.ops.sharding import (
    DATA_AXIS,
    TIME_AXIS,
    axis_size,
    is_partitioned,
    num_missing_times,
    pad_times,
    replicate,
    shard_times,
)
from egno_jax.ops.spectral import (
    NEGATIVE_SLOPE,
    Context,
    dft,
    inverse_dft,
    mix_modes,
    nonlinearity,
    num_live_modes,
    spectral_conv,
    spectral_conv_at,
    spectral_conv_dft,
    spectral_conv_fft,
    temporal_conv,
    temporal_conv_reference,
)
from egno_jax.ops.vector_messages import VectorSums, standardized, vector_sums

__all__ = [
    "DATA_AXIS",
    "MAX_STEP",
    "NEGATIVE_SLOPE",
    "TIME_AXIS",
    "Adjacency",
    "Blocks",
    "Context",
    "EdgeList",
    "Incidence",
    "Layout",
    "Segments",
    "VectorSums",
    "axis_size",
    "dft",
    "displacements",
    "edge_messages",
    "egnn_layer",
    "embed_times",
    "feature_update",
    "feature_update_reference",
    "graph_mean",
    "inverse_dft",
    "is_partitioned",
    "limit_norm",
    "linear",
    "matmul",
    "mean_field",
    "message_sums",
    "message_sums_reference",
    "mix_modes",
    "mlp",
    "nonlinearity",
    "num_live_modes",
    "num_missing_times",
    "pad_times",
    "replicate",
    "safe_norm",
    "segment_mean",
    "segment_sum",
    "shard_times",
    "sinusoidal_embedding",
    "spectral_conv",
    "spectral_conv_at",
    "spectral_conv_dft",
    "spectral_conv_fft",
    "squared_norm",
    "standardized",
    "sums_over",
    "temporal_conv",
    "temporal_conv_reference",
    "vector_sums",
    "velocity_factor",
    "velocity_factor_reference",
]

__getattr__ = deprecation.module_getattr(
    __name__,
    {
        "share_whole": "egno_jax.ops.sharding:replicate",
        "split_times": "egno_jax.ops.sharding:shard_times",
    },
)
