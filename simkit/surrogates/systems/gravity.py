"""Point masses under gravity in a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.protocol import Protocol

TWO_BODY = Protocol(
    source="Greydanus et al. 2019, Hamiltonian neural networks, section 4, task 4; numbers as in the authors' experiment-2body/data.py "
    "(experiment-orbits in the version that we could read), which tests on the first fifth",
    parts=MappingProxyType({"test": 200, "train": 800}),
    duration=20.0,
    points=50,
)
THREE_BODY = Protocol(
    source="Greydanus et al. 2019, Hamiltonian neural networks, appendix B, three-body problem; numbers as in the authors' "
    "experiment-3body/data.py, which tests on the first fifth",
    parts=MappingProxyType({"test": 1000, "train": 4000}),
    duration=5.0,
    points=20,
)


class Gravity(System):
    """H = sum_i |p_i|^2 / (2 m_i) - G sum_{i<j} m_i m_j / |q_i - q_j|; q is (x_1, y_1, x_2, y_2, ...).

    The authors of Hamiltonian neural networks order their coordinates as (x_1, x_2, ..., y_1, y_2, ...).

    Args:
        masses: [n].
        constant: G.

    Raises:
        ConfigError: if there are fewer than two masses or one is not positive.
    """

    def __init__(self, masses: Sequence[float], constant: float = 1.0) -> None:
        if len(masses) < 2 or min(masses) <= 0:
            raise ConfigError(f"at least two positive masses are needed; found {list(masses)}")
        super().__init__(2 * len(masses), {"masses": list(masses), "constant": constant})
        self.masses, self.constant = torch.tensor(masses, dtype=torch.float64), constant
        self._first, self._second = torch.triu_indices(len(masses), len(masses), 1)
        self._weights = constant * self.masses[self._first] * self.masses[self._second]

    def mass_matrix(self, q: Tensor) -> Tensor:
        return torch.diag(self.masses.repeat_interleave(2).to(q)).expand(*q.shape[:-1], -1, -1)

    def _separations(self, q: Tensor) -> Tensor:
        points = q.unflatten(-1, (-1, 2))
        return points[..., self._first, :] - points[..., self._second, :]

    def potential(self, q: Tensor) -> Tensor:
        return -(self._weights.to(q) / self._separations(q).norm(dim=-1)).sum(-1)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(self.dof, dim=-1)
        separations = self._separations(q)
        pull = separations * (self._weights.to(q) / separations.norm(dim=-1).pow(3)).unsqueeze(-1)
        force = torch.zeros_like(q).unflatten(-1, (-1, 2))
        force = force.index_add(-2, self._second, pull).index_add(-2, self._first, -pull)
        return torch.cat([p / self.masses.repeat_interleave(2).to(q), force.flatten(-2)], dim=-1)

    def numba_parameters(self) -> Array:
        return np.append(self.constant, self.masses.numpy())

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        bodies = parameters.size - 1
        half = 2 * bodies
        for i in range(bodies):
            for axis in range(2):
                out[2 * i + axis] = state[half + 2 * i + axis] / parameters[1 + i]
                out[half + 2 * i + axis] = 0.0
        for i in range(bodies):
            for j in range(i):
                x, y = state[2 * i] - state[2 * j], state[2 * i + 1] - state[2 * j + 1]
                square = x * x + y * y
                pull = parameters[0] * parameters[1 + i] * parameters[1 + j] / (square * math.sqrt(square))
                out[half + 2 * i] -= pull * x
                out[half + 2 * i + 1] -= pull * y
                out[half + 2 * j] += pull * x
                out[half + 2 * j + 1] += pull * y


class TwoBody(Gravity):
    """Two bodies around their center of mass; the defaults are those of Greydanus et al. 2019: unit masses, G = 1.

    Args:
        constant: G.
    """

    name = "two_body"
    protocols = MappingProxyType({"hnn": TWO_BODY})

    def __init__(self, constant: float = 1.0) -> None:
        super().__init__((1.0, 1.0), constant)
        self.parameters = {"constant": constant}

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return nearly circular orbits: a position uniform in [0.5, 1.5]^2, the speed of the circle times 1 + 0.05 z, z normal."""
        generator = np.random.default_rng(seed)
        position = generator.uniform(0.5, 1.5, (count, 2))
        radius = np.linalg.norm(position, axis=1, keepdims=True)
        velocity = position[:, ::-1] * [-1, 1] * math.sqrt(self.constant) / (2 * radius**1.5)
        velocity = velocity * (1 + 0.05 * generator.standard_normal((count, 1)))
        return np.concatenate([position, -position, velocity, -velocity], axis=1)


class ThreeBody(Gravity):
    """Three bodies near a rotating equilateral triangle; the defaults are those of Greydanus et al. 2019: unit masses, G = 1.

    Args:
        constant: G.
    """

    name = "three_body"
    protocols = MappingProxyType({"hnn": THREE_BODY})

    def __init__(self, constant: float = 1.0) -> None:
        super().__init__((1.0, 1.0, 1.0), constant)
        self.parameters = {"constant": constant}

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return triangles of radius uniform in [0.9, 1.2], each component of the circular velocities times 1 + 0.2 u, u in [-1, 1]."""
        generator = np.random.default_rng(seed)
        first = generator.uniform(-1, 1, (count, 2))
        radius = generator.uniform(0.9, 1.2, (count, 1))
        first = first / np.linalg.norm(first, axis=1, keepdims=True) * radius
        # Each of the two others pulls with 1 / (3 r^2) towards it, together with 1 / (sqrt(3) r^2) towards the center.
        speed = math.sqrt(self.constant / math.sqrt(3)) / radius**1.5
        angles = 2 * math.pi / 3 * np.arange(3)
        points = [_rotate(first, angle) for angle in angles]
        velocities = [
            _rotate(first * speed, angle + math.pi / 2) * (1 + 0.2 * generator.uniform(-1, 1, (count, 2)))
            for angle in angles
        ]
        return np.concatenate([*points, *velocities], axis=1)


def _rotate(vectors: Array, angle: float) -> Array:
    cosine, sine = math.cos(angle), math.sin(angle)
    return vectors @ np.array([[cosine, sine], [-sine, cosine]])
