"""What a run looks like: pictures, and one HTML page that needs no network."""

from __future__ import annotations

import base64
import dataclasses
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from egno_jax import training, visualize
from experiments import run_directory

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_TEMPLATE = Path(__file__).with_name("report.html")
_PERCENTILES = (10, 50, 90, 99)
_TRAJECTORIES, _ERROR, _CURVES = "trajectories.png", "error_over_time.png", "learning_curves.png"
FILM = "trajectories.gif"
_FRAMES_PER_SECOND = 10


class Showcase(NamedTuple):
    """The systems that pictures show.

    Attributes:
      true: `[S, T, N, 3]`, positions from the given state on.
      predicted: `[S, P, N, 3]`.
      titles: what each system is.
    """

    true: Float[np.ndarray, "S T N 3"]
    predicted: Float[np.ndarray, "S P N 3"]
    titles: Sequence[str]


class Drawing(NamedTuple):
    """How systems are drawn whose nodes are joined by lines: skeletons, molecules.

    Attributes:
      bonds: `[B, 2]`, pairs of nodes.
      target_frames: `[P]`, which of the times of `Showcase.true` the predictions are for.
      up: the axis that points up, "x", "y" or "z".
    """

    bonds: Int[np.ndarray, "B 2"]
    target_frames: Sequence[int]
    up: str = "z"


