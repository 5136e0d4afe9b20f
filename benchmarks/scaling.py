"""Cost model of a training step on a mesh: compute, memory and traffic, with a table for pods.

    python -m benchmarks.scaling

The formulas are those of docs/scaling.md; tests compare them with XLA's figures for compiled
programs. Numbers are float32, and the model is `egno_jax.apply` under a mesh.
"""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """The sizes of one sample and of the model.

    Attributes:
      layers: L.
      width: C.
      modes: M, at most P // 2 + 1.
      times: P.
      nodes: N of a sample.
      edges: E of a sample.
      node_features: F.
      edge_features: D.
      time_embed: size of the time embedding.
    """

    layers: int
    width: int
    modes: int
    times: int
    nodes: int
    edges: int
    node_features: int = 2
    edge_features: int = 2
    time_embed: int = 32


class Chip(NamedTuple):
    """A device and its links, according to data sheets.

    Attributes:
      name: its name.
      flops: floating-point operations a second, in float32 or its equivalent.
      memory: bytes.
      bandwidth: bytes a second of one ring over the links, in each direction.
      latency: seconds of a hop.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    latency: float


def num_weights(size: Size) -> int:
    """Returns |theta|, the number of weights."""
    c, d = size.width, size.edge_features
    message = (1 + 2 * c + d) * c + c + c * c + c
    head = c * c + c + c + 1
    feature = 2 * c * c + c + c * c + c
    convolutions = 2 * size.modes * (c * c + 4)
    embedding = (size.node_features + size.time_embed) * c + c
    return embedding + size.layers * (message + 2 * head + feature + convolutions)


def forward_flops(size: Size, time_shares: int = 1) -> float:
    """Returns the operations of products in `apply`, of one sample on one device.

        L [ P/T (4 E C^2 + 12 N C^2 + 8 M N (C + 6)) + 8 M N C^2 ]

    The last term, the product of the modes, is replicated on every device.
    """
    c, n, m = size.width, size.nodes, size.modes
    per_time = 4 * size.edges * c**2 + 12 * n * c**2 + 8 * m * n * (c + 6)
    return size.layers * (size.times / time_shares * per_time + 8 * m * n * c**2)


def step_flops(size: Size, time_shares: int = 1) -> float:
    """Returns the operations of forward and gradient: three times the forward pass."""
    return 3 * forward_flops(size, time_shares)


def activation_bytes(size: Size, time_shares: int = 1) -> float:
    """Returns the bytes that the gradient of one sample stores on one device, measured on XLA:CPU.

    4 L P/T [E (12 C + 14) + N (9.5 C + 29)]
    """
    c = size.width
    per_time = size.edges * (12 * c + 14) + size.nodes * (9.5 * c + 29)
    return 4 * size.layers * size.times / time_shares * per_time


def state_bytes(size: Size) -> float:
    """Returns the bytes of weights, average, gradient and Adam's moments, on every device."""
    return 5 * 4 * num_weights(size)


def coefficient_bytes(size: Size) -> float:
    """Returns the bytes that one layer sums over `time` for a sample, in each pass: 8 M N (C + 6).

    The coefficients of C features and of two vectors of three components, real and imaginary.
    """
    return 8 * size.modes * size.nodes * (size.width + 6)


def time_traffic(size: Size) -> float:
    """Returns the bytes that a step sums over `time` for one sample; independent of P.

        L 2 * 8 M N (C + 6) + 4 N C

    Coefficients forward and backward, and the gradient of the node terms shared by all times.
    """
    return size.layers * 2 * coefficient_bytes(size) + 4 * size.nodes * size.width


def ring_bytes(payload: float, shares: int) -> float:
    """Returns the bytes that a device sends to sum a payload over a ring: 2 (T - 1)/T of it."""
    return 2 * (shares - 1) / shares * payload


def step_seconds(
    size: Size, chip: Chip, samples: int, data_shares: int, time_shares: int, efficiency: float
) -> tuple[float, float, float]:
    """Returns the seconds of a step for compute, for sums over `time`, and for sums over `data`.

    Args:
      size: of a sample and the model.
      chip: the device.
      samples: B, of the whole batch.
      data_shares: size of the axis `data`.
      time_shares: size of the axis `time`.
      efficiency: the fraction of the chip's operations that is reached.
    """
    per_device = -(-samples // data_shares)
    compute = per_device * step_flops(size, time_shares) / (chip.flops * efficiency)
    # Two sums a layer and direction, each 2 (T - 1) hops.
    hops = 4 * size.layers * 2 * (time_shares - 1)
    over_time = ring_bytes(per_device * time_traffic(size), time_shares) / chip.bandwidth
    over_time += hops * chip.latency
    over_data = ring_bytes(4 * num_weights(size), data_shares) / chip.bandwidth
    over_data += 2 * (data_shares - 1) * chip.latency
    return compute, over_time, over_data


CHIPS = (
    Chip("TPU v5e", flops=197e12 / 6, memory=16 * 2**30, bandwidth=4.5e10, latency=1e-6),
    Chip("TPU v5p", flops=459e12 / 6, memory=95 * 2**30, bandwidth=9e10, latency=1e-6),
    Chip("H100 (NVLink, then InfiniBand)", flops=67e12, memory=80e9, bandwidth=5e10, latency=5e-6),
)
# A protein of 855 backbone nodes, decoded at thousands of times.
EXAMPLE = Size(layers=4, width=64, modes=8, times=4096, nodes=855, edges=20000)


def main() -> None:
    """Prints the cost of one step of the example on meshes of increasing size."""
    samples_per_data_share, efficiency = 1, 0.2
    print("| chip | chips | data x time | GiB a chip | compute ms | time ms | data ms |")
    print("|---|---|---|---|---|---|---|")
    for chip in CHIPS:
        for data_shares, time_shares in ((1, 16), (4, 64), (16, 64), (64, 64), (16, 256)):
            memory = activation_bytes(EXAMPLE, time_shares) + state_bytes(EXAMPLE)
            seconds = step_seconds(
                EXAMPLE,
                chip,
                samples_per_data_share * data_shares,
                data_shares,
                time_shares,
                efficiency,
            )
            columns = " | ".join(f"{1e3 * part:.2f}" for part in seconds)
            fits = "" if memory < chip.memory else " (does not fit)"
            print(
                f"| {chip.name} | {data_shares * time_shares} | {data_shares} x {time_shares} | "
                f"{memory / 2**30:.1f}{fits} | {columns} |"
            )


if __name__ == "__main__":
    main()
