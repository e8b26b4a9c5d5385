"""Deep Lagrangian Networks.

M. Lutter, C. Ritter & J. Peters, "Deep Lagrangian networks: using physics as model prior for deep learning", ICLR 2019: the Lagrangian
is v^T M(q) v/2 - V(q) with a mass matrix M = L L^T that is positive definite, and the accelerations follow from (eq. 2 and 4)

M(q) a + (dM/dt) v - d(v^T M(q) v/2)/dq + dV/dq = tau,    here with tau = G(q) u - D(q) v

by a Cholesky solve. The paper's tau is the controls themselves: a constant G, which starts as the unit matrix.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from simkit.surrogates.derivatives import gradients
from simkit.surrogates.methods.splitting import Quadratic
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.energies import MechanicalEnergy
from simkit.surrogates.models.matrices import Dependence, Port, times
from simkit.surrogates.models.network import Activation, NetworkOptions


class DeepLagrangianNetworkOptions(NetworkOptions):
    """Options of a Deep Lagrangian Network."""

    activation: Activation = "softplus"
    mass: Dependence = "network"
    friction: Literal["none", "constant", "network"] = "none"
    controls: int = Field(0, ge=0, description="number of inputs u")
    control_matrix: Dependence = Field("constant", description="whether G depends on the coordinates")


class DeepLagrangianNetwork(DynamicsModel):
    """The motion of a learned mass matrix and potential energy, in coordinates and velocities.

    Attributes:
        mechanics: mass matrix and potential energy.
        port: friction and controls.
    """

    coordinates = "velocity"

    def __init__(self, options: DeepLagrangianNetworkOptions, dof: int) -> None:
        super().__init__(dof)
        self.controls = options.controls
        self.mechanics = MechanicalEnergy(dof, options.mass, options)
        self.port = Port(dof, options.friction, options.controls, options.control_matrix, options)
        self.splits = options.mass == "constant" and options.friction == "none" and options.controls == 0

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (v, a); see `DynamicsModel`."""
        q, v = self.split(state, control)
        (to_q,) = gradients(lambda x: self.mechanics.kinetic(x, v) - self.mechanics.potential(x), q)
        motion: Any = torch.func.jvp(self.mechanics.mass_factor, (q,), (v,))  # one of two types, by its options
        factor, rate = motion
        drift = times(rate, times(factor.mT, v)) + times(factor, times(rate.mT, v))  # (dM/dt) v
        force = to_q - drift + self.port(q, v, control)
        acceleration = torch.cholesky_solve(force.unsqueeze(-1), factor).squeeze(-1)
        return torch.cat([v, acceleration], dim=-1)

    def mass_matrix(self, q: Tensor) -> Tensor:
        """Return M [..., D, D] at coordinates [..., D]."""
        factor = self.mechanics.mass_factor(q)
        return factor @ factor.mT

    def energy(self, state: Tensor) -> Tensor:
        """Return v^T M v/2 + V [...]."""
        self.check_state(state)
        q, v = state.chunk(2, dim=-1)
        return self.mechanics.kinetic(q, v) + self.mechanics.potential(q)

    def separable(self) -> Quadratic | None:
        """Return mass matrix and potential where the mass matrix is constant; see `DynamicsModel`."""
        if not self.splits:
            return None
        return Quadratic(self.mechanics.mass_factor.constant, self.mechanics.potential, "velocity")
