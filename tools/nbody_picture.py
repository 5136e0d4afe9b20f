"""Draws the picture of docs/nbody.md with a published model: `python tools/nbody_picture.py`.

Three test systems of typical error of the model `nbody`: of those within five percent of the
median, the ones whose particles move farthest compared with the size of the system. The page
explains this selection.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import egno_jax  # noqa: E402
from egno_jax import visualize  # noqa: E402
from egno_jax.files import replacing  # noqa: E402
from experiments import nbody  # noqa: E402
from experiments.decoding import decode  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "nbody.png"


def main() -> None:
    """Draws and writes the picture."""
    splits = nbody.load_splits(nbody.DataConfig(orbits=True))
    predicted, _ = decode(egno_jax.load("nbody"), splits.test)
    errors = np.mean((predicted - splits.test.positions) ** 2, axis=(1, 2, 3))
    rank = np.argsort(np.argsort(errors)) / len(errors)
    typical = np.flatnonzero(abs(rank - 0.5) < 0.05)
    paths = splits.test_paths
    moved = np.linalg.norm(paths[:, -1] - paths[:, 0], axis=-1).mean(axis=-1)
    size = np.ptp(paths, axis=(1, 2)).max(axis=-1)
    chosen = typical[np.argsort(-(moved / size)[typical])[:3]]
    titles = [f"A-MSE {error:.1e}" for error in errors[chosen]]
    figure = visualize.plot_trajectories(paths[chosen], predicted[chosen], titles=titles, columns=3)
    with replacing(PICTURE) as partial:
        figure.savefig(partial, dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    main()
