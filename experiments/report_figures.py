"""The pictures of the report: the error of every model, a line a task."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.report_rows import (
    EXPERIMENTS,
    Rival,
    Row,
    by_task,
    error_unit,
    published_for,
    rivals,
    selected,
    titles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A model looks the same in every picture; the order is that of the lanes of a task.
_STYLES = {
    "EGNO": ("#0072b2", "o"),
    "EGNO without temporal convolutions": ("#56b4e9", "s"),
    "EGNN-S": ("#009e73", "v"),
    "EGNN-R": ("#cc79a7", "P"),
    "EGNN": ("#d55e00", "D"),
    "EGNN with mean field": ("#661100", "d"),
    "MPNN": ("#e69f00", "^"),
    "Linear": ("#777777", "X"),
    "EGNO on EGHN": ("#332288", "p"),
    "SEGNN": ("#882255", "<"),
    "PONITA": ("#117733", ">"),
    "CGENN": ("#999933", "h"),
    "ATOM": ("#aa4499", "d"),
}
_OTHER_COLORS, _OTHER_MARKERS = ("#000000", "#666633", "#663333", "#336666"), "o^sDv"

_SEED, _PUBLISHED, _OTHER_SPLIT = "a single seed", "published", "published, on another split"
_OTHER_SETTINGS = "†  trained with other settings than EGNO"
_LOG_FROM = 5.0  # ratio of the largest error to the smallest from which the scale is logarithmic
_LANE, _GAP = 0.14, 0.2  # inches
_ASTERISK = (6, 2, 0)  # of six rays


class _Point(NamedTuple):
    model: str
    error: float
    seeds: Sequence[float] = ()
    is_ours: bool = True
    other_settings: bool = False
    other_split: bool = False


def draw(name: str, rows: Sequence[Row], path: Path) -> bool:
    """Draws the F-MSE of every model of an experiment, a line a task, published ones hollow.

    Of the settings of a model those are drawn that the summary compares.

    Args:
      name: the experiment.
      rows: our runs.
      path: the picture.

    Returns:
      Whether it was drawn or is there: not without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return path.exists()
    tasks = by_task(rows)
    named = titles(EXPERIMENTS[name], tasks)
    points = {named[task]: _points(of_task) for task, of_task in tasks.items()}
    lanes = {title: _lanes(of_task) for title, of_task in points.items()}  # points cover no others
    height = sum(_GAP + _LANE * len(own) for own in lanes.values())
    figure = Figure(figsize=(9, height + 1.6), layout="constrained")
    axes = figure.subplots()
    top, ticks = 0.0, []
    for index, (title, of_task) in enumerate(points.items()):
        bottom = top + _GAP + _LANE * len(lanes[title])
        if index % 2 == 0:
            axes.axhspan(top, bottom, color="#f4f4f4", linewidth=0)
        for point in of_task:
            lane = lanes[title].index((point.model, not point.is_ours))
            _draw_point(axes, point, top + _GAP / 2 + _LANE * (lane + 0.5))
        ticks.append((top + bottom) / 2)
        top = bottom
    axes.set_ylim(top, 0)
    axes.set_yticks(ticks, [_without(title, EXPERIMENTS[name].title) for title in points])
    axes.tick_params(axis="y", length=0)
    errors = [e for of_task in points.values() for p in of_task for e in (p.error, *p.seeds)]
    _scale(axes, min(errors), max(errors))
    axes.set_xlabel(f"F-MSE in {error_unit(EXPERIMENTS[name])}, lower is better")
    axes.set_title(EXPERIMENTS[name].title, loc="left", fontsize=11)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.legend(
        **_legend([point for of_task in points.values() for point in of_task]),
        ncols=4,
        fontsize=8,
        frameon=False,
        loc="outside lower center",
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True


def _points(rows: Sequence[Row]) -> list[_Point]:
    """Returns what is drawn of a task."""
    ours = selected(rows)
    if ours is None:
        models = dict.fromkeys(row.model for row in rows)
        chosen = [Rival(row, []) for model in models if (row := selected(rows, model))]
    else:
        chosen = [Rival(ours, []), *rivals(rows, ours)]
    points = [
        _Point(
            row.model,
            row.mean("f_mse"),
            [record["f_mse"] for record in row.records],
            other_settings=bool(differences),
        )
        for row, differences in chosen
    ]
    return points + [
        _Point(
            other.method.split(",")[0],  # a method that was run again is the same method
            other.f_mse,
            is_ours=False,
            other_split=other.other_split,
        )
        for other in published_for(rows[0])
    ]


def _lanes(points: Sequence[_Point]) -> list[tuple[str, bool]]:
    """Returns model, and whether published, of each lane of a task from the top to the bottom."""
    lanes = {(point.model, not point.is_ours) for point in points}
    return sorted(lanes, key=lambda lane: (_order(lane[0]), lane))


def _order(model: str) -> int:
    order = [*_STYLES]
    return order.index(model) if model in order else len(order)


def _style(model: str) -> tuple[str, str]:
    """Returns color and marker of a model: the same one everywhere, also of models of one's own."""
    number = zlib.crc32(model.encode())
    colors, markers = _OTHER_COLORS, _OTHER_MARKERS
    other = (colors[number % len(colors)], markers[number // len(colors) % len(markers)])
    return _STYLES.get(model, other)


def _draw_point(axes: Axes, point: _Point, y: float) -> None:
    color, marker = _style(point.model)
    face = color if point.is_ours else "none"
    style = {"s": 34, "facecolor": face, "edgecolor": color, "linewidth": 1.3, "zorder": 3}
    axes.scatter(point.error, y, marker=marker, **style)
    if len(point.seeds) > 1:
        axes.plot([min(point.seeds), max(point.seeds)], [y, y], color=color, linewidth=1, zorder=2)
        axes.scatter(point.seeds, [y] * len(point.seeds), s=90, color=color, marker="|", zorder=2)
    if point.other_split:
        axes.scatter(point.error, y, s=16, color=color, marker=_ASTERISK, linewidth=0.8, zorder=3)
    if point.other_settings:
        offset = {"xytext": (5, 0), "textcoords": "offset points"}
        axes.annotate("†", (point.error, y), va="center", fontsize=9, **offset)


def _scale(axes: Axes, least: float, most: float) -> None:
    """Chooses the scale of the errors: logarithmic where they differ much."""
    from matplotlib import ticker

    if most < _LOG_FROM * least:
        axes.set_xlim(0, 1.08 * most)
        axes.grid(axis="x", alpha=0.25)
        return
    axes.set_xscale("log")
    axes.set_xlim(least / 1.2, most * 1.25)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="x", alpha=0.25)


def _legend(points: Sequence[_Point]) -> dict[str, list[Any]]:
    """Returns what explains the picture, and nothing that is not in it."""
    from matplotlib.lines import Line2D

    def entry(color: str, marker: Any, **style: object) -> Line2D:
        return Line2D([], [], linestyle="none", color=color, marker=marker, **style)

    labels = [*dict.fromkeys(model for model, _ in _lanes(points))]
    entries: list[Any] = [entry(*_style(model), markersize=6) for model in labels]
    if any(len(point.seeds) > 1 for point in points):
        entries.append(entry("black", "|", markersize=6))
        labels.append(_SEED)
    ring = entry("black", "o", markersize=6, markerfacecolor="none")
    if not all(point.is_ours or point.other_split for point in points):
        entries.append(ring)
        labels.append(_PUBLISHED)
    if any(point.other_split for point in points):
        entries.append((ring, entry("black", _ASTERISK, markersize=4)))
        labels.append(_OTHER_SPLIT)
    if any(point.other_settings for point in points):
        entries.append(entry("none", "none"))
        labels.append(_OTHER_SETTINGS)
    return {"handles": entries, "labels": labels}


def _without(title: str, prefix: str) -> str:
    """Returns the title of a task without that of its experiment, which stands above."""
    return title.removeprefix(f"{prefix}, ") if title != prefix else ""
