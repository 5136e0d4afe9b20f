"""The processes of a run: their start, a comparison of them, and agreement between them.

They are compared by texts in the store of JAX's coordination service. That needs no program that is
the same everywhere, and so works where collective operations would wait forever. Processes that are
alike agree by collective operations.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # JAX has no public way to the store
from jax.experimental import multihost_utils

from egno_jax.checkpoint import library_versions
from egno_jax.extras import versions_of
from egno_jax.training.liveness import watch_others

# Processes may load their data at different speeds, and process 0 may evaluate and draw alone, for
# so many seconds while the others wait.
_PATIENCE = 24 * 3600
_LONGEST_TEXT = 4096
# Environment variables of launchers that start several processes.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_HOST_LISTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_NAMED = 5
_LARGEST_DIGEST = 2**26  # bytes of an array that are read
_numbers = itertools.count()


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    from_environment: bool | None = None,
) -> None:
    """Connects this process with the others of a run; call it before JAX is used.

    Without arguments it connects where environment variables announce several processes: Slurm's
    `srun`, Open MPI's `mpirun`, a TPU slice of several hosts on GKE. Otherwise it does nothing.
    Elsewhere JAX may find the others too, on Cloud TPU through its metadata server: pass
    `from_environment=True`.

    Args:
      coordinator: `host:port` of process 0.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      from_environment: whether JAX finds the three by itself; None: as described above.

    Raises:
      ValueError: some of the three are given and not all, they are not valid, or the processes
        differ in their number or in versions; names the differences.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if is_cluster() if from_environment is None else from_environment:
            jax.distributed.initialize(shutdown_timeout_seconds=_PATIENCE)
            _greet()
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
    _greet()


def _greet() -> None:
    """Compares the processes as far as they must be alike for any communication."""
    state = distributed.global_state
    if state.num_processes > 1:
        watch_others()
    check_all_alike({"num_processes": state.num_processes, **versions()})


def is_cluster() -> bool:
    """Returns whether the environment announces several processes."""
    counts, hosts = ([os.environ.get(x, "") for x in names] for names in (_COUNTS, _HOST_LISTS))
    is_counted = any(count.isdecimal() and int(count) > 1 for count in counts)
    return is_counted or any("," in names for names in hosts)


def check_all_alike(fields: Mapping[str, Any]) -> None:
    """Compares the fields of all processes with those of process 0; all must call.

    Raises:
      ValueError: some differ; names fields, values and processes, in every process.
    """
    store = distributed.global_state
    if store.client is None or store.num_processes == 1:
        return
    name = f"egno_jax/alike/{next(_numbers)}"
    own = {key: str(value) for key, value in fields.items()}
    store.client.key_value_set(f"{name}/{store.process_id}", json.dumps(own))
    store.client.wait_at_barrier(name, _PATIENCE * 1000)
    found = {
        int(key.rpartition("/")[2]): json.loads(value)
        for key, value in store.client.key_value_dir_get(name)
    }
    expected = found[0]
    different = [
        f"{key}: got {fields.get(key)!r} in process {index}, expected {expected.get(key)!r} as in "
        "process 0"
        for index, fields in sorted(found.items())
        for key in dict.fromkeys([*expected, *fields])
        if fields.get(key) != expected.get(key)
    ]
    if different:
        more = f"; and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        raise ValueError(
            f"{'; '.join(different[:_NAMED])}{more}; start all processes with the same command, "
            "data and versions"
        )


def versions() -> dict[str, str]:
    """Returns the versions that must be the same in all processes."""
    libraries = {**library_versions(), **versions_of("jaxlib", "numpy")}
    return {"python": platform.python_version(), **libraries}


def digests(data: Any) -> dict[str, str]:
    """Returns dtype, shape and a hash of every array of a tree, under its path.

    Of arrays over 64 MB, such as memory maps, evenly spaced rows are hashed.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        array = np.asanyarray(leaf)
        step = max(1, -(-array.nbytes // _LARGEST_DIGEST)) if array.ndim else 1
        part = np.ascontiguousarray(array[::step] if array.ndim else array)
        digest = hashlib.sha256(part.tobytes()).hexdigest()[:12]
        found[jax.tree_util.keystr(path)] = f"{array.dtype} {[*array.shape]} {digest}"
    return found


def digest(found: Mapping[str, str]) -> str:
    """Returns one hash of all arrays of a tree, whose `digests` these are."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def is_main_process() -> bool:
    """Returns whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def agree_on_any(flag: bool) -> bool:
    """Returns whether the flag is set in any process; all must call."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(name: str) -> None:
    """Returns when all processes have reached the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree_on_text(text: str) -> str:
    """Returns the text of process 0, of at most 4096 bytes; all must call."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode().ljust(_LONGEST_TEXT), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(encoded)).decode().rstrip()
