"""Checkpoints that version 0.1.0 wrote are loaded and give the trajectories that it gave.

Each directory of `fixtures/checkpoints` was written by `egno_jax.save` of 0.1.0; the archive of the
same name holds a graph and the positions and velocities that `apply` returned then.
"""

from pathlib import Path

import jraph
import numpy as np
import pytest

import egno_jax
from tests import helpers

FOLDER = Path(__file__).parent / "fixtures" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "sizes"), [("egno", (3, 2)), ("egno-plain", (1, 0)), ("egnn-s", (2, 1))]
)
def test_a_checkpoint_of_0_1_gives_the_same_trajectory(name, sizes, tmp_path):
    params = egno_jax.load(FOLDER / name)
    assert egno_jax.model.feature_sizes(params) == sizes
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    edges = arrays.get("edge/features")
    graph = jraph.GraphsTuple(
        nodes={key: arrays[f"node/{key}"] for key in ("positions", "velocities", "features")},
        edges=None if edges is None else {"features": edges},
        globals=None,
        **{key: arrays[key] for key in ("senders", "receivers", "n_node", "n_edge")},
    )
    egno_jax.save(tmp_path / "again", params)
    for loaded in (params, egno_jax.load(tmp_path / "again")):
        found = helpers.apply(loaded, graph, arrays["times"])
        helpers.assert_close(found.positions, arrays["positions"], 1e-6)
        helpers.assert_close(found.velocities, arrays["velocities"], 1e-6)
