"""The parts of a learned model of motion as arrays, which compiled loops take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from simkit.errors import ConfigError
from simkit.surrogates.compiled.networks import Network, no_network, pack
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.delan import DeepLagrangianNetwork
from simkit.surrogates.models.energies import GeneralEnergy, MechanicalEnergy, SeparableEnergy
from simkit.surrogates.models.hamiltonian import HamiltonianNetwork
from simkit.surrogates.models.matrices import CholeskyFactor, Port
from simkit.surrogates.models.network import CoordinateNetwork, ScalarNetwork
from simkit.surrogates.models.neural_ode import NeuralODE, SecondOrderNeuralODE
from simkit.surrogates.models.symoden import SymODEN

FIRST_ORDER, SECOND_ORDER, ENERGY, SEPARABLE, MECHANICAL = range(5)


class Factor(NamedTuple):
    """The lower triangular L of a matrix L L^T: softplus(.) plus a floor on the diagonal.

    Attributes:
        constant: the diagonal before the softplus, then the rows below it; empty where there is no such matrix.
        network: what the coordinates add to ``constant``, if anything.
        floor: the smallest diagonal entry.
    """

    constant: NDArray[np.floating]
    network: Network
    floor: float


class Motion(NamedTuple):
    """A model of motion.

    Attributes:
        kind: `FIRST_ORDER` and `SECOND_ORDER`: the network is d state/dt or the acceleration; `ENERGY`: it is H(q, p); `SEPARABLE` and
            `MECHANICAL`: it is V(q).
        dof: D.
        velocities: whether the state is (q, v) rather than (q, p).
        network: see ``kind``.
        kinetic: T(p) of `SEPARABLE`.
        mass, friction: of `MECHANICAL`; forces of friction are -K K^T v.
    """

    kind: int
    dof: int
    velocities: bool
    network: Network
    kinetic: Network
    mass: Factor
    friction: Factor

    @property
    def rows(self) -> int:
        """Units of the largest network."""
        return max(part.rows for part in (self.network, self.kinetic, self.mass.network, self.friction.network))


def motion_of(model: DynamicsModel) -> Motion:
    """Return the parts of a model with its present weights.

    Raises:
        ConfigError: if a model like this cannot be compiled.
    """
    if model.controls:
        raise ConfigError(
            f"models with controls cannot be compiled; this {type(model).__name__} takes {model.controls}"
        )
    if model.coordinates == "first-order":
        raise ConfigError("models whose state has no second half cannot be compiled; take their own rollout()")
    dtype = np.dtype(str(model.dtype).removeprefix("torch."))
    none = Factor(np.empty(0, dtype=dtype), no_network(dtype), 0.0)
    if type(model) is NeuralODE:
        return _motion(model, FIRST_ORDER, model.network, no_network(dtype), none, none)
    if type(model) is SecondOrderNeuralODE:
        return _motion(model, SECOND_ORDER, model.network, no_network(dtype), none, none)
    if type(model) is DeepLagrangianNetwork:
        return _mechanical(model, model.mechanics, model.port, none)
    if type(model) is SymODEN and type(model.hamiltonian) is MechanicalEnergy:
        return _mechanical(model, model.hamiltonian, model.port, none)
    if type(model) is HamiltonianNetwork:
        energy = model.hamiltonian
        if type(energy) is MechanicalEnergy:
            return _mechanical(model, energy, None, none)
        if type(energy) is GeneralEnergy:
            return _motion(model, ENERGY, energy.network, no_network(dtype), none, none)
        if type(energy) is SeparableEnergy:
            return _motion(model, SEPARABLE, energy.potential, _network(energy.kinetic), none, none)
    raise ConfigError(
        "models that can be compiled are hnn, symoden, delan, neural-ode and neural-ode-2, with the parts that they were built with; "
        f"found {type(model).__name__}. Take its own rollout()"
    )


def _motion(
    model: DynamicsModel, kind: int, network: nn.Module, kinetic: Network, mass: Factor, friction: Factor
) -> Motion:
    return Motion(kind, model.dof, model.coordinates == "velocity", _network(network), kinetic, mass, friction)


def _mechanical(model: DynamicsModel, energy: MechanicalEnergy, port: Port | None, none: Factor) -> Motion:
    friction = none if port is None or port.friction is None else _factor(port.friction)
    return _motion(model, MECHANICAL, energy.potential, none.network, _factor(energy.mass_factor), friction)


def _factor(factor: nn.Module) -> Factor:
    if type(factor) is not CholeskyFactor:
        raise ConfigError(
            f"mass matrices that can be compiled have a Cholesky factor (mass: constant or network); found a {type(factor).__name__}. "
            "Take the model's own rollout()"
        )
    constant = factor.table.constant.detach().cpu().numpy().copy()
    network = factor.table.network
    return Factor(constant, no_network(constant.dtype) if network is None else pack(network), factor.floor)


def _network(network: nn.Module) -> Network:
    """Pack the network of a part of a model.

    Raises:
        ConfigError: if the part was replaced.
    """
    inner = network.network if type(network) is ScalarNetwork else network
    if type(inner) is not CoordinateNetwork:
        raise ConfigError(
            f"only networks of simkit can be compiled; this model's was replaced by {type(network).__name__}"
        )
    return pack(inner)
