"""Neural ordinary differential equations: motion without an energy.

R. T. Q. Chen et al., "Neural ordinary differential equations", NeurIPS 2018; that of second order is the baseline of N. Gruver et al.,
"Deconstructing the inductive biases of Hamiltonian neural networks", ICLR 2022: what Hamiltonian networks gain over the first comes
largely from q' = v.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.errors import ConfigError
from simkit.surrogates.models.base import Coordinates, DynamicsModel
from simkit.surrogates.models.convolution import ConvolutionOptions, PeriodicConvolution
from simkit.surrogates.models.network import CoordinateNetwork, NetworkOptions


class NeuralODEOptions(ConvolutionOptions):
    """Options of a neural ODE."""

    coordinates: Coordinates = Field("canonical", description="whether the state is (q, p), (q, v) or q alone")
    controls: int = Field(0, ge=0, description="number of inputs u")
    fields: int = Field(
        0, ge=0, description="the state q is so many fields on a square periodic grid, and the network a convolution"
    )


class NeuralODE(DynamicsModel):
    """d state/dt is a network of the state and the controls."""

    def __init__(self, options: NeuralODEOptions, dof: int) -> None:
        super().__init__(dof)
        self.coordinates = options.coordinates
        self.controls = options.controls
        if options.fields and (options.controls or options.coordinates != "first-order"):
            raise ConfigError(
                "fields are states of first order without controls; give coordinates=first-order and controls=0, or leave out fields"
            )
        more = self.state_size - dof + options.controls
        self.network: nn.Module = (
            PeriodicConvolution(options.fields, dof, options)
            if options.fields
            else CoordinateNetwork(dof, self.state_size, options, more=more)
        )

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return the network's output; see `DynamicsModel`."""
        found: Tensor = self.network(*self.parts(state, control), *([] if control is None else [control]))
        return found


class SecondOrderNeuralODEOptions(NetworkOptions):
    """Options of a neural ODE of second order."""

    controls: int = Field(0, ge=0, description="number of inputs u")


class SecondOrderNeuralODE(DynamicsModel):
    """q' = v, and v' is a network of coordinates, velocities and controls."""

    coordinates = "velocity"

    def __init__(self, options: SecondOrderNeuralODEOptions, dof: int) -> None:
        super().__init__(dof)
        self.controls = options.controls
        self.network = CoordinateNetwork(dof, dof, options, more=dof + options.controls)

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (v, a); see `DynamicsModel`."""
        q, v = self.split(state, control)
        return torch.cat([v, self.network(q, v, *([] if control is None else [control]))], dim=-1)
