"""Whether a simulation samples its ensemble: tests on the distributions that it leaves behind."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from simkit.errors import DataError

_GROUPS = 16


def two_state_slope(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Slope of ln(p_2(x) / p_1(x)) in x, from samples of the two distributions, and its standard error.

    M. R. Shirts, J. Chem. Theory Comput. 9, 909 (2013), doi:10.1021/ct300688p, section 2: for energies at two temperatures the slope is
    1/(k T_1) - 1/(k T_2), whatever the density of states; for volumes at two pressures and one temperature it is (P_1 - P_2) / kT.
    Estimated by maximum likelihood (equation 14 and appendix), without histograms. The error is that of a jackknife over groups of
    replicas, which need not be told how long samples of one replica are correlated.

    Args:
        first, second: [samples, replicas] each; the replicas are independent, at least 16 of them.

    Raises:
        DataError: if there are too few replicas.
    """
    x1, x2 = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x1.ndim != 2 or x2.ndim != 2 or min(x1.shape[1], x2.shape[1]) < _GROUPS:
        raise DataError(f"expected samples [samples, replicas] of at least 16 replicas; found {x1.shape}, {x2.shape}")
    slopes = []
    for group in range(_GROUPS):
        parts = [np.delete(x, np.s_[group::_GROUPS], axis=1).ravel() for x in (x1, x2)]
        slopes.append(_slope(*parts))
    error = np.sqrt((_GROUPS - 1) * np.var(slopes))
    return _slope(x1.ravel(), x2.ravel()), float(error)


def _slope(x1: NDArray[np.float64], x2: NDArray[np.float64]) -> float:
    """Logistic regression of which distribution a sample comes from, by Newton's method."""
    x = np.concatenate([x1, x2])
    center, width = x.mean(), x.std()
    z = np.stack([np.ones_like(x), (x - center) / width])
    label = np.repeat([0.0, 1.0], [len(x1), len(x2)])
    weights = np.zeros(2)
    for _ in range(100):
        p = expit(weights @ z)
        change = np.linalg.solve((z * (p * (1 - p))) @ z.T, z @ (label - p))
        weights += change
        if np.abs(change).max() < 1e-10:
            break
    return float(weights[1] / width)


def mean_and_error(samples: ArrayLike) -> tuple[float, float]:
    """Mean of samples [samples, replicas], and its standard error from the means of the replicas, which are independent."""
    means = np.asarray(samples, dtype=np.float64).mean(0)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))
