"""`SystemSimulator`: any known system of `simkit.surrogates.systems`, observed with errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.config import nearest
from simkit.errors import ConfigError, SimkitError
from simkit.inference.priors import LOG_2PI, Array, Prior, prior_from
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.quantities import Quantities, Quantity, increasing, positive
from simkit.inference.simulators.streams import standard_normals
from simkit.surrogates.systems import Dynamics, FirstOrder, build_any
from simkit.surrogates.systems.ensembles import METHODS, fixed_steps

DIFFERENCE = 1e-6
"""Half of a difference, in standard deviations of the prior."""
_ENTRY = re.compile(r"(\w+)\[(\d+)\]")


class SystemSimulator(Simulator):
    """A known system with unknown parameters or initial conditions, observed at given times with normal errors.

    Parameters are named as those of the system's class, such as ``length`` of "laboratory_pendulum" (of lists by their place, such as
    ``masses[0]``); initial conditions are ``initial_q1``, ``initial_p1``, ...; the standard deviation of the errors is ``noise``, or one
    for each coordinate, ``noise_q1``, ...; instruments may read ``scale_q1`` (1) times the coordinate plus ``offset_q1`` (0). Those that
    the prior does not name have the values of ``fixed``, or where there are any the defaults. The state is q1, ..., qD, p1, ..., pD, of a
    system without momenta q1, ..., qN.

    Motion is deterministic, so that the likelihood is known: `log_likelihood`. What leaves to infinity, and parameters that the system
    refuses, are failed simulations.

    Args:
        system: a name of `simkit.surrogates.systems.REGISTRY` or ``FIRST_ORDER``.
        prior: of what is free, a `Prior` or what `prior_from` takes.
        times: of the observations, increasing.
        observe: coordinates, by default all; one series of the output each, in this order.
        fixed: values of what is not free.
        options: of the system that are no numbers with a point, such as {"links": 3}.
        initial_time: when the initial conditions hold; the first of the times where not given.
        method: "rk4", or a splitting scheme of `simkit.integrators` for a system T(p) + V(q).
        timestep: the longest; by default one step from one time to the next, which is for dense observations only.
        units: of coordinates, such as {"q1": "rad"}. time_unit: of times.

    Raises:
        ConfigError: if a name is unknown or a value not usable.
    """

    name = "system"

    def __init__(
        self,
        system: str,
        prior: Prior | Mapping[str, Any],
        *,
        times: Sequence[float],
        observe: Sequence[str] | None = None,
        fixed: Mapping[str, float] | None = None,
        options: Mapping[str, Any] | None = None,
        initial_time: float | None = None,
        method: str = "rk4",
        timestep: float | None = None,
        units: Mapping[str, str] | None = None,
        time_unit: str = "",
    ) -> None:
        self.prior = prior if isinstance(prior, Prior) else prior_from(prior)
        self._options = dict(options or {})
        self.system = build_any(system, self._options)
        self._state = _coordinates(self.system)
        observed = tuple(self._state if observe is None else observe)
        for name in (*observed, *(units or {})):
            if name not in self._state:
                raise ConfigError(f"{system} has no coordinate {name!r}{nearest(name, self._state)}")
        if not observed or len(set(observed)) < len(observed):
            raise ConfigError(f"{self.name}: expected coordinates to observe, each once; found {list(observed)}")
        self._observed = [self._state.index(name) for name in observed]
        self._quantities = Quantities(self.name, self._known(observed, fixed or {}), self.prior, fixed)
        first = float(times[0]) if initial_time is None and len(times) else float(initial_time or 0.0)
        self.times = increasing(self.name, "times", times, least=first)
        self.initial_time, self.method, self.timestep = first, method, timestep
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}{nearest(method, METHODS)}")
        if method != "rk4" and not (self.system.conservative and getattr(self.system, "separable", False)):
            raise ConfigError(f"{system} is no system T(p) + V(q), as {method!r} needs it; take method='rk4'")
        if timestep is not None:
            positive(self.name, timestep=timestep)
        axis = f"time / {time_unit}" if time_unit else "time"
        self.observables = tuple(
            Observable(name, (len(self.times),), (units or {}).get(name, ""), "series", self.times, axis)
            for name in observed
        )

    def settings(self) -> dict[str, Any]:
        return self._quantities.describe() | {
            "system": self.system.name, "options": self._options, "initial_time": self.initial_time, "method": self.method,
            "timestep": self.timestep,
        }  # fmt: skip

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        out = self.motion(theta)
        errors = standard_normals(seeds, self.size).reshape(len(theta), len(self._observed), len(self.times))
        spreads = np.stack([self._quantities.column(theta, name) for name in self._noises], axis=1)
        out += (spreads[:, :, None] * errors).reshape(out.shape)
        out[~np.isfinite(out).all(axis=1)] = np.nan
        return out

    def motion(self, theta: Array) -> Array:
        """Return what would be observed without errors, [N, K], for parameters [N, D]; NaN or infinite where it failed."""
        rows = np.flatnonzero(self._quantities.possible(theta))
        out = np.full((len(theta), self.size), np.nan)
        kept, parameters = self._parameters(theta[rows])
        rows = rows[kept]
        if not len(rows):
            return out
        states = np.stack([self._quantities.column(theta[rows], f"initial_{name}") for name in self._state], axis=1)
        later = self.initial_time < self.times[0]
        grid = np.array([self.initial_time, *self.times] if later else self.times)
        field = type(self.system).field
        with np.errstate(all="ignore"):
            path = fixed_steps(field, parameters, states, grid, method=self.method, timestep=self.timestep)
        read = path[:, int(later) :, self._observed].transpose(0, 2, 1)
        names = [observable.name for observable in self.observables]
        scale, offset = (
            np.stack([self._quantities.column(theta[rows], f"{kind}_{name}") for name in names], axis=1)[:, :, None]
            for kind in ("scale", "offset")
        )
        out[rows] = (scale * read + offset).reshape(len(rows), -1)
        return out

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return the log density, [...], of an observation [K] given parameters [..., D].

        Gradients, where theta requires them, are those of the compiled motion by central differences: about nine digits, many times
        faster than recording each step, and for every system. They cannot be differentiated again.

        Returns:
            Minus infinity where the motion failed.

        Raises:
            ConfigError: if there are no errors, and so no density.
        """
        flat = theta.reshape(-1, self.prior.dim)
        mean = _Motion.apply(flat, self)
        spread = torch.stack([self._quantities.tensor(flat, name).expand(len(flat)) for name in self._noises], dim=1)
        if not self._noise_is_free and not bool((spread > 0).all()):
            raise ConfigError(
                f"{self.name}: without errors of measurement there is no density; give a positive noise, or free it"
            )
        sd = spread.repeat_interleave(len(self.times), dim=1)
        scaled = (x - mean) / sd
        value = -0.5 * (scaled.square() + LOG_2PI).sum(1) - sd.log().sum(1)
        return torch.where(torch.isfinite(value), value, -torch.inf).reshape(theta.shape[:-1])

    def _known(self, observed: Sequence[str], fixed: Mapping[str, float]) -> dict[str, Quantity]:
        """What may be free. Units are the user's."""
        known: dict[str, Quantity] = {}
        for name, value in self.system.parameters.items():
            entries = (
                {f"{name}[{k}]": v for k, v in enumerate(value)} if isinstance(value, list | tuple) else {name: value}
            )
            known |= {key: Quantity("", number) for key, number in entries.items() if isinstance(number, float)}
        self._system_parameters = list(known)
        known |= {f"initial_{name}": Quantity() for name in self._state}
        known |= {f"scale_{name}": Quantity("", 1.0) for name in observed}
        known |= {f"offset_{name}": Quantity("", 0.0) for name in observed}
        one_each = any(name.startswith("noise_") for name in (*self.prior.names, *fixed))
        self._noises = [f"noise_{name}" for name in observed] if one_each else ["noise"] * len(observed)
        known |= {name: Quantity("", None, 0.0) for name in self._noises}
        self._noise_is_free = any(name in self.prior.names for name in self._noises)
        units = dict(zip(self.prior.names, self.prior.units, strict=True))
        return {name: Quantity(units.get(name, ""), q.value, q.least) for name, q in known.items()}

    def _parameters(self, theta: Array) -> tuple[np.ndarray, Array]:
        """Return which of the parameters [N, D] the system takes, and what its field needs of them, [P] or [n, P]."""
        free = [name for name in self._system_parameters if self._quantities.is_free(name)]
        values = {name: self._quantities.fixed[name] for name in self._system_parameters if name not in free}
        if not free:
            return np.arange(len(theta)), self._build(values).numba_parameters()
        columns = [self._quantities.column(theta, name).tolist() for name in free]
        kept, rows = [], []
        for i, own in enumerate(zip(*columns, strict=True)):
            try:
                rows.append(self._build(values | dict(zip(free, own, strict=True))).numba_parameters())
            except (SimkitError, ArithmeticError, ValueError):
                continue
            kept.append(i)
        return np.array(kept, dtype=np.int64), np.array(rows).reshape(len(kept), -1)

    def _build(self, values: Mapping[str, float]) -> Dynamics:
        """Return the system with values of its numbers."""
        arguments = dict(self.system.parameters)
        for name, value in values.items():
            entry = _ENTRY.fullmatch(name)
            if entry is None:
                arguments[name] = value
            else:
                given = list(arguments[entry[1]])
                given[int(entry[2])] = value
                arguments[entry[1]] = given
        return type(self.system)(**arguments)


