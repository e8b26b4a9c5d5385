"""Starting velocities of a batch of replicas."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.integrators.philox import normals
from simkit.md.ensembles.degrees import conserving
from simkit.md.ensembles.verlet import scale_velocities
from simkit.md.state import State
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

STREAM = 65535  # of random numbers
SMALL = 1e-8  # inertia about an axis, relative to the others, that counts as none


def draw_velocities(state: State, temperature: float, seed: int) -> None:
    """Draw velocities from the Maxwell-Boltzmann distribution and scale them to exactly the temperature.

    The total momentum is zero, and so is the angular momentum of an isolated replica; neither of one with frozen atoms, which hold it. A
    replica's velocities are a function of the seed and its name. ``state.degrees`` become those of dynamics that keeps the momenta zero.

    Args:
        state: its velocities are replaced; frozen atoms stay at rest.
        temperature: kelvin, of each replica.
        seed: from 0 to 2^64 - 1.

    Raises:
        ConfigError: if the temperature is negative or not finite, or the seed not in the range.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature: expected a finite number >= 0 in kelvin, found {temperature}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ConfigError(f"seed: expected a whole number from 0 to 2^64 - 1, found {seed!r}")
    sizes = np.diff(state.offsets)
    atoms = np.arange(state.offsets[-1]) - np.repeat(state.offsets[:-1], sizes)
    noise = normals(seed, 0, np.repeat(state.replicas, sizes), atoms, STREAM)[:, :3]
    spread = torch.sqrt(FORCE_TO_ACCELERATION * BOLTZMANN * temperature / state.masses)
    velocities = torch.from_numpy(noise).to(state.device) * spread[:, None] * state.mobile[:, None]
    state.velocities.copy_(velocities)
    _stop_drift(state)
    state.degrees.copy_(conserving(state))
    scale_to_temperature(state, temperature)


def scale_to_temperature(state: State, temperature: float) -> None:
    """Scale the velocities of each replica to a temperature (kelvin) over its degrees of freedom; those at rest stay so."""
    found = state.temperature()
    scale_velocities(state, torch.where(found > 0, torch.sqrt(temperature / found), 1.0))


def _stop_drift(state: State) -> None:
    """Take off the total momentum, and the angular momentum of isolated replicas, where no atom is frozen."""
    free = _free(state)
    weights = state.masses[:, None]
    drift = state.total(weights * state.velocities) / state.total(weights) * free[:, None]
    state.velocities -= drift.index_select(0, state.structure)
    position, inertia = _inertia(state)
    angular = state.total(torch.linalg.cross(position, weights * state.velocities))
    # Linear molecules do not turn about their axis, along which they have no inertia.
    omega = (torch.linalg.pinv(inertia, rtol=SMALL, hermitian=True) @ angular[:, :, None]).squeeze(2)
    omega = omega * (free & _isolated(state))[:, None]
    state.velocities -= torch.linalg.cross(omega.index_select(0, state.structure), position)


def _inertia(state: State) -> tuple[Tensor, Tensor]:
    """Positions relative to the centres of mass [N, 3], and the tensors of inertia [B, 3, 3] in amu angstrom^2."""
    weights = state.masses[:, None]
    centre = state.total(weights * state.positions) / state.total(weights)
    position = state.positions - centre.index_select(0, state.structure)
    products = state.total((weights * position)[:, :, None] * position[:, None, :])
    unit = torch.eye(3, dtype=position.dtype, device=position.device)
    return position, unit * products.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] - products


def _free(state: State) -> Tensor:
    """Whether a replica has several atoms, none of them frozen, [B]."""
    several = torch.from_numpy(np.diff(state.offsets) > 1).to(state.device)
    return several & (state.total(state.mobile.double()) == state.total(torch.ones_like(state.masses)))


def _isolated(state: State) -> Tensor:
    return torch.from_numpy(~state.pbc.any(axis=1)).to(state.device)
