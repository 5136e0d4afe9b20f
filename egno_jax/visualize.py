"""Figures of trajectories and errors, to save or show; needs the extra `experiments`.

Functions return a `matplotlib.figure.Figure` or a `plotly.graph_objects.Figure`; they use no global
state and show nothing themselves:

    figure = visualize.plot_trajectories(true, predicted)
    figure.savefig("trajectories.png")

S systems, T known times, P predicted times, N nodes. Functions that draw systems share arguments:

- `true`: `[S, T, N, 3]`, true positions, the initial state first; T may be more than P + 1.
  Positions that are NaN, here and below, are not drawn.
- `predicted`: `[S, P, N, 3]`, predicted positions.
- `bonds`: `[B, 2]`, the pairs of nodes that lines connect.
- `target_frames`: `[P]`, increasing, the frames of `true` that are predicted.
- `titles`: a title for each system.
- `unit`: the unit of length, for the labels.
- `up`: the axis that points up, "x", "y" or "z".
- `columns`: the number of panels in a row.

All raise a ValueError if shapes do not fit together or positions are infinite, and an ImportError
if matplotlib or plotly is not installed. The colours are those of Okabe and Ito, which
colour-blind readers can distinguish.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from egno_jax.checks import as_count
from egno_jax.extras import require

if TYPE_CHECKING:
    import plotly.graph_objects
    from jaxtyping import Float, Int
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "animate_skeletons",
    "interactive_skeletons",
    "interactive_trajectories",
    "plot_error_over_time",
    "plot_learning_curves",
    "plot_skeletons",
    "plot_trajectories",
]

TRUTH_COLOUR = "#0072B2"
PREDICTION_COLOUR = "#D55E00"
INK = "#222222"
GRID = "#D9D9D9"

_LABELS = ("initial state", "true", "predicted")
_BOND_COLOURS = ("#999999", TRUTH_COLOUR, PREDICTION_COLOUR)
_COLOURS = (PREDICTION_COLOUR, TRUTH_COLOUR, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = [{"color": c, "marker": m} for c, m in zip(_COLOURS, "os^Dvp", strict=True)]


def plot_trajectories(
    true: Float[np.ndarray, "S T N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
    *,
    titles: Sequence[str] = (),
    unit: str = "",
    columns: int = 2,
) -> Figure:
    """Draws true and predicted paths in 3D, one system a panel, on axes of one scale."""
    lines = _Lines(*_check_paths(true, predicted, titles), "xyz")
    figure, panels = _panels(lines, titles, unit, columns)
    for axes, path, guess in panels:
        for node in range(path.shape[1]):
            (truth,) = axes.plot(*path[:, node].T, color=TRUTH_COLOUR, linewidth=2.6)
            (prediction,) = axes.plot(
                *np.concatenate([path[:1, node], guess[:, node]]).T,
                color=PREDICTION_COLOUR,
                linewidth=1.2,
                linestyle=(0, (3, 1.5)),
                marker="o",
                markersize=5,
                markeredgewidth=1.2,
                markerfacecolor="none",
                markevery=slice(1, None),
            )
        start = axes.scatter(*path[0].T, color=INK, s=24, depthshade=False)
    _legend(figure, [start, truth, prediction])
    return figure


def plot_skeletons(
    true: Float[np.ndarray, "S T N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
    bonds: Int[np.ndarray, "B 2"],
    *,
    titles: Sequence[str] = (),
    unit: str = "",
    up: str = "z",
    columns: int = 2,
) -> Figure:
    """Draws the bonds of each system at the initial state and at the last time."""
    lines = _bond_lines(*_check_paths(true, predicted, titles), bonds, up)
    figure, panels = _panels(lines, titles, unit, columns)
    for axes, path, guess in panels:
        artists = _draw_bonds(axes, path[0], path[-1], guess[-1])
    _legend(figure, artists)
    return figure


def animate_skeletons(
    true: Float[np.ndarray, "S T N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
    bonds: Int[np.ndarray, "B 2"],
    *,
    target_frames: Sequence[int],
    titles: Sequence[str] = (),
    unit: str = "",
    up: str = "z",
    columns: int = 2,
) -> FuncAnimation:
    """Draws the bonds of each system as an animation; keep a reference to it while it is saved.

        animate_skeletons(...).save("motion.gif", writer="pillow", fps=10)

    The truth moves through all its frames. The prediction is that of the last predicted time, pale
    between predicted times. The animation slows down at predicted times and stops at the end.
    """
    lines = _bond_lines(*_check_paths(true, predicted, titles), bonds, up)
    targets = _check_targets(target_frames, lines)
    figure, panels = _panels(lines, titles, unit, columns)
    artists = [_draw_bonds(axes, path[0], path[0], guess[0]) for axes, path, guess in panels]
    _legend(figure, artists[0])
    clock = figure.text(0.02, 0.97, "", ha="left", va="top", fontsize=11, color=INK)

    def draw(frame: int) -> list[Any]:
        latest = np.searchsorted(targets, frame, side="right") - 1
        clock.set_text(f"frame {frame}")
        for (_, truth, prediction), (_, path, guess) in zip(artists, panels, strict=True):
            truth.set_data_3d(*path[frame].T)
            prediction.set_data_3d(*guess[max(latest, 0)].T)
            prediction.set_visible(latest >= 0)
            prediction.set_alpha(1.0 if frame in targets else 0.35)
        return []

    last = lines.true.shape[1] - 1
    order = [frame for frame in range(last + 1) for _ in range(3 if frame in targets else 1)]
    animation = require("matplotlib.animation", "experiments")
    return animation.FuncAnimation(figure, draw, frames=order + [last] * 8)


def plot_error_over_time(
    times: Float[np.ndarray, "P"],
    errors: Mapping[str, Float[np.ndarray, "P"]],
    *,
    time_unit: str = "",
    length_unit: str = "",
) -> Figure:
    """Draws the mean squared error at each time on a logarithmic axis, one line for each method.

    `errors` are by the name of the method. The units are those of times and of positions.
    """
    times = np.asarray(times)
    figure, axes = _axes(
        _with_unit("time after the initial state", time_unit),
        _with_unit("mean squared error", length_unit and f"{length_unit}²"),
    )
    for (name, values), style in zip(errors.items(), itertools.cycle(_STYLES)):
        shape = np.shape(values)
        if shape != times.shape or times.ndim != 1:
            raise ValueError(
                f"errors[{name!r}]: got {list(shape)} and times {list(times.shape)}, expected [P] "
                "for both"
            )
        axes.plot(times, values, linewidth=2, label=name, **style)
    axes.set_xticks(times)
    axes.legend(frameon=False)
    return figure


def plot_learning_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    best_step: int | None = None,
    ylabel: str = "error",
) -> Figure:
    """Draws values against steps on a logarithmic axis, one line for each curve.

    `curves` has steps and values by the name of the curve; `best_step`, the step of the model that
    was kept, is marked by a line.
    """
    figure, axes = _axes("optimizer step", ylabel)
    for (name, (steps, values)), style in zip(curves.items(), itertools.cycle(_STYLES)):
        if len(steps) != len(values):
            raise ValueError(
                f"curves[{name!r}]: got {len(steps)} steps and {len(values)} values, expected the "
                "same number of each"
            )
        size = 4 if len(steps) <= 40 else 0
        axes.plot(steps, values, linewidth=1.8, markersize=size, label=name, **style)
    if best_step is not None:
        axes.axvline(best_step, color=INK, linewidth=1, linestyle=":", label="kept model")
    axes.legend(frameon=False)
    return figure


def interactive_trajectories(
    true: Float[np.ndarray, "S T N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
    *,
    titles: Sequence[str] = (),
    unit: str = "",
) -> plotly.graph_objects.Figure:
    """Draws true and predicted paths in 3D to rotate and zoom; a menu selects the system."""
    true, predicted = _check_paths(true, predicted, titles)
    gap = np.full_like(true[:, :1], np.nan, float)  # between the paths of two nodes
    guesses = np.concatenate([true[:, :1], predicted, gap], axis=1)
    dashed = {"color": PREDICTION_COLOUR, "width": 3, "dash": "dash"}
    circle = {"color": PREDICTION_COLOUR, "size": 6, "symbol": "circle-open"}
    styles = (
        {"mode": "lines", "line": {"color": TRUTH_COLOUR, "width": 6}},
        {"mode": "lines+markers", "line": dashed, "marker": circle},
        {"mode": "markers", "marker": {"color": INK, "size": 5}},
    )
    traces = [
        [
            _trace(points.swapaxes(0, 1).reshape(-1, 3), name=_LABELS[kind], **style)
            for kind, points, style in zip((1, 2, 0), system, styles, strict=True)
        ]
        for system in zip(np.concatenate([true, gap], axis=1), guesses, true[:, :1], strict=True)
    ]
    return _interactive(traces, titles, unit, "xyz")


def interactive_skeletons(
    true: Float[np.ndarray, "S T N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
    bonds: Int[np.ndarray, "B 2"],
    *,
    target_frames: Sequence[int],
    titles: Sequence[str] = (),
    unit: str = "",
    up: str = "z",
) -> plotly.graph_objects.Figure:
    """Draws the bonds of each system to rotate and zoom, with a slider for the time.

    The initial state of each system is centred horizontally. A menu selects the system;
    `to_html(auto_play=False)` shows the last time first.
    """
    true, predicted = _check_paths(true, predicted, titles)
    middle = np.nanmean(true[:, :1], axis=2, keepdims=True) * [name != up for name in "xyz"]
    lines = _bond_lines(true - middle, predicted - middle, bonds, up)
    targets = _check_targets(target_frames, lines)

    def moving(frame: int) -> list[list[dict[str, Any]]]:
        """Returns the truth and the prediction of each system at one frame."""
        latest = max(np.searchsorted(targets, frame, side="right") - 1, 0)
        opacity = 1.0 if frame in targets else 0.25 * (frame > targets[0])
        return [
            [_bond_trace(path[frame], 1, 1.0), _bond_trace(guess[latest], 2, opacity)]
            for path, guess in zip(lines.true, lines.predicted, strict=True)
        ]

    last = lines.true.shape[1] - 1
    starts = [_bond_trace(path[0], 0, 0.5) for path in lines.true]
    systems = [[start, *traces] for start, traces in zip(starts, moving(last), strict=True)]
    figure = _interactive(systems, titles, unit, lines.axes)
    are_moving = [index for index in range(len(figure.data)) if index % 3]
    figure.frames = [
        {"data": [*itertools.chain(*moving(f))], "traces": are_moving, "name": str(f)}
        for f in range(last + 1)
    ]
    scene = _fixed_box(lines)
    return figure.update_layout(sliders=[_slider(last)], margin={"b": 90}, height=660, scene=scene)


# Bonds


class _Lines(NamedTuple):
    """Points of all systems, along axes in the order of `axes`; of bonds, lines with gaps."""

    true: Float[np.ndarray, "S T K 3"]
    predicted: Float[np.ndarray, "S P K 3"]
    axes: str


def _bond_lines(true: np.ndarray, predicted: np.ndarray, bonds: Any, up: str) -> _Lines:
    """Returns the lines, with the axes rotated so that `up` is the last."""
    if up not in ("x", "y", "z"):
        raise ValueError(f"up: got {up!r}, expected 'x', 'y' or 'z'")
    bonds, last = np.asarray(bonds), true.shape[2] - 1
    is_pairs = bonds.ndim == 2 and bonds.shape[1] == 2 and np.issubdtype(bonds.dtype, np.integer)
    if not is_pairs or not bonds.size or bonds.min() < 0 or bonds.max() > last:
        raise ValueError(
            f"bonds: got {bonds.dtype} {list(bonds.shape)}, expected integers [B, 2] from 0 to "
            f"{last}, the nodes"
        )
    names = {"x": "yzx", "y": "zxy", "z": "xyz"}[up]

    def lines(paths: np.ndarray) -> np.ndarray:
        ends = paths[..., ["xyz".index(name) for name in names]][:, :, bonds].astype(float)
        ends = np.concatenate([ends, np.full_like(ends[..., :1, :], np.nan)], axis=-2)
        return ends.reshape(*paths.shape[:2], -1, 3)

    return _Lines(lines(true), lines(predicted), names)


def _draw_bonds(axes: Axes, *lines: np.ndarray) -> list[Any]:
    """Draws initial state, truth and prediction; returns an artist for each of `_LABELS`."""
    styles = zip(_BOND_COLOURS, (1.4, 3.0, 1.6), ("none", "none", "o"), strict=True)
    return [
        axes.plot(*line.T, color=colour, linewidth=width, marker=marker, markersize=2.5)[0]
        for line, (colour, width, marker) in zip(lines, styles, strict=True)
    ]


# Figures of matplotlib


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Returns a figure with one panel for lines over a logarithmic axis."""
    figure = _figure(5.6, 4.0, layout="constrained")
    axes = figure.add_subplot(yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
    return figure, axes


def _panels(
    lines: _Lines, titles: Sequence[str], unit: str, columns: int
) -> tuple[Figure, list[tuple[Axes, np.ndarray, np.ndarray]]]:
    """Returns a figure, and for each system an empty 3D panel, its truth and its prediction."""
    columns = min(as_count("columns", columns), len(lines.true))
    rows = math.ceil(len(lines.true) / columns)
    height = 4.4 * rows + 0.6
    figure = _figure(4.8 * columns, height, layout=None)
    # Layout engines do not see the labels of 3D axes.
    figure.subplots_adjust(0.01, 0.5 / height, 0.95, 1 - 0.85 / height, 0.08, 0.12)
    panels = []
    for index, (path, guess) in enumerate(zip(lines.true, lines.predicted, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1, projection="3d", computed_zorder=False)
        _style_3d(axes, *_limits(path, guess), unit, lines.axes)
        if titles:
            axes.set_title(titles[index], fontsize=11, color=INK)
        panels.append((axes, path, guess))
    return figure, panels


def _style_3d(axes: Axes, low: np.ndarray, high: np.ndarray, unit: str, names: str) -> None:
    """Gives the axes one scale within the limits, light panes and few ticks."""
    sizes = np.maximum(high - low, max(0.7 * (high - low).max(), 1e-9)) * 1.08
    low, high = (low + high - sizes) / 2, (low + high + sizes) / 2
    for index, (place, name) in enumerate(zip("xyz", names, strict=True)):
        getattr(axes, f"set_{place}lim")(low[index], high[index])
        getattr(axes, f"set_{place}label")(_with_unit(name, unit), fontsize=9, labelpad=0)
        axis = getattr(axes, f"{place}axis")
        axis.set_major_locator(require("matplotlib.ticker", "experiments").MaxNLocator(3))
        axis.set_pane_color((0.97, 0.97, 0.97, 1.0))
        axis.set_tick_params(labelsize=8, pad=-1, labelcolor=INK)
        axis._axinfo["grid"].update(color=GRID, linewidth=0.6)
    is_tall = sizes[2] > 1.2 * sizes[:2].max()
    axes.set_box_aspect(sizes, zoom=0.93 if is_tall else 1.02)  # room for the labels of a tall box
    axes.view_init(elev=22, azim=-58)


def _figure(width: float, height: float, layout: str | None) -> Figure:
    """Returns a figure that is not registered with pyplot."""
    figure = require("matplotlib.figure", "experiments").Figure
    return figure(figsize=(width, height), layout=layout, facecolor="white")


def _legend(figure: Figure, artists: Sequence[Any]) -> None:
    figure.legend(artists, _LABELS, loc="upper center", ncols=3, frameon=False, fontsize=11)


# Figures of plotly


def _interactive(
    systems: Sequence[Sequence[dict[str, Any]]], titles: Sequence[str], unit: str, axis_names: str
) -> plotly.graph_objects.Figure:
    """Returns a figure of the traces of each system, with a menu that shows one at a time."""
    graph_objects = require("plotly.graph_objects", "experiments")
    owners = [index for index, traces in enumerate(systems) for _ in traces]
    titles = titles or [f"system {index + 1}" for index in range(len(systems))]
    buttons = [
        {"label": title, "method": "restyle", "args": [{"visible": [o == index for o in owners]}]}
        for index, title in enumerate(titles)
    ]
    axis = {"backgroundcolor": "white", "gridcolor": GRID, "zerolinecolor": GRID, "color": INK}
    scene = {
        f"{place}axis": {**axis, "title": {"text": _with_unit(name, unit)}}
        for place, name in zip("xyz", axis_names, strict=True)
    }
    camera = {"eye": {"x": 1.25, "y": -1.55, "z": 0.65}, "center": {"x": 0, "y": 0, "z": -0.1}}
    layout = {
        "scene": {**scene, "aspectmode": "data", "camera": camera},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.06},
        "margin": {"l": 0, "r": 0, "t": 70, "b": 10},
        "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "white",
        "height": 560,
        "updatemenus": [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.12}],
    }
    traces = zip(owners, itertools.chain(*systems), strict=True)
    return graph_objects.Figure([{**each, "visible": owner == 0} for owner, each in traces], layout)


