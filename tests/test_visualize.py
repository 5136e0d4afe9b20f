from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from egno_jax import visualize

ROOT = pathlib.Path(__file__).parents[1]

plt_figure = pytest.importorskip("matplotlib.figure")
graph_objects = pytest.importorskip("plotly.graph_objects")


@pytest.fixture
def paths():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 11, 5, 3)), rng.normal(size=(3, 5, 5, 3))


def test_trajectories_hold_every_path(paths):
    true, predicted = paths
    figure = visualize.plot_trajectories(true, predicted, titles=["a", "b", "c"], unit="nm")
    assert isinstance(figure, plt_figure.Figure)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    for axes, path, guess in zip(figure.axes, true, predicted, strict=True):
        lines = [np.transpose(line.get_data_3d()) for line in axes.get_lines()]
        for node in range(5):
            np.testing.assert_array_equal(lines[2 * node], path[:, node])
            np.testing.assert_array_equal(lines[2 * node + 1][0], path[0, node])
            np.testing.assert_array_equal(lines[2 * node + 1][1:], guess[:, node])
        assert axes.get_xlabel() == "x (nm)"


def test_trajectories_have_one_scale_and_hide_nothing(paths):
    true, predicted = (value * [1.0, 10.0, 0.0] for value in paths)
    for axes in visualize.plot_trajectories(true, predicted).axes:
        limits = np.array([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()])
        sizes = limits[:, 1] - limits[:, 0]
        np.testing.assert_allclose(axes._box_aspect / axes._box_aspect.max(), sizes / sizes.max())
        for line in axes.get_lines():
            points = np.array(line.get_data_3d()).T
            assert (points >= limits[:, 0]).all() and (points <= limits[:, 1]).all()


@pytest.mark.parametrize("systems", [1, 2, 3])
@pytest.mark.parametrize("scale", [[1, 1, 1], [1, 3, 3], [3, 3, 1], [1, 9, 4]])
def test_labels_of_axes_are_within_the_picture(paths, systems, scale):
    backend = pytest.importorskip("matplotlib.backends.backend_agg")
    paths = [value[:systems] * scale for value in paths]
    bonds = np.array([[0, 1], [1, 2]])
    for figure in (
        visualize.plot_trajectories(*paths, unit="units of 5.64 cm"),
        visualize.plot_skeletons(*paths, bonds, unit="units of 5.64 cm", up="y"),
    ):
        canvas = backend.FigureCanvasAgg(figure)
        canvas.draw()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
                extent = axis.label.get_window_extent(canvas.get_renderer())
                assert extent.min.min() >= 0
                assert (extent.max <= figure.bbox.max).all()


def test_interactive_trajectories_show_one_system_at_a_time(paths):
    true, predicted = paths
    figure = visualize.interactive_trajectories(true, predicted, titles=["a", "b", "c"])
    assert isinstance(figure, graph_objects.Figure)
    assert [trace.visible for trace in figure.data] == [True] * 3 + [False] * 6
    menu = figure.layout.updatemenus[0].buttons
    assert [button.label for button in menu] == ["a", "b", "c"]
    assert menu[2].args[0]["visible"] == [False] * 6 + [True] * 3
    # Each node's path, then a gap.
    drawn = np.reshape([figure.data[3].x, figure.data[3].y, figure.data[3].z], (3, 5, 12))
    np.testing.assert_array_equal(drawn[:, :, :-1], np.transpose(true[1], (2, 1, 0)))
    assert np.isnan(drawn[:, :, -1]).all()


BONDS = np.array([[1, 0], [2, 1], [3, 1], [4, 3]])


def drawn_bonds(line, order="xyz"):
    """Returns the ends of the bonds of a line with gaps, `[B, 2, 3]`, in the order x, y, z."""
    points = np.reshape(np.transpose(line), (len(BONDS), 3, 3))
    assert np.isnan(points[:, 2]).all()
    return points[:, :2][..., [order.index(name) for name in "xyz"]]


@pytest.mark.parametrize(("up", "order"), [("z", "xyz"), ("y", "zxy"), ("x", "yzx")])
def test_skeletons_stand_upright_at_the_initial_state_and_the_last_time(paths, up, order):
    true, predicted = paths
    figure = visualize.plot_skeletons(true, predicted, BONDS, up=up, titles=["a", "b", "c"])
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    for axes, path, guess in zip(figure.axes, true, predicted, strict=True):
        assert [axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()] == list(order)
        for line, points in zip(axes.get_lines(), (path[0], path[-1], guess[-1]), strict=True):
            np.testing.assert_array_equal(drawn_bonds(line.get_data_3d(), order), points[BONDS])


