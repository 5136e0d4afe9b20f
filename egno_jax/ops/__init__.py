"""Pure functions under the layers: they take arrays and weights, and know nothing of Flax."""

from egno_jax.ops.embedding import embed_times, sinusoidal_embedding
from egno_jax.ops.linear import linear, matmul, mlp
from egno_jax.ops.message_passing import (
    MAX_STEP,
    edge_messages,
    egnn_layer,
    graph_mean,
    message_sums,
    message_sums_reference,
    node_update,
    node_update_reference,
    segment_mean,
    segment_sum,
)
from egno_jax.ops.numerics import limit_norm, safe_norm, squared_norm
from egno_jax.ops.spectral import (
    Context,
    dft,
    inverse_dft,
    mix_modes,
    num_live_modes,
    spectral_conv,
    spectral_conv_at,
    spectral_conv_dft,
    spectral_conv_fft,
)

__all__ = [
    "MAX_STEP",
    "Context",
    "dft",
    "edge_messages",
    "egnn_layer",
    "embed_times",
    "graph_mean",
    "inverse_dft",
    "limit_norm",
    "linear",
    "matmul",
    "message_sums",
    "message_sums_reference",
    "mix_modes",
    "mlp",
    "node_update",
    "node_update_reference",
    "num_live_modes",
    "safe_norm",
    "segment_mean",
    "segment_sum",
    "sinusoidal_embedding",
    "spectral_conv",
    "spectral_conv_at",
    "spectral_conv_dft",
    "spectral_conv_fft",
    "squared_norm",
]
