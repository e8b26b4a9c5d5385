"""`Dynamics`: any system of ordinary differential equations that is known, in PyTorch and in Numba."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray
from torch import Tensor

from simkit.config import nearest
from simkit.errors import ConfigError, DataError
from simkit.surrogates.systems.ensembles import fixed_steps
from simkit.surrogates.systems.integration import bulirsch_stoer, compiled_field, dop853
from simkit.surrogates.systems.protocol import Protocol
from simkit.surrogates.trajectories import Trajectories

Array = NDArray[np.float64]
Method = Literal["bulirsch-stoer", "dop853"]


class Dynamics(ABC):
    """d state / dt = f(t, state), and how data are drawn from it. Torch functions take any batch dimensions and dtypes.

    Attributes:
        name: under which the system is registered.
        conservative: whether it has an energy that is constant.
        protocols: data sets by name; the first is the default.
        tolerance: of the compiled integrator, relative and absolute; larger where the vector field is not smooth.
        parameters: values that define the system, as plain numbers and lists.
    """

    name: ClassVar[str]
    conservative: ClassVar[bool] = True
    protocols: ClassVar[Mapping[str, Protocol]]
    tolerance: ClassVar[float] = 1e-12
    field: ClassVar[Callable[..., None]]
    """The vector field for Numba, as `simkit.surrogates.systems.integration.FIELD` has it (a static method)."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = dict(parameters)

    @abstractmethod
    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        """Return d state / dt at time t."""

    @abstractmethod
    def numba_parameters(self) -> Array:
        """Return the parameters that `numba_field` takes, a vector."""

    @abstractmethod
    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return initial states [count, ...], drawn as a protocol says."""

    @abstractmethod
    def trajectories(self, times: Array, states: Array) -> Trajectories:
        """Return states [S, T, ...] at times [T] as `Trajectories` with exact derivatives."""

    def numba_field(self) -> Dispatcher:
        """Return the compiled vector field ``field(t, state, parameters, out)``; see `numba_parameters`."""
        return compiled_field(type(self).field)

    def protocol(self, name: str = "") -> Protocol:
        """Return a protocol by name, or the default.

        Raises:
            ConfigError: if there is none of that name.
        """
        if name and name not in self.protocols:
            raise ConfigError(f"{self.name} has no protocol {name!r}{nearest(name, self.protocols)}")
        return self.protocols[name] if name else next(iter(self.protocols.values()))

    def resolve(self, protocol: str | Protocol) -> Protocol:
        """Return a protocol given by name or as it is."""
        return protocol if isinstance(protocol, Protocol) else self.protocol(protocol)

    def integrate(self, states: Array, times: Array, method: Method = "bulirsch-stoer") -> Array:
        """Return the states at given times, [S, T, N], from those at the first time, [S, N].

        Args:
            method: "bulirsch-stoer" (compiled, to `tolerance`), or "dop853" (SciPy, 1e-10).

        Raises:
            ConfigError: if the method is unknown.
            DataError: if a trajectory cannot be integrated.
        """
        if method not in {"bulirsch-stoer", "dop853"}:
            raise ConfigError(f"unknown method {method!r}{nearest(method, ['bulirsch-stoer', 'dop853'])}")
        field, parameters = self.numba_field(), self.numba_parameters()
        if method == "dop853":
            return dop853(field, parameters, states, times)
        return bulirsch_stoer(field, parameters, states, times, rtol=self.tolerance, atol=self.tolerance)

    def ensemble(self, states: Array, times: Array, method: str = "rk4", timestep: float | None = None) -> Array:
        """Return the states of many trajectories at given times, [S, T, N], by steps of a fixed length.

        Args:
            states: at the first time, [S, N].
            times: [T], increasing or decreasing.
            method: "rk4", or one of the schemes of `simkit.integrators` without noise where the system is separable.
            timestep: the longest step; each interval is cut into equal ones. One step each where not given.

        Raises:
            ConfigError: if method or timestep do not suit.
        """
        if method != "rk4" and not (self.conservative and getattr(self, "separable", False)):
            raise ConfigError(f"{self.name} is no system T(p) + V(q), as {method!r} needs it; take method='rk4'")
        return fixed_steps(type(self).field, self.numba_parameters(), states, times, method=method, timestep=timestep)

    def generate(
        self, protocol: str | Protocol = "", seed: int = 0, *, method: Method = "bulirsch-stoer"
    ) -> Trajectories:
        """Return the trajectories of a protocol, with exact derivatives; noise, if any, is on q, p and v alone.

        The parts of the protocol follow each other: ``data.split(protocol.parts)``.

        Raises:
            ConfigError: if protocol or method are unknown.
        """
        plan = self.resolve(protocol)
        data = self._draw(plan, seed, method)
        return self._finish(data, plan, {"seed": seed, "method": method})

    def _draw(self, plan: Protocol, seed: int, method: Method) -> Trajectories:
        states = self.sample(plan.trajectories, seed, plan)
        if plan.equilibration > 0:
            states = self.integrate(states, np.array([0.0, plan.equilibration]), method)[:, -1]
        return self.trajectories(plan.times, self.integrate(states, plan.times, method))

    def _finish(self, data: Trajectories, plan: Protocol, options: Mapping[str, Any]) -> Trajectories:
        """Describe the data, and add the noise of the protocol."""
        info = {
            "system": self.name,
            "parameters": self.parameters,
            **options,
            "protocol": {**vars(plan), "parts": dict(plan.parts)},
        }
        data = Trajectories(**data.arrays(), info=info)
        if not plan.noise:
            return data
        seed = np.random.SeedSequence([options["seed"], 1]).generate_state(1)[0]
        return data.add_noise(plan.noise, int(seed))

    def finite_rate(self, times: Array, states: Array) -> Tensor:
        """Return the vector field at states [S, T, N].

        Raises:
            DataError: if it is not finite.
        """
        t = torch.from_numpy(times)[:, None]
        rate = self.vector_field(t, torch.from_numpy(np.ascontiguousarray(states)))
        if not bool(torch.isfinite(rate).all()):
            raise DataError(f"{self.name}: the vector field is not finite on these states")
        return rate
