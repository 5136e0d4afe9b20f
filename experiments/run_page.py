"""The HTML page of a run, which needs no network; its template is `run_page.html`."""

from __future__ import annotations

import base64
import dataclasses
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from egno_jax import training
from egno_jax.files import write_text
from experiments import run_directory, run_pictures
from experiments.experiment import Drawing, Experiment
from experiments.settings import FOLDERS, flatten

_TEMPLATE = Path(__file__).with_name("run_page.html")


def write(
    experiment: Experiment,
    directory: Path,
    config: Any,
    results: Mapping[str, Any],
    systems: run_pictures.Showcase,
    drawing: Drawing | None = None,
) -> None:
    """Writes `pictures/` and `report.html` of a run; `results` is what `results.json` holds."""
    pictures = directory / run_directory.PICTURES
    pictures.mkdir(exist_ok=True)
    records = training.read_json_lines(directory / run_directory.METRICS)
    interactive = run_pictures.draw(experiment, pictures, records, results, systems, drawing)
    film = ""
    if drawing is not None:
        picture = _embedded(pictures / run_pictures.FILM, "gif")
        film = f'<img alt="Moving systems" src="{picture}">'
    page = string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        **_words(experiment, config, results),
        comparison=_comparison(experiment, config, results),
        settings=_settings(experiment, config),
        interactive=interactive,
        film=film,
        drawn_as="paths" if drawing is None else "bonds",
        picture_trajectories=_embedded(pictures / run_pictures.TRAJECTORIES),
        picture_error=_embedded(pictures / run_pictures.ERROR),
        picture_curves=_embedded(pictures / run_pictures.CURVES),
    )
    write_text(directory / run_directory.REPORT, page)


def _words(experiment: Experiment, config: Any, results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the plain texts of the page, escaped."""
    straight = results["linear_baseline"]["f_mse"]
    commit, *changes = (results["git_commit"] or "unknown").split("-")
    commands = [results["command"], *(origin["command"] for origin in results["resumed"])]
    words = {
        "title": f"{experiment.title}: preset {config.preset}, seed {config.training.seed}",
        "summary": experiment.summary,
        "made": f"{results['date']} · {results['device']} · commit {commit[:12]}"
        f"{' with changes' if changes else ''}",
        "f_mse": f"{results['f_mse']:.5f}",
        "a_mse": _number(a_mse(results)),
        "relative": _relative(results["f_mse"], straight),
        "straight": f"{straight:.5f}",
        "num_parameters": f"{results['num_parameters']:,}",
        "duration": _duration(results["train_seconds"]),
        "steps": f"{results['steps']:,} of {config.training.num_steps:,}",
        "best_step": f"{results['best_step']:,}",
        "num_test": f"{results['num_test']:,}",
        "unit": experiment.error_unit,
        "preset": f"{config.preset}: {_base(experiment, config)[1]}",
        "commands": "\n".join(commands),
    }
    origin = {name: results[name] or "unknown" for name in ("git_commit", "date", "device")}
    origin |= {"seed": results["seed"], **results["versions"]}
    table = _table((), ((name, str(value)) for name, value in origin.items()))
    return {name: html.escape(text) for name, text in words.items()} | {"origin": table}


def _base(experiment: Experiment, config: Any) -> tuple[Any, str]:
    """Returns the config that a run started from, else the defaults, and its description."""
    try:
        return experiment.config(config.preset)
    except ValueError:
        return experiment.default, "settings from a file, compared here with the defaults."


def _comparison(experiment: Experiment, config: Any, results: Mapping[str, Any]) -> str:
    """Returns the table of errors, with the published ones of the same task."""
    straight, task = results["linear_baseline"], experiment.task(config.data)
    ours = (f"{results['model']}, this run", results["f_mse"], a_mse(results))
    rows = [(*ours, f"seed {results['seed']}")]
    rows.append(("x + v t", straight["f_mse"], a_mse(straight), "this run"))
    rows += [published[:4] for published in experiment.published_for(task)]
    if len(rows) == 2:
        rows.append(("no published errors for this task", None, None, task or "published data"))
    rows.sort(key=lambda row: float("inf") if row[1] is None else row[1])
    head = ("", "F-MSE", "A-MSE", "source")
    lines = [(name, _number(f_mse), _number(over_all), why) for name, f_mse, over_all, why in rows]
    return _table(head, lines, marked=ours[0])


def _settings(experiment: Experiment, config: Any) -> str:
    """Returns a card for each group of settings; those changed from the preset are marked."""
    base = dict(flatten(dataclasses.asdict(_base(experiment, config)[0])))
    cards: dict[str, str] = {}
    for name, value in flatten(dataclasses.asdict(config)):
        if name not in ("preset", *FOLDERS):
            group, field = name.rsplit(".", 1)
            kind = "number" if name in base and value == base[name] else "number changed"
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            text = f"{value:g}" if isinstance(value, float) else html.escape(text or "none")
            cell = f'<tr><td>{field}</td><td class="{kind}">{text}</td></tr>'
            cards[group] = cards.get(group, "") + cell
    card = '<div class="card"><h3>{}</h3><table>{}</table></div>'
    return "".join(card.format(group, rows) for group, rows in cards.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: str = "") -> str:
    """Returns an HTML table; columns whose head names an MSE hold numbers."""
    kinds = [' class="number"' if "MSE" in name else "" for name in head] or ["", ""]

    def line(cells: Sequence[str], tag: str) -> str:
        texts = zip(kinds, map(html.escape, cells), strict=True)
        inner = "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in texts)
        return f'<tr class="ours">{inner}</tr>' if cells[0] == marked else f"<tr>{inner}</tr>"

    body = [line(head, "th")] if head else []
    return f"<table>{''.join([*body, *(line(row, 'td') for row in rows)])}</table>"


def a_mse(errors: Mapping[str, Any]) -> float | None:
    """Returns the A-MSE of a record; None if only the last time was predicted."""
    return errors["a_mse"] if len(errors.get("mse_per_time", "ab")) > 1 else None


def _number(error: float | None) -> str:
    return "–" if error is None else f"{error:.5f}"


def _relative(error: float, other: float) -> str:
    """Returns an error as a share of another, `"3.8 %"`, or as a multiple where it is larger."""
    share = error / other if other > 0 else float("inf")
    return f"{share:.3g} times" if share > 1 else f"{100 * share:.3g} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _embedded(picture: Path, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(picture.read_bytes()).decode()
