"""Lagrangian networks.

M. Cranmer et al., "Lagrangian neural networks", ICLR 2020 workshop (arXiv:2003.04630): a network is the Lagrangian L(q, v), and the
accelerations solve the Euler-Lagrange equation (eq. 6), (d2L/dv2) a = dL/dq - (d2L/dv dq) v. The system is solved as it is, where the
paper takes a pseudo-inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simkit.initialization import softplus_inverse
from simkit.surrogates.derivatives import enabled, gradients, rows
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.matrices import times
from simkit.surrogates.models.network import Activation, NetworkOptions, ScalarNetwork


class LagrangianNetworkOptions(NetworkOptions):
    """Options of a Lagrangian network."""

    activation: Activation = "softplus"


class NetworkLagrangian(nn.Module):
    """L(q, v) = m |v|^2/2 plus a network of both; m > 0 is learned, and makes the accelerations well defined from the start."""

    def __init__(self, dof: int, options: NetworkOptions) -> None:
        super().__init__()
        self.network = ScalarNetwork(dof, options, more=dof)
        self.raw_mass = nn.Parameter(softplus_inverse(torch.tensor(1.0)))

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        """Return L [...]."""
        return nn.functional.softplus(self.raw_mass) * v.square().sum(-1) / 2 + self.network(q, v)


class LagrangianNetwork(DynamicsModel):
    """The motion of a learned Lagrangian, which conserves its energy v dL/dv - L.

    Attributes:
        lagrangian: L(q, v), a module that may be replaced by a known one.
    """

    coordinates = "velocity"

    def __init__(self, options: LagrangianNetworkOptions, dof: int) -> None:
        super().__init__(dof)
        self.lagrangian: nn.Module = NetworkLagrangian(dof, options)

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (v, a); see `DynamicsModel`."""
        recorded = torch.is_grad_enabled()
        with enabled():
            leaf = state if recorded and state.requires_grad else state.detach().requires_grad_(True)
            q, v = self.split(leaf, control)
            to_q, momentum = gradients(self.lagrangian, q, v)
            mixed, mass = rows(momentum, q, v, recorded=recorded)
        with torch.set_grad_enabled(recorded):
            force = to_q - times(mixed, v)
            acceleration = torch.linalg.solve(mass, force.unsqueeze(-1)).squeeze(-1)
            found = torch.cat([v, acceleration], dim=-1)
        return found if recorded else found.detach()

    def energy(self, state: Tensor) -> Tensor:
        """Return v dL/dv - L [...]."""
        q, v = self.split(state)
        momentum = gradients(self.lagrangian, q, v)[1]
        return (v * momentum).sum(-1) - self.lagrangian(q, v)
