"""Tao's explicit symplectic integrators of Hamiltonians that are not separable, in an extended phase space.

M. Tao, "Explicit symplectic approximation of nonseparable Hamiltonians: algorithm and long time performance", Phys. Rev. E 94, 043303
(2016), doi:10.1103/PhysRevE.94.043303. The extended Hamiltonian of two copies (q, p) and (x, y) is
H(q, y) + H(x, p) + omega (|q - x|^2 + |p - y|^2)/2; its three parts have exact flows:

| Flow for the time d | Here |
| --- | --- |
| A: p -= d dH/dq(q, y), x += d dH/dp(q, y) | `_advance_a` |
| B: q += d dH/dp(x, p), y -= d dH/dq(x, p) | `_advance_b` |
| C: sums q + x and p + y stay; (q - x, p - y) turns by the angle 2 omega d | `_rotate` |
| step of second order, A(h/2) B(h/2) C(h) B(h/2) A(h/2) | `_step` |
| step of fourth order, three of those of lengths g h, (1 - 2 g) h, g h with g = 1/(2 - 2^(1/3)) | ``weights`` |

Both copies start at the given state and the first is read. They are kept from frame to frame: the map is symplectic on the extended
phase space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simkit.surrogates.methods.stepper import Field

WEIGHTS = {2: (1.0,), 4: (1 / (2 - 2 ** (1 / 3)), 1 - 2 / (2 - 2 ** (1 / 3)), 1 / (2 - 2 ** (1 / 3)))}


class Tao:
    """Tao's integrator.

    Args:
        field: the symplectic gradient (dH/dp, -dH/dq) of a Hamiltonian at a state (q, p).
        order: 2 or 4.
        binding: omega, the strength of the spring between the two copies, 1/time. It must be large enough for them to stay together,
            and the steps short enough to resolve it.
    """

    symmetric = True

    def __init__(self, field: Field, order: int, binding: float) -> None:
        self.field = field
        self.weights = WEIGHTS[order]
        self.binding = binding

    def start(self, state: Tensor) -> Tensor:
        """Return the two copies (q, p, x, y), [..., 4D]."""
        return torch.cat([state, state], dim=-1)

    def read(self, inner: Tensor) -> Tensor:
        """Return the first copy, [..., 2D]."""
        return inner[..., : inner.shape[-1] // 2]

    def advance(self, inner: Tensor, control: Tensor | None, t: float, h: float, steps: int) -> Tensor:
        """Return both copies after the steps; see `Stepper`. The time of a step is that of its middle."""
        parts = inner.chunk(4, dim=-1)
        for step in range(steps):
            for weight in self.weights:
                parts = self._step(parts, control, t + (step + 0.5) * h, weight * h)
        return torch.cat(parts, dim=-1)

    def _step(self, parts: tuple[Tensor, ...], control: Tensor | None, t: float, h: float) -> tuple[Tensor, ...]:
        parts = self._advance_a(parts, control, t, h / 2)
        parts = self._advance_b(parts, control, t, h / 2)
        parts = self._rotate(parts, h)
        parts = self._advance_b(parts, control, t, h / 2)
        return self._advance_a(parts, control, t, h / 2)

    def _advance_a(self, parts: tuple[Tensor, ...], control: Tensor | None, t: float, d: float) -> tuple[Tensor, ...]:
        q, p, x, y = parts
        velocity, force = self.field(t, torch.cat([q, y], dim=-1), control).chunk(2, dim=-1)
        return q, p + d * force, x + d * velocity, y

    def _advance_b(self, parts: tuple[Tensor, ...], control: Tensor | None, t: float, d: float) -> tuple[Tensor, ...]:
        q, p, x, y = parts
        velocity, force = self.field(t, torch.cat([x, p], dim=-1), control).chunk(2, dim=-1)
        return q + d * velocity, p, x, y + d * force

    def _rotate(self, parts: tuple[Tensor, ...], d: float) -> tuple[Tensor, ...]:
        q, p, x, y = parts
        cosine, sine = math.cos(2 * self.binding * d), math.sin(2 * self.binding * d)
        dq, dp = q - x, p - y
        turned_q, turned_p = cosine * dq + sine * dp, cosine * dp - sine * dq
        return (q + x + turned_q) / 2, (p + y + turned_p) / 2, (q + x - turned_q) / 2, (p + y - turned_p) / 2
