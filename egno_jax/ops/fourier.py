"""The Fourier basis over equally spaced times, in float64."""

from __future__ import annotations

import numpy as np

# The DFT is faster than the FFT up to this many modes: benchmarks/results/spectral-cpu.md.
MAX_DFT_MODES = 32


def num_live_modes(num_times: int, num_modes: int) -> int:
    """Returns how many of `num_modes` a grid of `num_times` has: `min(M, P // 2 + 1)`."""
    return min(num_modes, num_times // 2 + 1)


def basis(num_times: int, num_modes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cos and sin of `2 pi k p / P`, each `[M, P]`; the phases are reduced exactly."""
    phases = np.outer(np.arange(num_modes), np.arange(num_times)) % num_times / num_times
    return np.cos(2 * np.pi * phases), np.sin(2 * np.pi * phases)


def amplitudes(num_times: int, num_modes: int) -> np.ndarray:
    """Returns `a_k / P`, `[M]`: modes other than the first and P/2 count for their mirrors too."""
    mode = np.arange(num_modes)
    is_its_own_mirror = (mode == 0) | (2 * mode == num_times)
    return np.where(is_its_own_mirror, 1.0, 2.0) / num_times


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
