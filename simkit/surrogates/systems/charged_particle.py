"""A charged particle in a uniform magnetic field and a harmonic trap."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.protocol import Protocol

RANDOM = Protocol(
    source="no paper: the numbers are a choice of ours",
    parts=MappingProxyType({"train": 50, "test": 50}),
    duration=10.0,
    points=101,
)


class ChargedParticle(System):
    """H = |p - e A(q)|^2 / (2 m) + k |q|^2 / 2 in the plane, with the symmetric gauge A = B (-y, x) / 2.

    p is the canonical momentum, m v + e A. Without a trap the particle runs on circles at the cyclotron frequency e B / m.

    Args:
        mass: m.
        charge: e.
        field_strength: B, perpendicular to the plane.
        stiffness: k, of the trap.
    """

    name = "charged_particle"
    separable = False
    protocols = MappingProxyType({"random": RANDOM})

    def __init__(
        self, mass: float = 1.0, charge: float = 1.0, field_strength: float = 1.0, stiffness: float = 0.25
    ) -> None:
        values = {"mass": mass, "charge": charge, "field_strength": field_strength, "stiffness": stiffness}
        super().__init__(2, values)
        self.mass, self.stiffness, self.half = mass, stiffness, 0.5 * charge * field_strength

    def mass_matrix(self, q: Tensor) -> Tensor:
        return torch.diag_embed(torch.full_like(q, self.mass))

    def _pull(self, q: Tensor) -> Tensor:
        """e A(q), [..., 2]."""
        return self.half * torch.stack([-q[..., 1], q[..., 0]], dim=-1)

    def potential(self, q: Tensor) -> Tensor:
        return 0.5 * self.stiffness * q.square().sum(-1)

    def velocities(self, q: Tensor, p: Tensor) -> Tensor:
        return (p - self._pull(q)) / self.mass

    def momenta(self, q: Tensor, v: Tensor) -> Tensor:
        return self.mass * v + self._pull(q)

    def hamiltonian(self, q: Tensor, p: Tensor) -> Tensor:
        return 0.5 * self.mass * self.velocities(q, p).square().sum(-1) + self.potential(q)

    def lagrangian(self, q: Tensor, v: Tensor) -> Tensor:
        return 0.5 * self.mass * v.square().sum(-1) + (self._pull(q) * v).sum(-1) - self.potential(q)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(2, dim=-1)
        v = self.velocities(q, p)
        turned = torch.stack([v[..., 1], -v[..., 0]], dim=-1)
        return torch.cat([v, self.half * turned - self.stiffness * q], dim=-1)

    def numba_parameters(self) -> Array:
        return np.array([self.mass, self.half, self.stiffness])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        mass, half, stiffness = parameters
        out[0] = (state[2] + half * state[1]) / mass
        out[1] = (state[3] - half * state[0]) / mass
        out[2] = half * out[1] - stiffness * state[0]
        out[3] = -half * out[0] - stiffness * state[1]

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return normal positions and velocities, with momenta to match."""
        q, v = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, count, 2)))
        return torch.cat([q, self.momenta(q, v)], dim=-1).numpy()
