"""Populations by differential equations, observed with noise: predators and prey, and an epidemic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.inference.priors import LOG_2PI, Array, IndependentPrior, LogNormal, Prior
from simkit.inference.simulator import Observable, Seeds
from simkit.inference.simulators.compiled import run
from simkit.inference.simulators.differential import DifferentialSimulator
from simkit.inference.simulators.draws import binomial, fine_uniforms, normals
from simkit.inference.simulators.options import chosen_prior
from simkit.inference.simulators.quantities import increasing, positive

_LOWEST, _HIGHEST = 1e-10, 1e4
"""Populations of predators and prey beyond which the benchmark takes these."""
_BLOCK, _PAIR = 4, 2
TIMES, DAYS = tuple(round(2.1 * k, 1) for k in range(10)), tuple(17.0 * k for k in range(10))


def _observe_by_factors(
    states: Any, k0: Any, k1: Any, constants: Any, out: Any
) -> None:  # pragma: no cover - compiled, as all below
    """Multiply by exp(sigma n). A population that is negative or not finite means that the steps were too long."""
    for first in range(0, out.size, _BLOCK):
        noise = normals(first // _BLOCK, k0, k1)
        for i in range(first, min(first + _BLOCK, out.size)):
            if not 0.0 <= states[i] < np.inf:
                out[:] = np.nan
                return
            out[i] = min(max(states[i], _LOWEST), _HIGHEST) * math.exp(constants[0] * noise[i - first])


def _observe_by_tests(states: Any, k0: Any, k1: Any, constants: Any, out: Any) -> None:  # pragma: no cover
    """Count the infected among those who are tested; the constants are the population and the tests."""
    for first in range(0, out.size, _PAIR):
        u = fine_uniforms(first // _PAIR, k0, k1)
        for i in range(first, min(first + _PAIR, out.size)):
            if not 0.0 <= states[i] < np.inf:
                out[:] = np.nan
                return
            out[i] = binomial(int(constants[1]), states[i] / constants[0], u[i - first])


class LotkaVolterra(DifferentialSimulator):
    """Lotka-Volterra: predators and prey by differential equations, observed with relative noise (sbibm).

    dx/dt = alpha x - beta x y, dy/dt = -gamma y + delta x y; the prey x and then the predators y are observed at each time, multiplied by
    exp(noise n). The defaults are those of Lueckmann et al., AISTATS (2021), arXiv:2101.04653, T.10, with the times of the benchmark's
    code: 0, 2.1, ..., 18.9. Populations beyond 1e-10 and 1e4 are observed as if they had these values, as there.

    Args:
        times: of the observations.
        initial: prey and predators at time 0.
        noise: standard deviation of the logarithm of an observation.
        timestep: the longest step of the integrator. By default the logarithms are wrong by less than 2e-4 in 999 of 1,000 draws from
            the prior.
        prior: of alpha, beta, gamma and delta, in place of the benchmark's.
    """

    name = "lotka_volterra"

    def __init__(
        self,
        times: tuple[float, ...] = TIMES,
        initial: tuple[float, float] = (30.0, 1.0),
        noise: float = 0.1,
        timestep: float = 0.005,
        prior: Prior | Mapping[str, Any] | None = None,
    ) -> None:
        positive(self.name, noise=noise, timestep=timestep, prey=initial[0], predators=initial[1])
        rate, contact = LogNormal(-0.125, 0.5), LogNormal(-3.0, 0.5)
        default = IndependentPrior({"alpha": rate, "beta": contact, "gamma": rate, "delta": contact})
        self.prior = chosen_prior(prior, default, 0.0)
        axis = increasing(self.name, "times", times)
        self.times, self.timestep, self.constants = np.array(axis), timestep, np.zeros(0)
        self.start, self.noise = np.array(initial, dtype=np.float64), noise
        self.observables = tuple(
            Observable(name, (len(axis),), kind="series", axis=axis, axis_label="time")
            for name in ("prey", "predators")
        )

    def settings(self) -> dict[str, Any]:
        return {"initial": self.start.tolist(), "noise": self.noise, "timestep": self.timestep}

    def initial(self) -> Array:
        return self.start

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        states = self.solve(theta).transpose(0, 2, 1).reshape(len(theta), -1)
        return run(_observe_by_factors, states, seeds, self.size, np.array([self.noise]))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        states = self.solution(theta).transpose(-1, -2).flatten(-2)
        logs, means = x.log(), states.clamp(_LOWEST, _HIGHEST).log()
        deviations = (logs - means) / self.noise
        return -(0.5 * (deviations.square() + LOG_2PI) + logs + math.log(self.noise)).sum(-1)

    @staticmethod
    def field(x: Any, y: Any, theta: Any, n: int, constants: Any) -> tuple[Any, Any]:  # pragma: no cover
        return x * (theta[0, n] - theta[1, n] * y), y * (theta[3, n] * x - theta[2, n])

    @staticmethod
    def slopes_field(
        x: Any, y: Any, u: Any, v: Any, theta: Any, n: int, constants: Any
    ) -> tuple[Any, ...]:  # pragma: no cover
        growth, loss, both = theta[0, n] - theta[1, n] * y, theta[3, n] * x - theta[2, n], x * y
        du = growth * u - theta[1, n] * x * v + theta[4, n] * x - theta[5, n] * both
        dv = loss * v + theta[3, n] * y * u - theta[6, n] * y + theta[7, n] * both
        return x * growth, y * loss, du, dv


class SIR(DifferentialSimulator):
    """SIR: an epidemic by differential equations, observed by random tests (sbibm).

    dS/dt = -beta S I/N, dI/dt = beta S I/N - gamma I; at each time the infected among those tested are counted, binomial with probability
    I/N. The defaults are those of Lueckmann et al., AISTATS (2021), arXiv:2101.04653, T.9, with the times of the benchmark's code: 0,
    17, ..., 153 days.

    Args:
        times: of the observations, in days.
        population: N.
        infected: I at time 0; the others are susceptible.
        tests: at each time.
        timestep: the longest step of the integrator, in days. By default I/N is wrong by less than 1e-5 in 999 of 1,000 draws from the
            prior.
        prior: of beta and gamma, in place of the benchmark's.
    """

    name = "sir"

    def __init__(
        self,
        times: tuple[float, ...] = DAYS,
        population: float = 1e6,
        infected: float = 1.0,
        tests: int = 1000,
        timestep: float = 0.1,
        prior: Prior | Mapping[str, Any] | None = None,
    ) -> None:
        positive(self.name, population=population, infected=infected, tests=tests, timestep=timestep)
        if infected > population:
            raise ConfigError(f"{infected:g} of a population of {population:g} cannot be infected")
        rates = {"beta": LogNormal(math.log(0.4), 0.5), "gamma": LogNormal(math.log(0.125), 0.2)}
        default = IndependentPrior(rates, dict.fromkeys(rates, "1/day"))
        self.prior = chosen_prior(prior, default, 0.0)
        axis = increasing(self.name, "times", times)
        self.times, self.timestep, self.constants = np.array(axis), timestep, np.array([1 / population])
        self.population, self.infected, self.tests = population, infected, tests
        self.observables = (Observable("infected", (len(axis),), kind="series", axis=axis, axis_label="time (day)"),)

    def settings(self) -> dict[str, Any]:
        names = ("population", "infected", "tests", "timestep")
        return {name: getattr(self, name) for name in names}

    def initial(self) -> Array:
        return np.array([self.population - self.infected, self.infected])

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        infected = self.solve(theta)[..., 1]
        return run(_observe_by_tests, infected, seeds, self.size, np.array([self.population, self.tests]))

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        # Bounded away from 0 and 1, where counts that cannot be would have no finite gradient.
        share = (self.solution(theta)[..., 1] / self.population).clamp(1e-100, 1 - 1e-15)
        ways = math.lgamma(self.tests + 1) - torch.lgamma(x + 1) - torch.lgamma(self.tests - x + 1)
        return (ways + x * share.log() + (self.tests - x) * torch.log1p(-share)).sum(-1)

    @staticmethod
    def field(s: Any, i: Any, theta: Any, n: int, constants: Any) -> tuple[Any, Any]:  # pragma: no cover
        infections = theta[0, n] * constants[0] * s * i
        return -infections, infections - theta[1, n] * i

    @staticmethod
    def slopes_field(
        s: Any, i: Any, u: Any, v: Any, theta: Any, n: int, constants: Any
    ) -> tuple[Any, ...]:  # pragma: no cover
        contacts = constants[0] * s * i
        change = theta[0, n] * constants[0] * (u * i + s * v) + theta[2, n] * contacts
        infections = theta[0, n] * contacts
        return -infections, infections - theta[1, n] * i, -change, change - theta[1, n] * v - theta[3, n] * i
