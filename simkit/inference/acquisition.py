"""Which parameters to simulate next, and when to stop.

| Proposal | Parameters | For |
| --- | --- | --- |
| truncated | the prior confined to the region of the posterior (`simkit.inference.region`) | all estimators |
| posterior | the current posterior (Papamakarios et al., AISTATS 2019) | likelihoods and ratios |
| disagreement | around the posterior, where an ensemble's densities differ most per second of simulation | likelihoods and ratios |

The last is in the spirit of Jarvenpaa et al., Bayesian Anal. 14, 595 (2019), whose surrogate is a Gaussian process.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from simkit.config import Options
from simkit.errors import ConfigError
from simkit.inference.neural import DensityAt, NeuralPosterior
from simkit.inference.priors import Array
from simkit.inference.region import Region, highest_density
from simkit.inference.simulations import Simulations
from simkit.inference.spread import sample_factor

CANDIDATES = 20
"""Candidates for each parameter that is chosen by disagreement."""
SAMPLES = 2000


class StoppingOptions(Options):
    """When a sequential method ends before its budget is used."""

    width: float | None = Field(
        None,
        gt=0,
        description="end when the posterior's standard deviation, in units of the prior's, is below this for all parameters",
    )
    change: float | None = Field(
        None,
        gt=0,
        description="end when a round moved all means and log deviations by less than this many posterior deviations",
    )
    seconds: float | None = Field(None, gt=0, description="end when simulating took this long in all")


class StoppingRule:
    """Says after each round whether to go on.

    Args:
        observation: [K].
    """

    def __init__(self, options: StoppingOptions, observation: Tensor) -> None:
        self.options, self.observation = options, observation
        self.last: tuple[Tensor, Tensor] | None = None

    def reason(self, posterior: NeuralPosterior, simulated: float) -> str:
        """Return why to stop, or "".

        Args:
            simulated: seconds of simulating so far.
        """
        o = self.options
        if o.width is None and o.change is None and o.seconds is None:
            return ""
        if o.seconds is not None and simulated >= o.seconds:
            return f"simulating took {simulated:.0f} s of the {o.seconds:.0f} s allowed"
        z = posterior.sample_z(self.observation.unsqueeze(0), SAMPLES, 0)[0]
        mean, spread = z.mean(0), z.std(0)
        before, self.last = self.last, (mean, spread)
        if o.width is not None and bool((spread < o.width).all()):
            return f"all parameters are known to less than {o.width:g} of their prior deviations"
        if o.change is not None and before is not None:
            moved = torch.maximum((mean - before[0]).abs() / spread, (spread / before[1]).log().abs())
            if bool((moved < o.change).all()):
                return f"the last round changed no mean and no log deviation by {o.change:g} deviations"
        return ""


class CostModel:
    """Seconds of a simulation as a function of its parameters: least squares for the logarithm, quadratic in z.

    Args:
        z: [N, D] and ``seconds`` [N] of simulations that were run.
    """

    def __init__(self, z: Tensor, seconds: Array) -> None:
        target = torch.from_numpy(np.log(np.maximum(seconds, 1e-9)))
        self.range = float(target.min()), float(target.max())
        design = self._design(z)
        ridge = 1e-3 * len(z) * torch.eye(design.shape[1], dtype=torch.float64)
        ridge[0, 0] = 0
        self.weights = torch.linalg.solve(design.T @ design + ridge, design.T @ target)

    @staticmethod
    def _design(z: Tensor) -> Tensor:
        return torch.cat([torch.ones(len(z), 1, dtype=z.dtype), z, z.square()], 1)

    def seconds(self, z: Tensor) -> Tensor:
        """Return the expected time of simulations at z [N, D], [N] in s; within that of the simulations that were run."""
        return (self._design(z) @ self.weights).clamp(*self.range).exp()


class Proposer:
    """Chooses the parameters of the next round.

    Attributes:
        region: of a truncated proposal, after the first round.
    """

    def __init__(
        self, kind: Literal["truncated", "posterior", "disagreement"], epsilon: float, observation: Tensor
    ) -> None:
        self.kind, self.epsilon, self.observation = kind, epsilon, observation
        self.region: Region | None = None

    def propose(self, posterior: NeuralPosterior, done: Simulations, count: int, seed: int) -> Tensor:
        """Return parameters z, [count, D].

        Raises:
            ConfigError: if an ensemble of one is asked for its disagreement.
        """
        if self.kind == "truncated":
            self.region = self._truncated(posterior, seed)
            return self.region.sample(count, seed)
        if self.kind == "posterior":
            return posterior.sample_z(self.observation.unsqueeze(0), count, seed)[0]
        if len(posterior.members) < 2:
            raise ConfigError("proposals by disagreement need an ensemble: set learning.members to 2 or more")
        return self._disagreement(posterior, done, count, seed)

    def _truncated(self, posterior: NeuralPosterior, seed: int) -> Region:
        """The region of the posterior and of all before it: inside, every round's parameters are distributed as the prior is."""
        samples = posterior.sample_z(self.observation.unsqueeze(0), SAMPLES, seed)[0]
        density = DensityAt(posterior, self.observation)
        threshold = highest_density(density, samples, self.epsilon)
        densities, thresholds = ([], []) if self.region is None else (self.region.densities, self.region.thresholds)
        return Region([*densities, density], [*thresholds, threshold], samples)

    def _disagreement(self, posterior: NeuralPosterior, done: Simulations, count: int, seed: int) -> Tensor:
        """Candidates around the posterior, drawn in proportion to the spread of the members' densities there, per second."""
        generator = torch.Generator().manual_seed(seed)
        samples = posterior.sample_z(self.observation.unsqueeze(0), max(SAMPLES, CANDIDATES * count // 4), seed)[0]
        rows = torch.randint(len(samples), (CANDIDATES * count,), generator=generator)
        noise = torch.randn(len(rows), samples.shape[1], generator=generator, dtype=samples.dtype)
        candidates = samples[rows] + 0.5 * noise @ sample_factor(samples, floor=1e-12).T
        logs = posterior.member_log_density(candidates, self.observation)
        logs = logs - torch.logsumexp(logs, 1, keepdim=True)  # each member's density relative to its own sum
        spread = logs.sub(logs.max()).exp().std(0)
        cost = CostModel(posterior.prior.to_normal(torch.from_numpy(done.theta)), done.seconds).seconds(candidates)
        value = (spread / cost).clamp(min=0) + 1e-300
        chosen = torch.multinomial(value / value.sum(), count, replacement=False, generator=generator)
        return candidates[chosen]
