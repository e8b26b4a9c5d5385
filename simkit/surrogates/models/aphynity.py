"""APHYNITY: known but incomplete physics, and a learned residual of least norm.

Y. Yin et al., "Augmenting physical models with deep networks for complex dynamics forecasting", ICLR 2021:
dX/dt = F_p(X; theta_p) + F_a(X; theta_a), where among all that fit the data the one with the least norm of F_a is sought (eq. 3). The
training minimises the norm of `APHYNITY.residual` with the fit as a constraint (algorithm 1); the model gives both.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.network import CoordinateNetwork, NetworkOptions
from simkit.surrogates.models.physics import Pendulum


class APHYNITYOptions(NetworkOptions):
    """Options of APHYNITY."""

    physics: Literal["pendulum", "damped-pendulum"] = "pendulum"


class APHYNITY(DynamicsModel):
    """Known physics plus a residual that acts on every component of the state (q, v).

    Attributes:
        physics: from (q, v) to (q', v'), with ``parameters_by_name``; a module that may be replaced by other physics.
        residual_network: F_a.
    """

    coordinates = "velocity"

    def __init__(self, options: APHYNITYOptions, dof: int) -> None:
        super().__init__(dof)
        self.physics: nn.Module = Pendulum(damped=options.physics == "damped-pendulum")
        self.residual_network = CoordinateNetwork(dof, 2 * dof, options, more=dof)

    def residual(self, state: Tensor) -> Tensor:
        """Return F_a [..., 2D]."""
        return self.residual_network(*self.split(state))

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return F_p + F_a; see `DynamicsModel`."""
        q, v = self.split(state, control)
        return torch.cat(self.physics(q, v), dim=-1) + self.residual_network(q, v)
