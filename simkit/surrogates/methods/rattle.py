"""RATTLE: a symplectic, symmetric method of second order on a constraint manifold.

H. C. Andersen, J. Comput. Phys. 52, 24 (1983), doi:10.1016/0021-9991(83)90014-1; in the form of Hairer, Lubich & Wanner, "Geometric
Numerical Integration" (2006), eq. VII.1.26. With constraints Phi(x) = 0, G = dPhi/dx, force F = -dV/dx and mass matrix M:

| Equation | Here |
| --- | --- |
| p_half = p + h/2 (F(x) - G(x)^T lambda), x' = x + h M^-1 p_half with Phi(x') = 0 | ``free`` is x' for lambda = 0 |
| ... the multiplier sigma = h^2/2 lambda, by Newton's method | `_positions` |
| p' = p_half + h/2 (F(x') - G(x')^T mu) with G(x') M^-1 p' = 0 | `tangent` |

Newton's method stops when no constraint is violated by more than `TOLERANCE` machine epsilons times the largest squared coordinate
(1e-14 in float64). Gradients follow from the implicit function theorem: the last Newton correction is recorded, with its matrix held
fixed. They are exact to first order and cannot be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from simkit.errors import ConfigError
from simkit.surrogates.derivatives import gradients
from simkit.surrogates.methods.stepper import Direct

TOLERANCE = 50
NEWTON_ITERATIONS = 50


@dataclass(frozen=True)
class Constrained:
    """A model in Cartesian coordinates with a constant diagonal mass matrix and holonomic constraints.

    Attributes:
        masses: returns the mass of each coordinate, [D].
        potential: from x [..., D] to V [...].
        constraints: from x to Phi [..., C].
        jacobian: from x to dPhi/dx [..., C, D].
        coordinates: whether the state is (x, p), "canonical", or (x, v), "velocity".
    """

    masses: Callable[[], Tensor]
    potential: nn.Module
    constraints: Callable[[Tensor], Tensor]
    jacobian: Callable[[Tensor], Tensor]
    coordinates: Literal["canonical", "velocity"]


class Rattle(Direct):
    """RATTLE for a constrained model. The initial state must satisfy the constraints; its velocities are made tangent."""

    symmetric = True

    def __init__(self, model: Constrained) -> None:
        self.model = model

    def start(self, state: Tensor) -> Tensor:
        """Return (x, v) with velocities tangent to the manifold.

        Raises:
            ConfigError: if the positions violate the constraints.
        """
        x, other = state.chunk(2, dim=-1)
        masses = self.model.masses()
        found, allowed = self.model.constraints(x).detach().abs().amax(), torch.finfo(x.dtype).eps ** 0.5 * _scale(x)
        if not bool(found <= allowed):
            raise ConfigError(
                f"the initial positions violate the constraints by {float(found):.1e} (allowed: {float(allowed):.1e}); give "
                "positions on the constraint manifold"
            )
        velocity = other if self.model.coordinates == "velocity" else other / masses
        return torch.cat([x, tangent(self.model.jacobian(x), masses, velocity)], dim=-1)

    def read(self, inner: Tensor) -> Tensor:
        """Return (x, p) or (x, v)."""
        if self.model.coordinates == "velocity":
            return inner
        x, v = inner.chunk(2, dim=-1)
        return torch.cat([x, v * self.model.masses()], dim=-1)

    def advance(self, inner: Tensor, control: Tensor | None, t: float, h: float, steps: int) -> Tensor:
        """Return (x, v) after the steps; see `Stepper`.

        Raises:
            ConfigError: if a step cannot be solved.
        """
        x, v = inner.chunk(2, dim=-1)
        masses = self.model.masses()
        acceleration, normal = self._acceleration(x, masses), self.model.jacobian(x)
        for _ in range(steps):
            free = x + h * (v + h / 2 * acceleration)
            following = self._positions(free, normal, masses)
            half = (following - x) / h
            x = following
            acceleration, normal = self._acceleration(x, masses), self.model.jacobian(x)
            v = tangent(normal, masses, half + h / 2 * acceleration)
        return torch.cat([x, v], dim=-1)

    def _acceleration(self, x: Tensor, masses: Tensor) -> Tensor:
        return -gradients(self.model.potential, x)[0] / masses

    def _positions(self, free: Tensor, normal: Tensor, masses: Tensor) -> Tensor:
        """Return free - M^-1 G^T sigma on the manifold, G [..., C, D] being that of the positions before."""
        weighted = normal / masses
        with torch.no_grad():
            sigma = self._multiplier(free, weighted)
        x = free - _combine(weighted, sigma)
        if torch.is_grad_enabled() and x.requires_grad:
            violation = self.model.constraints(x)
            matrix = (self.model.jacobian(x) @ weighted.mT).detach()
            x = x - _combine(weighted, torch.linalg.solve(matrix, violation.unsqueeze(-1)).squeeze(-1))
        return x

    def _multiplier(self, free: Tensor, weighted: Tensor) -> Tensor:
        sigma = torch.zeros_like(weighted[..., 0])
        allowed = TOLERANCE * torch.finfo(free.dtype).eps * _scale(free)
        for _ in range(NEWTON_ITERATIONS):
            x = free - _combine(weighted, sigma)
            violation = self.model.constraints(x)
            if bool(violation.abs().amax() <= allowed):
                return sigma
            matrix = self.model.jacobian(x) @ weighted.mT
            sigma = sigma + torch.linalg.solve(matrix, violation.unsqueeze(-1)).squeeze(-1)
        raise ConfigError(
            f"RATTLE did not converge: constraints are violated by {float(violation.abs().amax()):.1e} (allowed: "
            f"{float(allowed):.1e}) after {NEWTON_ITERATIONS} iterations; set a smaller timestep"
        )


def tangent(normal: Tensor, masses: Tensor, velocity: Tensor) -> Tensor:
    """Return v - M^-1 G^T (G M^-1 G^T)^-1 G v, which is tangent to the manifold; G [..., C, D], M [D], v [..., D]."""
    weighted = normal / masses
    multiplier = torch.linalg.solve(normal @ weighted.mT, normal @ velocity.unsqueeze(-1)).squeeze(-1)
    return velocity - _combine(weighted, multiplier)


def _combine(weighted: Tensor, multiplier: Tensor) -> Tensor:
    """Return M^-1 G^T times the multipliers [..., C], [..., D]."""
    return (weighted.mT @ multiplier.unsqueeze(-1)).squeeze(-1)


def _scale(x: Tensor) -> Tensor:
    return x.detach().square().amax().clamp(min=1.0)
