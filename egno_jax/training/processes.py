"""Several processes that compute one run: how they find each other, and what they agree on."""

from __future__ import annotations

import contextlib
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

# Process 0 may go on alone, to evaluate and draw, for so many seconds while the others wait.
_PATIENCE = 24 * 3600
_LONGEST_TEXT = 4096
# Environments that start several processes, by what they say the number in.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_HOST_LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    from_environment: bool | None = None,
) -> None:
    """Joins this process to those that compute with it; must come before JAX is used.

    Without arguments it does so where environment variables say that there are several: Slurm's
    `srun`, Open MPI's `mpirun`, a TPU slice of several hosts on GKE. Otherwise the process is
    alone, and nothing is done. Elsewhere JAX may find the others too, on Cloud TPU by asking its
    metadata server: `from_environment=True` lets it.

    Args:
      coordinator: `host:port` of process 0.
      num_processes: how many processes there are.
      process_id: which of them this is, from 0.
      from_environment: whether JAX is to find the three by itself; None: as said above.

    Raises:
      ValueError: some of the three are given and not all, or they make no sense.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if is_cluster() if from_environment is None else from_environment:
            jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
        return
    if missing:
        raise ValueError(
            f"{missing[0]}: got none, expected coordinator, num_processes and process_id together"
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id: got {process_id} of {num_processes} processes, expected from 0 to one "
            "less than their number"
        )
    if ":" not in coordinator:
        raise ValueError(f"coordinator: got {coordinator!r}, expected host:port")
    jax.distributed.initialize(
        coordinator, num_processes, process_id, shutdown_timeout_seconds=_PATIENCE
    )


def is_cluster() -> bool:
    """Says whether the environment has started this process as one of several."""
    counts = (os.environ.get(name, "") for name in _COUNTS)
    hosts = (os.environ.get(name, "") for name in _HOST_LISTS)
    is_counted = any(count.isdecimal() and int(count) > 1 for count in counts)
    return is_counted or any("," in names for names in hosts)


def is_main_process() -> bool:
    """Says whether this process is the one that writes what only one may write."""
    return jax.process_index() == 0


def is_one_of_several() -> bool:
    """Says whether this process runs together with others; starts nothing to find out."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def fail(message: str, code: int) -> int:
    """Prints the message to stderr and returns the exit code; one of several processes it ends.

    The others may be waiting for it within a step, and JAX lets a process that ends in peace wait
    for them: none would ever end. Without it they do, within JAX's heartbeat.
    """
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    if is_one_of_several():
        os._exit(code)
    return code


def agree_on_any(flag: bool) -> bool:
    """Says whether the flag is set in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(name: str) -> None:
    """Returns when all processes have come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree_on_text(text: str) -> str:
    """Returns the text of process 0, of at most 4096 bytes; all must ask."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode().ljust(_LONGEST_TEXT), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(encoded)).decode().rstrip()
