"""Training: a state, a compiled step, a loop that can be interrupted and resumed bit for bit."""

from egno_jax.training.callbacks import Callback, JSONLines, Progress, TensorBoard, read_json_lines
from egno_jax.training.checkpoints import RunCheckpoints, StorageError, check_writable
from egno_jax.training.config import TrainingConfig
from egno_jax.training.evaluation import evaluate
from egno_jax.training.loop import FitResult, NonFiniteLossError, fit
from egno_jax.training.mesh import MeshShape, make_mesh, parse_mesh
from egno_jax.training.mixed import BucketSampler
from egno_jax.training.noise import NoiseConfig
from egno_jax.training.optimizer import (
    OptimizerConfig,
    is_kernel,
    make_optimizer,
    make_schedule,
)
from egno_jax.training.processes import is_main_process, start_processes
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
from egno_jax.training.stream import Stream

__all__ = [
    "BucketSampler",
    "Callback",
    "FitResult",
    "JSONLines",
    "MeshShape",
    "NoiseConfig",
    "NonFiniteLossError",
    "OptimizerConfig",
    "Progress",
    "RunCheckpoints",
    "StepMetrics",
    "StorageError",
    "Stream",
    "TensorBoard",
    "TrainState",
    "TrainingConfig",
    "averaged",
    "batch_indices",
    "check_writable",
    "evaluate",
    "fit",
    "init_state",
    "is_kernel",
    "is_main_process",
    "loss_fn",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "parse_mesh",
    "read_json_lines",
    "start_processes",
    "steps_per_epoch",
    "time_indices",
    "train_chunk",
    "train_step",
]