def _trace(points: np.ndarray, **style: Any) -> dict[str, Any]:
    return {"type": "scatter3d", **dict(zip("xyz", points.T, strict=True)), **style}


def _bond_trace(line: np.ndarray, kind: int, opacity: float) -> dict[str, Any]:
    """Returns the trace of the bonds of one system; `kind` is an index of `_LABELS`."""
    return _trace(
        line.astype(np.float32),
        name=_LABELS[kind],
        mode="lines+markers",
        line={"color": _BOND_COLOURS[kind], "width": (3, 7, 4)[kind]},
        marker={"color": _BOND_COLOURS[kind], "size": (1, 2, 3)[kind]},
        opacity=opacity,
    )


def _fixed_box(lines: _Lines) -> dict[str, Any]:
    """Returns the part of the scene that keeps all systems and times in one box of one scale."""
    low, high = _limits(lines.true, lines.predicted)
    if (low == high).all():  # all nodes are at one place
        low, high = low - 0.5, high + 0.5
    margin = 0.02 * (high - low).max()
    low, high = low - margin, high + margin
    ratio = 1.3 * (high - low) / (high - low).max()
    ranges = {f"{place}axis": {"range": [low[i], high[i]]} for i, place in enumerate("xyz")}
    aspect = dict(zip("xyz", ratio.tolist(), strict=True))
    return {**ranges, "aspectmode": "manual", "aspectratio": aspect}


