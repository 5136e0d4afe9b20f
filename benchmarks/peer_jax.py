"""egno_jax as a peer, its variants in low precision, and the plain version."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import egno_jax
from benchmarks import cases, naive, rates, target, trace
from benchmarks.history import History, Reached
from benchmarks.worker import Loaded, num_threads, timed
from egno_jax.datasets import Batch, take
from egno_jax.training import OptimizerConfig, fit, loss_fn, make_optimizer

# The changed fields of each variant's configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "egno_jax": {},
    "egno_jax-bf16": {"dtype": "bfloat16"},
    "egno_jax-tf32": {"matmul_precision": "default"},
    "naive": {},
}
_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")
# Tolerance of the plain version, relative to the largest value.
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
            # The loss and the training loop find `apply` here.
            self._apply = egno_jax.model.apply = Plain()

    def info(self) -> dict[str, Any]:
        """Returns device, versions and threads."""
        device = jax.devices()[0]
        return {
            "platform": device.platform,
            "device": device.device_kind,
            "threads": num_threads(),
            "versions": {name: metadata.version(name) for name in _VERSIONS},
        }

    def load(self, path: Path, workload: str) -> Loaded:
        """Prepares a training step or a forward pass of a problem."""
        problem = cases.load(path)
        config = cases.config_of(problem.case, **self._changes)
        batch = jax.device_put(batch_of(problem))
        params = egno_jax.init(jax.random.key(0), config, problem.graph, problem.times)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        if workload == "step":
            work = TrainingStep(params, batch)
        else:
            work = Inference(self._apply, params, batch)
        return Loaded(functools.partial(self._compile, work), timed(work.repeat), size)

    def _compile(self, work: Inference | TrainingStep) -> None:
        """Compiles a workload; RuntimeError if the plain version should be in it and is not."""
        before = getattr(self._apply, "num_traced", 0)
        work.compile()
        if self._name == "naive" and self._apply.num_traced == before:
            raise RuntimeError(
                "egno_jax.model.apply: got no call by the training step, expected one, so that the "
                "plain version is measured; fix benchmarks.peer_jax.JaxPeer"
            )

    def extra(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Returns additional operations of the worker."""
        return {
            "check": self._check,
            "fit": self._fit,
            "profile": self._profile,
            "matmul": matmul,
            "throughput": throughput,
        }

    def _check(self, path: str) -> dict[str, Any]:
        problem = cases.load(Path(path))
        params = egno_jax.init(
            jax.random.key(0), cases.config_of(problem.case), problem.graph, problem.times
        )
        return {"error_of_naive": check_agreement(params, problem)}

    def _fit(self, path: str, num_steps: int, target_f_mse: float) -> dict[str, Any]:
        """Trains the 5-body model to an error; see `benchmarks.target`."""
        train, valid = target.data()
        # The grid's spacing is the unit of time, as in the experiment.
        changes = {"time_scale": float(train.times[0]), **self._changes}
        config = cases.config_of(cases.CASES["nbody-p5"], **changes)
        first = take(train, np.arange(1))
        params = egno_jax.init(jax.random.key(0), config, first.graph, first.times)
        history = History(target_f_mse)
        with tempfile.TemporaryDirectory() as directory, contextlib.suppress(Reached):
            fit(
                directory,
                params,
                train,
                valid,
                target.training_config(num_steps),
                make_callbacks=lambda _: [history],
            )
        return history.result()

    def _profile(self, path: str) -> dict[str, Any]:
        """Profiles training steps by kind of operation."""
        problem = cases.load(Path(path))
        config = cases.config_of(problem.case, **self._changes)
        params = egno_jax.init(jax.random.key(0), config, problem.graph, problem.times)
        step = TrainingStep(params, jax.device_put(batch_of(problem)))
        step.compile()
        return trace.profile(step.repeat, step.text())

    def device_memory(self, *, reset: bool) -> dict[str, int] | None:
        """Returns the bytes used on an accelerator; its peak cannot be reset."""
        stats = None if jax.default_backend() == "cpu" else jax.devices()[0].memory_stats()
        if not stats:
            return None
        return {"used": stats["bytes_in_use"], "peak": stats["peak_bytes_in_use"]}


