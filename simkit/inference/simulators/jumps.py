"""Populations of whole individuals, one random event after the other: D. T. Gillespie, J. Phys. Chem. 81, 2340 (1977), the direct method.

| Gillespie | Here |
| --- | --- |
| a_mu(X), equation 14: probability of reaction mu per time | ``weights`` |
| a_0, their sum, equation 19 | ``total`` |
| tau = ln(1/r_1)/a_0, equation 21a | time to the next event |
| mu, from r_2 a_0, equation 21b | ``chosen`` |
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numba import njit, types
from numba.core.dispatcher import Dispatcher

from simkit.errors import ConfigError
from simkit.inference.priors import Array, IndependentPrior, LogNormal, LogUniform, Prior
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.draws import uniforms
from simkit.inference.simulators.options import chosen_prior
from simkit.inference.simulators.quantities import increasing, positive
from simkit.inference.simulators.streams import key_of
from simkit.kernels.threads import run_tasks, task_count

_vector, _matrix = types.float64[::1], types.float64[:, ::1]
RATES = types.void(_vector, _vector, _vector, _vector)
"""Numba signature of the rates of all reactions: ``rates(numbers [C], theta [D], constants, out [R])``."""
_LEAST = 4
"""Simulations that are worth a thread."""
TIMES, DAYS = tuple(round(0.2 * k, 1) for k in range(1, 151)), tuple(5.0 * k for k in range(1, 25))


@functools.cache
def _compiled(rates: Callable[..., None]) -> Dispatcher:
    return njit(RATES, cache=True, error_model="numpy")(rates)


def _direct_method(rates, task, tasks, theta, seeds, start, changes, constants, times, most, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Run a task's share of the simulations; a row in which more than ``most`` events happen becomes NaN."""
    numbers, weights = np.empty(start.size), np.empty(len(changes))
    for i in range(task * len(theta) // tasks, (task + 1) * len(theta) // tasks):
        k0, k1 = key_of(seeds[i])
        numbers[:] = start
        t, point, event = 0.0, 0, 0
        u = uniforms(0, k0, k1)
        while point < times.size:
            if event & 1 == 0:  # a block of random numbers serves two events
                u = uniforms(event >> 1, k0, k1)
            rates(numbers, theta[i], constants, weights)
            total = weights.sum()
            t = t - math.log(u[2 * (event & 1)]) / total if total > 0.0 else np.inf
            while point < times.size and times[point] < t:
                out[i, :, point] = numbers
                point += 1
            if point == times.size:
                break
            if event == most:
                out[i] = np.nan
                break
            left, chosen = u[2 * (event & 1) + 1] * total, 0
            for reaction in range(weights.size):
                if weights[reaction] > 0.0:  # rounding must not choose what cannot happen
                    chosen = reaction
                    left -= weights[reaction]
                    if left < 0.0:
                        break
            numbers += changes[chosen]
            event += 1


@functools.cache
def _compiled_method() -> Dispatcher:
    arrays = _matrix, types.uint64[::1], _vector, _matrix, _vector, _vector, types.int64, types.float64[:, :, ::1]
    signature = types.void(types.FunctionType(RATES), types.int64, types.int64, *arrays)
    return njit(signature, cache=True, nogil=True, error_model="numpy")(_direct_method)


class JumpSimulator(Simulator):
    """A population model of C kinds of individuals and R reactions, exact in law, observed at T times without noise.

    A subclass sets the attributes and gives `rates`. A simulation in which more than `most` events happen before the last time has failed.

    Attributes:
        changes: what each reaction adds to the numbers, [R][C].
        kinds: names of the numbers.
        start: numbers at time 0, [C].
        constants: of the rates, a vector.
        times: of the observations, [T], from 0 on.
        most: events.
    """

    changes: ClassVar[tuple[tuple[int, ...], ...]]
    kinds: ClassVar[tuple[str, ...]]
    rates: ClassVar[Callable[..., None]]
    """The rates of all reactions for Numba, as `RATES` has it (a static method)."""
    start: Array
    constants: Array
    times: Array
    most: int

    def observe(self, time_label: str) -> tuple[Observable, ...]:
        """Return the numbers as observables."""
        axis = tuple(self.times.tolist())
        return tuple(Observable(n, (len(axis),), kind="series", axis=axis, axis_label=time_label) for n in self.kinds)

    def settings(self) -> dict[str, Any]:
        return {"start": self.start.tolist(), "constants": self.constants.tolist(), "most": self.most}

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        out = np.empty((len(theta), len(self.kinds), self.times.size))
        given = np.ascontiguousarray(theta, dtype=np.float64), np.ascontiguousarray(seeds, dtype=np.uint64)
        model = self.start, np.array(self.changes, dtype=np.float64), self.constants, self.times, self.most
        tasks, method, rates = task_count(max(1, len(theta) // _LEAST)), _compiled_method(), _compiled(type(self).rates)
        run_tasks(lambda task: method(rates, task, tasks, *given, *model, out), tasks)
        return out.reshape(len(theta), -1)


def _whole(**values: float) -> Array:
    """Return numbers of individuals.

    Raises:
        ConfigError: naming the first that is not a whole number from 0 on.
    """
    for name, value in values.items():
        if not (0 <= value < 2**53 and value == int(value)):
            raise ConfigError(f"{name} must be a whole number and not negative; found {value}")
    return np.array(list(values.values()), dtype=np.float64)


class LotkaVolterraJump(JumpSimulator):
    """Lotka-Volterra, stochastic: single predators and prey are born and die (Wilkinson 2006; Papamakarios & Murray 2016).

    The reactions have the rates alpha x (birth of prey), beta x y (death of prey), delta x y (birth of a predator) and gamma y (death of
    one), so that large populations follow the differential equations of "lotka_volterra". By default, the numbers at time 0, the times,
    the bound on events and the log-uniform prior from e^-5 to e^2 are those of Papamakarios & Murray, NeurIPS (2016), arXiv:1605.06376,
    section 4.3, and their code, whose theta_1 to theta_4 are delta, gamma, alpha and beta. Time 0, which says nothing, is left out.

    Args:
        times: of the observations.
        initial: prey and predators at time 0.
        events: that may happen; with more, the simulation has failed.
        prior: of alpha, beta, gamma and delta.
    """

    name = "lotka_volterra_jump"
    kinds = ("prey", "predators")
    changes = ((1, 0), (-1, 0), (0, 1), (0, -1))

    def __init__(
        self,
        times: tuple[float, ...] = TIMES,
        initial: tuple[int, int] = (100, 50),
        events: int = 10_000,
        prior: Prior | Mapping[str, Any] | None = None,
    ) -> None:
        positive(self.name, events=events)
        rate = LogUniform(math.exp(-5), math.exp(2))
        default = IndependentPrior(dict.fromkeys(("alpha", "beta", "gamma", "delta"), rate))
        self.prior = chosen_prior(prior, default, 0.0)
        self.times = np.array(increasing(self.name, "times", times))
        self.most, self.constants = events, np.zeros(0)
        self.start = _whole(prey=initial[0], predators=initial[1])
        self.observables = self.observe("time")

    @staticmethod
    def rates(numbers: Any, theta: Any, constants: Any, out: Any) -> None:  # pragma: no cover - compiled
        meetings = numbers[0] * numbers[1]
        out[0], out[1] = theta[0] * numbers[0], theta[1] * meetings
        out[2], out[3] = theta[3] * meetings, theta[2] * numbers[1]


class SIRJump(JumpSimulator):
    """SIR, stochastic: single people are infected and recover (Bailey 1957; Gillespie's direct method).

    Infections have the rate beta S I/N and recoveries gamma I. The prior is that of "sir". No more than 2 N events can happen, so no
    simulation fails.

    Args:
        times: of the observations, in days.
        population: N.
        infected: I at time 0; the others are susceptible.
        prior: of beta and gamma.
    """

    name = "sir_jump"
    kinds = ("susceptible", "infected")
    changes = ((-1, 1), (0, -1))

    def __init__(
        self,
        times: tuple[float, ...] = DAYS,
        population: int = 1000,
        infected: int = 5,
        prior: Prior | Mapping[str, Any] | None = None,
    ) -> None:
        positive(self.name, population=population)
        if infected > population:
            raise ConfigError(f"{infected} of a population of {population} cannot be infected")
        rates = {"beta": LogNormal(math.log(0.4), 0.5), "gamma": LogNormal(math.log(0.125), 0.2)}
        self.prior = chosen_prior(prior, IndependentPrior(rates, dict.fromkeys(rates, "1/day")), 0.0)
        self.times, self.most = np.array(increasing(self.name, "times", times)), 2 * population + 1
        self.start = _whole(susceptible=population - infected, infected=infected)
        self.constants = np.array([1 / population])
        self.observables = self.observe("time (day)")

    @staticmethod
    def rates(numbers: Any, theta: Any, constants: Any, out: Any) -> None:  # pragma: no cover - compiled
        out[0], out[1] = theta[0] * constants[0] * numbers[0] * numbers[1], theta[1] * numbers[1]
