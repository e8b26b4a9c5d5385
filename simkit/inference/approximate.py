"""Approximate Bayesian computation: parameters whose simulations look like the observation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from simkit.errors import DataError
from simkit.inference.features import Features
from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array, Prior
from simkit.inference.simulations import Simulations
from simkit.inference.simulator import Observable, Simulator

RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Of the regression, in units of the variance of each feature, among which leave-one-out errors choose."""
SIGNIFICANT = 2.0


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
        weights = epanechnikov(near.values)
        z = self.z[near.indices]
        if self.adjust:
            z = regress(z, (self.seen[near.indices] - target).double(), weights)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.multinomial(weights, count, replacement=True, generator=generator)
        return self.prior.from_normal(z[rows]).numpy()


def epanechnikov(distance: Tensor) -> Tensor:
    """Return the weights, [N] float64, of simulations at distances [N] from the observation; the farthest has next to none."""
    share = distance.double() / distance.max().clamp(min=1e-12)
    return (1 - share.square()).clamp(min=1e-6)


def regress(z: Tensor, away: Tensor, weights: Tensor) -> Tensor:
    """Return parameters [N, D] moved to where their outputs would agree with the observation, by weighted linear least squares.

    What the fit leaves of each parameter is taken as the fit to all other simulations would leave it: with many features and few
    simulations a fit explains its own data too well, and what it leaves is too narrow. Features may depend on each other, so that fits
    are ridged. The parameters stay as they are where no fit predicts others better than their mean does, by `SIGNIFICANT` standard
    errors: where parts of a posterior are far from each other, slopes that mean nothing would move much.

    Args:
        z: [N, D]; ``away``: features less those of the observation, [N, K] float64; ``weights``: [N].
    """
    weights = weights / weights.sum()
    centered = z - weights @ z
    scale = (weights @ centered.square()).clamp(min=1e-300)
    plain = ((centered / (1 - weights).unsqueeze(1)).square() / scale).sum(1)
    best, found = math.inf, z
    for moved, left in _fits(z, away, weights):
        gain = plain - (left.square() / scale).sum(1)
        mean = weights @ gain
        error = (weights @ (weights * (gain - mean).square())).sqrt()
        if -float(mean) < best and mean > SIGNIFICANT * error:
            best, found = -float(mean), moved
    return found


def _fits(z: Tensor, away: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each ridge what `regress` would return, and what the fits to all other simulations leave, [N, D]."""
    spread = (weights @ (away - weights @ away).square()).sqrt()
    design = torch.cat([torch.ones_like(away[:, :1]), away / torch.where(spread > 0, spread, 1.0)], 1)
    weighted = design * weights.unsqueeze(1)
    normal, target = design.T @ weighted, torch.cat([weighted.T @ z, weighted.T], 1)
    for ridge in RIDGES:
        penalty = torch.full((len(normal),), ridge, dtype=away.dtype)
        penalty[0] = 1e-12
        slopes, hat = torch.linalg.solve(normal + penalty.diag(), target).split([z.shape[1], len(z)], 1)
        leverage = (design * hat.T).sum(1, keepdim=True)
        left = (z - design @ slopes) / (1 - leverage).clamp(min=1e-9)
        yield slopes[0] + left, left
