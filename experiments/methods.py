"""The baselines as presets of the experiments: a preset's data and training, another model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from egno_jax import EGNOConfig
from egno_jax.baselines import METHODS, BaselineConfig

# A baseline, which has no temporal convolutions, keeps the default.
_OF_CONVOLUTIONS = ("vector_init",)


def preset_names(names: Iterable[str], *, compared: Iterable[str]) -> tuple[str, ...]:
    """Returns the presets of an experiment: EGNO's, then those of the baselines.

    Args:
      names: the presets of EGNO.
      compared: those that baselines are compared in.
    """
    return (*names, *(f"{name}-{method}" for name in compared for method in METHODS))


def with_baselines(
    presets: Mapping[str, Any], *, compared: Iterable[str], num_times: int
) -> dict[str, Any]:
    """Returns presets with those of every baseline: same data, same training, same sizes.

    EGNN-S predicts a time a layer and gets as many layers as there are times, if EGNO has fewer.
    A mean field is kept by EGNO without convolutions alone.

    Args:
      presets: settings of EGNO by name.
      compared: which of them baselines are compared in.
      num_times: P in those.
    """
    made = dict(presets)
    for name in compared:
        for method in METHODS:
            sizes = {
                field.name: getattr(presets[name].model, field.name)
                for field in dataclasses.fields(EGNOConfig)
                if field.name not in _OF_CONVOLUTIONS
            }
            # EGNN is compared as it was published; EGNO without convolutions is ours otherwise.
            if method != "egno-no-conv":
                sizes |= {"mean_field": False, "mean_field_channels": 0}
            if method == "egnn-s":
                sizes["num_layers"] = max(sizes["num_layers"], num_times)
            changed = f"{name}-{method}"
            model = BaselineConfig(method=method, **sizes)
            made[changed] = dataclasses.replace(presets[name], preset=changed, model=model)
    return made


def with_baseline_descriptions(
    descriptions: Mapping[str, str], *, compared: Iterable[str]
) -> dict[str, str]:
    """Returns a line about each preset, also about those of `with_baselines`."""
    baselines = {
        f"{name}-{method}": f"the baseline {title} in place of EGNO, otherwise {name}"
        for name in compared
        for method, title in METHODS.items()
    }
    return {**descriptions, **baselines}
