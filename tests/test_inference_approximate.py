"""Approximate Bayesian computation against posteriors that are known, tolerances included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from exact_posterior import MAP, NOISE, PRIOR, GaussianPosterior, LinearSimulator, normal_parameters

from simkit.errors import DataError
from simkit.inference.approximate import (
    PopulationOptions,
    PopulationPosterior,
    RejectionPosterior,
    population_monte_carlo,
)
from simkit.inference.features import Features
from simkit.inference.priors import Array, IndependentPrior, Normal
from simkit.inference.simulations import Simulations, run_block, simulate
from simkit.inference.simulator import Observable, Seeds, Simulator, simulation_seeds

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


class Shifted(Simulator):
    """x = z + noise of half the prior's deviation; a share of the simulations fails."""

    name, prior, observables = "shifted", IndependentPrior({"z": Normal(0, 1)}), (Observable("x"),)

    def __init__(self, failing: float = 0.0) -> None:
        self.failing = failing

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        rng = np.random.default_rng(int(seeds[0]))
        x = theta + 0.5 * rng.standard_normal(theta.shape)
        x[rng.random(len(x)) < self.failing] = np.nan
        return x


class Runner:
    """Runs and keeps simulations."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.done = Simulations(np.empty((0, 1)), np.empty((0, 1)), np.empty(0))

    def __call__(self, theta: Array) -> Simulations:
        new = run_block(self.simulator, theta, simulation_seeds(1, len(self.done), len(theta)))
        self.done = self.done.join(new)
        return new


@pytest.mark.parametrize("budget", [1500, 6000, 20_000])
def test_population_has_the_posterior_of_its_tolerance(budget: int) -> None:
    simulator, size, observed = Shifted(), 500, 1.2
    run = Runner(simulator)
    posterior = population_monte_carlo(
        simulator, run, np.array([observed]), budget, PopulationOptions(size), 3, run.done
    )
    assert len(run.done) == budget
    features = Features(simulator.observables)
    features.adapt(run.done.x[: 2 * size])
    reach = posterior.distance * float(features.scale)
    assert 0.02 < reach < 1.5
    # p(z given |x - x_o| <= reach), by quadrature.
    at = np.linspace(-6, 6, 6001)
    inside = scipy.stats.norm.cdf((observed + reach - at) / 0.5) - scipy.stats.norm.cdf((observed - reach - at) / 0.5)
    exact = scipy.stats.norm.pdf(at) * inside
    exact /= exact.sum()
    mean = exact @ at
    sd = math.sqrt(exact @ (at - mean) ** 2)
    z, weights = posterior.z[:, 0].numpy(), posterior.weights.numpy()
    found = weights @ z
    effective = 1 / (weights**2).sum()
    assert effective > 0.4 * size
    assert abs(found - mean) < 5 * sd / math.sqrt(effective)
    assert abs(math.sqrt(weights @ (z - found) ** 2) / sd - 1) < 5 / math.sqrt(2 * effective)
    samples = posterior.sample(4000, seed=1)[:, 0]
    assert abs(samples.mean() - found) < 5 * sd / math.sqrt(4000)
    # Smoothing adds the variance of the kernel and nothing else.
    kernel = float(posterior._bandwidth()) ** 2
    assert abs(samples.var() / (weights @ (z - found) ** 2 + kernel) - 1) < 5 * math.sqrt(2 / 4000)
    assert kernel < 0.1 * sd**2


def test_population_of_fewer_than_wanted() -> None:
    """Three in ten succeed: the first generation is smaller than asked for, but holds no failed simulation."""
    simulator = Shifted(failing=0.7)
    run = Runner(simulator)
    posterior = population_monte_carlo(simulator, run, np.array([0.5]), 400, PopulationOptions(200), 3, run.done)
    valid = int(run.done.valid.sum())
    assert 100 <= valid < 200
    assert len(posterior.z) == valid
    assert math.isfinite(posterior.distance)
    fragile = Shifted(failing=0.9)
    run = Runner(fragile)
    with pytest.raises(DataError, match="needs most of them to succeed"):
        population_monte_carlo(fragile, run, np.array([0.5]), 400, PopulationOptions(200), 3, run.done)


def test_weights_are_normalised_and_described() -> None:
    z = torch.from_numpy(np.random.default_rng(1).standard_normal((50, 2)))
    weights = torch.linspace(1, 5, 50, dtype=torch.float64)
    posterior = PopulationPosterior(PRIOR, LinearSimulator.observables, OBSERVED, z, weights, 0.3)
    assert float(posterior.weights.sum()) == pytest.approx(1.0)
    effective = float(weights.sum() ** 2 / weights.square().sum())
    assert posterior.describe() == {
        "method": "smc_abc",
        "amortised": False,
        "distance": 0.3,
        "effective_samples": round(effective, 1),
    }
    with pytest.raises(DataError, match="samples, not densities"):
        posterior.log_prob(np.zeros((1, 2)))
