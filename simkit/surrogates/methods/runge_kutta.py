"""The classical Runge-Kutta method of fourth order, for any equation of motion.

With k1 = f(t, y): k2 = f(t + h/2, y + h/2 k1), k3 = f(t + h/2, y + h/2 k2), k4 = f(t + h, y + h k3) and
y' = y + h/6 (k1 + 2 k2 + 2 k3 + k4). W. Kutta, Z. Math. Phys. 46, 435 (1901).
"""

from __future__ import annotations

from torch import Tensor

from simkit.surrogates.methods.stepper import Direct, Field


class RungeKutta4(Direct):
    """Fourth order, neither symplectic nor reversible.

    Args:
        field: the time derivative of the state.
    """

    symmetric = False

    def __init__(self, field: Field) -> None:
        self.field = field

    def advance(self, inner: Tensor, control: Tensor | None, t: float, h: float, steps: int) -> Tensor:
        """Return the state after the steps; see `Stepper`."""
        y, f = inner, self.field
        for step in range(steps):
            now = t + step * h
            k1 = f(now, y, control)
            k2 = f(now + h / 2, y + h / 2 * k1, control)
            k3 = f(now + h / 2, y + h / 2 * k2, control)
            k4 = f(now + h, y + h * k3, control)
            y = y + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        return y
