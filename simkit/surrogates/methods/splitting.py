"""Rollouts of separable models by the schemes of `simkit.integrators`.

Where the kinetic energy is |L^-1 p|^2/2 with a constant mass matrix M = L L^T, the canonical transformation Q = L^T q, P = L^-1 p
gives every coordinate a mass of 1, and `simkit.integrators.torch` runs the scheme. With M v = p, P is also L^T v. Where the kinetic
energy is another function of the momenta, the drift is q += c h dT/dp; the order of ``mclachlan-atela-4`` is then lower than stated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from simkit.integrators.scheme import Operator, Scheme
from simkit.integrators.torch import Gradient, conservative, integrate
from simkit.surrogates.derivatives import gradients
from simkit.surrogates.methods.stepper import Direct


@dataclass(frozen=True)
class Separable:
    """A model with the energy T(p) + V(q), state (q, p).

    Attributes:
        kinetic, potential: from [..., D] to [...].
    """

    kinetic: nn.Module
    potential: nn.Module


@dataclass(frozen=True)
class Quadratic:
    """A model with a constant mass matrix and the potential energy V(q).

    Attributes:
        factor: returns the lower triangular L [D, D] of the mass matrix L L^T.
        potential: from [..., D] to [...].
        coordinates: whether the state is (q, p), "canonical", or (q, v), "velocity".
    """

    factor: Callable[[], Tensor]
    potential: nn.Module
    coordinates: Literal["canonical", "velocity"]


class SeparableSplitting(Direct):
    """A scheme with the flows of T(p) and V(q)."""

    def __init__(self, model: Separable, scheme: Scheme) -> None:
        self.model = model
        self.scheme = scheme
        self.symmetric = scheme.symmetric

    def advance(self, inner: Tensor, control: Tensor | None, t: float, h: float, steps: int) -> Tensor:
        """Return the state after the steps; see `Stepper`."""
        q, p = inner.chunk(2, dim=-1)
        slope: Tensor | None = None  # dV/dq at q
        for _ in range(steps):
            for substep in self.scheme.substeps:
                if substep.operator is Operator.DRIFT:
                    q = q + substep.coefficient * h * gradients(self.model.kinetic, p)[0]
                    slope = None
                else:
                    slope = gradients(self.model.potential, q)[0] if slope is None else slope
                    p = p - substep.coefficient * h * slope
        return torch.cat([q, p], dim=-1)


class QuadraticSplitting:
    """A scheme in coordinates of unit mass, by `simkit.integrators.torch.integrate`, whose own gradients it has."""

    def __init__(self, model: Quadratic, scheme: Scheme, gradient: Gradient) -> None:
        self.model = model
        self.scheme = scheme
        self.gradient: Gradient = gradient
        self.symmetric = scheme.symmetric
        self.names = [name for name, _ in model.potential.named_parameters()]
        self.force = conservative(self._energy)

    def start(self, state: Tensor) -> Tensor:
        """Return (Q, P), [..., 2D]."""
        q, other = state.chunk(2, dim=-1)
        factor = self.model.factor()
        if self.model.coordinates == "velocity":
            momentum = other @ factor
        else:
            momentum = _solve(factor, other, upper=False)
        return torch.cat([q @ factor, momentum], dim=-1)

    def read(self, inner: Tensor) -> Tensor:
        """Return (q, p) or (q, v), [..., 2D]."""
        scaled, momentum = inner.chunk(2, dim=-1)
        factor = self.model.factor()
        if self.model.coordinates == "velocity":
            other = _solve(factor.mT, momentum, upper=True)
        else:
            other = momentum @ factor.mT
        return torch.cat([_solve(factor.mT, scaled, upper=True), other], dim=-1)

    def advance(self, inner: Tensor, control: Tensor | None, t: float, h: float, steps: int) -> Tensor:
        """Return (Q, P) after the steps; see `Stepper`."""
        positions, velocities = (part.unsqueeze(-2) for part in inner.chunk(2, dim=-1))
        weights = (self.model.factor(), *self.model.potential.parameters())
        x, v = integrate(
            self.scheme, self.force, positions, velocities, masses=1.0, timestep=h, steps=steps, parameters=weights,
            gradient=self.gradient,
        )  # fmt: skip
        return torch.cat([x, v], dim=-1).squeeze(-2)

    def _energy(self, scaled: Tensor, factor: Tensor, *weights: Tensor) -> Tensor:
        q = _solve(factor.mT, scaled, upper=True)
        named = dict(zip(self.names, weights, strict=True))
        return torch.func.functional_call(self.model.potential, named, (q,))


def _solve(matrix: Tensor, vectors: Tensor, *, upper: bool) -> Tensor:
    """Return matrix^-1 times each of the vectors [..., D], for a triangular matrix [D, D]."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    return torch.linalg.solve_triangular(matrix, flat.mT, upper=upper).mT.reshape(vectors.shape)
