"""Publishes the model of a finished run with the library, so that `egno_jax.load(NAME)` finds it.

    python -m experiments.publish runs/nbody-paper-seed0 nbody
    python -m experiments.publish

Both write docs/models.md, the cards of all published models, and the recipes of cards.yaml into
their files; the second does nothing else. A card has the text for NAME in cards.yaml and what the
run recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import yaml

import egno_jax
from egno_jax import published
from egno_jax.durations import format_time
from egno_jax.files import write_text
from egno_jax.params import Params
from egno_jax.recipe import GraphRecipe, from_record
from experiments.run_records import EXPERIMENTS, portable, read_results

_TEXTS = Path(__file__).with_name("cards.yaml")
_PAGE = Path(__file__).parent.parent / "docs" / "models.md"
_REFERENCES = {"x + v t": "linear_baseline", "nothing moves": "still_baseline"}


def card(directory: Path, name: str) -> dict[str, Any]:
    """Returns the card of a finished run.

    Raises:
      ValueError: the run has no results, is not finished, or `cards.yaml` has no such name.
    """
    texts = yaml.safe_load(_TEXTS.read_text())
    if name not in texts:
        raise ValueError(f"name: got {name!r}, expected one of {[*texts]}; add it to {_TEXTS.name}")
    results = read_results(directory)
    if not results["finished"]:
        raise ValueError(f"{directory}: got a run that was stopped; resume it first")
    errors = {
        "unit": EXPERIMENTS[results["experiment"]].error_unit,
        "f_mse": results["f_mse"],
        "a_mse": results["a_mse"],
        "times": results["times"],
        "mse_per_time": results["mse_per_time"],
        "num_test": results["num_test"],
    }
    errors |= {label: results[key]["f_mse"] for label, key in _REFERENCES.items()}
    recorded = {key: results[key] for key in ("date", "device", "seed", "versions")}
    recorded |= {"command": portable(results["command"]), "commit": results["git_commit"]}
    text = {key: value for key, value in texts[name].items() if key != "recipe"}
    return {**text, **recorded, "errors": errors}


def recipe_of(name: str) -> GraphRecipe | None:
    """Returns how the graphs of a model are made, by `cards.yaml`; None if it does not say."""
    record = yaml.safe_load(_TEXTS.read_text()).get(name, {}).get("recipe")
    return record and from_record(record)


def write_recipe(name: str, folder: Path = Path(published.__file__).parent) -> None:
    """Writes the recipe of `cards.yaml`, if it has one, into the file of a published model."""
    path = folder / f"{name}.json"
    record = json.loads(path.read_text())
    if (found := recipe_of(name)) is not None:
        record["recipe"] = dataclasses.asdict(found)
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def section(name: str) -> str:
    """Returns the card of a published model in Markdown."""
    found, params = published.card(name), published.load(name)
    config, errors = params.config, found["errors"]
    size = 4e-6 * sum(leaf.size for leaf in jax.tree.leaves(params.weights))
    lines = [
        f"- **State for `predict`:** {state_text(params.recipe)}. {times_text(params)}",
        f"- **Graph for `apply`:** {found['input']}",
        f"- **Data:** {found['data']}",
        f"- **Errors** on {errors['num_test']} test samples, in {errors['unit']}: F-MSE "
        f"{errors['f_mse']:.5f}, A-MSE {errors['a_mse']:.5f}. F-MSE of x + v t: "
        f"{errors['x + v t']:.5f}; if nothing moves: {errors['nothing moves']:.5f}.",
        f"- **Limits:** {found['limits']}",
        f"- **Made by** `{found['command']}` at commit {found['commit'][:12]}, seed "
        f"{found['seed']}, {found['date']}, {found['device']}.",
    ]
    summary = (
        f"{found['title']}. Version {found['version']}, {size:.1f} MB, {config.num_layers} layers "
        f"`{config.layer}` of {config.hidden_dim} channels."
    )
    return "\n\n".join([f"## {name}", summary, "\n".join(lines)])


def state_text(recipe: GraphRecipe) -> str:
    """Returns what `egno_jax.predict` needs of a state, and in which units."""
    unit = recipe.time_unit
    text = f"`positions` and `velocities` `[N, 3]`, velocities as length per {unit}"
    if recipe.velocity_time != recipe.spacing:
        per = format_time(recipe.velocity_time, unit)
        text += f" (divide those of graphs, which are per {per}, by {recipe.velocity_time:g})"
    if recipe.velocities == "forward_difference":
        apart = format_time(recipe.spacing, unit)
        text += (
            f"; or the positions of two frames `[2, N, 3]`, {apart} apart: the first is time 0, "
            "the second only gives its velocities"
        )
    if {"charge", "charge_product", "orbit"} & {*recipe.node_features, *recipe.edge_features}:
        text += "; and `charges` `[N]`"
    return text


def times_text(params: Params) -> str:
    """Returns which times may be requested."""
    *others, last = params.recipe.times
    last = format_time(last, params.recipe.time_unit)
    if params.config.temporal_grid == "index":
        times = ", ".join(f"{time:g}" for time in others)
        return (
            f"Request the times that it was trained on, as by default: {times} and {last}. At "
            "others it warns, and errors are larger."
        )
    return f"Times go up to {last}."


def page(names: Sequence[str]) -> str:
    """Returns the cards of published models as a page in Markdown."""
    parts = [
        "# Published models",
        "`egno_jax.load(NAME)` returns one of these models. They are installed with the library; "
        "nothing is downloaded. `egno_jax.published.card(NAME)` returns the card as a dictionary.",
        "`egno_jax.predict(NAME, state)` and the command line make the graph of a state, a mapping "
        "of arrays. `egno_jax.apply` takes graphs that you make. Their units may differ: each card "
        "has both.",
        "Errors are mean squared errors of positions on the test set, averaged over samples, nodes "
        "and coordinates: F-MSE at the last time, A-MSE over all times. `python -m "
        "experiments.publish` writes this page and the files.",
    ]
    return "\n\n".join([*parts, *map(section, names)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Publishes a run if there is one, and writes the page."""
    parser = argparse.ArgumentParser(description="Publish the model of a run with the library.")
    parser.add_argument("run", nargs="?", type=Path, help="directory of a finished run")
    parser.add_argument("name", nargs="?", help="name of the model, an entry of cards.yaml")
    options = parser.parse_args(arguments)
    if options.run is not None:
        if options.name is None:
            parser.error("name: expected the name of the model")
        try:
            found = card(options.run, options.name)
            params = egno_jax.load(options.run.absolute())
            made_by = recipe_of(options.name) or params.recipe
            params = dataclasses.replace(params, recipe=made_by)
            published.write(options.name, params, found)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
    for name in published.names():
        write_recipe(name)
    write_text(_PAGE, page(published.names()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