class _Motion(torch.autograd.Function):
    """`SystemSimulator.motion` with derivatives by central differences."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, simulator: SystemSimulator) -> Tensor:
        values = theta.detach().double().numpy()
        mean = simulator.motion(values)
        if ctx.needs_input_grad[0]:
            n, d = values.shape
            prior = simulator.prior
            one = torch.ones(d, dtype=torch.float64)
            step = DIFFERENCE * 0.5 * (prior.from_normal(one) - prior.from_normal(-one)).abs().numpy()
            shifted = values + np.stack([np.diag(step), -np.diag(step)])[:, :, None, :]
            up, down = simulator.motion(shifted.reshape(-1, d)).reshape(2, d, n, -1)
            widths = (shifted[0] - shifted[1])[np.arange(d), :, np.arange(d)]  # as they are after rounding
            with np.errstate(invalid="ignore", divide="ignore"):  # NaN where parameters are too large to be told apart
                jacobian = (up - down) / widths[:, :, None]
            ctx.save_for_backward(torch.from_numpy(jacobian).to(theta))
        return torch.from_numpy(mean).to(theta)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (jacobian,) = ctx.saved_tensors
        return torch.einsum("dnk,nk->nd", jacobian, gradient), None


def _coordinates(system: Dynamics) -> tuple[str, ...]:
    """Names of the components of the state."""
    count: int = system.dof  # type: ignore[attr-defined]
    letters = ("q",) if isinstance(system, FirstOrder) else ("q", "p")
    return tuple(f"{letter}{k + 1}" for letter in letters for k in range(count))
