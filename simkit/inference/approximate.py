"""Approximate Bayesian computation: parameters whose simulations look like the observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simkit.errors import DataError
from simkit.inference.features import Features
from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array, Prior, normal_log_prob
from simkit.inference.simulations import Simulations
from simkit.inference.simulator import Observable, Simulator

Simulate = Callable[[Array], Simulations]


class RejectionPosterior(Posterior):
    """Rejection ABC with local linear regression: the simulations nearest to the observation, moved to where their outputs would agree.

    Pritchard et al., Mol. Biol. Evol. 16, 1791 (1999); Beaumont, Zhang & Balding, Genetics 162, 2025 (2002), with their Epanechnikov
    kernel. Distances are those of standardised outputs; the regression is in standard normal parameters.

    Args:
        z: parameters of simulations drawn from the prior, in standard normal variables, [N, D].
        seen: their features, [N, K].
        kept: how many of them are.
        adjust: whether to regress.
    """

    method = "rejection_abc"
    FEWEST = 100

    def __init__(
        self,
        prior: Prior,
        observables: Sequence[Observable],
        features: Features,
        z: Tensor,
        seen: Tensor,
        kept: int,
        *,
        adjust: bool = True,
    ) -> None:
        self.prior, self.observables, self.amortised = prior, tuple(observables), True
        self.features, self.z, self.seen, self.kept, self.adjust = features, z, seen, kept, adjust

    @classmethod
    def from_simulations(
        cls, simulator: Simulator, simulations: Simulations, *, keep: float = 0.01, adjust: bool = True
    ) -> RejectionPosterior:
        """Make the posterior from simulations of the prior; failed ones are left out.

        Args:
            keep: share of them that is kept, at least `FEWEST`.

        Raises:
            DataError: if fewer than `FEWEST` gave finite outputs.
        """
        valid = simulations.select(simulations.valid)
        if len(valid) < cls.FEWEST:
            raise DataError(
                f"rejection needs at least {cls.FEWEST} simulations with finite outputs; found {len(valid)}"
            )
        features = Features(simulator.observables)
        features.adapt(valid.x)
        z, seen = simulator.prior.to_normal(torch.from_numpy(valid.theta)), features(torch.from_numpy(valid.x))
        kept = max(cls.FEWEST, round(keep * len(valid)))
        return cls(simulator.prior, simulator.observables, features, z, seen, kept, adjust=adjust)

    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        target = self.features(torch.from_numpy(self.resolve(observation)))
        distance = (self.seen - target).norm(dim=-1)
        near = torch.topk(distance, min(self.kept, len(distance)), largest=False)
        width = near.values[-1].clamp(min=1e-12)
        weights = (1 - (near.values / width).square()).clamp(min=1e-6).double()
        z = self.z[near.indices]
        if self.adjust:
            z = self._regress(z, (self.seen[near.indices] - target).double(), weights)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.multinomial(weights, count, replacement=True, generator=generator)
        return self.prior.from_normal(z[rows]).numpy()

    @staticmethod
    def _regress(z: Tensor, away: Tensor, weights: Tensor) -> Tensor:
        """Return z - B (s - s_o), with B from weighted least squares; lightly ridged, because summaries may depend on each other."""
        design = torch.cat([torch.ones(len(away), 1, dtype=away.dtype), away], 1)
        weighted = design * weights.unsqueeze(1)
        ridge = 1e-3 * weights.sum() * torch.eye(design.shape[1], dtype=away.dtype)
        ridge[0, 0] = 0
        slopes = torch.linalg.solve(design.T @ weighted + ridge, weighted.T @ z)
        return z - away @ slopes[1:]


class PopulationPosterior(Posterior):
    """Samples given one observation, each of some weight.

    Args:
        z: samples in standard normal parameters, [N, D].
        weights: [N], positive.
        distance: tolerance that they fulfil.
    """

    method = "smc_abc"
    amortised = False

    def __init__(
        self,
        prior: Prior,
        observables: Sequence[Observable],
        reference: Array | None,
        z: Tensor,
        weights: Tensor,
        distance: float,
    ) -> None:
        self.prior, self.observables, self.reference = prior, tuple(observables), reference
        self.z, self.weights, self.distance = z, weights / weights.sum(), distance

    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        self.resolve(observation)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.z.shape[1], generator=generator, dtype=self.z.dtype)
        return self.prior.from_normal(self.z[rows] + noise @ self._bandwidth().T).numpy()

    def _bandwidth(self) -> Tensor:
        """Cholesky factor of the kernel that smooths the samples: half of Silverman's rule, which is for a normal density."""
        dim, effective = self.z.shape[1], float(1 / self.weights.square().sum())
        silverman = (4 / ((dim + 2) * effective)) ** (1 / (dim + 4))
        return 0.5 * silverman / math.sqrt(2) * _kernel(self.z, self.weights)

    def describe(self) -> dict[str, Any]:
        effective = float(1 / self.weights.square().sum())
        return super().describe() | {"distance": self.distance, "effective_samples": round(effective, 1)}


