"""Truncated proposals: by rejection, within ellipsoids and by chains, against each other and against integrals."""

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
@pytest.mark.parametrize("by", ["ellipsoid", "chains"])
def test_narrow_regions_follow_the_truncated_prior(by: str, dim: int, sd: float) -> None:
    center = [0.6] * dim
    density, samples = mixture([center], [sd], [1.0])
    region = Region([density], [highest_density(density, samples, 1e-3)], samples)
    z = region.sample(4000, 5) if by == "ellipsoid" else region._chains(4000, torch.Generator().manual_seed(5))
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
    assert region._reject_around(100, torch.Generator().manual_seed(7)) is None
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


@pytest.mark.parametrize(("center", "sd"), [([0.8, -0.3, 0.5], 0.25), ([0.2, 0.0, -0.4], 0.4), ([2.0, 0.0, 0.0], 0.3)])
def test_ellipsoid_agrees_with_rejection(center: list[float], sd: float) -> None:
    """Where the prior varies much within the region, and its ellipsoid holds the prior's mean or not."""
    density, samples = mixture([center, [c + 2 * sd for c in center]], [sd, 0.6 * sd], [0.7, 0.3])
    region = Region([density], [highest_density(density, samples, 1e-2)], samples)
    generator = torch.Generator().manual_seed(8)
    trial = torch.randn(400_000, 3, generator=generator, dtype=torch.float64)
    plain, found = trial[region.contains(trial)], region._reject_around(6000, generator)
    assert found is not None
    assert len(found) == 6000
    assert len(plain) > 3000
    for values in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z[:, 2], lambda z: z.square().sum(1), density):
        assert scipy.stats.ks_2samp(values(plain).numpy(), values(found).numpy()).pvalue > 1e-3


def test_a_region_of_next_to_none_of_the_prior() -> None:
    """A hundred-millionth of it, that is as narrow as it is long: each draw is its own, and the law is that of a ball."""
    directions = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    scale = directions * torch.logspace(-3, -0.7, 8, dtype=torch.float64)
    center = torch.full((8,), 0.4, dtype=torch.float64)
    inverse = torch.linalg.inv(scale)

    def density(z: Tensor) -> Tensor:
        return normal_log_prob((z - center) @ inverse.T)

    y = torch.randn(2000, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    samples = center + y @ scale.T
    region = Region([density], [highest_density(density, samples, 1e-3)], samples)
    z = region.sample(4000, 1)
    assert len(torch.unique(z, dim=0)) == 4000
    reach = math.sqrt(-2 * region.thresholds[0] - 8 * math.log(2 * math.pi))
    volume = math.pi**4 / 24 * reach**8 * float(torch.linalg.det(scale).abs()) / (2 * math.pi) ** 4
    assert volume < 1e-8
    narrowest = ((z - center) @ inverse.T)[:, :3] / reach
    # Along these the prior is even: a coordinate of a ball of 8 dimensions.
    for column in narrowest.T:
        assert scipy.stats.kstest((column + 1) / 2, scipy.stats.beta(4.5, 4.5).cdf).pvalue > 1e-3


def test_ellipsoid_grows_to_hold_the_region() -> None:
    """Starts from the middle of the region alone: what lies around them is found."""
    density, samples = mixture([[0.3, 0.3]], [0.02], [1.0])
    middle = samples[(samples - 0.3).norm(dim=1) < 0.03]
    region = Region([density], [highest_density(density, samples, 1e-3)], middle)
    found = region._reject_around(4000, torch.Generator().manual_seed(3))
    assert found is not None
    reach = 0.02 * math.sqrt(2 * (float(density(torch.tensor([[0.3, 0.3]]).double())) - region.thresholds[0]))
    # Evenly in a disk, as the prior hardly varies within it.
    share = ((found - 0.3).norm(dim=1) / reach) ** 2
    assert scipy.stats.kstest(share, scipy.stats.uniform.cdf).pvalue > 1e-3


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
