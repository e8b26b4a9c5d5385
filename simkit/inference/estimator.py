"""`Estimator`: a network with all that stands between it and raw parameters and outputs.

Outside, estimators speak of standard normal parameters z, in which nothing has bounds. Inside, parameters of a bounded prior may be
v = sqrt(3) (2 P(z) - 1), with P the normal distribution function: uniform, because outputs often depend on them more simply than on z.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.errors import MissingDependencyError
from simkit.inference.features import Features
from simkit.inference.priors import LOG_2PI, Array
from simkit.inference.simulator import Observable
from simkit.inference.spread import sample_factor

BOUND = math.sqrt(3.0)
"""Of v, where the prior is bounded: its standard deviation is one."""
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
        z_mean: [D] and ``z_factor`` [D, D]: parameters are whitened, u = L^-1 (v - m), because those simulated last may be few and close.
        bounded: which parameters have a bounded prior and are learned as v, [D] bool.
        draws: how often random numbers were drawn in training, [] int64.
    """

    name: ClassVar[str]
    needs_densities: ClassVar[bool] = False
    """Whether it learns the density of outputs, for which whole numbers must be spread."""
    z_mean: Tensor
    z_factor: Tensor
    bounded: Tensor
    draws: Tensor

    def __init__(
        self,
        dim: int,
        observables: Sequence[Observable],
        options: NetworkOptions,
        seed: int = 0,
        bounded: Sequence[bool] = (),
    ) -> None:
        _require_sbi()
        super().__init__()
        self.dim, self.options, self.seed = dim, options, seed
        self.observables = tuple(observables)
        self.features = Features(observables)
        self.register_buffer("z_mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("z_factor", torch.eye(dim, dtype=torch.float64))
        self.register_buffer("bounded", torch.tensor(list(bounded) or [False] * dim))
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
    def adapt(self, z: Array, x: Array, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Choose the scales of parameters z [N, D] and outputs [N, K], build the network and return what it is to be trained on.

        Returns:
            Whitened parameters [N, D] and features [N, K], float32.

        Raises:
            DataError: if all outputs are constant.
        """
        self.features.adapt(x)
        values, outputs = torch.from_numpy(z), torch.from_numpy(np.ascontiguousarray(x))
        features = self.features(outputs, generator if self.needs_densities else None)
        expected = self.regress(values, features)
        rest = self.natural(values) - expected
        self.z_mean.copy_(rest.mean(0))
        self.z_factor.copy_(sample_factor(rest, floor=1e-12))
        self.build()
        return self.whiten(values, expected), features

    def regress(self, z: Tensor, features: Tensor) -> Tensor:
        """Fit `expected` to parameters z [N, D] and features [N, K]; return what it would give for each, fitted to all others."""
        return self.expected(features)

    def expected(self, features: Tensor) -> Tensor:
        """Return what is taken from v before it is whitened, [..., D] float64, for features [..., K]: zero by default."""
        return torch.zeros((), dtype=torch.float64)

    def natural(self, z: Tensor) -> Tensor:
        """Return v, [..., D], for z."""
        return torch.where(self.bounded, BOUND * (2 * torch.special.ndtr(z) - 1), z)

    def unbounded(self, v: Tensor) -> Tensor:
        """Return z, [..., D], for v; NaN outside the bounds."""
        inside = v.abs() < BOUND
        z = torch.special.ndtri((torch.where(inside, v, 0.0) / BOUND + 1) / 2)
        return torch.where(self.bounded, torch.where(inside, z, torch.nan), v)

    def log_stretch(self, z: Tensor) -> Tensor:
        """Return log |dv/dz|, [...]."""
        logs = math.log(2 * BOUND) - 0.5 * (z.square() + LOG_2PI)
        return torch.where(self.bounded, logs, 0.0).sum(-1)

    def whiten(self, z: Tensor, expected: Tensor) -> Tensor:
        """Return u, [..., D] float32, for z, [..., D] float64, and what is `expected` given the features that go with them."""
        centered = (self.natural(z) - expected - self.z_mean).reshape(-1, self.dim).T
        return torch.linalg.solve_triangular(self.z_factor, centered, upper=False).T.reshape(z.shape).float()

    def colour(self, u: Tensor, features: Tensor) -> Tensor:
        """Return z, [..., D] float64, for u; NaN outside the bounds of the prior."""
        return self.unbounded(self.z_mean + u.double() @ self.z_factor.T + self.expected(features))

    @property
    def log_volume(self) -> Tensor:
        """The logarithm of |dv/du|."""
        return self.z_factor.diagonal().log().sum()

    def generator(self) -> torch.Generator:
        """Return the generator of one training step: a function of the seed and of how many there were."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.draws))
        self.draws += 1
        return generator


def build_flow(
    kind: Literal["nsf", "maf"], density_of: int, given: int, options: NetworkOptions, embedding: nn.Module
) -> nn.Module:
    """Return a flow over ``density_of`` values given others, which go through an embedding; ``kind`` where the options leave it open."""
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


def _require_sbi() -> None:
    try:
        import sbi  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("neural inference needs sbi: pip install 'simkit[inference]'") from error
