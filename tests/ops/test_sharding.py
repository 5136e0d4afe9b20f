"""Old names of the sharding constraints and of the context; tests/training has those on a mesh."""

import numpy as np
import pytest

from egno_jax import ops


@pytest.mark.parametrize(
    "old, new", [("share_whole", ops.replicate), ("split_times", ops.shard_times)]
)
def test_old_names_work_and_warn(old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated.*{new.__name__}"):
        assert getattr(ops, old) is new


def test_the_old_field_of_a_context_works_and_warns():
    context = ops.Context(3, np.arange(4) / 3)
    with pytest.warns(DeprecationWarning, match=r"Context\.turns is deprecated.*phases"):
        assert context.turns is context.phases


def test_constraints_without_a_mesh_do_nothing():
    x = np.ones((3, 2))
    assert ops.replicate(x) is ops.shard_times(x) is x
    assert ops.num_missing_times(3) == 0 and not ops.is_partitioned()
