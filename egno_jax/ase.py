"""ASE: a model moves `ase.Atoms` window by window, as a dynamics class of ASE.

    from egno_jax.ase import WindowDynamics

    dynamics = WindowDynamics(atoms, params, ["50fs", "100fs"], trajectory="copper.traj")
    dynamics.attach(print_temperature, interval=2)
    dynamics.run(20)

Needs the extra `ase`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jraph
import numpy as np

from egno_jax import graph as graph_lib
from egno_jax import recipe as recipe_lib
from egno_jax.checks import as_count, as_window_times, check_positive
from egno_jax.durations import FRAME, Duration
from egno_jax.extras import require
from egno_jax.model import Params, apply, check_params
from egno_jax.predicting import as_state, requested_times

if TYPE_CHECKING:
    import ase
    from jaxtyping import ArrayLike, Float

_BaseDynamics: Any = require("ase.optimize.optimize", "ase").BaseDynamics
_units = require("ase.units", "ase")

__all__ = ["WindowDynamics"]

_apply = jax.jit(apply)


def _checked_recipe(
    params: Params, time_unit: float | None, velocity_unit: float | None
) -> recipe_lib.GraphRecipe:
    """Returns the recipe of a model, after checking that the units given complete it."""
    recipe = params.recipe
    if recipe is None:
        raise ValueError(
            "graph_of: got None with a model without a recipe, expected a function from atoms to "
            "the model's graph; pass one"
        )
    counts_frames = recipe.time_unit == FRAME
    if counts_frames and time_unit is None:
        raise ValueError(
            "time_unit: got None with a model that counts frames, expected the time between two "
            "frames in ASE's unit of time; pass it, such as 2 * ase.units.fs"
        )
    redundant = {"velocity_unit": velocity_unit, "time_unit": None if counts_frames else time_unit}
    for name, unit in redundant.items():
        if unit is not None:
            raise ValueError(
                f"{name}: got {unit} with the recipe of a model, expected None, as the recipe has "
                "units; leave it out, or make graphs in your own unit (graph_of)"
            )
    return recipe


def _graph_by_recipe(
    recipe: recipe_lib.GraphRecipe, time_unit: float, atoms: ase.Atoms
) -> jraph.GraphsTuple:
    """Returns the graph of atoms; `time_unit` is that of the recipe, in femtoseconds."""
    return recipe_lib.graph_of(recipe, as_state(recipe, atoms, time_unit))


def _unit(name: str, given: float | None, usual: float) -> float:
    if given is None:
        return usual
    check_positive(name, given)
    return given


def _check_atoms(atoms: ase.Atoms) -> None:
    if not atoms.has("momenta"):
        raise ValueError("atoms: got no momenta, expected velocities; use atoms.set_velocities")
    if atoms.constraints:
        warnings.warn("atoms: got constraints, which predictions do not keep", stacklevel=3)


class WindowDynamics(_BaseDynamics):
    """Dynamics whose steps are the times that a model predicts; P steps are one window.

    The first step of a window predicts all its times in one pass; each step then sets the atoms'
    positions and momenta to those of the next time. The next window starts from the atoms as they
    are after the last time of the window. Positions are unwrapped. Observers, `trajectory`,
    `attach` and `closelater` are those of ASE; an observer that changes atoms within a window is
    overruled by the next step. No forces are computed, and atoms need no calculator.

    Attributes:
      atoms: the atoms, changed in place.
      nsteps: steps since the start.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        params: Params,
        times: Float[ArrayLike, "P"] | Sequence[str | Duration] | None = None,
        graph_of: Callable[[ase.Atoms], jraph.GraphsTuple] | None = None,
        *,
        thermostat: Callable[[ase.Atoms], None] | None = None,
        supervised_velocities: bool | None = None,
        time_unit: float | None = None,
        velocity_unit: float | None = None,
        trajectory: Any = None,
        loginterval: int = 1,
        **options: Any,
    ):
        """Makes the dynamics.

        Args:
          atoms: with momenta.
          params: the model.
          times: `[P]`, of a window, increasing and above 0. With the recipe of the model they are
            those of `egno_jax.predict`: numbers in its unit, texts such as `"2ps"`, or None, the
            times that the model was trained on. With `graph_of`: numbers in the unit of the model.
          graph_of: called with the atoms at the start of each window; returns the model's graph
            with the same nodes, such as `egno_jax.graph.from_atoms`. None: the model's recipe.
          thermostat: called with the atoms between windows, to change their momenta; for example
            `lambda atoms: ase.md.velocitydistribution.force_temperature(atoms, 300)`.
          supervised_velocities: whether momenta are those that the model predicts; otherwise they
            come from differences of positions. By default, whether `params.config.velocity_weight`
            is above 0.
          time_unit: the unit of `times` in ASE's unit of time; None: 1 fs. Only with `graph_of`, or
            with a recipe that counts frames, which needs the time between two frames.
          velocity_unit: the unit of the graph's velocities in that of ASE; None: Angstrom per
            femtosecond, as in `egno_jax.graph.from_atoms`. Only with `graph_of`.
          trajectory: an ASE `Trajectory`, or the name of a file, to which steps are written.
          loginterval: number of steps between two frames of the trajectory.
          **options: of ASE's dynamics, such as `append_trajectory`.

        Raises:
          ValueError: the atoms have no momenta, times or units are not valid, or there is neither
            `graph_of` nor a recipe.
        """
        check_params(params)
        self.time_unit = _unit("time_unit", time_unit, _units.fs)
        self.velocity_unit = _unit("velocity_unit", velocity_unit, 1 / _units.fs)
        _check_atoms(atoms)
        if graph_of is None:
            recipe = _checked_recipe(params, time_unit, velocity_unit)
            self.velocity_unit = 1 / (recipe.velocity_time * self.time_unit)
            graph_of = functools.partial(_graph_by_recipe, recipe, self.time_unit / _units.fs)
            self.times, self._model_time = requested_times(params, times), recipe.model_time
        else:
            self.times, self._model_time = as_window_times(times), 1.0
        self.graph_of, self.thermostat = graph_of, thermostat
        given = supervised_velocities
        self.supervised_velocities = params.predicts_velocities if given is None else given
        self._window: list[tuple[np.ndarray, np.ndarray]] = []
        # After all checks, as it opens the file of the trajectory.
        super().__init__(atoms, trajectory=trajectory, loginterval=loginterval, **options)
        self.atoms, self.params = atoms, params

    def get_time(self) -> float:
        """Returns the time since the start, in ASE's unit."""
        windows, steps = divmod(self.nsteps, len(self.times))
        return self.time_unit * (windows * self.times[-1] + np.append(self.times, 0)[steps - 1])

    def step(self) -> None:
        """Moves the atoms to the next time of the window, or to the first of the next window."""
        if not self._window:
            if self.nsteps and self.thermostat is not None:
                self.thermostat(self.atoms)
            self._window = self._predicted()
        positions, velocities = self._window.pop(0)
        self.atoms.set_positions(positions, apply_constraint=False)
        self.atoms.set_velocities(velocities)

    def irun(self, steps: int = 50) -> Any:
        """Runs a number of steps as a generator; yields whether they are done."""
        last = self.nsteps + as_count("steps", steps, 0)
        if self.nsteps == 0:
            self.call_observers()
        yield self.nsteps == last
        while self.nsteps < last:
            self.step()
            self.nsteps += 1
            self.call_observers()
            yield self.nsteps == last

    def run(self, steps: int = 50) -> bool:
        """Runs a number of steps; returns True."""
        return [*self.irun(steps)][-1]

    def todict(self) -> dict[str, Any]:
        """Returns what a trajectory file records of the dynamics."""
        return {
            "type": "molecular-dynamics",
            "md-type": type(self).__name__,
            "timestep": self.time_unit * self.times[-1] / len(self.times),
        }

    def _predicted(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns positions and velocities `[N, 3]` of each time of the next window."""
        graph = self.graph_of(self.atoms)
        start = self.atoms.get_positions()
        if np.shape(graph.nodes["positions"]) != start.shape:
            raise ValueError(
                f"graph_of: got {len(graph.nodes['positions'])} nodes, expected {len(start)}, one "
                "for each atom, not padded"
            )
        # Of few sizes, so that windows with other edges share a compilation.
        padded, mask = graph_lib.pad(graph)
        found = _apply(self.params, padded, self.times / self._model_time)
        positions, velocities = (
            np.asarray(x, float)[:, mask] for x in (found.positions, found.velocities)
        )
        if not np.isfinite(positions).all():
            raise FloatingPointError(
                f"window {self.nsteps // len(self.times)}: got positions that are not finite, "
                "expected finite ones; the state is too far from those that the model knows"
            )
        velocities = velocities * self.velocity_unit
        if not self.supervised_velocities:
            steps = np.diff(self.times, prepend=0)[:, None, None] * self.time_unit
            velocities = np.diff(positions, axis=0, prepend=start[None]) / steps
        return [*zip(positions, velocities, strict=True)]
