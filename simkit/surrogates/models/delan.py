"""Deep Lagrangian Networks.

M. Lutter, C. Ritter & J. Peters, "Deep Lagrangian networks: using physics as model prior for deep learning", ICLR 2019: the Lagrangian
is v^T M(q) v/2 - V(q) with a mass matrix M = F F^T that is positive definite, and the accelerations solve (eq. 2 and 4)

M(q) a + (dM/dt) v - d(v^T M(q) v/2)/dq + dV/dq = tau,    here with tau = G(q) u - D(q) v

The paper's F is the Cholesky factor. Its tau is the controls themselves: a constant G, which starts as the unit matrix.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from simkit.surrogates.methods.splitting import Quadratic
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.energies import MechanicalEnergy
from simkit.surrogates.models.matrices import CholeskyFactor, Dependence, MassDependence, Port, gram, solve
from simkit.surrogates.models.network import Activation, NetworkOptions


class DeepLagrangianNetworkOptions(NetworkOptions):
    """Options of a Deep Lagrangian Network."""

    activation: Activation = "softplus"
    mass: MassDependence = "network"
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
        mass, force = self.mechanics.euler_lagrange(q, v)
        return torch.cat([v, solve(mass, force + self.port(q, v, control))], dim=-1)

    def mass_matrix(self, q: Tensor) -> Tensor:
        """Return M [..., D, D] at coordinates [..., D]."""
        return gram(self.mechanics.mass_factor(q))

    def energy(self, state: Tensor) -> Tensor:
        """Return v^T M v/2 + V [...]."""
        self.check_state(state)
        q, v = state.chunk(2, dim=-1)
        return self.mechanics.kinetic(q, v) + self.mechanics.potential(q)

    def separable(self) -> Quadratic | None:
        """Return mass matrix and potential where the mass matrix is constant; see `DynamicsModel`."""
        factor = self.mechanics.mass_factor
        if not (self.splits and isinstance(factor, CholeskyFactor)):
            return None
        return Quadratic(factor.constant, self.mechanics.potential, "velocity")
