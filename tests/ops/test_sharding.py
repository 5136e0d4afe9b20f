"""Old names of the sharding constraints and of the context; tests/training has those on a mesh."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import egno_jax
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


EXPLICIT = """
import jax, jax.numpy as jnp, numpy as np, egno_jax
from egno_jax import graph as graph_lib
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
rng = np.random.default_rng(0)
arrays = [rng.normal(size=(4, width)).astype(np.float32) for width in (3, 3, 1)]
graph = graph_lib.build(*arrays, graph_lib.fully_connected_edges(4))
times = np.arange(1.0, 4.0, dtype=np.float32)
config = egno_jax.EGNOConfig(num_layers=1, hidden_dim=16)
params = egno_jax.init(jax.random.key(0), config, graph, times)
def loss(params, graph):
    return jnp.sum(egno_jax.apply(params, graph, times).positions ** 2)
expected = jax.jit(egno_jax.apply)(params, graph, times).positions
gradient = jax.jit(jax.grad(loss))(params, graph)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
nodes = jax.device_put(graph.nodes, NamedSharding(mesh, P("data")))
sharded = graph._replace(nodes=nodes)
found = jax.jit(egno_jax.apply)(params, sharded, times).positions
assert found.sharding.spec[1] == "data", found.sharding
np.testing.assert_allclose(found, expected, atol=1e-5)
with jax.set_mesh(mesh):
    on_mesh = jax.jit(jax.grad(loss))(params, sharded)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), on_mesh, gradient)
"""


@pytest.mark.slow
def test_nodes_may_be_sharded_over_explicit_axes(tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["PYTHONPATH"] = str(pathlib.Path(egno_jax.__file__).parents[1])
    subprocess.run([sys.executable, "-c", EXPLICIT], env=environment, check=True, cwd=tmp_path)
