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
from simkit.inference.spread import sample_factor

LogDensity = Callable[[Tensor], Tensor]
Draw = Callable[[int, torch.Generator], Tensor]
"""Number and generator -> points, [N, D], perhaps fewer."""
TRIALS, LEAST_SHARE = 10_000, 0.02
"""Points that tell what share of those drawn lies inside, and the share that is enough to go on."""
CHAINS, MOVES = 2000, 60
GROWTH, RIM, GROWTHS = 1.15, 0.97, 10
"""By what an ellipsoid reaches beyond the samples and grows; the share of its radius where its rim begins; how often it may grow."""


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

        By rejection, which is exact, from the prior where a fiftieth of it or more is inside; else from the prior within an ellipsoid
        around the region, where a fiftieth of that is. Else Metropolis chains start at samples of the posterior, chosen in proportion to
        prior over posterior, and walk through the region, whose only weight is the prior. Chains cannot pass from one separate part of
        the region to another: the choice gives each its share of the prior.
        """
        generator = torch.Generator().manual_seed(seed)
        dim = self.starts.shape[1]

        def prior(number: int, generator: torch.Generator) -> Tensor:
            return torch.randn(number, dim, generator=generator, dtype=torch.float64)

        found = self._reject(prior, count, generator)
        if found is None:
            found = self._reject_around(count, generator)
        return self._chains(count, generator) if found is None else found

    def _reject(self, draw: Draw, count: int, generator: torch.Generator) -> Tensor | None:
        """Draw until enough are inside, [count, D]; None if too few are."""
        parts: list[Tensor] = []
        while not parts or sum(map(len, parts)) < count:
            trial = draw(TRIALS, generator)
            parts.append(trial[self.contains(trial)])
            if len(parts) == 1 and len(parts[0]) < LEAST_SHARE * TRIALS:
                return None
        return torch.cat(parts)[:count]

    def _reject_around(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Draw from the prior within an ellipsoid in whose rim no point of the region is found, [count, D]; None if that fails."""
        mean, factor = self.starts.mean(0), self._factor()
        whitened = torch.linalg.solve_triangular(factor, (self.starts - mean).T, upper=False)
        radius = GROWTH * float(whitened.norm(dim=0).max())
        for _ in range(GROWTHS):
            # No point of the ellipsoid is nearer to the prior's mean than this.
            nearest = max(0.0, float(mean.norm() - radius * torch.linalg.matrix_norm(factor, 2)))

            def draw(
                number: int, generator: torch.Generator, radius: float = radius, nearest: float = nearest
            ) -> Tensor:
                direction = torch.randn(number, len(mean), generator=generator, dtype=mean.dtype)
                uniform = torch.rand(number, 2, generator=generator, dtype=mean.dtype)
                length = radius * uniform[:, :1] ** (1 / len(mean)) / direction.norm(dim=1, keepdim=True)
                z = mean + (length * direction) @ factor.T
                return z[uniform[:, 1].log() < 0.5 * (nearest**2 - z.square().sum(1))]

            found = self._reject(draw, count, generator)
            if found is None:
                return None
            reached = torch.linalg.solve_triangular(factor, (found - mean).T, upper=False).norm(dim=0).max()
            if reached < RIM * radius:
                return found
            radius *= GROWTH
        return None

    def _factor(self) -> Tensor:
        """Cholesky factor of the covariance of the starts."""
        return sample_factor(self.starts, ridge=1e-9, floor=1e-14)

    def _chains(self, count: int, generator: torch.Generator) -> Tensor:
        """Walk from starts that are chosen by importance, [count, D]."""
        weights = torch.softmax(normal_log_prob(self.starts) - self.densities[-1](self.starts), 0)
        parts: list[Tensor] = []
        while sum(map(len, parts)) < count:
            rows = torch.multinomial(weights, min(CHAINS, count), replacement=True, generator=generator)
            parts.append(self._walk(self.starts[rows], generator))
        return torch.cat(parts)[:count]

    def _walk(self, z: Tensor, generator: torch.Generator) -> Tensor:
        chains, factor = len(z), self._factor()
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
