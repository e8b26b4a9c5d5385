"""Posteriors by neural estimators, and by likelihoods that are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError, DataError
from simkit.inference.direct import DirectEstimator
from simkit.inference.estimator import Estimator
from simkit.inference.filling import draw_until
from simkit.inference.likelihood import LikelihoodEstimator, RatioClassifier
from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array, Prior, normal_log_prob
from simkit.inference.region import Region
from simkit.inference.simulator import Observable, Simulator, Tractable
from simkit.inference.success import SuccessModel
from simkit.inference.tempering import sample_tempered

FEWEST_PARTICLES = 500
"""Of a tempered population: with fewer, its covariance and evidence are too noisy."""
ATTEMPTS = 8
"""Times that samples are drawn until enough of them lie inside a region."""
VALUES, PARTICLES = 400_000, 50_000
"""Samples of posteriors that are drawn at once, and particles that move at once, to bound memory: gradients of a flow take 20 kB each."""


class NeuralPosterior(Posterior):
    """The posterior of an ensemble of estimators: the mean of their densities (for nre, of their logarithms).

    Direct estimators (npe, fmpe) are drawn from. For estimators of a likelihood or ratio (nle, nre) a tempered population is carried
    from the prior to the posterior (`simkit.inference.tempering`).

    Attributes:
        members: the networks, all of one kind.
        success: chance that a simulation succeeds, where some failed and the estimator needs it: given that an observation exists, the
            likelihood is that of success times that of the output. Direct estimators learn this by themselves.
        region: the part of the prior that a truncated proposal was confined to; the posterior is right inside it.
    """

    def __init__(
        self,
        method: str,
        prior: Prior,
        observables: Sequence[Observable],
        members: Sequence[Estimator],
        *,
        reference: Array | None = None,
        amortised: bool = True,
        success: SuccessModel | None = None,
        region: Region | None = None,
    ) -> None:
        if not members or len({type(member) for member in members}) != 1:
            raise ConfigError("an ensemble needs one or more networks of one kind")
        self.method, self.prior, self.observables = method, prior, tuple(observables)
        self.members = list(members)
        self.reference, self.amortised = reference, amortised
        self.success, self.region = success, region

    @property
    def direct(self) -> bool:
        """Whether the networks are drawn from directly."""
        return isinstance(self.members[0], DirectEstimator)

    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        samples = self.sample_many(self.resolve(observation)[None], count, seed=seed)[0]
        if np.isnan(samples).any():
            where, advice = "the bounds of the prior", "look whether the observation is like a simulation"
            if self.region is not None:
                where = "the region that was simulated in its last round"
                advice = "infer with more simulations or fewer rounds"
            raise DataError(f"this {self.method} posterior lies outside {where}: {advice}")
        return samples

    @torch.no_grad()
    def sample_many(self, observations: Array, count: int, *, seed: int = 0) -> Array:
        """Return parameters [M, count, D] given each of M observations [M, K]."""
        x = torch.from_numpy(np.ascontiguousarray(observations, dtype=np.float64))
        together = max(1, VALUES // count if self.direct else PARTICLES // max(count, FEWEST_PARTICLES))
        draw = self.sample_z if self.region is None else partial(self._sample_inside, self.region)
        parts = [draw(rows, count, seed + 7919 * i) for i, rows in enumerate(x.split(together))]
        return self.prior.from_normal(torch.cat(parts)).numpy()

    def _sample_inside(self, region: Region, x: Tensor, count: int, seed: int) -> Tensor:
        """Draw z, [M, count, D], confined to the region: the posterior under the truncated prior, which is what was learned there.

        NaN where too little of what is drawn lies inside, so that a check cannot mistake it for an answer.
        """

        def draw(rows: Tensor, wanted: int, attempt: int) -> tuple[Tensor, Tensor]:
            z = self.sample_z(x[rows], 2 * count, seed + 104_729 * attempt)
            return z, region.contains(z.flatten(0, 1)).reshape(z.shape[:2])

        return draw_until(draw, len(x), count, self.prior.dim, ATTEMPTS)

    @torch.no_grad()
    def sample_z(self, x: Tensor, count: int, seed: int) -> Tensor:
        """Return z, [M, count, D], given outputs [M, K]."""
        if not self.direct:
            particles = max(count, FEWEST_PARTICLES)
            z = sample_tempered(lambda z: self.log_likelihood(z, x), len(x), particles, self.prior.dim, seed).z
            return z if particles == count else _subset(z, count, seed)
        generator = torch.Generator().manual_seed(seed)
        shares = [len(part) for part in np.array_split(np.arange(count), len(self.members))]
        members = [m for m in self.members if isinstance(m, DirectEstimator)]
        z = torch.cat([m.sample_z(x, n, generator) for m, n in zip(members, shares, strict=True) if n], 1)
        return z[:, torch.randperm(count, generator=generator)]

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the log likelihood up to a constant, [M, N], of z [M, N, D] for outputs [M, K]; of nle and nre."""
        logs = [m.log_likelihood(z, x) for m in self.members if isinstance(m, LikelihoodEstimator)]
        if not logs:
            raise ConfigError(f"{self.method} estimates the posterior itself, not the likelihood")
        stacked = torch.stack(logs)
        # A ratio is known up to a function of x, another one for each network: only the mean of logarithms is free of it.
        total = stacked.mean(0) if isinstance(self.members[0], RatioClassifier) else torch.logsumexp(stacked, 0)
        return total if self.success is None else total + self.success.log_chance(z)

    @torch.no_grad()
    def member_log_density(self, z: Tensor, x: Tensor) -> Tensor:
        """Return each member's log posterior of z up to a constant of its own, [E, N], for z [N, D] and one output [K]."""
        values = []
        for member in self.members:
            if isinstance(member, DirectEstimator):
                values.append(member.log_posterior(z.unsqueeze(0), x.unsqueeze(0))[0])
            elif isinstance(member, LikelihoodEstimator):
                values.append(member.log_likelihood(z.unsqueeze(0), x.unsqueeze(0))[0] + normal_log_prob(z))
        return torch.stack(values)

    @torch.no_grad()
    def log_prob(self, theta: Array, observation: Array | None = None) -> Array:
        """Return the log density, [N], of parameters [N, D]; up to a constant for nle and nre."""
        x = torch.from_numpy(self.resolve(observation))
        values = torch.from_numpy(np.ascontiguousarray(np.atleast_2d(theta), dtype=np.float64))
        z = self.prior.to_normal(values)
        inside = z.isfinite().all(-1)
        logs = torch.full((len(z),), -torch.inf, dtype=torch.float64)
        if bool(inside.any()):  # the networks take no empty batches
            logs[inside] = self.log_density(z[inside], x) - self.prior.log_jacobian(z[inside])
        return logs.numpy()

    @torch.no_grad()
    def log_density(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the log density of z, [N], for z [N, D] and one output [K]; up to a constant for nle and nre."""
        if not self.direct:
            return self.log_likelihood(z.unsqueeze(0), x.unsqueeze(0))[0] + normal_log_prob(z)
        logs = self.member_log_density(z, x)
        return torch.logsumexp(logs, 0) - np.log(len(logs))

    def draw_parameters(self, count: int, seed: int) -> Array:
        if self.region is None:
            return self.prior.sample(count, seed)
        return self.prior.from_normal(self.region.sample(count, seed)).numpy()

    @property
    def checkable(self) -> bool:
        """Whether it can be checked on other observations: one of truncated proposals can within its region."""
        return self.amortised or self.region is not None

    @property
    def normalised(self) -> bool:
        """Whether `log_prob` is a density and not only proportional to one."""
        return self.direct

    def describe(self) -> dict[str, Any]:
        description = super().describe() | {"networks": len(self.members)}
        return description | {"weights": sum(p.numel() for p in self.members[0].parameters())}


@dataclass(frozen=True)
class DensityAt:
    """The log density of z [N, D] given one output ``x`` [K]: of such is the region of truncated proposals made."""

    posterior: NeuralPosterior
    x: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Return it, [N]."""
        return self.posterior.log_density(z, self.x)


class ExactPosterior(Posterior):
    """The posterior of a simulator whose likelihood is known: a tempered population moved by Hamiltonian Monte Carlo."""

    method = "hmc"

    def __init__(self, simulator: Simulator | Tractable, reference: Array | None = None) -> None:
        if not isinstance(simulator, Tractable):
            name = simulator.name if isinstance(simulator, Simulator) else type(simulator).__name__
            raise ConfigError(
                f"{name} has no log_likelihood that could be differentiated; use npe, nle, nre, fmpe or an abc method"
            )
        self.simulator, self.prior, self.observables = simulator, simulator.prior, simulator.observables
        self.amortised, self.reference = True, reference

    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        x = torch.from_numpy(self.resolve(observation))
        particles = max(count, FEWEST_PARTICLES)
        z = sample_tempered(self._at(x), 1, particles, self.prior.dim, seed).z
        return self.prior.from_normal(_subset(z, count, seed)[0]).numpy()

    def _at(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: self.simulator.log_likelihood(self.prior.from_normal(z), x)

    @torch.no_grad()
    def log_prob(self, theta: Array, observation: Array | None = None) -> Array:
        """Return the log density, [N], of parameters [N, D], up to a constant."""
        x = torch.from_numpy(self.resolve(observation))
        values = torch.from_numpy(np.ascontiguousarray(np.atleast_2d(theta), dtype=np.float64))
        logs = self.prior.log_prob(values)
        inside = logs.isfinite()  # elsewhere the likelihood may not be defined
        logs[inside] += self.simulator.log_likelihood(values[inside], x)
        return logs.numpy()


def _subset(z: Tensor, count: int, seed: int) -> Tensor:
    """Return ``count`` particles of each population, without repetition."""
    rows = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(seed))[:count]
    return z[:, rows]
