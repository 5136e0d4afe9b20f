"""Training: a state, a compiled step, a loop that can be interrupted and resumed bit for bit."""

from egno_jax.training.batches import (
    BucketSampler,
    batch_indices,
    steps_per_epoch,
    time_indices,
)
from egno_jax.training.callbacks import Callback, JSONLines, Progress, TensorBoard, read_json_lines
from egno_jax.training.checkpoints import RunCheckpoints, StorageError, check_writable
from egno_jax.training.config import (
    NoiseConfig,
    OptimizerConfig,
    TrainingConfig,
    clip_by_history,
    is_kernel,
    make_optimizer,
    make_schedule,
    upgrade_settings,
)
from egno_jax.training.devices import MeshShape, make_mesh, parse_mesh
from egno_jax.training.liveness import LostProcessError, fail, is_one_of_several
from egno_jax.training.loop import FitResult, NonFiniteLossError, fit
from egno_jax.training.objective import evaluate, loss_fn, mse_loss
from egno_jax.training.processes import (
    agree_on_any,
    agree_on_text,
    is_main_process,
    start_processes,
    wait_for_all,
)
from egno_jax.training.step import (
    StepMetrics,
    TrainState,
    averaged,
    init_state,
    train_chunk,
    train_step,
)
from egno_jax.training.stream import Stream

__all__ = [
    "BucketSampler",
    "Callback",
    "FitResult",
    "JSONLines",
    "LostProcessError",
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
    "agree_on_any",
    "agree_on_text",
    "averaged",
    "batch_indices",
    "check_writable",
    "clip_by_history",
    "evaluate",
    "fail",
    "fit",
    "init_state",
    "is_kernel",
    "is_main_process",
    "is_one_of_several",
    "loss_fn",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "mse_loss",
    "parse_mesh",
    "read_json_lines",
    "start_processes",
    "steps_per_epoch",
    "time_indices",
    "train_chunk",
    "train_step",
    "upgrade_settings",
    "wait_for_all",
]
