"""The galactic potential of Henon and Heiles."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.protocol import Protocol

RANDOM = Protocol(
    source="energies below the escape energy 1/6 of Henon and Heiles 1964; numbers and times are a choice of ours",
    parts=MappingProxyType({"train": 50, "test": 50}),
    duration=20.0,
    points=201,
)


class HenonHeiles(System):
    """H = (p_x^2 + p_y^2 + x^2 + y^2) / 2 + lambda (x^2 y - y^3 / 3) (Henon and Heiles 1964, Astronomical Journal 69, 73).

    Args:
        coupling: lambda; motion with energy below 1 / (6 lambda^2) around the origin is bounded.
    """

    name = "henon_heiles"
    protocols = MappingProxyType({"random": RANDOM})

    def __init__(self, coupling: float = 1.0) -> None:
        super().__init__(2, {"coupling": coupling})
        self.coupling = coupling

    def mass_matrix(self, q: Tensor) -> Tensor:
        return torch.diag_embed(torch.ones_like(q))

    def potential(self, q: Tensor) -> Tensor:
        x, y = q.unbind(-1)
        return 0.5 * (x**2 + y**2) + self.coupling * (x**2 * y - y**3 / 3)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        x, y, px, py = state.unbind(-1)
        return torch.stack([px, py, -x - 2 * self.coupling * x * y, -y - self.coupling * (x**2 - y**2)], dim=-1)

    def numba_parameters(self) -> Array:
        return np.array([self.coupling])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        x, y = state[0], state[1]
        out[0], out[1] = state[2], state[3]
        out[2] = -x - 2 * parameters[0] * x * y
        out[3] = -y - parameters[0] * (x * x - y * y)

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return bounded orbits: energies uniform in [0.02, 0.16] / lambda^2, all of it kinetic at the origin, in any direction."""
        generator = np.random.default_rng(seed)
        energy = generator.uniform(0.02, 0.16, count) / (self.coupling**2 or 1.0)
        angle = generator.uniform(0, 2 * np.pi, count)
        momentum = np.sqrt(2 * energy) * np.stack([np.cos(angle), np.sin(angle)])
        return np.concatenate([np.zeros((count, 2)), momentum.T], axis=1)
