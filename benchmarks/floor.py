"""A lower bound of the time of a forward pass and of a training step on a machine, by parts.

    floor = sum over matrix products  operations / the rate measured at that shape
          + compulsory bytes / the measured copy rate
          + evaluations of SiLU and of its derivative / their measured rates

counted for the formulas of the model, whatever the code does:

- the first layer of phi_m is split, so that h_i and h_j are multiplied per node, e_ij per edge and
  once for all times, and the squared distance per edge and time;
- Fourier transforms are real products with the non-zero rows of the basis, and modes that must be
  real (the constant one and, at even P, that of P/2) are mixed by their real parts only;
- a gradient needs two products for each of the forward pass, for the input and for the weights; one
  if the input is data or the weights are constants. The last layer's features are left out, as the
  loss does not depend on them. Nothing is computed twice;
- bytes are those that must pass through memory if no array of edges is stored: inputs and weights
  are read and outputs written once, each layer reads and writes the state of the nodes and reads
  the edges; a gradient reads the state of each layer again, reads and writes its cotangent, and
  AdamW reads and writes the weights and both moments;
- additions, coordinates, LeakyReLU, gathers and scatters are not counted.

The floor is the sum of the parts, for a method that does one thing at a time. A rate is the best of
XLA, NumPy and PyTorch at that shape, and in blocks of its rows that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.cases import Case

# Columns of a node's state in addition to its features: two vectors.
VECTORS = 6
BYTES = 4

Shape = tuple[str, int, int, int]


class Product(NamedTuple):
    """A matrix product `[rows, inner] x [inner, columns]` and its number of uses.

    Attributes:
      part: of the model, a line of the table.
      rows: of the input.
      inner: the dimension that is summed over.
      columns: of the output.
      inference: times in a forward pass.
      forward: times in the forward pass of a training step.
      input_gradient: times in a training step with respect to the input, `dY W^T`.
      weight_gradient: times in a training step with respect to the weights, `X^T dY`.
    """

    part: str
    rows: int
    inner: int
    columns: int
    inference: int
    forward: int
    input_gradient: int
    weight_gradient: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of one product."""
        return 2 * self.rows * self.inner * self.columns


def products(case: Case, num_nodes: int, num_edges: int) -> list[Product]:
    """Returns every matrix product of a case whose batch has N = `num_nodes`, E = `num_edges`."""
    times, width, layers = case.num_times, case.width, case.num_layers
    nodes, edges = times * num_nodes, times * num_edges
    every, unseen = (layers, layers, layers, layers), (layers, *[layers - 1] * 3)
    data = (layers, layers, 0, layers)
    return [
        Product("embedding", num_nodes, case.num_node_features, width, 1, 1, 0, 1),
        Product("embedding", times, case.time_embed_dim, width, 1, 1, 0, 1),
        *_convolution("temporal convolution", case, num_nodes, width),
        *_convolution("vector convolution", case, 3 * num_nodes, 2),
        Product("phi_m, h_i and h_j per node", nodes, width, width, *(2 * n for n in every)),
        Product("phi_m, distance and edge features", edges, 1, width, *every),
        Product(
            "phi_m, distance and edge features", num_edges, case.num_edge_features, width, *data
        ),
        Product("phi_m, second layer", edges, width, width, *every),
        Product("phi_x", edges, width, width, *every),
        Product("phi_x", edges, width, 1, *every),
        Product("phi_v", nodes, width, width, *every),
        Product("phi_v", nodes, width, 1, *every),
        Product("phi_h", nodes, 2 * width, width, *unseen),
        Product("phi_h", nodes, width, width, *unseen),
    ]


