"""Time correlation functions over all time origins by fast Fourier transforms."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from simkit.errors import DataError

Floats = NDArray[np.float64]

CHUNK = 2**22
"""Numbers that are transformed together: bounds the memory."""


def autocorrelation(series: ArrayLike) -> Floats:
    """Return the mean of x(t) x(t + k) over all time origins t, for every lag k: [T, ...] in the squared unit of the series.

    Each column on its own, unbiased (lag k is divided by its T - k products), without taking the mean off, padded with zeros so that the
    end does not meet the beginning (Wiener-Khinchin theorem; Allen & Tildesley, Computer Simulation of Liquids, 2nd ed., ch. 8).

    Args:
        series: [T, ...], one value per frame along the first axis.

    Raises:
        DataError: if there is no frame, or a value is not finite.
    """
    values = np.asarray(series, dtype=float)
    if values.ndim == 0 or len(values) == 0 or not np.isfinite(values).all():
        raise DataError(f"expected finite values along at least one time, found shape {values.shape} or nan")
    n = len(values)
    size = fft.next_fast_len(2 * n - 1, real=True)
    spectrum = fft.rfft(values, size, axis=0)
    products = fft.irfft(np.abs(spectrum) ** 2, size, axis=0)[:n]
    origins = np.arange(n, 0, -1).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray(products / origins)


def mean_autocorrelation(series: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Return the weighted sum over columns of `autocorrelation`, [T], with memory that does not grow with their number.

    Args:
        series: [T, N, D]; the D components of a column are added (a scalar product).
        weights: [N]; by default 1/N, which gives the mean.

    Raises:
        DataError: as `autocorrelation`, and for wrong shapes.
    """
    values = np.asarray(series, dtype=float)
    if values.ndim != 3 or 0 in values.shape:
        raise DataError(f"expected a series [T, N, D], none of them zero, found {values.shape}")
    n_frames, n_columns, components = values.shape
    w = np.full(n_columns, 1.0 / n_columns) if weights is None else np.asarray(weights, dtype=float)
    if w.shape != (n_columns,):
        raise DataError(f"expected one weight for each of {n_columns} columns, found {w.shape}")
    total = np.zeros(n_frames)
    width = max(1, CHUNK // (n_frames * components))
    for start in range(0, n_columns, width):
        part = slice(start, start + width)
        total += autocorrelation(values[:, part]).sum(axis=2) @ w[part]
    return total
