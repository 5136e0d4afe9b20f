"""Pictures of trajectories and errors, as figures to save or show; needs the extra `experiments`.

Functions return a `matplotlib.figure.Figure` or a `plotly.graph_objects.Figure`, touch no global
state and show nothing themselves:

    figure = visualize.plot_trajectories(true, predicted)
    figure.savefig("trajectories.png")

S systems, T known times, P predicted times, N nodes. Colours are those of Okabe and Ito, which
colour-blind people tell apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from egno_jax.extras import require

if TYPE_CHECKING:
    import plotly.graph_objects
    from jaxtyping import Float
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH_COLOUR = "#0072B2"
PREDICTION_COLOUR = "#D55E00"
INK = "#222222"
GRID = "#D9D9D9"

_LABELS = ("given state", "true", "predicted")
_COLOURS = (PREDICTION_COLOUR, TRUTH_COLOUR, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = tuple(
    {"color": colour, "marker": marker} for colour, marker in zip(_COLOURS, "os^Dvp", strict=True)
)


def plot_trajectories(
    true: Float[np.ndarray, "S T N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
    *,
    titles: Sequence[str] = (),
    unit: str = "",
    columns: int = 2,
) -> Figure:
    """Draws true and predicted paths in 3D, one system a panel, on axes of one scale.

    Args:
      true: `[S, T, N, 3]`, true positions, the given state first; T may be more than P + 1.
      predicted: `[S, P, N, 3]`, predicted positions; lines begin at the given state.
      titles: a title for each system.
      unit: the unit of length, for the labels.
      columns: panels side by side.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: shapes do not fit together.
      ImportError: matplotlib is not installed.
    """
    true, predicted = _check_paths(true, predicted)
    _check_titles(titles, len(true))
    columns = min(columns, len(true))
    rows = math.ceil(len(true) / columns)
    height = 4.4 * rows + 0.6
    figure = _figure(4.8 * columns, height, layout=None)
    # Layout engines do not see the labels of 3D axes.
    figure.subplots_adjust(0.01, 0.05, 0.95, 1 - 0.85 / height, 0.08, 0.12)
    for index, (path, guess) in enumerate(zip(true, predicted, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1, projection="3d")
        lines = _draw_paths(axes, path, guess)
        _style_3d(axes, np.concatenate([path, guess]).reshape(-1, 3), unit)
        if titles:
            axes.set_title(titles[index], fontsize=11, color=INK)
    figure.legend(lines, _LABELS, loc="upper center", ncols=3, frameon=False, fontsize=11)
    return figure


def plot_error_over_time(
    times: Float[np.ndarray, "P"],
    errors: Mapping[str, Float[np.ndarray, "P"]],
    *,
    time_unit: str = "",
    length_unit: str = "",
) -> Figure:
    """Draws the mean squared error at each time on a logarithmic axis, a line a method.

    Args:
      times: `[P]`.
      errors: `[P]` errors by the name of the method.
      time_unit: the unit of the times, for the label.
      length_unit: the unit of the positions; errors have its square.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: shapes do not fit together.
      ImportError: matplotlib is not installed.
    """
    times = np.asarray(times)
    figure = _figure(5.6, 4.0)
    axes = figure.add_subplot()
    for (name, values), style in zip(errors.items(), itertools.cycle(_STYLES)):
        values = np.asarray(values)
        if values.shape != times.shape or times.ndim != 1:
            raise ValueError(
                f"errors[{name!r}] has shape {list(values.shape)} and times {list(times.shape)}, "
                "expected [P] both"
            )
        axes.plot(times, values, linewidth=2, label=name, **style)
    axes.set_yscale("log")
    axes.set_xticks(times)
    axes.set_xlabel(_with_unit("time after the given state", time_unit))
    axes.set_ylabel(_with_unit("mean squared error", length_unit and f"{length_unit}²"))
    _style_2d(axes)
    return figure


def plot_learning_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    best_step: int | None = None,
    ylabel: str = "error",
) -> Figure:
    """Draws values against steps on a logarithmic axis, a line a curve.

    Args:
      curves: steps and values, of one length, by the name of the curve.
      best_step: where the model that was kept is from; marked by a line.
      ylabel: what the values are.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: steps and values of a curve differ in length.
      ImportError: matplotlib is not installed.
    """
    figure = _figure(5.6, 4.0)
    axes = figure.add_subplot()
    for (name, (steps, values)), style in zip(curves.items(), itertools.cycle(_STYLES)):
        if len(steps) != len(values):
            raise ValueError(f"curve {name!r}: {len(steps)} steps, but {len(values)} values")
        size = 4 if len(steps) <= 40 else 0
        axes.plot(steps, values, linewidth=1.8, markersize=size, label=name, **style)
    if best_step is not None:
        axes.axvline(best_step, color=INK, linewidth=1, linestyle=":", label="kept model")
    axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(ylabel)
    _style_2d(axes)
    return figure


def interactive_trajectories(
    true: Float[np.ndarray, "S T N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
    *,
    titles: Sequence[str] = (),
    unit: str = "",
) -> plotly.graph_objects.Figure:
    """Draws true and predicted paths in 3D to turn and zoom, one system at a time from a menu.

    Args:
      true: `[S, T, N, 3]`, true positions, the given state first.
      predicted: `[S, P, N, 3]`, predicted positions.
      titles: a name for each system.
      unit: the unit of length, for the labels.

    Returns:
      A plotly figure.

    Raises:
      ValueError: shapes do not fit together.
      ImportError: plotly is not installed.
    """
    graph_objects = require("plotly.graph_objects", "experiments")
    true, predicted = _check_paths(true, predicted)
    _check_titles(titles, len(true))
    traces = [
        graph_objects.Scatter3d(**trace, visible=index == 0)
        for index, paths in enumerate(zip(true, predicted, strict=True))
        for trace in _traces(*paths)
    ]
    names = titles or [f"system {index + 1}" for index in range(len(true))]
    per_system = len(traces) // len(true)
    buttons = [
        {
            "label": name,
            "method": "restyle",
            "args": [{"visible": [trace // per_system == index for trace in range(len(traces))]}],
        }
        for index, name in enumerate(names)
    ]
    axis = {"backgroundcolor": "white", "gridcolor": GRID, "zerolinecolor": GRID, "color": INK}
    scene = {name + "axis": {**axis, "title": {"text": _with_unit(name, unit)}} for name in "xyz"}
    camera = {"eye": {"x": 1.25, "y": -1.55, "z": 0.65}, "center": {"x": 0, "y": 0, "z": -0.1}}
    return graph_objects.Figure(
        traces,
        {
            "scene": {**scene, "aspectmode": "data", "camera": camera},
            "updatemenus": [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.12}],
            "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.06},
            "margin": {"l": 0, "r": 0, "t": 70, "b": 10},
            "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": "white",
            "height": 560,
        },
    )


def _draw_paths(axes: Axes, true: np.ndarray, predicted: np.ndarray) -> list[Any]:
    """Draws one system; returns an artist for each of `_LABELS`."""
    axes.computed_zorder = False
    for node in range(true.shape[1]):
        (truth,) = axes.plot(*true[:, node].T, color=TRUTH_COLOUR, linewidth=2.6)
        guess = np.concatenate([true[:1, node], predicted[:, node]])
        (prediction,) = axes.plot(
            *guess.T,
            color=PREDICTION_COLOUR,
            linewidth=1.2,
            linestyle=(0, (3, 1.5)),
            marker="o",
            markersize=5,
            markeredgewidth=1.2,
            markerfacecolor="none",
            markevery=slice(1, None),
        )
    start = axes.scatter(*true[0].T, color=INK, s=24, depthshade=False)
    return [start, truth, prediction]


def _traces(true: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Returns plotly's traces of one system; paths of several nodes are one line with gaps."""
    gap = np.full((1, *true.shape[1:]), np.nan)
    guess = np.concatenate([true[:1], predicted, gap])
    paths = np.concatenate([true, gap])
    kinds = (
        (paths, {"mode": "lines", "line": {"color": TRUTH_COLOUR, "width": 6}}, _LABELS[1]),
        (
            guess,
            {
                "mode": "lines+markers",
                "line": {"color": PREDICTION_COLOUR, "width": 3, "dash": "dash"},
                "marker": {"color": PREDICTION_COLOUR, "size": 6, "symbol": "circle-open"},
            },
            _LABELS[2],
        ),
        (true[:1], {"mode": "markers", "marker": {"color": INK, "size": 5}}, _LABELS[0]),
    )
    traces = []
    for points, style, label in kinds:
        x, y, z = points.swapaxes(0, 1).reshape(-1, 3).astype(float).T
        traces.append({"x": x, "y": y, "z": z, "name": label, **style})
    return traces