def showcase(
    paths: Float[np.ndarray, "S T N 3"],
    targets: Float[np.ndarray, "S P N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
) -> Showcase:
    """Chooses systems at percentiles of the error, so that neither good nor bad ones are hidden.

    Args:
      paths: true positions at all known times.
      targets: true positions at the predicted times.
      predicted: predicted positions.

    Returns:
      The systems at the 10th, 50th, 90th and 99th percentile of the error over all times.
    """
    errors = np.mean((predicted - targets) ** 2, axis=(1, 2, 3))
    order = np.argsort(errors)
    chosen = [order[round(percent / 100 * (len(order) - 1))] for percent in _PERCENTILES]
    titles = [
        f"{'median' if percent == 50 else f'{percent}th percentile'}: A-MSE {errors[index]:.2g}"
        for percent, index in zip(_PERCENTILES, chosen, strict=True)
    ]
    return Showcase(paths[chosen], predicted[chosen], titles)


def write(
    experiment: Any,
    directory: Path,
    config: Any,
    results: Any,
    systems: Showcase,
    drawing: Drawing | None = None,
) -> None:
    """Writes `pictures/` and `report.html` of a run.

    Args:
      experiment: the experiment (`runner.Experiment`).
      directory: where the run lives.
      config: its settings.
      results: what `results.json` holds.
      systems: the systems to show.
      drawing: how to draw them if their nodes are joined by lines.
    """
    pictures = directory / run_directory.PICTURES
    pictures.mkdir(exist_ok=True)
    for name, figure in _figures(experiment, directory, results, systems, drawing).items():
        figure.savefig(pictures / name, dpi=150)
    if drawing is not None:
        _write_film(pictures / FILM, experiment, systems, drawing)
    page = string.Template(_TEMPLATE.read_text()).substitute(
        **_words(experiment, config, results),
        comparison=_comparison(experiment, config, results),
        comparison_note=_comparison_note(experiment, config),
        settings=_settings(experiment, config),
        interactive=_interactive(experiment, systems, drawing),
        film="" if drawing is None else _film(pictures / FILM),
        caption=_CAPTION_OF_PATHS if drawing is None else _CAPTION_OF_BONDS,
        picture_trajectories=_embedded(pictures / _TRAJECTORIES),
        picture_error=_embedded(pictures / _ERROR),
        picture_curves=_embedded(pictures / _CURVES),
    )
    partial = directory / f".{run_directory.REPORT}.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(directory / run_directory.REPORT)


_CAPTION_OF_PATHS = "Rings stand at the predicted times."
_CAPTION_OF_BONDS = "They stand at the given state and at the last time, true and predicted."


def _figures(
    experiment: Any,
    directory: Path,
    results: Mapping[str, Any],
    systems: Showcase,
    drawing: Drawing | None,
) -> dict[str, Any]:
    """Returns the figures by the name of their file."""
    records = training.read_json_lines(directory / run_directory.METRICS)

    def curve(kind: str, key: str) -> tuple[list[float], list[float]]:
        chosen = [record for record in records if record["kind"] == kind]
        return [record["step"] for record in chosen], [record[key] for record in chosen]

    curves = {
        "training loss": curve("train", "loss"),
        "validation F-MSE": curve("valid", "f_mse"),
        "validation A-MSE": curve("valid", "a_mse"),
    }
    errors = {
        results["model"]: results["mse_per_time"],
        "x + v t": results["linear_baseline"]["mse_per_time"],
    }
    units = {"time_unit": experiment.time_label, "length_unit": experiment.length_label}
    words = {"titles": systems.titles, "unit": experiment.length_label}
    if drawing is None:
        picture = visualize.plot_trajectories(systems.true, systems.predicted, **words)
    else:
        picture = visualize.plot_skeletons(
            systems.true, systems.predicted, drawing.bonds, up=drawing.up, **words
        )
    return {
        _TRAJECTORIES: picture,
        _ERROR: visualize.plot_error_over_time(results["times"], errors, **units),
        _CURVES: visualize.plot_learning_curves(
            curves, best_step=results["best_step"], ylabel=f"error ({experiment.length_label}²)"
        ),
    }


def _interactive(experiment: Any, systems: Showcase, drawing: Drawing | None) -> str:
    words = {"titles": systems.titles, "unit": experiment.length_label}
    if drawing is None:
        figure = visualize.interactive_trajectories(systems.true, systems.predicted, **words)
    else:
        figure = visualize.interactive_skeletons(
            systems.true, systems.predicted, **drawing._asdict(), **words
        )
    options = {"displaylogo": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=True, config=options, auto_play=False)


def _write_film(path: Path, experiment: Any, systems: Showcase, drawing: Drawing) -> None:
    """Writes a GIF of the median system and of one of the hard ones."""
    shown = Showcase(systems.true[1:3], systems.predicted[1:3], systems.titles[1:3])
    film = visualize.animate_skeletons(
        shown.true,
        shown.predicted,
        **drawing._asdict(),
        titles=shown.titles,
        unit=experiment.length_label,
    )
    film.save(path, writer="pillow", fps=_FRAMES_PER_SECOND, dpi=80)


def _film(path: Path) -> str:
    return (
        f'<figure class="wide"><img alt="Moving systems" src="{_embedded(path, "gif")}">'
        "<figcaption>Two of them moving, slowed down: the truth at every known time, and the "
        "prediction, strong at the predicted times and pale in between.</figcaption></figure>"
    )


def _words(experiment: Any, config: Any, results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the page's plain texts, escaped or made of numbers alone."""
    straight = results["linear_baseline"]["f_mse"]
    steps = f"{results['steps']:,} of {config.training.num_steps:,} steps"
    numbers = (
        (f"{results['f_mse']:.5f}", "F-MSE, last time"),
        (_number(a_mse(results)), "A-MSE, all times"),
        (_relative(results["f_mse"], straight), f"of the F-MSE of x + v t, {straight:.5f}"),
        (f"{results['num_parameters']:,}", "parameters"),
        (_duration(results["train_seconds"]), f"training, {steps}"),
        (f"{results['best_step']:,}", "step of the kept model, best on the validation set"),
    )
    commands = [results["command"], *(origin["command"] for origin in results["resumed"])]
    commit, *changed = (results["git_commit"] or "unknown").split("-")
    commit = f"commit {commit[:12]}{' with changes' if changed else ''}"
    made = (results["date"], results["device"], commit)
    velocity = " and the weighted error of the velocities" if config.model.velocity_weight else ""
    origin = {
        "commit": results["git_commit"] or "unknown",
        "date": results["date"],
        "device": results["device"],
        "seed": results["seed"],
        **results["versions"],
    }
    title = f"{experiment.title}: preset {config.preset}, seed {config.training.seed}"
    description = experiment.descriptions[config.preset]
    return {
        "title": html.escape(title),
        "summary": html.escape(experiment.summary),
        "made": html.escape(" · ".join(made)),
        "numbers": "".join(
            f"<div><b>{n}</b><span>{html.escape(t)}</span></div>" for n, t in numbers
        ),
        "num_test": f"{results['num_test']:,}",
        "curves_caption": f"Training loss (error of the positions over all times{velocity}), and "
        "the errors on the validation set, by which the model was selected.",
        "settings_note": f"Preset {config.preset}: {html.escape(description)}. "
        'What differs from it is <span class="changed">marked</span>.',
        "commands": html.escape("\n".join(commands)),
        "origin": _table((), ((name, str(value)) for name, value in origin.items())),
    }


def _comparison(experiment: Any, config: Any, results: Mapping[str, Any]) -> str:
    """Returns the table of errors; published ones only where the data are the same."""
    straight = results["linear_baseline"]
    name = f"{results['model']}, this run"
    ours, linear = (
        (name, errors["f_mse"], a_mse(errors), source)
        for name, errors, source in (
            (name, results, f"seed {results['seed']}"),
            ("x + v t", straight, "this run"),
        )
    )
    rows = [ours, linear]
    if not _differences(experiment, config):
        rows += [
            (row.method, row.f_mse, row.a_mse, row.source)
            for row in experiment.published
            if not _unmet(row, config)
        ]
    best_first = sorted(rows, key=lambda row: row[1])
    return _table(
        ("", "F-MSE", "A-MSE", "source"),
        (
            (name, _number(f_mse), _number(a_mse), source)
            for name, f_mse, a_mse, source in best_first
        ),
        marked=best_first.index(ours),
    )


def _comparison_note(experiment: Any, config: Any) -> str:
    differences = _differences(experiment, config)
    text = (
        f"Mean squared error per coordinate, in {experiment.length_label}²: F-MSE at the last "
        "time, A-MSE over all times. "
    )
    if differences:
        names = ", ".join(differences)
        text += f"No published figures beside these: the data differ from theirs in {names}."
    else:
        text += (
            "Published figures are those of the sources, on the same training and test samples "
            "unless a source says otherwise."
        )
    return html.escape(text)


def _differences(experiment: Any, config: Any) -> list[str]:
    """Returns the settings that make errors incomparable with published ones."""
    differences = [
        name
        for name in experiment.published_fields
        if getattr(config.data, name) != getattr(experiment.published_data, name)
    ]
    unmet = [_unmet(row, config) for row in experiment.published]
    return differences + min(unmet, key=len, default=[])


def _unmet(row: Any, config: Any) -> list[str]:
    """Returns the conditions of a published result in which a run differs."""
    return [name for name, value in row.conditions.items() if getattr(config.data, name) != value]


def _settings(experiment: Any, config: Any) -> str:
    """Returns a card for each group of settings; those changed from the preset are marked."""
    preset = dict(run_directory.flatten(dataclasses.asdict(experiment.presets[config.preset])))
    groups: dict[str, list[str]] = {}
    for name, value in run_directory.flatten(dataclasses.asdict(config)):
        if name in ("preset", *run_directory.FOLDERS):
            continue
        group, field = name.rsplit(".", 1)
        mark = ' class="number changed"' if value != preset[name] else ' class="number"'
        cell = f"<tr><td>{field}</td><td{mark}>{html.escape(_setting(value))}</td></tr>"
        groups.setdefault(group, []).append(cell)
    return "".join(
        f'<div class="card"><h3>{group}</h3><table>{"".join(rows)}</table></div>'
        for group, rows in groups.items()
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: int | None = None) -> str:
    """Returns an HTML table of texts; in columns that `head` names with MSE they are numbers."""
    kinds = [' class="number"' if "MSE" in name else "" for name in head] or ["", ""]
    lines = []
    if head:
        cells = zip(kinds, head, strict=True)
        lines.append("".join(f"<th{kind}>{html.escape(text)}</th>" for kind, text in cells))
    for row in rows:
        cells = zip(kinds, row, strict=True)
        lines.append("".join(f"<td{kind}>{html.escape(text)}</td>" for kind, text in cells))
    marked = None if marked is None else marked + bool(head)
    body = "".join(
        f'<tr class="ours">{line}</tr>' if index == marked else f"<tr>{line}</tr>"
        for index, line in enumerate(lines)
    )
    return f"<table>{body}</table>"


def a_mse(errors: Mapping[str, Any]) -> float | None:
    """Returns the error over all times of a record; None where only the last was predicted."""
    return errors["a_mse"] if len(errors.get("mse_per_time", "ab")) > 1 else None


def _number(error: float | None) -> str:
    return "–" if error is None else f"{error:.5f}"


def _relative(error: float, other: float) -> str:
    """Returns an error as a share of another, `"3.8 %"`, or as a multiple where it is larger."""
    share = error / other if other > 0 else float("inf")
    return f"{share:.3g} times" if share > 1 else f"{100 * share:.3g} %"


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value)) or "none"
    return str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _embedded(picture: Path, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(picture.read_bytes()).decode()
