"""Training: a state, a compiled step, a loop that can be interrupted and resumed bit for bit."""

from egno_jax.training.callbacks import Callback, JSONLines, Progress, TensorBoard, read_json_lines
from egno_jax.training.checkpoints import RunCheckpoints
from egno_jax.training.config import TrainingConfig
from egno_jax.training.evaluation import evaluate
from egno_jax.training.loop import FitResult, NonFiniteLossError, fit
from egno_jax.training.optimizer import (
    OptimizerConfig,
    is_kernel,
    make_optimizer,
    make_schedule,
)
from egno_jax.training.sampler import batch_indices, steps_per_epoch, time_indices
from egno_jax.training.step import (
    StepMetrics,
    TrainState,
    averaged,
    init_state,
    loss_fn,
    train_chunk,
    train_step,
)

__all__ = [
    "Callback",
    "FitResult",
    "JSONLines",
    "NonFiniteLossError",
    "OptimizerConfig",
    "Progress",
    "RunCheckpoints",
    "StepMetrics",
    "TensorBoard",
    "TrainState",
    "TrainingConfig",
    "averaged",
    "batch_indices",
    "evaluate",
    "fit",
    "init_state",
    "is_kernel",
    "loss_fn",
    "make_optimizer",
    "make_schedule",
    "read_json_lines",
    "steps_per_epoch",
    "time_indices",
    "train_chunk",
    "train_step",
]
