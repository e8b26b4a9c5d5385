"""Systems that are not mechanical: reaction and diffusion of two substances, and predators and prey."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.surrogates.systems.dynamics import Array, Dynamics
from simkit.surrogates.systems.protocol import Protocol
from simkit.surrogates.trajectories import Trajectories

APHYNITY = Protocol(
    source="Yin et al. 2021, Augmenting physical models with deep networks, section 4.1; as in the authors' datasets/rd.py and "
    "datasets/__init__.py: uniform random fields, 30 points at intervals of 0.1. All of it is 1 GB, and as much again for derivatives",
    parts=MappingProxyType({"train": 1600, "test": 320}),
    duration=2.9,
    points=30,
)
CYCLES = Protocol(
    source="no paper: the numbers are a choice of ours",
    parts=MappingProxyType({"train": 50, "test": 50}),
    duration=10.0,
    points=101,
)


class FirstOrder(Dynamics):
    """A system whose state has no momenta: it is ``q`` of the trajectories, with the derivative ``dq``.

    Attributes:
        dof: components of the state.
    """

    conservative = False

    def __init__(self, dof: int, parameters: Mapping[str, Any]) -> None:
        super().__init__(parameters)
        self.dof = dof

    def trajectories(self, times: Array, states: Array) -> Trajectories:
        return Trajectories(times=times, q=states, dq=self.finite_rate(times, states).numpy())


class ReactionDiffusion(FirstOrder):
    """du/dt = a lap u + u - u^3 - v - k, dv/dt = b lap v + u - v (FitzHugh and Nagumo) on a periodic grid over [-1, 1]^2.

    The Laplacian is that of five points. The state is u beside v, each row by row, [..., 2 n^2]. The incomplete physics of APHYNITY is
    the diffusion alone.

    Args:
        size: n, grid points along each side.
        a: diffusion of u.
        b: diffusion of v.
        k: constant supply.

    Raises:
        ConfigError: if the grid has less than 3 points along a side.
    """

    name = "reaction_diffusion"
    tolerance = 1e-10
    protocols = MappingProxyType({"aphynity": APHYNITY})

    def __init__(self, size: int = 32, a: float = 1e-3, b: float = 5e-3, k: float = 5e-3) -> None:
        if size < 3:
            raise ConfigError(f"the grid must have at least 3 points along a side; found {size}")
        super().__init__(2 * size * size, {"size": size, "a": a, "b": b, "k": k})
        self.size, self.diffusion, self.supply = size, (a, b), k

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        fields = state.unflatten(-1, (2, self.size, self.size))
        neighbors = sum((fields.roll(shift, axis) for shift in (1, -1) for axis in (-1, -2)), torch.zeros_like(fields))
        laplacian = (neighbors - 4 * fields) * (self.size / 2) ** 2
        u, v = fields.unbind(-3)
        u_rate = self.diffusion[0] * laplacian[..., 0, :, :] + u - u**3 - v - self.supply
        v_rate = self.diffusion[1] * laplacian[..., 1, :, :] + u - v
        return torch.stack([u_rate, v_rate], dim=-3).flatten(-3)

    def numba_parameters(self) -> Array:
        return np.array([*self.diffusion, self.supply])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        size = int(np.rint(np.sqrt(state.size / 2)))
        inverse = (size / 2) ** 2
        for i in range(size):
            up, down = (i - 1) % size * size, (i + 1) % size * size
            for j in range(size):
                left, right = (j - 1) % size, (j + 1) % size
                here, there = i * size + j, size * size + i * size + j
                u, v = state[here], state[there]
                for c in range(2):
                    start = c * size * size
                    row = start + i * size
                    around = state[start + up + j] + state[start + down + j] + state[row + left] + state[row + right]
                    out[row + j] = parameters[c] * inverse * (around - 4 * state[row + j])
                out[here] += u - u**3 - v - parameters[2]
                out[there] += u - v

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return fields whose values are independent and uniform in [0, 1)."""
        return np.random.default_rng(seed).random((count, self.dof))


class LotkaVolterra(FirstOrder):
    """dx/dt = alpha x - beta x y, dy/dt = delta x y - gamma y: prey x and predators y (Lotka 1925, Volterra 1926).

    Constant along every orbit: delta x - gamma ln x + beta y - alpha ln y.

    Args:
        alpha: growth of the prey.
        beta: loss of prey to predators.
        delta: growth of predators by prey.
        gamma: death of predators.
    """

    name = "lotka_volterra"
    protocols = MappingProxyType({"random": CYCLES})

    def __init__(self, alpha: float = 1.5, beta: float = 1.0, delta: float = 1.0, gamma: float = 3.0) -> None:
        super().__init__(2, {"alpha": alpha, "beta": beta, "delta": delta, "gamma": gamma})
        self.rates = (alpha, beta, delta, gamma)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        alpha, beta, delta, gamma = self.rates
        x, y = state.unbind(-1)
        return torch.stack([alpha * x - beta * x * y, delta * x * y - gamma * y], dim=-1)

    def invariant(self, state: Tensor) -> Tensor:
        """Return the constant of motion, [...]."""
        alpha, beta, delta, gamma = self.rates
        x, y = state.unbind(-1)
        return delta * x - gamma * x.log() + beta * y - alpha * y.log()

    def numba_parameters(self) -> Array:
        return np.array(self.rates)

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        out[0] = state[0] * (parameters[0] - parameters[1] * state[1])
        out[1] = state[1] * (parameters[2] * state[0] - parameters[3])

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return populations uniform in [0.5, 3]."""
        return np.random.default_rng(seed).uniform(0.5, 3.0, (count, 2))
