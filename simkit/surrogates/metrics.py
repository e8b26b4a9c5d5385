"""Errors of predicted motion: arrays in, arrays out. Values that are not finite count as the worst there is; none is left out.

Trajectories are [S, T, ...], found beside true ones at the same times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import DataError

Array = NDArray[np.float64]

FLOOR = 1e-8
"""Added to errors before their logarithm, as in the code of Finzi et al. 2020 (pl_trainer.py)."""


class Spread(TypedDict):
    """Statistics of a quantity over trajectories, or over seeds; None stands for what is not finite."""

    mean: float | None
    median: float | None
    min: float | None
    max: float | None


def spread(values: ArrayLike) -> Spread:
    """Return mean, median and range; infinite values are part of them all."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": finite_or_none(array.mean()),
        "median": finite_or_none(np.median(array)),
        "min": finite_or_none(array.min()),
        "max": finite_or_none(array.max()),
    }


def finite_or_none(value: float) -> float | None:
    """Return a number that JSON has, or None."""
    return float(value) if math.isfinite(value) else None


def relative_error(found: ArrayLike, true: ArrayLike) -> Array:
    """Return |x - x*| / (|x| + |x*|) of states [..., N], from 0 to 1, [...]; 1 where the found state is not finite.

    M. Finzi, K. A. Wang & A. G. Wilson, NeurIPS 2020, section 6. Their code has |x + x*| below the line, which is the same to first
    order in the error.
    """
    x, reference = _pair(found, true)
    alive = np.asarray(np.isfinite(x).all(axis=-1))
    x = np.where(alive[..., None], x, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        error, total = _norm(x - reference), _norm(x) + _norm(reference)
        ratio = np.where(total > 0, error / np.where(total > 0, total, 1.0), 0.0)
    return np.where(alive & np.isfinite(ratio), ratio, 1.0)


def geometric_mean(errors: ArrayLike) -> Array:
    """Return exp(mean log(error + `FLOOR`)) over the last axis, [...]."""
    result: Array = np.exp(np.log(np.asarray(errors, dtype=np.float64) + FLOOR).mean(axis=-1))
    return result


def squared_error(found: ArrayLike, true: ArrayLike) -> Array:
    """Return the mean square of the difference over the components of states [..., N], [...]; infinite where not finite."""
    x, reference = _pair(found, true)
    with np.errstate(over="ignore", invalid="ignore"):
        return _worst(np.square(x - reference).mean(axis=-1))


def energy_mse(found: ArrayLike, true: ArrayLike) -> Array:
    """Return the mean square over time of the difference of energies [S, T], for each trajectory [S].

    S. Greydanus, M. Dzamba & J. Yosinski, NeurIPS 2019: both are the true energy function, along the learned and along the true motion.
    Their notebooks average over 15 initial states, and integrate spring and pendulum to t = 20.
    """
    return squared_error(found, true)


def energy_error(found: ArrayLike, true: ArrayLike, scale: float) -> Array:
    """Return |E - E*| / scale, [S, T]; with the largest potential energy as the scale, that of Cranmer et al. 2020, section 4.

    Raises:
        DataError: if the scale is not positive.
    """
    if not scale > 0:
        raise DataError(f"the scale of energies must be positive; found {scale}")
    x, reference = _pair(found, true)
    with np.errstate(invalid="ignore"):
        return _worst(np.abs(x - reference) / scale)


def energy_drift(times: ArrayLike, found: ArrayLike, true: ArrayLike) -> Array:
    """Return the slope of E - E* in time, by least squares, for each trajectory of energies [S, T], [S]; infinite where not finite.

    Raises:
        DataError: if there are fewer than two times.
    """
    t = np.asarray(times, dtype=np.float64)
    if t.ndim != 1 or len(t) < 2:
        raise DataError(f"a drift needs at least two times; found shape {t.shape}")
    x, reference = _pair(found, true)
    t = t - t.mean()
    with np.errstate(over="ignore", invalid="ignore"):
        return _worst((x - reference) @ t / (t @ t))


def time_to_divergence(times: ArrayLike, errors: ArrayLike, threshold: float) -> Array:
    """Return the time since the first point at which the errors [S, T] first exceed a threshold, [S]; infinite where they never do."""
    t, exceeded = np.asarray(times, dtype=np.float64), ~(np.asarray(errors, dtype=np.float64) <= threshold)
    return np.where(exceeded.any(axis=-1), t[exceeded.argmax(axis=-1)] - t[0], np.inf)


def parameter_error(found: Mapping[str, float], true: Mapping[str, float]) -> float:
    """Return the mean of |found - true| / |true| over the found parameters (Yin et al. 2021, experiments.py).

    Raises:
        DataError: if a parameter has no true value other than zero.
    """
    missing = [name for name in found if not true.get(name)]
    if missing or not found:
        raise DataError(f"parameters need true values other than zero; missing: {', '.join(missing) or 'parameters'}")
    return float(np.mean([abs(value - true[name]) / abs(true[name]) for name, value in found.items()]))


def nearest_angles(found: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    """Return true angles in [-pi, pi), and the found ones plus the multiple of 2 pi that brings them nearest to these."""
    x, reference = _pair(found, true)
    wrapped = _wrap(reference)
    with np.errstate(invalid="ignore"):
        return wrapped + _wrap(x - reference), wrapped


def _wrap(angle: Array) -> Array:
    result: Array = (angle + np.pi) % (2 * np.pi) - np.pi
    return result


def _norm(vectors: Array) -> Array:
    result: Array = np.linalg.norm(vectors, axis=-1)
    return result


def _worst(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.inf)


def _pair(found: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    x, reference = np.asarray(found, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if x.shape != reference.shape or not x.size:
        raise DataError(
            f"found and true values must have one shape and not be empty; found {x.shape} and {reference.shape}"
        )
    if not np.isfinite(reference).all():
        raise DataError("true values must be finite")
    return x, reference
