"""A mass on a spring."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.protocol import Protocol
from simkit.surrogates.systems.sampling import on_circles

HNN = Protocol(
    source="Greydanus et al. 2019, Hamiltonian neural networks, section 3, task 1; times, radii and noise as in the authors' "
    "experiment-spring/data.py: q^2 + p^2 = r^2 with r uniform in [0.1, 1], 30 points in [0, 3], noise 0.1",
    parts=MappingProxyType({"train": 25, "test": 25}),
    duration=3.0,
    points=30,
    noise=0.1,
)


class Spring(System):
    """H = p^2 / (2 m) + k q^2 / 2; the defaults make it p^2 + q^2, as in the authors' code (period pi).

    Args:
        mass: m.
        stiffness: k.
    """

    name = "spring"
    protocols = MappingProxyType({"hnn": HNN})

    def __init__(self, mass: float = 0.5, stiffness: float = 2.0) -> None:
        super().__init__(1, {"mass": mass, "stiffness": stiffness})
        self.mass, self.stiffness = mass, stiffness

    def mass_matrix(self, q: Tensor) -> Tensor:
        return torch.full_like(q, self.mass).unsqueeze(-1)

    def potential(self, q: Tensor) -> Tensor:
        return 0.5 * self.stiffness * q.square().sum(-1)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(1, dim=-1)
        return torch.cat([p / self.mass, -self.stiffness * q], dim=-1)

    def numba_parameters(self) -> Array:
        return np.array([self.mass, self.stiffness])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        out[0] = state[1] / parameters[0]
        out[1] = -parameters[1] * state[0]

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        return on_circles(count, seed, 0.1, 1.0)
