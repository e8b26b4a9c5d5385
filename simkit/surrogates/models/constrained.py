"""Constrained Hamiltonian and Lagrangian networks in Cartesian coordinates.

M. Finzi, K. A. Wang & A. G. Wilson, "Simplifying Hamiltonian and Lagrangian neural networks via explicit constraints", NeurIPS 2020.
The energy is that of points with learned masses and a learned potential; the constraints Phi(x) = 0 are known. With G = dPhi/dx:

- CHNN (section 5.1): z' = J grad H + J dPsi^T lambda, where Psi = (Phi, G M^-1 p) are the constraints and their rates, dPsi their
  Jacobian in phase space, and lambda = -(dPsi J dPsi^T)^-1 dPsi J grad H keeps them;
- CLNN (section 5.2): M a = F + G^T lambda, where (G M^-1 G^T) lambda = -(G M^-1 F + (dG/dt) v).

On the manifold they are the same motion, which `simkit.surrogates.methods.rattle` follows.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.errors import ConfigError
from simkit.initialization import softplus_inverse
from simkit.surrogates.derivatives import gradients
from simkit.surrogates.methods.rattle import Constrained
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.constraints import DistanceConstraints
from simkit.surrogates.models.matrices import solve, times
from simkit.surrogates.models.network import NetworkOptions, ScalarNetwork


class ConstrainedHamiltonianNetworkOptions(NetworkOptions):
    """Options of a constrained Hamiltonian network; D is the number of points times the dimension."""

    dimension: int = Field(2, ge=1, le=3, description="of space")
    links: tuple[tuple[int, int], ...] = Field(description="pairs of points at a fixed distance; -1 is the origin")
    lengths: tuple[float, ...] = Field(description="that distance for each pair")


class ConstrainedLagrangianNetworkOptions(ConstrainedHamiltonianNetworkOptions):
    """Options of a constrained Lagrangian network: the same."""


class _Points(DynamicsModel):
    """Points with masses, a potential and constraints.

    Attributes:
        potential: V(x), a module that may be replaced by a known one.
        constraints: Phi(x).
        raw_masses: masses of the points before softplus, [n].
    """

    def __init__(self, options: ConstrainedHamiltonianNetworkOptions, dof: int) -> None:
        super().__init__(dof)
        if dof % options.dimension or options.angles:
            raise ConfigError(
                f"constrained networks take Cartesian coordinates of points in {options.dimension} dimensions: dof must be a "
                f"multiple of it and angles empty; found {dof} and {list(options.angles)}"
            )
        self.dimension = options.dimension
        points = dof // options.dimension
        self.potential: nn.Module = ScalarNetwork(dof, options)
        self.constraints = DistanceConstraints(points, options.dimension, options.links, options.lengths)
        self.raw_masses = nn.Parameter(softplus_inverse(torch.ones(points)))

    def masses(self) -> Tensor:
        """Return the mass of each coordinate, [D]."""
        return nn.functional.softplus(self.raw_masses).repeat_interleave(self.dimension)

    def constrained(self) -> Constrained:
        """Return masses, potential and constraints."""
        kind: Literal["canonical", "velocity"] = "velocity" if self.coordinates == "velocity" else "canonical"
        return Constrained(self.masses, self.potential, self.constraints, self.constraints.jacobian, kind)


class ConstrainedHamiltonianNetwork(_Points):
    """CHNN, with the state (x, p)."""

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (x', p'); see `DynamicsModel`."""
        x, p = self.split(state, control)
        masses = self.masses()
        velocity, force = p / masses, -gradients(self.potential, x)[0]
        normal, turning = self.constraints.jacobian(x), self.constraints.jacobian(velocity)  # G and d(G M^-1 p)/dx
        weighted = normal / masses
        # dPsi J dPsi^T is [[0, S], [-S, A]] with S = G M^-1 G^T: two systems of half the size with one matrix. The multipliers of G M^-1 p
        # turn the velocity, and vanish where it is tangent.
        matrix = normal @ weighted.mT
        rates = solve(matrix, -times(normal, velocity))
        correction = times(weighted.mT, rates)
        swing = times(turning.mT, rates)
        forces = solve(matrix, times(turning, velocity + correction) + times(weighted, force - swing))
        return torch.cat([velocity + correction, force - swing - times(normal.mT, forces)], dim=-1)

    def energy(self, state: Tensor) -> Tensor:
        """Return p M^-1 p/2 + V [...]."""
        x, p = self.split(state)
        return (p.square() / self.masses()).sum(-1) / 2 + self.potential(x)


class ConstrainedLagrangianNetwork(_Points):
    """CLNN, with the state (x, v)."""

    coordinates = "velocity"

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (v, a); see `DynamicsModel`."""
        x, v = self.split(state, control)
        masses, normal = self.masses(), self.constraints.jacobian(x)
        free = -gradients(self.potential, x)[0] / masses
        weighted = normal / masses
        wanted = times(normal, free) + times(self.constraints.jacobian(v), v)
        multipliers = solve(normal @ weighted.mT, -wanted)
        return torch.cat([v, free + times(weighted.mT, multipliers)], dim=-1)

    def energy(self, state: Tensor) -> Tensor:
        """Return v M v/2 + V [...]."""
        x, v = self.split(state)
        return (v.square() * self.masses()).sum(-1) / 2 + self.potential(x)
