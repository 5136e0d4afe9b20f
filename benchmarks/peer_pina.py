"""PINA's `EquivariantGraphNeuralOperator` as a peer, on PyTorch; needs torch and pina-mathlab.

    pip install "egno_jax[bench]"

`NOTES` lists the differences of the two models; the results print them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pina.model import EquivariantGraphNeuralOperator
from torch_geometric.data import Data

from benchmarks import rates
from benchmarks.history import History, Reached
from benchmarks.worker import Loaded, num_threads, timed

_VERSIONS = ("torch", "pina-mathlab", "torch-geometric", "numpy")

NOTES = (
    "PINA's messages have 3 channels (its `pos_dim`), ours have C: its coordinate MLP reads 3 "
    "channels where ours reads C, and its feature MLP C + 3 where ours reads 2 C",
    "PINA's MLPs have three linear layers (its `n_layers=2`, the default) and ours two: with that "
    "both do the same number of C x C products an edge when the first layer is not split; PINA "
    "evaluates 4 C SiLU an edge, we 3 C",
    "PINA's first layer has C node features; the F of the graph are padded with zeros",
    "PINA centres on the mean of the whole batch, has no LeakyReLU in its temporal convolution, "
    "updates velocities, and limits no step",
    "PINA's step clips the gradient's norm and updates by `torch.optim.AdamW(fused=True)`",
)


def make(name: str) -> PinaPeer:
    """Returns the peer."""
    return PinaPeer()


class PinaPeer:
    """PINA's model on the first accelerator, or the CPU; see `benchmarks.worker.Peer`."""

    def __init__(self) -> None:
        torch.set_num_threads(num_threads())
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def info(self) -> dict[str, Any]:
        """Returns device, versions and threads."""
        is_cuda = self._device.type == "cuda"
        return {
            "platform": "gpu" if is_cuda else "cpu",
            "device": torch.cuda.get_device_name() if is_cuda else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {name: metadata.version(name) for name in _VERSIONS},
        }

    def load(self, path: Path, workload: str) -> Loaded:
        """Prepares a training step or a forward pass of a problem."""
        with np.load(path) as file:
            arrays = dict(file)
        torch.manual_seed(0)
        sizes = {key[5:]: value.tolist() for key, value in arrays.items() if key[:5] == "case_"}
        model = model_of(sizes).to(self._device)
        graph = graph_of(arrays, sizes["width"]).to(self._device)
        targets = torch.from_numpy(arrays["targets"]).to(self._device)
        if workload == "step":
            repeat = self._training_step(model, graph, targets)
        else:
            repeat = self._inference(model, graph)
        size = sum(parameter.numel() for parameter in model.parameters())
        return Loaded(None, timed(repeat), size, NOTES)

    def device_memory(self, *, reset: bool) -> dict[str, int] | None:
        """Returns the bytes used on an accelerator."""
        if self._device.type == "cpu":
            return None
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return {
            "used": torch.cuda.memory_allocated(),
            "peak": torch.cuda.max_memory_allocated(),
        }

    def extra(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Returns additional operations of the worker."""
        return {"matmul": self._matmul, "throughput": self._throughput, "fit": self._fit}

    def _fit(self, path: str, num_steps: int, target_f_mse: float) -> dict[str, Any]:
        """Trains the 5-body model to an error; see `benchmarks.target`."""
        with np.load(path) as file:
            task = {key: torch.from_numpy(np.asarray(value)) for key, value in file.items()}
        torch.manual_seed(0)
        history = History(target_f_mse)
        with contextlib.suppress(Reached):
            train({key: value.to(self._device) for key, value in task.items()}, history)
        return history.result()

    def _matmul(self, shapes: list[list[Any]]) -> dict[str, Any]:
        """Returns the least seconds of matrix products by PyTorch."""

        def make(
            a: np.ndarray, b: np.ndarray, is_a_transposed: bool, is_b_transposed: bool
        ) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
            first, second = (torch.from_numpy(x).to(self._device) for x in (a, b))
            first, second = (
                x.T if is_transposed else x
                for x, is_transposed in ((first, is_a_transposed), (second, is_b_transposed))
            )
            return lambda: torch.matmul(first, second), lambda _: self._wait()

        return {"PyTorch": [rates.matmul_seconds(shape, make) for shape in shapes]}

    def _throughput(self, num_bytes: int) -> dict[str, Any]:
        """Returns bytes copied a second, and evaluations of SiLU and its derivative a second."""

        def rate(function: Callable[[torch.Tensor], Any], size: int) -> float:
            x = torch.linspace(-3.0, 3.0, size, device=self._device)
            return size / rates.best_seconds(lambda: function(x), lambda _: self._wait())

        def derivative(x: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten.silu_backward(x, x)

        return {
            "copy": 8 * rate(torch.clone, max(num_bytes // 8, 1)),
            "silu": max(rate(torch.nn.functional.silu, size) for size in rates.SILU_SIZES),
            "derivative": max(rate(derivative, size) for size in rates.SILU_SIZES),
        }

    def _inference(self, model: torch.nn.Module, graph: Data) -> Callable[[int], None]:
        """Returns the forward pass; every call waits for its result."""
        model.eval()

        def repeat(times: int) -> None:
            with torch.no_grad():
                for _ in range(times):
                    model(graph)
                    self._wait()

        return repeat

    def _training_step(
        self, model: torch.nn.Module, graph: Data, targets: torch.Tensor
    ) -> Callable[[int], None]:
        """Returns loss, gradient, clipping and AdamW update."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

        def repeat(times: int) -> None:
            for _ in range(times):
                update(model, optimizer, graph, targets)
            self._wait()

        return repeat

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def update(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    graph: Data,
    targets: torch.Tensor,
) -> None:
    """Takes one training step."""
    optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.mse_loss(model(graph).pos, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def train(task: dict[str, torch.Tensor], history: History) -> None:
    """Trains as `egno_jax.training.fit` does: same batches, learning rates, decay and clipping.

    Args:
      task: the arrays that `benchmarks.target.save_task` wrote.
      history: receives the errors, and ends the run.
    """
    width = 64
    sizes = {"num_layers": 4, "width": width, "num_modes": 2, "time_embed_dim": 32}
    sizes |= {"num_times": task["train_targets"].shape[1], "num_edge_features": 2}
    model = model_of(sizes).to(task["indices"].device)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    decay = float(task["weight_decay"])
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    betas = tuple(task["betas"].tolist())
    optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
    every = torch.arange(len(task["valid_targets"]), device=task["indices"].device)
    valid = batch_of(task, "valid", every, width)
    seconds = 0.0
    for step, rate in enumerate(task["learning_rates"].tolist()):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate
        update(model, optimizer, *batch_of(task, "train", task["indices"][step], width))
        if (step + 1) % int(task["eval_every"]) == 0:
            f_mse = last_error(model, *valid)
            seconds += time.perf_counter() - started
            record = {"step": step + 1, "seconds": seconds, "f_mse": f_mse}
            history.on_evaluation(record)
        else:
            seconds += time.perf_counter() - started


def last_error(model: torch.nn.Module, graph: Data, targets: torch.Tensor) -> float:
    """Returns the F-MSE."""
    with torch.no_grad():
        return float(torch.nn.functional.mse_loss(model(graph).pos[-1], targets[-1]))


def batch_of(
    task: dict[str, torch.Tensor], split: str, indices: torch.Tensor, width: int
) -> tuple[Data, torch.Tensor]:
    """Returns the samples of a split at `indices` as one graph, and their targets `[P, N, 3]`."""
    taken = {
        key.removeprefix(f"{split}_"): value[indices]
        for key, value in task.items()
        if key.startswith(f"{split}_")
    }
    num_nodes = taken["positions"].shape[1]
    offsets = num_nodes * torch.arange(len(indices), device=indices.device)[:, None]
    edges = torch.stack([(taken[k] + offsets).flatten() for k in ("senders", "receivers")])
    features = taken["features"].flatten(0, 1)
    graph = Data(
        x=torch.nn.functional.pad(features, (0, width - features.shape[1])),
        pos=taken["positions"].flatten(0, 1),
        vel=taken["velocities"].flatten(0, 1),
        edge_index=edges,
        edge_attr=taken["edge_features"].flatten(0, 1),
    )
    return graph, taken["targets"].movedim(1, 0).flatten(1, 2)


def model_of(sizes: dict[str, Any]) -> torch.nn.Module:
    """Returns PINA's model at the sizes of a case, the fields of `benchmarks.cases.Case`."""
    width = sizes["width"]
    return EquivariantGraphNeuralOperator(
        n_egno_layers=sizes["num_layers"],
        node_feature_dim=width,
        edge_feature_dim=sizes["num_edge_features"],
        pos_dim=3,
        modes=sizes["num_modes"],
        time_steps=sizes["num_times"],
        hidden_dim=width,
        time_emb_dim=sizes["time_embed_dim"],
    )


def graph_of(arrays: dict[str, np.ndarray], width: int) -> Data:
    """Returns the batch in PINA's form: one graph of all nodes, features padded to the width."""
    features = arrays["features"]
    padding = [(0, 0), (0, width - features.shape[1])]
    edges = np.stack([arrays["senders"], arrays["receivers"]]).astype(np.int64)
    return Data(
        x=torch.from_numpy(np.pad(features, padding)),
        pos=torch.from_numpy(arrays["positions"]),
        vel=torch.from_numpy(arrays["velocities"]),
        edge_index=torch.from_numpy(edges),
        edge_attr=torch.from_numpy(arrays["edge_features"]),
    )