def _convolution(part: str, case: Case, rows: int, width: int) -> list[Product]:
    """Returns the products of a temporal convolution of `rows` signals of `width` channels."""
    times, layers = case.num_times, case.num_layers
    live = min(case.num_modes, times // 2 + 1)
    num_real = 1 + (2 * (live - 1) == times)
    num_complex = live - num_real
    basis = num_real + 2 * num_complex
    every = (layers, layers, layers, layers)
    signals = rows * width
    # A transform's gradient has the shape of the other transform; its basis has no gradient.
    return [
        Product(part, basis, times, signals, layers, 2 * layers, 0, 0),
        Product(part, times, basis, signals, layers, 2 * layers, 0, 0),
        Product(part, rows, width, width, *(num_real * n for n in every)),
        Product(part, rows, 2 * width, 2 * width, *(num_complex * n for n in every)),
    ]


def uses(product: Product) -> dict[str, dict[Shape, int]]:
    """Returns the number of uses of a product by shape.

    Returns:
      For `inference` and `step`, counts by shape: `(kind, rows, inner, columns)` of the forward
      product that it is or belongs to.
    """
    sizes = (product.rows, product.inner, product.columns)
    step = {
        ("forward", *sizes): product.forward,
        ("input_gradient", *sizes): product.input_gradient,
        ("weight_gradient", *sizes): product.weight_gradient,
    }
    inference = {("forward", *sizes): product.inference}
    return {
        workload: {shape: count for shape, count in counts.items() if count}
        for workload, counts in (("inference", inference), ("step", step))
    }


def shapes(found: Iterable[Product]) -> list[Shape]:
    """Returns the distinct shapes, whose rates are needed."""
    every = (uses(product) for product in found)
    return sorted({shape for use in every for counts in use.values() for shape in counts})


def operations(found: Iterable[Product]) -> dict[str, int]:
    """Returns the operations of all matrix products of a forward pass and of a training step."""
    totals = {"inference": 0, "step": 0}
    for product in found:
        for workload, counts in uses(product).items():
            totals[workload] += product.operations * sum(counts.values())
    return totals


def activations(case: Case, num_nodes: int, num_edges: int) -> dict[str, int]:
    """Returns the evaluations of SiLU of a forward pass and a step, and of its derivative."""
    rows = case.num_times * case.width
    of_last_features = rows * num_nodes
    inference = case.num_layers * rows * (3 * num_edges + 2 * num_nodes)
    step = inference - of_last_features
    return {"inference": inference, "step": step, "step derivative": step}


def compulsory_bytes(
    case: Case, num_nodes: int, num_edges: int, num_weights: int
) -> dict[str, int]:
    """Returns the bytes that a forward pass and a training step must read and write, in float32."""
    state = case.num_times * num_nodes * (VECTORS + case.width)
    edges = num_edges * (2 + case.num_edge_features)
    inputs = num_nodes * (VECTORS + case.num_node_features) + case.num_times
    forward = case.num_layers * (2 * state + edges) + inputs + num_weights
    backward = case.num_layers * (3 * state + edges) + case.num_times * num_nodes * 3
    adam = 6 * num_weights
    return {"inference": BYTES * forward, "step": BYTES * (forward + backward + adam)}


class Rates(NamedTuple):
    """The measured rates of a machine.

    Attributes:
      seconds: by shape, the least time of the product.
      copy: bytes a second, reads and writes.
      silu: evaluations of SiLU a second.
      derivative: evaluations of its derivative a second.
    """

    seconds: Mapping[Shape, float]
    copy: float
    silu: float
    derivative: float


def entry(
    case: Case, num_nodes: int, num_edges: int, num_weights: int, rates: Rates
) -> dict[str, Any]:
    """Returns the floor of a case as an entry of the results, by workload and part."""
    found = products(case, num_nodes, num_edges)
    counts = activations(case, num_nodes, num_edges)
    moved = compulsory_bytes(case, num_nodes, num_edges, num_weights)
    result = {}
    for workload in ("inference", "step"):
        parts = _product_parts(found, workload, rates)
        parts["SiLU"] = _part(counts[workload], rates.silu)
        if workload == "step":
            parts["SiLU, derivative"] = _part(counts["step derivative"], rates.derivative)
        parts["bytes"] = _part(moved[workload], rates.copy)
        result[workload] = {
            "seconds": sum(part["seconds"] for part in parts.values()),
            "operations": operations(found)[workload],
            "parts": parts,
        }
    return result


def _product_parts(
    found: Sequence[Product], workload: str, rates: Rates
) -> dict[str, dict[str, float]]:
    parts: dict[str, dict[str, float]] = {}
    for product in found:
        part = parts.setdefault(product.part, {"count": 0, "seconds": 0.0})
        for shape, count in uses(product)[workload].items():
            part["count"] += count * product.operations
            part["seconds"] += count * rates.seconds[shape]
    return parts


def _part(count: int, rate: float) -> dict[str, float]:
    return {"count": count, "seconds": count / rate}