@dataclass(frozen=True)
class PopulationOptions:
    """How the population of SMC ABC is made: its size, and the quantile of distances that becomes the next tolerance."""

    particles: int
    quantile: float = 0.5


def population_monte_carlo(
    simulator: Simulator,
    run: Simulate,
    observation: Array,
    budget: int,
    options: PopulationOptions,
    seed: int,
    earlier: Simulations,
) -> PopulationPosterior:
    """Sequential Monte Carlo ABC: tolerances fall, and each generation is drawn around the one before.

    Toni et al., J. R. Soc. Interface 6, 187 (2009); Beaumont et al., Biometrika 96, 983 (2009), whose normal kernel of twice the weighted
    covariance is used, in standard normal parameters.

    Args:
        run: simulates parameters [N, D].
        budget: simulations in all; the last generation that could be completed within it is returned.
        earlier: some drawn from the prior, which the first generation starts from; they count towards the budget.

    Raises:
        DataError: if too few simulations of the first generation gave finite outputs.
    """
    rng = torch.Generator().manual_seed(seed)
    prior, size = simulator.prior, options.particles
    new = torch.randn(max(0, 2 * size - len(earlier)), prior.dim, generator=rng, dtype=torch.float64)
    first = earlier.join(run(prior.from_normal(new).numpy())) if len(new) else earlier
    used, valid = len(first), first.select(first.valid)
    if len(valid) < size // 2:
        raise DataError(
            f"{first.failures} of the first {len(first)} simulations failed; SMC ABC needs most of them to succeed"
        )
    features = Features(simulator.observables)
    features.adapt(valid.x)
    target = features(torch.from_numpy(observation))

    def distances(done: Simulations) -> Tensor:
        values = (features(torch.from_numpy(done.x)) - target).norm(dim=-1)
        return torch.where(torch.from_numpy(done.valid), values, math.inf)

    z, distance = prior.to_normal(torch.from_numpy(first.theta)), distances(first)
    near = torch.topk(distance, min(size, len(valid)), largest=False)
    z, distance, tolerance = z[near.indices], near.values, float(near.values[-1])
    weights = torch.full((len(z),), 1 / len(z), dtype=torch.float64)
    while True:
        wanted = float(torch.quantile(distance, options.quantile))
        factor = _kernel(z, weights)
        found_z, found_d = [], []
        count, share = 0, options.quantile / 2
        while count < size and used < budget:
            trials = min(budget - used, max(32, math.ceil((size - count) / max(share, 0.01) * 1.1)), 20 * size)
            rows = torch.multinomial(weights, trials, replacement=True, generator=rng)
            proposal = z[rows] + torch.randn(trials, prior.dim, generator=rng, dtype=torch.float64) @ factor.T
            done = run(prior.from_normal(proposal).numpy())
            used += trials
            away = distances(done)
            hits = away <= wanted
            found_z.append(proposal[hits])
            found_d.append(away[hits])
            count += int(hits.sum())
            share = max(int(hits.sum()) / trials, 1e-3)
        if count < size:
            return PopulationPosterior(prior, simulator.observables, observation, z, weights, tolerance)
        new = torch.cat(found_z)[:size]
        here, there = (torch.linalg.solve_triangular(factor, points.T, upper=False).T for points in (new, z))
        density = torch.logsumexp(weights.log() - 0.5 * torch.cdist(here, there).square(), 1)
        weights = torch.softmax(normal_log_prob(new) - density, 0)
        z, distance, tolerance = new, torch.cat(found_d)[:size], wanted


def _kernel(z: Tensor, weights: Tensor) -> Tensor:
    """Cholesky factor of twice the weighted covariance."""
    centered = z - (weights.unsqueeze(1) * z).sum(0)
    covariance = 2 * (centered.T * weights) @ centered
    return torch.linalg.cholesky(covariance + 1e-10 * torch.eye(z.shape[1], dtype=z.dtype))
