"""Whether the processes of a run are alike.

They compare texts in the store of JAX's coordination service. That needs no program that is the
same everywhere, and so works where collective operations would wait for ever.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # JAX has no public way to the store

from egno_jax.checkpoint import library_versions
from egno_jax.extras import versions_of

_PATIENCE = 24 * 3600  # seconds; processes may load their data at different speeds
_NAMED = 5
_LARGEST_DIGEST = 2**26  # bytes of an array that are read
_numbers = itertools.count()


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
