"""Known equations of motion with parameters to be learned, as the physical part of `simkit.surrogates.models.aphynity`.

Parameters have the names of those of the known systems. All of them are positive, and begin where the authors' begin theirs
(networks.py of their code).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from simkit.initialization import softplus_inverse
from simkit.surrogates.models.base import Coordinates
from simkit.surrogates.models.convolution import grid_size


class Physics(nn.Module):
    """The time derivative of a state, as far as it is known.

    Args:
        start: positive parameters by name.

    Attributes:
        coordinates: of the state.
        fields: of how many fields on a grid the state consists; 0 where it does not.
    """

    coordinates: ClassVar[Coordinates]
    fields: ClassVar[int] = 0

    def __init__(self, start: Mapping[str, float]) -> None:
        super().__init__()
        self.raw = nn.ParameterDict(
            {name: nn.Parameter(softplus_inverse(torch.tensor(value))) for name, value in start.items()}
        )

    @abstractmethod
    def forward(self, *parts: Tensor) -> Tensor:
        """Return the derivative of a state that is given by its parts; see `DynamicsModel.parts`."""

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Return the parameters, each []."""
        return {name: nn.functional.softplus(value) for name, value in self.raw.items()}


class Pendulum(Physics):
    """Frictionless or damped pendulums, q' = v and v' = -frequency^2 sin q - friction v (Yin et al. 2021, eq. 7).

    Args:
        damped: whether friction is known; "incomplete physics" leaves it out.
    """

    coordinates = "velocity"

    def __init__(self, dof: int, *, damped: bool) -> None:
        super().__init__({"frequency": math.sqrt(0.2), **({"friction": 0.1} if damped else {})})

    def forward(self, *parts: Tensor) -> Tensor:
        """Return (q', v')."""
        q, v = parts
        parameters = self.parameters_by_name()
        acceleration = -parameters["frequency"].square() * q.sin()
        if "friction" in parameters:
            acceleration = acceleration - parameters["friction"] * v
        return torch.cat([v, acceleration], dim=-1)


class ReactionDiffusion(Physics):
    """Diffusion of u and v on a periodic grid over [-1, 1]^2, u' = a lap u and v' = b lap v, with or without their reaction.

    The reaction is that of FitzHugh and Nagumo, u - u^3 - v - k and u - v (Yin et al. 2021, eq. 6); the Laplacian that of five points.

    Args:
        dof: 2 n^2: u beside v, each row by row.
        reaction: whether the reaction is known; "incomplete physics" leaves it out.

    Raises:
        ConfigError: if that is no square grid.
    """

    coordinates = "first-order"
    fields = 2

    def __init__(self, dof: int, *, reaction: bool) -> None:
        start = 1e-2 / (1 + math.exp(2))
        super().__init__(dict.fromkeys("abk" if reaction else "ab", start))
        self.size = grid_size(2, dof)

    def forward(self, *parts: Tensor) -> Tensor:
        """Return (u', v')."""
        fields = parts[0].unflatten(-1, (2, self.size, self.size))
        across = torch.roll(fields, 1, -1) + torch.roll(fields, -1, -1)
        neighbors = across + torch.roll(fields, 1, -2) + torch.roll(fields, -1, -2)
        parameters = self.parameters_by_name()
        coefficients = torch.stack([parameters["a"], parameters["b"]]) * (self.size / 2) ** 2
        rate = coefficients[:, None, None] * (neighbors - 4 * fields)
        if "k" in parameters:
            u, v = fields.unbind(-3)
            rate = rate + torch.stack([u - u**3 - v - parameters["k"], u - v], dim=-3)
        return rate.flatten(-3)
