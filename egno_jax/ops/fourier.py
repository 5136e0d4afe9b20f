"""The Fourier basis over equally spaced times, in float64.

In programs for any number of times (`jax.export`) P is symbolic. Then the basis is computed in the
program, in JAX's default dtype, and has all M modes; the amplitude of those above P/2 is 0.
"""

from __future__ import annotations

from typing import Any

import jax.export
import jax.numpy as jnp
import numpy as np

# The DFT is faster than the FFT up to this many modes: benchmarks/results/spectral-cpu.md.
MAX_DFT_MODES = 32


def is_symbolic(num_times: Any) -> bool:
    """Returns whether a number of times is symbolic."""
    return jax.export.is_symbolic_dim(num_times)


def array_module(num_times: Any) -> Any:
    """Returns NumPy, or `jax.numpy` for a symbolic number of times."""
    return jnp if is_symbolic(num_times) else np


def num_live_modes(num_times: int, num_modes: int) -> int:
    """Returns how many of `num_modes` a grid of `num_times` has: `min(M, P // 2 + 1)`."""
    if is_symbolic(num_times):
        return num_modes
    return min(num_modes, num_times // 2 + 1)


def basis(num_times: int, num_modes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cos and sin of `2 pi k p / P`, each `[M, P]`; the phases are reduced exactly."""
    xp = array_module(num_times)
    phases = xp.outer(xp.arange(num_modes), xp.arange(num_times)) % num_times / num_times
    return xp.cos(2 * np.pi * phases), xp.sin(2 * np.pi * phases)


def amplitudes(num_times: int, num_modes: int) -> np.ndarray:
    """Returns `a_k / P`, `[M]`: modes other than the first and P/2 count for their mirrors too."""
    xp = array_module(num_times)
    mode = xp.arange(num_modes)
    is_its_own_mirror = (mode == 0) | (2 * mode == num_times)
    amplitude = xp.where(is_its_own_mirror, 1.0, 2.0) / num_times
    return xp.where(2 * mode > num_times, 0.0, amplitude) if xp is jnp else amplitude


def real_basis(num_times: int, num_modes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the transforms between P times and the B real coefficients of M modes.

    The coefficients are the real part of each mode, followed by the imaginary part of a mode that
    is not its own mirror. Returns `[B, P]`, to the coefficients; `[P, B]`, back; and `[B]`, the
    mode of each coefficient.
    """
    cosines, sines = basis(num_times, num_modes)
    rows = [
        (mode, row)
        for mode in range(num_modes)
        for row in ((cosines[mode], -sines[mode]) if 0 < 2 * mode < num_times else (cosines[mode],))
    ]
    mode_of = np.array([mode for mode, _ in rows], np.int32)
    forward = np.stack([row for _, row in rows])
    return forward, (amplitudes(num_times, num_modes)[mode_of, None] * forward).T, mode_of
