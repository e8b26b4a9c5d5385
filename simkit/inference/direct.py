"""Estimators of the posterior itself: a normalizing flow (npe) and flow matching (fmpe)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from simkit.inference.estimator import ROWS, Estimator, NetworkOptions, build_flow
from simkit.inference.features import Summaries
from simkit.inference.filling import draw_until
from simkit.inference.priors import LOG_2PI
from simkit.inference.simulator import Observable


class DirectEstimator(Estimator):
    """An estimator of the posterior itself.

    Networks learn what is left of z, or v, after a linear regression on the features, because few simulations do not teach them well what a
    regression knows at once: where the posterior is, and how wide. They are trained on what is left by regressions on all others, as it
    will be of an observation. What they put outside the bounds of the prior is left out.

    Attributes:
        slopes: of the regression, [D, K]; zero for sets, and where the simulations are too few.
        width: standard deviation of the noise that becomes parameters, [] float32: see `simkit.inference.width`.
    """

    PER_FEATURE, RIDGE, FARTHEST = 10, 1e-3, 4.0
    """Simulations for each feature, without which nothing is fitted; ridge per simulation; where features are cut off, in deviations."""
    LEAST_FREE = 0.1
    """Of one minus the leverage, below which a simulation that alone determines the fit is not corrected further."""
    NARROW = 0.1
    """Share of the variance that the regression leaves, below which a parameter of a bounded prior is learned as v."""
    ATTEMPTS, TRIALS = 20, 4096
    """Times that samples are drawn until enough lie within the bounds; draws that tell the share inside."""
    slopes: Tensor
    width: Tensor

    def __init__(
        self,
        dim: int,
        observables: Sequence[Observable],
        options: NetworkOptions,
        seed: int = 0,
        bounded: Sequence[bool] = (),
    ) -> None:
        super().__init__(dim, observables, options, seed, bounded)
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("slopes", torch.zeros(dim, len(self.features.varying), dtype=torch.float64))
        self._inside: tuple[Tensor, Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> Self:
        """Set the mode as `torch.nn.Module.train` does; what was known of the share inside the bounds is forgotten."""
        self._inside = None
        return super().train(mode)

    def regress(self, z: Tensor, features: Tensor) -> Tensor:
        # The members of a set have no order that slopes could be given to.
        kept = torch.tensor([o.kind != "set" for o in self.observables for _ in range(o.size)])
        if not bool(kept.any()) or len(z) < self.PER_FEATURE * int(kept.sum()):
            self.bounded.zero_()
            return self.expected(features)
        seen = features[:, kept].double().clamp(-self.FARTHEST, self.FARTHEST)
        normal = seen.T @ seen + self.RIDGE * len(z) * torch.eye(seen.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(normal, seen.T)
        # Wide posteriors are cut off by the bounds, which z smooths; narrow ones are simpler where the prior is uniform.
        v = self.natural(z)
        left = (v - seen @ (weights @ (v - v.mean(0)))).var(0) / v.var(0)
        self.bounded &= left < self.NARROW
        v = self.natural(z)
        v = v - v.mean(0)
        self.slopes[:, kept] = (weights @ v).T
        # What is left of those that it was fitted to is less than what will be left of others, by the leverage of each.
        leverage = (seen * weights.T).sum(1, keepdim=True) + 1 / len(z)
        return v - (v - self.expected(features)) / (1 - leverage).clamp(min=self.LEAST_FREE)

    def expected(self, features: Tensor) -> Tensor:
        return features.double().clamp(-self.FARTHEST, self.FARTHEST) @ self.slopes.T

    def log_density(self, u: Tensor, features: Tensor) -> Tensor:
        """Return log q(u given features), [M, N], for u [M, N, D] and features [M, K]."""
        noise, stretch = self.noise(u, features)
        return -(0.5 * ((noise / self.width).square() + LOG_2PI) + self.width.log()).sum(-1) + stretch

    @abstractmethod
    def noise(self, u: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise [M, N, D] that u [M, N, D] would have come from, and log |d noise / du|, [M, N], given features [M, K]."""

    @abstractmethod
    def draw(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return u, [M, count, D], given features [M, K]."""

    def sample_z(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return z, [M, count, D] float64, given each of M outputs [M, K]; NaN where next to nothing lies within the prior's bounds."""
        features = self.features(x)

        def draw(rows: Tensor, wanted: int, attempt: int) -> tuple[Tensor, Tensor]:
            count = wanted if attempt == 0 else 2 * wanted + 16
            z = self.colour(self.draw(features[rows], count, generator), features[rows].unsqueeze(1))
            return z, z.isfinite().all(-1)

        return draw_until(draw, len(x), count, self.dim, self.ATTEMPTS)

    def log_posterior(self, z: Tensor, x: Tensor) -> Tensor:
        """Return log q(z given x), [M, N], for z [M, N, D] and outputs [M, K]."""
        features = self.features(x)
        u = self.whiten(z, self.expected(features.unsqueeze(1)))
        logs = self.log_density(u, features).double() - self.log_volume + self.log_stretch(z)
        return logs - self._log_inside(features).unsqueeze(1)

    def _log_inside(self, features: Tensor) -> Tensor:
        """Return the log of the share that lies within the bounds, [M], from draws that are always the same; the last one is kept."""
        if not bool(self.bounded.any()):
            return torch.zeros(len(features), dtype=torch.float64)
        if self._inside is not None:
            known, width, logs = self._inside
            if torch.equal(known, features) and torch.equal(width, self.width):
                return logs
        shares = []
        for row in features.unsqueeze(1):  # one at a time: the draws of all would fill the memory
            u = self.draw(row, self.TRIALS, torch.Generator().manual_seed(self.seed))
            inside = self.colour(u, row.unsqueeze(1)).isfinite().all(-1)
            shares.append(inside.double().mean().clamp(min=1 / self.TRIALS))
        logs = torch.stack(shares).log()
        self._inside = features, self.width.clone(), logs
        return logs


class PosteriorFlow(DirectEstimator):
    """NPE: a normalizing flow over parameters, given outputs."""

    name = "npe"
    flow: Any

    def make_network(self) -> None:
        self.flow = build_flow("nsf", self.dim, len(self.features.varying), self.options, Summaries(self.observables))

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        return -self.flow.log_prob(u.unsqueeze(0), features).squeeze(0)

    def _given(self, features: Tensor) -> Any:
        """Return the distributions of zuko, [M] of them; each output is summarised once."""
        return self.flow.net(self.flow.embedding_net(features))

    def draw(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        noise = self.width * torch.randn(count, len(features), self.dim, generator=generator)
        u: Tensor = self._given(features).transform.inv(noise).transpose(0, 1)
        return u

    def noise(self, u: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        noise, stretch = self._given(features).transform.call_and_ladj(u.transpose(0, 1))
        return noise.transpose(0, 1), stretch.transpose(0, 1)


class FlowMatching(DirectEstimator):
    """FMPE: u_t = (1 - t) u + t noise, and a network that learns d u_t / dt given u_t, t and the outputs."""

    name = "fmpe"
    STEPS = 40
    """Steps of the fourth-order Runge-Kutta method from noise (t = 1) to parameters (t = 0)."""
    DRAWS = 8
    """Times and noises per pair and step: they cost little, and a step with one is mostly noise."""
    field: Any

    def make_network(self) -> None:
        from sbi.neural_nets.net_builders.vector_field_nets import build_vector_field_estimator

        self.summaries = Summaries(self.observables)
        self.field = build_vector_field_estimator(
            torch.zeros(2, self.dim),
            torch.zeros(2, self.summaries.size),
            estimator_type="flow",
            z_score_x="none",
            z_score_y="none",
            hidden_features=2 * self.options.hidden,
            num_layers=self.options.transforms,
        )

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        generator = self.generator() if self.training else torch.Generator().manual_seed(self.seed)
        target = u.repeat(self.DRAWS, 1)
        time = torch.rand(len(target), generator=generator)
        noise = torch.randn(target.shape, generator=generator)
        at = (1 - time).unsqueeze(-1) * target + time.unsqueeze(-1) * noise
        seen = self.summaries(features).repeat(self.DRAWS, 1)
        errors = (self._rate(at, seen, time) - (noise - target)).square().mean(-1)
        return errors.reshape(self.DRAWS, len(u)).mean(0)

    def _rate(self, u: Tensor, seen: Tensor, time: Tensor) -> Tensor:
        rate: Tensor = self.field.forward(u, seen, time)
        return rate

    def draw(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        seen = self.summaries(features).repeat_interleave(count, 0)
        u = self.width * torch.randn(len(seen), self.dim, generator=generator)
        parts = [self._integrate(a, b)[0] for a, b in zip(u.split(ROWS), seen.split(ROWS), strict=True)]
        return torch.cat(parts).reshape(len(features), count, self.dim)

    def _integrate(self, u: Tensor, seen: Tensor, *, backwards: bool = False) -> tuple[Tensor, Tensor]:
        """Carry noise to parameters, or parameters to noise where ``backwards``; also the integral of the divergence."""
        h = (1 if backwards else -1) / self.STEPS
        total = torch.zeros(len(u))
        divergence = self._divergence if backwards else None
        for step in range(self.STEPS):
            t = torch.full((len(u),), step / self.STEPS if backwards else 1 - step / self.STEPS)
            rates: list[Tensor] = []
            traces: list[Tensor] = []
            for share in (0.0, 0.5, 0.5, 1.0):
                at = u + share * h * rates[-1] if rates else u
                if divergence is None:
                    rates.append(self._rate(at, seen, t + share * h))
                else:
                    rate, trace = divergence(at, seen, t + share * h)
                    rates.append(rate)
                    traces.append(trace)
            u = u + h / 6 * (rates[0] + 2 * rates[1] + 2 * rates[2] + rates[3])
            if traces:
                total = total + h / 6 * (traces[0] + 2 * traces[1] + 2 * traces[2] + traces[3])
        return u, total

    def _divergence(self, u: Tensor, seen: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            rate = self._rate(u, seen, time)
            rows = [torch.autograd.grad(rate[:, i].sum(), u, retain_graph=True)[0][:, i] for i in range(self.dim)]
        return rate.detach(), torch.stack(rows).sum(0)

    def noise(self, u: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.summaries(features).repeat_interleave(u.shape[1], 0)
        flat = u.reshape(-1, self.dim)
        ends = [self._integrate(a, b, backwards=True) for a, b in zip(flat.split(ROWS), seen.split(ROWS), strict=True)]
        noise, stretch = (torch.cat(parts) for parts in zip(*ends, strict=True))
        return noise.reshape(u.shape), stretch.reshape(u.shape[:2])