def _slider(last: int) -> dict[str, Any]:
    """Returns a slider over frames 0 to `last`, which starts at `last`."""
    options = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    steps = [
        {"label": str(frame), "method": "animate", "args": [[str(frame)], options]}
        for frame in range(last + 1)
    ]
    label = {"prefix": "frame ", "font": {"color": INK}}
    return {"steps": steps, "active": last, "currentvalue": label, "pad": {"t": 10}, "len": 0.95}


# Labels, limits and checks


def _limits(*points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the least and the largest coordinates, `[3]` each."""
    together = np.concatenate([each.reshape(-1, 3) for each in points])
    return np.nanmin(together, axis=0), np.nanmax(together, axis=0)


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _check_paths(true: Any, predicted: Any, titles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as arrays `[S, T, N, 3]` and `[S, P, N, 3]`."""
    true, predicted = np.asarray(true), np.asarray(predicted)
    for name, paths in (("true", true), ("predicted", predicted)):
        is_number = np.issubdtype(paths.dtype, np.number)
        if not is_number or paths.ndim != 4 or paths.shape[-1] != 3 or 0 in paths.shape:
            raise ValueError(
                f"{name}: got {list(paths.shape)} of {paths.dtype}, expected numbers "
                f"[S, T, N, 3]; for one system pass {name}[None]"
            )
        if np.isinf(paths).any():
            raise ValueError(
                f"{name}: got infinite positions, expected finite ones; set them to NaN to leave "
                "them out"
            )
    if true.shape[0] != predicted.shape[0] or true.shape[2] != predicted.shape[2]:
        raise ValueError(
            f"predicted: got {list(predicted.shape)}, expected the systems S and nodes N of true, "
            f"{list(true.shape)}"
        )
    for system in np.flatnonzero(np.isnan(true[:, 0]).all(axis=1).any(axis=1)):
        raise ValueError(f"true[{system}, 0]: got only NaN, expected an initial state to draw")
    if titles and len(titles) != len(true):
        raise ValueError(f"titles: got {len(titles)}, expected {len(true)}, one for each system")
    return true, predicted


def _check_targets(frames: Sequence[int], lines: _Lines) -> list[int]:
    frames = np.asarray(frames).tolist()
    targets = [int(frame) for frame in frames]
    last, count = lines.true.shape[1] - 1, lines.predicted.shape[1]
    is_increasing = all(a < b for a, b in itertools.pairwise([-1, *targets]))
    if targets != frames or len(targets) != count or not is_increasing or targets[-1] > last:
        raise ValueError(
            f"target_frames: got {frames}, expected {count} that increase from 0 to {last}, one "
            "for each predicted time"
        )
    return targets
