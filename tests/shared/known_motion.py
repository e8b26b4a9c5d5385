"""Models that are known systems: what a perfectly trained network would be."""

from typing import Any

from torch import Tensor, nn

from simkit.surrogates import models
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.systems.base import System


class Hamiltonian(nn.Module):
    """A system's H(q, p)."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        return self.system.hamiltonian(q, p)


class Lagrangian(nn.Module):
    """A system's L(q, v)."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        return self.system.lagrangian(q, v)


class Potential(nn.Module):
    """The potential energy of a system in Cartesian coordinates."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.embedding: Any = system.embedding()

    def forward(self, x: Tensor) -> Tensor:
        energy: Tensor = self.embedding.potential(x)
        return energy


def hamiltonian_model(system: System) -> DynamicsModel:
    """The Hamiltonian network that has learned a system perfectly."""
    model: Any = models.build("hnn", system.dof, dtype="float64")
    model.hamiltonian = Hamiltonian(system)
    return model  # type: ignore[no-any-return]


def lagrangian_model(system: System) -> DynamicsModel:
    """The Lagrangian network that has learned a system perfectly."""
    model: Any = models.build("lnn", system.dof, dtype="float64")
    model.lagrangian = Lagrangian(system)
    return model  # type: ignore[no-any-return]
