"""The parts of a velocity Verlet step that ensembles put their own operators between."""

from __future__ import annotations

import torch
from torch import Tensor

from simkit.md.protocols import Forces
from simkit.md.state import State


def half_kick(state: State, timestep: float) -> Tensor:
    """Half a timestep over the inertia, [N, 1]: what forces are multiplied with; zero for frozen atoms."""
    return (0.5 * timestep / state.inertia)[:, None]


def kick(state: State, factor: Tensor) -> None:
    """v += factor * F, factor of shape [N, 1]."""
    state.velocities.addcmul_(state.forces, factor)


def drift(state: State, time: float) -> None:
    """x += time * v."""
    state.positions.add_(state.velocities, alpha=time)


def scale_velocities(state: State, factor: Tensor) -> None:
    """Multiply the velocities of each replica with its factor, [B]."""
    state.velocities.mul_(factor[state.structure][:, None])


def verlet(state: State, forces: Forces, factor: Tensor, timestep: float, energy: bool) -> None:
    """A step of velocity Verlet; ``factor`` is that of `half_kick`."""
    kick(state, factor)
    drift(state, timestep)
    forces.compute(state, energy=energy)
    kick(state, factor)


def total_energy(state: State) -> Tensor:
    """Kinetic and potential energy, [B] eV."""
    return state.energy + state.kinetic_energy()


def zeros(state: State, *shape: int) -> Tensor:
    """A new variable of an ensemble."""
    return torch.zeros(shape, dtype=torch.float64, device=state.device)