def _style_3d(axes: Axes, points: np.ndarray, unit: str) -> None:
    """Gives the axes one scale around the points, light panes and few ticks."""
    low, high = points.min(axis=0), points.max(axis=0)
    sizes = np.maximum(high - low, max(0.7 * (high - low).max(), 1e-9)) * 1.08
    centre = (low + high) / 2
    low, high = centre - sizes / 2, centre + sizes / 2
    for index, name in enumerate("xyz"):
        getattr(axes, f"set_{name}lim")(low[index], high[index])
        getattr(axes, f"set_{name}label")(_with_unit(name, unit), fontsize=9, labelpad=0)
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(require("matplotlib.ticker", "experiments").MaxNLocator(3))
        axis.set_pane_color((0.97, 0.97, 0.97, 1.0))
        axis.set_tick_params(labelsize=8, pad=-1, labelcolor=INK)
        axis._axinfo["grid"].update(color=GRID, linewidth=0.6)
    axes.set_box_aspect(sizes, zoom=1.02)
    axes.view_init(elev=22, azim=-58)


def _style_2d(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
    axes.legend(frameon=False)


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """Returns a figure that belongs to nobody else, unlike those of pyplot."""
    figure = require("matplotlib.figure", "experiments").Figure(
        figsize=(width, height), layout=layout
    )
    figure.set_facecolor("white")
    return figure


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _check_paths(true: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as arrays `[S, T, N, 3]` and `[S, P, N, 3]`."""
    true, predicted = np.asarray(true), np.asarray(predicted)
    for name, paths in (("true", true), ("predicted", predicted)):
        if paths.ndim != 4 or paths.shape[-1] != 3 or 0 in paths.shape:
            raise ValueError(
                f"{name} has shape {list(paths.shape)}, expected [S, T, N, 3]; for one system pass "
                f"{name}[None]"
            )
    if true.shape[0] != predicted.shape[0] or true.shape[2] != predicted.shape[2]:
        raise ValueError(
            f"true has shape {list(true.shape)} and predicted {list(predicted.shape)}, expected "
            "the same systems S and nodes N in both"
        )
    return true, predicted


def _check_titles(titles: Sequence[str], num_systems: int) -> None:
    if titles and len(titles) != num_systems:
        raise ValueError(f"titles: got {len(titles)}, expected {num_systems}, one for each system")
