"""Degrees of freedom that carry kinetic energy, and the momentum of the centre of mass."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import ConfigError
from simkit.md.state import State

_ZERO = 1e-8
"""A total momentum below this share of the sum of the atoms' momenta counts as zero; files keep about that many digits."""


def unconstrained(state: State) -> Tensor:
    """Three for each mobile atom, [B]: the degrees of freedom of a thermostat that acts on each atom."""
    return 3.0 * state.total(state.mobile.double())


def conserving(state: State) -> Tensor:
    """Degrees of freedom of dynamics that keeps a total momentum of zero at zero, [B].

    That is Newton's, and that of a thermostat that scales all velocities alike. Three for each mobile atom; less three where the total
    momentum is zero; for an isolated structure less the three axes that it can turn about (two for a linear one) where its angular
    momentum about the centre of mass is zero, too. Frozen atoms hold the others, so that nothing is conserved. A single atom keeps three.
    """
    host = {name: getattr(state, name).cpu().numpy() for name in ("positions", "velocities", "masses", "mobile")}
    found = np.empty(state.size)
    for k in range(state.size):
        x, v, m, mobile = (array[state.offsets[k] : state.offsets[k + 1]] for array in host.values())
        found[k] = 3 * mobile.sum() - (_zero_momenta(x, v, m, bool(state.pbc[k].any())) if mobile.all() else 0)
    return torch.from_numpy(found).to(state.device)


def _zero_momenta(x: NDArray[np.float64], v: NDArray[np.float64], m: NDArray[np.float64], periodic: bool) -> int:
    """How many components of total and angular momentum are zero and stay so."""
    momenta = m[:, None] * v
    if len(x) == 1 or np.abs(momenta.sum(0)).max() > _ZERO * np.abs(momenta).sum():
        return 0
    if periodic:
        return 3
    arm = x - np.average(x, axis=0, weights=m)
    angular = np.cross(arm, momenta)
    if np.abs(angular.sum(0)).max() > _ZERO * (np.linalg.norm(arm, axis=1) * np.linalg.norm(momenta, axis=1)).sum():
        return 3
    weighted = m[:, None] * arm
    inertia = np.eye(3) * (weighted * arm).sum() - weighted.T @ arm
    return 3 + int(np.linalg.matrix_rank(inertia, tol=1e-8 * max(np.trace(inertia), 1e-300), hermitian=True))


def remove_momentum(state: State) -> None:
    """Subtract the velocity of each replica's centre of mass from its atoms."""
    mass = state.total(state.masses)
    velocity = state.total(state.velocities * state.masses[:, None]) / mass[:, None]
    state.velocities.sub_(velocity[state.structure])


def keep_degrees(state: State, name: str, degrees: Tensor) -> None:
    """Set the degrees of freedom of a new simulation; a restart keeps those that it began with.

    They are judged by momenta that are zero up to rounding, and must not change when a run is cut in two.

    Raises:
        ConfigError: if a replica has none.
    """
    state.degrees.copy_(state.extra.setdefault(name, degrees.clone()))
    if bool((state.degrees < 1).any()):
        place = int(torch.nonzero(state.degrees < 1)[0])
        raise ConfigError(f"replica {place} has no degree of freedom: all its atoms are frozen; leave it out")


def _check_com_removal(state: State) -> None:
    """Raises ConfigError if the momentum cannot be removed."""
    if not bool(state.mobile.all()):
        raise ConfigError("remove_com with frozen atoms: they hold the centre of mass; leave remove_com out")
    if (np.diff(state.offsets) < 2).any():
        raise ConfigError("remove_com with a replica of one atom, which it would stop; leave remove_com out")


def start_global_thermostat(state: State, name: str, remove_com: bool) -> None:
    """Set the degrees of freedom for a thermostat that scales all velocities of a replica alike.

    Raises:
        ConfigError: if the centre of mass cannot be stopped, or a replica has no degree of freedom.
    """
    state.velocities.mul_(state.mobile[:, None])
    if remove_com:
        _check_com_removal(state)
        if f"{name}.degrees" not in state.extra:
            remove_momentum(state)
    keep_degrees(state, f"{name}.degrees", conserving(state))
