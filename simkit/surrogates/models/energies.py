"""Hamiltonians as modules, from (q, p) [..., D] each to H [...]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simkit.surrogates.models.matrices import CholeskyFactor, Dependence, times
from simkit.surrogates.models.network import NetworkOptions, ScalarNetwork


class GeneralEnergy(nn.Module):
    """H(q, p), one network."""

    def __init__(self, dof: int, options: NetworkOptions) -> None:
        super().__init__()
        self.network = ScalarNetwork(dof, options, more=dof)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        """Return H."""
        return self.network(q, p)


class SeparableEnergy(nn.Module):
    """T(p) + V(q), two networks."""

    def __init__(self, dof: int, options: NetworkOptions) -> None:
        super().__init__()
        self.kinetic = ScalarNetwork(dof, options.model_copy(update={"angles": ()}))
        self.potential = ScalarNetwork(dof, options)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        """Return H."""
        return self.kinetic(p) + self.potential(q)


class MechanicalEnergy(nn.Module):
    """p^T M(q)^-1 p/2 + V(q), with the mass matrix M = L L^T, positive definite."""

    def __init__(self, dof: int, mass: Dependence, options: NetworkOptions) -> None:
        super().__init__()
        self.mass_factor = CholeskyFactor(dof, mass, options, start=1.0)
        self.potential = ScalarNetwork(dof, options)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        """Return H."""
        scaled = torch.linalg.solve_triangular(self.mass_factor(q), p.unsqueeze(-1), upper=False)
        return scaled.square().sum((-2, -1)) / 2 + self.potential(q)

    def kinetic(self, q: Tensor, v: Tensor) -> Tensor:
        """Return v^T M(q) v/2 [...]."""
        return times(self.mass_factor(q).mT, v).square().sum(-1) / 2
