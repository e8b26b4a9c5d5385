"""Neural estimators of posteriors, likelihoods and ratios, in standard normal parameters z and standardised outputs.

| Name | Learns | Loss | Source |
| --- | --- | --- | --- |
| npe | log q(z given x), a flow | -log q | Papamakarios & Murray, NeurIPS 2016; Greenberg et al., ICML 2019 |
| fmpe | a vector field whose flow carries noise to the posterior | squared error of the field | Wildberger et al., NeurIPS 2023 |
| nle | log q(x given z), a flow | -log q | Papamakarios et al., AISTATS 2019 |
| nre | log p(x given z) / p(x) up to a function of x, a classifier | contrastive cross-entropy | Durkan et al., ICML 2020 |

The networks are those of `sbi` (flows from zuko).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.errors import MissingDependencyError
from simkit.inference.features import Features, Summaries
from simkit.inference.priors import LOG_2PI, Array
from simkit.inference.simulator import Observable

SPLINE_OUTPUTS = 4
ROWS = 20_000
"""Rows that a network sees at once, to bound memory."""


class NetworkOptions(Options):
    """Size and kind of the networks."""

    flow: Literal["auto", "nsf", "maf"] = Field(
        "auto",
        description="neural spline flow or masked autoregressive flow (npe, nle): splines for npe, and for nle of up to four outputs",
    )
    hidden: int = Field(64, ge=1, description="units of a layer")
    transforms: int = Field(5, ge=1, description="of a flow; blocks of the other networks")
    atoms: int = Field(10, ge=2, description="parameters among which the right one is to be found (nre)")


class Estimator(nn.Module, ABC):
    """A network with all that stands between it and raw parameters and outputs.

    Attributes:
        z_mean: [D] and ``z_factor`` [D, D]: parameters are whitened, u = L^-1 (z - m), because those simulated last may be few and close.
        draws: how often random numbers were drawn in training, [] int64.
    """

    name: ClassVar[str]
    z_mean: Tensor
    z_factor: Tensor
    draws: Tensor

    def __init__(self, dim: int, observables: Sequence[Observable], options: NetworkOptions, seed: int = 0) -> None:
        _require_sbi()
        super().__init__()
        self.dim, self.options, self.seed = dim, options, seed
        self.observables = tuple(observables)
        self.features = Features(observables)
        self.register_buffer("z_mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("z_factor", torch.eye(dim, dtype=torch.float64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def make_network(self) -> None:
        """Build the network, with PyTorch's generator seeded by the caller; it may depend on the features."""

    @abstractmethod
    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        """Return the loss of each pair, [B], for whitened parameters [B, D] and features [B, K]."""

    def build(self) -> None:
        """Build the network with its initial weights, a function of the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.make_network()

    @torch.no_grad()
    def adapt(self, z: Array, x: Array) -> None:
        """Choose the scales of parameters and outputs from those that will be trained on, and build the network.

        Raises:
            DataError: if all outputs are constant.
        """
        values = torch.from_numpy(z)
        self.z_mean.copy_(values.mean(0))
        spread = torch.cov(values.T).reshape(self.dim, self.dim) + 1e-12 * torch.eye(self.dim, dtype=torch.float64)
        self.z_factor.copy_(torch.linalg.cholesky(spread))
        self.features.adapt(x)
        self.build()

    def whiten(self, z: Tensor) -> Tensor:
        """Return u, [..., D] float32, for z, [..., D] float64."""
        centered = (z - self.z_mean).reshape(-1, self.dim).T
        return torch.linalg.solve_triangular(self.z_factor, centered, upper=False).T.reshape(z.shape).float()

    def colour(self, u: Tensor) -> Tensor:
        """Return z, [..., D] float64, for u."""
        return self.z_mean + u.double() @ self.z_factor.T

    @property
    def log_volume(self) -> Tensor:
        """The logarithm of |dz/du|."""
        return self.z_factor.diagonal().log().sum()

    def generator(self) -> torch.Generator:
        """Return the generator of one training step: a function of the seed and of how many there were."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.draws))
        self.draws += 1
        return generator

    def describe(self) -> dict[str, Any]:
        """Return what `simkit.inference.files` needs to build the same network."""
        return {"seed": self.seed, "options": self.options.model_dump()}


