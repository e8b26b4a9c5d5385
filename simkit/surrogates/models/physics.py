"""Known equations of motion with parameters to be learned, as the physical part of `simkit.surrogates.models.aphynity`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simkit.initialization import softplus_inverse


class Pendulum(nn.Module):
    """Frictionless or damped pendulums, q' = v and v' = -omega^2 sin q - damping v (Yin et al. 2021, eq. 7).

    Args:
        damped: whether friction is known; "incomplete physics" leaves it out.
    """

    def __init__(self, *, damped: bool) -> None:
        super().__init__()
        self.raw_frequency = nn.Parameter(softplus_inverse(torch.tensor(1.0)))
        self.raw_damping = nn.Parameter(softplus_inverse(torch.tensor(0.1))) if damped else None

    def forward(self, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return (q', v')."""
        parameters = self.parameters_by_name()
        acceleration = -parameters["frequency"].square() * q.sin()
        if "damping" in parameters:
            acceleration = acceleration - parameters["damping"] * v
        return v, acceleration

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Return the frequency omega (1/time), and the damping (1/time) where it is known."""
        found = {"frequency": nn.functional.softplus(self.raw_frequency)}
        if self.raw_damping is not None:
            found["damping"] = nn.functional.softplus(self.raw_damping)
        return found
