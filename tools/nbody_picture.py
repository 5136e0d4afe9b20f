"""Draws the picture of docs/nbody.md from a run: `python tools/nbody_picture.py runs/<run>`.

Three test systems of typical error: of those within five percent of the median, the ones whose
particles move farthest compared with the size of the system. The page explains this selection.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import egno_jax  # noqa: E402
from egno_jax import visualize  # noqa: E402
from experiments import nbody, run_directory  # noqa: E402
from experiments.decoding import decode  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "nbody.png"


def main(directory: Path) -> None:
    """Draws and writes the picture."""
    config = run_directory.read_config(directory, nbody.NBodyConfig)
    splits = nbody.load_splits(config.data)
    params = egno_jax.load(directory / run_directory.BEST)
    predicted, _ = decode(params, splits.test, batch_size=config.training.eval_batch_size)
    errors = np.mean((predicted - splits.test.positions) ** 2, axis=(1, 2, 3))
    rank = np.argsort(np.argsort(errors)) / len(errors)
    typical = np.flatnonzero(abs(rank - 0.5) < 0.05)
    paths = splits.test_paths
    moved = np.linalg.norm(paths[:, -1] - paths[:, 0], axis=-1).mean(axis=-1)
    size = np.ptp(paths, axis=(1, 2)).max(axis=-1)
    chosen = typical[np.argsort(-(moved / size)[typical])[:3]]
    titles = [f"A-MSE {error:.1e}" for error in errors[chosen]]
    figure = visualize.plot_trajectories(paths[chosen], predicted[chosen], titles=titles, columns=3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
