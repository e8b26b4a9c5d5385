"""Truncated proposals: the prior confined to a region, by rejection and by chains, against each other and against integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.inference.priors import normal_log_prob
from simkit.inference.region import LogDensity, Region, highest_density


def mixture(centers: list[list[float]], sds: list[float], weights: list[float]) -> tuple[LogDensity, Tensor]:
    """A normal mixture in z, and 2000 draws from it."""
    dim = len(centers[0])

    def density(z: Tensor) -> Tensor:
        logs = [
            math.log(w) + normal_log_prob((z - torch.tensor(c, dtype=torch.float64)) / s) - dim * math.log(s)
            for c, s, w in zip(centers, sds, weights, strict=True)
        ]
        return torch.logsumexp(torch.stack(logs), 0)

    generator = torch.Generator().manual_seed(0)
    draws = [
        torch.tensor(c, dtype=torch.float64)
        + s * torch.randn(round(2000 * w), dim, generator=generator, dtype=torch.float64)
        for c, s, w in zip(centers, sds, weights, strict=True)
    ]
    return density, torch.cat(draws)


def test_threshold_keeps_its_share() -> None:
    density, _ = mixture([[0.5, 0.0]], [0.2], [1.0])
    generator = torch.Generator().manual_seed(1)
    samples = torch.tensor([0.5, 0.0]) + 0.2 * torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    for epsilon in (0.1, 0.01):
        threshold = highest_density(density, samples, epsilon)
        # |z - c|^2 / s^2 follows chi-squared of two degrees of freedom.
        exact = float(density(torch.tensor([[0.5, 0.0]], dtype=torch.float64))) - 0.5 * scipy.stats.chi2(2).isf(epsilon)
        # log q below its mode is exponential: the error of a quantile is sqrt(e (1 - e) / N) over the density e.
        assert abs(threshold - exact) < 5 * math.sqrt((1 - epsilon) / (epsilon * 20_000))


def test_rejection_follows_the_truncated_prior() -> None:
    starts = torch.tensor([[0.8, 0.0], [2.0, 1.0]], dtype=torch.float64)
    region = Region([lambda z: z[:, 0], lambda z: -z[:, 0]], [0.5, -2.5], starts)
    z = region.sample(5000, 3)
    assert z.shape == (5000, 2)
    assert bool(region.contains(z).all())
    assert scipy.stats.kstest(z[:, 0], scipy.stats.truncnorm(0.5, 2.5).cdf).pvalue > 1e-4
    assert scipy.stats.kstest(z[:, 1], scipy.stats.norm.cdf).pvalue > 1e-4
    assert torch.equal(region.sample(5000, 3), z)
    assert not torch.equal(region.sample(5000, 4), z)


@pytest.mark.parametrize(("dim", "sd"), [(2, 0.03), (5, 0.15)])
def test_chains_follow_the_truncated_prior(dim: int, sd: float) -> None:
    center = [0.6] * dim
    density, samples = mixture([center], [sd], [1.0])
    region = Region([density], [highest_density(density, samples, 1e-3)], samples)
    z = region.sample(4000, 5)
    assert bool(region.contains(z).all())
    # The region is a ball, in which points drawn evenly are weighted by the prior.
    at = torch.tensor([center], dtype=torch.float64)
    radius = sd * math.sqrt(2 * (float(density(at)) - region.thresholds[0]))
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(200_000, dim, generator=generator, dtype=torch.float64)
    shell = torch.rand(200_000, 1, generator=generator, dtype=torch.float64) ** (1 / dim)
    ball = at + radius * shell * normal / normal.norm(dim=1, keepdim=True)
    assert bool(region.contains(ball).all())
    weights = torch.softmax(normal_log_prob(ball), 0)
    mean = weights @ ball
    spread = (weights @ (ball - mean).square()).sqrt()
    # Chains that start at the same sample, and those that follow the same path, are not independent: a quarter count.
    assert ((z.mean(0) - mean).abs() / spread).max() < 5 / math.sqrt(1000)
    assert (z.std(0) / spread - 1).abs().max() < 5 / math.sqrt(2000)
    inner = ((z - at).norm(dim=1) / radius) ** dim
    exact = float(weights @ ((ball - at).norm(dim=1) / radius) ** dim)
    assert abs(float(inner.mean()) - exact) < 5 / math.sqrt(12 * 1000)


def test_chains_weigh_separate_parts_as_the_prior_does() -> None:
    """Two modes of the same posterior mass, one of nine times the area: of the prior it has most."""
    density, samples = mixture([[1.0, 0.5], [-1.0, -0.5]], [0.03, 0.01], [0.5, 0.5])
    region = Region([density], [highest_density(density, samples, 1e-3)], samples)
    z = region.sample(4000, 7)
    trial = torch.from_numpy(np.random.default_rng(1).standard_normal((1_000_000, 2)))
    near = trial[(trial.abs() - torch.tensor([1.0, 0.5])).abs().max(1).values < 0.2]
    inside = near[region.contains(near)]
    exact = float((inside[:, 0] > 0).double().mean())
    found = float((z[:, 0] > 0).double().mean())
    # Starts are chosen by importance: as good as their effective number.
    weights = torch.softmax(normal_log_prob(samples) - density(samples), 0)
    error = math.sqrt(exact * (1 - exact) * (float(weights.square().sum()) + 1 / len(inside)))
    assert 0.8 < exact < 0.95
    assert abs(found - exact) < 5 * error


def test_chains_agree_with_rejection() -> None:
    """The same region, a twelfth of the prior: by rejection as it is, by chains where rejection finds nothing."""
    density, samples = mixture([[0.8, -0.3]], [0.12], [1.0])
    region = Region([density], [highest_density(density, samples, 1e-3)], samples)
    by_rejection = region.sample(6000, 1)
    weights = torch.softmax(normal_log_prob(samples) - density(samples), 0)
    generator = torch.Generator().manual_seed(3)
    starts = samples[torch.multinomial(weights, 3000, replacement=True, generator=generator)]
    starts = starts[region.contains(starts)]
    by_chains = region._walk(starts, generator)
    assert len(torch.unique(by_chains, dim=0)) > 0.99 * len(by_chains)
    for values in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z.square().sum(1), density):
        a, b = values(by_rejection), values(by_chains)
        error = math.sqrt(float(a.var()) * (1 / 6000 + 4 / len(b)))
        assert abs(float(a.mean() - b.mean())) < 5 * error


def test_rounds_are_nested() -> None:
    wide, draws = mixture([[0.0, 0.0]], [0.5], [1.0])
    narrow, _ = mixture([[0.3, 0.0]], [0.2], [1.0])
    first = Region([wide], [highest_density(wide, draws, 0.01)], draws)
    both = Region([wide, narrow], [first.thresholds[0], -2.0], draws)
    points = torch.from_numpy(np.random.default_rng(3).standard_normal((3000, 2)))
    expected = (wide(points) > first.thresholds[0]) & (narrow(points) > -2.0)
    assert torch.equal(both.contains(points), expected)
    assert bool(both.contains(both.starts).all())
    assert bool(first.contains(both.sample(500, 0)).all())


def test_empty_region_is_refused() -> None:
    density, samples = mixture([[0.0, 0.0]], [0.5], [1.0])
    with pytest.raises(ConfigError, match="holds none of the posterior's samples"):
        Region([density], [100.0], samples)
