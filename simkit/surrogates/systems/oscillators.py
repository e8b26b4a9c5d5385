"""Chains of masses on springs between two walls: linear ones, and that of Fermi, Pasta, Ulam and Tsingou."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.protocol import Protocol

LINEAR = Protocol(
    source="no paper: the numbers are a choice of ours",
    parts=MappingProxyType({"train": 50, "test": 50}),
    duration=10.0,
    points=101,
)
RECURRENCE = Protocol(
    source="the lowest mode of Fermi, Pasta and Ulam 1955, Los Alamos report LA-1940, whose energy comes back after about 157 of its "
    "periods with 32 masses and alpha = 1/4 (from memory); amplitude, number of masses and times are a choice of ours",
    parts=MappingProxyType({"test": 1}),
    duration=2000.0,
    points=2001,
    initial="lowest mode",
)


class FermiPastaUlam(System):
    """H = sum_i p_i^2 / (2 m) + sum_i U(q_{i+1} - q_i) with U(d) = k d^2 / 2 + alpha d^3 / 3 + beta d^4 / 4 and q_0 = q_{n+1} = 0.

    Args:
        masses: n, their number.
        mass: m.
        stiffness: k.
        alpha: cubic part of the springs.
        beta: quartic part of the springs.

    Raises:
        ConfigError: if there is no mass.
    """

    name = "fermi_pasta_ulam"
    protocols = MappingProxyType({"random": LINEAR, "recurrence": RECURRENCE})

    def __init__(
        self, masses: int = 8, mass: float = 1.0, stiffness: float = 1.0, alpha: float = 0.25, beta: float = 0.0
    ) -> None:
        if masses < 1 or mass <= 0:
            raise ConfigError(f"at least one mass, and a positive one, is needed; found {masses} of {mass}")
        values = {"masses": masses, "mass": mass, "stiffness": stiffness, "alpha": alpha, "beta": beta}
        super().__init__(masses, values)
        self.mass, self.stiffness, self.alpha, self.beta = mass, stiffness, alpha, beta

    def mass_matrix(self, q: Tensor) -> Tensor:
        return torch.diag_embed(torch.full_like(q, self.mass))

    @staticmethod
    def _stretches(q: Tensor) -> Tensor:
        return torch.nn.functional.pad(q, (0, 1)) - torch.nn.functional.pad(q, (1, 0))

    def potential(self, q: Tensor) -> Tensor:
        d = self._stretches(q)
        return (self.stiffness * d**2 / 2 + self.alpha * d**3 / 3 + self.beta * d**4 / 4).sum(-1)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(self.dof, dim=-1)
        d = self._stretches(q)
        tension = self.stiffness * d + self.alpha * d**2 + self.beta * d**3
        return torch.cat([p / self.mass, tension[..., 1:] - tension[..., :-1]], dim=-1)

    def numba_parameters(self) -> Array:
        return np.array([self.mass, self.stiffness, self.alpha, self.beta])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        mass, stiffness, alpha, beta = parameters
        masses = state.size // 2
        before = 0.0
        for i in range(masses + 1):
            d = (state[i] if i < masses else 0.0) - (state[i - 1] if i > 0 else 0.0)
            tension = d * (stiffness + d * (alpha + d * beta))
            if i > 0:
                out[masses + i - 1] = tension - before
            if i < masses:
                out[i] = state[masses + i] / mass
            before = tension

    def frequencies(self) -> Array:
        """Return the angular frequencies [n] of the modes where alpha = beta = 0: 2 sqrt(k / m) sin(j pi / (2 (n + 1)))."""
        modes = np.arange(1, self.dof + 1)
        found: Array = 2 * math.sqrt(self.stiffness / self.mass) * np.sin(modes * math.pi / (2 * (self.dof + 1)))
        return found

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return positions and momenta that are normal with standard deviation 0.5, or the lowest mode with amplitude 1 at rest."""
        if self.resolve(protocol).initial == "lowest mode":
            mode = np.sin(np.arange(1, self.dof + 1) * math.pi / (self.dof + 1))
            return np.tile(np.concatenate([mode, np.zeros(self.dof)]), (count, 1))
        return 0.5 * np.random.default_rng(seed).standard_normal((count, 2 * self.dof))


class CoupledOscillators(FermiPastaUlam):
    """The linear chain.

    Args:
        masses: n, their number.
        mass: m.
        stiffness: k.
    """

    name = "coupled_oscillators"
    protocols = MappingProxyType({"random": LINEAR})

    def __init__(self, masses: int = 3, mass: float = 1.0, stiffness: float = 1.0) -> None:
        super().__init__(masses, mass, stiffness, 0.0, 0.0)
        self.parameters = {"masses": masses, "mass": mass, "stiffness": stiffness}
