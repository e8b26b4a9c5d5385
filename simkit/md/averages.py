"""Averages of correlated series with honest error bars: blocking, and the integrated autocorrelation time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import DataError
from simkit.md.correlation import autocorrelation

Floats = NDArray[np.float64]

SHORTEST = 4
"""Values that a series must have at least."""


@dataclass(frozen=True)
class BlockAverage:
    """The mean of a series and its standard error, and how the error depends on the length of the blocks.

    Attributes:
        mean: in the unit of the series; error: standard error of the mean, at the chosen length.
        error_uncertainty: standard deviation of ``error`` itself.
        block: the chosen length, in values of the series; converged: whether the errors reach a plateau there. If not, the series is too
            short for an error bar, and ``error`` (the largest found) is a lower bound.
        blocks: [L] all lengths 1, 2, 4, ...; errors: [L] standard error for each; uncertainties: [L] of those.
    """

    mean: float
    error: float
    error_uncertainty: float
    block: int
    converged: bool
    blocks: NDArray[np.int64]
    errors: Floats
    uncertainties: Floats


def block_average(series: ArrayLike) -> BlockAverage:
    """Average a stationary, correlated series and find the standard error of its mean by blocking.

    Neighbors are averaged again and again; the naive error sqrt(c0 / (n - 1)) of the n block means rises until the blocks are longer
    than the correlation, and its own relative uncertainty is 1 / sqrt(2 (n - 1)) (Flyvbjerg & Petersen, J. Chem. Phys. 91, 461
    (1989)). The length is the smallest B with B^3 > 2 T (error(B) / error(1))^4, which balances the bias of short blocks and the
    noise of few (Wolff, Comput. Phys. Commun. 156, 143 (2004); Lee et al., Phys. Rev. E 83, 066706 (2011)).

    Args:
        series: [T], 4 values at least; the equilibration has to be cut off before.

    Raises:
        DataError: if it is shorter, of another shape or not finite.
    """
    values = _checked(series)
    mean = float(values.mean())
    current = values - mean
    lengths: list[int] = []
    errors: list[float] = []
    uncertainties: list[float] = []
    while len(current) >= 2:
        n = len(current)
        error = float(np.sqrt(current.var() / (n - 1)))
        lengths.append(2 ** len(lengths))
        errors.append(error)
        uncertainties.append(error / float(np.sqrt(2 * (n - 1))))
        current = current[: n - n % 2].reshape(-1, 2).mean(axis=1)
    blocks, found, own = np.array(lengths), np.array(errors), np.array(uncertainties)
    inefficiency = (found / found[0]) ** 2 if found[0] > 0 else np.ones(len(found))
    long_enough = np.flatnonzero(blocks.astype(float) ** 3 > 2 * len(values) * inefficiency**2)
    # Fewer than four blocks say nothing, however the criterion turns out.
    converged = bool(len(long_enough)) and len(values) // int(blocks[long_enough[0]]) >= 4
    chosen = int(long_enough[0]) if converged else int(found.argmax())
    return BlockAverage(
        mean=mean,
        error=float(found[chosen]),
        error_uncertainty=float(own[chosen]),
        block=int(blocks[chosen]),
        converged=converged,
        blocks=blocks,
        errors=found,
        uncertainties=own,
    )


@dataclass(frozen=True)
class CorrelationTime:
    """The integrated autocorrelation time of a series.

    Attributes:
        time: in steps of the series; 0.5 for independent values; error: its standard error.
        window: lags that were added up.
        independent: T / (2 time), the number of independent values that the mean is worth.
    """

    time: float
    error: float
    window: int
    independent: float


def correlation_time(series: ArrayLike, factor: float = 5.0) -> CorrelationTime:
    """Return the integrated autocorrelation time 1/2 + sum over k of rho(k), which gives the error of the mean as sqrt(2 time var / T).

    The sum ends at the first lag M >= factor * time(M) (Sokal, in Functional Integration, ed. DeWitt-Morette et al., Springer
    1997). The error is that of Madras & Sokal, J. Stat. Phys. 50, 109 (1988); the bias of short series is taken off (Wolff, Comput. Phys.
    Commun. 156, 143 (2004)).

    Args:
        series: [T], 4 values at least; factor: window over time; 4 to 10 are usual.

    Raises:
        DataError: as `block_average`, and for a constant series, which has no correlation.
    """
    values = _checked(series)
    n = len(values)
    centred = values - values.mean()
    covariance = autocorrelation(centred)
    if not covariance[0] > 0:
        raise DataError("the series is constant: it has no autocorrelation time")
    ratio = covariance / covariance[0]
    times = np.maximum(np.cumsum(ratio) - 0.5, 0.5)
    stops = np.flatnonzero(np.arange(n) >= factor * times)
    window = int(stops[0]) if len(stops) else n - 1
    # The mean of the series itself instead of the true one makes every product too small by var(mean): Wolff's correction.
    time = float(times[window]) * (1 + (2 * window + 1) / n)
    return CorrelationTime(time, time * float(np.sqrt(2 * (2 * window + 1) / n)), window, n / (2 * time))


def _checked(series: ArrayLike) -> Floats:
    values = np.asarray(series, dtype=float)
    if values.ndim != 1 or len(values) < SHORTEST:
        raise DataError(f"expected a series of {SHORTEST} values at least, found shape {values.shape}")
    if not np.isfinite(values).all():
        raise DataError("the series holds values that are not finite; cut them off before averaging")
    return values
