"""Sampling from a density known up to a constant: Hamiltonian Monte Carlo within a tempered population of particles.

A population drawn from the prior N(0, 1) in z is carried to the posterior along p_b(z) = N(z; 0, 1) L(z)^b, b from 0 to 1 (Del Moral,
Doucet & Jasra, J. R. Statist. Soc. B 68, 411 (2006)). The next b halves the effective sample size (Jasra et al., Scand. J. Stat. 38, 1
(2011)); after resampling, every particle moves by Hamiltonian Monte Carlo (Duane et al., Phys. Lett. B 195, 216 (1987)) whose mass
matrix is the inverse covariance of the population. Separate modes keep their weights, and the evidence comes with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simkit.errors import SimkitError
from simkit.inference.spread import sample_factor

LogLikelihood = Callable[[Tensor], Tensor]
"""z [M, N, D] float64 -> log L, [M, N]; M problems at once."""
MOST_STAGES = 200
TARGET_ACCEPTANCE = 0.8
LEAPFROGS = (4, 9)
"""Fewest and most leapfrog steps of a move, drawn anew for each: fixed lengths can resonate with a period of the target."""


@dataclass(frozen=True)
class Population:
    """Samples of M posteriors.

    Attributes:
        z: [M, N, D] float64.
        log_evidence: log of the integral of N(z; 0, 1) L(z), [M].
        acceptance: mean acceptance of the last moves.
        stages: temperatures that were passed.
    """

    z: Tensor
    log_evidence: Tensor
    acceptance: float
    stages: int


def sample_tempered(
    log_likelihood: LogLikelihood,
    problems: int,
    particles: int,
    dim: int,
    seed: int,
    *,
    moves: int = 4,
    last_moves: int = 12,
) -> Population:
    """Draw ``particles`` from each of ``problems`` posteriors N(z; 0, 1) L(z) / Z.

    Args:
        moves: of every particle at each temperature; ``last_moves`` at the last.

    Raises:
        SimkitError: if the likelihood is nowhere finite.
    """
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(problems, particles, dim, generator=generator, dtype=torch.float64)
    value, slope = _evaluate(log_likelihood, z)
    if not bool(value.isfinite().any(1).all()):
        raise SimkitError("the likelihood is not finite for any parameter drawn from the prior")
    beta = torch.zeros(problems, dtype=torch.float64)
    evidence = torch.zeros(problems, dtype=torch.float64)
    step = torch.full((problems,), 0.3, dtype=torch.float64)
    stages, acceptance = 0, 1.0
    while bool((beta < 1).any()):
        stages += 1
        if stages > MOST_STAGES:
            raise SimkitError(f"the tempered population did not reach the posterior in {MOST_STAGES} stages")
        raised = _next_temperature(value, beta)
        weights = (raised - beta).unsqueeze(1) * value.nan_to_num(nan=-math.inf, posinf=-math.inf)
        evidence += torch.logsumexp(weights, 1) - math.log(particles)
        rows = _resample(weights, generator)
        z, value, slope = (_take(array, rows) for array in (z, value, slope))
        beta = raised
        count = last_moves if bool((beta >= 1).all()) else moves
        for _ in range(count):
            z, value, slope, accepted = _move(log_likelihood, z, value, slope, beta, step, generator)
            step *= torch.exp(0.7 * (accepted - TARGET_ACCEPTANCE))
            acceptance = float(accepted.mean())
    return Population(z, evidence, acceptance, stages)


def _evaluate(log_likelihood: LogLikelihood, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return log L and its gradient; where either is not finite, -inf and 0."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        value = log_likelihood(at)
        slope = torch.autograd.grad(value.sum(), at)[0]
    good = value.detach().isfinite() & slope.isfinite().all(-1)
    return torch.where(good, value.detach(), -math.inf).double(), torch.where(good.unsqueeze(-1), slope, 0.0).double()


def _next_temperature(value: Tensor, beta: Tensor) -> Tensor:
    """Return the highest inverse temperatures, [M], that keep half of the effective sample size."""
    particles = value.shape[1]
    low, high = beta.clone(), torch.ones_like(beta)
    finite = value.isfinite().sum(1)

    def size(at: Tensor) -> Tensor:
        logs = (at - beta).unsqueeze(1) * value
        logs = torch.where(value.isfinite(), logs, -math.inf)
        return torch.exp(2 * torch.logsumexp(logs, 1) - torch.logsumexp(2 * logs, 1))

    enough = 0.5 * torch.minimum(finite, torch.full_like(finite, particles)).double()
    whole = size(high) >= enough
    for _ in range(50):
        middle = 0.5 * (low + high)
        fits = size(middle) >= enough
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    # A step of zero would never end; one that is too long only costs effective size.
    found = torch.maximum(low, beta + 1e-12)
    return torch.where(whole, torch.ones_like(beta), found).clamp(max=1.0)


def _resample(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling: the rows to keep, [M, N]."""
    problems, particles = log_weights.shape
    cumulative = torch.softmax(log_weights, 1).cumsum(1)
    offset = torch.rand(problems, 1, generator=generator, dtype=torch.float64)
    points = (torch.arange(particles, dtype=torch.float64) + offset) / particles
    return torch.searchsorted(cumulative / cumulative[:, -1:], points).clamp(max=particles - 1)


def _take(array: Tensor, rows: Tensor) -> Tensor:
    index = rows if array.ndim == 2 else rows.unsqueeze(-1).expand(-1, -1, array.shape[-1])
    return array.gather(1, index)


def _move(
    log_likelihood: LogLikelihood,
    z: Tensor,
    value: Tensor,
    slope: Tensor,
    beta: Tensor,
    step: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of Hamiltonian Monte Carlo of all particles; also the mean acceptance, [M].

    In variables y = F^-1 z the mass matrix is the identity; F is the Cholesky factor of the population's covariance.
    """
    factor = sample_factor(z, ridge=1e-6, floor=1e-14)
    momentum = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    shortest, longest = LEAPFROGS
    leapfrogs = int(torch.randint(shortest, longest + 1, (), generator=generator))
    scale = beta.view(-1, 1, 1)

    def energy(at: Tensor, likelihood: Tensor, p: Tensor) -> Tensor:
        return 0.5 * at.square().sum(-1) - beta.unsqueeze(1) * likelihood + 0.5 * p.square().sum(-1)

    h = step.view(-1, 1, 1) * (0.9 + 0.2 * torch.rand(z.shape[0], 1, 1, generator=generator, dtype=z.dtype))
    at, p, end_value, end_slope = z, momentum, value, slope
    for _ in range(leapfrogs):
        p = p + 0.5 * h * ((scale * end_slope - at) @ factor)
        at = at + h * (p @ factor.transpose(1, 2))
        end_value, end_slope = _evaluate(log_likelihood, at)
        p = p + 0.5 * h * ((scale * end_slope - at) @ factor)
    change = energy(z, value, momentum) - energy(at, end_value, p)
    chance = change.nan_to_num(nan=-math.inf).clamp(max=0).exp()
    accept = torch.rand(chance.shape, generator=generator, dtype=z.dtype) < chance
    keep = accept.unsqueeze(-1)
    moved = torch.where(keep, at, z), torch.where(accept, end_value, value), torch.where(keep, end_slope, slope)
    return (*moved, chance.mean(1))