def test_films_show_the_latest_prediction_and_slow_down_at_it(paths, tmp_path):
    true, predicted = paths
    targets = (2, 4, 5, 8, 10)
    film = visualize.animate_skeletons(true, predicted, BONDS, target_frames=targets)
    film._draw_was_started = True  # it is never saved, and says so otherwise
    order = list(film.new_frame_seq())
    assert sorted(set(order)) == list(range(11)) and order == sorted(order)
    assert all(order.count(frame) == 3 for frame in targets[:-1]) and order.count(3) == 1
    (axes, *_) = film._fig.axes
    start, truth, prediction = axes.get_lines()
    for frame, latest, is_new in ((0, None, False), (4, 1, True), (7, 2, False), (10, 4, True)):
        film._func(frame)
        np.testing.assert_array_equal(drawn_bonds(truth.get_data_3d()), true[0, frame][BONDS])
        np.testing.assert_array_equal(drawn_bonds(start.get_data_3d()), true[0, 0][BONDS])
        assert prediction.get_visible() == (latest is not None)
        if latest is not None:
            found = drawn_bonds(prediction.get_data_3d())
            np.testing.assert_array_equal(found, predicted[0, latest][BONDS])
            assert (prediction.get_alpha() == 1) == is_new
    short = visualize.animate_skeletons(true[:1, :2], predicted[:1, :1], BONDS, target_frames=[1])
    short.save(tmp_path / "film.gif", writer="pillow", fps=10, dpi=30)
    assert (tmp_path / "film.gif").read_bytes().startswith(b"GIF")


def test_interactive_skeletons_hold_every_frame_and_show_one_system(paths):
    true, predicted = paths
    targets = (2, 4, 5, 8, 10)
    figure = visualize.interactive_skeletons(
        true, predicted, BONDS, target_frames=targets, titles=["a", "b", "c"], up="y"
    )
    assert [trace.visible for trace in figure.data] == [True] * 3 + [False] * 6
    menu = figure.layout.updatemenus[0].buttons
    assert menu[1].args[0]["visible"] == [False] * 3 + [True] * 3 + [False] * 3
    assert list(figure.frames[7].traces) == [1, 2, 4, 5, 7, 8]
    assert [frame.name for frame in figure.frames] == [str(frame) for frame in range(11)]
    assert figure.layout.sliders[0].active == 10
    # Moved sideways alone.
    middle = true[:, 0].mean(axis=1) * [1, 0, 1]
    truth, guess = (figure.frames[7].data[index] for index in (2, 3))
    for trace, points in ((truth, true[1, 7]), (guess, predicted[1, 2])):
        found = drawn_bonds([trace.x, trace.y, trace.z], "zxy")
        np.testing.assert_allclose(found, (points - middle[1])[BONDS], atol=1e-5)
    assert truth.opacity == 1 and 0 < guess.opacity < 1
    assert figure.frames[8].data[3].opacity == 1 and figure.frames[1].data[3].opacity == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bonds": BONDS + 1},
            r"bonds: got int64 \[4, 2\], expected integers \[B, 2\] from 0 to 4",
        ),
        ({"bonds": BONDS * 0.5}, "bonds: got float64"),
        ({"bonds": BONDS[:0]}, r"bonds: got int64 \[0, 2\]"),
        ({"up": "w"}, "up: got 'w', expected 'x', 'y' or 'z'"),
        ({"target_frames": (2, 4, 5, 8)}, "expected 5 that increase from 0 to 10"),
        ({"target_frames": (2, 4, 5, 8, 11)}, "expected 5 that increase from 0 to 10"),
        ({"target_frames": (2, 4, 4, 8, 10)}, "expected 5 that increase from 0 to 10"),
        ({"target_frames": (2, 4, 5.5, 8, 10)}, "expected 5 that increase from 0 to 10"),
        ({"titles": ["a"]}, "titles: got 1, expected 3"),
    ],
)
@pytest.mark.parametrize("draw", [visualize.animate_skeletons, visualize.interactive_skeletons])
def test_wrong_skeletons_are_named(paths, draw, change, message):
    arguments = {"bonds": BONDS, "target_frames": (2, 4, 5, 8, 10), **change}
    with pytest.raises(ValueError, match=message):
        draw(*paths, **arguments)


