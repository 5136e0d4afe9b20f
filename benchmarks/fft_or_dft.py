"""FFT or truncated DFT: which of two equivalent temporal convolutions is faster at which sizes.

    python -m benchmarks.fft_or_dft

times forward and gradient of both, in turn in one process, over grids of P times, M modes and C
channels, and writes `benchmarks/results/spectral-<device>.json` and a table. They are the reason
for the threshold `MAX_DFT_MODES` of `egno_jax.ops.fourier`.
"""

from __future__ import annotations

import functools
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import provenance
from egno_jax import ops
from egno_jax.files import write_text

RESULTS = Path(__file__).parent / "results"
METHODS = {"fft": ops.spectral_conv_fft, "dft": ops.spectral_conv_dft}
NUM_TIMES = (5, 8, 16, 32, 64, 128, 256)
NUM_MODES = (2, 4, 8, 16, 32, 64, 128)
SHAPES = {"scalars [P, 200, 64]": (200, 64), "vectors [P, 500, 3, 2]": (500, 3, 2)}
REPEATS = 9


def compiled(method: Callable[..., jax.Array]) -> Callable[..., object]:
    """Returns the compiled gradient of a method, which includes its forward pass."""

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(method(x, kernel)))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Runs the calls in turn and returns the median seconds of each."""
    seconds = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first round compiles
                seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def measure(num_times: int, num_modes: int, shape: tuple[int, ...]) -> dict[str, float]:
    """Returns the median seconds of a forward and backward pass of both methods."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (num_times, *shape))
    kernel = jax.random.normal(key, (2, num_modes, shape[-1], shape[-1]))
    steps = {name: compiled(method) for name, method in METHODS.items()}
    return medians({name: functools.partial(step, x, kernel) for name, step in steps.items()})


def table(rows: list[dict]) -> str:
    """Returns the times of the FFT over those of the DFT, above 1 where the DFT is faster."""
    lines = []
    for layer in SHAPES:
        lines += [f"\n{layer}: seconds(FFT) / seconds(DFT), forward and gradient", ""]
        lines += ["| P \\ M | " + " | ".join(map(str, NUM_MODES)) + " |"]
        lines += ["|---" * (len(NUM_MODES) + 1) + "|"]
        for num_times in NUM_TIMES:
            ratio = {
                row["num_modes"]: f"{row['fft'] / row['dft']:.2f}"
                for row in rows
                if row["layer"] == layer and row["num_times"] == num_times
            }
            cells = " | ".join(ratio.get(modes, "") for modes in NUM_MODES)
            lines.append(f"| {num_times} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the whole grid and writes it."""
    rows = []
    for (layer, shape), num_times, num_modes in itertools.product(
        SHAPES.items(), NUM_TIMES, NUM_MODES
    ):
        if num_modes <= num_times // 2 + 1:
            seconds = measure(num_times, num_modes, shape)
            rows.append({"layer": layer, "num_times": num_times, "num_modes": num_modes, **seconds})
    device = jax.devices()[0]
    made_with = {
        "command": "python -m benchmarks.fft_or_dft",
        "commit": provenance.commit(),
        "device": f"{device.platform} {device.device_kind} ({platform.machine()})",
        "jax": jax.__version__,
        "date": provenance.date(),
    }
    result = {**made_with, "repeats": REPEATS, "rows": rows}
    name = f"spectral-{device.platform}"
    write_text(RESULTS / f"{name}.json", json.dumps(result, indent=1) + "\n")
    text = f"# FFT or DFT\n\n{json.dumps(made_with, indent=2)}\n{table(rows)}\n"
    write_text(RESULTS / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
