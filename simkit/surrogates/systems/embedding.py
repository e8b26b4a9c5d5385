"""`Embedding`: a system in Cartesian coordinates, whose joints are constraints with Lagrange multipliers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.surrogates.trajectories import Trajectories

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rods:
    """Points at fixed distances, as constrained networks take them.

    Attributes:
        links: pairs of points from 0; -1 is the origin.
        lengths: the distance of each pair.
    """

    links: tuple[tuple[int, int], ...]
    lengths: tuple[float, ...]


class Embedding(ABC):
    """Coordinates x [..., E] under constraints phi(x) = 0 [..., C]; the state is x beside p, [..., 2 E].

    The constraints are of second degree in x, and the mass matrix does not depend on x:
    H = p M^-1 p / 2 + V(x) (Finzi, Wang and Wilson 2020, "Simplifying Hamiltonian and Lagrangian neural networks via explicit
    constraints", section 4).

    Attributes:
        dof: coordinates E.
        mass_matrix: M, [E, E], float64.
        rods: the constraints as distances of points, where that is all that they are.
    """

    rods: Rods | None = None

    def __init__(self, mass_matrix: Tensor) -> None:
        self.dof = mass_matrix.shape[0]
        self.mass_matrix = mass_matrix

    @abstractmethod
    def potential(self, x: Tensor) -> Tensor:
        """Return V(x), [...]."""

    @abstractmethod
    def potential_gradient(self, x: Tensor) -> Tensor:
        """Return dV/dx, [..., E]."""

    @abstractmethod
    def constraints(self, x: Tensor) -> Tensor:
        """Return phi(x), [..., C]: zero where the constraints hold."""

    @abstractmethod
    def constraint_jacobian(self, x: Tensor) -> Tensor:
        """Return dphi/dx, [..., C, E]; linear in x up to a constant."""

    @abstractmethod
    def constraint_curvature(self, v: Tensor) -> Tensor:
        """Return v phi'' v, [..., C]: the part of the second time derivative of phi that comes from the velocities."""

    @abstractmethod
    def to_cartesian(self, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions and velocities [..., E] for generalised coordinates and velocities [..., D]."""

    @abstractmethod
    def from_cartesian(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return generalised coordinates and velocities [..., D]; angles lie in (-pi, pi]."""

    def momenta(self, v: Tensor) -> Tensor:
        """Return M v, [..., E]."""
        return v @ self.mass_matrix.to(v)

    def velocities(self, p: Tensor) -> Tensor:
        """Return M^-1 p, [..., E]."""
        return p @ torch.linalg.inv(self.mass_matrix).to(p)

    def hamiltonian(self, x: Tensor, p: Tensor) -> Tensor:
        """Return the energy, [...]."""
        return 0.5 * (p * self.velocities(p)).sum(-1) + self.potential(x)

    def energy(self, state: Tensor) -> Tensor:
        """Return the energy, [...], of states [..., 2 E]."""
        return self.hamiltonian(*state.split(self.dof, dim=-1))

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        """Return d state / dt, [..., 2 E]: p' = -dV/dx - J^T lambda, with multipliers that keep d^2 phi / dt^2 zero."""
        x, p = state.split(self.dof, dim=-1)
        inverse = torch.linalg.inv(self.mass_matrix).to(state)
        v, force = p @ inverse, -self.potential_gradient(x)
        jacobian = self.constraint_jacobian(x)
        weighted = jacobian @ inverse
        right = self.constraint_curvature(v) + (weighted @ force.unsqueeze(-1)).squeeze(-1)
        multipliers = torch.linalg.solve(weighted @ jacobian.mT, right.unsqueeze(-1))
        return torch.cat([v, force - (jacobian.mT @ multipliers).squeeze(-1)], dim=-1)

    def project(self, x: Tensor, v: Tensor, iterations: int = 50) -> tuple[Tensor, Tensor]:
        """Return the nearest positions on the constraints (Gauss-Newton) and the velocities without their forbidden part."""
        for _ in range(iterations):
            jacobian = self.constraint_jacobian(x)
            value = self.constraints(x)
            if float(value.abs().max()) < 1e-14:
                break
            step = torch.linalg.solve(jacobian @ jacobian.mT, value.unsqueeze(-1))
            x = x - (jacobian.mT @ step).squeeze(-1)
        jacobian = self.constraint_jacobian(x)
        forbidden = torch.linalg.solve(jacobian @ jacobian.mT, jacobian @ v.unsqueeze(-1))
        return x, v - (jacobian.mT @ forbidden).squeeze(-1)

    def trajectories(self, data: Trajectories) -> Trajectories:
        """Return trajectories in generalised coordinates (q and v) in Cartesian ones, with exact derivatives."""
        q, v = torch.from_numpy(data.q), torch.from_numpy(np.asarray(data.v))
        x, velocity = self.to_cartesian(q, v)
        p = self.momenta(velocity)
        dx, dp = self.vector_field(0.0, torch.cat([x, p], dim=-1)).split(self.dof, dim=-1)
        arrays = {"q": x, "p": p, "v": velocity, "dq": dx, "dp": dp, "dv": self.velocities(dp)}
        return Trajectories(times=data.times, **{name: value.numpy() for name, value in arrays.items()}, info=data.info)
