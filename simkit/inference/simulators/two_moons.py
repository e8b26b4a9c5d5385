"""Two moons: a crescent whose place depends on |theta_1 + theta_2|, so that posteriors are two crescents."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from simkit.inference.priors import LOG_2PI, Array, IndependentPrior, Uniform
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.compiled import run
from simkit.inference.simulators.draws import normals, uniforms

_ROOT_HALF = math.sqrt(0.5)
_RADIUS, _SPREAD, _OFFSET = 0.1, 0.01, 0.25


def _two_moons(theta: Any, k0: Any, k1: Any, constants: Any, out: Any) -> None:  # pragma: no cover - compiled
    angle = math.pi * (uniforms(0, k0, k1)[0] - 0.5)
    radius = _RADIUS + _SPREAD * normals(0, k0, k1)[0]
    out[0] = radius * math.cos(angle) + _OFFSET - abs(theta[0] + theta[1]) * _ROOT_HALF
    out[1] = radius * math.sin(angle) + (theta[1] - theta[0]) * _ROOT_HALF


class TwoMoons(Simulator):
    """Two moons: two parameters with a posterior of two crescents (Greenberg et al. 2019; sbibm).

    x = (r cos a + 1/4, r sin a) + (-|theta_1 + theta_2|, -theta_1 + theta_2)/sqrt(2) with a uniform from -pi/2 to pi/2 and r normal of mean
    0.1 and standard deviation 0.01; theta uniform in [-1, 1]^2. Lueckmann et al., AISTATS (2021), arXiv:2101.04653, T.8.
    """

    name = "two_moons"

    def __init__(self) -> None:
        self.prior = IndependentPrior({"theta_1": Uniform(-1, 1), "theta_2": Uniform(-1, 1)})
        self.observables = (Observable("x", (2,)),)

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        return run(_two_moons, theta, seeds, self.size)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        first, second = theta.unbind(-1)
        u = x[0] - _OFFSET + (first + second).abs() * _ROOT_HALF
        v = x[1] - (second - first) * _ROOT_HALF
        distance = torch.hypot(u, v)
        # Left of the centre lie the radii below zero, ten standard deviations away.
        deviation = (torch.where(u > 0, distance, -distance) - _RADIUS) / _SPREAD
        return -0.5 * (deviation.square() + LOG_2PI) - math.log(_SPREAD) - (math.pi * distance).log()
