"""What the tests share: random graphs and weights, the stored fixtures, relative errors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import jax
import jraph
import numpy as np

import egno_jax
from egno_jax import EGNOConfig, Params, Trajectory, training
from egno_jax.model import weight_shapes
from egno_jax.testing import random_graph  # noqa: F401

FIXTURES = Path(__file__).parent / "fixtures"
TRAJECTORY_FIELDS = tuple(field.name for field in dataclasses.fields(Trajectory))

# Compiled once a shape and shared by every test of a process.
apply = jax.jit(egno_jax.apply)


def init_layer(layer, *inputs):
    """Returns the layer's output and its variables, as `init_with_output`, compiled whole."""
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in half the time
    return jax.jit(layer.init_with_output)(key, *inputs)


def using(dtype: str) -> contextlib.AbstractContextManager:
    """Returns a context in which JAX computes in `dtype`, "float32" or "float64"."""
    return jax.enable_x64(dtype == "float64")


def use_tpu_branches(monkeypatch) -> None:
    """Makes every `jax.lax.platform_dependent` that is traced next what it is on a TPU."""

    def on_tpu(*operands, default=None, **branches):
        return branches.get("tpu", default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", on_tpu)


def relative_error(found, expected) -> float:
    """Returns max|a - b| / max|b| over a whole array; max|a| where b is zero throughout."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    if not expected.size:
        return 0.0
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def assert_close(found, expected, tolerance: float, name: str = "") -> None:
    """Asserts that the relative error is at most `tolerance`; fails on NaN."""
    error = relative_error(found, expected)
    assert error <= tolerance, f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}"


def assert_trees_close(found, expected, tolerance: float) -> None:
    """Asserts that two trees have one structure, and every pair of leaves is close."""
    found, expected = (jax.tree_util.tree_flatten_with_path(tree) for tree in (found, expected))
    assert found[1] == expected[1]
    for (path, a), (_, b) in zip(found[0], expected[0], strict=True):
        assert_close(a, b, tolerance, jax.tree_util.keystr(path))


def random_params(
    rng: np.random.Generator,
    config: EGNOConfig,
    num_node_features: int = 2,
    num_edge_features: int = 2,
) -> Params:
    """Draws weights as `init` does, but with NumPy, so that nothing is compiled."""
    weights = {}
    for path, shape in weight_shapes(config, num_node_features, num_edge_features).items():
        if len(shape) == 4:
            array = rng.uniform(0, 0.1 if "vector" in path else 1 / shape[-1] ** 2, shape)
        else:
            bound = 1 / np.sqrt(shape[0] if len(shape) == 2 else config.hidden_dim)
            array = rng.uniform(-bound, bound, shape)
        *parents, leaf = path.split("/")
        subtree = weights
        for parent in parents:
            subtree = subtree.setdefault(parent, {})
        subtree[leaf] = array.astype(config.param_dtype)
    return Params(weights, config)


def perturbed(params: Params, rng: np.random.Generator, amount: float = 0.5) -> Params:
    """Multiplies each weight by its own normal factor about 1, and turns the sign of some."""

    def perturb(leaf):
        return (leaf * (1 + amount * rng.normal(size=leaf.shape))).astype(leaf.dtype)

    return dataclasses.replace(params, weights=jax.tree.map(perturb, params.weights))


def fixture_names() -> list[str]:
    """Returns the stored runs of the original code."""
    return [p.stem for p in sorted(FIXTURES.glob("*.npz")) if "config" in np.load(p).files]


@dataclasses.dataclass(frozen=True)
class Fixture:
    """One stored run of the original code."""

    arrays: dict[str, np.ndarray]
    config: EGNOConfig

    @classmethod
    def load(cls, name: str, dtype: str = "float32") -> Fixture:
        with np.load(FIXTURES / f"{name}.npz") as stored:
            arrays = dict(stored)
        fields = json.loads(str(arrays.pop("config")))
        sizes = {key: fields[key] for key in fields.keys() - {"node_dim", "edge_dim"}}
        return cls(arrays, EGNOConfig(param_dtype=dtype, **sizes))

    def state(self, prefix: str = "state/") -> dict[str, np.ndarray]:
        """Returns the weights by the original's names, or their gradients, `"grad/"`."""
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }

    def params(self) -> Params:
        return egno_jax.from_torch_state_dict(self.state(), self.config)

    def graph(self) -> jraph.GraphsTuple:
        arrays, dtype = self.arrays, self.config.param_dtype
        features = arrays["node_features"].astype(dtype)
        edge_features = arrays["edge_features"].astype(dtype)
        return jraph.GraphsTuple(
            nodes={
                "positions": arrays["positions"].astype(dtype),
                "velocities": arrays["velocities"].astype(dtype),
                "features": features,
            },
            edges={"features": edge_features},
            senders=arrays["senders"],
            receivers=arrays["receivers"],
            n_node=arrays["n_node"],
            n_edge=arrays["n_edge"],
            globals=None,
        )

    def times(self) -> np.ndarray:
        return self.arrays["times"].astype(self.config.param_dtype)


class SignalAfter(training.Callback):
    """A callback that sends this process a signal once a step is reached."""

    def __init__(self, step: int, number: int):
        self.step, self.number = step, number

    def on_chunk(self, record):
        if record["step"] == self.step:
            os.kill(os.getpid(), self.number)