class Plain:
    """The plain version, with the number of times that it was traced."""

    num_traced = 0

    def __call__(self, *args: Any) -> egno_jax.Trajectory:
        """Decodes as `benchmarks.naive.apply` does."""
        self.num_traced += 1
        return naive.apply(*args)


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
    """Returns the largest error of the plain version, relative to the largest value.

    Raises:
      ValueError: it is above 1e-5.
    """
    outputs = [
        jax.jit(functools.partial(apply, params))(problem.graph, problem.times)
        for apply in (egno_jax.apply, naive.apply)
    ]
    errors = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)), *outputs)
    error = float(max(jax.tree.leaves(errors)))
    if not error <= _TOLERANCE:
        raise ValueError(
            f"naive.apply: got a difference of {error:.1e} from egno_jax.apply on "
            f"{problem.case.name}, expected at most {_TOLERANCE}"
        )
    return error


class Inference:
    """The compiled forward pass; every call waits for its result."""

    def __init__(
        self,
        apply: Callable[..., egno_jax.Trajectory],
        params: egno_jax.Params,
        batch: Batch,
    ) -> None:
        self._apply = apply
        self._inputs = (params, batch.graph, batch.times)

    def compile(self) -> None:
        """Compiles it."""
        self._forward = jax.jit(self._apply).lower(*self._inputs).compile()

    def repeat(self, times: int) -> None:
        """Runs it a number of times."""
        for _ in range(times):
            jax.block_until_ready(self._forward(*self._inputs))


class TrainingStep:
    """The compiled training step on one batch, each from the weights of the last.

    Loss, gradient, clipping and AdamW update are those of `egno_jax.training.step`, without the
    sampler and the averaged weights, which the peers do not have.
    """

    def __init__(self, params: egno_jax.Params, batch: Batch) -> None:
        self._optimizer = make_optimizer(OptimizerConfig(), _SCHEDULE_STEPS)
        self._state = (jax.tree.map(jnp.copy, params), self._optimizer.init(params))
        self._batch = batch

    def compile(self) -> None:
        """Compiles it."""
        update = jax.jit(self._update, donate_argnums=0)
        self._step = update.lower(self._state, self._batch).compile()

    def repeat(self, times: int) -> None:
        """Takes a number of steps and waits for the last."""
        for _ in range(times):
            self._state, loss = self._step(self._state, self._batch)
        jax.block_until_ready((self._state, loss))

    def text(self) -> str:
        """Returns the compiled program."""
        return self._step.as_text()

    def _update(self, state: tuple[Any, Any], batch: Batch) -> tuple[tuple[Any, Any], jax.Array]:
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = self._optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss


# Rates for the floor


def matmul(shapes: list[list[Any]]) -> dict[str, Any]:
    """Returns the least seconds of matrix products by XLA, and on a CPU by NumPy."""
    makers = {"XLA": _xla_matmul}
    if jax.default_backend() == "cpu":
        makers["NumPy"] = rates.numpy_matmul
    return {
        name: [rates.matmul_seconds(shape, make) for shape in shapes]
        for name, make in makers.items()
    }


def _xla_matmul(
    a: np.ndarray, b: np.ndarray, is_a_transposed: bool, is_b_transposed: bool
) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    contracted = ((0 if is_a_transposed else 1,), (1 if is_b_transposed else 0,))

    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, (contracted, ((), ())), precision="highest")

    factors = jax.device_put((a, b))
    return lambda: multiply(*factors), jax.block_until_ready


def throughput(num_bytes: int) -> dict[str, Any]:
    """Returns bytes copied a second, and evaluations of SiLU and its derivative a second."""

    def rate(function: Callable[[jax.Array], jax.Array], size: int) -> float:
        x = jnp.linspace(-3.0, 3.0, size, dtype=jnp.float32)
        call = functools.partial(jax.jit(function), x)
        return size / rates.best_seconds(call, jax.block_until_ready)

    copied = [8 * rate(jnp.negative, max(num_bytes // 8, 1))]
    if jax.default_backend() == "cpu":
        copied.append(rates.numpy_copy_rate(num_bytes))
    return {
        "copy": max(copied),
        "silu": max(rate(jax.nn.silu, size) for size in rates.SILU_SIZES),
        "derivative": max(rate(_silu_derivative, size) for size in rates.SILU_SIZES),
    }


def _silu_derivative(x: jax.Array) -> jax.Array:
    sigmoid = jax.nn.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))
