"""Settings of experiments as YAML files, plain dicts and dataclasses.

A file in `configs/<experiment>/` holds a description and the settings that differ from the defaults
of the experiment's dataclass:

    description: "EGNN-S in place of EGNO, otherwise `paper`."
    model:
      method: egnn-s
      num_layers: 5
    training:
      num_steps: 12000

The model's class is found from its fields, as in checkpoints; `class:` names any other registered
one, such as `my_package.layer:MyConfig`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from egno_jax import EGNOConfig, model
from egno_jax.deprecation import warn
from egno_jax.files import write_text
from egno_jax.training import upgrade_settings

CONFIGS = Path(__file__).parent / "configs"

# Where the data are on this machine, which says nothing about what they are.
FOLDERS = ("data.cache_dir", "data.data_dir")
# Settings that do not change a number, or, as the seed, do not belong to a config.
BOOKKEEPING = tuple(
    f"training.{name}"
    for name in (
        *("seed", "steps_per_chunk", "eval_batch_size"),
        *("checkpoint_every", "keep_checkpoints", "max_skipped_steps"),
    )
)
# What damaged bytes make PyYAML raise, and the code that looks into what it returns.
_DAMAGED = (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError, RecursionError)


def plain(config: Any) -> dict[str, Any]:
    """Returns settings as JSON has them: lists for tuples, strings for paths."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested dicts under dotted names, `("model.hidden_dim", 64)`."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def compared(config: Any, *, free: typing.Collection[str] = ()) -> dict[str, Any]:
    """Returns the settings that make two runs different, under dotted names.

    Bookkeeping, folders and the `free` ones are left out. Without noise, the columns that noise
    updates are too.
    """
    left_out = {"preset", *FOLDERS, *BOOKKEEPING, *free}
    settings = dict(flatten(upgrade_settings(plain(config))))
    noise = "training.noise."
    if not (settings[f"{noise}positions"] or settings[f"{noise}velocities"]):
        left_out |= {key for key in settings if key.startswith(noise) and key.endswith("_column")}
    return {key: value for key, value in settings.items() if key not in left_out}


def changed(config: Any, tree: Mapping[str, Any], model_class: str | None = None) -> Any:
    """Returns a dataclass with the fields that a nested dict gives.

    Args:
      config: the dataclass, of which nested ones are fields.
      tree: new values; strings become paths and lists become tuples where the fields say so.
      model_class: the recorded class of the model; None finds it from the fields.

    Raises:
      ValueError: there is no such field, or a value is not valid; names the field.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{type(config).__name__}: got {tree!r}, expected its fields and values")
    if isinstance(config, EGNOConfig):
        tree = dict(tree)
        recorded = tree.pop("class", model_class)
        # The class that the fields belong to.
        if (kind := model.config_class([*tree], recorded)) is None:
            raise ValueError(
                f"model class: got {recorded!r}, which is not registered; import it first"
            )
        config = config if type(config) is kind else kind()
    hints = typing.get_type_hints(type(config))
    fields = {}
    for name, value in tree.items():
        if name not in hints:
            raise ValueError(
                f"{type(config).__name__}.{name}: got {value!r}, expected one of the fields "
                f"{[*hints]}"
            )
        old = getattr(config, name)
        if dataclasses.is_dataclass(old):
            fields[name] = changed(old, value, model_class)
        else:
            fields[name] = _of_type(value, hints[name])
    return dataclasses.replace(config, **fields)


def _of_type(value: Any, hint: Any) -> Any:
    """Returns a value as a field has it: YAML has no tuples and reads `1e-3`, no point, as text."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        # YAML reads `1e-3`, without a point, as text. The dataclass refuses other text, and
        # integers too large for a float.
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    return value


def differences(config: Any, default: Any) -> dict[str, Any]:
    """Returns the settings that differ from the defaults, as nested dicts for a file."""
    values, found = plain(config), {}
    if isinstance(config, EGNOConfig) and type(config) is not EGNOConfig:
        default = type(config)()
        known = EGNOConfig.__dataclass_fields__
        found = {name: value for name, value in values.items() if name not in known}
    for field in dataclasses.fields(config):
        value, other = getattr(config, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            if changes := differences(value, other):
                found[field.name] = changes
        elif value != other:
            found[field.name] = values[field.name]
    is_model = isinstance(config, EGNOConfig)
    if is_model and model.config_class([*found]) is not type(config):
        found = {"class": model.class_name(type(config)), **found}
    return found


def files(experiment: str, folder: Path) -> list[Path]:
    """Returns the config files of an experiment in a folder."""
    return sorted((folder / experiment).glob("*.yaml"), key=lambda path: path.stem)


def names(experiment: str) -> list[str]:
    """Returns the names of the configs of an experiment."""
    return [path.stem for path in files(experiment, CONFIGS)]


def read(path: Path, default: Any) -> tuple[Any, str]:
    """Returns the settings and the description in a config file; `preset` is the file's name.

    Raises:
      ValueError: the file is missing or damaged, or a setting is not valid; names the file.
    """
    try:
        tree = yaml.safe_load(path.read_text())
        description = str(tree.pop("description"))
        return changed(default, {**tree, "preset": path.stem}), description
    except OSError as error:
        raise ValueError(f"{path}: got no file, expected a YAML file of settings") from error
    except _DAMAGED as error:
        raise ValueError(
            f"{path}: got a damaged file ({error!r}), expected `description`, `model`, `training` "
            "and `data` in YAML"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write(path: Path, config: Any, default: Any, description: str) -> None:
    """Writes a config file: the description and what differs from the defaults."""
    tree = differences(config, default)
    tree.pop("preset", None)
    for name in (*FOLDERS, "training.seed"):
        group, field = name.split(".")
        tree.get(group, {}).pop(field, None)
    tree = {"description": description} | {key: value for key, value in tree.items() if value}
    write_text(path, yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=98, allow_unicode=True))


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True)
)


def current_name(name: str, renamed: Mapping[str, str], *, quiet: bool = False) -> str:
    """Returns today's name of a config, with a DeprecationWarning for an old one, unless `quiet`.

    A name may also begin with an old one and a hyphen; `renamed` holds new names by old ones.
    """
    for old, new in renamed.items():
        if name == old or name.startswith(f"{old}-"):
            found = new + name.removeprefix(old)
            if not quiet:
                warn(f"preset {name!r}", f"{found!r}")
            return found
    return name


def fingerprint(path: Path) -> str:
    """Returns a hash of the settings in a config file; its description and layout do not count."""
    try:
        tree = yaml.safe_load(path.read_text())
        tree.pop("description", None)
        text = json.dumps(tree, sort_keys=True)
    except _DAMAGED as error:
        raise ValueError(f"{path}: got a damaged file ({error!r}), expected settings") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]
