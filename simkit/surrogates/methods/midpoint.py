"""The implicit midpoint rule: second order, symmetric, and symplectic for every Hamiltonian.

| Equation (Hairer, Lubich & Wanner, "Geometric Numerical Integration", 2006, eq. I.1.7 and section VIII.6) | Here |
| --- | --- |
| midpoint z = y + h/2 f(t + h/2, z) | ``middle``, solved for |
| step y' = y + h f(t + h/2, z) = 2 z - y | `ImplicitMidpoint.advance` |
| solution, by fixed-point iteration z <- y + h/2 f(z) | `_fixed_point` |
| ... and Newton's method, z <- z + (1 - h/2 df/dz)^-1 (y + h/2 f(z) - z), where that does not converge | `_newton` |

The equation is solved until a correction is at most `TOLERANCE` machine epsilons of the largest entry of the state (2e-14 in float64,
1e-5 in float32). Gradients follow from the implicit function theorem, not from the iterations: one more Newton correction is recorded,
with its matrix held fixed. They are exact to first order and cannot be differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.surrogates.derivatives import enabled, rows
from simkit.surrogates.methods.stepper import Direct, Field

TOLERANCE = 100
FIXED_POINT_ITERATIONS = 30
NEWTON_ITERATIONS = 20


class ImplicitMidpoint(Direct):
    """The implicit midpoint rule.

    Args:
        field: the time derivative of the state.
    """

    symmetric = True

    def __init__(self, field: Field) -> None:
        self.field = field

    def advance(self, inner: Tensor, control: Tensor | None, t: float, h: float, steps: int) -> Tensor:
        """Return the state after the steps; see `Stepper`.

        Raises:
            ConfigError: if a step cannot be solved.
        """
        y = inner
        for step in range(steps):
            y = 2 * self._middle(y, control, t + (step + 0.5) * h, h) - y
        return y

    def _middle(self, y: Tensor, control: Tensor | None, t: float, h: float) -> Tensor:
        with torch.no_grad():
            middle = self._fixed_point(y, control, t, h)
            if middle is None:
                middle = self._newton(y, control, t, h)
        if not torch.is_grad_enabled():
            return middle
        residual = y + h / 2 * self.field(t, middle, control) - middle
        if not residual.requires_grad:
            return middle
        matrix = self._matrix(middle, control, t, h)
        return middle + torch.linalg.solve(matrix, residual.unsqueeze(-1)).squeeze(-1)

    def _fixed_point(self, y: Tensor, control: Tensor | None, t: float, h: float) -> Tensor | None:
        """Return the midpoint, or None if the iteration does not converge."""
        middle, allowed = y, _allowed(y)
        for _ in range(FIXED_POINT_ITERATIONS):
            following = y + h / 2 * self.field(t, middle, control)
            change = (following - middle).abs().amax()
            middle = following
            if bool(change <= allowed):
                return middle
        return None

    def _newton(self, y: Tensor, control: Tensor | None, t: float, h: float) -> Tensor:
        middle, allowed = y, _allowed(y)
        change = torch.full_like(allowed, torch.inf)
        for _ in range(NEWTON_ITERATIONS):
            residual = y + h / 2 * self.field(t, middle, control) - middle
            correction = torch.linalg.solve(self._matrix(middle, control, t, h), residual.unsqueeze(-1)).squeeze(-1)
            middle = middle + correction
            change = correction.abs().amax()
            if bool(change <= allowed):
                return middle
            if not bool(torch.isfinite(change)):
                break
        raise ConfigError(
            f"the implicit midpoint rule did not converge at t = {t:g} with steps of {h:g}: the last correction was "
            f"{float(change):.1e} (allowed: {float(allowed):.1e}); set a smaller timestep"
        )

    def _matrix(self, middle: Tensor, control: Tensor | None, t: float, h: float) -> Tensor:
        """Return 1 - h/2 df/dz, [..., 2D, 2D], as a constant."""
        with enabled():
            z = middle.detach().requires_grad_(True)
            out = self.field(t, z, None if control is None else control.detach())
            (jacobian,) = rows(out, z, recorded=False)
        return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device) - h / 2 * jacobian.detach()


def _allowed(y: Tensor) -> Tensor:
    return TOLERANCE * torch.finfo(y.dtype).eps * y.abs().amax().clamp(min=1.0)