class DirectEstimator(Estimator):
    """An estimator of the posterior itself."""

    @abstractmethod
    def sample_z(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return z, [M, count, D] float64, given each of M outputs [M, K]."""

    @abstractmethod
    def log_posterior(self, z: Tensor, x: Tensor) -> Tensor:
        """Return log q(z given x), [M, N], for z [M, N, D] and outputs [M, K]."""


class LikelihoodEstimator(Estimator):
    """An estimator of the likelihood up to a function of x."""

    @abstractmethod
    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        """Return log p(x given z) + c(x), [M, N], for z [M, N, D] and outputs [M, K]; differentiable in z."""


def _flow(
    kind: Literal["nsf", "maf"], density_of: int, given: int, options: NetworkOptions, embedding: nn.Module
) -> nn.Module:
    from sbi.neural_nets.net_builders.flow import build_zuko_maf, build_zuko_nsf

    build = {"nsf": build_zuko_nsf, "maf": build_zuko_maf}[kind if options.flow == "auto" else options.flow]
    flow: nn.Module = build(
        torch.zeros(2, density_of),
        torch.zeros(2, given),
        z_score_x="none",
        z_score_y="none",
        hidden_features=[options.hidden] * 2,
        num_transforms=options.transforms,
        embedding_net=embedding,
    )
    return flow


def _base_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator)


class PosteriorFlow(DirectEstimator):
    """NPE: a normalizing flow over parameters, given outputs."""

    name = "npe"
    flow: Any

    def make_network(self) -> None:
        self.flow = _flow("nsf", self.dim, len(self.features.varying), self.options, Summaries(self.observables))

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        return -self.flow.log_prob(u.unsqueeze(0), features).squeeze(0)

    def _given(self, x: Tensor) -> Any:
        """Return the distributions of zuko, [M] of them; each output is summarised once."""
        return self.flow.net(self.flow.embedding_net(self.features(x)))

    def sample_z(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        noise = _base_noise((count, len(x), self.dim), generator)
        return self.colour(self._given(x).transform.inv(noise).transpose(0, 1))

    def log_posterior(self, z: Tensor, x: Tensor) -> Tensor:
        logs: Tensor = self._given(x).log_prob(self.whiten(z).transpose(0, 1))
        return logs.transpose(0, 1).double() - self.log_volume


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
        noise = _base_noise(target.shape, generator)
        at = (1 - time).unsqueeze(-1) * target + time.unsqueeze(-1) * noise
        seen = self.summaries(features).repeat(self.DRAWS, 1)
        errors = (self._rate(at, seen, time) - (noise - target)).square().mean(-1)
        return errors.reshape(self.DRAWS, len(u)).mean(0)

    def _rate(self, u: Tensor, seen: Tensor, time: Tensor) -> Tensor:
        rate: Tensor = self.field.forward(u, seen, time)
        return rate

    def sample_z(self, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
        seen = self.summaries(self.features(x)).repeat_interleave(count, 0)
        u = _base_noise((len(seen), self.dim), generator)
        parts = [self._integrate(a, b)[0] for a, b in zip(u.split(ROWS), seen.split(ROWS), strict=True)]
        return self.colour(torch.cat(parts)).reshape(len(x), count, self.dim)

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

    def log_posterior(self, z: Tensor, x: Tensor) -> Tensor:
        seen = self.summaries(self.features(x)).repeat_interleave(z.shape[1], 0)
        u = self.whiten(z).reshape(-1, self.dim)
        ends = [self._integrate(a, b, backwards=True) for a, b in zip(u.split(ROWS), seen.split(ROWS), strict=True)]
        logs = [-0.5 * (noise.square() + LOG_2PI).sum(-1) + total for noise, total in ends]
        return torch.cat(logs).double().reshape(z.shape[:2]) - self.log_volume


class LikelihoodFlow(LikelihoodEstimator):
    """NLE: a normalizing flow over the outputs that vary, given parameters."""

    name = "nle"
    flow: Any

    def make_network(self) -> None:
        # Splines cost time for every output, and the likelihood of many outputs is often nearly normal.
        size = int(self.features.varying.sum())
        self.flow = _flow("nsf" if size <= SPLINE_OUTPUTS else "maf", size, self.dim, self.options, nn.Identity())

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        return -self.flow.log_prob(features[:, self.features.varying].unsqueeze(0), u).squeeze(0)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        u = self.whiten(z).reshape(-1, self.dim)
        seen = self.features(x)[:, self.features.varying].repeat_interleave(z.shape[1], 0)
        parts = [
            self.flow.log_prob(b.unsqueeze(0), a).squeeze(0)
            for a, b in zip(u.split(ROWS), seen.split(ROWS), strict=True)
        ]
        return torch.cat(parts).double().reshape(z.shape[:2])


class RatioClassifier(LikelihoodEstimator):
    """NRE: a residual network that tells the parameters of an output from those of others (contrastive, several atoms)."""

    name = "nre"
    classifier: Any

    def make_network(self) -> None:
        from sbi.neural_nets.net_builders.classifier import build_resnet_classifier

        self.summaries = Summaries(self.observables)
        self.classifier = build_resnet_classifier(
            torch.zeros(2, self.dim),
            torch.zeros(2, self.summaries.size),
            z_score_x="none",
            z_score_y="none",
            hidden_features=self.options.hidden,
            num_blocks=self.options.transforms,
        )

    def _logits(self, u: Tensor, summaries: Tensor) -> Tensor:
        logits: Tensor = self.classifier.unnormalized_log_ratio(u, summaries)
        return logits

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        size = len(u)
        atoms = min(self.options.atoms, size)
        generator = self.generator() if self.training else torch.Generator().manual_seed(self.seed)
        # Atoms are other rows of the batch, without repetition: cyclic shifts by distinct random distances.
        shifts = 1 + torch.randperm(size - 1, generator=generator)[: atoms - 1]
        others = (torch.arange(size).unsqueeze(1) + shifts) % size
        candidates = torch.cat([u.unsqueeze(1), u[others]], 1)
        summaries = self.summaries(features).unsqueeze(1).expand(-1, atoms, -1)
        logits = self._logits(candidates.flatten(0, 1), summaries.flatten(0, 1)).reshape(size, atoms)
        return logits.logsumexp(1) - logits[:, 0]

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        u = self.whiten(z).reshape(-1, self.dim)
        seen = self.summaries(self.features(x)).repeat_interleave(z.shape[1], 0)
        parts = [self._logits(a, b) for a, b in zip(u.split(ROWS), seen.split(ROWS), strict=True)]
        return torch.cat(parts).double().reshape(z.shape[:2])


ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (PosteriorFlow, FlowMatching, LikelihoodFlow, RatioClassifier)
}


def _require_sbi() -> None:
    try:
        import sbi  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("neural inference needs sbi: pip install 'simkit[inference]'") from error
