"""Sequential Monte Carlo ABC: simulations are drawn closer and closer to where they look like the observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simkit.errors import DataError
from simkit.inference.approximate import epanechnikov, regress
from simkit.inference.features import Features
from simkit.inference.local_kernels import LocalKernels, fit_kernels
from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array, Prior, normal_log_prob
from simkit.inference.simulations import Simulations
from simkit.inference.simulator import Observable, Simulator

Simulate = Callable[[Array], Simulations]
KERNELS = 500
"""Of a proposal, at most."""


class PopulationPosterior(Posterior):
    """Samples given one observation, each of some weight; drawn from with the kernels of `simkit.inference.local_kernels`.

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

    @cached_property
    def kernels(self) -> LocalKernels:
        """What samples are drawn from."""
        return fit_kernels(self.z, self.weights, shrink=True)

    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        self.resolve(observation)
        return self.prior.from_normal(self.kernels.sample(count, torch.Generator().manual_seed(seed))).numpy()

    def describe(self) -> dict[str, Any]:
        effective = float(1 / self.weights.square().sum())
        return super().describe() | {"distance": self.distance, "effective_samples": round(effective, 1)}


@dataclass(frozen=True)
class PopulationOptions:
    """How the population of SMC ABC is made.

    Attributes:
        particles: of the result, and simulations of a generation.
        quantile: share of them, the nearest, around which the next generation is drawn.
        adjust: whether the result is adjusted by regression.
    """

    particles: int
    quantile: float = 0.5
    adjust: bool = True


class _Drawn:
    """The simulations within reach of the observation, and the density that they were drawn from.

    Attributes:
        z: [N, D]; ``seen``: features, [N, K].
        log_mixture: log of sum_g n_g q_g(z), with n_g simulations of the density q_g, [N].
        proposals: n_g and q_g, the prior where None.
    """

    def __init__(self, z: Tensor, seen: Tensor, trials: int) -> None:
        self.z, self.seen = z, seen
        self.log_mixture = normal_log_prob(z) + math.log(trials)
        self.proposals: list[tuple[int, LocalKernels | None]] = [(trials, None)]

    def add(self, z: Tensor, seen: Tensor, trials: int, proposal: LocalKernels) -> None:
        """Add those that are of use among ``trials`` simulations of a proposal."""
        log_new = math.log(trials) + proposal.log_density(self.z)
        self.proposals.append((trials, proposal))
        logs = [
            math.log(n) + (normal_log_prob(z) if density is None else density.log_density(z))
            for n, density in self.proposals
        ]
        self.log_mixture = torch.cat(
            [torch.logaddexp(self.log_mixture, log_new), torch.logsumexp(torch.stack(logs), 0)]
        )
        self.z, self.seen = torch.cat([self.z, z]), torch.cat([self.seen, seen])

    def keep(self, rows: Tensor) -> None:
        """Keep these alone."""
        self.z, self.seen, self.log_mixture = self.z[rows], self.seen[rows], self.log_mixture[rows]

    def weights(self, rows: Tensor) -> Tensor:
        """Prior over mixture of some, of sum one."""
        return torch.softmax(normal_log_prob(self.z[rows]) - self.log_mixture[rows], 0)


def population_monte_carlo(
    simulator: Simulator,
    run: Simulate,
    observation: Array,
    budget: int,
    options: PopulationOptions,
    seed: int,
    earlier: Simulations,
) -> PopulationPosterior:
    """Sequential Monte Carlo ABC: each generation is drawn around the simulations that are nearest to the observation so far.

    As in Beaumont et al., Biometrika 96, 983 (2009), generations are weighted by prior over proposal; the kernels are the local ones of
    Filippi et al. (`simkit.inference.local_kernels`). None is thrown away: a simulation is weighted by the prior over the mixture of all
    that was proposed in any generation (J.-M. Cornuet, J.-M. Marin, A. Mira & C. P. Robert, Scand. J. Stat. 39, 798 (2012)), and as the
    prior is part of that mixture, no weight is large. The nearest of all are the result, weighted and adjusted as by
    `simkit.inference.approximate.RejectionPosterior`.

    Args:
        run: simulates parameters [N, D].
        budget: simulations in all.
        earlier: some drawn from the prior, which the first generation starts from; they count towards the budget.

    Raises:
        DataError: if too few simulations of the first generation gave finite outputs.
    """
    rng = torch.Generator().manual_seed(seed)
    prior, size = simulator.prior, options.particles
    new = torch.randn(max(0, min(size, budget) - len(earlier)), prior.dim, generator=rng, dtype=torch.float64)
    first = earlier.join(run(prior.from_normal(new).numpy())) if len(new) else earlier
    used, valid = len(first), first.select(first.valid)
    if len(valid) < max(size // 4, 2 * prior.dim + 2):
        raise DataError(
            f"{first.failures} of the first {len(first)} simulations failed; SMC ABC needs most of them to succeed"
        )
    features = Features(simulator.observables)
    features.adapt(valid.x)
    target = features(torch.from_numpy(observation))
    drawn = _Drawn(prior.to_normal(torch.from_numpy(valid.theta)), features(torch.from_numpy(valid.x)), used)
    while True:
        distance = (drawn.seen - target).norm(dim=-1)
        near = torch.topk(distance, min(size, len(distance)), largest=False)
        drawn.keep(near.indices)
        if used >= budget:
            break
        centers = torch.arange(max(round(options.quantile * len(drawn.z)), 2 * prior.dim + 2))[: len(drawn.z)]
        if len(centers) > KERNELS:
            centers = centers[torch.randperm(len(centers), generator=rng)[:KERNELS]]
        proposal = fit_kernels(drawn.z[centers], drawn.weights(centers), shrink=False)
        trials = min(size, budget - used)
        z = proposal.sample(trials, rng)
        done = run(prior.from_normal(z).numpy())
        used += trials
        seen = features(torch.from_numpy(done.x))
        useful = torch.from_numpy(done.valid)
        if len(drawn.z) == size:  # tolerances only fall
            useful &= (seen - target).norm(dim=-1) < near.values[-1]
        drawn.add(z[useful], seen[useful], trials, proposal)
    weights = drawn.weights(torch.arange(len(drawn.z))) * epanechnikov(near.values)
    z = regress(drawn.z, (drawn.seen - target).double(), weights) if options.adjust else drawn.z
    return PopulationPosterior(prior, simulator.observables, observation, z, weights, float(near.values[-1]))
