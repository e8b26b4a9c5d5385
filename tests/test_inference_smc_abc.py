"""SMC ABC against the posterior of its tolerance, by quadrature, and against the exact one where regression leads there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from exact_posterior import PRIOR, LinearSimulator

from simkit.errors import DataError
from simkit.inference.features import Features
from simkit.inference.population import PopulationOptions, PopulationPosterior, population_monte_carlo
from simkit.inference.priors import Array, IndependentPrior, Normal
from simkit.inference.simulations import Simulations, run_block, simulation_seeds
from simkit.inference.simulator import Observable, Seeds, Simulator

OBSERVED = 1.2


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
        self.simulator, self.done = simulator, Simulations.none(simulator)

    def __call__(self, theta: Array) -> Simulations:
        new = run_block(self.simulator, theta, simulation_seeds(1, len(self.done), len(theta)))
        self.done = self.done.join(new)
        return new


def population(
    simulator: Simulator, budget: int, options: PopulationOptions, earlier: int = 0, observed: float = OBSERVED
) -> tuple[PopulationPosterior, Simulations]:
    run = Runner(simulator)
    first = run(simulator.prior.sample(earlier, 8)) if earlier else run.done
    return population_monte_carlo(simulator, run, np.array([observed]), budget, options, 3, first), run.done


def assert_moments(posterior: PopulationPosterior, mean: float, sd: float) -> None:
    """Within five standard errors of the effective number."""
    z, weights = posterior.z[:, 0].numpy(), posterior.weights.numpy()
    effective, found = 1 / (weights**2).sum(), weights @ z
    assert abs(found - mean) < 5 * sd / math.sqrt(effective)
    assert abs(math.sqrt(weights @ (z - found) ** 2) / sd - 1) < 5 / math.sqrt(2 * effective)
    # The kernels that are drawn from leave mean and variance as they are, but for what they are smoothed by over neighbours.
    samples = posterior.sample(4000, seed=1)[:, 0]
    assert abs(samples.mean() - found) < 5 * sd / math.sqrt(4000) + 0.02 * sd
    assert abs(samples.std() / sd - 1) < 5 / math.sqrt(2 * effective) + 5 / math.sqrt(8000)


@pytest.mark.parametrize(("budget", "earlier"), [(1500, 0), (6000, 0), (6000, 1300), (20_000, 0)])
def test_population_has_the_posterior_of_its_tolerance(budget: int, earlier: int) -> None:
    simulator, size = Shifted(failing=0.2), 500
    posterior, done = population(simulator, budget, PopulationOptions(size, adjust=False), earlier)
    assert len(done) == budget
    assert len(posterior.z) == size
    features, first = Features(simulator.observables), done.x[: max(size, earlier)]
    features.adapt(first[np.isfinite(first[:, 0])])
    reach = posterior.distance * float(features.scale)
    assert 0.01 < reach < 1.5
    # p(z given x weighted by 1 - (|x - x_o| / reach)^2), by quadrature over both.
    at, near = np.linspace(-6, 6, 3001)[:, None], np.linspace(-1, 1, 401)
    exact = scipy.stats.norm.pdf(at[:, 0]) * (
        scipy.stats.norm.pdf((OBSERVED + reach * near - at) / 0.5) @ (1 - near**2)
    )
    exact /= exact.sum()
    mean = float(exact @ at[:, 0])
    assert float(1 / posterior.weights.square().sum()) > 0.4 * size
    assert_moments(posterior, mean, math.sqrt(exact @ (at[:, 0] - mean) ** 2))


@pytest.mark.parametrize("budget", [1500, 6000])
def test_regression_leads_to_the_exact_posterior(budget: int) -> None:
    """Where all is linear and normal it does, whatever the tolerance."""
    posterior, _ = population(Shifted(), budget, PopulationOptions(500))
    assert_moments(posterior, 0.8 * OBSERVED, math.sqrt(0.2))


def test_weights_undo_what_was_proposed() -> None:
    """Outputs that say nothing: whatever was simulated, the posterior is the prior."""

    class Silent(Shifted):
        def simulate(self, theta: Array, seeds: Seeds) -> Array:
            # Those to the right seem nearer, but the distance of none decides which are kept.
            return np.random.default_rng(int(seeds[0])).uniform(-1, 1, theta.shape)

    posterior, done = population(Silent(), 4000, PopulationOptions(500, adjust=False), observed=0.0)
    assert done.theta.std() < 1.3
    assert_moments(posterior, 0.0, 1.0)


def test_tolerance_falls_with_the_budget_and_large_populations_work() -> None:
    few, _ = population(Shifted(), 2400, PopulationOptions(1200))
    many, done = population(Shifted(), 9600, PopulationOptions(1200))  # more centers than kernels
    assert many.distance < 0.5 * few.distance
    assert (np.abs(done.x[6000:] - OBSERVED) < 0.5).mean() > 1.5 * (np.abs(done.x[:1200] - OBSERVED) < 0.5).mean()
    assert_moments(many, 0.8 * OBSERVED, math.sqrt(0.2))


def test_population_of_fewer_than_wanted() -> None:
    """Seven in ten fail: the first generation is smaller than asked for, but holds no failed simulation."""
    posterior, done = population(Shifted(failing=0.7), 400, PopulationOptions(200))
    valid = int(done.valid.sum())
    assert 100 <= valid < 200
    assert len(posterior.z) == valid
    assert math.isfinite(posterior.distance)
    with pytest.raises(DataError, match="needs most of them to succeed"):
        population(Shifted(failing=0.9), 400, PopulationOptions(200))


def test_weights_are_normalised_and_described() -> None:
    z = torch.from_numpy(np.random.default_rng(1).standard_normal((50, 2)))
    weights = torch.linspace(1, 5, 50, dtype=torch.float64)
    posterior = PopulationPosterior(PRIOR, LinearSimulator.observables, np.zeros(4), z, weights, 0.3)
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
