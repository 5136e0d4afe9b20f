"""Hard spheres in a box: motion along straight lines, broken by elastic collisions.

Velocities jump where spheres meet one another or a wall, so that no few Fourier modes describe the
motion: the opposite of the smooth data sets.

    samples = collisions.load("train", num_samples=3000)
    batch = datasets.take(samples, jnp.arange(100))

Nothing is downloaded: the motion is computed from collision to collision, exact to rounding.
"""

from egno_jax.datasets.collisions.boxes import (
    BOX,
    NUM_SPHERES,
    RADIUS,
    SPEED,
    SPLIT_SEEDS,
    draw_states,
    load,
    load_motion,
    samples,
)
from egno_jax.datasets.collisions.events import Motion, simulate

__all__ = [
    "BOX",
    "NUM_SPHERES",
    "RADIUS",
    "SPEED",
    "SPLIT_SEEDS",
    "Motion",
    "draw_states",
    "load",
    "load_motion",
    "samples",
    "simulate",
]
