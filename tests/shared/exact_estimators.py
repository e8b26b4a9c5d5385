"""Estimators that know the answer, so that what is built on estimators can be tested without training any."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simkit.inference.direct import DirectEstimator
from simkit.inference.estimator import NetworkOptions
from simkit.inference.likelihood import LikelihoodEstimator, RatioClassifier
from simkit.inference.simulator import Observable

ONE = (Observable("x"),)


class MixtureLikelihood(LikelihoodEstimator):
    """log of sum_k w_k exp(-|z - c_k|^2 / (2 s^2)) + constant, whatever was observed.

    Args:
        centers: c_k, [K][D].
        weights: w_k, [K].
    """

    name = "mixture"

    def __init__(
        self, centers: Sequence[Sequence[float]], weights: Sequence[float], sd: float, constant: float = 0.0
    ) -> None:
        super().__init__(len(centers[0]), ONE, NetworkOptions())
        self.centers = torch.tensor(centers, dtype=torch.float64)
        self.weights = torch.tensor(weights, dtype=torch.float64).log()
        self.sd, self.constant = sd, constant

    def make_network(self) -> None:
        raise NotImplementedError("there is none")

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        raise NotImplementedError("it is not trained")

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        away = (z.unsqueeze(-2) - self.centers) / self.sd
        return torch.logsumexp(self.weights - 0.5 * away.square().sum(-1), -1) + self.constant


class GaussianDirect(DirectEstimator):
    """The posterior N(mean + slopes x, sd^2 1), of a width that can be set; by default the same whatever was observed."""

    name = "gaussian"

    def __init__(self, mean: Sequence[float], sd: float) -> None:
        super().__init__(len(mean), ONE, NetworkOptions())
        self.mean, self.sd = torch.tensor(mean), sd

    def make_network(self) -> None:
        raise NotImplementedError("there is none")

    def losses(self, u: Tensor, features: Tensor) -> Tensor:
        raise NotImplementedError("it is not trained")

    def draw(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return self.mean + self.sd * self.width * torch.randn(len(features), count, self.dim, generator=generator)

    def noise(self, u: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return (u - self.mean) / self.sd, torch.full(u.shape[:2], -self.dim * math.log(self.sd))


class GaussianRatio(RatioClassifier):
    """The logarithm of a ratio: -|z - center|^2 / 2 and a constant of its own."""

    def __init__(self, center: Sequence[float], constant: float) -> None:
        super().__init__(len(center), ONE, NetworkOptions())
        self.center, self.constant = torch.tensor(center, dtype=torch.float64), constant

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        return self.constant - 0.5 * (z - self.center).square().sum(-1)
