"""`egno-jax models` and `export`: published models, and models as programs."""

from __future__ import annotations

import json
import pathlib

import egno_jax
from egno_jax.cli.loading import check_free_file, model_of
from egno_jax.extras import require

_conf = require("tyro", "cli").conf


def models(name: _conf.Positional[str] = "") -> None:
    """Lists the published models, which load by name, or prints the card of one.

    Args:
      name: a model; empty: all, one in each line.
    """
    if name:
        print(json.dumps(egno_jax.published.card(name), indent=2, ensure_ascii=False))
        return
    cards = [egno_jax.published.card(known) for known in egno_jax.published.names()]
    for card in cards:
        print(f"{card['name']:10} {card['title']} (F-MSE {card['errors']['f_mse']:.3g})")


def export(
    model: _conf.Positional[str],
    out: pathlib.Path,
    platforms: tuple[str, ...] = egno_jax.exporting.PLATFORMS,
    overwrite: bool = False,
    imports: tuple[str, ...] = (),
) -> None:
    """Writes a model as a program that runs without egno_jax (`jax.export.deserialize`).

    Args:
      model: the folder of a run or of a model, or the name of a published one.
      out: the file.
      platforms: where the program runs.
      overwrite: whether to replace the file.
      imports: modules to import before options are read, such as one that registers your own layer.
    """
    check_free_file(out, overwrite)
    egno_jax.export(model_of(model), out, platforms=platforms, overwrite=overwrite)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, for {', '.join(platforms)}")
