"""Mean squared displacement and self-diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import ConfigError, DataError
from simkit.md.correlation import mean_autocorrelation

Floats = NDArray[np.float64]

BLOCKS = 8
"""Pieces of the trajectory that the error of a diffusion coefficient comes from."""
FIT_RANGE = (0.1, 0.5)
"""Lags fitted by default, as shares of the length of a piece."""
CM2_PER_S = 0.1
"""angstrom^2/fs in cm^2/s."""


def mean_squared_displacement(positions: ArrayLike) -> Floats:
    """Return <|r(t + k) - r(t)|^2>, the mean over atoms and all time origins t, for every lag k: [T] in angstrom^2.

    In T log T operations: the squares are summed directly, the products by Fourier transforms (Calandrini et al., Ecole thematique de la
    Societe Francaise de la Neutronique 12, 201 (2011); first in nMoldyn, Kneller et al., Comput. Phys. Commun. 91, 191 (1995)).

    Args:
        positions: [T, N, 3] angstrom, unwrapped (`simkit.md.trajectory_arrays.unwrap`).

    Raises:
        DataError: for wrong shapes or values that are not finite.
    """
    path = _checked(positions)
    n = len(path)
    path = path - path.mean(axis=0)  # small numbers: the difference below would lose digits
    squares = np.einsum("tnx,tnx->t", path, path) / path.shape[1]
    # Sum over origins of |r(t)|^2 + |r(t + k)|^2: all frames twice, less those that have no partner at either end.
    ends = np.concatenate([[0.0], np.cumsum(squares + squares[::-1])[:-1]])
    means = (2 * squares.sum() - ends) / np.arange(n, 0, -1)
    displacement = means - 2 * mean_autocorrelation(path)
    displacement[0] = 0.0
    return np.maximum(displacement, 0.0)


@dataclass(frozen=True)
class Diffusion:
    """A self-diffusion coefficient from the slope of the mean squared displacement.

    Attributes:
        coefficient: angstrom^2/fs; error: its standard error; both times `CM2_PER_S` are in cm^2/s.
        fit_range: first and last lag of the fit, fs; intercept: of the line, angstrom^2.
        exponent: of the power law through the same lags; 1 where the motion is diffusive, below 1 in cages, 2 in free flight.
        pieces: [BLOCKS] coefficients of pieces of the trajectory.
        lags: [T] fs; displacement: [T] angstrom^2, of the whole trajectory.
    """

    coefficient: float
    error: float
    fit_range: tuple[float, float]
    intercept: float
    exponent: float
    pieces: Floats
    lags: Floats
    displacement: Floats


def diffusion(positions: ArrayLike, frame_time: float, fit_range: tuple[float, float] | None = None) -> Diffusion:
    """Return D = slope / 6 of the mean squared displacement over a range of lags (Einstein's relation).

    A straight line is fitted by least squares to the lags of the range. The error is the standard error of the mean over `BLOCKS` pieces
    of the trajectory, each fitted over the same lags: the points of one curve are strongly correlated, and their scatter around the line
    says nothing. In a periodic cell D is too small by k_B T 2.837297 / (6 pi eta L), with eta the viscosity and L the cubic cell's edge
    (Yeh & Hummer, J. Phys. Chem. B 108, 15873 (2004)); this is not corrected here.

    Args:
        positions: [T, N, 3] angstrom, unwrapped; frame_time: between two frames, fs.
        fit_range: first and last lag, fs, the last within a piece; by default 0.1 to 0.5 of its length.

    Raises:
        ConfigError: if the range holds fewer than two lags, or reaches beyond a piece.
        DataError: if there are too few frames, or values that are not finite.
    """
    path = _checked(positions)
    if not (np.isfinite(frame_time) and frame_time > 0):
        raise ConfigError(f"the time between two frames must be positive, found {frame_time} fs")
    length = len(path) // BLOCKS
    if length < 5:
        raise DataError(f"a diffusion coefficient with an error needs {5 * BLOCKS} frames at least, found {len(path)}")
    longest = (length - 1) * frame_time
    start, end = fit_range or (FIT_RANGE[0] * longest, FIT_RANGE[1] * longest)
    lags = np.arange(len(path), dtype=np.float64) * frame_time
    tolerance = 1e-6 * frame_time
    fitted = (lags >= start - tolerance) & (lags <= end + tolerance) & (lags > 0)
    if not 0 <= start < end or fitted.sum() < 2 or end > longest + tolerance:
        raise ConfigError(
            f"cannot fit the mean squared displacement from {start:g} to {end:g} fs: expected two lags at least, at multiples of "
            f"{frame_time:g} fs, and none beyond {longest:g} fs, the length of each of the {BLOCKS} pieces that the error comes from"
        )
    displacement = mean_squared_displacement(path)
    slope, intercept = _line(lags[fitted], displacement[fitted])
    pieces = np.empty(BLOCKS)
    for k in range(BLOCKS):
        piece = mean_squared_displacement(path[k * length : (k + 1) * length])
        pieces[k] = _line(lags[fitted], piece[fitted[:length]])[0] / 6
    positive = fitted & (displacement > 0)
    exponent = float("nan")
    if positive.sum() >= 2:
        exponent = _line(np.log(lags[positive]), np.log(displacement[positive]))[0]
    return Diffusion(
        coefficient=slope / 6,
        error=float(pieces.std(ddof=1) / np.sqrt(BLOCKS)),
        fit_range=(float(lags[fitted][0]), float(lags[fitted][-1])),
        intercept=intercept,
        exponent=exponent,
        pieces=pieces,
        lags=lags,
        displacement=displacement,
    )


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return slope, float(y.mean() - slope * x.mean())


def _checked(positions: ArrayLike) -> Floats:
    path = np.asarray(positions, dtype=float)
    if path.ndim != 3 or path.shape[2] != 3 or 0 in path.shape:
        raise DataError(f"expected positions [T, N, 3], none of them zero, found shape {path.shape}")
    if not np.isfinite(path).all():
        raise DataError("the positions hold values that are not finite; cut the trajectory before them")
    return path
