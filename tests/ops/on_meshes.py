"""Whether kernels are used on meshes of devices that are not there."""

import importlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp

from egno_jax import ops, training

SIZES = (4, 30, 300, 32, 32, 2)


def uses(module):
    """Returns `True` or `False` for each mesh: whether message sums have the kernels of a test.

    The module of the test has `drawn`, which returns arguments of these sizes, and `has_kernels`,
    which says whether a loss and its gradient have them.
    """
    settings = {
        "EGNO_JAX_KERNELS": "pallas",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.ops import on_meshes; on_meshes.main({module!r})"],
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def main(name):
    """Prints the answer for each mesh; for a process with four devices."""
    module = importlib.import_module(name)
    for shape in ((2, 1), (1, 2), (2, 2)):
        with jax.set_mesh(training.make_mesh(training.MeshShape(*shape))):
            floats, rest = module.drawn("message_sums", SIZES)

            def loss(floats, rest=rest, num_shares=shape[0]):
                def of_share(positions):
                    found = ops.message_sums(**floats | {"positions": positions}, **rest)
                    return sum(jnp.sum(jnp.square(x)) for x in found)

                positions = jnp.stack([floats["positions"]] * num_shares)
                return jnp.sum(training.devices.map_shares(of_share, positions))

            print(module.has_kernels(loss, floats))
