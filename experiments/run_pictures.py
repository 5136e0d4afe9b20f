"""The pictures of a run: trajectories, errors over time, learning curves, a film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from egno_jax import visualize
from egno_jax.files import replacing
from experiments.experiment import Drawing, Experiment

if TYPE_CHECKING:
    from jaxtyping import Float

_PERCENTILES = (10, 50, 90, 99)
TRAJECTORIES, ERROR, CURVES = "trajectories.png", "error_over_time.png", "learning_curves.png"
FILM = "trajectories.gif"
_FRAMES_PER_SECOND = 10


class Showcase(NamedTuple):
    """The systems that pictures show.

    Attributes:
      true: `[S, T, N, 3]`, positions from the initial state on.
      predicted: `[S, P, N, 3]`.
      titles: what each system is.
    """

    true: Float[np.ndarray, "S T N 3"]
    predicted: Float[np.ndarray, "S P N 3"]
    titles: Sequence[str]


def showcase(
    paths: Float[np.ndarray, "S T N 3"],
    targets: Float[np.ndarray, "S P N 3"],
    predicted: Float[np.ndarray, "S P N 3"],
) -> Showcase:
    """Returns the systems at the 10th, 50th, 90th and 99th percentile of the A-MSE."""
    errors = np.mean((predicted - targets) ** 2, axis=(1, 2, 3))
    order = np.argsort(errors)
    chosen = [order[round(percent / 100 * (len(order) - 1))] for percent in _PERCENTILES]
    titles = [
        f"{'median' if percent == 50 else f'{percent}th percentile'}: A-MSE {errors[index]:.2g}"
        for percent, index in zip(_PERCENTILES, chosen, strict=True)
    ]
    return Showcase(paths[chosen], predicted[chosen], titles)


def end_first(path: Path) -> None:
    """Shows the last frame of a film first too, as a still preview shows the first one.

    The first frame of a film is the initial state, without a prediction.
    """
    # Pillow comes with matplotlib, which is an extra.
    from PIL import Image, ImageSequence

    with Image.open(path) as film:
        still = [
            (each.convert("RGB"), each.info["duration"]) for each in ImageSequence.Iterator(film)
        ]
    frames, durations = zip(still[-1], *still, strict=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def write_film(path: Path, systems: Showcase, drawing: Drawing, unit: str) -> None:
    """Writes a GIF of the median system and of a hard one; `unit` is that of length."""
    true, predicted, titles = (field[1:3] for field in systems)
    film = visualize.animate_skeletons(
        true, predicted, **drawing._asdict(), titles=titles, unit=unit
    )
    with replacing(path) as partial:
        film.save(partial, writer="pillow", fps=_FRAMES_PER_SECOND, dpi=80)
        end_first(partial)


def draw(
    experiment: Experiment,
    pictures: Path,
    records: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    systems: Showcase,
    drawing: Drawing | None,
) -> str:
    """Writes the pictures of a run to a folder and returns the interactive one as HTML."""

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
    both = (systems.true, systems.predicted)
    words = {"titles": systems.titles, "unit": experiment.length_label}
    if drawing is None:
        picture = visualize.plot_trajectories(*both, **words)
        interactive = visualize.interactive_trajectories(*both, **words)
    else:
        picture = visualize.plot_skeletons(*both, drawing.bonds, up=drawing.up, **words)
        interactive = visualize.interactive_skeletons(*both, **drawing._asdict(), **words)
    # A unit such as 5.64 cm is squared in brackets, which `error_unit` has.
    length_unit = experiment.error_unit.removesuffix("²")
    units = {"time_unit": experiment.time_label, "length_unit": length_unit}
    over_time = visualize.plot_error_over_time(results["times"], errors, **units)
    learning = visualize.plot_learning_curves(
        curves, best_step=results["best_step"], ylabel=f"error ({experiment.error_unit})"
    )
    figures = {TRAJECTORIES: picture, ERROR: over_time, CURVES: learning}
    for name, figure in figures.items():
        with replacing(pictures / name) as partial:
            figure.savefig(partial, dpi=150)
    if drawing is not None:
        write_film(pictures / FILM, systems, drawing, experiment.length_label)
    options = {"displaylogo": False, "responsive": True}
    return interactive.to_html(
        full_html=False, include_plotlyjs=True, config=options, auto_play=False
    )
