"""Gaussian tasks: the mean of normal data under a normal and a uniform prior, and of a mixture of two widths."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.inference.priors import LOG_2PI, Array, IndependentPrior, NormalPrior, Prior, Uniform
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.compiled import run
from simkit.inference.simulators.draws import normals, uniforms

_VARIANCE = 0.1
_SCALES = 1.0, 0.1
_BLOCK = 4


def _add_noise(
    theta: Any, k0: Any, k1: Any, constants: Any, out: Any
) -> None:  # pragma: no cover - compiled, as all below
    """Normal noise whose width is one of the constants, each as probable as the others."""
    scale = constants[int(uniforms(0, k0, k1)[0] * constants.size)]
    for first in range(0, out.size, _BLOCK):
        noise = normals(first // _BLOCK, k0, k1)
        for i in range(first, min(first + _BLOCK, out.size)):
            out[i] = theta[i] + scale * noise[i - first]


def _names(dim: int) -> list[str]:
    if dim < 1:
        raise ConfigError(f"dim must be positive; found {dim}")
    return [f"theta_{i + 1}" for i in range(dim)]


class _Gaussian(Simulator):
    """x = theta + sqrt(0.1) n."""

    def __init__(self, dim: int = 10) -> None:
        self.prior = self._prior(_names(dim))
        self.observables = (Observable("x", (dim,)),)

    @abstractmethod
    def _prior(self, names: list[str]) -> Prior:
        """Return the prior of given parameters."""

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        return run(_add_noise, theta, seeds, self.size, np.array([math.sqrt(_VARIANCE)]))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return -0.5 * ((x - theta).square() / _VARIANCE + LOG_2PI + math.log(_VARIANCE)).sum(-1)


class GaussianLinear(_Gaussian):
    """Gaussian linear: the mean of normal data under a normal prior (sbibm).

    x and theta both have the covariance 0.1 I. Lueckmann et al., AISTATS (2021), arXiv:2101.04653, T.1.

    Args:
        dim: number of parameters.
    """

    name = "gaussian_linear"

    def _prior(self, names: list[str]) -> Prior:
        return NormalPrior(np.zeros(len(names)), _VARIANCE * np.eye(len(names)), names)


class GaussianLinearUniform(_Gaussian):
    """Gaussian linear uniform: the mean of normal data under a uniform prior (sbibm).

    x has the covariance 0.1 I, theta is uniform in [-1, 1]^dim. Lueckmann et al., AISTATS (2021), arXiv:2101.04653, T.2.

    Args:
        dim: number of parameters.
    """

    name = "gaussian_linear_uniform"

    def _prior(self, names: list[str]) -> Prior:
        return IndependentPrior({name: Uniform(-1, 1) for name in names})


class GaussianMixture(Simulator):
    """Gaussian mixture: the common mean of two normal distributions, one wide and one narrow (Sisson et al. 2007; sbibm).

    x is theta + n or theta + n/10, each with probability 1/2, in two dimensions; theta is uniform in [-10, 10]^2. Lueckmann et al., AISTATS
    (2021), arXiv:2101.04653, T.7.
    """

    name = "gaussian_mixture"

    def __init__(self) -> None:
        self.prior = IndependentPrior({name: Uniform(-10, 10) for name in _names(2)})
        self.observables = (Observable("x", (2,)),)

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        return run(_add_noise, theta, seeds, self.size, np.array(_SCALES))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        squares = (x - theta).square().sum(-1)
        parts = [-0.5 * squares / s**2 - LOG_2PI - math.log(2 * s * s) for s in _SCALES]
        return torch.logsumexp(torch.stack(parts), 0)
