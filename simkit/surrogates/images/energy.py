"""The latent Hamiltonian: harmonic oscillators, and a network for what the motion is beyond them."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from simkit.errors import ConfigError
from simkit.surrogates.models.energies import GeneralEnergy, MechanicalEnergy, SeparableEnergy
from simkit.surrogates.models.hamiltonian import HamiltonianNetwork, HamiltonianNetworkOptions


class Confined(nn.Module):
    """An energy of vectors [..., D] each, plus half the sum of w_i x_i^2 over all their components.

    Args:
        energy: the rest, a module with the same arguments.
        frequencies: w, [D].
    """

    frequencies: Tensor

    def __init__(self, energy: nn.Module, frequencies: Tensor) -> None:
        super().__init__()
        self.energy = energy
        self.register_buffer("frequencies", frequencies)

    def forward(self, *vectors: Tensor) -> Tensor:
        """Return the energy [...]."""
        rest = cast(Tensor, self.energy(*vectors))
        return rest + sum(0.5 * (self.frequencies * x.square()).sum(-1) for x in vectors)


def latent_hamiltonian(
    dof: int, options: HamiltonianNetworkOptions, slowest: float, fastest: float
) -> HamiltonianNetwork:
    """Return the Hamiltonian network that starts as D oscillators, of angular frequencies in geometric progression.

    A network of random weights has nearly straight motion, from which training finds the way to films that stand still: the frames'
    mean over time is a local minimum. Oscillators of several frequencies are close to the motion from the start, and confine it.

    Args:
        slowest, fastest: angular frequencies, 1/time; a single oscillator has their geometric mean.

    Raises:
        ConfigError: if the frequencies are not positive, or fall.
    """
    if not 0 < slowest <= fastest:
        raise ConfigError(f"the frequencies must be positive and rising; found {slowest} and {fastest}")
    if dof == 1:
        slowest = fastest = math.sqrt(slowest * fastest)
    frequencies = slowest * (fastest / slowest) ** torch.linspace(0, 1, dof)
    dynamics = HamiltonianNetwork(options, dof)
    energy = dynamics.hamiltonian
    if isinstance(energy, SeparableEnergy):
        for name, part in (("kinetic", energy.kinetic), ("potential", energy.potential)):
            energy.add_module(name, Confined(part, frequencies))
    elif isinstance(energy, MechanicalEnergy):  # of masses near 1
        energy.add_module("potential", Confined(energy.potential, frequencies.square()))
    elif isinstance(energy, GeneralEnergy):
        dynamics.hamiltonian = Confined(energy, frequencies)
    return dynamics
