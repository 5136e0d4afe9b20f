"""A picture of the error of every model, one band for each task of an experiment."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from egno_jax.files import replacing
from experiments.experiment import Experiment
from experiments.run_records import Row, rivals, selected

# A model looks the same in every picture; the order is that from top to bottom.
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
_MARKS = {"*": "measured on another split", "†": "trained with other settings"}
_LOG_FROM = 5.0  # ratio of the largest error to the smallest from which the scale is logarithmic
_LANE, _GAP = 0.14, 0.2  # inches

# Model, whether published, errors, mark.
Point = tuple[str, bool, Sequence[float], str]


def style(model: str) -> tuple[str, str]:
    """Returns colour and marker of a model, always the same; also for models of your own."""
    number = zlib.crc32(model.encode())
    other = (("#000000", "#666633", "#663333", "#336666")[number % 4], "o^sDv"[number // 4 % 5])
    return _STYLES.get(model, other)


def points(rows: Sequence[Row]) -> Iterator[Point]:
    """Yields model, whether published, errors and mark of all that is drawn of a task."""
    ours = selected(rows)
    if ours is not None:
        yield ours.model, False, ours.errors("f_mse"), ""
        for row, differences in rivals(rows, ours):
            yield row.model, False, row.errors("f_mse"), "†" if differences else ""
    for other in rows[0].experiment.published_for(rows[0].task):
        model = other.method.split(",")[0]  # a method that was run again is the same method
        yield model, True, [other.f_mse], "*" if other.other_split else ""


def draw(experiment: Experiment, tasks: Sequence[tuple[str, list[Row]]], path: Path) -> bool:
    """Draws the F-MSE of every model, a band for each task; published errors are hollow.

    Returns:
      Whether the picture exists: without matplotlib it is not drawn again.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return path.exists()
    figure = Figure(layout="constrained")
    axes, top, ticks, drawn = figure.subplots(), 0.0, [], []
    for index, (_, rows) in enumerate(tasks):
        band = sorted(points(rows), key=lambda point: (_rank(point[0]), *point[:2]))
        bottom = _draw_band(axes, band, top)
        ticks.append((top + bottom) / 2)
        if index % 2 == 0:
            axes.axhspan(top, bottom, color="#f4f4f4", linewidth=0)
        drawn, top = drawn + band, bottom
    figure.set_size_inches(9, top + 1.6)
    axes.set_ylim(top, 0)
    axes.set_yticks(ticks, [task for task, _ in tasks])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"F-MSE in {experiment.error_unit}, lower is better")
    axes.set_title(experiment.title, loc="left", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    _scale(axes, [error for _, _, errors, _ in drawn for error in errors])
    words = {"ncols": 4, "fontsize": 8, "frameon": False, "loc": "outside lower center"}
    figure.legend(handles=_legend(drawn), **words)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, metadata={"Software": None})
    return True


def _rank(model: str) -> int:
    return [*_STYLES, model].index(model)


def _draw_band(axes: Any, band: Sequence[Point], y: float) -> float:
    """Draws a task from the height y on and returns where it ends."""
    y, lane = y + (_GAP - _LANE) / 2, None
    for model, published, errors, mark in band:
        y, lane = y + _LANE * (lane != (model, published)), (model, published)
        color, marker = style(model)
        look = {"color": color, "marker": marker, "markersize": 6, "linestyle": "none"}
        mean = sum(errors) / len(errors)
        axes.plot(mean, y, markerfacecolor="none" if published else color, **look)
        if len(errors) > 1:
            axes.plot(sorted(errors), [y] * len(errors), color=color, marker="|", markersize=9)
        offset = {"xytext": (5, 0), "textcoords": "offset points", "fontsize": 9}
        axes.annotate(mark, (mean, y), va="center", color=color, **offset)
    return y + (_GAP + _LANE) / 2


def _legend(drawn: Sequence[Point]) -> list[Any]:
    """Returns what explains the picture, and nothing that is not in it."""
    from matplotlib.lines import Line2D

    entries = [(m, *style(m), "full") for m in sorted({m for m, *_ in drawn}, key=_rank)]
    if any(len(errors) > 1 for _, _, errors, _ in drawn):
        entries.append(("a single seed", "black", "|", "full"))
    if any(published for _, published, _, _ in drawn):
        entries.append(("published", "black", "o", "none"))
    for mark in sorted({mark for *_, mark in drawn} - {""}):
        entries.append((_MARKS[mark], "black", f"${mark}$", "full"))
    return [
        Line2D([], [], label=label, color=color, marker=marker, fillstyle=fill, linestyle="none")
        for label, color, marker, fill in entries
    ]


def _scale(axes: Any, errors: Sequence[float]) -> None:
    """Sets the scale of the errors: logarithmic where they differ much."""
    if max(errors) < _LOG_FROM * min(errors):
        axes.set_xlim(0, 1.08 * max(errors))
        return
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.set_xlim(min(errors) / 1.2, max(errors) * 1.25)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
