"""Message passing between particles, continuous in their positions as neighbors come and go."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simkit.radial import PolynomialCutoff, SineBasis
from simkit.surrogates.models.network import NetworkOptions, perceptron

POWERS = 4
"""Inverse powers of a distance that the networks see: 1, 2, 4 and 8."""
ENVELOPE_POWER = 6


class DistanceFeatures(nn.Module):
    """Distances as the networks see them: sin(n pi r/rc)/r for n = 1..count, and (contact/r)^k for k = 1, 2, 4, 8.

    Waves resolve the range of the interaction. The inverse powers let a network of linear growth follow a steep repulsion, also beyond
    the closest pair that it has seen, where waves alone would level off.
    """

    def __init__(self, count: int, cutoff: float, contact: float) -> None:
        super().__init__()
        self.waves = SineBasis(count, cutoff)
        self.contact = contact
        self.size = count + POWERS

    def forward(self, r: Tensor) -> Tensor:
        """Map distances [E] to features [E, size]."""
        powers = [self.contact / r]
        for _ in range(POWERS - 1):
            powers.append(powers[-1].square())
        return torch.cat([self.waves(r), torch.stack(powers, dim=-1)], dim=-1)


class EdgeNetwork(nn.Module):
    """A network of the features of an edge and of the particles at its ends.

    The part of the first layer that sees the particles is computed once for each of them, not once for each edge.
    """

    def __init__(self, features: int, outputs: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.edge = nn.Linear(features, width)
        self.receiver = nn.Linear(width, width, bias=False)
        self.sender = nn.Linear(width, width, bias=False)
        self.rest = perceptron(width, outputs, NetworkOptions(width=width, layers=1, activation="silu"), bias=bias)

    def forward(self, nodes: Tensor, features: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
        """Return [E, outputs]."""
        ends = self.receiver(nodes).index_select(0, receiver) + self.sender(nodes).index_select(0, sender)
        return self.rest(nn.functional.silu(self.edge(features) + ends))


class MessagePassing(nn.Module):
    """Rounds of messages along edges, each added up at its receiver and seen by the network that updates the particle.

    A message is multiplied by an envelope that vanishes at the cutoff with its first and second derivative, so that what the particles
    become is twice differentiable in their positions.
    """

    def __init__(self, features: int, width: int, rounds: int) -> None:
        super().__init__()
        options = NetworkOptions(width=width, layers=1, activation="silu")
        self.messages = nn.ModuleList(EdgeNetwork(features, width, width) for _ in range(rounds))
        self.updates = nn.ModuleList(perceptron(2 * width, width, options) for _ in range(rounds))

    def forward(self, nodes: Tensor, features: Tensor, envelope: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
        """Return the particles [M, width] after all rounds, from particles [M, width], edge features [E, F], envelope [E, 1]."""
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = message(nodes, features, sender, receiver) * envelope
            received = torch.zeros_like(nodes).index_add(0, receiver, sent)
            nodes = nodes + update(torch.cat([nodes, received], dim=-1))
        return nodes


def envelope_of(cutoff: float) -> nn.Module:
    """Return the function of distances [E] that messages and energies of edges are multiplied by."""
    return PolynomialCutoff(cutoff, ENVELOPE_POWER)
