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
        (lambda true, predicted: (true[0], predicted), r"true has shape \[11, 5, 3\]"),
        (lambda true, predicted: (true, predicted[..., :2]), "predicted has shape"),
        (lambda true, predicted: (true, predicted[:2]), "same systems"),
        (lambda true, predicted: (true, predicted[:, :, :4]), "same systems"),
        (lambda true, predicted: (true[:0], predicted[:0]), "true has shape"),
    ],
)
@pytest.mark.parametrize("draw", [visualize.plot_trajectories, visualize.interactive_trajectories])
def test_wrong_shapes_are_named(paths, draw, change, message):
    with pytest.raises(ValueError, match=message):
        draw(*change(*paths))


def test_wrong_lengths_are_named(paths):
    with pytest.raises(ValueError, match="titles: got 1, expected 3"):
        visualize.plot_trajectories(*paths, titles=["a"])
    with pytest.raises(ValueError, match=r"errors\['model'\]"):
        visualize.plot_error_over_time([1, 2], {"model": [1, 2, 3]})
    with pytest.raises(ValueError, match="curve 'loss'"):
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
