"""`egno-jax convert-torch`: a checkpoint of the original code."""

from __future__ import annotations

import pathlib
from typing import Annotated

from egno_jax import EGNOConfig, checkpoint, convert
from egno_jax.cli.loading import check_free
from egno_jax.datasets.npz import read_npz
from egno_jax.extras import require

_conf = require("tyro", "cli").conf


def convert_torch(
    weights: _conf.Positional[pathlib.Path],
    out: pathlib.Path,
    config: Annotated[EGNOConfig, _conf.arg(name="model")] = EGNOConfig(),  # noqa: B008
    overwrite: bool = False,
) -> None:
    """Converts weights of the original PyTorch code to a checkpoint.

    Args:
      weights: an .npz of the state_dict's arrays: numpy.savez(path, **{k: v.numpy() for k, v in
        model.state_dict().items()}).
      out: the folder of the new checkpoint.
      config: the sizes of the model.
      overwrite: whether to replace the folder.
    """
    check_free(out, overwrite)
    model = convert.from_torch_state_dict(read_npz(weights), config)
    checkpoint.save(out, model, overwrite=overwrite)
    print(f"{out}: converted; it has no recipe, so build its graphs in your own code")
