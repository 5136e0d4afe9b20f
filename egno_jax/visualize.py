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
    figure, panels = _panels(true, predicted, titles, unit, "xyz", columns)
    for axes, path, guess in zip(panels, true, predicted, strict=True):
        lines = _draw_paths(axes, path, guess)
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
    owners = [trace // per_system for trace in range(len(traces))]
    return graph_objects.Figure(
        traces, {**_layout("xyz", unit), "updatemenus": [_menu(names, owners)]}
    )


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
    """Draws systems whose nodes are joined by lines, at the given state and at the last time.

    Args:
      true: `[S, T, N, 3]`, true positions, the given state first and the last predicted time last.
      predicted: `[S, P, N, 3]`, predicted positions.
      bonds: `[B, 2]`, pairs of nodes.
      titles: a title for each system.
      unit: the unit of length, for the labels.
      up: the axis that points up, "x", "y" or "z".
      columns: panels side by side.

    Returns:
      A matplotlib figure.

    Raises:
      ValueError: shapes do not fit together.
      ImportError: matplotlib is not installed.
    """
    true, predicted = _check_paths(true, predicted)
    bonds = _check_bonds(bonds, true.shape[2])
    names = _axis_names(up)
    figure, panels = _panels(true, predicted, titles, unit, names, columns)
    for axes, path, guess in zip(panels, true, predicted, strict=True):
        points = path[0], path[-1], guess[-1]
        lines = _draw_skeletons(axes, [_bond_lines(x, bonds, names) for x in points])
    figure.legend(lines, _LABELS, loc="upper center", ncols=3, frameon=False, fontsize=11)
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
    """Draws systems whose nodes are joined by lines as a film.

    The truth moves through all its frames. The prediction stands where it was last predicted, pale
    between two predicted times; the film slows down at those times and stands still at its end.

        animate_skeletons(...).save("motion.gif", writer="pillow", fps=10)

    Args:
      true: `[S, T, N, 3]`, true positions, the given state first.
      predicted: `[S, P, N, 3]`, predicted positions.
      bonds: `[B, 2]`, pairs of nodes.
      target_frames: `[P]`, increasing: which frames of `true` are those predicted.
      titles: a title for each system.
      unit: the unit of length, for the labels.
      up: the axis that points up, "x", "y" or "z".
      columns: panels side by side.

    Returns:
      A matplotlib animation, to be saved while it is kept.

    Raises:
      ValueError: shapes do not fit together.
      ImportError: matplotlib is not installed.
    """
    true, predicted = _check_paths(true, predicted)
    bonds, targets = (
        _check_bonds(bonds, true.shape[2]),
        _check_targets(target_frames, true, predicted),
    )
    names = _axis_names(up)
    figure, panels = _panels(true, predicted, titles, unit, names, columns)
    lines = [
        _draw_skeletons(axes, [_bond_lines(x, bonds, names) for x in (path[0], path[0], guess[0])])
        for axes, path, guess in zip(panels, true, predicted, strict=True)
    ]
    figure.legend(lines[0], _LABELS, loc="upper center", ncols=3, frameon=False, fontsize=11)
    clock = figure.text(0.02, 0.97, "", ha="left", va="top", fontsize=11, color=INK)

    def draw(frame: int) -> list[Any]:
        latest = np.searchsorted(targets, frame, side="right") - 1
        clock.set_text(f"frame {frame}")
        for (_, truth, prediction), path, guess in zip(lines, true, predicted, strict=True):
            truth.set_data_3d(*_bond_lines(path[frame], bonds, names).T)
            prediction.set_data_3d(*_bond_lines(guess[max(latest, 0)], bonds, names).T)
            prediction.set_visible(latest >= 0)
            prediction.set_alpha(1.0 if frame in targets else 0.35)
        return []

    order = [frame for frame in range(true.shape[1]) for _ in range(3 if frame in targets else 1)]
    order += [true.shape[1] - 1] * 8
    return require("matplotlib.animation", "experiments").FuncAnimation(figure, draw, frames=order)


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
    """Draws systems whose nodes are joined by lines, to turn and zoom, with a slider for the time.

    Each system is moved sideways, so that its given state stands in the middle.

    Args:
      true: `[S, T, N, 3]`, true positions, the given state first.
      predicted: `[S, P, N, 3]`, predicted positions.
      bonds: `[B, 2]`, pairs of nodes.
      target_frames: `[P]`, increasing: which frames of `true` are those predicted.
      titles: a name for each system; a menu shows one at a time.
      unit: the unit of length, for the labels.
      up: the axis that points up, "x", "y" or "z".

    Returns:
      A plotly figure; `to_html(auto_play=False)` leaves it at the last time.

    Raises:
      ValueError: shapes do not fit together.
      ImportError: plotly is not installed.
    """
    graph_objects = require("plotly.graph_objects", "experiments")
    true, predicted = _check_paths(true, predicted)
    bonds, targets = (
        _check_bonds(bonds, true.shape[2]),
        _check_targets(target_frames, true, predicted),
    )
    _check_titles(titles, len(true))
    names = _axis_names(up)
    middle = true[:, :1].mean(axis=2, keepdims=True) * [name != up for name in "xyz"]
    true, predicted = true - middle, predicted - middle

    def moving(frame: int) -> list[Any]:
        """Returns truth and prediction of each system at one frame."""
        latest = max(np.searchsorted(targets, frame, side="right") - 1, 0)
        opacity = 1.0 if frame in targets else 0.25 * (frame > targets[0])
        return [
            trace
            for path, guess in zip(true, predicted, strict=True)
            for trace in (
                _bond_trace(path[frame], bonds, names, 1, 1.0),
                _bond_trace(guess[latest], bonds, names, 2, opacity),
            )
        ]

    start = [_bond_trace(path[0], bonds, names, 0, 0.5) for path in true]
    last = true.shape[1] - 1
    indices = list(range(len(start), 3 * len(start)))
    figure = graph_objects.Figure(
        [graph_objects.Scatter3d(trace) for trace in (*start, *moving(last))],
        frames=[
            graph_objects.Frame(
                data=[graph_objects.Scatter3d(trace) for trace in moving(frame)],
                traces=indices,
                name=str(frame),
            )
            for frame in range(last + 1)
        ],
    )
    owners = [*range(len(start)), *(index // 2 for index in range(2 * len(start)))]
    labels = titles or [f"system {index + 1}" for index in range(len(true))]
    figure.update_traces(visible=False)
    for trace, owner in zip(figure.data, owners, strict=True):
        trace.visible = owner == 0
    figure.update_layout(
        _layout(names, unit),
        updatemenus=[_menu(labels, owners)],
        sliders=[_slider(last)],
        margin={"b": 90},
        height=660,
        scene=_fixed_box(true, predicted, names),
    )
    return figure


def _panels(
    true: np.ndarray,
    predicted: np.ndarray,
    titles: Sequence[str],
    unit: str,
    axis_names: str,
    columns: int,
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with an empty panel in 3D for each system, on axes of one scale."""
    _check_titles(titles, len(true))
    columns = min(columns, len(true))
    rows = math.ceil(len(true) / columns)
    height = 4.4 * rows + 0.6
    figure = _figure(4.8 * columns, height, layout=None)
    # Layout engines do not see the labels of 3D axes.
    figure.subplots_adjust(0.01, 0.05, 0.95, 1 - 0.85 / height, 0.08, 0.12)
    panels = []
    for index, (path, guess) in enumerate(zip(true, predicted, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1, projection="3d")
        points = np.concatenate([path, guess]).reshape(-1, 3)
        _style_3d(axes, _along(points, axis_names), unit, axis_names)
        if titles:
            axes.set_title(titles[index], fontsize=11, color=INK)
        panels.append(axes)
    return figure, panels


def _axis_names(up: str) -> str:
    """Returns the axes in the order in which they are drawn, turned so that `up` is the last."""
    if up not in ("x", "y", "z"):
        raise ValueError(f"up is {up!r}, expected 'x', 'y' or 'z'")
    return {"x": "yzx", "y": "zxy", "z": "xyz"}[up]


def _along(points: np.ndarray, axis_names: str) -> np.ndarray:
    """Returns the coordinates `[..., 3]` in the order of the axes."""
    return points[..., ["xyz".index(name) for name in axis_names]]


def _bond_lines(points: np.ndarray, bonds: np.ndarray, axis_names: str) -> np.ndarray:
    """Returns the bonds of one system `[N, 3]` as one line `[3 B, 3]`, with a gap after each."""
    ends = _along(points, axis_names)[bonds].astype(float)
    return np.concatenate([ends, np.full((len(bonds), 1, 3), np.nan)], axis=1).reshape(-1, 3)


def _draw_skeletons(axes: Axes, lines: Sequence[np.ndarray]) -> list[Any]:
    """Draws given state, truth and prediction; returns an artist for each of `_LABELS`."""
    axes.computed_zorder = False
    styles = (
        {"color": "#999999", "linewidth": 1.4},
        {"color": TRUTH_COLOUR, "linewidth": 3.0},
        {"color": PREDICTION_COLOUR, "linewidth": 1.6, "marker": "o", "markersize": 2.5},
    )
    return [axes.plot(*line.T, **style)[0] for line, style in zip(lines, styles, strict=True)]


def _bond_trace(
    points: np.ndarray, bonds: np.ndarray, axis_names: str, kind: int, opacity: float
) -> dict[str, Any]:
    """Returns plotly's trace of the bonds of one system; `kind` is an index of `_LABELS`."""
    colour = ("#999999", TRUTH_COLOUR, PREDICTION_COLOUR)[kind]
    x, y, z = _bond_lines(points, bonds, axis_names).T.astype(np.float32)
    return {
        "x": x,
        "y": y,
        "z": z,
        "name": _LABELS[kind],
        "mode": "lines+markers",
        "line": {"color": colour, "width": (3, 7, 4)[kind]},
        "marker": {"color": colour, "size": (1, 2, 3)[kind]},
        "opacity": opacity,
    }


def _fixed_box(true: np.ndarray, predicted: np.ndarray, axis_names: str) -> dict[str, Any]:
    """Returns the part of plotly's scene that keeps all systems in one box of one scale."""
    points = np.concatenate([_along(x, axis_names).reshape(-1, 3) for x in (true, predicted)])
    margin = 0.02 * np.ptp(points, axis=0).max()
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    ratio = 1.3 * (high - low) / (high - low).max()
    ranges = {f"{place}axis": {"range": [low[i], high[i]]} for i, place in enumerate("xyz")}
    return {
        **ranges,
        "aspectmode": "manual",
        "aspectratio": dict(zip("xyz", ratio.tolist(), strict=True)),
    }


def _layout(axis_names: str, unit: str) -> dict[str, Any]:
    """Returns what interactive figures have in common."""
    axis = {"backgroundcolor": "white", "gridcolor": GRID, "zerolinecolor": GRID, "color": INK}
    scene = {
        f"{place}axis": {**axis, "title": {"text": _with_unit(name, unit)}}
        for place, name in zip("xyz", axis_names, strict=True)
    }
    camera = {"eye": {"x": 1.25, "y": -1.55, "z": 0.65}, "center": {"x": 0, "y": 0, "z": -0.1}}
    return {
        "scene": {**scene, "aspectmode": "data", "camera": camera},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.06},
        "margin": {"l": 0, "r": 0, "t": 70, "b": 10},
        "font": {"color": INK, "family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "white",
        "height": 560,
    }


def _menu(names: Sequence[str], owners: Sequence[int]) -> dict[str, Any]:
    """Returns a menu that shows the traces of one system; `owners` says whose each trace is."""
    buttons = [
        {
            "label": name,
            "method": "restyle",
            "args": [{"visible": [owner == index for owner in owners]}],
        }
        for index, name in enumerate(names)
    ]
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.12}


def _slider(last: int) -> dict[str, Any]:
    """Returns a slider over frames 0 to `last`, which is where it stands."""
    options = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
    steps = [
        {"label": str(frame), "method": "animate", "args": [[str(frame)], options]}
        for frame in range(last + 1)
    ]
    label = {"prefix": "frame ", "font": {"color": INK}}
    return {"steps": steps, "active": last, "currentvalue": label, "pad": {"t": 10}, "len": 0.95}


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


def _style_3d(axes: Axes, points: np.ndarray, unit: str, axis_names: str = "xyz") -> None:
    """Gives the axes one scale around the points, light panes and few ticks."""
    low, high = points.min(axis=0), points.max(axis=0)
    sizes = np.maximum(high - low, max(0.7 * (high - low).max(), 1e-9)) * 1.08
    centre = (low + high) / 2
    low, high = centre - sizes / 2, centre + sizes / 2
    for index, (place, name) in enumerate(zip("xyz", axis_names, strict=True)):
        getattr(axes, f"set_{place}lim")(low[index], high[index])
        getattr(axes, f"set_{place}label")(_with_unit(name, unit), fontsize=9, labelpad=0)
        axis = getattr(axes, f"{place}axis")
        axis.set_major_locator(require("matplotlib.ticker", "experiments").MaxNLocator(3))
        axis.set_pane_color((0.97, 0.97, 0.97, 1.0))
        axis.set_tick_params(labelsize=8, pad=-1, labelcolor=INK)
        axis._axinfo["grid"].update(color=GRID, linewidth=0.6)
    is_tall = sizes[2] > 1.2 * sizes[:2].max()
    axes.set_box_aspect(sizes, zoom=0.93 if is_tall else 1.02)  # the labels of a tall box lie lower
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


def _check_bonds(bonds: Any, num_nodes: int) -> np.ndarray:
    bonds = np.asarray(bonds)
    is_pairs = bonds.ndim == 2 and bonds.shape[1] == 2 and np.issubdtype(bonds.dtype, np.integer)
    if not is_pairs or not bonds.size or bonds.min() < 0 or bonds.max() >= num_nodes:
        raise ValueError(
            f"bonds are {bonds.dtype} {list(bonds.shape)}, expected integers [B, 2] from 0 to "
            f"{num_nodes - 1}, the nodes"
        )
    return bonds


def _check_targets(frames: Sequence[int], true: np.ndarray, predicted: np.ndarray) -> list[int]:
    targets = [int(frame) for frame in frames]
    most = true.shape[1] - 1
    is_increasing = all(a < b for a, b in itertools.pairwise([-1, *targets]))
    if len(targets) != predicted.shape[1] or not is_increasing or targets[-1] > most:
        raise ValueError(
            f"target_frames are {targets}, expected {predicted.shape[1]} that increase from 0 to "
            f"{most}, one for each predicted time"
        )
    return targets
