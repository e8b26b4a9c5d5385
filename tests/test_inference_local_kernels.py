"""Local kernels against mixtures written out, and what smoothing with them leaves as it was."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from simkit.inference.local_kernels import RIDGE, LocalKernels, fit_kernels, local_moments
from simkit.inference.priors import Array


def ring(count: int, seed: int) -> Tensor:
    """Points near a circle of radius 1: no covariance tells its width, 0.03."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * math.pi, count), 1 + 0.03 * rng.standard_normal(count)
    return torch.from_numpy(np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]))


def weighted(z: Array, weights: Array) -> tuple[Array, Array]:
    mean = weights @ z / weights.sum()
    return mean, (z - mean).T * weights @ (z - mean) / weights.sum()


def test_density_is_the_mixture() -> None:
    rng = np.random.default_rng(1)
    centers, weights = rng.standard_normal((7, 3)), rng.dirichlet(np.ones(7))
    factors = np.tril(rng.standard_normal((7, 3, 3)) * 0.3) + 0.8 * np.eye(3)
    kernels = LocalKernels(*(torch.from_numpy(values) for values in (centers, factors, weights)))
    points = rng.standard_normal((11, 3))
    exact = sum(
        w * scipy.stats.multivariate_normal(c, f @ f.T).pdf(points)
        for c, f, w in zip(centers, factors, weights, strict=True)
    )
    np.testing.assert_allclose(kernels.log_density(torch.from_numpy(points)).numpy(), np.log(exact), rtol=1e-10)
    drawn = kernels.sample(40_000, torch.Generator().manual_seed(2)).numpy()
    mean = weights @ centers
    covariance = sum(
        w * (f @ f.T + np.outer(c - mean, c - mean)) for c, f, w in zip(centers, factors, weights, strict=True)
    )
    assert (np.abs(drawn.mean(0) - mean) / np.sqrt(np.diag(covariance)) < 5 / math.sqrt(40_000)).all()
    # Errors of covariances of 40,000 draws, whose tails are a little heavier than normal.
    assert np.abs(np.cov(drawn.T) - covariance).max() < 5 * 1.5 * math.sqrt(2 / 40_000) * np.diag(covariance).max()


def test_moments_of_the_neighbours() -> None:
    rng = np.random.default_rng(3)
    z, weights = rng.standard_normal((60, 2)) * [1.0, 20.0], rng.uniform(0.1, 1, 60)
    means, factors = local_moments(torch.from_numpy(z), torch.from_numpy(weights), 0.15)
    for i in range(60):
        near = np.argsort(np.linalg.norm((z - z[i]) / z.std(0, ddof=1), axis=1))[:9]
        mean, covariance = weighted(z[near], weights[near])
        np.testing.assert_allclose(means[i], mean, rtol=1e-10)
        np.testing.assert_allclose(
            factors[i] @ factors[i].T, covariance + RIDGE * np.diag(np.diag(covariance)), rtol=1e-6
        )


def test_few_neighbours_are_more_than_parameters() -> None:
    z = torch.from_numpy(np.random.default_rng(3).standard_normal((50, 4)))
    _, factors = local_moments(z, torch.ones(50, dtype=torch.float64), 1e-3)
    assert bool(factors.isfinite().all())
    assert float(factors.diagonal(dim1=1, dim2=2).min()) > 0.01
    line = torch.cat([z, z[:, :1]], 1)
    assert bool(local_moments(line, torch.ones(50, dtype=torch.float64), 1.0)[1].isfinite().all())


def test_smoothing_leaves_the_covariance() -> None:
    rng = np.random.default_rng(5)
    z, weights = (
        rng.standard_normal((400, 3)) @ np.array([[1, 0, 0], [0.9, 0.2, 0], [0, 3, 5.0]]),
        rng.uniform(0.1, 1, 400),
    )
    weights /= weights.sum()
    kernels = fit_kernels(torch.from_numpy(z), torch.from_numpy(weights), shrink=True)
    mean, covariance = weighted(z, weights)
    centre, between = weighted(kernels.centers.numpy(), weights)
    within = np.einsum("n,nij,nkj->ik", weights, kernels.factors.numpy(), kernels.factors.numpy())
    np.testing.assert_allclose(centre, mean, atol=0.02 * np.sqrt(np.diag(covariance)).max())
    np.testing.assert_allclose(between + within, covariance, atol=0.03 * np.diag(covariance).max())
    assert np.trace(within) > 0.02 * np.trace(covariance)


def test_smoothing_follows_a_curve() -> None:
    z = ring(500, 1)
    kernels = fit_kernels(z, torch.full((500,), 1 / 500, dtype=torch.float64), shrink=True)
    drawn = kernels.sample(4000, torch.Generator().manual_seed(3))
    assert abs(float(drawn.norm(dim=1).std()) / 0.03 - 1) < 0.3
    assert len(torch.unique(drawn, dim=0)) == 4000
    # No quarter is left out.
    shares = torch.histc(torch.atan2(drawn[:, 1], drawn[:, 0]), 4, -math.pi, math.pi) / 4000
    assert float((shares - 0.25).abs().max()) < 5 * math.sqrt(0.25 * 0.75 * (1 / 500 + 1 / 4000))
    # New points are likelier by far than with one covariance for all kernels, of Silverman's width.
    whole = torch.linalg.cholesky(torch.cov(z.T)).expand(500, 2, 2) * 500 ** (-1 / 6)
    plain = LocalKernels(z, whole, torch.full((500,), 1 / 500, dtype=torch.float64))
    new = ring(1000, 2)
    assert float((kernels.log_density(new) - plain.log_density(new)).mean()) > 0.5


def test_smoothing_keeps_parts_apart() -> None:
    rng = np.random.default_rng(2)
    z = torch.from_numpy(np.concatenate([rng.normal(-1, 0.01, (300, 1)), rng.normal(1, 0.05, (100, 1))]))
    drawn = fit_kernels(z, torch.full((400,), 1 / 400, dtype=torch.float64), shrink=True).sample(
        4000, torch.Generator().manual_seed(3)
    )
    assert float((drawn.abs() < 0.5).double().mean()) < 0.005
    assert abs(float((drawn < 0).double().mean()) - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 4000)
    assert abs(float(drawn[drawn < 0].std()) / 0.01 - 1) < 0.15


def test_bandwidth_suits_the_dimension() -> None:
    """Held-out points are about as likely as with the best covariance of all kernels, which is known for a normal density."""
    for dim in (1, 6):
        rng = np.random.default_rng(dim)
        z, new = (torch.from_numpy(rng.standard_normal((n, dim))) for n in (250, 4000))
        weights = torch.full((250,), 1 / 250, dtype=torch.float64)
        best = max(
            float(LocalKernels(z, h * torch.eye(dim).double().expand(250, dim, dim), weights).log_density(new).mean())
            for h in np.linspace(0.1, 1.5, 29)
        )
        for shrink in (False, True):
            kernels = fit_kernels(z, weights, shrink=shrink)
            assert float(kernels.log_density(new).mean()) > best - 0.1
