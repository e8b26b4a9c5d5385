"""Approximate Bayesian computation against posteriors that are known, tolerances included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact_posterior import MAP, NOISE, GaussianPosterior, LinearSimulator, normal_parameters

from simkit.errors import DataError
from simkit.inference.approximate import RIDGES, RejectionPosterior, regress
from simkit.inference.priors import Array
from simkit.inference.simulations import simulate

OBSERVED = np.array([1.0, -0.5]) @ MAP.T + NOISE * np.array([0.3, 0.1, -0.5, 0.4])


def distance_from_exact(posterior: RejectionPosterior) -> tuple[float, float]:
    """Largest error of the means in deviations, and of the logarithms of the deviations."""
    mean, covariance = GaussianPosterior().moments(OBSERVED)
    sd = np.sqrt(np.diag(covariance))
    z = normal_parameters(posterior.sample(4000, OBSERVED, seed=1))
    return float(np.abs((z.mean(0) - mean) / sd).max()), float(np.abs(np.log(z.std(0) / sd)).max())


def test_rejection_with_regression() -> None:
    simulator = LinearSimulator(failing=0.1)
    done = simulate(simulator, 20_000, seed=2)
    posterior = RejectionPosterior.from_simulations(simulator, done, keep=0.05)
    assert posterior.kept == round(0.05 * (20_000 - done.failures))
    error, width = distance_from_exact(posterior)
    # About 900 weighted neighbours: 5 standard errors; the regression is exact for a linear simulator but for its ridge.
    assert error < 5 / math.sqrt(700)
    assert width < 5 / math.sqrt(2 * 700)
    plain = RejectionPosterior.from_simulations(simulator, done, keep=0.05, adjust=False)
    assert distance_from_exact(plain)[1] > 5 / math.sqrt(2 * 700), "without regression neighbours are too wide"


def test_rejection_keeps_the_nearest() -> None:
    simulator = LinearSimulator()
    done = simulate(simulator, 2000, seed=2)
    posterior = RejectionPosterior.from_simulations(simulator, done, keep=0.06, adjust=False)
    x = (done.x - done.x.mean(0)) / done.x.std(0, ddof=1)
    away = np.linalg.norm(x - (OBSERVED - done.x.mean(0)) / done.x.std(0, ddof=1), axis=1)
    nearest = done.theta[np.argsort(away)[:120]]
    drawn = posterior.sample(3000, OBSERVED, seed=1)
    matches = np.abs(drawn[:, None] - nearest).max(-1) < 1e-9
    assert matches.any(1).all()
    # Epanechnikov: in proportion to 1 - (d / d_max)^2.
    weights = 1 - (np.sort(away)[:120] / np.sort(away)[119]) ** 2
    share = matches.sum(0) / 3000
    expected = weights / weights.sum()
    assert (np.abs(share - expected) < 5 * np.sqrt(expected / 3000) + 1e-3).all()


def test_rejection_needs_neighbours() -> None:
    done = simulate(LinearSimulator(failing=0.8), 300, seed=2)
    with pytest.raises(DataError, match="at least 100 simulations with finite outputs"):
        RejectionPosterior.from_simulations(LinearSimulator(), done)


def test_regression_leaves_what_the_others_would() -> None:
    """Against fits to all simulations but one, for each of them."""
    rng = np.random.default_rng(4)
    away, weights = rng.standard_normal((40, 6)) * [1, 1, 1, 1e-3, 10, 0], rng.uniform(0.1, 1, 40)
    z = away @ rng.standard_normal((6, 2)) + rng.standard_normal((40, 2))
    found = regress(*(torch.from_numpy(values) for values in (z, away, weights))).numpy()
    weights = weights / weights.sum()
    spread = np.sqrt(weights @ (away - weights @ away) ** 2)
    design = np.column_stack([np.ones(40), away / np.where(spread > 0, spread, 1)])
    best, expected = math.inf, z
    for ridge in RIDGES:
        penalty = np.diag([1e-12] + [ridge] * 6)

        def fit(rows: np.ndarray, penalty: Array = penalty) -> Array:
            a, w = design[rows], weights[rows, None]
            return np.linalg.solve(a.T @ (w * a) + penalty, a.T @ (w * z[rows]))

        everything = np.arange(40)
        left = np.array([z[i] - design[i] @ fit(everything[everything != i]) for i in everything])
        error = (weights @ left**2 / (weights @ (z - weights @ z) ** 2)).sum()
        if error < best:
            best, expected = error, fit(everything)[0] + left
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_regression_on_more_features_than_simulations() -> None:
    """A fit explains them all, and knows nothing."""
    rng = np.random.default_rng(5)
    z, away = torch.from_numpy(rng.standard_normal((60, 1))), torch.from_numpy(rng.standard_normal((60, 100)))
    assert torch.equal(regress(z, away, torch.ones(60, dtype=torch.float64)), z)
    # Where there is something to know, what is left is not less than it should be.
    told = z + away[:, :1] * 2
    found = regress(told, away, torch.ones(60, dtype=torch.float64))
    assert 0.8 < float(found.std() / z.std()) < float(told.std() / z.std())


def test_regression_leaves_separate_parts_as_they_are() -> None:
    """Two narrow parts of a posterior, of which the features tell nothing: a chance slope would be wider than the parts."""
    wide = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z = np.where(rng.random((300, 1)) < 0.5, -1, 1) + 0.01 * rng.standard_normal((300, 1))
        away = rng.standard_normal((300, 2))
        found = regress(*(torch.from_numpy(values) for values in (z, away, np.ones(300)))).numpy()
        wide += np.abs(found).std() > 0.012
    assert wide <= 2  # two standard errors are exceeded by chance in a fortieth of all cases
