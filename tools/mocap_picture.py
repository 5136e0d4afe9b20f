"""Draws the film of docs/mocap.md: `EGNO_DATA_DIR=data python tools/mocap_picture.py`.

The published model `running` on its test set: the systems at the 50th and 90th percentile of the
A-MSE, as in the film of a run.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import egno_jax  # noqa: E402
from experiments import mocap, run_pictures  # noqa: E402
from experiments.decoding import decode  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "mocap.gif"


def main() -> None:
    """Draws and writes the film."""
    splits = mocap.load_splits(mocap.DataConfig(joint_kinds=True))
    predicted, _ = decode(egno_jax.load("running"), splits.test)
    systems = run_pictures.showcase(splits.test_paths, splits.test.positions, predicted)
    unit = mocap.EXPERIMENT.length_label
    run_pictures.write_film(PICTURE, systems, splits.drawing, unit)


if __name__ == "__main__":
    main()
