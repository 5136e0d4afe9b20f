"""egno_jax as a peer, its narrow variants, and the plain version of itself."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import egno_jax
from benchmarks import cases, naive
from benchmarks.worker import Loaded, timed
from egno_jax.datasets import Batch
from egno_jax.training import OptimizerConfig
from egno_jax.training.optimizer import make_optimizer
from egno_jax.training.step import loss_fn

# What each variant changes in the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "egno_jax": {},
    "egno_jax-bf16": {"dtype": "bfloat16"},
    "egno_jax-tf32": {"matmul_precision": "default"},
    "naive": {},
}
_VERSIONS = ("egno_jax", "jax", "jaxlib", "flax", "optax", "numpy")
# How far the plain version may be from the library, relative to the largest value.
_TOLERANCE = 1e-5
_SCHEDULE_STEPS = 10_000


def make(name: str) -> JaxPeer:
    """Returns the peer of this name."""
    return JaxPeer(name)


class JaxPeer:
    """A variant of egno_jax; see `benchmarks.worker.Peer`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changes = VARIANTS[name]
        self._apply = egno_jax.apply
        if name == "naive":
            self._apply = naive.apply
            # The loss and the training loop look `apply` up here.
            egno_jax.model.apply = naive.apply

    def info(self) -> dict[str, Any]:
        """Returns device, versions and threads."""
        device = jax.devices()[0]
        return {
            "platform": device.platform,
            "device": device.device_kind,
            "threads": len(os.sched_getaffinity(0)),
            "versions": {name: metadata.version(name) for name in _VERSIONS},
        }

    def load(self, path: Path, workload: str) -> Loaded:
        """Makes a training step or a forward pass of a problem."""
        problem = cases.load(path)
        config = config_of(problem.case, **self._changes)
        batch = jax.device_put(batch_of(problem))
        params = egno_jax.init(jax.random.key(0), config, problem.graph, problem.times)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        if workload == "step":
            compile_it, repeat = training_step(params, batch)
        else:
            compile_it, repeat = inference(self._apply, params, batch)
        return Loaded(compile_it, timed(repeat), size)

    def extra(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Returns further operations of the worker."""
        return {"check": self._check}

    def _check(self, path: str) -> dict[str, Any]:
        problem = cases.load(Path(path))
        params = egno_jax.init(
            jax.random.key(0), config_of(problem.case), problem.graph, problem.times
        )
        return {"error_of_naive": check_agreement(params, problem)}

    def device_memory(self, *, reset: bool) -> dict[str, int] | None:
        """Returns the bytes used on an accelerator; its peak cannot be reset."""
        stats = None if jax.default_backend() == "cpu" else jax.devices()[0].memory_stats()
        if not stats:
            return None
        return {"used": stats["bytes_in_use"], "peak": stats["peak_bytes_in_use"]}


def config_of(case: cases.Case, **changes: Any) -> egno_jax.EGNOConfig:
    """Returns the model of a case."""
    sizes = {
        "num_layers": case.num_layers,
        "hidden_dim": case.width,
        "num_modes": case.num_modes,
        "time_embed_dim": case.time_embed_dim,
    }
    return egno_jax.EGNOConfig(**{**sizes, **changes})


def batch_of(problem: cases.Problem) -> Batch:
    """Returns the batch that the library trains on."""
    return Batch(
        graph=problem.graph,
        times=problem.times,
        positions=problem.positions,
        velocities=np.zeros_like(problem.positions),
        node_mask=np.ones(problem.positions.shape[1], bool),
    )


def check_agreement(params: egno_jax.Params, problem: cases.Problem) -> float:
    """Checks that the plain version computes what the library does, and returns how far it is.

    Raises:
      ValueError: the largest difference, relative to the largest value, is above 1e-5.
    """
    outputs = [
        jax.jit(functools.partial(apply, params))(problem.graph, problem.times)
        for apply in (egno_jax.apply, naive.apply)
    ]
    errors = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)), *outputs)
    error = float(max(jax.tree.leaves(errors)))
    if not error <= _TOLERANCE:
        raise ValueError(
            f"naive.apply differs from egno_jax.apply by {error:.1e} on {problem.case.name}, "
            f"expected at most {_TOLERANCE}"
        )
    return error


def inference(
    apply: Callable[..., egno_jax.Trajectory], params: egno_jax.Params, batch: Batch
) -> tuple[Callable[[], None], Callable[[int], None]]:
    """Returns what compiles the forward pass, and what repeats it; every call waits."""
    inputs = (params, batch.graph, batch.times)
    forward = None

    def compile_it() -> None:
        nonlocal forward
        forward = jax.jit(apply).lower(*inputs).compile()

    def repeat(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(forward(*inputs))

    return compile_it, repeat


def training_step(
    params: egno_jax.Params, batch: Batch
) -> tuple[Callable[[], None], Callable[[int], None]]:
    """Returns what compiles a training step, and what repeats it.

    Loss, gradient, clipping and AdamW update as `egno_jax.training.step` does them, without the
    sampler and the average of the weights, which the peers do not have. Each step starts from the
    weights of the last.
    """
    optimizer = make_optimizer(OptimizerConfig(), _SCHEDULE_STEPS)
    state = (jax.tree.map(jnp.copy, params), optimizer.init(params))
    step = None

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: tuple[Any, Any], batch: Batch) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def compile_it() -> None:
        nonlocal step
        step = update.lower(state, batch).compile()

    def repeat(times: int) -> None:
        nonlocal state
        for _ in range(times):
            state, loss = step(state, batch)
        jax.block_until_ready((state, loss))

    return compile_it, repeat
