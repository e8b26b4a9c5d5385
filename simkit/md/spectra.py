"""Velocity autocorrelation and the vibrational spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal

from simkit.errors import ConfigError, DataError
from simkit.md.correlation import CHUNK, mean_autocorrelation

Floats = NDArray[np.float64]

WAVENUMBER = 1e15 / 2.99792458e10
"""1/fs in cm^-1: divided by the speed of light in cm/s."""
HANN_WIDTH = 1.4406
"""Full width at half maximum of the Hann window's power spectrum, in bins (Harris, Proc. IEEE 66, 51 (1978), table 1: 1.44)."""


def velocity_autocorrelation(velocities: ArrayLike, masses: ArrayLike) -> Floats:
    """Return sum_i m_i <v_i(0) v_i(t)> / sum_i m_i <v_i(0)^2> over all time origins, for every lag: [T], 1 at lag 0.

    Weighted by mass, so that its Fourier transform is the vibrational density of states (see `vibrational_spectrum`).

    Args:
        velocities: [T, N, 3] in any unit; masses: [N] in any unit.

    Raises:
        DataError: for wrong shapes, masses that are not positive, and velocities that are not finite or all zero.
    """
    values, weights = _checked(velocities, masses)
    correlation = mean_autocorrelation(values, weights)
    if not correlation[0] > 0:
        raise DataError("all velocities are zero: there is no autocorrelation")
    return correlation / correlation[0]


@dataclass(frozen=True)
class VibrationalSpectrum:
    """The distribution of the kinetic energy over vibrations.

    Attributes:
        wavenumbers: [F] cm^-1, from 0 to the highest that the time between frames can tell (Nyquist).
        total: [F] share of the kinetic energy per cm^-1; its integral (trapezoidal rule) is 1.
        species: [F] the part of it that is in each species.
        resolution: full width at half maximum of a sharp line, cm^-1; segments: pieces of the trajectory that were averaged.
    """

    wavenumbers: Floats
    total: Floats
    species: Mapping[str, Floats]
    resolution: float
    segments: int


def vibrational_spectrum(
    velocities: ArrayLike,
    masses: ArrayLike,
    frame_time: float,
    species: Mapping[str, ArrayLike],
    *,
    resolution: float = 10.0,
) -> VibrationalSpectrum:
    """Return the power spectrum of the mass-weighted velocities, the Fourier transform of their autocorrelation.

    For harmonic motion it is the vibrational density of states; rotation and diffusion lie near zero (Lin, Blanco & Goddard, J. Chem. Phys.
    119, 11792 (2003)). Periodograms of half-overlapping segments under a Hann window are averaged (Welch, IEEE Trans. Audio
    Electroacoust. 15, 70 (1967)), which cannot become negative. Vibrations faster than half a period per frame appear at wrong, lower
    wavenumbers: X-H stretches (up to 3,800 cm^-1) need frames every 4 fs at most. No quantum correction is applied.

    Args:
        velocities: [T, N, 3] in any unit; masses: [N] in any unit; frame_time: between two frames, fs.
        species: name -> [N] bool, which atoms belong to it; each atom to exactly one.
        resolution: cm^-1; coarser where the trajectory is too short.

    Raises:
        ConfigError: if frame_time or resolution are not positive.
        DataError: as `velocity_autocorrelation`, for fewer than 8 frames, and species that do not share out the atoms.
    """
    values, weights = _checked(velocities, masses)
    if not (np.isfinite(frame_time) and frame_time > 0 and np.isfinite(resolution) and resolution > 0):
        raise ConfigError(f"frame time and resolution must be positive, found {frame_time} fs and {resolution} cm^-1")
    n = len(values)
    if n < 8:
        raise DataError(f"a spectrum needs 8 frames at least, found {n}")
    names, masks = list(species), np.array([np.asarray(mask, dtype=bool) for mask in species.values()])
    if masks.shape != (len(names), len(weights)) or (masks.sum(axis=0) != 1).any():
        raise DataError(f"expected masks that give each of {len(weights)} atoms to one species, found {masks.shape}")
    length = int(np.clip(round(HANN_WIDTH * WAVENUMBER / (resolution * frame_time)), 8, n))
    size = 1 << (2 * length - 1).bit_length()  # padded with zeros: at least two points per bin, and a fast transform
    power = np.zeros((size // 2 + 1, len(names)))
    width = max(1, CHUNK // (3 * n))
    for start in range(0, len(weights), width):
        part = slice(start, start + width)
        frequencies, density = signal.welch(
            values[:, part], 1 / frame_time, "hann", length, nfft=size, detrend=False, axis=0
        )
        power += np.einsum("fnx,n,sn->fs", density, weights[part], masks[:, part], optimize=True)
    wavenumbers = np.asarray(frequencies) * WAVENUMBER
    power[[0, -1]] *= (
        2  # welch leaves the ends, which have no mirror image at negative frequencies, at half of the density
    )
    whole = (power.sum() - power[[0, -1]].sum() / 2) * (wavenumbers[1] - wavenumbers[0])
    if not whole > 0:
        raise DataError("all velocities are zero: there is no spectrum")
    return VibrationalSpectrum(
        wavenumbers=wavenumbers,
        total=power.sum(axis=1) / whole,
        species={name: power[:, k] / whole for k, name in enumerate(names)},
        resolution=HANN_WIDTH * WAVENUMBER / (length * frame_time),
        segments=1 + (n - length) // (length - length // 2),
    )


def _checked(velocities: ArrayLike, masses: ArrayLike) -> tuple[Floats, Floats]:
    values, weights = np.asarray(velocities, dtype=float), np.asarray(masses, dtype=float)
    if values.ndim != 3 or values.shape[2] != 3 or 0 in values.shape or weights.shape != values.shape[1:2]:
        raise DataError(f"expected velocities [T, N, 3] and masses [N], found {values.shape} and {weights.shape}")
    if not np.isfinite(values).all():
        raise DataError("the velocities hold values that are not finite; cut the trajectory before them")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise DataError("expected positive masses; a mass of zero has no kinetic energy")
    return values, weights
