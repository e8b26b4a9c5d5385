"""Tempered populations and Hamiltonian Monte Carlo against posteriors and evidences that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simkit.errors import SimkitError
from simkit.inference.priors import LOG_2PI, normal_log_prob
from simkit.inference.tempering import LogLikelihood, _evaluate, _move, _next_temperature, _resample, sample_tempered

DIM, PARTICLES = 3, 2000


def gaussian(mean: Tensor, covariance: Tensor) -> tuple[LogLikelihood, Tensor, Tensor, Tensor]:
    """A likelihood N(mean; z, covariance), with mean, covariance and log evidence of its posterior under the prior N(0, 1).

    Args:
        mean: [M, D]; ``covariance``: [M, D, D].
    """
    precision = torch.linalg.inv(covariance)
    exact_covariance = torch.linalg.inv(precision + torch.eye(mean.shape[1], dtype=torch.float64))
    exact_mean = (exact_covariance @ precision @ mean.unsqueeze(-1)).squeeze(-1)
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros_like(mean), covariance + torch.eye(mean.shape[1], dtype=torch.float64)
    ).log_prob(mean)

    def log_likelihood(z: Tensor) -> Tensor:
        away = z - mean.unsqueeze(1)
        squares = torch.einsum("mni,mij,mnj->mn", away, precision, away)
        logdet = torch.logdet(covariance).unsqueeze(1)
        return -0.5 * (squares + logdet + mean.shape[1] * LOG_2PI)

    return log_likelihood, exact_mean, exact_covariance, evidence


def problems() -> tuple[Tensor, Tensor]:
    """Means and covariances of four likelihoods: wide, narrow, correlated, and far out in the prior's tail."""
    correlated = torch.tensor([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64) * 0.05
    eye = torch.eye(DIM, dtype=torch.float64)
    covariances = torch.stack([4.0 * eye, 1e-6 * eye, correlated, 0.04 * eye])
    means = torch.tensor([[1, 0, -1], [0.5, -0.2, 1], [0.3, 0.3, 0], [4, -3, 0]], dtype=torch.float64)
    return means, covariances


def check_moments(z: Tensor, mean: Tensor, covariance: Tensor, effective: float) -> None:
    """Fail unless mean and covariance of samples [N, D] are within 5 standard errors of the exact ones."""
    sd = covariance.diagonal().sqrt()
    assert ((z.mean(0) - mean).abs() / sd).max() < 5 / math.sqrt(effective)
    ratio = torch.cov(z.T) / torch.outer(sd, sd)
    correlation = covariance / torch.outer(sd, sd)
    errors = torch.sqrt((1 + correlation.square()) / effective)
    assert ((ratio - correlation).abs() / errors).max() < 5


def test_gaussians_with_known_evidence() -> None:
    log_likelihood, mean, covariance, evidence = gaussian(*problems())
    population = sample_tempered(log_likelihood, 4, PARTICLES, DIM, 1)
    assert population.z.shape == (4, PARTICLES, DIM)
    assert population.z.dtype == torch.float64
    for m in range(4):
        # Resampling leaves copies, which moves part: half of the particles count as independent.
        check_moments(population.z[m], mean[m], covariance[m], PARTICLES / 2)
    # Each stage adds var(w)/N <= 1/N to the variance of log Z (its effective size is half), or somewhat more by correlation.
    error = math.sqrt(2 * population.stages / PARTICLES)
    assert ((population.log_evidence - evidence).abs() < 5 * error).all()
    assert 0.5 < population.acceptance < 0.98


def test_seeds() -> None:
    log_likelihood = gaussian(*problems())[0]
    one, same, other = (sample_tempered(log_likelihood, 4, 100, DIM, seed).z for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    state = torch.random.get_rng_state()
    sample_tempered(log_likelihood, 4, 100, DIM, 3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_modes_keep_their_weights() -> None:
    sd, low, high, share = 0.1, -1.0, 2.0, 0.3
    weights = torch.tensor([share, 1 - share], dtype=torch.float64).log()
    centers = torch.tensor([low, high], dtype=torch.float64)

    def log_likelihood(z: Tensor) -> Tensor:
        away = (z - centers) / sd  # [1, N, 2]: one parameter, two modes
        return torch.logsumexp(weights - 0.5 * away.square(), -1)

    # The mass of a mode is its weight times the evidence of its Gaussian, N(center; 0, 1 + sd^2).
    masses = weights - 0.5 * centers.square() / (1 + sd**2)
    expected = float(torch.softmax(masses, 0)[0])
    z = sample_tempered(log_likelihood, 1, 4000, 1, 5).z[0, :, 0]
    found = float((z < 0.5).double().mean())
    # The share is settled while the modes still hang together; a few resamplings later it has wandered by as many binomial errors.
    assert abs(found - expected) < 5 * math.sqrt(3 * expected * (1 - expected) / 4000)
    for center, part in ((low, z[z < 0.5]), (high, z[z > 0.5])):
        exact_sd = sd / math.sqrt(1 + sd**2)
        assert abs(float(part.mean()) - center / (1 + sd**2)) < 5 * exact_sd / math.sqrt(len(part) / 2)
        assert abs(float(part.std()) / exact_sd - 1) < 5 / math.sqrt(len(part))


def test_forbidden_parts() -> None:
    def log_likelihood(z: Tensor) -> Tensor:
        inside = (z[..., 0] > 0) & (z[..., 1].abs() < 0.5)
        value = -0.5 * ((z[..., 0] - 0.5) / 0.2).square()
        return torch.where(inside, value, torch.where(z[..., 1] > 0, -math.inf, math.nan))

    population = sample_tempered(log_likelihood, 2, 4000, 2, 7)
    # Independent coordinates: a Gaussian cut off at 0, and a uniform one under the normal prior.
    grid = torch.linspace(0, 4, 40_001, dtype=torch.float64)
    density = (-0.5 * grid.square() - 0.5 * ((grid - 0.5) / 0.2).square()).exp()
    first = float((grid * density).sum() / density.sum())
    first_sd = math.sqrt(float((grid.square() * density).sum() / density.sum()) - first**2)
    mass = float(torch.trapezoid(density, grid)) / math.sqrt(2 * math.pi)
    share = math.erf(0.5 / math.sqrt(2))
    side = torch.linspace(-0.5, 0.5, 10_001, dtype=torch.float64)
    side_density = (-0.5 * side.square()).exp()
    side_sd = math.sqrt(float((side.square() * side_density).sum() / side_density.sum()))
    for m in range(2):
        z = population.z[m]
        assert bool(((z[:, 0] > 0) & (z[:, 1].abs() < 0.5)).all())
        assert abs(float(z[:, 0].mean()) - first) < 5 * first_sd / math.sqrt(2000)
        assert abs(float(z[:, 0].std()) / first_sd - 1) < 5 / math.sqrt(4000)
        assert abs(float(z[:, 1].mean())) < 5 * side_sd / math.sqrt(2000)
        assert abs(float(z[:, 1].std()) / side_sd - 1) < 5 / math.sqrt(4000)
        # The first stage keeps the allowed ones, a binomial share of the prior's particles.
        error = math.sqrt((1 - share / 2) / (share / 2 * 4000) + 2 * population.stages / 4000)
        assert abs(float(population.log_evidence[m]) - math.log(mass * share)) < 5 * error


def test_impossible_likelihood_is_refused() -> None:
    with pytest.raises(SimkitError, match="not finite for any parameter"):
        sample_tempered(lambda z: z.sum(-1) * math.inf * 0, 1, 100, 2, 0)


def test_hamiltonian_moves_keep_the_target() -> None:
    """Exact draws of p_b, moved many times: their moments, and those of their changes, must be those of a stationary, reversible chain."""
    log_likelihood, *_ = gaussian(*(part[2:3] for part in problems()))
    likelihood_mean, likelihood_covariance = (part[2] for part in problems())
    for beta in (0.3, 1.0):
        precision = beta * torch.linalg.inv(likelihood_covariance)
        covariance = torch.linalg.inv(precision + torch.eye(DIM, dtype=torch.float64))
        mean = covariance @ precision @ likelihood_mean
        generator = torch.Generator().manual_seed(11)
        count = 8000
        normal = torch.randn(1, count, DIM, generator=generator, dtype=torch.float64)
        start = mean + normal @ torch.linalg.cholesky(covariance).T
        z = start
        value, slope = _evaluate(log_likelihood, z)
        rate = torch.tensor([0.9], dtype=torch.float64)  # large: about a fifth are refused, so that acceptance matters
        for _ in range(8):
            z, value, slope, accepted = _move(
                log_likelihood, z, value, slope, torch.tensor([beta], dtype=torch.float64), rate, generator
            )
        assert 0.3 < float(accepted[0]) < 0.99
        torch.testing.assert_close(value, _evaluate(log_likelihood, z)[0])
        torch.testing.assert_close(slope, _evaluate(log_likelihood, z)[1])
        check_moments(z[0], mean, covariance, count)
        # Reversible: the joint distribution of (start, end) is that of (end, start); odd moments of the pair vanish.
        factor = torch.linalg.cholesky(covariance)
        before, after = (torch.linalg.solve_triangular(factor, (s[0] - mean).T, upper=False).T for s in (start, z))
        odd = before.pow(3) * after - before * after.pow(3)
        assert (odd.mean(0).abs() < 5 * odd.std(0) / math.sqrt(count)).all()
        assert ((before * after).mean(0).abs() < 0.5).all(), "eight moves must forget most of the start"


def test_next_temperature_halves_the_effective_size() -> None:
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(3, 5000, generator=generator, dtype=torch.float64) * torch.tensor([[0.01], [3.0], [300.0]])
    value[2, ::4] = -math.inf
    beta = torch.tensor([0.2, 0.2, 0.0], dtype=torch.float64)
    raised = _next_temperature(value, beta)
    assert float(raised[0]) == 1.0
    for m, finite in ((1, 5000), (2, 3750)):
        weights = torch.softmax((raised[m] - beta[m]) * value[m], 0)
        assert float(1 / weights.square().sum()) == pytest.approx(finite / 2, rel=1e-3)


def test_resampling_is_in_proportion() -> None:
    generator = torch.Generator().manual_seed(4)
    logs = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    expected = 50 * torch.softmax(logs, 1)
    total = torch.zeros(2, 50, dtype=torch.float64)
    for _ in range(400):
        rows = _resample(logs, generator)
        counts = torch.zeros(2, 50, dtype=torch.float64).scatter_add_(1, rows, torch.ones(2, 50, dtype=torch.float64))
        assert bool(((counts - expected).abs() < 1 + 1e-9).all()), "systematic: within one of the expected number"
        total += counts
    # The number of copies is one of two neighbouring integers: its variance is a quarter at most.
    assert ((total / 400 - expected).abs() < 5 * 0.5 / math.sqrt(400)).all()


def test_flat_likelihood_gives_the_prior() -> None:
    population = sample_tempered(lambda z: 0.0 * z.sum(-1) + 2.5, 1, PARTICLES, 2, 9)
    assert population.stages == 1
    assert float(population.log_evidence[0]) == pytest.approx(2.5, abs=1e-12)
    check_moments(population.z[0], torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), PARTICLES)
    assert float(normal_log_prob(torch.zeros(2))) == pytest.approx(-LOG_2PI)
