"""APHYNITY: known but incomplete physics, and a learned residual of least norm.

Y. Yin et al., "Augmenting physical models with deep networks for complex dynamics forecasting", ICLR 2021:
dX/dt = F_p(X; theta_p) + F_a(X; theta_a), where among all that fit the data the one with the least norm of F_a is sought (eq. 3). The
training minimises `APHYNITY.squared_norm` with the fit as a constraint (algorithm 1); the model gives both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.convolution import ConvolutionOptions, PeriodicConvolution
from simkit.surrogates.models.network import CoordinateNetwork
from simkit.surrogates.models.physics import Pendulum, Physics, ReactionDiffusion

PHYSICS: dict[str, Callable[[int], Physics]] = {
    "pendulum": partial(Pendulum, damped=False),
    "damped-pendulum": partial(Pendulum, damped=True),
    "diffusion": partial(ReactionDiffusion, reaction=False),
    "reaction-diffusion": partial(ReactionDiffusion, reaction=True),
}
_EPSILON = 1e-5  # of the authors' experiments.py


class APHYNITYOptions(ConvolutionOptions):
    """Options of APHYNITY."""

    physics: Literal["pendulum", "damped-pendulum", "diffusion", "reaction-diffusion"] = "pendulum"
    residual: bool = Field(True, description="whether anything is learned beside the physics' parameters")
    norm: Literal["absolute", "relative"] = Field(
        "absolute", description="of the residual; relative: divided by that of the state"
    )


class APHYNITY(DynamicsModel):
    """Known physics plus a residual that acts on every component of the state, (q, v) or fields; it starts as zero.

    Attributes:
        physics: F_p; a module that may be replaced by other physics.
        residual_network: F_a, a perceptron or, for fields, a convolution; None for the physics alone.
    """

    def __init__(self, options: APHYNITYOptions, dof: int) -> None:
        super().__init__(dof)
        self.physics = PHYSICS[options.physics](dof)
        self.coordinates, fields = self.physics.coordinates, self.physics.fields
        self.norm = options.norm
        self.points = dof // fields if fields else 1
        self.residual_network: nn.Module | None = None
        if options.residual:
            network = (
                PeriodicConvolution(fields, dof, options)
                if fields
                else CoordinateNetwork(dof, self.state_size, options, more=self.state_size - dof)
            )
            for parameter in network.layers[-1].parameters():
                nn.init.zeros_(parameter)
            self.residual_network = network

    def residual(self, state: Tensor) -> Tensor:
        """Return F_a [..., 2D], or [..., D] for fields; zeros for the physics alone."""
        parts = self.parts(state)
        return state.new_zeros(state.shape) if self.residual_network is None else self.residual_network(*parts)

    def squared_norm(self, state: Tensor) -> Tensor:
        """Return |F_a|^2 [...], or |F_a|^2 / |X|^2; for fields, their mean over the points of the grid."""

        def square(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, self.points)).square().sum(-2)

        found = square(self.residual(state))
        if self.norm == "relative":
            found = found / (square(state).sqrt() + _EPSILON).square()
        return found.mean(-1)

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return F_p + F_a; see `DynamicsModel`."""
        parts = self.parts(state, control)
        known: Tensor = self.physics(*parts)
        return known if self.residual_network is None else known + self.residual_network(*parts)

    def physics_parameters(self) -> dict[str, float]:
        """Return the parameters of the physics by name; those of the known system of that name are their true values."""
        return {name: float(value.detach()) for name, value in self.physics.parameters_by_name().items()}
