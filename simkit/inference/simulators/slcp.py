"""SLCP, simple likelihood and complex posterior: four points of a normal distribution in the plane, alone or hidden among distractors."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from simkit.inference.priors import LOG_2PI, Array, IndependentPrior, Uniform
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.compiled import run
from simkit.inference.simulators.draws import normals, uniforms

_POINTS = 4
_JITTER = 1e-6  # added to variances by the benchmark's code, so that the covariance can always be factored
_NOISE, _COMPONENTS, _SEED = 92, 20, 42
_BLOCK = 4


@njit(forceinline=True, error_model="numpy")
def _points(theta, k0, k1, places, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Write four points to given places of the output."""
    first, second = theta[2] * theta[2], theta[3] * theta[3]
    spread = math.sqrt(first * first + _JITTER)
    slope = math.tanh(theta[4]) * first * second / spread
    rest = math.sqrt(second * second + _JITTER - slope * slope)
    for pair in range(_POINTS // 2):
        n = normals(pair, k0, k1)
        for i in range(2):
            place = 4 * pair + 2 * i
            out[int(places[place])] = theta[0] + spread * n[2 * i]
            out[int(places[place + 1])] = theta[1] + slope * n[2 * i] + rest * n[2 * i + 1]


def _slcp(theta: Any, k0: Any, k1: Any, constants: Any, out: Any) -> None:  # pragma: no cover
    _points(theta, k0, k1, constants, out)


def _slcp_distractors(theta: Any, k0: Any, k1: Any, constants: Any, out: Any) -> None:  # pragma: no cover
    """The constants are the places of all values, and the means and factors of the distractors' components, end to end."""
    places = constants[: out.size]
    _points(theta, k0, k1, places, out)
    which, rest, _, _ = uniforms(0, k0, k1)
    component = int(which * _COMPONENTS)
    stretch = 1.0 / math.sqrt(-math.log(rest))  # of Student's t with two degrees of freedom: chi^2/2 is exponential
    mean = constants[out.size + component * _NOISE :]
    factor = constants[out.size + _COMPONENTS * _NOISE + component * _NOISE * _NOISE :]
    noise = np.empty(_NOISE)
    for block in range(_NOISE // _BLOCK):
        n = normals(_POINTS // 2 + block, k0, k1)
        for i in range(_BLOCK):
            noise[_BLOCK * block + i] = n[i]
    for row in range(_NOISE):
        total = 0.0
        for column in range(row + 1):
            total += factor[row * _NOISE + column] * noise[column]
        out[int(places[2 * _POINTS + row])] = mean[row] + stretch * total


def _log_likelihood(theta: Tensor, points: Tensor) -> Tensor:
    """Return the log density, [...], of points [8] under parameters [..., 5]."""
    first, second, rho = theta[..., 2].square(), theta[..., 3].square(), theta[..., 4].tanh()
    spread = (first.square() + _JITTER).sqrt()
    slope = rho * first * second / spread
    rest = (second.square() + _JITTER - slope.square()).sqrt()
    x, y = (points.view(_POINTS, 2) - theta[..., None, :2]).unbind(-1)
    n = x / spread[..., None]
    m = (y - slope[..., None] * n) / rest[..., None]
    return -0.5 * (n.square() + m.square()).sum(-1) - _POINTS * (LOG_2PI + spread.log() + rest.log())


class SLCP(Simulator):
    """SLCP: four points of a normal distribution, five parameters, a posterior of four modes (Papamakarios et al. 2019; sbibm).

    The mean is (theta_1, theta_2), the standard deviations are theta_3^2 and theta_4^2, the correlation is tanh theta_5; theta is uniform
    in [-3, 3]^5. Lueckmann et al., AISTATS (2021), arXiv:2101.04653, T.3; with 1e-6 added to both variances, as in the benchmark's code.
    """

    name = "slcp"

    def __init__(self) -> None:
        self.prior = IndependentPrior({f"theta_{i}": Uniform(-3, 3) for i in range(1, 6)})
        self.observables = (Observable("points", (_POINTS, 2), kind="set"),)

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        return run(_slcp, theta, seeds, self.size, np.arange(2.0 * _POINTS))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return _log_likelihood(theta, x)


class SLCPDistractors(Simulator):
    """SLCP among distractors: its eight values and 92 that say nothing of the parameters, in a fixed random order (sbibm).

    The others are drawn from a mixture of 20 Student t distributions of two degrees of freedom. Lueckmann et al., AISTATS (2021),
    arXiv:2101.04653, T.4; the numbers that define the mixture and the order are drawn as in the benchmark's code.
    """

    name = "slcp_distractors"

    def __init__(self) -> None:
        self.prior = SLCP().prior
        self.observables = (Observable("x", (2 * _POINTS + _NOISE,)),)

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        return run(_slcp_distractors, theta, seeds, self.size, np.concatenate(distractors()))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        return _log_likelihood(theta, x[torch.from_numpy(distractors()[0][: 2 * _POINTS]).long()])


@functools.cache
def distractors() -> tuple[Array, Array, Array]:
    """Return what defines the distractors.

    Returns:
        The places in the output, [100], of the eight values and then of the distractors; the means of the components, [20 * 92]; and
        the factors L of their scale matrices L L^T, [20 * 92 * 92].
    """
    # The benchmark drew them by NumPy's old generator, in this order: each factor's matrix before its diagonal, and the order last.
    rng = np.random.RandomState(_SEED)
    means = np.array([15 * rng.normal(size=_NOISE) for _ in range(_COMPONENTS)])
    square = (_NOISE, _NOISE)
    factors = [np.tril(rng.normal(size=square)) + np.diag(np.exp(rng.normal(size=_NOISE))) for _ in range(_COMPONENTS)]
    order = rng.permutation(_NOISE + 2 * _POINTS)
    return np.argsort(order).astype(np.float64), means.ravel(), 3 * np.array(factors).ravel()
