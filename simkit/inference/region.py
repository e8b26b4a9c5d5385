"""`Region`: the part of a prior in which a posterior has its mass, so that simulations elsewhere are saved.

Deistler, Goncalves & Macke, "Truncated proposals for scalable and hassle-free simulation-based inference", NeurIPS 2022: parameters are
drawn from the prior confined to {z: log q(z given x_o) > t}, where t is the quantile of log q below which a share epsilon of the
posterior lies. An estimator of the posterior trained on them needs no correction, since inside they are distributed as the prior is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.inference.priors import normal_log_prob

LogDensity = Callable[[Tensor], Tensor]
CHAINS, MOVES = 2000, 60


class Region:
    """The intersection of the half-spaces log q_r(z) > t_r of successive rounds.

    Args:
        densities: log densities of z [N, D] -> [N], one per round.
        thresholds: t_r.
        starts: points drawn from the last of the densities, [N, D], from which chains start.
    """

    def __init__(self, densities: Sequence[LogDensity], thresholds: Sequence[float], starts: Tensor) -> None:
        self.densities, self.thresholds = list(densities), list(thresholds)
        inside = self.contains(starts)
        if not bool(inside.any()):
            raise ConfigError("the region of a truncated proposal holds none of the posterior's samples")
        self.starts = starts[inside]

    def contains(self, z: Tensor) -> Tensor:
        """Return whether points [N, D] lie inside, [N]."""
        inside = torch.ones(len(z), dtype=torch.bool)
        for density, threshold in zip(self.densities, self.thresholds, strict=True):
            rows = inside.nonzero().squeeze(-1)
            if len(rows):
                inside[rows] = density(z[rows]) > threshold
        return inside

    def sample(self, count: int, seed: int) -> Tensor:
        """Return z, [count, D], from the prior confined to the region.

        By rejection from the prior where a fiftieth of it or more is inside; else Metropolis chains start at samples of the posterior,
        chosen in proportion to prior over posterior, and walk through the region, whose only weight is the prior. Chains cannot pass from
        one separate part of the region to another: the choice gives each its share of the prior.
        """
        generator = torch.Generator().manual_seed(seed)
        dim = self.starts.shape[1]
        trial = torch.randn(10_000, dim, generator=generator, dtype=torch.float64)
        accepted = trial[self.contains(trial)]
        if len(accepted) * 50 >= len(trial):
            parts = [accepted]
            while sum(map(len, parts)) < count:
                trial = torch.randn(20_000, dim, generator=generator, dtype=torch.float64)
                parts.append(trial[self.contains(trial)])
            return torch.cat(parts)[:count]
        weights = torch.softmax(normal_log_prob(self.starts) - self.densities[-1](self.starts), 0)
        parts = []
        while sum(map(len, parts)) < count:
            rows = torch.multinomial(weights, min(CHAINS, count), replacement=True, generator=generator)
            parts.append(self._walk(self.starts[rows], generator))
        return torch.cat(parts)[:count]

    def _walk(self, z: Tensor, generator: torch.Generator) -> Tensor:
        chains = len(z)
        spread = torch.cov(self.starts.T).reshape(z.shape[1], z.shape[1])
        factor = torch.linalg.cholesky(
            spread + 1e-9 * torch.diag_embed(spread.diagonal()) + 1e-14 * torch.eye(len(spread))
        )
        log_step = torch.tensor(0.0, dtype=torch.float64)
        for move in range(MOVES):
            proposal = z + log_step.exp() * torch.randn(z.shape, generator=generator, dtype=z.dtype) @ factor.T
            log_chance = normal_log_prob(proposal) - normal_log_prob(z)
            likely = torch.rand(chains, generator=generator, dtype=z.dtype).log() < log_chance
            accept = likely.clone()
            accept[likely] = self.contains(proposal[likely])
            z = torch.where(accept.unsqueeze(-1), proposal, z)
            if move < MOVES // 2:  # towards an acceptance of a third; fixed in the second half
                log_step += 1.0 * (accept.double().mean() - 0.33)
        return z


def highest_density(density: LogDensity, samples: Tensor, epsilon: float) -> float:
    """Return the threshold t of log q above which all but a share ``epsilon`` of the samples [N, D] lie."""
    return float(torch.quantile(density(samples), epsilon))
