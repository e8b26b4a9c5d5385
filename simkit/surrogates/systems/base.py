"""`System`: a mechanical system whose equations are known, in PyTorch and in Numba."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.surrogates.systems.dynamics import Array, Dynamics, Method
from simkit.surrogates.systems.embedding import Embedding
from simkit.surrogates.systems.protocol import Protocol
from simkit.surrogates.trajectories import Trajectories

__all__ = ["Array", "System"]


class System(Dynamics):
    """A system with D coordinates. Its state is q beside p, [..., 2 D].

    By default the energy is that of a natural system, p M(q)^-1 p / 2 + V(q). A subclass gives `mass_matrix`, `potential`,
    `vector_field` (written out, not differentiated: the tests compare it with the gradient of `hamiltonian`) and `field`, the same for
    Numba; one with velocity-dependent forces overrides `momenta`, `velocities`, `hamiltonian` and `lagrangian`.

    Attributes:
        dof: D.
        separable: whether the Hamiltonian is T(p) + V(q), so that splitting integrators apply as they are.
        angular: whether the coordinates are angles, of period 2 pi.
    """

    separable: ClassVar[bool] = True
    angular: ClassVar[bool] = False

    def __init__(self, dof: int, parameters: Mapping[str, Any]) -> None:
        super().__init__(parameters)
        self.dof = dof

    @property
    def coordinates(self) -> tuple[str, ...]:
        """The coordinates that `generate` offers: "canonical", and "cartesian" where there is an `embedding`."""
        return ("canonical",) if self.embedding() is None else ("canonical", "cartesian")

    def embedding(self) -> Embedding | None:
        """Return the constrained form in Cartesian coordinates, or None."""
        return None

    @abstractmethod
    def mass_matrix(self, q: Tensor) -> Tensor:
        """Return M(q), [..., D, D]: symmetric and positive definite."""

    @abstractmethod
    def potential(self, q: Tensor) -> Tensor:
        """Return V(q), [...]."""

    def velocities(self, q: Tensor, p: Tensor) -> Tensor:
        """Return dq/dt, [..., D], for given momenta."""
        return torch.linalg.solve(self.mass_matrix(q), p.unsqueeze(-1)).squeeze(-1)

    def momenta(self, q: Tensor, v: Tensor) -> Tensor:
        """Return dL/dv, [..., D], for given velocities."""
        return (self.mass_matrix(q) @ v.unsqueeze(-1)).squeeze(-1)

    def hamiltonian(self, q: Tensor, p: Tensor) -> Tensor:
        """Return the energy, [...], from coordinates and momenta [..., D]."""
        return 0.5 * (p * self.velocities(q, p)).sum(-1) + self.potential(q)

    def lagrangian(self, q: Tensor, v: Tensor) -> Tensor:
        """Return L(q, v), [...], from coordinates and velocities [..., D]."""
        return 0.5 * (v * self.momenta(q, v)).sum(-1) - self.potential(q)

    def energy(self, state: Tensor) -> Tensor:
        """Return the energy, [...], of states [..., 2 D]."""
        return self.hamiltonian(*state.split(self.dof, dim=-1))

    def external_force(self, t: Tensor | float, state: Tensor) -> Tensor:
        """Return the generalised forces, [..., D], that no Hamiltonian has: friction and drive; zero by default."""
        return torch.zeros_like(state[..., : self.dof])

    def controls(self, times: Array) -> Array | None:
        """Return the inputs [T, U] at given times, or None for a system without."""
        return None

    def generate(
        self,
        protocol: str | Protocol = "",
        seed: int = 0,
        *,
        method: Method = "bulirsch-stoer",
        coordinates: str = "canonical",
    ) -> Trajectories:
        """Return the trajectories of a protocol, with exact derivatives; noise, if any, is on q, p and v alone.

        The parts of the protocol follow each other: ``data.split(protocol.parts)``.

        Args:
            coordinates: "canonical", or "cartesian" for positions, momenta and velocities of the `embedding`.

        Raises:
            ConfigError: if protocol, method or coordinates are unknown.
        """
        if coordinates not in self.coordinates:
            raise ConfigError(f"{self.name} has no coordinates {coordinates!r}{nearest(coordinates, self.coordinates)}")
        plan = self.resolve(protocol)
        data = self._draw(plan, seed, method)
        embedding = self.embedding()
        if coordinates == "cartesian" and embedding is not None:
            data = embedding.trajectories(data)
        return self._finish(data, plan, {"coordinates": coordinates, "seed": seed, "method": method})

    def trajectories(self, times: Array, states: Array) -> Trajectories:
        """Return states [S, T, 2 D] at times [T] as `Trajectories`, with velocities and the exact derivatives of q, p and v."""
        dq, dp = self.finite_rate(times, states).split(self.dof, dim=-1)
        q, p = torch.from_numpy(np.ascontiguousarray(states)).split(self.dof, dim=-1)
        v, dv = torch.func.jvp(self.velocities, (q, p), (dq, dp))[:2]
        arrays = {"q": q, "p": p, "v": v, "dq": dq, "dp": dp, "dv": dv}
        controls = self.controls(times)
        if controls is not None:
            controls = np.broadcast_to(controls, (states.shape[0], *controls.shape))
        return Trajectories(times=times, controls=controls, **{name: value.numpy() for name, value in arrays.items()})
