"""Are ranks uniform? Simultaneous bands for their cumulative distribution, and the p-value that belongs to them.

Säilynoja, Bürkner & Vehtari, "Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and multiple
sample comparison", Statistics and Computing 32, 32 (2022), section 2. The statistic is the least likely point of the empirical
cumulative distribution. Its distribution is computed exactly, not simulated: the counts are those of independent Poisson variables
given their sum, so that the probability of a path between bounds is a chain of convolutions (Moscovich & Nadler, Statistics and
Probability Letters 123, 177 (2017)).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, poisson

from simkit.errors import DataError
from simkit.inference.priors import Array

Ints = NDArray[np.int64]
MOST_CELLS = 100
"""The cumulative distribution is looked at in so many points at most."""


@dataclass(frozen=True)
class RankBand:
    """The cumulative distribution of ranks, and where it should be.

    Attributes:
        points: shares of the possible ranks, [P], from 0 to 1.
        ecdf: share of the ranks below each, [P].
        low, high: the band, [P], which all of the curve stays in with the stated probability.
        p_value: the probability of a curve as unlikely as this one, or more so.
    """

    points: Array
    ecdf: Array
    low: Array
    high: Array
    p_value: float


def rank_band(ranks: Ints, samples: int, level: float) -> RankBand:
    """Test whether ranks are uniform.

    Args:
        ranks: [N], each from 0 to ``samples``.
        samples: L, so that there are L + 1 possible ranks.
        level: the probability with which uniform ranks leave the band, at most.

    Raises:
        DataError: if there are no ranks, or they are out of range.
    """
    if len(ranks) == 0 or ranks.min() < 0 or ranks.max() > samples:
        raise DataError(
            f"expected ranks from 0 to {samples}, at least one; found {len(ranks)}, some of them outside if there are any"
        )
    count = len(ranks)
    edges, tails, inside = _band(count, samples, level)
    points = edges / (samples + 1)
    below = np.searchsorted(np.sort(ranks), edges)
    rarest = tails[np.arange(len(tails)), below[1:-1]].min(initial=np.inf)
    p_value = 1 - _inside(tails > rarest, points) if np.isfinite(rarest) else 1.0
    low = np.concatenate([[0], inside.argmax(axis=1), [count]])
    high = np.concatenate([[0], count - inside[:, ::-1].argmax(axis=1), [count]])
    return RankBand(points, below / count, low / count, high / count, float(np.clip(p_value, 0.0, 1.0)))


@functools.lru_cache(maxsize=4)
def _band(count: int, samples: int, level: float) -> tuple[Ints, Array, NDArray[np.bool_]]:
    """Return the ranks that the cumulative distribution is taken at, [P], and for the inner ones `_tails` and `_narrowest`."""
    cells = min(samples + 1, MOST_CELLS)
    edges = np.arange(cells + 1) * (samples + 1) // cells
    points = edges / (samples + 1)
    tails = _tails(count, points[1:-1])
    return edges, tails, _narrowest(tails, points, level)


def _tails(count: int, points: Array) -> Array:
    """Twice the smaller of P(C <= c) and P(C >= c) for C ~ Binomial(count, point), [P, count + 1]."""
    values = np.arange(count + 1)
    lower = binom.cdf(values, count, points[:, None])
    upper = binom.sf(values - 1, count, points[:, None])
    result: Array = 2 * np.minimum(lower, upper)
    return result


def _narrowest(tails: Array, points: Array, level: float) -> NDArray[np.bool_]:
    """Return which counts lie in the narrowest band that uniform ranks leave with probability ``level`` at most, [P, count + 1]."""
    # log10 of the pointwise level; the band of the lower end is always wide enough.
    low, high = -14.0, 0.0
    for _ in range(40):
        middle = (low + high) / 2
        if 1 - _inside(tails > 10**middle, points) <= level:
            low = middle
        else:
            high = middle
    inside: NDArray[np.bool_] = tails > 10**low
    return inside


def _inside(allowed: NDArray[np.bool_], points: Array) -> float:
    """Return the probability that all counts of uniform ranks below the inner points are among the allowed ones.

    Args:
        allowed: [P - 2, count + 1], a range without gaps in each row.
        points: [P].
    """
    if not allowed.any(axis=1).all():
        return 0.0
    count = allowed.shape[1] - 1
    rates = count * np.diff(points)
    first, weights = 0, np.ones(1)
    for row, rate in zip(allowed, rates, strict=False):
        low, high = int(row.argmax()), count - int(row[::-1].argmax())
        whole = np.convolve(weights, poisson.pmf(np.arange(high - first + 1), rate))
        first, weights = low, whole[low - first : high - first + 1]  # bounds never fall from one point to the next
    last = poisson.pmf(count - first - np.arange(len(weights)), rates[-1])
    return float(weights @ last / poisson.pmf(count, count))
