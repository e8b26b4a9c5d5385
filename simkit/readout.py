"""A readout for architectures that add up the outputs of their blocks."""

import torch
from torch import Tensor, nn

from simkit.heads import Features
from simkit.initialization import glorot_linear


class BlockReadout(nn.Module):
    """One bias-free linear map of the scalar features [N, C], which hold the outputs of all blocks side by side, to [N].

    It equals the sum of one bias-free linear map per block. The weights are drawn for the width of all blocks together, so that the
    output of a new network does not grow with their number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = glorot_linear(channels, 1, bias=False)

    def forward(self, features: Features) -> Tensor:
        """Return a value per atom, [N]."""
        return self.linear(features.scalars).squeeze(-1)


class ChargeReadout(nn.Module):
    """The same for the charges of a dipole moment: raw charges, which begin near zero."""

    START = 0.1
    """What the weights are multiplied by at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.readout = BlockReadout(channels)
        with torch.no_grad():
            self.readout.linear.weight.mul_(self.START)

    def forward(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Return charges per atom [N], elementary charges, and no atomic dipoles."""
        return self.readout(features), None
