"""A Nosé-Hoover chain, integrated by a Suzuki-Yoshida factorization."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.md.ensembles.compiled import compiled, inlined
from simkit.units import BOLTZMANN

_WEIGHTS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    3: (1 / (2 - 2 ** (1 / 3)), -(2 ** (1 / 3)) / (2 - 2 ** (1 / 3)), 1 / (2 - 2 ** (1 / 3))),
    5: (1 / (4 - 4 ** (1 / 3)),) * 2 + (1 - 4 / (4 - 4 ** (1 / 3)),) + (1 / (4 - 4 ** (1 / 3)),) * 2,
}
"""Weights of the factors by their number: of second order, and of fourth (Yoshida 1990, Suzuki 1990)."""


class Chain:
    """A chain of thermostats on a kinetic energy K of N_f degrees of freedom.

    G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635 (1992), doi:10.1063/1.463940; integrated as in G. J. Martyna,
    M. E. Tuckerman, D. J. Tobias, M. L. Klein, Mol. Phys. 87, 1117 (1996), doi:10.1080/00268979600100761, equations 26 to 32.

    | Symbol | Meaning | Variable |
    | --- | --- | --- |
    | v_xi,k | velocity of link k, 1/fs | ``velocities`` [..., M] |
    | Q_1, Q_k | masses, N_f kT tau^2 and kT tau^2, eV fs^2 | ``mass`` |
    | G_k | (2 K - N_f kT) / Q_1, (Q_{k-1} v_xi,k-1^2 - kT) / Q_k | ``_push`` |
    | n_c | repetitions | ``repeats`` |
    | w_j | Suzuki-Yoshida weights | ``_WEIGHTS``; all w_j / n_c one after the other: ``shares`` |
    | N_f kT xi_1 + kT sum xi_k | the bath's potential energy | ``energy`` [...] |

    Where the temperature changes, the bath's potential energy is the integral of kT(t) (N_f dxi_1 + sum dxi_k), which keeps the extended
    energy constant. The masses are those of the temperature in the first step of the simulation.
    """

    def __init__(self, damping: float, links: int, repeats: int, order: int) -> None:
        """Keep the parameters.

        Args:
            damping: tau, fs. links: M. repeats: n_c. order: number of Suzuki-Yoshida weights, 1, 3 or 5.

        Raises:
            ConfigError: if one is not usable.
        """
        for name, value in (("chain", links), ("substeps", repeats)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number, at least 1; found {value!r}")
        if order not in _WEIGHTS:
            raise ConfigError(f"suzuki_yoshida must be 1, 3 or 5 weights; found {order!r}")
        self.damping, self.links, self.repeats, self.order = damping, links, repeats, order
        self.shares = np.array(_WEIGHTS[order] * repeats) / repeats

    def settings(self) -> dict[str, float | int]:
        """Parameters as plain values."""
        return {
            "damping": self.damping, "chain": self.links, "substeps": self.repeats, "suzuki_yoshida": self.order
        }  # fmt: skip

    def masses(self, degrees: Tensor, temperature: Tensor) -> Tensor:
        """Masses of the links at the starting temperature, [..., M] eV fs^2."""
        link = (BOLTZMANN * self.damping**2) * temperature.expand_as(degrees)
        return torch.stack([degrees * link, *[link] * (self.links - 1)], dim=-1)

    def propagate(
        self,
        time: float,
        kinetic: Tensor,
        degrees: Tensor,
        temperature: Tensor,
        mass: Tensor,
        velocities: Tensor,
        energy: Tensor,
    ) -> Tensor:
        """Advance the chain and return what velocities are multiplied with, [...]; ``velocities`` and ``energy`` change in place.

        Args:
            time: fs. kinetic: K [...] eV. degrees: N_f [...]. temperature: K.
        """
        kt = BOLTZMANN * temperature
        target, twice = degrees * kt, 2 * kinetic
        v, scale = list(velocities.unbind(-1)), torch.ones_like(kinetic)
        q = mass.unbind(-1)
        for weight in _WEIGHTS[self.order] * self.repeats:
            t = weight * time / self.repeats
            for k in range(self.links - 1, -1, -1):
                self._push(k, t, v, q, twice, target, kt)
            factor = torch.exp(-t * v[0])
            scale, twice = scale * factor, twice * factor**2
            energy.add_(t * (target * v[0] + kt * sum(v[1:], start=torch.zeros_like(v[0]))))
            for k in range(self.links):
                self._push(k, t, v, q, twice, target, kt)
        torch.stack(v, dim=-1, out=velocities)
        return scale

    def _push(
        self, k: int, t: float, v: list[Tensor], q: tuple[Tensor, ...], twice: Tensor, target: Tensor, kt: Tensor
    ) -> None:
        """Half a step t of link k: drag by the next one around the push by the one before, or by the kinetic energy."""
        force = (twice - target) / q[0] if k == 0 else (q[k - 1] * v[k - 1] ** 2 - kt) / q[k]
        if k == self.links - 1:
            v[k] = v[k] + 0.5 * t * force
        else:
            drag = torch.exp(-0.25 * t * v[k + 1])
            v[k] = (v[k] * drag + 0.5 * t * force) * drag

    def kinetic_energy(self, mass: Tensor, velocities: Tensor) -> Tensor:
        """Of the links, [...] eV."""
        return 0.5 * (mass * velocities**2).sum(-1)


@compiled
def propagate_chain(time, shares, kinetic, degrees, kt, unit, velocities, place, energy):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`Chain.propagate` for one chain: row ``place`` of ``velocities`` [..., M] and of ``energy``; ``unit`` is the mass Q_k.

    Compiled, as `_push_link`.
    """
    target, twice, factor = degrees * kt, 2 * kinetic, 1.0
    links = velocities.shape[1]
    for share in shares:
        t = share * time
        for k in range(links - 1, -1, -1):
            _push_link(k, links, t, velocities, place, twice, degrees, kt, unit)
        drag = math.exp(-t * velocities[place, 0])
        factor *= drag
        twice *= drag * drag
        rest = 0.0
        for k in range(1, links):
            rest += velocities[place, k]
        energy[place] += t * (target * velocities[place, 0] + kt * rest)
        for k in range(links):
            _push_link(k, links, t, velocities, place, twice, degrees, kt, unit)
    return factor


@inlined
def _push_link(k, links, t, velocities, place, twice, degrees, kt, unit):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`Chain._push`."""
    v = velocities[place, k]
    if k == 0:
        force = (twice - degrees * kt) / (degrees * unit)
    else:
        before = velocities[place, k - 1]
        force = ((degrees if k == 1 else 1.0) * unit * before * before - kt) / unit
    if k == links - 1:
        velocities[place, k] = v + 0.5 * t * force
    else:
        drag = math.exp(-0.25 * t * velocities[place, k + 1])
        velocities[place, k] = (v * drag + 0.5 * t * force) * drag


def check_damping(name: str, damping: float, timestep: float) -> float:
    """Return a damping time.

    Raises:
        ConfigError: if it is shorter than ten timesteps, which the chain cannot follow.
    """
    if isinstance(damping, bool) or not isinstance(damping, int | float) or not math.isfinite(damping):
        raise ConfigError(f"{name} must be a number; found {damping!r}")
    if damping < 10 * timestep:
        raise ConfigError(f"{name} must be at least ten timesteps, {10 * timestep:g} fs; found {damping:g} fs")
    return float(damping)
