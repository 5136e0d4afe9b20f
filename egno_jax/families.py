"""Model families: how `init`, `apply`, `save`, `load` and training handle a class of configs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from egno_jax import deprecation
from egno_jax.config import EGNOConfig


class ModelFamily(NamedTuple):
    """The models of one class of configs, and their properties.

    Attributes:
      module: returns the Linen module of a config.
      num_times: returns the number of times that a config's model predicts if it is fixed, such as
        1; None: any number.
      has_independent_times: returns whether the requested times can be computed in parallel, apart
        from temporal convolutions, so that a mesh may shard them.
    """

    module: Callable[[Any], nn.Module]
    num_times: Callable[[Any], int | None] = lambda config: None
    has_independent_times: Callable[[Any], bool] = lambda config: True


_FAMILIES: dict[type, ModelFamily] = {}


def register(config_class: type[EGNOConfig], family: ModelFamily) -> None:
    """Registers the family of a class of configs; everything that accepts a config then does."""
    _FAMILIES[config_class] = family


def family_of(config: EGNOConfig) -> ModelFamily:
    """Returns the family of a config; a ValueError if its class is not registered."""
    if type(config) not in _FAMILIES:
        known = ", ".join(each.__name__ for each in _FAMILIES)
        raise ValueError(
            f"config: got {type(config).__name__}, expected one of {known}; register a custom "
            "class with egno_jax.model.register"
        )
    return _FAMILIES[type(config)]


def config_class(names: Collection[str], recorded: str | None = None) -> type[EGNOConfig] | None:
    """Returns the registered class with the recorded `class_name`; None if it is not registered.

    Without a recorded name, or with one of a script (`__main__:...`, whose classes have another
    name when imported), it is the smallest class that has all the fields `names`.
    """
    named = next((each for each in _FAMILIES if class_name(each) == recorded), None)
    if named is not None or not (recorded is None or str(recorded).startswith("__main__:")):
        return named
    fields = {each: {field.name for field in dataclasses.fields(each)} for each in _FAMILIES}
    fitting = [each for each in fields if fields[each].issuperset(names)]
    return min(fitting, key=lambda each: len(fields[each]), default=EGNOConfig)


def config_of(fields: Mapping[str, Any], recorded: str | None) -> EGNOConfig:
    """Returns the config of a record.

    Raises:
      ValueError: its class is not registered, or a field is unknown or not valid.
    """
    found, wrong = config_class(fields, recorded), None
    if found is None:
        wrong = f"config_class is {recorded!r}, which is not registered"
        module = str(recorded).partition(":")[0]
    elif unknown := fields.keys() - {field.name for field in dataclasses.fields(found)}:
        wrong = f"unknown field(s) {sorted(unknown)} in the config of class {class_name(found)}"
        module = "the module that registers it"
    if wrong:
        raise ValueError(
            f"{wrong}; if it is a custom model, import {module} first, which calls "
            "egno_jax.model.register; otherwise a newer version of egno_jax wrote it"
        )
    return found.from_json(json.dumps(fields))


def class_name(config_class: type) -> str:
    """Returns the name under which a class is recorded, such as `egno_jax.config:EGNOConfig`."""
    return f"{config_class.__module__}:{config_class.__qualname__}"


def Kind(module: Any, weight_shapes: Any = None, feature_sizes: Any = None) -> ModelFamily:
    """Deprecated: `ModelFamily(module)`; weight shapes are found by tracing."""
    deprecation.warn("egno_jax.model.Kind", "egno_jax.model.ModelFamily")
    return ModelFamily(module)
