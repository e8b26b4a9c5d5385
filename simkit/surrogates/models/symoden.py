"""Port-Hamiltonian networks: friction and controls beside a learned Hamiltonian.

Y. D. Zhong, B. Dey & A. Chakraborty, "Symplectic ODE-Net: learning Hamiltonian dynamics with control", ICLR 2020, and "Dissipative
SymODEN: encoding Hamiltonian dynamics with dissipation and control into deep learning", 2020 (arXiv:2002.08860):

q' = dH/dp,    p' = -dH/dq - D(q) dH/dp + G(q) u,    H = p^T M(q)^-1 p/2 + V(q)

Here M, not its inverse, is parametrised by its Cholesky factor, and friction acts on momenta alone, as it does in mechanics.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.energies import MechanicalEnergy, energy_gradients
from simkit.surrogates.models.matrices import Dependence, MassDependence, Port
from simkit.surrogates.models.network import NetworkOptions


class SymODENOptions(NetworkOptions):
    """Options of a port-Hamiltonian network."""

    mass: MassDependence = "network"
    friction: Literal["none", "constant", "network"] = "network"
    controls: int = Field(0, ge=0, description="number of inputs u")
    control_matrix: Dependence = Field("network", description="whether G depends on the coordinates")


class SymODEN(DynamicsModel):
    """A learned Hamiltonian with friction and controls; without controls its energy never grows.

    Attributes:
        hamiltonian: H(q, p), a module that may be replaced by a known one.
        port: friction and controls.
    """

    def __init__(self, options: SymODENOptions, dof: int) -> None:
        super().__init__(dof)
        self.controls = options.controls
        self.hamiltonian: nn.Module = MechanicalEnergy(dof, options.mass, options)
        self.port = Port(dof, options.friction, options.controls, options.control_matrix, options)

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (q', p'); see `DynamicsModel`."""
        q, p = self.split(state, control)
        to_q, velocity = energy_gradients(self.hamiltonian, q, p)
        return torch.cat([velocity, self.port(q, velocity, control) - to_q], dim=-1)

    def energy(self, state: Tensor) -> Tensor:
        """Return H [...]."""
        self.check_state(state)
        return self.hamiltonian(*state.chunk(2, dim=-1))
