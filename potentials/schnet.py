"""SchNet: continuous-filter convolutions.

Schuett et al., "SchNet: A continuous-filter convolutional neural network for modeling quantum interactions", NeurIPS 2017.
"""

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.graph import one_direction
from simkit.kernels.activations import ShiftedSoftplus
from simkit.kernels.filter_message import filter_message
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, make_cutoff


class SchNetOptions(Options):
    """Options of SchNet; the defaults are the published size.

    "cosine" is the cutoff function of the common implementations; the default is its neighbour with a continuous second derivative.
    """

    channels: int = Field(128, ge=2)
    layers: int = Field(6, ge=1)
    filters: int | None = Field(None, ge=1, description="width of the filters; the channels where not given")
    basis: int = Field(50, ge=2)
    cutoff_function: CutoffName = "polynomial"


class Interaction(nn.Module):
    """Figure 2 of the paper: x_i += W3 ssp(W2 sum_j (W1 x_j) * filter(r_ij))."""

    def __init__(self, channels: int, filters: int, basis: int) -> None:
        super().__init__()
        self.filter_net = nn.Sequential(nn.Linear(basis, filters), ShiftedSoftplus(), nn.Linear(filters, filters))
        self.dense_in = nn.Linear(channels, filters, bias=False)
        self.dense_out = nn.Sequential(nn.Linear(filters, channels), ShiftedSoftplus(), nn.Linear(channels, channels))

    def forward(
        self, x: Tensor, sender: Tensor, receiver: Tensor, hidden: Tensor, weight: Tensor, *, both: bool
    ) -> Tensor:
        """Return the update of the features, [N, C]; with ``both``, each edge stands for its reverse as well.

        ``hidden`` [E, F] is the hidden layer of the filter network.
        """
        total = filter_message(self.dense_in(x), self.filter_net[2](hidden), weight, sender, receiver, both=both)
        return self.dense_out(total)


class SchNet(Representation):
    """Scalar features refined by continuous-filter convolutions."""

    def __init__(self, options: SchNetOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = options.channels
        self.activation = ShiftedSoftplus()
        self.embedding = nn.Embedding(num_elements, options.channels)
        self.basis = GaussianBasis(options.basis, cutoff)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        width = options.filters or options.channels
        self.interactions = nn.ModuleList(
            [Interaction(options.channels, width, options.basis) for _ in range(options.layers)]
        )

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C]; SchNet has no vectors."""
        # Filters depend on distances alone, and the filter network is most of the work: make each pair's filter once. On a GPU the
        # selection would make the host wait for the device, and the work is cheap.
        both = vectors.device.type == "cpu"
        if both:
            chosen = one_direction(edge_index, vectors)
            edge_index, vectors = edge_index.index_select(1, chosen), vectors.index_select(0, chosen)
        sender, receiver = edge_index[0], edge_index[1]
        r = torch.sqrt(vectors.square().sum(dim=1))
        weight = self.cutoff_function(r)
        x = self.embedding(species)
        for interaction, hidden in zip(self.interactions, self._hidden_filters(r), strict=True):
            x = x + interaction(x, sender, receiver, hidden, weight, both=both)
        return x, None

    def _hidden_filters(self, r: Tensor) -> tuple[Tensor, ...]:
        """The hidden layers of all filter networks, [E, F] each, as one product: all begin with the same basis of the distances."""
        networks = [cast(Interaction, interaction).filter_net for interaction in self.interactions]
        first = [cast(nn.Linear, network[0]) for network in networks]
        # Rows of the basis, not of the outputs: the other layout makes the gradient of the weights at half the speed.
        weights = torch.cat([layer.weight.t() for layer in first], dim=1)
        hidden = torch.addmm(torch.cat([layer.bias for layer in first]), self.basis(r), weights)
        return networks[0][1](hidden).view(len(r), len(first), first[0].out_features).unbind(dim=1)
