"""Published models: weights that are installed with the library and load by name.

A model is two files in this folder: `<name>.npz`, its weights as plain arrays, and `<name>.json`,
its config, numbers of features, recipe, version, card and checksum. Nothing is downloaded and
nothing is unpickled.

    params = egno_jax.load("nbody")
    egno_jax.published.card("nbody")["errors"]
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from egno_jax.files import replacing
from egno_jax.params import (
    Params,
    check_params,
    check_weights,
    model_record,
    read_model_record,
)

FORMAT_VERSION = 1
"""Version of the two files of a model."""

MAX_BYTES = 2_000_000
"""The most bytes of a model's weights."""

CARD_FIELDS = ("title", "input", "data", "command", "commit", "date", "errors", "limits")
"""What a card says, for a reader who wants to know whether the model is for them."""

_FOLDER = Path(__file__).parent


def names(folder: Path = _FOLDER) -> list[str]:
    """Returns the names of the published models."""
    return sorted(path.stem for path in folder.glob("*.json"))


def card(name: str, folder: Path = _FOLDER) -> dict[str, Any]:
    """Returns what is known about a model: input, data, errors, limits, the command that made it.

    Raises:
      ValueError: there is no model of this name.
    """
    record = _record(name, folder)
    return {"name": name, "version": record["version"], **record["card"]}


def load(name: str, folder: Path = _FOLDER) -> Params:
    """Returns a published model, bit for bit as it was written.

    Raises:
      ValueError: there is no model of this name, a file is missing or was changed, or the weights
        are not those of the config.
    """
    record, path = _record(name, folder), folder / f"{name}.npz"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: the file is missing; install egno_jax again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != record["sha256"]:
        raise ValueError(
            f"{path}: got SHA-256 {found[:12]}..., expected {record['sha256'][:12]}... by "
            f"{name}.json; a file was changed, or the writing of both was interrupted: install "
            "egno_jax again, or write the model again"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        flat = {key: jnp.asarray(arrays[key]) for key in arrays.files}
    config, recipe, sizes = read_model_record(record)
    weights = traverse_util.unflatten_dict(flat, sep="/")
    params = Params(weights=weights, config=config, recipe=recipe)
    check_weights(params, sizes)
    return params


def write(
    name: str,
    params: Params,
    card: Mapping[str, Any],
    *,
    folder: Path = _FOLDER,
) -> None:
    """Writes a model into a folder of published models; a new version if the name exists.

    Both files are written before one replaces an old one. If the process is killed between the two
    replacements, `load` refuses the pair by its checksum until the model is written again.

    Args:
      name: an identifier in lower case.
      params: the model; its weights are stored as float32.
      card: text and numbers, with the entries `CARD_FIELDS`.
      folder: the folder; by default that of this library.

    Raises:
      ValueError: the name or the parameters are not valid, an entry of the card is missing, or the
        weights are larger than `MAX_BYTES`.
    """
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"name: got {name!r}, expected an identifier in lower case")
    if missing := [field for field in CARD_FIELDS if not card.get(field)]:
        raise ValueError(f"card: got no {missing}, expected the entries {[*CARD_FIELDS]}")
    check_params(params)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float32), params.weights)
    buffer = io.BytesIO()
    np.savez(buffer, **traverse_util.flatten_dict(weights, sep="/"))
    data = buffer.getvalue()
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"params: got {len(data)} bytes of weights, expected at most {MAX_BYTES}; publish a "
            "smaller model"
        )
    version = _record(name, folder)["version"] + 1 if name in names(folder) else 1
    record = {
        "format_version": FORMAT_VERSION,
        "version": version,
        "sha256": hashlib.sha256(data).hexdigest(),
        **model_record(params),
        "card": dict(card),
    }
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with replacing(folder / f"{name}.json") as new_record:
        new_record.write_text(text)
        with replacing(folder / f"{name}.npz") as new_weights:
            new_weights.write_bytes(data)


def _record(name: str, folder: Path) -> dict[str, Any]:
    if name not in names(folder):
        raise ValueError(f"name: got {name!r}, expected one of {names(folder)}")
    record = json.loads((folder / f"{name}.json").read_text())
    if record["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{folder / name}.json: format_version is {record['format_version']!r}, this egno_jax "
            f"reads {FORMAT_VERSION}; load it with the version that wrote it"
        )
    return record
