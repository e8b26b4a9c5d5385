"""Hamiltonian networks.

S. Greydanus, M. Dzamba & J. Yosinski, "Hamiltonian neural networks", NeurIPS 2019: a network is the Hamiltonian, and the motion its
symplectic gradient (eq. 2), q' = dH/dp, p' = -dH/dq.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.surrogates.methods.splitting import Quadratic, Separable
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.energies import GeneralEnergy, MechanicalEnergy, SeparableEnergy, energy_gradients
from simkit.surrogates.models.matrices import CholeskyFactor, MassDependence
from simkit.surrogates.models.network import NetworkOptions


class HamiltonianNetworkOptions(NetworkOptions):
    """Options of a Hamiltonian network; with the form "general" it is the published one."""

    form: Literal["general", "separable", "mechanical"] = Field(
        "general", description="H(q, p), T(p) + V(q), or p^T M^-1 p/2 + V(q)"
    )
    mass: MassDependence = Field(
        "constant",
        description="of the mechanical form: M is constant, its Cholesky factor is a network, or M = J^T J with a network J",
    )


class HamiltonianNetwork(DynamicsModel):
    """The motion of a learned Hamiltonian, which conserves it exactly.

    Attributes:
        hamiltonian: H(q, p), a module that may be replaced by a known one.
    """

    hamiltonian_flow = True

    def __init__(self, options: HamiltonianNetworkOptions, dof: int) -> None:
        super().__init__(dof)
        self.hamiltonian: nn.Module
        if options.form == "mechanical":
            self.hamiltonian = MechanicalEnergy(dof, options.mass, options)
        else:
            self.hamiltonian = {"general": GeneralEnergy, "separable": SeparableEnergy}[options.form](dof, options)
        self.constant_mass = options.mass == "constant"

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (dH/dp, -dH/dq); see `DynamicsModel`."""
        q, p = self.split(state, control)
        to_q, to_p = energy_gradients(self.hamiltonian, q, p)
        return torch.cat([to_p, -to_q], dim=-1)

    def energy(self, state: Tensor) -> Tensor:
        """Return H [...]."""
        return self.hamiltonian(*self.split(state))

    def separable(self) -> Separable | Quadratic | None:
        """Return the parts of a separable H; see `DynamicsModel`."""
        hamiltonian = self.hamiltonian
        if isinstance(hamiltonian, SeparableEnergy):
            return Separable(hamiltonian.kinetic, hamiltonian.potential)
        if isinstance(hamiltonian, MechanicalEnergy) and self.constant_mass:
            factor = hamiltonian.mass_factor
            return (
                Quadratic(factor.constant, hamiltonian.potential, "canonical")
                if isinstance(factor, CholeskyFactor)
                else None
            )
        return None