def test_error_over_time_draws_each_method():
    figure = visualize.plot_error_over_time(
        [2, 4, 6], {"model": [0.1, 0.2, 0.3], "baseline": [1, 2, 3]}, length_unit="nm"
    )
    (axes,) = figure.axes
    model, baseline = axes.get_lines()
    np.testing.assert_array_equal(model.get_xydata(), [[2, 0.1], [4, 0.2], [6, 0.3]])
    assert (model.get_label(), baseline.get_label()) == ("model", "baseline")
    assert model.get_color() != baseline.get_color()
    assert axes.get_yscale() == "log" and "nm²" in axes.get_ylabel()


def test_learning_curves_mark_the_kept_step():
    curves = {"train": ([1, 2, 3], [3.0, 2.0, 1.0]), "valid": ([2], [2.5])}
    (axes,) = visualize.plot_learning_curves(curves, best_step=2).axes
    train, valid, kept = axes.get_lines()
    np.testing.assert_array_equal(train.get_xydata(), [[1, 3], [2, 2], [3, 1]])
    np.testing.assert_array_equal(valid.get_xydata(), [[2, 2.5]])
    assert set(kept.get_xdata()) == {2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda true, predicted: (true[0], predicted), r"true: got \[11, 5, 3\]"),
        (lambda true, predicted: (true, predicted[..., :2]), "predicted: got"),
        (lambda true, predicted: (true, predicted[:2]), "predicted: got .*systems S and nodes N"),
        (
            lambda true, predicted: (true, predicted[:, :, :4]),
            "predicted: got .*systems S and nodes N",
        ),
        (lambda true, predicted: (true[:0], predicted[:0]), "true: got"),
        (lambda true, predicted: (true.astype(str), predicted), "true: got .* of <U"),
        (lambda true, predicted: (true * np.nan, predicted), r"true\[0, 0\]: got only NaN"),
        (lambda true, predicted: (true, predicted + np.inf), "predicted: got infinite positions"),
    ],
)
@pytest.mark.parametrize("draw", [visualize.plot_trajectories, visualize.interactive_trajectories])
def test_wrong_shapes_are_named(paths, draw, change, message):
    with pytest.raises(ValueError, match=message):
        draw(*change(*paths))


@pytest.mark.parametrize("columns", [0, -1, 1.5])
def test_columns_are_counted(paths, columns):
    with pytest.raises(ValueError, match=f"columns: got {columns}, expected an integer >= 1"):
        visualize.plot_trajectories(*paths, columns=columns)


def test_missing_nodes_and_systems_without_extent_have_a_box_of_their_own(paths):
    true, predicted = paths
    true[:, 0, 2] = np.nan
    for scale in (1.0, 0.0):
        figure = visualize.interactive_skeletons(
            scale * true, scale * predicted, BONDS, target_frames=(2, 4, 5, 8, 10)
        )
        ratio = [figure.layout.scene.aspectratio[name] for name in "xyz"]
        assert min(ratio) > 0.9
        assert max(ratio) == pytest.approx(1.3)


def test_wrong_lengths_are_named(paths):
    with pytest.raises(ValueError, match="titles: got 1, expected 3"):
        visualize.plot_trajectories(*paths, titles=["a"])
    with pytest.raises(ValueError, match=r"errors\['model'\]"):
        visualize.plot_error_over_time([1, 2], {"model": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"curves\['loss'\]: got 2 steps"):
        visualize.plot_learning_curves({"loss": ([1, 2], [1.0])})


@pytest.mark.parametrize(
    ("draw", "package"),
    [
        (visualize.plot_trajectories, "matplotlib"),
        (visualize.interactive_trajectories, "plotly"),
    ],
)
def test_missing_package_names_the_extra(paths, monkeypatch, draw, package):
    for module in (package, f"{package}.figure", f"{package}.graph_objects"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {package}.*egno_jax\[experiments\]"):
        draw(*paths)


def test_neither_pyplot_nor_any_package_is_imported_for_nothing():
    program = """
import sys
from egno_jax import visualize
assert not {"matplotlib", "plotly"} & set(sys.modules)
visualize.plot_learning_curves({"loss": ([1, 2], [2.0, 1.0])})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600, cwd=ROOT)
